"""Forced alignment of tokens: equal to searches that are plain to see, whatever the windows; and what it refuses."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from mms_jax.ctc import align_search
from mms_jax.ctc.align import STAR, TokenSpans, align_tokens
from mms_jax.errors import AlignmentError, NumericsError

EXACT = 1e-9  # float64 sums of up to 100 log probabilities in another order
CASES = 10_000


def full_matrix(log_probs: np.ndarray, tokens: np.ndarray, blank: int) -> tuple[float, list[int]]:
    """Viterbi over all T x (2 U + 1) states, with a pointer kept for each: the score and the state of every frame."""
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    emitted = np.where(states == STAR, 0.0, log_probs[:, states].astype(np.float64))
    may_skip = np.zeros(len(states), bool)
    may_skip[3::2] = tokens[1:] != tokens[:-1]
    scores = np.full(len(states), -np.inf)
    scores[:2] = emitted[0, :2]
    pointers = np.zeros((len(log_probs), len(states)), int)
    for frame in range(1, len(log_probs)):
        before = np.full((3, len(states)), -np.inf)
        before[0] = scores
        before[1, 1:] = scores[:-1]
        before[2, 2:] = np.where(may_skip[2:], scores[:-2], -np.inf)
        pointers[frame] = before.argmax(axis=0)  # the first of equal ones: stay, then the neighbour, then the skip
        scores = before.max(axis=0) + emitted[frame]
    state = len(states) - (2 if scores[-2] >= scores[-1] else 1)
    path, best = [state], scores[state]
    for frame in range(len(log_probs) - 1, 0, -1):
        state -= pointers[frame, state]
        path.append(state)
    return float(best), path[::-1]


def spans_of(path: list[int], num_tokens: int) -> list[tuple[int, int]]:
    frames = [[frame for frame, state in enumerate(path) if state == 2 * token + 1] for token in range(num_tokens)]
    return [(one[0], one[-1] + 1) for one in frames]


def random_case(rng: np.random.Generator, *, max_tokens: int = 8, max_spare: int = 24):
    """Log probabilities, some with many ties, and tokens with repeats and stars."""
    width = int(rng.integers(2, 6))
    blank = int(rng.integers(width))
    choices = [token for token in range(width) if token != blank] + [STAR]
    tokens = rng.choice(choices, int(rng.integers(1, max_tokens + 1)))
    num_frames = needed(tokens) + int(rng.integers(0, max_spare + 1))
    if rng.random() < 0.5:  # sixteenths: sums are exact in any order, so ties are ties
        return (rng.integers(-64, 1, (num_frames, width)) / 16).astype(np.float32), tokens, blank
    return np.log(rng.dirichlet(np.full(width, 0.3), num_frames) + 1e-6).astype(np.float32), tokens, blank


def needed(tokens: np.ndarray) -> int:
    return len(tokens) + int((tokens[1:] == tokens[:-1]).sum())


def spans(found: TokenSpans) -> list[tuple[int, int]]:
    return list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))


def plausible(rng: np.random.Generator, num_frames: int, num_tokens: int, width: int = 30):
    """Emissions as a model makes them: a peak for each token, a tenth of them wrong."""
    tokens = rng.integers(1, width, num_tokens)
    logits = rng.normal(0, 1.5, (num_frames, width)).astype(np.float32)
    logits[:, 0] += 8
    peaks = np.sort(rng.choice(num_frames, num_tokens, replace=False))
    heard = np.where(rng.random(num_tokens) < 0.1, rng.integers(1, width, num_tokens), tokens)
    logits[peaks, 0] -= 8
    logits[peaks, heard] += 8
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), tokens


def collapses_to(path: tuple[int, ...], blank: int) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != blank]


def test_no_path_of_all_that_spell_the_tokens_is_more_probable():
    rng = np.random.default_rng(0)
    for _ in range(60):
        log_probs = np.log(rng.dirichlet(np.ones(3), int(rng.integers(3, 7)))).astype(np.float32)
        tokens = rng.integers(1, 3, int(rng.integers(1, 4)))
        if needed(tokens) > len(log_probs):
            continue
        paths = [
            path
            for path in itertools.product(range(3), repeat=len(log_probs))
            if collapses_to(path, 0) == tokens.tolist()
        ]
        scores = log_probs.astype(np.float64)[np.arange(len(log_probs)), np.array(paths)].sum(axis=1)
        found = align_tokens(log_probs, tokens, blank_id=0)
        assert found.score == pytest.approx(scores.max(), abs=EXACT)
        assert tuple(found.path(tokens, blank_id=0)) == paths[int(scores.argmax())]


def test_it_is_the_full_search_s_path_with_repeats_stars_and_ties_in_any_windows(monkeypatch):
    rng = np.random.default_rng(1)
    for number in range(CASES):
        if number % 10 == 0:  # so that little is kept, and often looked through, in small cases too
            monkeypatch.setattr(align_search, "NARROW", int(rng.integers(0, 5)))
            monkeypatch.setattr(align_search, "CHECK", int(rng.integers(1, 7)))
            monkeypatch.setattr(align_search, "BLOCK", int(rng.integers(1, 7)))
        log_probs, tokens, blank = random_case(rng)
        score, path = full_matrix(log_probs, tokens, blank)
        found = align_tokens(log_probs, tokens, blank_id=blank, window=[None, 1, 2, 3, 7, 11][number % 6])
        assert (number, spans(found)) == (number, spans_of(path, len(tokens)))
        assert found.score == pytest.approx(score, abs=EXACT)


def test_long_plausible_emissions_lose_most_states_and_no_exactness():
    log_probs, tokens = plausible(np.random.default_rng(2), 1500, 400)
    score, path = full_matrix(log_probs, tokens, 0)
    found = align_tokens(log_probs, tokens, blank_id=0, window=100)
    assert spans(found) == spans_of(path, len(tokens))
    assert found.score == pytest.approx(score, abs=1e-6)  # 1500 terms


def test_hopeless_states_are_left_out_where_the_text_fits():
    log_probs, tokens = plausible(np.random.default_rng(3), 20_000, 5_000)
    lattice = align_search.Lattice(log_probs, tokens)
    kept = align_search._forward(lattice, 500, least=align_search._narrow(lattice))
    assert max(len(one.labels) for one in kept) < len(tokens) / 2


def test_a_long_case_does_not_depend_on_the_window_and_takes_little_memory():
    log_probs, tokens = plausible(np.random.default_rng(4), 20_000, 5_000)
    tracemalloc.start()
    small = align_tokens(log_probs, tokens, blank_id=0, window=300)
    used = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    large = align_tokens(log_probs, tokens, blank_id=0, window=2_500)
    assert spans(small) == spans(large)
    assert small.score == large.score
    assert used < 20  # MB; 2 x 20,000 x 5,000 pointers would be 200


def test_blocks_are_the_same_as_the_whole():
    log_probs, tokens = plausible(np.random.default_rng(5), 700, 100)
    whole = align_tokens(log_probs, tokens, blank_id=0)
    blocks = align_tokens((log_probs[start : start + 90] for start in range(0, 700, 90)), tokens, blank_id=0)
    assert spans(blocks) == spans(whole)
    assert blocks.score == whole.score


def test_scores_are_those_of_the_frames_of_each_token():
    log_probs, tokens, blank = random_case(np.random.default_rng(6))
    found = align_tokens(log_probs, tokens, blank_id=blank)
    for token, start, end, score in zip(tokens, found.starts, found.ends, found.scores, strict=True):
        own = 0.0 if token == STAR else log_probs[start:end, token].astype(np.float64).sum()
        assert score == pytest.approx(own, abs=EXACT)


def test_a_star_takes_what_no_token_explains_and_at_least_a_frame():
    heard = [0, 1, 0, 3, 2, 3, 0, 2, 0]  # 3 2 3 is not in the text
    log_probs = np.full((len(heard), 4), np.log(0.02), np.float32)
    log_probs[np.arange(len(heard)), heard] = np.log(0.94)
    found = align_tokens(log_probs, [1, STAR, 2], blank_id=0)
    assert spans(found) == [(1, 2), (2, 7), (7, 8)]
    assert found.scores[1] == 0.0
    tight = align_tokens(log_probs[:3], [1, STAR, 2], blank_id=0)
    assert spans(tight) == [(0, 1), (1, 2), (2, 3)]


def test_of_equally_probable_paths_it_is_the_documented_one():
    found = align_tokens(np.zeros((6, 3), np.float32), [1, 2], blank_id=0)
    # From the end: in the last label, staying as long as can be; then, from a blank if there may be one.
    assert found.path([1, 2], blank_id=0).tolist() == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("tokens", "num_frames", "numbers"),
    [([1, 2, 3], 2, "3 tokens"), ([1, 1, 2], 3, "need 4 frames"), ([1], 0, "no fr")],
)
def test_more_text_than_frames_is_refused_with_the_numbers(tokens, num_frames, numbers):
    with pytest.raises(AlignmentError, match=numbers):
        align_tokens(np.zeros((num_frames, 4), np.float32), tokens, blank_id=0)


def test_just_enough_frames_are_enough():
    assert spans(align_tokens(np.zeros((4, 3), np.float32), [1, 1, 2], blank_id=0)) == [(0, 1), (2, 3), (3, 4)]


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "no tokens"),
        ([1, 0], "token 1 is the blank"),
        ([1, 4], "the id 4 is no column"),
        ([1, -2], "token 1 is -2"),
        ([[1]], r"\[U\] integers"),
        ([1.0], r"\[U\] integers"),
    ],
)
def test_tokens_that_are_none_are_named(tokens, reason):
    with pytest.raises(AlignmentError, match=reason):
        align_tokens(np.zeros((9, 4), np.float32), tokens, blank_id=0)


def test_a_blank_outside_the_columns_is_named():
    with pytest.raises(AlignmentError, match="the id 4 is no column"):
        align_tokens(np.zeros((9, 4), np.float32), [1], blank_id=4)


@pytest.mark.parametrize("block", [np.zeros((3, 5), np.float32), np.zeros(4, np.float32), np.zeros((3, 4), int)])
def test_blocks_that_do_not_fit_are_refused(block):
    with pytest.raises(AlignmentError, match="log_probs"):
        align_tokens([np.zeros((3, 4), np.float32), block], [1], blank_id=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_by_its_frame(value):
    log_probs = np.zeros((12, 4), np.float32)
    log_probs[7, 2] = value
    with pytest.raises(NumericsError, match=f"token 2 in frame 7 is {value}"):
        align_tokens(np.split(log_probs, 3), [1, 2], blank_id=0)
    assert spans(align_tokens(log_probs, [1, 3], blank_id=0))  # nobody looks at that column

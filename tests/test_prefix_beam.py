"""Prefix beam search on the device: what enumerating all paths gives, and a plain search over dicts; bad input."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ngram_models import ByDefinition, estimated, pruned

from mms_jax.ctc.arpa import read_arpa
from mms_jax.ctc.dense_ngram import Automaton, dense_ngram
from mms_jax.ctc.hotwords import hotword_automaton
from mms_jax.ctc.prefix_beam import Hypotheses, prefix_beam_search
from mms_jax.errors import SettingError

SAME = 1e-4  # of scores up to 100 after up to 40 frames in float32, each frame a few roundings of 4e-6; 2.2e-5 is seen
TIE = 4 * SAME  # texts whose scores differ by less may come in either order

Text = tuple[int, ...]
Bonus = Callable[[Text, bool], float]  # of a text, and whether it ends there
STATIC = ("blank_id", "delimiter_id", "beam_size", "beam_size_token", "num_best")
search = jax.jit(prefix_beam_search, static_argnames=STATIC)


def nothing(_text: Text, _ends: bool) -> float:
    return 0.0


def emissions(rng: np.random.Generator, *shape: int, scale: float = 2.0) -> np.ndarray:
    logits = rng.normal(size=shape) * scale
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), np.float64)


def texts(result: Hypotheses, row: int = 0) -> list[tuple[Text, float]]:
    """The row's texts with their scores, without those that are none."""
    found = np.flatnonzero(np.isfinite(result.scores[row]))
    tokens, lengths = np.asarray(result.tokens[row]), np.asarray(result.num_tokens[row])
    return [(tuple(tokens[i, : lengths[i]].tolist()), float(result.scores[row, i])) for i in found]


def all_paths(log_probs: np.ndarray, blank: int, bonus: Bonus) -> list[tuple[Text, float]]:
    """Every text with its score, from all its alignments one by one."""
    alignments: dict[Text, list[float]] = defaultdict(list)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        alignments[text].append(sum(frame[token] for frame, token in zip(log_probs, path, strict=True)))
    scores = {text: float(np.logaddexp.reduce(paths)) for text, paths in alignments.items()}
    return ranked({text: score + bonus(text, True) for text, score in scores.items()})


def ranked(scores: dict[Text, float]) -> list[tuple[Text, float]]:
    return sorted(((t, s) for t, s in scores.items() if s > -math.inf), key=lambda item: -item[1])


def over_dicts(
    log_probs: np.ndarray, blank: int, bonus: Bonus, *, beam_size: int, beam_size_token: int
) -> list[tuple[Text, float]]:
    """The same search written plainly: a dict from prefix to the probabilities of its two kinds of alignments."""
    never = -math.inf
    beam: dict[Text, tuple[float, float]] = {(): (0.0, never)}
    for frame in log_probs:
        labels = [v for v in range(len(frame)) if v != blank]
        best = set(sorted(labels, key=lambda v: -frame[v])[:beam_size_token])
        following: dict[Text, tuple[float, float]] = defaultdict(lambda: (never, never))

        def add(prefix: Text, blank_score: float, label_score: float, into=following) -> None:
            old = into[prefix]
            into[prefix] = (np.logaddexp(old[0], blank_score), np.logaddexp(old[1], label_score))

        for prefix, (in_blank, in_label) in beam.items():
            total = np.logaddexp(in_blank, in_label)
            add(prefix, total + frame[blank], in_label + frame[prefix[-1]] if prefix else never)
            for token in labels:
                if token in best or (*prefix, token) in beam:
                    before = in_blank if prefix and token == prefix[-1] else total
                    add((*prefix, token), never, before + frame[token])
        scores = {prefix: np.logaddexp(*both) + bonus(prefix, False) for prefix, both in following.items()}
        beam = {prefix: following[prefix] for prefix, _ in ranked(scores)[:beam_size]}
    return ranked({prefix: np.logaddexp(*both) + bonus(prefix, True) for prefix, both in beam.items()})


def assert_alike(ours: Sequence[tuple[Text, float]], expected: Sequence[tuple[Text, float]]) -> None:
    """The same scores, and the same texts but for the order of ties."""
    assert len(ours) == len(expected)
    assert np.allclose([s for _, s in ours], [s for _, s in expected], rtol=0, atol=SAME)
    scores = dict(expected)
    assert len({text for text, _ in ours}) == len(ours)
    for text, score in ours:
        assert text in scores or abs(score - expected[-1][1]) < TIE
        assert abs(scores.get(text, score) - score) < TIE


class Model:
    """An n-gram model of tokens 1 …, blank 0, as the automaton and as its definition has it; with weights."""

    def __init__(self, path: Path, num_columns: int, *, lm_weight: float, word_score: float, delimiter: int) -> None:
        self.names = ["<pad>", *"abcdefghijklmno"[: num_columns - 1]]
        self.automaton = dense_ngram(read_arpa(path), tokens=self.names)
        self.definition, self.delimiter = ByDefinition(path), delimiter
        self.lm_weight, self.word_score = lm_weight, word_score
        self.settings = {"ngram": self.automaton, "lm_weight": lm_weight, "word_score": word_score}
        self.settings |= {"delimiter_id": delimiter}

    def bonus(self, text: Text, ends: bool) -> float:
        scores = self.definition.sentence([self.names[token] for token in text])
        words = sum(token == self.delimiter for token in text)
        return self.lm_weight * sum(scores if ends else scores[:-1]) + self.word_score * words


@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_finds_what_all_paths_give(blank):
    log_probs = emissions(np.random.default_rng(0), 12, 6, 4)
    num_frames = np.arange(12) % 6 + 1
    result = search(log_probs, jnp.asarray(num_frames), blank_id=blank, beam_size=400, beam_size_token=99, num_best=400)
    for row, n in enumerate(num_frames):
        assert_alike(texts(result, row), all_paths(log_probs[row, :n], blank, nothing))
    assert np.array_equal(result.scores, result.acoustic_scores)
    assert not np.any(result.lm_scores)


def test_a_wide_beam_finds_what_all_paths_give_with_a_language_model(tmp_path):
    path = pruned(tmp_path / "lm.arpa", ["a", "b", "c"], order=3)
    model = Model(path, 4, lm_weight=0.7, word_score=-0.4, delimiter=2)
    log_probs = emissions(np.random.default_rng(0), 6, 5, 4)
    sizes = {"blank_id": 0, "beam_size": 400, "beam_size_token": 99, "num_best": 400}
    result = search(log_probs, jnp.full(6, 5), **sizes, **model.settings)
    for row in range(6):
        ours, expected = texts(result, row), all_paths(log_probs[row], 0, model.bonus)
        assert_alike(ours, expected)
        assert ours[0][0] == expected[0][0]
        lm = [sum(model.definition.sentence([model.names[t] for t in text])) for text, _ in ours]
        assert np.allclose(result.lm_scores[row, : len(lm)], lm, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("beam_size", "beam_size_token", "with_model"),
    [(1, 1, True), (3, 2, True), (16, 99, True), (32, 5, False)],
)
def test_a_narrow_beam_finds_what_a_plain_search_finds(tmp_path, beam_size, beam_size_token, with_model):
    settings, bonus = {}, nothing
    if with_model:
        path = estimated(tmp_path / "lm.arpa", "abcdefghij", order=4, sentences=100)
        model = Model(path, 10, lm_weight=1.5, word_score=0.6, delimiter=3)
        settings, bonus = model.settings, model.bonus
    sizes = {"beam_size": beam_size, "beam_size_token": beam_size_token}
    log_probs = emissions(np.random.default_rng(beam_size), 4, 40, 10, scale=2.5)
    result = search(log_probs, jnp.full(4, 40), blank_id=0, num_best=beam_size, **sizes, **settings)
    for row, frames in enumerate(log_probs):
        assert_alike(texts(result, row), over_dicts(frames, 0, bonus, **sizes))


def test_doubled_letters_need_a_blank_between():
    high, low = math.log(0.98), math.log(0.01)
    frames = {"a": [low, high, low], "-": [high, low, low], "b": [low, low, high], " ": [0.0, 0.0, 0.0]}
    spellings = {"aa": (1,), "a-a": (1, 1), "aab-ba": (1, 2, 2, 1), "---": (), "-": (), "a": (1,), "-bb-": (2,)}
    log_probs = jnp.array([[frames[c] for c in path.ljust(6)] for path in spellings])
    result = search(log_probs, jnp.array([len(path) for path in spellings]), blank_id=0, beam_size=4)
    assert [texts(result, row)[0][0] for row in range(len(spellings))] == list(spellings.values())


def test_rows_are_the_same_alone_in_any_batch_and_before_any_padding(tmp_path):
    model = Model(estimated(tmp_path / "lm.arpa", "abcd", order=3), 5, lm_weight=1.0, word_score=0.0, delimiter=1)
    num_frames = np.array([9, 0, 20, 1, 13])
    log_probs = emissions(np.random.default_rng(0), 5, 20, 5).astype(np.float32)
    for row, n in enumerate(num_frames):
        log_probs[row, n:] = [math.nan, math.inf, -math.inf, 7.0, 3e38][row]
    sizes = {"blank_id": 0, "beam_size": 8, "beam_size_token": 3, "num_best": 8}
    batch = search(log_probs, jnp.asarray(num_frames), **sizes, **model.settings)
    for row, n in enumerate(num_frames):
        length = n if n == 9 else 20
        alone = search(log_probs[row : row + 1, :length], jnp.array([n]), **sizes, **model.settings)
        assert np.array_equal(batch.tokens[row, :, :length], alone.tokens[0])
        assert not np.any(batch.tokens[row, :, n:])
        for one, other in zip(batch[1:], alone[1:], strict=True):
            assert np.array_equal(one[row], other[0])


def test_without_frames_there_is_the_empty_text(tmp_path):
    model = Model(estimated(tmp_path / "lm.arpa", "ab", order=3), 3, lm_weight=2.0, word_score=0.0, delimiter=1)
    result = search(jnp.zeros((2, 0, 3)), jnp.array([0, 0]), blank_id=0, beam_size=4, num_best=2, **model.settings)
    assert result.tokens.shape == (2, 2, 0)
    assert texts(result, 1) == [((), pytest.approx(2 * model.definition.sentence([])[0], abs=SAME))]
    assert np.array_equal(result.acoustic_scores[:, 0], [0, 0])
    assert search(jnp.zeros((0, 0, 3)), jnp.zeros(0, int), blank_id=0).tokens.shape == (0, 1, 0)


def test_tokens_of_minus_infinity_are_never_taken_and_give_no_nan():
    """Prefixes die of them, too, whose parents live on and who may come again, though only by a frame's best tokens."""
    rng = np.random.default_rng(3)
    log_probs = emissions(rng, 60, 10, 5)
    log_probs[rng.random(log_probs.shape) < 0.45] = -math.inf
    sizes = {"beam_size": 12, "beam_size_token": 1}
    result = search(log_probs, jnp.full(60, 10), blank_id=0, num_best=12, **sizes)
    assert not any(np.any(np.isnan(array)) for array in result)
    expected = [over_dicts(frames, 0, nothing, **sizes) for frames in log_probs]
    assert 10 < sum(map(bool, expected)) < 60
    for row, one in enumerate(expected):
        assert_alike(texts(result, row), one)


def test_a_row_that_nothing_can_spell_has_no_text():
    log_probs = emissions(np.random.default_rng(3), 2, 4, 3)
    log_probs[0, 2] = -math.inf
    result = search(log_probs, jnp.array([4, 4]), blank_id=0, num_best=3)
    assert texts(result, 0) == []
    assert not np.any(result.num_tokens[0])
    assert not np.any(np.isnan(result.scores))
    assert_alike(texts(result, 1), over_dicts(log_probs[1], 0, nothing, beam_size=32, beam_size_token=32)[:3])


def test_weights_are_traced_so_that_a_sweep_compiles_once(tmp_path):
    model = Model(estimated(tmp_path / "lm.arpa", "abc", order=3), 4, lm_weight=1.0, word_score=0.0, delimiter=1)
    traces = []

    @jax.jit
    def swept(log_probs, lm_weight, word_score):
        traces.append(1)
        settings = {"ngram": model.automaton, "delimiter_id": 1, "blank_id": 0}
        return prefix_beam_search(log_probs, jnp.array([8]), lm_weight=lm_weight, word_score=word_score, **settings)

    log_probs = emissions(np.random.default_rng(0), 1, 8, 4)
    best = [swept(log_probs, weight, score) for weight in (0.0, 1.0) for score in (-20.0, 20.0)]
    assert len(traces) == 1
    assert [1 in texts(result)[0][0] for result in best] == [False, True, False, True]


def hotword_bonus(hotwords: list[tuple[str, float]], text: str, delimiter: str | None) -> float:
    around = delimiter or ""
    spelt, total = around + text + around, 0.0
    for word, boost in hotwords:
        own = around + word.strip(around) + around if around else word
        total += boost * sum(spelt.startswith(own, i) for i in range(len(spelt)))
    return total


HOTWORDS = [("ab", 2.0), ("aba", 3.5), ("b|ab", 5.0), ("bb", -1.5), ("|a|", 0.25), ("ab", 0.5)]


def spelling(text: str) -> list[int]:
    return ["-ab|".index(c) for c in text]


@pytest.mark.parametrize("delimiter", [None, 3])
def test_only_whole_hotwords_keep_their_boosts(delimiter):
    hotwords = HOTWORDS if delimiter else [("ab", 2.0), ("aba", 3.5), ("bb", -1.5), ("b", 0.25)]
    entries = [(spelling(word), boost) for word, boost in hotwords]
    automaton = Automaton(*map(np.asarray, hotword_automaton(entries, num_tokens=4, delimiter_id=delimiter)))
    for length in range(8):
        for text in map("".join, itertools.product("ab|", repeat=length)):
            state, total = int(automaton.start), 0.0
            for token in spelling(text):
                total += float(automaton.scores[state, token])
                state = int(automaton.next_states[state, token])
            total += float(automaton.final_scores[state])
            assert total == pytest.approx(hotword_bonus(hotwords, text, delimiter and "|"), abs=1e-5), text


def test_a_hotword_has_its_share_while_it_is_spelt():
    automaton = hotword_automaton([([1, 2, 1, 1], 8.0)], num_tokens=4, delimiter_id=3)
    state, total = automaton.start, []
    for token in (1, 2, 1, 2):
        total.append(float(automaton.scores[state, token]))
        state = automaton.next_states[state, token]
    assert np.cumsum(total).tolist() == [2, 4, 6, 0]


def test_the_larger_share_counts_where_one_hotword_begins_within_another():
    automaton = hotword_automaton([([1, 2, 1, 2], 4.0), ([2, 1, 3], 9.0)], num_tokens=4)
    state, total = automaton.start, 0.0
    for token, share in ((1, 1.0), (2, 3.0), (1, 6.0), (3, 9.0)):
        total += float(automaton.scores[state, token])
        state = automaton.next_states[state, token]
        assert total == share
    assert automaton.final_scores[state] == 0


def test_the_search_with_hotwords_finds_what_all_paths_give(tmp_path):
    path = estimated(tmp_path / "lm.arpa", "abc", order=3)
    model = Model(path, 4, lm_weight=0.5, word_score=0.3, delimiter=3)
    automaton = hotword_automaton(
        [(spelling(word), boost) for word, boost in HOTWORDS], num_tokens=4, delimiter_id=model.delimiter
    )

    def bonus(text: Text, ends: bool) -> float:
        assert ends
        return model.bonus(text, True) + hotword_bonus(HOTWORDS, "".join("-ab|"[t] for t in text), "|")

    log_probs = emissions(np.random.default_rng(0), 4, 5, 4)
    sizes = {"blank_id": 0, "beam_size": 400, "num_best": 400}
    result = search(log_probs, jnp.full(4, 5), hotwords=automaton, **sizes, **model.settings)
    for row in range(4):
        assert_alike(texts(result, row), all_paths(log_probs[row], 0, bonus))


@pytest.mark.parametrize(
    ("hotword", "message"),
    [
        (([], 1.0), "no tokens"),
        (([3], 1.0), "no tokens but"),
        (([1, 4], 1.0), "outside 0 to 3"),
        (([1], math.nan), "nan"),
    ],
)
def test_a_hotword_that_is_none_is_refused(hotword, message):
    with pytest.raises(SettingError, match=message):
        hotword_automaton([([1, 2], 1.0), hotword], num_tokens=4, delimiter_id=3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0; it must be at least 1"),
        ({"beam_size_token": -1}, "beam_size_token is -1"),
        ({"num_best": 0}, "num_best is 0"),
        ({"num_best": 33}, "num_best is 33; a beam of 32 has no more"),
        ({"blank_id": 4}, "blank_id is 4; with 4 log_probs it must be 0 to 3"),
        ({"delimiter_id": -1}, "delimiter_id is -1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(SettingError, match=message):
        prefix_beam_search(jnp.zeros((1, 2, 4)), jnp.array([2]), **{"blank_id": 0} | setting)

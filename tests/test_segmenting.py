"""Where a recording is cut into utterances: at its lines, and within them where it costs least; and how they score."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_jax.ctc.align import STAR
from mms_jax.errors import AlignmentError, SettingError
from mms_jax.pipelines.agreement import Agreement
from mms_jax.pipelines.alignment import Alignment
from mms_jax.pipelines.recognition import Frames
from mms_jax.pipelines.segmenting import Limits, utterances
from mms_jax.text.normalize import normalize
from tests.alignments import HOP, aligned, spoken

PADDING = 0.5  # seconds of silence that a cut leaves at most


def cut(alignment, **limits) -> list[str]:
    return [one.text for one in utterances(alignment, language="eng", limits=Limits(**limits))]


LINES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.9, 2.5]), st.sampled_from(["a", "b.", "c,", "(d!)"])), max_size=9
)


@settings(max_examples=150, deadline=None)
@given(LINES, st.sampled_from([1.0, 2.0, 3.5]))
def test_the_pieces_of_a_line_are_its_words_in_order_and_short_enough(line, most):
    texts, pauses = [text for _, text in line] + ["z"], [pause for pause, _ in line]
    found = utterances(aligned(spoken(pauses, texts)), language=None, limits=Limits(0.5, most, -math.inf))
    assert " ".join(one.text for one in found).split() == texts
    assert all(one.end <= after.start for one, after in itertools.pairwise(found))
    for one in found:
        assert one.duration <= most or len(one.text.split()) == 1
        assert one.normalized_text == normalize(one.text)


@settings(max_examples=60, deadline=None)
@given(LINES)
def test_no_other_way_to_cut_a_line_costs_less(line):
    """All ways, by the published costs: the pause between the words and what the one before it ends with."""
    least, most = 0.8, 2.0
    texts, pauses = [text for _, text in line] + ["z"], [pause for pause, _ in line]
    words = spoken(pauses, texts)
    count = len(words)
    starts = [0.1] + [max(w[1] - PADDING, (w[1] + v[2]) / 2) for v, w in itertools.pairwise(words)]
    ends = [min(v[2] + PADDING, (w[1] + v[2]) / 2) for v, w in itertools.pairwise(words)] + [words[-1][2] + 0.1]
    marks = {"a": 1.0, "b.": 0.2, "c,": 0.6, "(d!)": 0.2}

    def cost(places) -> float:
        total = 0.0
        for first, last in itertools.pairwise([0, *places, count]):
            seconds = ends[last - 1] - starts[first]
            if seconds > most + 1e-9 and last - first > 1:
                return math.inf
            total += 10.0 * (seconds < least - 1e-9)
        return total + sum(marks[texts[place - 1]] * 0.1 / (0.1 + pauses[place - 1]) for place in places)

    ways = [way for n in range(count) for way in itertools.combinations(range(1, count), n)]
    found = utterances(aligned(words), language=None, limits=Limits(least, most, -math.inf))
    places = list(itertools.accumulate(len(one.text.split()) for one in found))[:-1]
    expected = 0.0 if ends[-1] - starts[0] <= most else min(map(cost, ways))
    assert (cost(places) if len(found) > 1 else 0.0) == pytest.approx(expected, abs=1e-3)


def test_a_paragraph_is_cut_at_long_pauses_and_ends_of_sentences():
    texts = ["One", "two.", "Three", "four", "five", "six.", "Seven,", "eight", "nine", "ten", "eleven"]
    even = aligned(spoken([0.1] * 10, texts))
    assert cut(even, max_seconds=2.7) == ["One two.", "Three four five six.", "Seven, eight nine ten eleven"]
    pauses = [0.1, 0.1, 0.1, 2.0, 0.1, 0.1, 0.1, 0.1, 2.0, 0.1]
    paused = aligned(spoken(pauses, texts))
    assert cut(paused, max_seconds=4.0) == ["One two. Three four", "five six. Seven, eight nine", "ten eleven"]


def test_lines_stay_whole_and_apart_where_they_are_short_enough():
    words = [("Yes.", 0.2, 0.8, 0), ("No.", 0.9, 1.6, 0), ("Well", 1.7, 2.5, 1), ("then.", 2.6, 3.0, 1)]
    assert cut(aligned(words, segments=2)) == ["Yes. No.", "Well then."]


def test_agreement_is_what_the_path_loses_to_the_likeliest_tokens():
    """As the MMS paper scores its data: mean of log P(aligned) - log P(greedy); any sound and silence lose nothing."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 7)) * 3
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    path = rng.integers(0, 7, size=50)
    best = log_probs.max(axis=1)
    expected = log_probs[np.arange(50), path] - best
    parts = [Frames(path, np.exp(best).astype(np.float32), None)]
    found = Agreement.of(log_probs, path, parts, seconds_per_frame=HOP)
    assert found.score(0.0, 1.0) == pytest.approx(expected.mean(), rel=1e-5)  # float32 probabilities
    assert found.score(0.1, 0.3) == pytest.approx(expected[5:15].mean(), rel=1e-5)
    assert found.score(0.2, 0.2) == 0.0
    greedy = Agreement.of(log_probs, log_probs.argmax(axis=1), parts, seconds_per_frame=HOP)
    assert greedy.score(0.0, 1.0) == pytest.approx(0.0, abs=1e-6)
    anything = Agreement.of(log_probs, np.full(50, STAR), parts, seconds_per_frame=HOP)
    assert anything.score(0.0, 1.0) == 0.0
    silence = np.where(np.arange(7) == 0, 0.0, -100.0) * np.ones((50, 1))
    quiet = Agreement.of(silence, np.arange(50) % 2, [20, 30], seconds_per_frame=HOP)
    assert quiet.score(0.0, 1.0) == -50.0


def test_what_is_left_out_says_why():
    long_word = [("abc" * 30, 0.2, 20.0, 0)]
    others = [
        ("hm", 21.0, 21.3, 1),
        ("a", 22.0, 23.0, 2),
        ("<star>", 23.0, 26.0, 2),
        ("12", 26.5, 28.0, 3),
        ("3", 28.0, 28.5, 3),
    ]
    good = [("fine", 29.0, 30.5, 4), ("bad", 31.0, 32.5, 5)]
    relative = np.zeros(1700)
    relative[1550:1630] = -1.0
    alignment = aligned(long_word + others + good, segments=6, relative=relative)
    found = utterances(alignment, language="eng", limits=Limits())
    reasons = [one.reason for one in found]
    assert reasons == [
        "longer than 15 s, and nowhere to cut",
        "shorter than 1 s",
        "<star> stands for unknown speech in it",
        "nothing of it is spoken",
        "",
        "its score is less than -0.2",
    ]
    assert found[4].score == 0.0
    frames = relative[round(found[5].start / HOP) : round(found[5].end / HOP)]
    assert found[5].score == pytest.approx(frames.mean(), abs=1e-4)
    kept = utterances(alignment, language="eng", limits=Limits(min_score=-math.inf))
    assert kept[5].reason == ""


@pytest.mark.parametrize(
    "limits", [Limits(2, 2), Limits(-1, 2), Limits(1, math.inf), Limits(1, math.nan), Limits(min_score=0.1)]
)
def test_limits_that_nothing_can_keep_are_refused(limits):
    with pytest.raises(SettingError):
        utterances(aligned([("a", 0.1, 2.0)]), language=None, limits=limits)


def test_the_error_of_an_alignment_is_raised():
    with pytest.raises(AlignmentError, match="too much text"):
        utterances(Alignment("eng", 1.0, error=AlignmentError("too much text")), language=None, limits=Limits())

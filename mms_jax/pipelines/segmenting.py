"""A long recording with its text as utterances that can be trained on, each with a score: how MMS made its data.

The lines of the text are the utterances. A line that is longer than ``Limits.max_seconds`` is cut between its words,
where that costs least: at long pauses, at the ends of sentences, in as few pieces as may be. corpus.py writes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from mms_jax.audio import SAMPLING_RATE
from mms_jax.errors import SettingError
from mms_jax.pipelines.alignment import MOST_PADDING, NOT_ALIGNED, AlignedWord, Alignment
from mms_jax.text.normalize import STAR, spoken_words

MIN_SCORE = -0.2  # with the demo model right lines score -0.03 to -0.17, a wrong one -1.7
_SENTENCE_ENDS = frozenset(".!?…‽。．！？｡।॥۔؟።፧։។៕၊။།༎᙮꓿⸮")
_CLAUSE_ENDS = frozenset(",;:،؛、，；：፣፤፥၊")
_CLOSERS = "\"'”’»›)]}」』】〉》"  # what may follow the end of a sentence
# The cost of a cut: falls with the pause, and at the end of a sentence or clause. A piece that is too short costs more
# than any cut, so there is none unless it cannot be helped.
_PAUSE_SCALE = 0.1  # seconds of pause that halve the cost of a cut in flowing speech
_AT_SENTENCE, _AT_CLAUSE = 0.2, 0.6
_TOO_SHORT = 10.0


class Limits(NamedTuple):
    """What makes an utterance."""

    min_seconds: float = 1.0
    max_seconds: float = 15.0
    min_score: float = MIN_SCORE  # see ``Agreement.score``; -inf keeps all

    def check(self) -> None:
        """Raise SettingError for limits that nothing can keep."""
        if not 0 <= self.min_seconds < self.max_seconds < math.inf:
            raise SettingError(
                f"utterances of {self.min_seconds} to {self.max_seconds} s: the least must be at least 0 and less "
                "than the most, which must be finite"
            )
        if not self.min_score <= 0:
            raise SettingError(f"min_score is {self.min_score}; 0 is the best there is, -inf keeps all")


class Utterance(NamedTuple):
    """A stretch of a recording and what is said in it."""

    text: str  # as it was written
    normalized_text: str  # without punctuation, in lower case: what an acoustic model can learn
    start: float  # seconds from the beginning of the audio; where to cut
    end: float
    score: float  # 0 at best; see ``Agreement.score``
    flags: tuple[str, ...]  # of its words; see ``Alignment``
    reason: str  # why it is left out; "": it is not

    @property
    def duration(self) -> float:
        """In seconds."""
        return round(self.end - self.start, 6)


def utterances(alignment: Alignment, *, language: str | None, limits: Limits) -> list[Utterance]:
    """Cut an aligned recording into utterances, in order, none of which overlap; those to leave out say why.

    Args:
        alignment: of all of the recording; raises its error if it has one.
        language: of the text, for normalising it; ISO 639-3 or a tag that starts with one.
        limits: of lengths and score.

    Raises:
        SettingError: limits that nothing can keep.
    """
    limits.check()
    found: list[Utterance] = []
    for number, group in groupby(alignment.words, key=lambda word: word.segment):
        words, segment = list(group), alignment.segments[number]
        normalized = [word.spoken for word in spoken_words(segment.text, language=language, romanized=False)]
        cuts = _Cuts(words, segment.cut_start, segment.cut_end)
        for first, last in cuts.pieces(limits):
            start, end = cuts.span(first, last)
            aligned = [NOT_ALIGNED not in word.flags for word in words[first:last]]
            spoken = " ".join(one for one, kept in zip(normalized[first:last], aligned, strict=True) if one and kept)
            text = segment.text if (first, last) == (0, len(words)) else " ".join(w.text for w in words[first:last])
            found.append(_judged(alignment, words[first:last], text, spoken, start, end, limits))
    return found


def _judged(
    alignment: Alignment,
    words: Sequence[AlignedWord],
    text: str,
    spoken: str,
    start: float,
    end: float,
    limits: Limits,
) -> Utterance:
    assert alignment.agreement is not None
    score = round(alignment.agreement.score(start, end), 4)
    flags = tuple(dict.fromkeys(flag for word in words for flag in word.flags))
    utterance = Utterance(text, spoken, start, end, score, flags, "")
    return utterance._replace(reason=_reason(utterance, words, limits))


def _reason(utterance: Utterance, words: Sequence[AlignedWord], limits: Limits) -> str:
    """Why an utterance is left out: the first of these that holds."""
    if any(word.text == STAR for word in words):
        return f"{STAR} stands for unknown speech in it"
    if not utterance.normalized_text:
        return "nothing of it is spoken"
    if utterance.duration > limits.max_seconds:
        return f"longer than {limits.max_seconds:g} s, and nowhere to cut"
    if utterance.duration < limits.min_seconds:
        return f"shorter than {limits.min_seconds:g} s"
    if utterance.score < limits.min_score:
        return f"its score is less than {limits.min_score:g}"
    return ""


class _Cuts:
    """The places between the words of a line, and which of them to cut at."""

    def __init__(self, words: Sequence[AlignedWord], start: float, end: float):
        """``start`` and ``end`` are where the line itself is cut."""
        pairs = list(pairwise(words))
        # Of each word, where a piece starts that begins with it, and ends that ends with it. Silence between two
        # pieces is split in the middle, each taking MOST_PADDING at most, as between lines.
        self.starts, self.ends = [start], []
        for word, after in pairs:
            middle = (word.end + after.start) / 2
            self.ends.append(min(middle, word.end + MOST_PADDING))
            self.starts.append(max(middle, after.start - MOST_PADDING))
        self.ends.append(end)
        self.costs = [_cost(word.text, after.start - word.end) for word, after in pairs]

    def span(self, first: int, last: int) -> tuple[float, float]:
        """Seconds from which to which the words from ``first`` to before ``last`` are cut out."""
        return round(self.starts[first], 6), round(self.ends[last - 1], 6)

    def pieces(self, limits: Limits) -> list[tuple[int, int]]:
        """The cheapest way to cut the line into pieces that are short enough: [first, last) of the words of each.

        Found exactly, from piece to piece; every piece has a word at least, however long that is.
        """
        count = len(self.starts)
        if self.ends[-1] - self.starts[0] <= limits.max_seconds:
            return [(0, count)]
        costs, before = [0.0, *[math.inf] * count], [0] * (count + 1)
        for last in range(1, count + 1):
            cut = self.costs[last - 1] if last < count else 0.0
            for first in range(last - 1, -1, -1):
                seconds = self.ends[last - 1] - self.starts[first]
                if seconds > limits.max_seconds and first < last - 1:
                    break
                cost = costs[first] + cut + (_TOO_SHORT if seconds < limits.min_seconds else 0.0)
                if cost < costs[last]:
                    costs[last], before[last] = cost, first
        found, last = [], count
        while last:
            found.append((before[last], last))
            last = before[last]
        return found[::-1]


def _cost(text: str, pause: float) -> float:
    """Of a cut behind a word."""
    end = text.rstrip(_CLOSERS)[-1:]
    mark = _AT_SENTENCE if end in _SENTENCE_ENDS else _AT_CLAUSE if end in _CLAUSE_ENDS else 1.0
    return mark * _PAUSE_SCALE / (_PAUSE_SCALE + max(0.0, pause))


def samples_of(utterance: Utterance) -> tuple[int, int]:
    """The samples [first, last) of an utterance at 16 kHz."""
    return round(utterance.start * SAMPLING_RATE), round(utterance.end * SAMPLING_RATE)

"""What recognition returns: text, and on request when each character, word and subtitle is heard."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mms_jax.errors import MMSError, SettingError
from mms_jax.text.ctc import CTCVocabulary, Span

PAUSE = 0.6  # seconds without a word that part two subtitles
MAX_SEGMENT = 7.0  # seconds that one subtitle stands at most
LINE = 42  # columns of a line of a subtitle, by the rules of broadcasters; wide characters take two
MAX_LINES = 2  # of one subtitle
SENTENCE_ENDS = tuple(".!?…।۔؟")  # before a space
WIDE_SENTENCE_ENDS = tuple("。！？")  # which no space follows


class Word(NamedTuple):
    """A word, or a character, and when it is heard."""

    text: str
    start: float  # seconds from the beginning of the audio
    end: float
    score: float  # 0 … 1: mean over its frames of the probability of what was read there


class Segment(NamedTuple):
    """As much text as one subtitle holds."""

    text: str
    start: float  # seconds from the beginning of the audio
    end: float


class RankedLanguage(NamedTuple):
    """A language that a recording may be in, and what speaks for it."""

    language: str
    probability: float  # by identification
    asr_score: float  # mean log probability of the best token of each frame of the first window with speech
    search_score: float | None  # of a beam search there, language model included, by frames; None without one
    text: str  # of that window
    score: float  # by which languages are ranked


class Alternative(NamedTuple):
    """One of several readings of a recording."""

    text: str
    score: float  # log probability of what was heard, plus what language model, words and hotwords add to it
    lm_score: float  # log10 probability by the language model; 0 without one


class Times(NamedTuple):
    """When everything in a transcript is heard."""

    chars: tuple[Word, ...]
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Transcription:
    """What was recognised in one item, or why nothing could be."""

    language: str | None  # the checkpoint's tag; None: one without languages, or nothing to identify one by
    duration: float  # seconds of audio; 0.0 where it could not be read
    transcript: str | None = None
    error: MMSError | None = None
    times: Times | None = None  # where timestamps were asked for
    language_probability: float | None = None  # where language="auto" identified it
    language_ranking: tuple[RankedLanguage, ...] = ()  # where rerank= compared several; the best first
    alternatives: tuple[Alternative, ...] = ()  # of a beam search, best first; the first is the transcript

    @property
    def text(self) -> str:
        """The transcript; raises the item's error if it has one, so that no failure passes for an empty text."""
        if self.error is not None:
            raise self.error
        assert self.transcript is not None
        return self.transcript

    @property
    def words(self) -> tuple[Word, ...]:
        """Every word and when it is heard; raises the item's error if it has one."""
        return self._times.words

    @property
    def chars(self) -> tuple[Word, ...]:
        """Every character, spaces included, and when it is heard; raises the item's error if it has one."""
        return self._times.chars

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The words as subtitles; raises the item's error if it has one.

        A new one starts after ``PAUSE`` seconds without a word, after punctuation that ends a sentence, and where one
        would be longer than ``MAX_SEGMENT`` seconds or ``MAX_LINES`` lines. Text without spaces, and a word with such a
        pause in it, are parted between characters.
        """
        return tuple(_segments(self._times))

    @property
    def _times(self) -> Times:
        if self.error is not None:
            raise self.error
        if self.times is None:
            raise SettingError("there are no times; ask for them: transcribe(…, timestamps='word')")
        return self.times


def timed(
    ids: np.ndarray,
    scores: np.ndarray,
    vocabulary: CTCVocabulary,
    *,
    seconds_per_frame: float,
    written: Sequence[str] | None = None,
) -> tuple[str, Times]:
    """The text of frames and when its parts are heard.

    Args:
        ids: int [T], the best token of every frame.
        scores: float [T], its probability.
        vocabulary: of the language.
        seconds_per_frame: from one frame to the next.
        written: the words as they are to be written, where that is not how they are spelt.
    """
    found = vocabulary.decode_offsets(ids)
    spelt = found.words
    if written is not None and len(written) == len(spelt):
        spelt = tuple(span._replace(text=word) for span, word in zip(spelt, written, strict=True))

    def words(spans: Sequence[Span]) -> tuple[Word, ...]:
        return tuple(
            Word(
                span.text,
                round(span.start * seconds_per_frame, 6),  # 0.06, not 0.060000000000000005
                round(span.end * seconds_per_frame, 6),
                float(scores[span.start : span.end].mean()),
            )
            for span in spans
        )

    return found.text, Times(words(found.chars), words(spelt))


def _segments(times: Times) -> Iterator[Segment]:
    units: list[tuple[str, Word]] = []  # (what stands before it, the word)
    for before, word in _units(times):
        if units and _parts(units, before, word):
            yield _joined(units)
            units = []
        units.append((before, word))
    if units:
        yield _joined(units)


def _units(times: Times) -> Iterator[tuple[str, Word]]:
    """Words behind a space; characters, behind nothing, of what is too long for a subtitle or holds a pause."""
    starts = [char.start for char in times.chars]
    for word in times.words:
        chars = times.chars[bisect_left(starts, word.start) : bisect_left(starts, word.end)]
        too_long = len(wrap(word.text)) > MAX_LINES or round(word.end - word.start, 6) > MAX_SEGMENT
        if too_long or any(round(next_.start - char.end, 6) >= PAUSE for char, next_ in pairwise(chars)):
            yield from (("" if number else " ", char) for number, char in enumerate(chars))
        else:
            yield " ", word


def _parts(units: Sequence[tuple[str, Word]], before: str, word: Word) -> bool:
    """Whether a new subtitle starts with ``word``."""
    first, last = units[0][1], units[-1][1]
    return (
        round(word.start - last.end, 6) >= PAUSE
        or round(word.end - first.start, 6) > MAX_SEGMENT
        or len(wrap(_text([*units, (before, word)]))) > MAX_LINES
        or (last.text.endswith(SENTENCE_ENDS) and before == " ")
        or last.text.endswith(WIDE_SENTENCE_ENDS)
    )


def _joined(units: Sequence[tuple[str, Word]]) -> Segment:
    return Segment(_text(units), units[0][1].start, units[-1][1].end)


def _text(units: Sequence[tuple[str, Word]]) -> str:
    return "".join(before + word.text for before, word in units).strip()


def wrap(text: str) -> list[str]:
    """Lines of at most ``LINE`` columns: broken at spaces, and within what is longer than a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if _columns(joined) <= LINE:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for char in word:
            lines += [""] if _columns(lines[-1] + char) > LINE else []
            lines[-1] += char
    return lines


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)

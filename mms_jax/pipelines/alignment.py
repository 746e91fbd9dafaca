"""When each word of a known text is said in a recording: forced alignment with a recognition model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from mms_jax.ctc.align import STAR, TokenSpans, align_tokens
from mms_jax.errors import AlignmentError, LanguageError, MMSError, TextError
from mms_jax.pipelines.adapters import Tag
from mms_jax.pipelines.agreement import Agreement
from mms_jax.pipelines.alignment_text import Plan, Spelling, Stars, is_roman, make_plan, segments_of
from mms_jax.pipelines.bank import Alphabet
from mms_jax.pipelines.recognition import Frames, log_softmax
from mms_jax.pipelines.recordings import Recording
from mms_jax.pipelines.transcription import Word
from mms_jax.text.normalize import STAR as STAR_WORD
from mms_jax.text.vocabulary import listed

NOT_ALIGNED = "not aligned"  # a word's flag
LOW_SCORE = 0.2  # of a word: below, it is flagged; so are 0.4 % of right and 99.6 % of wrong ones with the demo model
LONGEST_LETTER = 0.5  # seconds that a letter takes at most, flagged otherwise; a word's first counts twice
SQUEEZED_LETTER = 0.025  # seconds; a word whose letters take less on average is flagged
MOST_PADDING = 0.5  # seconds of silence that a cut leaves at most before and behind a segment
REACH = 1  # frames that a word's sound is longer than its tokens, on each side; measured, see experiments
SILENCE = -100.0  # log probability of a letter in digital silence
UNHEARD = 8  # frames between words in which the model hears a letter that the text lacks, to report them


class AlignedWord(NamedTuple):
    """A word of the text as it was written, and when it is heard."""

    text: str
    start: float  # seconds from the beginning of the audio
    end: float
    score: float  # 0 … 1: geometric mean of its tokens' probabilities over their frames; 0 where it has none
    segment: int  # the number of the segment it belongs to
    flags: tuple[str, ...] = ()  # what makes its times doubtful; see ``Alignment``


class AlignedSegment(NamedTuple):
    """A line of the text, and when it is heard."""

    text: str
    start: float  # seconds: where its first word starts
    end: float
    score: float  # as a word's, over all its tokens
    cut_start: float  # where to cut so that it stands alone: in the middle of the silence between segments
    cut_end: float
    flags: tuple[str, ...] = ()  # those of its words, each once


class Gap(NamedTuple):
    """Speech that the text does not have."""

    start: float  # seconds
    end: float


class Found(NamedTuple):
    """When everything in a text is heard."""

    segments: tuple[AlignedSegment, ...]
    words: tuple[AlignedWord, ...]
    chars: tuple[Word, ...]
    score: float
    untranscribed: tuple[Gap, ...]
    dropped: dict[str, int]


@dataclass(frozen=True)
class Alignment:
    """A text on the time axis of its audio, or why it cannot be put there.

    A word's flags: "not aligned" (a number, punctuation, brackets with a number: it has no length), "any sound"
    (``<star>``, or none of its letters is in the vocabulary), "letters dropped" (some are not), "low score" (below
    ``LOW_SCORE``), "too long" (over ``LONGEST_LETTER`` seconds a letter), "squeezed" (under ``SQUEEZED_LETTER``).
    """

    language: str | None  # the checkpoint's tag; None: one without languages
    duration: float  # seconds of audio; 0.0 where it could not be read
    found: Found | None = None
    error: MMSError | None = None
    agreement: Agreement | None = field(default=None, repr=False, compare=False)  # None where there is an error

    @property
    def segments(self) -> tuple[AlignedSegment, ...]:
        """Every line of the text; raises the item's error if it has one."""
        return self._found.segments

    @property
    def words(self) -> tuple[AlignedWord, ...]:
        """Every word of the text, in order; raises the item's error if it has one."""
        return self._found.words

    @property
    def chars(self) -> tuple[Word, ...]:
        """Every letter that was aligned, as the vocabulary has it; raises the item's error if it has one."""
        return self._found.chars

    @property
    def score(self) -> float:
        """0 … 1: geometric mean of the probabilities of all letters over their frames; raises the item's error."""
        return self._found.score

    @property
    def untranscribed(self) -> tuple[Gap, ...]:
        """Where the model hears letters that the text does not have; raises the item's error if it has one."""
        return self._found.untranscribed

    @property
    def dropped(self) -> dict[str, int]:
        """Letters of the text that the vocabulary lacks, and how many of each; raises the item's error."""
        return self._found.dropped

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line about each thing that is doubtful; raises the item's error if it has one."""
        return tuple(_warnings(self._found))

    @property
    def _found(self) -> Found:
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found


class Columns(list):
    """Parts of a recording that keep, of each frame's logits, the log probabilities of the tokens to be aligned.

    Args:
        ids: of the tokens to keep.
    """

    def __init__(self, ids: np.ndarray):
        super().__init__()
        self._ids = ids

    def __setitem__(self, index: Any, frames: Any) -> None:
        super().__setitem__(index, Frames(frames.ids, frames.scores, log_softmax(frames.logits)[:, self._ids]))


@dataclass(frozen=True)
class Job:
    """A recording and the text that is to be aligned with it; without a plan the recording has an error."""

    recording: Recording
    plan: Plan | None = None
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # ascending: the blank and the text's tokens
    blank_id: int = 0

    def result(self, *, seconds_per_frame: float) -> Alignment:
        """Align what the recording kept, which is let go then."""
        recording = self.recording
        result = Alignment(recording.tag, recording.duration, error=recording.error)
        if recording.error is not None:
            return result
        assert self.plan is not None
        log_probs = _kept(recording.parts, self.ids, self.blank_id)
        parts, recording.parts = recording.parts, []
        try:
            found, path = align_plan(
                log_probs, self.plan, blank_id=self.blank_id, ids=self.ids, seconds_per_frame=seconds_per_frame
            )
        except AlignmentError as error:
            return replace(result, error=error)
        agreement = Agreement.of(log_probs, path, parts, seconds_per_frame=seconds_per_frame)
        return replace(result, found=found, agreement=agreement)


def make_jobs(
    recordings: Sequence[Recording],
    texts: Sequence[Any],
    *,
    alphabet: Callable[[Tag], Alphabet],
    languages: Sequence[str | None],
    romanize: bool | None,
    star: Stars | None,
) -> list[Job]:
    """Spell the text of each recording, and have it keep of its frames what is needed for that; or give it the error.

    Args:
        recordings: still empty.
        texts: one for each.
        alphabet: what a language writes with.
        languages: of the texts, where a recording has no tag.
        romanize: whether the vocabularies are those of romanised text; None: where they look like it.
        star: where to allow for any speech.

    Raises:
        LanguageError: a recording's language is to be identified. SettingError: a ``star`` that is none.
    """
    jobs = []
    for recording, text, language in zip(recordings, texts, languages, strict=True):
        if recording.undecided:
            raise LanguageError("a text is aligned in its own language, not in 'auto'; say which it is")
        if recording.error is None:
            vocabulary = alphabet(recording.tag).vocabulary
            roman = recording.tag is None and is_roman(vocabulary) if romanize is None else romanize
            spoken = recording.tag or language
            try:
                plan = make_plan(segments_of(text), vocabulary, language=spoken, romanize=roman, star=star)
            except (AlignmentError, TextError) as error:
                recording.fail(error)
            else:
                ids = np.unique(np.append(plan.tokens[plan.tokens != STAR], vocabulary.blank_id))
                recording.parts = Columns(ids)
                jobs.append(Job(recording, plan, ids, vocabulary.blank_id))
                continue
        jobs.append(Job(recording))
    return jobs


def _kept(parts: Sequence[Any], ids: np.ndarray, blank_id: int) -> np.ndarray:
    """float32 [T, K]; silence that the model did not hear, a number of frames, is blank beyond doubt."""
    silence = np.where(ids == blank_id, 0.0, SILENCE).astype(np.float32)
    blocks = [np.tile(silence, (part, 1)) if isinstance(part, int) else part.logits for part in parts]
    return np.concatenate([np.zeros((0, len(ids)), np.float32), *blocks])


def align_plan(
    log_probs: np.ndarray, plan: Plan, *, blank_id: int, ids: np.ndarray, seconds_per_frame: float
) -> tuple[Found, np.ndarray]:
    """Align a text; returns where it is, and int [T]: of each frame the column of its token, or ``STAR``.

    Args:
        log_probs: float32 [T, K], of the tokens ``ids``.
        plan: the text as tokens.
        blank_id: the token of the blank.
        ids: int [K], ascending: the blank and the plan's tokens.
        seconds_per_frame: from one frame to the next.

    Raises:
        AlignmentError: more text than fits into the audio.
    """
    columns = np.where(plan.tokens == STAR, STAR, np.searchsorted(ids, plan.tokens))
    blank = int(np.searchsorted(ids, blank_id))
    spans = align_tokens(log_probs, columns, blank_id=blank)
    clock = _Clock(seconds_per_frame, len(log_probs))
    words = _words(plan, spans, clock)
    chars = tuple(_chars(plan, spans, clock))
    segments = tuple(_segments(plan, words, spans, clock))
    own = np.concatenate([np.arange(place.start, place.stop) for place in plan.places])
    written = plan.tokens != STAR  # and stars of the text itself, not those around it
    written[own] = True
    gaps = _untranscribed(log_probs[:, blank], spans.starts[written], spans.ends[written], clock)
    score = _score(spans, own[plan.tokens[own] != STAR])
    found = Found(segments, words, chars, score, gaps, plan.dropped)
    return found, spans.path(columns, blank_id=blank)


class _Clock(NamedTuple):
    """Frames as seconds."""

    seconds_per_frame: float
    num_frames: int

    def __call__(self, frame: Any) -> float:
        return round(float(frame) * self.seconds_per_frame, 6)  # 0.06, not 0.060000000000000005


def _score(spans: TokenSpans, tokens: np.ndarray | slice) -> float:
    """Geometric mean over the frames of some tokens; 0.0 for none."""
    num_frames = int((spans.ends[tokens] - spans.starts[tokens]).sum())
    return math.exp(spans.scores[tokens].sum() / num_frames) if num_frames else 0.0


def _words(plan: Plan, spans: TokenSpans, clock: _Clock) -> tuple[AlignedWord, ...]:
    words: list[AlignedWord] = []
    for spelling, place, (start, end) in zip(plan.words, plan.places, _times(plan, spans, clock), strict=True):
        score = 0.0 if spelling.tokens == (STAR,) else _score(spans, place)
        own = spans.ends[place][-1:] - spans.starts[place][:1]  # frames, none where nothing is spoken
        flags = tuple(_flags(spelling, clock(own.sum()), score))
        words.append(AlignedWord(spelling.text, start, end, score, spelling.segment, flags))
    return tuple(words)


def _times(plan: Plan, spans: TokenSpans, clock: _Clock) -> list[tuple[float, float]]:
    """When each word is heard; what is not spoken is at its neighbour, if there is one in its own segment at that."""
    bounds = iter(_bounds(plan, spans, clock.num_frames))
    times: list[tuple[float, float]] = []
    segment, moment = -1, 0.0
    waiting, fresh = 0, True  # words not spoken at the beginning of a segment; whether this is its beginning
    for spelling, place in zip(plan.words, plan.places, strict=True):
        if spelling.segment != segment:
            segment, waiting, fresh = spelling.segment, 0, True
        if place.stop == place.start:
            times.append((moment, moment))
            waiting += fresh
            continue
        start, end = map(clock, next(bounds))
        times[len(times) - waiting :] = [(start, start)] * waiting
        times.append((start, end))
        waiting, moment, fresh = 0, end, False
    return times


def _bounds(plan: Plan, spans: TokenSpans, num_frames: int) -> np.ndarray:
    """float64 [words, 2]: the first and the last frame, as moments, of every word that is spoken.

    Tokens are emitted inside their sounds: a word begins before its first and ends behind its last one. So each reaches
    ``REACH`` frames into the silence around it, or to the middle of shorter silence.
    """
    spoken = [place for place in plan.places if place.stop > place.start]
    starts = spans.starts[[place.start for place in spoken]].astype(np.float64)
    ends = spans.ends[[place.stop - 1 for place in spoken]].astype(np.float64)
    reach = np.minimum(REACH, (starts[1:] - ends[:-1]) / 2)
    first, last = min(REACH, starts[0]), min(REACH, num_frames - ends[-1])
    return np.stack([starts - np.append(first, reach), ends + np.append(reach, last)], axis=1)


def _flags(spelling: Spelling, seconds: float, score: float) -> Iterator[str]:
    if not spelling.tokens:
        yield NOT_ALIGNED
        return
    if spelling.tokens == (STAR,):
        yield "any sound"
        return
    count = len(spelling.tokens)
    if spelling.dropped:
        yield "letters dropped"
    if score < LOW_SCORE:
        yield "low score"
    if seconds > LONGEST_LETTER * (count + 1):
        yield "too long"
    if count > 2 and seconds < SQUEEZED_LETTER * count:
        yield "squeezed"


def _chars(plan: Plan, spans: TokenSpans, clock: _Clock) -> Iterator[Word]:
    for spelling, place in zip(plan.words, plan.places, strict=True):
        for letter, token in zip(spelling.letters, range(place.start, place.stop), strict=True):
            if letter not in (STAR_WORD, " "):
                score = _score(spans, slice(token, token + 1))
                yield Word(letter, clock(spans.starts[token]), clock(spans.ends[token]), score)


def _segments(plan: Plan, words: Sequence[AlignedWord], spans: TokenSpans, clock: _Clock) -> Iterator[AlignedSegment]:
    groups = [list(group) for _, group in groupby(range(len(words)), key=lambda number: words[number].segment)]
    times = [(words[numbers[0]].start, words[numbers[-1]].end) for numbers in groups]
    cuts = _cuts(times, clock(clock.num_frames))
    for text, numbers, (start, end), cut in zip(plan.segments, groups, times, cuts, strict=True):
        tokens = np.concatenate([np.arange(plan.places[number].start, plan.places[number].stop) for number in numbers])
        score = _score(spans, tokens[plan.tokens[tokens] != STAR])
        flags = tuple(dict.fromkeys(flag for number in numbers for flag in words[number].flags))
        yield AlignedSegment(text, start, end, score, *cut, flags)


def _cuts(times: Sequence[tuple[float, float]], last: float) -> list[tuple[float, float]]:
    """Silence between neighbours is halved, each taking ``MOST_PADDING`` at most; what has no length takes none."""
    heard = [time for time in times if time[1] > time[0]]
    halves = [(before[1] + after[0]) / 2 for before, after in pairwise(heard)]
    bounds = iter(zip([0.0, *halves], [*halves, last], strict=True))
    cuts = []
    for start, end in times:
        low, high = next(bounds) if end > start else (start, end)
        cuts.append((round(max(low, start - MOST_PADDING), 6), round(min(high, end + MOST_PADDING), 6)))
    return cuts


def _untranscribed(blank: np.ndarray, starts: np.ndarray, ends: np.ndarray, clock: _Clock) -> tuple[Gap, ...]:
    """Stretches between the text's own tokens in whose frames something is heard, ``UNHEARD`` times or more."""
    heard = np.concatenate([[0], np.cumsum(blank < math.log(0.5))])
    gaps: list[Gap] = []
    for start, end in zip(np.append(0, ends), np.append(starts, clock.num_frames), strict=True):
        if heard[end] - heard[start] >= UNHEARD:
            gaps.append(Gap(clock(start), clock(end)))
    return tuple(gaps)


def _warnings(found: Found) -> Iterator[str]:
    if found.score < LOW_SCORE:
        yield f"the text does not fit the audio: its score is {found.score:.3f}, that of a right one 0.4 or more"
    for number, word in enumerate(found.words, start=1):
        doubtful = [flag for flag in word.flags if flag != NOT_ALIGNED]
        if doubtful:
            yield f"word {number}, {word.text!r} ({word.start:.2f}-{word.end:.2f} s): {', '.join(doubtful)}"
    unread = [word.text for word in found.words if NOT_ALIGNED in word.flags and word.text.strip(".,;:!?").isalnum()]
    if unread:
        yield f"not aligned, though somebody may have said it: {listed(unread)}; write numbers in words"
    for gap in found.untranscribed:
        yield f"{gap.start:.2f}-{gap.end:.2f} s: speech that the text does not have; {STAR_WORD} in it stands for such"
    if found.dropped:
        letters = " ".join(f"{letter} ({count})" for letter, count in found.dropped.items())
        yield f"letters that the vocabulary lacks were left out: {letters}"

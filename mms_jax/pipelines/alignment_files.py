"""Alignments as files: JSON, SubRip subtitles, Praat's TextGrid, and NIST's CTM."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

from mms_jax.errors import SettingError
from mms_jax.pipelines.alignment import AlignedSegment, AlignedWord, Alignment
from mms_jax.pipelines.subtitles import to_srt
from mms_jax.pipelines.transcription import Segment, Word
from mms_jax.text.normalize import STAR

Level = Literal["segments", "words", "chars"]
LEVELS: tuple[Level, ...] = ("segments", "words", "chars")
FORMATS = ("json", "srt", "textgrid", "ctm")


class _Interval(NamedTuple):
    start: float
    end: float
    text: str


def to_json_fields(alignment: Alignment) -> dict[str, Any]:
    """Everything that is known, for one JSON object: times in seconds, scores from 0 to 1."""
    return {
        "language": alignment.language,
        "duration": round(alignment.duration, 3),
        "score": round(alignment.score, 4),
        "segments": [_fields(one) for one in alignment.segments],
        "words": [_fields(one) for one in alignment.words],
        "chars": [_fields(one) for one in alignment.chars],
        "untranscribed": [gap._asdict() for gap in alignment.untranscribed],
        "dropped": alignment.dropped,
        "warnings": list(alignment.warnings),
    }


def _fields(one: AlignedSegment | AlignedWord | Word) -> dict[str, Any]:
    fields = {**one._asdict(), "score": round(one.score, 4)}
    return {**fields, "flags": list(fields["flags"])} if "flags" in fields else fields


def to_subtitles(alignment: Alignment, *, level: Level = "segments") -> str:
    """A SubRip file with a subtitle for each segment, word or letter; ``<star>`` has none, nor what is not aligned."""
    texts = [(" ".join(word for word in one.text.split() if word != STAR), one) for one in _heard(alignment, level)]
    return to_srt(Segment(text, one.start, one.end) for text, one in texts if text)


def to_ctm(alignment: Alignment, *, level: Level = "words", name: str) -> str:
    """A CTM file: ``name 1 start duration text score`` on each line; what is not aligned is left out.

    White space, which parts the fields, becomes "_" in ``name`` and in the text of segments.
    """
    file = _joined(name)
    return "".join(
        f"{file} 1 {one.start:.3f} {one.end - one.start:.3f} {_joined(one.text)} {one.score:.4f}\n"
        for one in _heard(alignment, level)
    )


def to_textgrid(alignment: Alignment) -> str:
    """A TextGrid in Praat's long format: tiers of segments, words and letters, each without holes.

    Intervals of no length, which Praat refuses, are left out, and so is what would overlap the one before.
    """
    end = max([alignment.duration, *(one.end for one in alignment.words)])
    tiers = [(level, list(_filled(_heard(alignment, level), end))) for level in LEVELS]
    head = (
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = {end:.6f}\n'
        f"tiers? <exists>\nsize = {len(tiers)}\nitem []:\n"
    )
    return head + "".join(_tier(number, *tier, end=end) for number, tier in enumerate(tiers, start=1))


def _tier(number: int, name: str, intervals: list[_Interval], *, end: float) -> str:
    lines = [
        f"    item [{number}]:",
        '        class = "IntervalTier"',
        f'        name = "{name}"',
        "        xmin = 0",
        f"        xmax = {end:.6f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for place, one in enumerate(intervals, start=1):
        text = re.sub(r"\s+", " ", one.text).replace('"', '""')
        lines += [
            f"        intervals [{place}]:",
            f"            xmin = {one.start:.6f}",
            f"            xmax = {one.end:.6f}",
            f'            text = "{text}"',
        ]
    return "\n".join(lines) + "\n"


def _filled(heard: Iterable[AlignedSegment | AlignedWord | Word], end: float) -> Iterator[_Interval]:
    """With empty intervals between, so that they cover the whole time."""
    moment = 0.0
    for one in heard:
        if one.start > moment:
            yield _Interval(moment, one.start, "")
        start = max(moment, one.start)
        if one.end > start:
            yield _Interval(start, one.end, one.text)
            moment = one.end
    if end > moment or not moment:
        yield _Interval(moment, end, "")


def _heard(alignment: Alignment, level: Level) -> Iterable[AlignedSegment | AlignedWord | Word]:
    """Parts of the text that have a length."""
    if level not in LEVELS:
        raise SettingError(f"level is {level!r}; it must be one of {', '.join(LEVELS)}")
    return [one for one in getattr(alignment, level) if one.end > one.start]


def _joined(text: str) -> str:
    return re.sub(r"\s+", "_", text)


def writer(form: str, *, level: Level | None, name: str) -> Callable[[Alignment], str]:
    """The function that writes a format.

    Args:
        form: one of ``FORMATS`` but "json".
        level: what has a line or a subtitle of its own; None: the format's usual one.
        name: of the audio; CTM has it on each line.

    Raises:
        SettingError: a level for a TextGrid, which has all.
    """
    if form == "textgrid":
        if level is not None:
            raise SettingError(f"a TextGrid has a tier for each level, so leave out level={level!r}")
        return to_textgrid
    if form == "srt":
        return partial(to_subtitles, level=level or "segments")
    return partial(to_ctm, level=level or "words", name=name)

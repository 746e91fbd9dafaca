"""Transcripts as subtitle files: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

from collections.abc import Iterable

from mms_jax.pipelines.transcription import Segment, wrap


def to_srt(segments: Iterable[Segment]) -> str:
    """Segments as a SubRip file; empty if there are none."""
    cues = [
        f"{number}\n{_time(segment.start, ',')} --> {_time(segment.end, ',')}\n{_lines(segment.text)}\n"
        for number, segment in enumerate(segments, start=1)
    ]
    return "\n".join(cues)


def to_vtt(segments: Iterable[Segment]) -> str:
    """Segments as a WebVTT file."""
    cues = [
        f"\n{_time(segment.start, '.')} --> {_time(segment.end, '.')}\n{_escaped(_lines(segment.text))}\n"
        for segment in segments
    ]
    return "WEBVTT\n" + "".join(cues)


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _lines(text: str) -> str:
    return "\n".join(wrap(text))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

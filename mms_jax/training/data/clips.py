"""One clip: what it takes to be used, its audio decoded and its transcript encoded; and streams of such clips."""

import contextlib
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mms_jax.audio import SAMPLING_RATE, describe_audio, stream_audio
from mms_jax.errors import AudioError, DatasetError, SettingError
from mms_jax.text.vocabulary import CTCVocabulary
from mms_jax.training.data.library import RemoteAudio
from mms_jax.training.data.report import Report, UnusableError
from mms_jax.training.data.rows import Row
from mms_jax.training.data.transcripts import TranscriptEncoder, clean_text, num_repeats

__all__ = ["Clip", "ClipRules", "decode_audio", "ordered", "stream_clips"]

MAX_WORKERS = 16  # threads by default: each decodes hundreds of times faster than one can listen
AHEAD = 4  # clips per thread that may be decoded and not yet asked for

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class ClipRules:
    """What makes a clip usable, in one vocabulary and one model.

    ``num_frames`` and ``min_samples`` are the model's (``config.num_frames``, ``config.min_samples``), ``head_size``
    the rows of its CTC head, where that is there already. Durations are in seconds, both included; their defaults are
    those of transformers' examples.

    Raises ``SettingError`` for durations that no clip can have.
    """

    vocabulary: CTCVocabulary
    num_frames: Callable[[Any], Any]
    min_samples: int
    chars_to_ignore: Sequence[str] = ()
    do_lower_case: bool = True
    min_duration_in_seconds: float = 0.0
    max_duration_in_seconds: float = 20.0
    head_size: int | None = None

    def __post_init__(self):
        if not self.min_duration_in_seconds >= 0:
            raise SettingError(f"--min_duration_in_seconds is {self.min_duration_in_seconds}; it must be at least 0")
        if not self.max_duration_in_seconds > self.min_duration_in_seconds:
            raise SettingError(
                f"--max_duration_in_seconds is {self.max_duration_in_seconds}; it must be over "
                f"--min_duration_in_seconds, {self.min_duration_in_seconds}"
            )

    def encode(self, text: Any, encoder: TranscriptEncoder) -> tuple[str, np.ndarray | None]:
        """The cleaned transcript and its labels int32 [U] (None: see ``TranscriptEncoder.encode``)."""
        if not isinstance(text, str):
            raise UnusableError("no text", f"holds {'nothing' if text is None else f'a {type(text).__name__}'}")
        cleaned = clean_text(text, chars_to_ignore=self.chars_to_ignore, do_lower_case=self.do_lower_case)
        if not cleaned:
            raise UnusableError("empty text", f"{text[:40]!r}")
        return cleaned, encoder.encode(cleaned)

    def decode(self, audio: Any) -> np.ndarray:
        """Decode a row's audio: float32 [S] at 16 kHz; no more of it is decoded than may be kept."""
        try:
            return decode_audio(audio, max_samples=self.max_samples)
        except AudioError as error:
            raise UnusableError("undecodable", str(error).removeprefix(f"{describe_audio(audio)}: ")) from error

    def check(self, num_samples: int, labels: np.ndarray) -> None:
        """Raise ``UnusableError`` for a clip that is too long or short, or too short for its labels."""
        seconds = num_samples / SAMPLING_RATE
        if num_samples > self.max_samples:
            raise UnusableError("too long", f"over {self.max_duration_in_seconds:g} s")
        if num_samples < self.min_samples:
            raise UnusableError("too short", f"{seconds:.4f} s; a frame takes {self.min_samples / SAMPLING_RATE:g} s")
        if seconds < self.min_duration_in_seconds:
            raise UnusableError("too short", f"{seconds:.2f} s, under {self.min_duration_in_seconds:g} s")
        frames, needed = int(self.num_frames(num_samples)), len(labels) + num_repeats(labels)
        if frames < needed:
            raise UnusableError("infeasible", f"{seconds:.2f} s are {frames} frames, the text takes {needed}")

    @property
    def unknown_token(self) -> str | None:
        """What characters outside the vocabulary become, if it has a token for them."""
        return None if self.vocabulary.unk_id is None else self.vocabulary.unk_token

    @property
    def max_samples(self) -> int:
        """The most samples a clip may have."""
        limit = self.max_duration_in_seconds * SAMPLING_RATE
        return math.floor(limit) if math.isfinite(limit) else sys.maxsize


def decode_audio(audio: Any, *, max_samples: int) -> np.ndarray:
    """Float32 [S]; with more than ``max_samples`` if there are more, but then not all."""
    source = audio.read() if isinstance(audio, RemoteAudio) else audio
    blocks: list[np.ndarray] = [np.zeros(0, np.float32)]
    total = 0
    with contextlib.closing(stream_audio(source)) as stream:
        for block in stream:
            blocks.append(block)
            total += len(block)
            if total > max_samples:
                break
    return np.concatenate(blocks)


class Clip(NamedTuple):
    """A clip of a stream, ready to be trained on: float32 [S] at 16 kHz and int32 [U]."""

    waveform: np.ndarray
    labels: np.ndarray
    text: str
    name: str


def stream_clips(
    stream: Iterable[Row],
    *,
    rules: ClipRules,
    report: Report,
    num_workers: int | None = None,
    source: str | None = None,
    is_whole: bool = True,
) -> Iterator[Clip]:
    """The usable clips of a stream, in its order, decoded by threads a little ahead; ``report`` counts as they go.

    What the report says of clips dropped is of those before the clip that came last, and none behind it. ``source`` is
    what the error calls the data set. Raises ``DatasetError``, with the report, at the end if the stream had no usable
    clip, unless it is only the rest of one (not ``is_whole``); and for characters that the vocabulary has not, if it
    has no token for such either.
    """
    report.unknown_become = rules.unknown_token
    is_empty = True

    def decode(job: tuple[str, _Job | UnusableError]) -> tuple[str, Clip | UnusableError]:
        name, found = job
        if isinstance(found, UnusableError):
            return name, found
        try:
            waveform = rules.decode(found.row.audio)
            rules.check(len(waveform), found.labels)
        except UnusableError as why:
            return name, why
        return name, Clip(waveform, found.labels, found.text, name)

    for name, found in ordered(decode, _jobs(stream, rules, report), num_workers=num_workers):
        if isinstance(found, UnusableError):
            report.drop(name, found)
            continue
        is_empty = False
        report.keep(len(found.waveform) / SAMPLING_RATE)
        yield found
    if is_whole and is_empty:
        named = "" if source is None else f"data set {source}: "
        raise DatasetError(f"{named}no clip can be used\n{report}")


class _Job(NamedTuple):
    row: Row
    text: str
    labels: np.ndarray


def _jobs(stream: Iterable[Row], rules: ClipRules, report: Report) -> Iterator[tuple[str, _Job | UnusableError]]:
    """The names of rows, with what is to be decoded or why their text is not usable."""
    encoder = TranscriptEncoder(rules.vocabulary, head_size=rules.head_size, unknown=report.unknown)
    for row in stream:
        try:
            text, labels = rules.encode(row.text, encoder)
        except UnusableError as why:
            yield row.name, why
            continue
        encoder.check()
        if labels is not None:
            yield row.name, _Job(row, text, labels)


def ordered(function: Callable[[T], R], items: Iterable[T], *, num_workers: int | None) -> Iterator[R]:
    """What the function makes of each item, by threads, in order; few are ahead, since each may be large."""
    workers = num_workers or min(os.cpu_count() or 1, MAX_WORKERS)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

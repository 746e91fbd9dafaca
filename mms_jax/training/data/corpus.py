"""From rows to clips that can be trained on: every one is decoded and checked before step 0, and what is wrong is told.

A clip that cannot be used never stops a run; it is dropped and counted, with the reason. Clips of a stream go through
the same checks on the way, see ``clips.stream_clips``.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from mms_jax.audio import SAMPLING_RATE
from mms_jax.errors import AudioError, DatasetError
from mms_jax.training.data.clips import ClipRules, decode_audio, ordered
from mms_jax.training.data.report import Report, UnusableError
from mms_jax.training.data.rows import Rows
from mms_jax.training.data.transcripts import TranscriptEncoder

__all__ = ["ClipRules", "Corpus", "Report", "scan"]

MAX_BYTES_HELD = 512 << 20  # of decoded audio: 4.6 hours of 16-bit audio at 16 kHz, 2.3 hours of any other
LENGTHS_CHECKED = 8  # clips that are decoded all the same, where a column states the lengths
FULL_SCALE = np.float32(2**15)  # of 16-bit audio

T = TypeVar("T")


class _Held:
    """Decoded clips in memory, as long as all of them fit: decoding them again every epoch costs the step's time."""

    def __init__(self, max_bytes: int):
        self._clips: dict[int, np.ndarray] | None = {}
        self._room = max_bytes

    def get(self, index: int) -> np.ndarray | None:
        """The clip as it was put there, or None."""
        clip = (self._clips or {}).get(index)
        if clip is None or clip.dtype == np.float32:
            return None if clip is None else clip.copy()  # the caller may write into what it gets
        return clip.astype(np.float32) / FULL_SCALE

    def put(self, index: int, waveform: np.ndarray) -> None:
        """Keep a clip: in 16 bits where that loses nothing. All are let go when they become too many."""
        clips = self._clips  # another thread may let them go meanwhile
        if clips is None or index in clips:
            return
        steps = waveform * FULL_SCALE
        fits = steps.min(initial=0) >= -FULL_SCALE and steps.max(initial=0) < FULL_SCALE
        clip = steps.astype(np.int16) if fits and np.array_equal(np.rint(steps), steps) else waveform
        self._room -= clip.nbytes
        if self._room < 0:
            self._clips = None
        else:
            clips[index] = clip


@dataclass(eq=False)
class Corpus:
    """The clips of one language that can be trained on, by index; the audio is decoded anew where it is not held.

    ``indices`` int64 [n] are their rows, ``num_samples`` int64 [n] their lengths at 16 kHz, ``labels`` their labels,
    int32 [U] each, ``texts`` the cleaned transcripts these came from, ``names`` what messages call them.
    """

    rows: Rows
    indices: np.ndarray
    num_samples: np.ndarray
    labels: list[np.ndarray]
    texts: list[str]
    names: list[str]
    report: Report
    _held: _Held = field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def num_labels(self) -> np.ndarray:
        """int64 [n]: of each clip, the word delimiter at its end included."""
        return np.array([len(labels) for labels in self.labels], np.int64)

    def waveform(self, index: int) -> np.ndarray:
        """Float32 [S] at 16 kHz, mono; the same every time. It may be called from several threads.

        Raises ``DatasetError``, naming the clip, if it is not what it was when it was checked.
        """
        if (held := self._held.get(index)) is not None:
            return held
        name, expected = self.names[index], int(self.num_samples[index])
        try:
            waveform = decode_audio(self.rows[int(self.indices[index])].audio, max_samples=expected)
        except AudioError as error:
            raise DatasetError(
                f"{name}: cannot be decoded ({error}); it could be when it was checked, unless --length_column_name "
                "kept it from being checked"
            ) from error
        if len(waveform) != expected:
            there = f"more than {expected:,}" if len(waveform) > expected else f"{len(waveform):,} of {expected:,}"
            raise DatasetError(
                f"{name}: has {there} samples at 16 kHz; it was changed while in use, or --length_column_name is wrong"
            )
        self._held.put(index, waveform)
        return waveform


def scan(
    rows: Rows,
    *,
    rules: ClipRules,
    title: str | None = None,
    num_workers: int | None = None,
    progress: bool | None = None,
    max_bytes_held: int = MAX_BYTES_HELD,
) -> Corpus:
    """Check all rows: first the texts, then, by ``num_workers`` threads, the audio of those whose text is usable.

    Where ``rows`` have a column of lengths, these are believed and nothing is decoded. ``progress``: a bar on stderr
    (None: if it is a terminal). Raises ``DatasetError``, with the report, if no clip is left; and for characters that
    the vocabulary has not, if it has no token for such either.
    """
    report = Report(title or rows.description, unknown_become=rules.unknown_token)
    transcripts = _check_texts(rows, rules, report)
    lengths = rows.cells("length")
    found = _stated(rows, lengths, transcripts) if lengths else _decoded(rows, rules, transcripts, num_workers)
    held, kept = _Held(max_bytes_held), list[_Kept]()
    for index, name, clip in _with_bar(found, len(transcripts), report.title, progress):
        text, labels = transcripts[index]
        try:
            num_samples = _num_samples(clip)
            rules.check(num_samples, labels)
        except UnusableError as why:
            report.drop(name, why)
            continue
        if isinstance(clip, np.ndarray):
            held.put(len(kept), clip)
        kept.append(_Kept(index, num_samples, labels, text, name))
        report.keep(num_samples / SAMPLING_RATE)
    if not kept:
        raise DatasetError(f"no clip can be used\n{report}")
    corpus = _corpus(rows, kept, report, held)
    if lengths:
        _spot_check(corpus)
    return corpus


def _spot_check(corpus: Corpus) -> None:
    """Raise ``DatasetError`` if one of a few clips has another length than was stated, or none can be decoded."""
    indices = np.unique(np.linspace(0, len(corpus) - 1, LENGTHS_CHECKED).astype(int)).tolist()
    undecodable = []
    for index in indices:
        try:
            corpus.waveform(index)
        except DatasetError as error:
            if not isinstance(error.__cause__, AudioError):
                raise
            undecodable.append(error)
    if len(undecodable) == len(indices):
        raise undecodable[0]


class _Kept(NamedTuple):
    row: int
    num_samples: int
    labels: np.ndarray
    text: str
    name: str


def _corpus(rows: Rows, kept: Sequence[_Kept], report: Report, held: _Held) -> Corpus:
    return Corpus(
        rows,
        indices=np.array([clip.row for clip in kept], np.int64),
        num_samples=np.array([clip.num_samples for clip in kept], np.int64),
        labels=[clip.labels for clip in kept],
        texts=[clip.text for clip in kept],
        names=[clip.name for clip in kept],
        report=report,
        _held=held,
    )


def _check_texts(rows: Rows, rules: ClipRules, report: Report) -> dict[int, tuple[str, np.ndarray]]:
    """The transcript and the labels of each row that has usable ones."""
    encoder = TranscriptEncoder(rules.vocabulary, head_size=rules.head_size, unknown=report.unknown)
    transcripts = {}
    for index, text in enumerate(rows.texts()):
        try:
            cleaned, labels = rules.encode(text, encoder)
        except UnusableError as why:
            report.drop(rows.name(index), why)
            continue
        if labels is not None:
            transcripts[index] = cleaned, labels
    encoder.check()
    return transcripts


Found = Iterator[tuple[int, str, Any]]  # a row's index and name; samples, how many there are, or why none can be used


def _decoded(rows: Rows, rules: ClipRules, indices: Iterable[int], num_workers: int | None) -> Found:
    def decode(index: int) -> tuple[int, str, np.ndarray | UnusableError]:
        row = rows[index]
        try:
            return index, row.name, rules.decode(row.audio)
        except UnusableError as why:
            return index, row.name, why

    return ordered(decode, indices, num_workers=num_workers)


def _stated(rows: Rows, lengths: Sequence[Any], indices: Iterable[int]) -> Found:
    return ((index, rows.name(index), lengths[index]) for index in indices)


def _num_samples(clip: Any) -> int:
    if isinstance(clip, UnusableError):
        raise clip
    if isinstance(clip, np.ndarray):
        return len(clip)
    text = str(clip).strip().removesuffix(".0")
    if isinstance(clip, bool) or not text.isdecimal():
        raise UnusableError("unknown length", f"holds {clip!r}")
    return int(text)


def _with_bar(items: Iterable[T], total: int, title: str, progress: bool | None) -> Iterable[T]:
    hidden = None if progress is None else not progress  # None: unless stderr is a terminal
    return tqdm(items, desc=title, total=total, unit=" clips", disable=hidden, leave=False, file=sys.stderr)

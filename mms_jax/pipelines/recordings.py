"""Recognition of items of any length: read in windows, identified where nobody said the language, stitched together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from mms_jax.audio import SAMPLING_RATE
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, LanguageError, MMSError
from mms_jax.pipelines.adapters import Tag
from mms_jax.pipelines.batching import has_speech, not_finite
from mms_jax.pipelines.chunks import Chunk, Chunking, grouped, read_chunks
from mms_jax.pipelines.recognition import Frames, Recognition
from mms_jax.pipelines.routing import Router
from mms_jax.text.ctc import CTCVocabulary

ITEMS_HELD = 16  # times the batch size: windows that are sorted by length among each other
WINDOWS_HELD = 4  # times the batch size: whole windows' worth of samples held at a time, 61 MB by default
PROGRESS_DELAY = 3.0  # seconds before a bar appears


@dataclass
class Recording:
    """One item on its way through the model: its language, and what was recognised of it so far."""

    tag: Tag = None
    undecided: bool = False  # whether its language is yet to be identified
    probability: float | None = None  # of the language that was identified
    duration: float = 0.0  # seconds read so far
    error: MMSError | None = None
    parts: list[Frames | int] = field(default_factory=list)  # in order; a number stands for that many silent frames
    vocabulary: CTCVocabulary | None = None  # of which the parts are tokens; None: nothing but silence so far

    def fail(self, error: MMSError) -> None:
        """Keep why there is no result, and nothing else."""
        self.error = error
        self.parts = []
        if isinstance(error, AudioError):
            self.duration = 0.0

    def ids(self, *, blank_id: int) -> np.ndarray:
        """int32 [T]: the best token of every frame; blanks in silence."""
        parts = [np.full(part, blank_id, np.int32) if isinstance(part, int) else part.ids for part in self.parts]
        return np.concatenate([np.zeros(0, np.int32), *parts])

    def scores(self) -> np.ndarray:
        """float32 [T]: the probability of each of ``ids``."""
        parts = [np.ones(part, np.float32) if isinstance(part, int) else part.scores for part in self.parts]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def logits(self, *, vocab_size: int) -> np.ndarray:
        """float32 [T, V], where they were kept."""
        parts = [part.logits for part in self.parts if not isinstance(part, int)]
        return np.concatenate([np.zeros((0, vocab_size), np.float32), *(part for part in parts if part is not None)])


@dataclass(frozen=True)
class Reader:
    """How recordings are read and recognised."""

    config: Wav2Vec2Config
    recognition: Recognition
    chunking: Chunking
    batch_size: int
    max_duration: float  # seconds of an item; what is longer is an error
    dtype: Any  # named in errors
    router: Router | None = None  # needed where a recording is undecided
    logits: bool = False  # whether to keep them; silence goes through the model then
    progress: bool | None = False  # None: where stderr is a terminal

    def read(self, items: Sequence[Any], recordings: Sequence[Recording], *, many: bool) -> Iterator[int]:
        """Recognise items; yields the index of each recording that is complete, in order, failed ones left out before.

        Args:
            items: what ``load_audio`` takes.
            recordings: one for each, which are filled; those that have failed already are not read.
            many: whether errors say which of the items they are about.
        """
        todo = [index for index, recording in enumerate(recordings) if recording.error is None]
        limit, held = self.max_duration, WINDOWS_HELD * self.batch_size * self.chunking.num_samples
        chunks = read_chunks(items, todo, self.chunking, self.config, max_duration=limit, many=many)
        with self._bar() as bar:
            for group in grouped(chunks, count=ITEMS_HELD * self.batch_size, num_samples=held):
                self._read_group([(recordings[index], chunk) for index, chunk in group], bar)
                complete = [index for index, chunk in group if isinstance(chunk, AudioError) or chunk.is_last]
                del group  # or two groups would be held while the next one is read
                yield from complete

    def _bar(self) -> tqdm:
        return tqdm(
            desc="transcribed",
            disable=None if self.progress is None else not self.progress,
            delay=PROGRESS_DELAY,
            bar_format="{desc} {n:.0f} s of audio in {elapsed} ({rate_noinv_fmt})",
            unit=" audio-s",
            leave=False,
        )

    def _read_group(self, group: Sequence[tuple[Recording, Chunk | AudioError]], bar: tqdm) -> None:
        heard: list[tuple[Recording, Chunk, int]] = []
        for recording, chunk in group:
            if isinstance(chunk, AudioError):
                recording.fail(chunk)
            elif recording.error is None:
                recording.duration = chunk.end
                heard.append((recording, chunk, len(recording.parts)))
                recording.parts.append(max(0, chunk.keep.stop - chunk.keep.start))  # silence, until it is recognised
        self._identify(heard)
        self._recognise([part for part in heard if part[0].error is None and self._is_heard(*part[:2])], bar)

    def _has_speech(self, chunk: Chunk) -> bool:
        return len(chunk.samples) >= self.config.min_samples and has_speech(chunk.samples)

    def _is_heard(self, recording: Recording, chunk: Chunk) -> bool:
        """Whether the model is asked: not in silence, unless its logits are wanted."""
        if self.logits:
            return len(chunk.samples) >= self.config.min_samples
        return not recording.undecided and self._has_speech(chunk)

    def _recognise(self, todo: Sequence[tuple[Recording, Chunk, int]], bar: tqdm) -> None:
        waveforms, tags = [chunk.samples for _, chunk, _ in todo], [recording.tag for recording, _, _ in todo]
        for number, frames in self.recognition(waveforms, tags, batch_size=self.batch_size, logits=self.logits):
            recording, chunk, position = todo[number]
            bar.update((chunk.keep.stop - chunk.keep.start) * self.config.samples_per_frame / SAMPLING_RATE)
            if isinstance(frames, MMSError):
                recording.fail(frames)
            elif not frames.finite:
                recording.fail(not_finite(self.dtype))
            elif recording.vocabulary and recording.vocabulary.tokens != frames.vocabulary.tokens:
                recording.fail(LanguageError(f"another adapter was loaded as {recording.tag!r} in the middle of this"))
            elif recording.error is None:  # an earlier window may have failed
                recording.parts[position] = frames.cut(chunk.keep)
                recording.vocabulary = frames.vocabulary

    def _identify(self, heard: Sequence[tuple[Recording, Chunk, int]]) -> None:
        """Decide the language of recordings by the first window of each that is not silent."""
        first: dict[int, tuple[Recording, Chunk]] = {}
        for recording, chunk, _ in heard:
            if recording.undecided and self._has_speech(chunk):
                first.setdefault(id(recording), (recording, chunk))
        if not first:
            return
        assert self.router is not None
        routes = self.router([chunk.samples for _, chunk in first.values()], batch_size=self.batch_size)
        for (recording, _), route in zip(first.values(), routes, strict=True):
            recording.tag, recording.probability, recording.undecided = route.tag, route.probability, False
            error = route.error or self.recognition.unreadable(route.tag)
            if error is not None:
                recording.fail(error)

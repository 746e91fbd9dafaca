"""Recognition of items of any length: read in windows, identified where nobody said the language, stitched together."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mms_jax.audio import SAMPLING_RATE
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, LanguageError, MMSError
from mms_jax.pipelines.adapters import Tag
from mms_jax.pipelines.batching import has_speech, not_finite
from mms_jax.pipelines.chunks import Chunk, Chunking, chunk_bytes, grouped, read_chunks
from mms_jax.pipelines.greedy import Tokens, joined
from mms_jax.pipelines.prefetch import made_ahead, one_call_behind
from mms_jax.pipelines.recognition import Call, Detail, Frames, Heard, Lost, Recognition
from mms_jax.pipelines.routing import Identify
from mms_jax.pipelines.transcription import RankedLanguage
from mms_jax.text.ctc import CTCVocabulary

ITEMS_HELD = 16  # times the batch size: windows that are sorted by length among each other
# Times the batch size: whole windows' worth of float32 samples held at a time, 61 MB by default. Half of it is in use,
# and half decoded in the meantime; where samples are 16 bits, that is twice as many windows.
WINDOWS_HELD = 4
SILENT_LOGIT = -100.0  # of everything but the blank in silence: e^-100 is nothing, and sums of it stay finite
PROGRESS_DELAY = 3.0  # seconds before a bar appears


@dataclass
class Recording:
    """One item on its way through the model: its language, and what was recognised of it so far."""

    tag: Tag = None
    undecided: bool = False  # whether its language is yet to be identified
    probability: float | None = None  # of the language that was identified
    ranking: tuple[RankedLanguage, ...] = ()  # the languages that were compared for it
    duration: float = 0.0  # seconds read so far
    error: MMSError | None = None
    parts: list[Frames | Tokens | int] = field(
        default_factory=list
    )  # in order; a number stands for that many silent frames
    vocabulary: CTCVocabulary | None = None  # of which the parts are tokens; None: nothing but silence so far

    def fail(self, error: MMSError) -> None:
        """Keep why there is no result, and nothing else; of several reasons the first."""
        self.error = self.error or error
        self.parts = []
        if isinstance(error, AudioError):
            self.duration = 0.0

    def tokens(self) -> np.ndarray:
        """int [N]: what was read, repeats merged and blanks dropped; where frames were not asked for."""
        return joined(part for part in self.parts if not isinstance(part, Frames))

    def ids(self, *, blank_id: int) -> np.ndarray:
        """int32 [T]: the best token of every frame; blanks in silence."""
        parts = [part.ids if isinstance(part, Frames) else np.full(part, blank_id, np.int32) for part in self._frames]
        return np.concatenate([np.zeros(0, np.int32), *parts])

    def scores(self) -> np.ndarray:
        """float32 [T]: the probability of each of ``ids``."""
        parts = [part.scores if isinstance(part, Frames) else np.ones(part, np.float32) for part in self._frames]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def logits(self, *, vocab_size: int, blank_id: int) -> np.ndarray:
        """float32 [T, V], where they were kept; silence that the model did not hear is blank beyond doubt."""
        parts = [np.zeros((0, vocab_size), np.float32)]
        for part in self._frames:
            if isinstance(part, Frames):
                assert part.logits is not None  # they were asked for
                parts.append(part.logits)
            else:
                silence = np.full((part, vocab_size), SILENT_LOGIT, np.float32)
                silence[:, blank_id] = 0.0
                parts.append(silence)
        return np.concatenate(parts)

    @property
    def _frames(self) -> list[Frames | int]:
        return [part for part in self.parts if not isinstance(part, Tokens)]


class Place(NamedTuple):
    """Where a window's result belongs, without its samples."""

    recording: Recording
    position: int  # among the recording's parts
    keep: slice  # frames that are not context


class Pending(NamedTuple):
    """A call of the model and where the results of its waveforms belong."""

    call: Call | Lost
    places: Sequence[Place]  # by index


Complete = list[int]  # recordings of which nothing is left to be recognised


@dataclass(frozen=True)
class Reader:
    """How recordings are read and recognised."""

    config: Wav2Vec2Config
    recognition: Recognition
    chunking: Chunking
    batch_size: int
    max_duration: float  # seconds of an item; what is longer is an error
    dtype: Any  # named in errors
    router: Identify | None = None  # needed where a recording is undecided
    detail: Detail = "tokens"  # what to keep
    hears_silence: bool = False  # whether silence goes through the model too
    progress: bool | None = False  # None: where stderr is a terminal

    def read(self, items: Sequence[Any], recordings: Sequence[Recording], *, many: bool) -> Generator[int]:
        """Recognise items; yields the index of each recording that is complete, in order, failed ones left out before.

        Args:
            items: what ``load_audio`` takes.
            recordings: one for each, which are filled; those that have failed already are not read.
            many: whether errors say which of the items they are about.
        """
        todo = [index for index, recording in enumerate(recordings) if recording.error is None]
        limit, half = self.max_duration, WINDOWS_HELD * self.batch_size * self.chunking.num_samples * 4 // 2
        chunks = read_chunks(items, todo, self.chunking, self.config, max_duration=limit, many=many)
        with self._bar() as bar, made_ahead(chunks, cost=lambda pair: chunk_bytes(pair[1]), limit=half) as decoded:
            groups = grouped(decoded, count=ITEMS_HELD * self.batch_size, num_bytes=half)
            for step in one_call_behind(self._steps(groups, recordings), is_call=_is_call):
                if isinstance(step, Pending):
                    self._take(step, bar)
                else:
                    yield from step

    def _bar(self) -> tqdm:
        hidden = None if self.progress is None else not self.progress
        return tqdm(
            desc="transcribed",
            disable=True if sys.stderr is None else hidden,  # closed by who started this process
            delay=PROGRESS_DELAY,
            bar_format="{desc} {n:.0f} s of audio in {elapsed} ({rate_noinv_fmt})",
            unit=" audio-s",
            leave=False,
        )

    def _steps(
        self, groups: Iterable[list[tuple[int, Chunk | AudioError]]], recordings: Sequence[Recording]
    ) -> Iterator[Pending | Complete]:
        """Call the model for every group of windows, and say which recordings are complete with it."""
        for group in groups:
            yield from self._read_group([(recordings[index], chunk) for index, chunk in group])
            complete = [index for index, chunk in group if isinstance(chunk, AudioError) or chunk.is_last]
            del group  # or two groups would be held while the next one is read
            yield complete

    def _read_group(self, group: Sequence[tuple[Recording, Chunk | AudioError]]) -> Iterator[Pending]:
        heard: list[tuple[Recording, Chunk, int]] = []
        for recording, chunk in group:
            if isinstance(chunk, AudioError):
                recording.fail(chunk)
            elif recording.error is None:
                recording.duration = chunk.end
                heard.append((recording, chunk, len(recording.parts)))
                recording.parts.append(max(0, chunk.keep.stop - chunk.keep.start))  # silence, until it is recognised
        self._identify(heard)
        return self._recognise([part for part in heard if part[0].error is None and self._is_heard(*part[:2])])

    def _has_speech(self, chunk: Chunk) -> bool:
        return len(chunk.samples) >= self.config.min_samples and has_speech(chunk.samples)

    def _is_heard(self, recording: Recording, chunk: Chunk) -> bool:
        """Whether the model is asked: not in silence, unless that is wanted."""
        if chunk.keep.stop <= chunk.keep.start:  # all context; the windows around it have its frames
            return False
        if self.hears_silence:
            return len(chunk.samples) >= self.config.min_samples
        return not recording.undecided and self._has_speech(chunk)

    def _recognise(self, todo: Sequence[tuple[Recording, Chunk, int]]) -> Iterator[Pending]:
        places = [Place(recording, position, chunk.keep) for recording, chunk, position in todo]
        waveforms, tags = [chunk.samples for _, chunk, _ in todo], [recording.tag for recording, _, _ in todo]
        keeps = [place.keep for place in places]
        for call in self.recognition.calls(waveforms, tags, keeps, batch_size=self.batch_size, detail=self.detail):
            yield Pending(call, places)

    def _take(self, pending: Pending, bar: tqdm) -> None:
        """Wait for a call's results and put them into their places."""
        for index, result in pending.call.results():
            recording, position, keep = pending.places[index]
            bar.update((keep.stop - keep.start) * self.config.samples_per_frame / SAMPLING_RATE)
            if isinstance(result, Heard):
                self._put(recording, position, result)
            else:
                recording.fail(result)

    def _put(self, recording: Recording, position: int, heard: Heard) -> None:
        if not heard.finite:
            recording.fail(not_finite(self.dtype))
        elif recording.vocabulary and recording.vocabulary.tokens != heard.vocabulary.tokens:
            recording.fail(LanguageError(f"another adapter was loaded as {recording.tag!r} in the middle of this"))
        elif recording.error is None:  # an earlier window may have failed
            recording.parts[position] = heard.what
            recording.vocabulary = heard.vocabulary

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
            recording.ranking = route.ranking
            error = route.error or self.recognition.unreadable(route.tag)
            if error is not None:
                recording.fail(error)


def _is_call(step: Pending | Complete) -> bool:
    return isinstance(step, Pending)

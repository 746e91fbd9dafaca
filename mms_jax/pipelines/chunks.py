"""Audio of any length as windows that a model takes one at a time, with context on both sides that is cut off again.

The windows are those of transformers' speech recognition pipeline (``chunk_length_s``, ``stride_length_s``): all
lengths are whole frames, so what is kept of the windows' outputs, laid end to end, has the frames of the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mms_jax.audio import SAMPLING_RATE, stream_samples
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, SettingError
from mms_jax.pipelines.batching import AHEAD, DECODE_THREADS, MAX_DURATION, numbered
from mms_jax.pipelines.settings import check_number

ERROR_BYTES = 1 << 10  # about; were it nothing, all errors of a long list would be held at once
CHUNK_LENGTH = 30.0  # seconds: about the longest that the models were trained on


class Chunking(NamedTuple):
    """How audio is cut: whole windows of ``num_samples``, of whose frames ``left`` … ``stop`` are kept."""

    num_samples: int  # in a whole window, context included
    left: int  # frames of context before what is kept; 0 in the first window
    stop: int  # the frame after the last that is kept; all in the last window
    step: int  # samples from a window's start to the next one's


class Chunk(NamedTuple):
    """One window of one audio."""

    samples: np.ndarray  # int16 or float32 [S] at 16 kHz
    start: int  # sample of the whole at which it starts
    keep: slice  # frames that are not context
    is_last: bool

    @property
    def end(self) -> float:
        """Seconds of the whole up to its end."""
        return (self.start + len(self.samples)) / SAMPLING_RATE


def make_chunking(config: Wav2Vec2Config, *, chunk_length_s: Any, stride_length_s: Any) -> Chunking:
    """Whole frames for lengths in seconds.

    Args:
        config: of the model.
        chunk_length_s: a window, context included; at most ``MAX_DURATION``.
        stride_length_s: context on each side, or (left, right); None: a sixth of the window, as in transformers.

    Raises:
        SettingError: a length out of its range, or windows that hold nothing but context.
    """
    hop = config.samples_per_frame
    length = _frames(check_number("chunk_length_s", chunk_length_s, 0, MAX_DURATION), hop)
    strides = chunk_length_s / 6 if stride_length_s is None else stride_length_s
    if not isinstance(strides, (tuple, list)):
        strides = strides, strides
    if len(strides) != 2:
        raise SettingError(f"stride_length_s is {stride_length_s!r}; give seconds, or (left, right)")
    left, right = (_frames(check_number("stride_length_s", stride, 0, MAX_DURATION), hop) for stride in strides)
    # The last frame of a window sees beyond it, so without context on the right there is one frame less to keep.
    stop = min(length - right, int(config.num_frames(length * hop)))
    if stop <= left:
        raise SettingError(
            f"chunk_length_s={chunk_length_s!r} leaves no frame between the context of stride_length_s={strides!r}; "
            "make it longer than both sides together"
        )
    return Chunking(length * hop, left, stop, (stop - left) * hop)


def _frames(seconds: float, hop: int) -> int:
    return round(seconds * SAMPLING_RATE / hop)


def cut(blocks: Iterable[np.ndarray], chunking: Chunking, config: Wav2Vec2Config) -> Iterator[Chunk]:
    """Cut audio that comes in blocks, all int16 or all float32 [S], into windows; what fits into one is just that.

    No more than a window and a block are held. At least one chunk comes out, if need be one without samples.
    """
    rest, start, first = np.zeros(0, np.float32), 0, 0
    for block in blocks:
        rest = np.concatenate([rest, block]) if len(rest) else block
        while len(rest) > chunking.num_samples:
            samples = rest[: chunking.num_samples].copy()  # a view would hold the whole block
            yield Chunk(samples, start, slice(first, chunking.stop), is_last=False)
            rest, start, first = rest[chunking.step :], start + chunking.step, chunking.left
    rest = rest if rest.base is None else rest.copy()
    yield Chunk(rest, start, slice(first, int(config.num_frames(len(rest)))), is_last=True)


def read_chunks(
    items: Sequence[Any],
    indices: Iterable[int],
    chunking: Chunking,
    config: Wav2Vec2Config,
    *,
    max_duration: float,
    many: bool,
) -> Generator[tuple[int, Chunk | AudioError]]:
    """Decode items in order, some ahead in threads, and yield (index, window); an error is its item's last.

    Args:
        items: what ``load_samples`` takes.
        indices: of the items to read.
        chunking, config: how to cut.
        max_duration: longest item, seconds; what is longer is an error.
        many: whether errors of items that have no name of their own say their index.
    """

    def chunks(index: int) -> Iterator[Chunk | AudioError]:
        try:
            yield from cut(stream_samples(items[index], max_duration=max_duration), chunking, config)
        except AudioError as error:
            yield numbered(error, items[index], index) if many else error

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        pending: deque[tuple[int, Iterator[Chunk | AudioError], Future]] = deque()
        try:
            for index in indices:
                stream = chunks(index)
                pending.append((index, stream, pool.submit(next, stream, None)))
                if len(pending) > AHEAD:
                    yield from _drain(*pending.popleft(), pool)
            while pending:
                yield from _drain(*pending.popleft(), pool)
        finally:
            for _, _, future in pending:
                future.cancel()


def _drain(
    index: int, stream: Iterator[Chunk | AudioError], future: Future, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Chunk | AudioError]]:
    """All windows of one item, the next one decoded while this one is in use."""
    while (chunk := future.result()) is not None:
        future = pool.submit(next, stream, None)
        yield index, chunk


def grouped(
    chunks: Iterable[tuple[int, Chunk | AudioError]], *, count: int, num_bytes: int
) -> Iterator[list[tuple[int, Chunk | AudioError]]]:
    """Collect windows until there are ``count`` of them, or their samples take ``num_bytes``."""
    group, total = [], 0
    for index, chunk in chunks:
        group.append((index, chunk))
        total += chunk_bytes(chunk)
        if len(group) >= count or total >= num_bytes:
            yield group
            group, total = [], 0
    if group:
        yield group


def chunk_bytes(chunk: Chunk | AudioError) -> int:
    """What a window's samples take."""
    return ERROR_BYTES if isinstance(chunk, AudioError) else chunk.samples.nbytes

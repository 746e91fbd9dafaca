"""What every pipeline does with its input before and after the model: one or many, good or bad, short or long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from mms_jax.audio import SAMPLING_RATE, load_samples
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, NumericsError
from mms_jax.features import batch_rows, bucket_length, bucketed_batches
from mms_jax.pipelines.waveforms import STEP, Waveforms, crosses_bus, pack

T = TypeVar("T")

MAX_DURATION = 120.0  # seconds in one pass: attention's memory grows with its square, 2.3 GB at 1B parameters
WINDOW = 64  # items that are sorted by length among each other; while they are in use, the next ones are decoded
WINDOW_BYTES = 128 << 20  # of their samples, at which a window ends: 64 items of 30 s in float32
SILENT_STEPS = 2  # of 16-bit audio: largest range of samples that is silence, what dither leaves
DECODE_THREADS = 4  # soundfile and soxr release the GIL
AHEAD = 2 * DECODE_THREADS  # items decoded before they are asked for


class Batch(NamedTuple):
    """Rows that go through the model together."""

    indices: list[int]  # of the item each row belongs to
    waveforms: Waveforms

    def rows(self, numbers: Sequence[int]) -> Waveforms:
        """The waveforms of some rows."""
        if len(numbers) == len(self.indices):
            return self.waveforms
        return Waveforms(*(array[list(numbers)] for array in self.waveforms))


def is_many(audio: Any) -> bool:
    """Whether ``audio`` is several items: a list (of anything but numbers), a column of a data set, an iterator.

    A tuple (array, rate) is one item, and so are arrays, bytes, mappings and files.
    """
    if isinstance(audio, Iterator) and not hasattr(audio, "read"):
        return True
    if isinstance(audio, tuple) and len(audio) == 2 and any(np.isscalar(part) for part in audio):
        return isinstance(audio[0], str) and isinstance(audio[1], str)
    if isinstance(audio, (str, bytes, bytearray, memoryview)) or not isinstance(audio, Sequence):
        return False
    return not (len(audio) and all(np.isscalar(item) and not isinstance(item, (str, bytes)) for item in audio))


def load_each(items: Sequence[Any], *, max_duration: float, many: bool) -> Generator[np.ndarray | AudioError]:
    """Decode items to int16 or float32 [S] at 16 kHz, in order, some ahead in threads; an error is its item's result.

    Args:
        items: what ``load_samples`` takes.
        max_duration: longest item, seconds; what is longer is an error.
        many: whether errors of items that have no name of their own say their number.
    """

    def load(index: int) -> np.ndarray | AudioError:
        try:
            return load_samples(items[index], max_duration=max_duration)
        except AudioError as error:
            return numbered(error, items[index], index) if many else error

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        pending: deque[Future] = deque()
        try:
            for index in range(len(items)):
                pending.append(pool.submit(load, index))
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def numbered(error: AudioError, item: Any, number: int) -> AudioError:
    """The error of one of many items, with its number where it has no name of its own."""
    return error if isinstance(item, (str, PathLike)) else AudioError(f"item {number}: {error}")


def has_speech(samples: np.ndarray) -> bool:
    """Whether samples, int16 or float32 [S], are more than digital silence, in which a model hears something too."""
    if not len(samples):
        return False
    step = 1 if samples.dtype == np.int16 else STEP
    return samples.max().item() - samples.min().item() > SILENT_STEPS * step


def make_batches(waveforms: Sequence[np.ndarray], *, batch_size: int, max_samples: int, pad: bool) -> Iterator[Batch]:
    """Group waveforms by length.

    Args:
        waveforms: int16 or float32 [S] each, of at least one frame.
        batch_size: most rows in a batch.
        max_samples: most padded samples in a batch of more than one row; bounds memory.
        pad: whether rows may be padded to a bucket's length, so that few shapes are compiled. Models whose result
            depends on padding (group norm) get rows of exactly equal length instead.

    The number of rows is a power of two, for the same reason: 11 clips of a length go as 8 + 2 + 1.
    """
    bucket: Callable[[int], int] = bucket_length if pad else int
    lengths = [len(waveform) for waveform in waveforms]
    for group in bucketed_batches(lengths, batch_size=batch_size, max_samples=max_samples, bucket=bucket):
        for indices in powers_of_two(group):
            rows = [waveforms[index] for index in indices]
            yield Batch(indices, pack(rows, width=bucket(lengths[indices[0]]), keep_int16=crosses_bus()))


def pads(config: Wav2Vec2Config) -> bool:
    """Whether rows may be padded to a bucket's length: the result of models with a group norm would depend on it."""
    return config.feat_extract_norm == "layer"


def batch_shapes(config: Wav2Vec2Config, *, duration: float, batch_size: int) -> Iterator[tuple[int, int]]:
    """Every (rows, samples) that batches of waveforms up to ``duration`` seconds can have; none if nothing is padded.

    Such models (group norm) have a shape for every length.
    """
    longest = bucket_length(max(config.min_samples, int(duration * SAMPLING_RATE)))
    num_samples = bucket_length(config.min_samples)
    while pads(config) and num_samples <= longest:
        most = batch_rows(num_samples, batch_size=batch_size, max_samples=int(MAX_DURATION * SAMPLING_RATE))
        yield from ((1 << power, num_samples) for power in range(most.bit_length()))
        num_samples = bucket_length(num_samples + 1)


def powers_of_two(items: list[T]) -> Iterator[list[T]]:
    """Cut a list into parts whose lengths are powers of two, the longest first."""
    while items:
        count = 1 << (len(items).bit_length() - 1)
        yield items[:count]
        items = items[count:]


def not_finite(dtype: Any) -> NumericsError:
    """The error of an item for which a model computes NaN or infinity."""
    return NumericsError(f"the model's output for this item is not finite in {jnp.dtype(dtype)}; try float32")

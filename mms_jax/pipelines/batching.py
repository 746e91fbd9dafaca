"""What every pipeline does with its input before and after the model: one or many, good or bad, short or long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from mms_jax.audio import SAMPLING_RATE, load_audio
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, NumericsError
from mms_jax.features import FeatureExtractor, Features, batch_rows, bucket_length, bucketed_batches

T = TypeVar("T")

MAX_DURATION = 120.0  # seconds in one pass: attention's memory grows with its square, 2.3 GB at 1B parameters
WINDOW = 128  # items decoded and held at a time, and sorted by length among each other
SILENCE = 2.0**-14  # largest range of samples that is silence: two steps of 16-bit audio, what dither leaves
DECODE_THREADS = 4  # soundfile and soxr release the GIL


class Batch(NamedTuple):
    """Rows that go through the model together."""

    indices: list[int]  # of the item each row belongs to
    features: Features


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


def load_all(items: Sequence[Any], *, max_duration: float, first: int | None = 0) -> list[np.ndarray | AudioError]:
    """Decode every item to float32 [S] at 16 kHz, in order; an item that cannot be used gives its error instead.

    Errors of items that have no name of their own get their number, counted from ``first``; None: there is only one.
    """

    def load(index: int) -> np.ndarray | AudioError:
        try:
            return load_audio(items[index], max_duration=max_duration)
        except AudioError as error:
            return error if first is None else numbered(error, items[index], first + index)

    if len(items) < 2:
        return [load(index) for index in range(len(items))]
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        return list(pool.map(load, range(len(items))))


def numbered(error: AudioError, item: Any, number: int) -> AudioError:
    """The error of one of many items, with its number where it has no name of its own."""
    return error if isinstance(item, (str, PathLike)) else AudioError(f"item {number}: {error}")


def has_speech(samples: np.ndarray) -> bool:
    """Whether samples are more than digital silence, in which a model hears something all the same."""
    return bool(len(samples)) and bool(np.ptp(samples) > SILENCE)


def make_batches(
    waveforms: Sequence[np.ndarray],
    extractor: FeatureExtractor,
    *,
    batch_size: int,
    max_samples: int,
    pad: bool,
) -> Iterator[Batch]:
    """Normalise waveforms, each by itself, and group them by length.

    Args:
        waveforms: float32 [S] each, of at least one frame.
        extractor: the checkpoint's.
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
            shape = len(indices), bucket(lengths[indices[0]])
            features = Features(np.zeros(shape, np.float32), np.zeros(shape, bool))
            for row, index in enumerate(indices):
                normalised = extractor([waveforms[index]]).input_values[0]
                features.input_values[row, : len(normalised)] = normalised
                features.attention_mask[row, : len(normalised)] = True
            yield Batch(indices, features)


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

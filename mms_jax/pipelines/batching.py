"""What every pipeline does with its input before and after the model: one or many, good or bad, short or long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from mms_jax.audio import load_audio
from mms_jax.errors import AudioError
from mms_jax.features import FeatureExtractor, Features, bucket_length, bucketed_batches

DECODE_THREADS = 4  # soundfile and soxr release the GIL


class Batch(NamedTuple):
    """Rows that go through the model together."""

    indices: list[int]  # of the items the first rows belong to; further rows are empty
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


def load_all(items: Sequence[Any], *, max_duration: float) -> list[np.ndarray | AudioError]:
    """Decode every item to float32 [S] at 16 kHz, in order; an item that cannot be used gives its error instead."""

    def load(item: Any) -> np.ndarray | AudioError:
        try:
            return load_audio(item, max_duration=max_duration)
        except AudioError as error:
            return error

    if len(items) < 2:
        return [load(item) for item in items]
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        return list(pool.map(load, items))


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
        pad: whether rows may be padded to a bucket's length, and batches to a power of two of rows, so that few shapes
            are compiled. Models whose result depends on padding (group norm) get rows of exactly equal length instead.
    """
    bucket: Callable[[int], int] = bucket_length if pad else int
    lengths = [len(waveform) for waveform in waveforms]
    for indices in bucketed_batches(lengths, batch_size=batch_size, max_samples=max_samples, bucket=bucket):
        width = bucket(lengths[indices[0]])
        rows = 1 << (len(indices) - 1).bit_length() if pad else len(indices)
        input_values = np.zeros((rows, width), np.float32)
        attention_mask = np.zeros((rows, width), bool)
        for row, index in enumerate(indices):
            normalised = extractor([waveforms[index]]).input_values[0]
            input_values[row, : len(normalised)] = normalised
            attention_mask[row, : len(normalised)] = True
        yield Batch(indices, Features(input_values, attention_mask))

"""Samples on their way into the model: as they were decoded to the device, normalised in the compiled program.

What crosses over is the samples and one length for each row: no mask, and 16-bit samples as 16 bits where there is a
bus to cross. They are widened there by a small program of its own, so that the model is compiled for one dtype only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mms_jax.features import FeatureExtractor

STEP = 2.0**-15  # of 16-bit audio, on the scale of [-1, 1)
SUMMED = 64  # values added up one by one, and then sums of sums, to be as accurate as numpy's pairwise sums


class Waveforms(NamedTuple):
    """A batch of rows, padded with zeros."""

    samples: np.ndarray | jax.Array  # float32 [B, S], or int16: 2^15 times that
    num_samples: np.ndarray | jax.Array  # int32 [B]: a row's own


def pack(rows: Sequence[np.ndarray], *, width: int, keep_int16: bool) -> Waveforms:
    """A batch on the host, of rows int16 or float32 [S], S ≤ ``width``.

    Args:
        rows: of any mix of the two.
        width: samples of each padded row.
        keep_int16: whether to leave a batch of nothing but int16 so; else it is float32.
    """
    narrow = keep_int16 and all(row.dtype == np.int16 for row in rows)
    samples = np.zeros((len(rows), width), np.int16 if narrow else np.float32)
    for out, row in zip(samples, rows, strict=True):
        own = out[: len(row)]
        if row.dtype == np.int16 and not narrow:
            np.multiply(row, np.float32(STEP), out=own)
        else:
            own[:] = row
    return Waveforms(samples, np.array([len(row) for row in rows], np.int32))


def crosses_bus() -> bool:
    """Whether samples are copied to get to the device, so that fewer bytes are worth a program of their own."""
    return jax.default_backend() != "cpu"


def on_device(waveforms: Waveforms) -> Waveforms:
    """A packed batch with float32 samples; int16 ones are copied to the device as they are, and widened there."""
    if waveforms.samples.dtype == np.int16:
        return Waveforms(_widened(waveforms.samples), waveforms.num_samples)
    return waveforms


def compile_for(shape: tuple[int, int]) -> None:
    """Compile what ``on_device`` needs for batches of a shape, where it needs anything."""
    if crosses_bus():
        on_device(Waveforms(np.zeros(shape, np.int16), np.zeros(shape[0], np.int32)))


@jax.jit
def _widened(samples: Int[Array, "B S"]) -> Float[Array, "B S"]:
    return samples.astype(jnp.float32) * STEP


def model_input(
    samples: Float[Array, "B S"], num_samples: Int[Array, " B"], *, extractor: FeatureExtractor
) -> tuple[Float[Array, "B S"], Bool[Array, "B S"]]:
    """What a model takes, computed in its compiled program: each row as ``extractor`` gives it alone, then padded.

    Args:
        samples: as decoded, zeros behind a row's own.
        num_samples: how many those are.
        extractor: the checkpoint's.

    Returns:
        (input_values, float32 with zeros for padding; attention_mask, True = a sample of the row's own).
    """
    mask = jnp.arange(samples.shape[1]) < num_samples[:, None]
    if not extractor.do_normalize:
        return jnp.where(mask, samples, 0), mask
    count = jnp.maximum(num_samples, 1)[:, None].astype(jnp.float32)
    centered = jnp.where(mask, samples - _totals(jnp.where(mask, samples, 0)) / count, 0)
    variance = _totals(centered * centered) / count
    return centered / jnp.sqrt(variance + extractor.norm_eps), mask


def _totals(values: Float[Array, "B S"]) -> Float[Array, "B 1"]:
    """The sum of each row, in as many levels as it takes."""
    while values.shape[1] > 1:
        blocks = jnp.pad(values, ((0, 0), (0, -values.shape[1] % SUMMED))).reshape(len(values), -1, SUMMED)
        values = jax.lax.optimization_barrier(blocks.sum(axis=-1))  # or XLA makes one sum of all levels
    return values

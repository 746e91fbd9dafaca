"""What is random in a training batch, drawn on the host: SpecAugment's masks, layers left out, dither.

Every draw comes from a generator that the caller seeds from (seed, step, row …), so a row's masks depend on that and on
its own length alone: not on how far its batch is padded, nor on what else is in it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms_jax.errors import SettingError

INT16_STEP = 2.0**-15  # one step of 16-bit audio, at full scale 1: the unit of Kaldi's dither
MAX_DITHER = 2.0**15  # noise as loud as full scale


def check_augmentation(
    *,
    num_channels: int,
    mask_time_prob: float,
    mask_time_length: int,
    mask_time_min_masks: int,
    mask_feature_prob: float,
    mask_feature_length: int,
    mask_feature_min_masks: int,
    layerdrop: float,
    dither: float,
) -> None:
    """Check all settings at once, before training; raises SettingError naming the flag that is out of its range.

    ``num_channels`` is D, the size of the model's hidden states, which a span of features must fit into.
    """
    _check_spans("time", prob=mask_time_prob, length=mask_time_length, min_masks=mask_time_min_masks)
    _check_spans("feature", prob=mask_feature_prob, length=mask_feature_length, min_masks=mask_feature_min_masks)
    _check_feature_length(mask_feature_prob, mask_feature_length, num_channels)
    _check_layerdrop(layerdrop)
    _check_dither(dither)


def time_mask(
    num_frames: int, *, prob: float, length: int, min_masks: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Spans of frames to mask in one row (SpecAugment, Park et al. 2019, as in transformers' Wav2Vec2).

    About ``prob * num_frames / length`` spans of ``length`` frames, the fraction rounded up or down at random, at least
    ``min_masks``, no more than fit side by side. Their starts differ; the spans may overlap, so that at most about
    ``prob`` of the frames are masked. A row without padding gets what transformers would give it from the same draws.

    A row shorter than one span gets no mask, as a short row among longer ones gets none there. (transformers raises
    ValueError where every row of the batch is so short.) ``prob`` 0 masks nothing, whatever ``min_masks``.

    Args:
        num_frames: valid frames of the row, without padding.

    Returns:
        bool [num_frames], True = masked.

    Raises:
        SettingError: --mask_time_prob, --mask_time_length or --mask_time_min_masks is out of its range.
    """
    _check_spans("time", prob=prob, length=length, min_masks=min_masks)
    return _spans(num_frames, prob=prob, length=length, min_masks=min_masks, rng=rng)


def feature_mask(
    num_channels: int, *, prob: float, length: int, min_masks: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Spans of channels to mask in all frames of one row; everything else as in ``time_mask``.

    Returns:
        bool [num_channels], True = masked.

    Raises:
        SettingError: one of --mask_feature_prob, --mask_feature_length and --mask_feature_min_masks is out of its
            range; a span longer than the channels is, since it would never mask anything.
    """
    _check_spans("feature", prob=prob, length=length, min_masks=min_masks)
    _check_feature_length(prob, length, num_channels)
    return _spans(num_channels, prob=prob, length=length, min_masks=min_masks, rng=rng)


def layer_keep(num_layers: int, *, layerdrop: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which layers a batch passes through (LayerDrop, Fan et al. 2019): each is left out with chance ``layerdrop``.

    Returns:
        bool [num_layers], True = the layer is computed.

    Raises:
        SettingError: --layerdrop is not in 0 … below 1.
    """
    _check_layerdrop(layerdrop)
    return rng.random(num_layers) >= layerdrop


def dither(waveform: NDArray[np.float32], *, amount: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """The waveform (float32 [S], full scale 1, not yet normalised) with Gaussian noise, so that no silence is digital.

    ``amount`` is the noise's standard deviation in steps of 16-bit audio, 2^-15 of full scale, as Kaldi counts it
    (--dither, there 1 unless told otherwise). 0 gives back the very array.

    Raises:
        SettingError: --dither is not in 0 … 32768.
    """
    _check_dither(amount)
    if amount == 0:
        return waveform
    noise = rng.standard_normal(waveform.shape) * (amount * INT16_STEP)
    return waveform + noise.astype(np.float32)


def _spans(size: int, *, prob: float, length: int, min_masks: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """bool [size]: the order of the draws (the rounding, then the starts) is transformers'."""
    masked = np.zeros(size, bool)
    if prob == 0 or size < length:
        return masked
    expected = prob * size / length
    count = max(int(expected + rng.random()), min_masks)  # rounded up as often as the fraction is large
    starts = rng.choice(size - length + 1, min(count, size // length), replace=False)
    masked[starts[:, None] + np.arange(length)] = True
    return masked


def _check_spans(axis: str, *, prob: Any, length: Any, min_masks: Any) -> None:
    if not _is_number(prob) or not 0 <= prob <= 1:
        raise SettingError(f"--mask_{axis}_prob is {prob!r}; it must be a number in 0 … 1")
    if not _is_integer(length) or length < 1:
        raise SettingError(f"--mask_{axis}_length is {length!r}; it must be an integer from 1 on")
    if not _is_integer(min_masks) or min_masks < 0:
        raise SettingError(f"--mask_{axis}_min_masks is {min_masks!r}; it must be an integer from 0 on")


def _check_feature_length(prob: float, length: int, num_channels: int) -> None:
    if prob > 0 and length > num_channels:
        raise SettingError(f"--mask_feature_length is {length}, but the model has {num_channels} channels")


def _check_layerdrop(layerdrop: Any) -> None:
    if not _is_number(layerdrop) or not 0 <= layerdrop < 1:
        raise SettingError(f"--layerdrop is {layerdrop!r}; it must be a number in 0 … below 1")


def _check_dither(amount: Any) -> None:
    if not _is_number(amount) or not 0 <= amount <= MAX_DITHER:
        raise SettingError(f"--dither is {amount!r}; it must be a number in 0 … {MAX_DITHER:g} (steps of 16-bit audio)")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

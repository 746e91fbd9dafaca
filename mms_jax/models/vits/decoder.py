"""The decoder of VITS: HiFi-GAN's generator (Kong et al. 2020, arXiv 2010.05646), from latent frames to samples.

Nearly all of a synthesis' arithmetic is here (39 GFLOP for each second of speech, 97 %), in convolutions of few channels
over many samples.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mms_jax.config import VitsConfig
from mms_jax.models.layers import Dense, conv, matmul, same_padding
from mms_jax.models.vits.convolution import PHASES, Signal, fast_conv, transform_kernel

EDGE_KERNEL_SIZE = 7  # of the first and the last convolution
LAST_SLOPE = 0.01  # of the last leaky ReLU; config.leaky_relu_slope is that of all others
WINDOW = 96  # frames decoded at a time where memory is slow: what is between two layers stays in the cache

Weights = dict[str, Any]


class Affine(nn.Module):
    """Kernel and bias of a convolution, which the functions below apply: in loops, where no module can be made."""

    shape: tuple[int, int, int]
    use_bias: bool = True
    out_axis: int = -1

    @nn.compact
    def __call__(self) -> Weights:
        """The parameters by name."""
        in_axis = -2 if self.out_axis == -1 else -1
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=in_axis, out_axis=self.out_axis)
        weights: Weights = {"kernel": self.param("kernel", init, self.shape)}
        if self.use_bias:
            weights["bias"] = self.param("bias", nn.initializers.zeros, (self.shape[self.out_axis],))
        return weights


class ResidualBlock(nn.Module):
    """Parameters of one residual block: pairs of convolutions, of which the first is dilated."""

    channels: int
    kernel_size: int
    num_pairs: int

    @nn.compact
    def __call__(self) -> list[tuple[Weights, Weights]]:
        """The parameters, pair by pair."""
        shape = (self.kernel_size, self.channels, self.channels)
        return [
            (Affine(shape, name=f"convs1_{j}")(), Affine(shape, name=f"convs2_{j}")()) for j in range(self.num_pairs)
        ]


class Decoder(nn.Module):
    """HiFi-GAN's generator; ``dtype`` is that of matrix-product operands.

    ``windowed`` decodes ``WINDOW`` frames at a time with fewer multiplications, which is exact as well and about
    twice as fast on CPUs, but has no gradient; GPUs want large plain convolutions. None = if the backend is a CPU.
    """

    config: VitsConfig
    dtype: DTypeLike = jnp.float32
    windowed: bool | None = None

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "B T C"],
        frame_mask: Bool[Array, "B T"],
        speaker: Float[Array, "B E"] | None,
    ) -> Float[Array, "B S"]:
        """Samples between -1 and 1, ``config.hop_length`` for each frame; 0 where ``frame_mask`` is False.

        What is masked counts as beyond the end of the sequence: a row gives the same samples in every batch.
        """
        c = self.config
        width, stages = c.upsample_initial_channel, []
        pre = Affine((EDGE_KERNEL_SIZE, c.flow_size, width), name="conv_pre")()
        condition = pre["bias"].astype(jnp.float32)[None, None]
        if c.speaker_embedding_size:
            project = Dense(width, dtype=self.dtype, name="cond")
            project_or_init = speaker if speaker is not None else jnp.zeros((1, c.speaker_embedding_size))
            projected = project(project_or_init)
            condition = condition + projected[:, None] if speaker is not None else condition
        for i, size in enumerate(c.upsample_kernel_sizes):
            width //= 2
            upsampler = Affine((size, width, 2 * width), out_axis=-2, name=f"upsampler_{i}")()
            blocks = [
                ResidualBlock(width, kernel_size, len(dilations), name=f"resblocks_{i * len(c.resblock_kernel_sizes) + j}")()
                for j, (kernel_size, dilations) in enumerate(
                    zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True)
                )
            ]
            stages.append({"upsampler": upsampler, "blocks": blocks})
        post = Affine((EDGE_KERNEL_SIZE, width, 1), use_bias=False, name="conv_post")()
        weights = {"pre": pre["kernel"], "stages": stages, "post": post["kernel"]}
        condition = jnp.broadcast_to(condition, (len(latents), 1, condition.shape[-1]))
        windowed = jax.default_backend() == "cpu" if self.windowed is None else self.windowed
        return decode(weights, latents, frame_mask, condition, config=c, dtype=self.dtype, windowed=windowed)


def decode(weights, latents, frame_mask, condition, *, config, dtype, windowed):
    batch, num_frames, _ = latents.shape
    fast = [windowed and _is_fast(config, i) for i in range(len(config.upsample_rates))]
    for i, stage in enumerate(weights["stages"]):
        if fast[i]:
            stage["blocks"] = jax.tree.map(
                lambda x: transform_kernel(x, dtype=dtype) if x.ndim == 3 else x, stage["blocks"]
            )
    args = dict(config=config, dtype=dtype, fast=fast)
    if not windowed or num_frames <= WINDOW:
        return decode_window(weights, latents, frame_mask, condition, contexts=(0,) * (len(fast) + 2), **args)
    contexts = tuple(_contexts(config, aligned=True))
    per_row = -(-num_frames // WINDOW)
    size = -(-num_frames // per_row)
    lengths = jnp.max(jnp.where(frame_mask, jnp.arange(1, num_frames + 1), 0), axis=1)
    counts = -(-lengths // size)
    ends = jnp.cumsum(counts)
    padding = (contexts[0], contexts[0] + per_row * size - num_frames)
    latents = jnp.pad(latents, ((0, 0), padding, (0, 0)))
    frame_mask = jnp.pad(frame_mask, ((0, 0), padding))

    def body(i, samples):
        row = jnp.searchsorted(ends, i, side="right")
        start = (i - ends[row] + counts[row]) * size
        shape = (1, size + 2 * contexts[0])
        window = lax.dynamic_slice(latents, (row, start, 0), (*shape, latents.shape[-1]))
        mask = lax.dynamic_slice(frame_mask, (row, start), shape)
        cond = lax.dynamic_slice_in_dim(condition, row, 1)
        y = decode_window(weights, window, mask, cond, contexts=contexts, **args)
        return lax.dynamic_update_slice(samples, y, (row, start * config.hop_length))

    samples = jnp.zeros((batch, per_row * size * config.hop_length))
    return lax.fori_loop(0, ends[-1], body, samples)[:, : num_frames * config.hop_length]


def decode_window(weights, latents, frame_mask, condition, *, contexts, config, dtype, fast):
    c = config
    x = conv(latents * frame_mask[..., None], weights["pre"], dtype=dtype, padding=same_padding(EDGE_KERNEL_SIZE)) + condition
    x = _crop(x, contexts[0] - contexts[1])
    mask = _crop(frame_mask, contexts[0] - contexts[1])
    for i, (stage, rate) in enumerate(zip(weights["stages"], c.upsample_rates, strict=True)):
        x = _upsample(_act(x, mask, c.leaky_relu_slope), stage["upsampler"], rate=rate, dtype=dtype)
        mask = jnp.repeat(mask, rate, axis=1)
        blocks = zip(stage["blocks"], c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True)
        if fast[i]:
            groups = x.reshape(x.shape[0], -1, PHASES, x.shape[-1])
            outs = [_phase_block(groups, w, mask[:, ::PHASES], k, d, c.leaky_relu_slope, dtype) for w, k, d in blocks]
            x = (sum(outs) / len(outs)).reshape(x.shape)
        else:
            outs = [_block(x, w, mask, k, d, c.leaky_relu_slope, dtype) for w, k, d in blocks]
            x = sum(outs) / len(outs)
        crop = contexts[i + 1] * rate - contexts[i + 2]
        x, mask = _crop(x, crop), _crop(mask, crop)
    x = _act(x, mask, LAST_SLOPE)
    taps = matmul(x, weights["post"][..., 0].T, dtype=dtype)
    pad = EDGE_KERNEL_SIZE // 2
    taps = jnp.pad(taps, ((0, 0), (pad, pad), (0, 0)))
    x = sum(taps[:, j : j + x.shape[1], j] for j in range(EDGE_KERNEL_SIZE))
    x = jnp.where(mask, jnp.tanh(x), 0.0)
    return _crop(x, contexts[-1])


def _act(x, mask, slope):
    return jnp.where(mask[..., None], jnp.maximum(x, slope * x), 0.0)


def _crop(x, n):
    return x[:, n : x.shape[1] - n]


def _block(x, pairs, mask, k, dilations, slope, dtype):
    for (first, second), d in zip(pairs, dilations, strict=True):
        h = conv(_act(x, mask, slope), first["kernel"], dtype=dtype, dilation=d, padding=same_padding(k, dilation=d)) + first["bias"]
        x = x + conv(_act(h, mask, slope), second["kernel"], dtype=dtype, padding=same_padding(k)) + second["bias"]
    return x


def _phase_block(x, pairs, mask, k, dilations, slope, dtype):
    """x [B,Q,4,C], mask [B,Q]"""
    num_rows = x.shape[1]
    pad = 24  # rows
    wide = jnp.pad(mask, ((0, 0), (pad, pad)))
    def signal(y, step, before, bias=None):
        n = y.shape[1]
        m = jnp.stack([wide[:, pad - before + i * step // 4 :][:, :n] for i in range(4)], 2)
        return Signal(jnp.pad(_act(y, m, slope), ((0, 0), (pad, pad), (0, 0), (0, 0))), before + pad, step)
    for (first, second), d in zip(pairs, dilations, strict=True):
        h = fast_conv(signal(x, 1, 0), first["kernel"], num_rows=num_rows, kernel_size=k, dilation=d, dtype=dtype)
        h = fast_conv(signal(h.values + first["bias"], h.step, h.before), second["kernel"], num_rows=num_rows, kernel_size=k, dilation=1, dtype=dtype)
        x = x + h.values + second["bias"]
    return x


def _upsample(x, weights, *, rate, dtype):
    """Transposed convolution."""
    kernel = weights["kernel"]
    size, width, _ = kernel.shape
    pad = (size - rate) // 2
    runs = -(-size // rate)
    kernel = jnp.pad(kernel, ((0, runs * rate - size), (0, 0), (0, 0)))
    b, t, _ = x.shape
    y = matmul(x, kernel.reshape(-1, kernel.shape[-1]).T, dtype=dtype).reshape(b, t, runs, rate, width)
    y = sum(jnp.pad(y[:, :, j], ((0, 0), (j, runs - 1 - j), (0, 0), (0, 0))) for j in range(runs))
    y = y.reshape(b, -1, width)[:, pad : pad + t * rate]
    return y + weights["bias"]


def _is_fast(config, i):
    rate = math.prod(config.upsample_rates[: i + 1])
    return rate % PHASES == 0 and all(d % 2 for ds in config.resblock_dilation_sizes for d in ds) and min(config.resblock_kernel_sizes) >= 3


def _contexts(config, *, aligned=False):
    reach = max(
        sum((k - 1) // 2 * (d + 1) for d in ds)
        for k, ds in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
    )
    contexts = [EDGE_KERNEL_SIZE // 2]
    for rate, size in zip(reversed(config.upsample_rates), reversed(config.upsample_kernel_sizes), strict=True):
        needed = (contexts[0] + reach + (size - rate) // 2 - 1) // rate + 1
        unit = PHASES // math.gcd(rate, PHASES) if aligned else 1
        contexts.insert(0, -(-needed // unit) * unit)
    return [contexts[0] + EDGE_KERNEL_SIZE // 2, *contexts]


def receptive_field(config: VitsConfig) -> int:
    return _contexts(config)[0]

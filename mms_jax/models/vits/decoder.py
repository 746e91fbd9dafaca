"""The decoder of VITS: HiFi-GAN's generator (Kong et al. 2020, arXiv 2010.05646), from latent frames to samples.

97 % of a synthesis' arithmetic is here, 39 GFLOP for a second of speech, in convolutions over many samples of few
channels. Two arrangements give the same samples: whole batches through plain convolutions, for GPUs; and, for CPUs,
windows of one row after the other, padding left out, through convolutions of half the multiplications.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from mms_jax.config import VitsConfig
from mms_jax.models.layers import Dense, same_padding
from mms_jax.models.products import conv, matmul
from mms_jax.models.trees import Params, flatten, unflatten
from mms_jax.models.vits.convolution import GROUP, Signal, toom_cook_conv, transform_kernel

EDGE_KERNEL_SIZE = 7  # of the first and the last convolution
LAST_SLOPE = 0.01  # of the leaky ReLU before the last convolution; all others have config.leaky_relu_slope
WINDOW = 64  # frames, 1 s: what passes between layers stays in a CPU's cache; decoding its neighbourhood too costs 9 %


class Affine(NamedTuple):
    """Parameters of one convolution."""

    kernel: jax.Array
    bias: jax.Array


class Stage(NamedTuple):
    """Parameters of one upsampling: a transposed convolution, then blocks, side by side, of pairs of convolutions."""

    upsampler: Affine
    blocks: list[list[tuple[Affine, Affine]]]


class Weights(NamedTuple):
    """All parameters, taken out of Flax's modules, which cannot be called in a loop."""

    pre: jax.Array
    stages: list[Stage]
    post: jax.Array


class Convolution(nn.Module):
    """Declares the parameters of a convolution with a kernel of ``shape`` [K, I, O], or [K, O, I] if ``transposed``."""

    shape: tuple[int, int, int]
    transposed: bool = False

    @nn.compact
    def __call__(self) -> Affine:
        """The parameters; the bias in float32, as it is added to accumulated products."""
        init = nn.initializers.lecun_normal(*((-1, -2) if self.transposed else (-2, -1)))
        prepared = self.has_variable("params", "kernel_at_points")  # by prepare_kernels
        kernel = self.get_variable("params", "kernel_at_points") if prepared else self.param("kernel", init, self.shape)
        bias = self.param("bias", nn.initializers.zeros, (self.shape[-2 if self.transposed else -1],))
        return Affine(kernel, bias.astype(jnp.float32))


class LastKernel(nn.Module):
    """Declares the kernel, [K, I, O], of the one convolution without bias."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernel."""
        return self.param("kernel", nn.initializers.lecun_normal(), self.shape)


class ResidualBlock(nn.Module):
    """Declares the parameters of one residual block."""

    channels: int
    kernel_size: int
    num_pairs: int

    @nn.compact
    def __call__(self) -> list[tuple[Affine, Affine]]:
        """The parameters, pair by pair: the dilated convolution, the other one."""
        shape = (self.kernel_size, self.channels, self.channels)
        pairs = range(self.num_pairs)
        return [(Convolution(shape, name=f"convs1_{j}")(), Convolution(shape, name=f"convs2_{j}")()) for j in pairs]


class Decoder(nn.Module):
    """HiFi-GAN's generator; ``dtype`` is that of matrix-product operands.

    ``windowed`` is the arrangement for CPUs, which has no gradient; None = where the default backend is a CPU.
    """

    config: VitsConfig
    dtype: DTypeLike = jnp.float32
    windowed: bool | None = None

    @nn.compact
    def __call__(
        self, latents: Float[Array, "B T C"], frame_mask: Bool[Array, "B T"], speaker: Float[Array, "B E"] | None
    ) -> Float[Array, "B S"]:
        """Samples between -1 and 1, ``config.hop_length`` for each frame; 0 where ``frame_mask`` is False.

        Masked frames act like the end of the sequence, so a row gives the same samples in every batch. Without
        ``speaker``, no speaker's embedding is added.
        """
        c = self.config
        pre = Convolution((EDGE_KERNEL_SIZE, c.flow_size, c.upsample_initial_channel), name="conv_pre")()
        offset = jnp.broadcast_to(pre.bias, (len(latents), c.upsample_initial_channel))
        if c.speaker_embedding_size:
            project = Dense(c.upsample_initial_channel, self.dtype, name="cond")
            projected = project(jnp.zeros((1, c.speaker_embedding_size)) if speaker is None else speaker)
            offset = offset if speaker is None else offset + projected
        stages = [self._stage(i) for i in range(len(c.upsample_rates))]
        width = c.upsample_initial_channel // 2 ** len(stages)
        post = LastKernel((EDGE_KERNEL_SIZE, width, 1), name="conv_post")()
        windowed = self.windowed
        if windowed is None:  # to make parameters it is not: tracing it takes 1.5 s, and they are the same
            windowed = jax.default_backend() == "cpu" and not self.is_initializing()
        generator = Generator(c, self.dtype, economical=windowed)
        weights = generator.prepared(Weights(pre.kernel, stages, post))
        decode = generator.by_window if windowed else generator.at_once
        return decode(weights, latents, frame_mask, offset[:, None])

    def _stage(self, index: int) -> Stage:
        c = self.config
        width, per_stage = c.upsample_initial_channel // 2 ** (index + 1), len(c.resblock_kernel_sizes)
        shape = (c.upsample_kernel_sizes[index], width, 2 * width)
        upsampler = Convolution(shape, transposed=True, name=f"upsampler_{index}")()
        sizes = zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True)
        blocks = [
            ResidualBlock(width, kernel_size, len(dilations), name=f"resblocks_{index * per_stage + j}")()
            for j, (kernel_size, dilations) in enumerate(sizes)
        ]
        return Stage(upsampler, blocks)


@dataclasses.dataclass(frozen=True)
class Generator:
    """The arithmetic; ``economical`` means with Toom and Cook's convolutions wherever they are possible."""

    config: VitsConfig
    dtype: DTypeLike
    economical: bool

    def prepared(self, weights: Weights) -> Weights:
        """Parameters with the kernels in the form that is multiplied by."""

        def prepare(index: int, stage: Stage) -> Stage:
            kernel, rate = stage.upsampler.kernel, self.config.upsample_rates[index]
            kernel = jnp.pad(kernel, ((0, -len(kernel) % rate), (0, 0), (0, 0)))  # whole multiples of the rate
            upsampler = Affine(kernel.reshape(-1, kernel.shape[-1]).T, stage.upsampler.bias)
            if not self.is_economical(index):
                return Stage(upsampler, stage.blocks)
            return Stage(
                upsampler, [[(self._at_points(a), self._at_points(b)) for a, b in block] for block in stage.blocks]
            )

        stages = [prepare(i, stage) for i, stage in enumerate(weights.stages)]
        return Weights(weights.pre, stages, weights.post[..., 0].T)

    def _at_points(self, one: Affine) -> Affine:
        is_prepared = one.kernel.ndim == 4
        return one if is_prepared else Affine(transform_kernel(one.kernel, dtype=self.dtype), one.bias)

    def at_once(
        self,
        weights: Weights,
        latents: Float[Array, "B T C"],
        frame_mask: Bool[Array, "B T"],
        offset: Float[Array, "B 1 D"],
    ) -> Float[Array, "B S"]:
        """Samples of all rows."""
        nothing_beyond = (0,) * (len(weights.stages) + 2)
        return self._window(weights, latents, frame_mask, offset, contexts=nothing_beyond)

    def by_window(
        self,
        weights: Weights,
        latents: Float[Array, "B T C"],
        frame_mask: Bool[Array, "B T"],
        offset: Float[Array, "B 1 D"],
    ) -> Float[Array, "B S"]:
        """Samples of all rows, up to ``WINDOW`` frames at a time, which end with the row's last valid frame."""
        (batch, num_frames), hop = frame_mask.shape, self.config.hop_length
        per_row = -(-num_frames // WINDOW)
        size = -(-num_frames // per_row)
        contexts = _contexts(self.config, unit=GROUP) if per_row > 1 else (0,) * (len(weights.stages) + 2)
        padding = ((0, 0), (contexts[0], contexts[0] + per_row * size - num_frames))
        latents, valid = jnp.pad(latents, (*padding, (0, 0))), jnp.pad(frame_mask, padding)
        lengths = jnp.max(frame_mask * jnp.arange(1, num_frames + 1), axis=1)
        counts = -(-lengths // size)
        ends = jnp.cumsum(counts)  # windows of this row and of those before

        def step(i: jax.Array, samples: jax.Array) -> jax.Array:
            row = jnp.searchsorted(ends, i, side="right")
            start = (i - (ends[row] - counts[row])) * size
            width = size + 2 * contexts[0]
            window = lax.dynamic_slice(latents, (row, start, 0), (1, width, latents.shape[-1]))
            mask = lax.dynamic_slice(valid, (row, start), (1, width))
            new = self._window(weights, window, mask, lax.dynamic_slice_in_dim(offset, row, 1), contexts=contexts)
            return lax.dynamic_update_slice(samples, new, (row, start * hop))

        samples = lax.fori_loop(0, ends[-1], step, jnp.zeros((batch, per_row * size * hop)))
        return samples[:, : num_frames * hop]

    def _window(
        self,
        weights: Weights,
        latents: Float[Array, "B T C"],
        mask: Bool[Array, "B T"],
        offset: Float[Array, "B 1 D"],
        *,
        contexts: Sequence[int],
    ) -> Float[Array, "B S"]:
        """Samples of the frames between ``contexts[0]`` at both ends, which are there to be seen and not decoded."""
        x = jnp.where(mask[..., None], latents, 0.0)
        x = conv(x, weights.pre, dtype=self.dtype, padding=same_padding(EDGE_KERNEL_SIZE)) + offset
        x, mask = _crop(x, contexts[0] - contexts[1]), _crop(mask, contexts[0] - contexts[1])
        for i, (stage, rate) in enumerate(zip(weights.stages, self.config.upsample_rates, strict=True)):
            x = self._upsample(_leaky_relu(x, mask, slope=self.config.leaky_relu_slope), stage.upsampler, index=i)
            mask = jnp.repeat(mask, rate, axis=1)
            blocks = self._economical_blocks if self.is_economical(i) else self._blocks
            x = blocks(x, mask, stage)
            surplus = contexts[i + 1] * rate - contexts[i + 2]
            x, mask = _crop(x, surplus), _crop(mask, surplus)
        # One output channel: a product with all taps, added up after it, reads every activation once.
        taps = matmul(_leaky_relu(x, mask, slope=LAST_SLOPE), weights.post, dtype=self.dtype)
        taps = jnp.pad(taps, ((0, 0), same_padding(EDGE_KERNEL_SIZE), (0, 0)))
        x = sum(taps[:, j : j + x.shape[1], j] for j in range(EDGE_KERNEL_SIZE))
        return _crop(jnp.where(mask, jnp.tanh(x), 0.0), contexts[-1])

    def _upsample(self, x: Float[Array, "B T I"], weights: Affine, *, index: int) -> Float[Array, "B S O"]:
        """Transposed convolution of stage ``index``: one product with all taps, then its overlapping parts added."""
        rate, kernel_size = self.config.upsample_rates[index], self.config.upsample_kernel_sizes[index]
        batch, num_samples, _ = x.shape
        y = matmul(x, weights.kernel, dtype=self.dtype).reshape(batch, num_samples, -1, rate, weights.bias.size)
        runs = y.shape[2]
        parts = [jnp.pad(y[:, :, j], ((0, 0), (j, runs - 1 - j), (0, 0), (0, 0))) for j in range(runs)]
        start = (kernel_size - rate) // 2
        x = sum(parts[1:], parts[0]).reshape(batch, -1, weights.bias.size)[:, start : start + num_samples * rate]
        return x + weights.bias

    def _blocks(self, x: Float[Array, "B S C"], mask: Bool[Array, "B S"], stage: Stage) -> Float[Array, "B S C"]:
        """Mean of the residual blocks, through plain convolutions."""

        def convolve(x: jax.Array, weights: Affine, dilation: int) -> jax.Array:
            x, padding = activate(x, mask), same_padding(len(weights.kernel), dilation=dilation)
            return conv(x, weights.kernel, dtype=self.dtype, dilation=dilation, padding=padding) + weights.bias

        activate = functools.partial(_leaky_relu, slope=self.config.leaky_relu_slope)
        total = jnp.zeros(())
        for block, dilations in zip(stage.blocks, self.config.resblock_dilation_sizes, strict=True):
            y = x
            for (dilated, plain), dilation in zip(block, dilations, strict=True):
                y = y + convolve(convolve(y, dilated, dilation), plain, 1)
            total = total + y
        return total / len(stage.blocks)

    def _economical_blocks(
        self, x: Float[Array, "B S C"], mask: Bool[Array, "B S"], stage: Stage
    ) -> Float[Array, "B S C"]:
        """Mean of the residual blocks, on groups of samples; ``mask`` must not change within a group."""
        c = self.config
        groups = x.reshape(len(x), -1, GROUP, x.shape[-1])
        group_mask = mask[:, ::GROUP]

        def convolve(x: Signal, weights: Affine, kernel_size: int, dilation: int) -> Signal:
            x = x._replace(values=_leaky_relu(x.values, x.mask(group_mask), slope=c.leaky_relu_slope))
            sizes = {"kernel_size": kernel_size, "dilation": dilation, "num_rows": groups.shape[1]}
            x = toom_cook_conv(x, weights.kernel, **sizes, dtype=self.dtype)
            return x._replace(values=x.values + weights.bias)

        total = jnp.zeros(())
        sizes = zip(stage.blocks, c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True)
        for block, kernel_size, dilations in sizes:
            y = groups
            for (dilated, plain), dilation in zip(block, dilations, strict=True):
                y = y + convolve(convolve(Signal(y), dilated, kernel_size, dilation), plain, kernel_size, 1).values
            total = total + y
        return (total / len(stage.blocks)).reshape(x.shape)

    def is_economical(self, index: int) -> bool:
        """Groups of four that begin and end with frames, and dilations that the groups allow."""
        rate = math.prod(self.config.upsample_rates[: index + 1])
        dilations = (dilation for block in self.config.resblock_dilation_sizes for dilation in block)
        return self.economical and rate % GROUP == 0 and all(dilation % 2 for dilation in dilations)


def prepare_kernels(params: Mapping[str, Any], config: VitsConfig, *, dtype: DTypeLike) -> Params:
    """Parameters of a ``Decoder`` with ``windowed`` whose kernels were transformed once: for synthesis, not training.

    Otherwise every call transforms them, 15 ms in float32 for an MMS voice, as long as 0.15 s of speech take.
    """
    generator, per_stage = Generator(config, dtype, economical=True), len(config.resblock_kernel_sizes)
    prepared = {}
    for path, leaf in flatten(params).items():
        block = re.match(r"resblocks_(\d+)/.*/kernel$", path)
        if block and generator.is_economical(int(block[1]) // per_stage):
            prepared[f"{path}_at_points"] = transform_kernel(leaf, dtype=dtype)
        else:
            prepared[path] = leaf
    return unflatten(prepared)


def receptive_field(config: VitsConfig) -> int:
    """Frames on either side of a frame that its samples depend on: 13 for MMS models."""
    return _contexts(config)[0]


def _contexts(config: VitsConfig, *, unit: int = 1) -> list[int]:
    """What must be known beyond either end of a piece of waveform to get all of it right, in samples of each stage.

    In order: latents, input of every stage, input of the last convolution. After upsampling, contexts are multiples of
    ``unit``.
    """
    sizes = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
    reach = max(sum(kernel_size // 2 * (dilation + 1) for dilation in dilations) for kernel_size, dilations in sizes)
    contexts = [EDGE_KERNEL_SIZE // 2]
    for rate, kernel_size in zip(config.upsample_rates[::-1], config.upsample_kernel_sizes[::-1], strict=True):
        # Sample o of a transposed convolution is made of the samples t with 0 <= o + padding - t * rate < kernel_size.
        padding, multiple = (kernel_size - rate) // 2, unit // math.gcd(rate, unit)
        context = (contexts[0] + reach + padding - 1) // rate + 1
        contexts = [-(-context // multiple) * multiple, *contexts]
    return [contexts[0] + EDGE_KERNEL_SIZE // 2, *contexts]


def _leaky_relu(x: Float[Array, "B *T C"], mask: Bool[Array, "B *T"], *, slope: float) -> Float[Array, "B *T C"]:
    """Leaky ReLU, and zero where ``mask`` is False, as what follows would see it beyond the end."""
    return jnp.where(mask[..., None], jnp.where(x >= 0, x, slope * x), 0.0)


def _crop(x: Shaped[Array, "B T *C"], surplus: int) -> Shaped[Array, "B S *C"]:
    return x[:, surplus : x.shape[1] - surplus]

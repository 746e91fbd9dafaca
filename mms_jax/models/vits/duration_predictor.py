"""The duration predictors: VITS's stochastic one, and a deterministic one.

Kim et al. 2021 (arXiv 2106.06103), §2.2.2 and appendix B.3. The stochastic one is a flow: synthesis takes its way from
noise to log-durations, training the likelihood of given durations, dequantised and augmented variationally. Always
float32: durations are rounded up to whole frames, so small errors would not stay small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from mms_jax.config import VitsConfig
from mms_jax.models.layers import Conv, Dense, LayerNorm, gelu, same_padding
from mms_jax.models.vits.spline import rational_quadratic_spline

LOG_TWO_PI = math.log(2 * math.pi)
MIN_DURATION = 1e-5  # frames; less than that is not left of a duration by its dequantisation


class DurationPredictor(nn.Module):
    """Deterministic: two convolutions and a projection (Ren et al. 2021, FastSpeech 2, arXiv 2006.04558)."""

    config: VitsConfig

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B U D"],
        mask: Bool[Array, "B U"],
        noise: Float[Array, "B U 2"],
        speaker: Float[Array, "B E"] | None = None,
    ) -> Float[Array, "B U"]:
        """Logarithm of every symbol's duration in frames; zero where ``mask`` is False, and whatever ``noise`` is."""
        c = self.config
        width, valid = c.duration_predictor_kernel_size, mask[..., None]
        x = lax.stop_gradient(hidden)
        if speaker is not None:
            x = x + Dense(c.hidden_size, name="cond")(lax.stop_gradient(speaker))[:, None]
        for i in (1, 2):
            x = jnp.where(valid, x, 0.0)
            x = Conv(c.duration_predictor_filter_channels, width, padding=same_padding(width), name=f"conv_{i}")(x)
            x = LayerNorm(eps=c.layer_norm_eps, name=f"norm_{i}")(nn.relu(x))
            x = nn.Dropout(c.duration_predictor_dropout, deterministic=not self.has_rng("dropout"))(x)
        return jnp.where(valid, Dense(1, name="proj")(x), 0.0)[..., 0]


class StochasticDurationPredictor(nn.Module):
    """A flow between two noise variables for each symbol and its log-duration, conditioned on the text."""

    config: VitsConfig

    def setup(self):  # noqa: D102 - Flax's, not for users
        c = self.config
        self.cond = Dense(c.hidden_size)
        self.conv_pre, self.conv_proj = Dense(c.hidden_size), Dense(c.hidden_size)
        self.conv_dds = DilatedConvs(c, c.duration_predictor_dropout)
        self.flows = [ElementwiseAffine(), *(ConvFlow(c) for _ in range(c.duration_predictor_num_flows))]
        self.post_conv_pre, self.post_conv_proj = Dense(c.hidden_size), Dense(c.hidden_size)
        self.post_conv_dds = DilatedConvs(c, c.duration_predictor_dropout)
        self.post_flows = [ElementwiseAffine(), *(ConvFlow(c) for _ in range(c.duration_predictor_num_flows))]

    def __call__(
        self,
        hidden: Float[Array, "B U D"],
        mask: Bool[Array, "B U"],
        noise: Float[Array, "B U 2"],
        speaker: Float[Array, "B E"] | None = None,
    ) -> Float[Array, "B U"]:
        """Logarithm of every symbol's duration in frames from ``noise``, normal at the scale wanted."""
        condition = self._condition(hidden, mask, speaker)
        affine, _, *others = self.flows  # the first spline changes the other variable only, so it is left out
        z = noise
        for flow in (*reversed(others), affine):
            z, _ = flow(z[..., ::-1], mask, condition, reverse=True)
        return z[..., 0]

    def negative_log_likelihood(
        self,
        hidden: Float[Array, "B U D"],
        mask: Bool[Array, "B U"],
        durations: Float[Array, "B U"],
        noise: Float[Array, "B U 2"],
        speaker: Float[Array, "B E"] | None = None,
    ) -> Float[Array, " B"]:
        """Upper bound of -log p(durations), summed over each row's symbols (equation 7); ``noise`` is standard normal.

        ``durations`` are in frames, zero where ``mask`` is False.
        """
        condition = self._condition(hidden, mask, speaker)
        valid = mask[..., None]
        h = self.post_conv_dds(self.post_conv_pre(durations[..., None]), mask)
        h = jnp.where(valid, self.post_conv_proj(h), 0.0)
        noise = jnp.where(valid, noise, 0.0)
        z, posterior_log_det = _run(self.post_flows, noise, mask, condition + h)
        u, v = z[..., 0], z[..., 1]  # u dequantises the durations, v augments them
        posterior_log_det += jnp.where(mask, nn.log_sigmoid(u) + nn.log_sigmoid(-u), 0.0).sum(-1)
        log_q = _log_normal(noise, mask) - posterior_log_det
        remainder = jnp.where(mask, durations - nn.sigmoid(u), 0.0)
        log_durations = jnp.where(mask, jnp.log(jnp.maximum(remainder, MIN_DURATION)), 0.0)
        z, log_det = _run(self.flows, jnp.stack([log_durations, v], axis=-1), mask, condition)
        return log_q - _log_normal(z, mask) - (log_det - log_durations.sum(-1))

    def _condition(self, hidden, mask, speaker) -> Float[Array, "B U D"]:
        x = self.conv_pre(lax.stop_gradient(hidden))
        if speaker is not None:
            x = x + self.cond(lax.stop_gradient(speaker))[:, None]
        return jnp.where(mask[..., None], self.conv_proj(self.conv_dds(x, mask)), 0.0)


def _run(flows: Sequence[nn.Module], z: jax.Array, mask: jax.Array, condition: jax.Array):
    """Forward through ``flows``, swapping the two variables after each: (z, log-determinant of each row)."""
    total = jnp.zeros(z.shape[0])
    for flow in flows:
        z, log_det = flow(z, mask, condition)
        z, total = z[..., ::-1], total + log_det
    return z, total


def _log_normal(z: Float[Array, "B U 2"], mask: Bool[Array, "B U"]) -> Float[Array, " B"]:
    return jnp.where(mask[..., None], -0.5 * (LOG_TWO_PI + jnp.square(z)), 0.0).sum((1, 2))


class ElementwiseAffine(nn.Module):
    """Shift and scale of the two variables."""

    @nn.compact
    def __call__(
        self, z: Float[Array, "B U 2"], mask: Bool[Array, "B U"], condition: Any = None, *, reverse: bool = False
    ) -> tuple[Float[Array, "B U 2"], Float[Array, " B"]]:
        """The image of ``z`` (or, ``reverse``, its inverse) and the log-determinant of each row."""
        translate = self.param("translate", nn.initializers.zeros, (2, 1))[:, 0].astype(jnp.float32)
        log_scale = self.param("log_scale", nn.initializers.zeros, (2, 1))[:, 0].astype(jnp.float32)
        image = (z - translate) * jnp.exp(-log_scale) if reverse else translate + jnp.exp(log_scale) * z
        log_det = log_scale.sum() * mask.sum(-1)
        return jnp.where(mask[..., None], image, 0.0), -log_det if reverse else log_det


class ConvFlow(nn.Module):
    """Bends the second variable by a spline whose shape the first one and the condition decide."""

    config: VitsConfig

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "B U 2"],
        mask: Bool[Array, "B U"],
        condition: Float[Array, "B U D"],
        *,
        reverse: bool = False,
    ) -> tuple[Float[Array, "B U 2"], Float[Array, " B"]]:
        """The image of ``z`` (or, ``reverse``, its inverse) and the log-determinant of each row."""
        c = self.config
        bins, valid = c.duration_predictor_flow_bins, mask[..., None]
        h = DilatedConvs(c, name="conv_dds")(Dense(c.hidden_size, name="conv_pre")(z[..., :1]) + condition, mask)
        h = jnp.where(valid, Dense(3 * bins - 1, name="conv_proj")(h), 0.0)
        widths, heights, derivatives = jnp.split(h, [bins, 2 * bins], axis=-1)
        scale = math.sqrt(c.hidden_size)
        image, log_derivative = rational_quadratic_spline(
            z[..., 1],
            widths / scale,
            heights / scale,
            derivatives,
            tail_bound=c.duration_predictor_tail_bound,
            reverse=reverse,
        )
        log_det = jnp.where(mask, log_derivative, 0.0).sum(-1)
        return jnp.where(valid, jnp.stack([z[..., 0], image], axis=-1), 0.0), log_det


class DilatedConvs(nn.Module):
    """Dilated depth-separable convolutions with residuals: dilation k^i in layer i."""

    config: VitsConfig
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"], mask: Bool[Array, "B U"]) -> Float[Array, "B U D"]:
        """Apply to ``x`` [B, U, D]; masked symbols are taken as zero and become zero."""
        c = self.config
        width, valid = c.duration_predictor_kernel_size, mask[..., None]
        for i in range(c.depth_separable_num_layers):
            h = DepthwiseConv(width, width**i, name=f"convs_dilated_{i}")(jnp.where(valid, x, 0.0))
            h = gelu(LayerNorm(name=f"norms_1_{i}")(h))
            h = gelu(LayerNorm(name=f"norms_2_{i}")(Dense(c.hidden_size, name=f"convs_pointwise_{i}")(h)))
            x = x + nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
        return jnp.where(valid, x, 0.0)


class DepthwiseConv(nn.Module):
    """Convolution of every channel by itself, as a sum of shifted products: XLA's grouped one is slow."""

    kernel_size: int
    dilation: int

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"]) -> Float[Array, "B U D"]:
        """Apply to ``x`` [B, U, D]; same length."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.kernel_size, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        padded = jnp.pad(x, ((0, 0), same_padding(self.kernel_size, dilation=self.dilation), (0, 0)))
        taps = (padded[:, i * self.dilation :][:, : x.shape[1]] * kernel[i] for i in range(self.kernel_size))
        return sum(taps, start=bias.astype(jnp.float32))

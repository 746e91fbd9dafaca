"""The gated convolutions that flow and posterior encoder are built of (WaveNet, van den Oord et al. 2016).

As VITS uses them (Kim et al. 2021, arXiv 2106.06103, §2.5.1 and appendix B.1): not causal, a skip connection out of
every layer, and the speaker's embedding added before the gates.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mms_jax.config import VitsConfig
from mms_jax.models.layers import same_padding, weight_normed_kernel
from mms_jax.models.products import conv


class NormalizedConv(nn.Module):
    """1-D convolution of unchanged length with a weight norm, or, in a tree from ``fold_weight_norm``, without."""

    features: int
    kernel_size: int
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        """Apply to ``x`` [B, T, I]; returns float32 [B, T, features]."""
        padding = same_padding(self.kernel_size, dilation=self.dilation)
        kernel = weight_normed_kernel(self, (self.kernel_size, x.shape[-1], self.features), gains=2)
        x = conv(x, kernel, dtype=self.dtype, dilation=self.dilation, padding=padding)
        return x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(jnp.float32)


class WaveNet(nn.Module):
    """``num_layers`` gated convolutions with residual and skip connections."""

    config: VitsConfig
    num_layers: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], frame_mask: Bool[Array, "B T"], speaker: Float[Array, "B E"] | None
    ) -> Float[Array, "B T D"]:
        """Sum of all skip connections for ``x`` [B, T, D], whose masked frames must be zero; theirs are zero again."""
        c = self.config
        width, valid = c.hidden_size, frame_mask[..., None]
        condition = None
        if speaker is not None:
            project = NormalizedConv(2 * width * self.num_layers, 1, dtype=self.dtype, name="cond")
            condition = project(speaker[:, None])
        skips = jnp.zeros_like(x)
        for i in range(self.num_layers):
            dilation = c.wavenet_dilation_rate**i
            gates = NormalizedConv(2 * width, c.wavenet_kernel_size, dilation, self.dtype, name=f"in_{i}")(x)
            if condition is not None:
                gates = gates + condition[..., 2 * width * i : 2 * width * (i + 1)]
            h = jnp.tanh(gates[..., :width]) * nn.sigmoid(gates[..., width:])
            h = nn.Dropout(c.wavenet_dropout, deterministic=not self.has_rng("dropout"))(h)
            is_last = i == self.num_layers - 1  # nothing follows that would take a residual
            h = NormalizedConv(width if is_last else 2 * width, 1, dtype=self.dtype, name=f"res_skip_{i}")(h)
            skips = skips + (h if is_last else h[..., width:])
            if not is_last:
                x = jnp.where(valid, x + h[..., :width], 0.0)
        return jnp.where(valid, skips, 0.0)

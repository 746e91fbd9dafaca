"""The normalizing flow between posterior and prior (Kim et al. 2021, arXiv 2106.06103, §2.2.2 and appendix B.1).

Affine coupling layers (Dinh et al. 2017) that shift only, so that they keep volume, and swap the channels' order
between each other.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mms_jax.config import VitsConfig
from mms_jax.models.layers import Dense
from mms_jax.models.vits.wavenet import WaveNet


class ResidualCoupling(nn.Module):
    """Shifts the second half of the channels by a function of the first half."""

    config: VitsConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        frame_mask: Bool[Array, "B T"],
        speaker: Float[Array, "B E"] | None,
        *,
        reverse: bool,
    ) -> Float[Array, "B T C"]:
        """Apply to ``x`` [B, T, C], or its inverse; masked frames of the second half become zero."""
        c = self.config
        valid = frame_mask[..., None]
        first, second = jnp.split(x, 2, axis=-1)
        h = jnp.where(valid, Dense(c.hidden_size, self.dtype, name="conv_pre")(first), 0.0)
        h = WaveNet(c, c.prior_encoder_num_wavenet_layers, self.dtype, name="wavenet")(h, frame_mask, speaker)
        shift = Dense(c.flow_size // 2, self.dtype, name="conv_post")(h)
        second = jnp.where(valid, second - shift if reverse else second + shift, 0.0)
        return jnp.concatenate([first, second], axis=-1)


class Flow(nn.Module):
    """``prior_encoder_num_flows`` couplings, after each of which the channels' order is reversed."""

    config: VitsConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        frame_mask: Bool[Array, "B T"],
        speaker: Float[Array, "B E"] | None = None,
        *,
        reverse: bool = False,
    ) -> Float[Array, "B T C"]:
        """Posterior latents to prior latents; ``reverse``: the way back, which synthesis takes. Volume is kept."""
        couplings = [
            ResidualCoupling(self.config, self.dtype, name=f"flows_{i}")
            for i in range(self.config.prior_encoder_num_flows)
        ]
        if reverse:
            for coupling in reversed(couplings):
                x = coupling(x[..., ::-1], frame_mask, speaker, reverse=True)
        else:
            for coupling in couplings:
                x = coupling(x, frame_mask, speaker, reverse=False)[..., ::-1]
        return x

"""The posterior encoder (Kim et al. 2021, arXiv 2106.06103, §2.1.3 and appendix B.1): spectrogram to latents.

Synthesis does without it; training learns from it what the prior has to say.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mms_jax.config import VitsConfig
from mms_jax.models.layers import Dense
from mms_jax.models.vits.wavenet import WaveNet


class Posterior(NamedTuple):
    """A sample, and the normal distribution that it was drawn from; zero in masked frames."""

    latents: Float[Array, "B T C"]
    means: Float[Array, "B T C"]
    log_stddevs: Float[Array, "B T C"]


class PosteriorEncoder(nn.Module):
    """WaveNet from a linear spectrogram to the statistics of the latents."""

    config: VitsConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        spectrogram: Float[Array, "B T F"],
        frame_mask: Bool[Array, "B T"],
        noise: Float[Array, "B T C"],
        speaker: Float[Array, "B E"] | None = None,
    ) -> Posterior:
        """Encode a linear-magnitude spectrogram of ``spectrogram_bins`` F; ``noise`` is standard normal."""
        c = self.config
        valid = frame_mask[..., None]
        x = jnp.where(valid, Dense(c.hidden_size, self.dtype, name="conv_pre")(spectrogram), 0.0)
        x = WaveNet(c, c.posterior_encoder_num_wavenet_layers, self.dtype, name="wavenet")(x, frame_mask, speaker)
        statistics = jnp.where(valid, Dense(2 * c.flow_size, self.dtype, name="conv_proj")(x), 0.0)
        means, log_stddevs = jnp.split(statistics, 2, axis=-1)
        return Posterior(jnp.where(valid, means + noise * jnp.exp(log_stddevs), 0.0), means, log_stddevs)

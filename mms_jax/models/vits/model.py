"""VITS (Kim et al. 2021, arXiv 2106.06103): text to waveform, end to end, as the MMS synthesis checkpoints hold it.

A synthesis has two halves, because the shape of the second depends on the result of the first: ``encode`` gives every
symbol's prior and log-duration, and ``generate`` draws that many frames from the priors and turns them into samples.
Noise is always an argument. Axis letters: B batch, U symbols of text, T frames, S samples, D model, C flow channels,
E speaker embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mms_jax.config import VitsConfig
from mms_jax.models.vits.decoder import Decoder
from mms_jax.models.vits.duration_predictor import DurationPredictor, StochasticDurationPredictor
from mms_jax.models.vits.flow import Flow
from mms_jax.models.vits.posterior_encoder import Posterior, PosteriorEncoder
from mms_jax.models.vits.text_encoder import TextEncoder


class Prior(NamedTuple):
    """What the first half says of every symbol; zero where there is none."""

    means: Float[Array, "B U C"]
    log_variances: Float[Array, "B U C"]  # the original's name: noise is scaled by its exponential, not by half of it
    log_durations: Float[Array, "B U"]  # natural logarithm, of frames


class VitsOutput(NamedTuple):
    """A synthesis and what it came of."""

    waveform: Float[Array, "B S"]  # zero behind the end of a row
    num_samples: Int[Array, " B"]
    latents: Float[Array, "B T C"]  # what the decoder saw; transformers calls it the spectrogram
    prior: Prior


class VitsModel(nn.Module):
    """Text encoder, duration predictor, flow, decoder; posterior encoder and speakers' embeddings.

    ``dtype`` is that of matrix-product operands in flow, decoder and posterior encoder; text and durations are always
    float32. Dropout acts in calls with an rng named "dropout".
    """

    config: VitsConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102 - Flax's, not for users
        c = self.config
        self.text_encoder = TextEncoder(c)
        predictor = StochasticDurationPredictor if c.use_stochastic_duration_prediction else DurationPredictor
        self.duration_predictor = predictor(c)
        self.flow = Flow(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        self.posterior_encoder = PosteriorEncoder(c, self.dtype)
        if c.num_speakers > 1:
            init = nn.initializers.normal(1.0)
            self.embed_speaker = self.param("embed_speaker", init, (c.num_speakers, c.speaker_embedding_size))

    def __call__(
        self,
        input_ids: Int[Array, "B U"],
        attention_mask: Bool[Array, "B U"],
        *,
        num_frames: int,
        duration_noise: Float[Array, "B U 2"],
        prior_noise: Float[Array, "B T C"],
        speaker_id: Int[Array, " B"] | None = None,
        speaking_rate: float = 1.0,
    ) -> VitsOutput:
        """Synthesise a batch into at most ``num_frames`` frames each, which must be static; the rest is cut off.

        Args:
            input_ids: symbols, blanks included; right-padded.
            attention_mask: True = a symbol.
            num_frames: length of the output, T, in frames of ``config.hop_length`` samples.
            duration_noise: normal, at the scale wanted (``config.noise_scale_duration``); not read by deterministic
                duration predictors.
            prior_noise: normal, at the scale wanted (``config.noise_scale``).
            speaker_id: None = no speaker's embedding is added.
            speaking_rate: durations are divided by it.
        """
        prior = self.encode(input_ids, attention_mask, duration_noise, speaker_id)
        durations = frame_counts(prior.log_durations, attention_mask, speaking_rate)
        z, frame_mask = draw(prior, durations, prior_noise[:, :num_frames])
        latents = self.from_prior(z, frame_mask, speaker_id)
        num_samples = frame_mask.sum(-1, dtype=jnp.int32) * self.config.hop_length
        return VitsOutput(self.decode(latents, frame_mask, speaker_id), num_samples, latents, prior)

    def encode(
        self,
        input_ids: Int[Array, "B U"],
        attention_mask: Bool[Array, "B U"],
        duration_noise: Float[Array, "B U 2"],
        speaker_id: Int[Array, " B"] | None = None,
    ) -> Prior:
        """The first half: the prior and the log-duration of every symbol. Arguments as in ``__call__``."""
        speaker = self._speaker(speaker_id)
        text = self.text_encoder(input_ids, attention_mask)
        log_durations = self.duration_predictor(text.hidden, attention_mask, duration_noise, speaker)
        return Prior(text.means, text.log_variances, log_durations)

    def from_prior(
        self,
        latents: Float[Array, "B T C"],
        frame_mask: Bool[Array, "B T"],
        speaker_id: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B T C"]:
        """The flow backward: latents drawn from the prior as the decoder wants them."""
        return self.flow(latents, frame_mask, self._speaker(speaker_id), reverse=True)

    def decode(
        self,
        latents: Float[Array, "B T C"],
        frame_mask: Bool[Array, "B T"],
        speaker_id: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B S"]:
        """Latents to samples between -1 and 1, ``config.hop_length`` of them for each frame."""
        return self.decoder(latents, frame_mask, self._speaker(speaker_id))

    def encode_posterior(
        self,
        spectrogram: Float[Array, "B T F"],
        frame_mask: Bool[Array, "B T"],
        noise: Float[Array, "B T C"],
        speaker_id: Int[Array, " B"] | None = None,
    ) -> Posterior:
        """Latents of recorded speech, for training; ``noise`` is standard normal."""
        return self.posterior_encoder(spectrogram, frame_mask, noise, self._speaker(speaker_id))

    def to_prior(
        self,
        latents: Float[Array, "B T C"],
        frame_mask: Bool[Array, "B T"],
        speaker_id: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B T C"]:
        """The flow forward, for training: latents of the posterior as the prior sees them."""
        return self.flow(latents, frame_mask, self._speaker(speaker_id))

    def duration_loss(
        self,
        input_ids: Int[Array, "B U"],
        attention_mask: Bool[Array, "B U"],
        durations: Float[Array, "B U"],
        noise: Float[Array, "B U 2"],
        speaker_id: Int[Array, " B"] | None = None,
    ) -> Float[Array, " B"]:
        """Of the stochastic predictor, for training: see ``StochasticDurationPredictor.negative_log_likelihood``."""
        assert isinstance(self.duration_predictor, StochasticDurationPredictor), "the other one has no likelihood"
        hidden = self.text_encoder(input_ids, attention_mask).hidden
        speaker = self._speaker(speaker_id)
        return self.duration_predictor.negative_log_likelihood(hidden, attention_mask, durations, noise, speaker)

    def touch(self) -> None:
        """Run every part once on nothing, so that ``init(..., method="touch")`` makes every parameter."""
        c = self.config
        symbols, frames = jnp.ones((1, 1), bool), jnp.ones((1, 1), bool)
        ids, speaker = jnp.zeros((1, 1), jnp.int32), None
        if c.speaker_embedding_size > 0:
            speaker = jnp.zeros((1, c.speaker_embedding_size))
        latents = jnp.zeros((1, 1, c.flow_size))
        hidden = self.text_encoder(ids, symbols).hidden
        noise = jnp.zeros((1, 1, 2))
        if isinstance(self.duration_predictor, StochasticDurationPredictor):  # synthesis leaves parts of it out
            self.duration_predictor.negative_log_likelihood(hidden, symbols, jnp.ones((1, 1)), noise, speaker)
        else:
            self.duration_predictor(hidden, symbols, noise, speaker)
        self.flow(latents, frames, speaker)
        self.decoder(latents, frames, speaker)
        self.posterior_encoder(jnp.zeros((1, 1, c.spectrogram_bins)), frames, latents, speaker)

    def _speaker(self, speaker_id: Int[Array, " B"] | None) -> Float[Array, "B E"] | None:
        return None if speaker_id is None else self.embed_speaker.astype(jnp.float32)[speaker_id]


def frame_counts(
    log_durations: Float[Array, "B U"], attention_mask: Bool[Array, "B U"], speaking_rate: float | Float[Array, ""]
) -> Float[Array, "B U"]:
    """Frames of every symbol: its duration over the rate, rounded up; 0 where ``attention_mask`` is False.

    Float32, as the original counts: an integer could not hold what an untrained model asks for. Where no symbol has a
    frame, transformers makes one, of noise alone.
    """
    length_scale = 1.0 / jnp.asarray(speaking_rate, jnp.float32)
    return jnp.where(attention_mask, jnp.ceil(jnp.exp(log_durations) * length_scale), 0.0)


def draw(
    prior: Prior, durations: Float[Array, "B U"], noise: Float[Array, "B T C"]
) -> tuple[Float[Array, "B T C"], Bool[Array, "B T"]]:
    """Latents drawn from the prior of the symbol that each frame belongs to, and the mask of the frames there are.

    Frames of a symbol follow each other, ``durations`` of them; those behind the last one are masked and zero.
    """
    ends = jnp.cumsum(durations, axis=-1)
    frames = jnp.arange(noise.shape[1])
    symbol = jnp.minimum((ends[:, None, :] <= frames[:, None]).sum(-1), durations.shape[1] - 1)
    frame_mask = frames < ends[:, -1:]
    means, log_variances = (
        jnp.take_along_axis(one, symbol[..., None], axis=1) for one in (prior.means, prior.log_variances)
    )
    return jnp.where(frame_mask[..., None], means + noise * jnp.exp(log_variances), 0.0), frame_mask

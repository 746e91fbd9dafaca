"""Task heads on the wav2vec2 encoder: CTC for recognition, a classifier for language identification."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mms_jax.config import Wav2Vec2Config
from mms_jax.models.layers import Dense, Dropout, of_rows
from mms_jax.models.wav2vec2 import Wav2Vec2Model


class CTCOutput(NamedTuple):
    """What ``Wav2Vec2ForCTC`` computes."""

    logits: Float[Array, "B T V"]  # float32, before the softmax; rows of padded frames are meaningless
    frame_mask: Bool[Array, "B T"]  # True = the frame lies in the audio
    last_hidden_state: Float[Array, "B T D"]
    hidden_states: tuple[Float[Array, "B T D"], ...] | None  # L + 1, when asked for


class Wav2Vec2ForCTC(nn.Module):
    """The encoder and a linear layer onto the vocabulary, trained with CTC (Graves et al. 2006).

    ``num_adapters`` and ``remat`` are those of ``Wav2Vec2Model``; every set of adapters has a head of its own.
    """

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32
    scan_layers: bool = False
    num_adapters: int | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        input_values: Float[Array, "B S"],
        attention_mask: Bool[Array, "B S"] | None = None,
        *,
        mask_time_indices: Bool[Array, "B T"] | None = None,
        mask_feature_indices: Bool[Array, "B D"] | None = None,
        layer_keep: Bool[Array, " L"] | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
    ) -> CTCOutput:
        """Logits for normalised waveforms [B, S]; the arguments are those of ``Wav2Vec2Model``."""
        encoded = Wav2Vec2Model(
            self.config, self.dtype, self.scan_layers, self.num_adapters, self.remat, name="wav2vec2"
        )(
            input_values,
            attention_mask,
            mask_time_indices=mask_time_indices,
            mask_feature_indices=mask_feature_indices,
            layer_keep=layer_keep,
            deterministic=deterministic,
            output_hidden_states=output_hidden_states,
        )
        x = Dropout(self.config.final_dropout, self.num_adapters)(
            encoded.last_hidden_state, deterministic=deterministic
        )
        head = of_rows(Dense, self.num_adapters)
        logits = head(self.config.vocab_size, self.dtype, nn.initializers.normal(0.02), name="lm_head")(x)
        return CTCOutput(logits, encoded.frame_mask, encoded.last_hidden_state, encoded.hidden_states)


class ClassifierOutput(NamedTuple):
    """What ``Wav2Vec2ForSequenceClassification`` computes."""

    logits: Float[Array, "B K"]  # float32, before the softmax
    frame_mask: Bool[Array, "B T"]  # True = the frame lies in the audio
    last_hidden_state: Float[Array, "B T D"]
    hidden_states: tuple[Float[Array, "B T D"], ...] | None  # L + 1, when asked for


class Wav2Vec2ForSequenceClassification(nn.Module):
    """The encoder and a classifier of whole recordings: projection, mean over time, linear layer (MMS paper §5).

    As in transformers there is no activation between the two linear maps; Meta's own head has one (gelu, by default).
    """

    config: Wav2Vec2Config
    num_labels: int
    dtype: DTypeLike = jnp.float32
    scan_layers: bool = False

    @nn.compact
    def __call__(
        self,
        input_values: Float[Array, "B S"],
        attention_mask: Bool[Array, "B S"] | None = None,
        *,
        mask_time_indices: Bool[Array, "B T"] | None = None,
        mask_feature_indices: Bool[Array, "B D"] | None = None,
        layer_keep: Bool[Array, " L"] | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
    ) -> ClassifierOutput:
        """Logits for normalised waveforms [B, S]; the arguments are those of ``Wav2Vec2Model``.

        Only valid frames are averaged. A row without any has a mean of 0, so its logits say nothing about it.
        """
        encoded = Wav2Vec2Model(self.config, self.dtype, self.scan_layers, name="wav2vec2")(
            input_values,
            attention_mask,
            mask_time_indices=mask_time_indices,
            mask_feature_indices=mask_feature_indices,
            layer_keep=layer_keep,
            deterministic=deterministic,
            output_hidden_states=output_hidden_states,
        )
        x = Dense(self.config.classifier_proj_size, self.dtype, name="projector")(encoded.last_hidden_state)
        valid = encoded.frame_mask[..., None]
        pooled = jnp.where(valid, x, 0.0).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)
        logits = Dense(self.num_labels, self.dtype, name="classifier")(pooled)
        return ClassifierOutput(logits, encoded.frame_mask, encoded.last_hidden_state, encoded.hidden_states)

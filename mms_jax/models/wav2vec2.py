"""The wav2vec 2.0 encoder (Baevski et al. 2020, arXiv 2006.11477) with the per-language adapters of MMS (2305.13516).

Two families: layer-norm features with a pre-norm ("stable") transformer, which is every MMS model, and group-norm
features with a post-norm transformer, which is wav2vec2-base. Axis letters: B batch, S samples, T frames, L layers,
D model, N heads, H head width, F feed-forward, C convolution channels.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mms_jax.config import Wav2Vec2Config
from mms_jax.models.attention import attend
from mms_jax.models.layers import (
    ACTIVATIONS,
    ChannelNorm,
    Conv,
    Dense,
    Dropout,
    LayerNorm,
    of_rows,
    weight_normed_kernel,
)
from mms_jax.models.products import conv


class EncoderOutput(NamedTuple):
    """What the encoder computes from a batch of waveforms."""

    last_hidden_state: Float[Array, "B T D"]
    frame_mask: Bool[Array, "B T"]  # True = the frame lies in the audio
    hidden_states: tuple[Float[Array, "B T D"], ...] | None  # L + 1: input of layer 0, then each layer's output


class FeatureExtractor(nn.Module):
    """Strided convolutions from waveform to frames: 7 of them, hop 320 samples, in every MMS model (paper §2)."""

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, input_values: Float[Array, "B S"]) -> Float[Array, "B T C"]:
        """Normalised waveform [B, S] to features [B, T, C]."""
        c = self.config
        x = input_values[..., None].astype(jnp.float32)
        for i, (features, kernel, stride) in enumerate(zip(c.conv_dim, c.conv_kernel, c.conv_stride, strict=True)):
            x = Conv(features, kernel, stride, c.conv_bias, self.dtype, name=f"conv_{i}")(x)
            if c.feat_extract_norm == "layer":
                x = LayerNorm(name=f"norm_{i}")(x)
            elif i == 0:
                x = ChannelNorm(name=f"norm_{i}")(x)
            x = ACTIVATIONS[c.feat_extract_activation](x)
        return x


class FeatureProjection(nn.Module):
    """Layer norm and projection of the convolutional features to the model's width."""

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32
    num_adapters: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], *, deterministic: bool) -> Float[Array, "B T D"]:
        """Features [B, T, C] to [B, T, D]."""
        x = LayerNorm(eps=self.config.layer_norm_eps, name="norm")(x)
        x = Dense(self.config.hidden_size, self.dtype, name="projection")(x)
        return Dropout(self.config.feat_proj_dropout, self.num_adapters)(x, deterministic=deterministic)


class PositionalConv(nn.Module):
    """Convolutional relative position embedding (paper §2), weight-normalised over all axes but the kernel's.

    An even kernel with half its width of padding on both sides gives one frame too many: the last one is dropped.
    """

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Position embedding of ``x`` [B, T, D], to be added to it."""
        c = self.config
        width, groups = c.num_conv_pos_embeddings, c.num_conv_pos_embedding_groups
        kernel = weight_normed_kernel(self, (width, c.hidden_size // groups, c.hidden_size), gains=0)
        bias = self.param("bias", nn.initializers.zeros, (c.hidden_size,))
        num_frames = x.shape[1]
        padding = (width // 2, width // 2)
        x = conv(x, kernel, dtype=self.dtype, padding=padding, groups=groups)[:, :num_frames]
        return ACTIVATIONS[c.feat_extract_activation](x + bias.astype(jnp.float32))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) over the valid frames, unmasked in time."""

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32
    num_adapters: int | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], frame_mask: Bool[Array, "B T"], *, deterministic: bool
    ) -> Float[Array, "B T D"]:
        """Attend from every frame of ``x`` [B, T, D] to the frames where ``frame_mask`` [B, T] is True."""
        c = self.config

        def project(name: str) -> jax.Array:
            heads = Dense(c.hidden_size, self.dtype, name=name)(x)
            return heads.reshape(*x.shape[:2], c.num_attention_heads, c.head_dim)

        query, key, value = project("q") * c.head_dim**-0.5, project("k"), project("v")
        dropout = None
        if c.attention_dropout and not deterministic:
            dropout = functools.partial(Dropout(c.attention_dropout, self.num_adapters), deterministic=False)
        context = attend(query, key, value, frame_mask, dtype=self.dtype, dropout=dropout)
        return Dense(c.hidden_size, self.dtype, name="out")(context)


class FeedForward(nn.Module):
    """Position-wise two-layer network of width F."""

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32
    num_adapters: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, deterministic: bool) -> Float[Array, "B T D"]:
        """Apply to every frame of ``x`` [B, T, D]; same shape."""
        c = self.config
        h = ACTIVATIONS[c.hidden_act](Dense(c.intermediate_size, self.dtype, name="up")(x))
        h = Dropout(c.activation_dropout, self.num_adapters)(h, deterministic=deterministic)
        h = Dense(c.hidden_size, self.dtype, name="down")(h)
        return Dropout(c.hidden_dropout, self.num_adapters)(h, deterministic=deterministic)


class Adapter(nn.Module):
    """Per-language bottleneck after a transformer layer's feed-forward block (MMS paper §4; Houlsby et al. 2019).

    Its norm uses torch's default epsilon, not the config's, as the original does.
    """

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch T D"]) -> Float[Array, "*batch T D"]:
        """Adapt ``x`` [..., T, D], residual included."""
        bottleneck = self.config.adapter_attn_dim
        assert bottleneck is not None, "the config has no adapters"
        init = nn.initializers.normal(0.02)
        h = LayerNorm(name="norm")(x)
        h = nn.relu(Dense(bottleneck, self.dtype, init, name="down")(h))
        return x + Dense(self.config.hidden_size, self.dtype, init, name="up")(h)


class Layer(nn.Module):
    """One transformer layer: pre-norm with an optional adapter, or post-norm (never with one)."""

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32
    num_adapters: int | None = None
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        frame_mask: Bool[Array, "B T"],
        keep: Bool[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """Apply to ``x`` [B, T, D], or pass it through where ``keep`` is False; returns (carry, output) for a scan."""
        c, deterministic = self.config, self.deterministic
        norm = LayerNorm(eps=c.layer_norm_eps, name="norm")
        final_norm = LayerNorm(eps=c.layer_norm_eps, name="final_norm")
        attention = Attention(c, self.dtype, self.num_adapters, name="attention")
        feed_forward = FeedForward(c, self.dtype, self.num_adapters, name="feed_forward")
        dropout = Dropout(c.hidden_dropout, self.num_adapters)
        h = norm(x) if c.do_stable_layer_norm else x
        h = x + dropout(attention(h, frame_mask, deterministic=deterministic), deterministic=deterministic)
        if c.do_stable_layer_norm:
            h = h + feed_forward(final_norm(h), deterministic=deterministic)
            if c.has_adapters:
                h = of_rows(Adapter, self.num_adapters)(c, self.dtype, name="adapter")(h)
        else:
            h = norm(h)
            h = final_norm(h + feed_forward(h, deterministic=deterministic))
        if keep is not None:  # layerdrop (Fan et al. 2019): a select, so that every process runs the same graph
            h = jnp.where(keep, h, x)
        return h, h


class Encoder(nn.Module):
    """Positional convolution and transformer layers, unrolled or scanned (one compilation for all of them)."""

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32
    scan_layers: bool = False
    num_adapters: int | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        frame_mask: Bool[Array, "B T"],
        *,
        layer_keep: Bool[Array, " L"] | None,
        deterministic: bool,
        output_hidden_states: bool,
    ) -> EncoderOutput:
        """Encode projected features ``x`` [B, T, D]; frames where ``frame_mask`` is False influence no other."""
        c = self.config
        x = jnp.where(frame_mask[..., None], x, 0.0)  # before the convolution, which would spread what is there
        x = x + PositionalConv(c, self.dtype, name="pos_conv")(x)
        norm = LayerNorm(eps=c.layer_norm_eps, name="norm")
        x = x if c.do_stable_layer_norm else norm(x)
        x = Dropout(c.hidden_dropout, self.num_adapters)(x, deterministic=deterministic)
        layer = functools.partial(self._layer(), c, self.dtype, self.num_adapters, deterministic)
        if self.scan_layers:
            last, outputs = layer(name="layers")(x, frame_mask, layer_keep)
        else:
            last, outputs = x, []
            for i in range(c.num_hidden_layers):
                keep = None if layer_keep is None else layer_keep[i]
                last, output = layer(name=f"layers_{i}")(last, frame_mask, keep)
                outputs.append(output)
        hidden_states = (x, *outputs) if output_hidden_states else None
        return EncoderOutput(norm(last) if c.do_stable_layer_norm else last, frame_mask, hidden_states)

    def _layer(self) -> Any:
        """A module for each layer, or one for all of them."""
        if not self.scan_layers:
            return nn.remat(Layer) if self.remat else Layer
        in_axes: Any = (nn.broadcast, 0)  # where keep is None it has no leaves, and there is nothing to scan over
        # In a loop nothing can be merged with the forward pass, so no barrier against that is needed.
        return nn.scan(
            nn.remat(Layer, prevent_cse=False) if self.remat else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=in_axes,
            length=self.config.num_hidden_layers,
        )


class Wav2Vec2Model(nn.Module):
    """The encoder from normalised waveform to hidden states; ``dtype`` is that of matrix-product operands.

    With ``num_adapters`` there are so many sets of adapters, each for an equal share of consecutive rows: their
    parameters have a leading axis of that length (behind that of layers, if these are scanned). ``remat`` computes
    every layer anew on the way back instead of keeping what is within it.
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
    ) -> EncoderOutput:
        """Encode normalised 16 kHz waveforms.

        Args:
            input_values: float [B, S], S ≥ ``config.min_samples``; right-padded.
            attention_mask: bool [B, S], True = valid sample; None = all valid.
            mask_time_indices: bool [B, T], True = replace the frame by ``masked_spec_embed`` (SpecAugment in time).
            mask_feature_indices: bool [B, D], True = zero that channel of the row (SpecAugment in frequency).
            layer_keep: bool [L], False = skip the layer (layerdrop); the graph is the same whatever is dropped.
            deterministic: False = dropout at the config's rates, with an ``rngs={"dropout": key}``.
            output_hidden_states: whether to return the input of layer 0 and every layer's output.
        """
        c = self.config
        if input_values.shape[-1] < c.min_samples:
            raise ValueError(f"{input_values.shape[-1]} samples give no frame; pad to at least {c.min_samples}")
        x = FeatureExtractor(c, self.dtype, name="feature_extractor")(input_values)
        frame_mask = _frame_mask(c, attention_mask, x.shape[:2])
        x = FeatureProjection(c, self.dtype, self.num_adapters, name="feature_projection")(
            x, deterministic=deterministic
        )
        if mask_time_indices is not None or (self.is_initializing() and c.has_spec_embed):
            embed = self.param("masked_spec_embed", nn.initializers.uniform(1.0), (c.hidden_size,))
            if mask_time_indices is not None:
                x = jnp.where(mask_time_indices[..., None], embed.astype(x.dtype), x)
        if mask_feature_indices is not None:
            x = jnp.where(mask_feature_indices[:, None, :], 0.0, x)
        return Encoder(c, self.dtype, self.scan_layers, self.num_adapters, self.remat, name="encoder")(
            x,
            frame_mask,
            layer_keep=layer_keep,
            deterministic=deterministic,
            output_hidden_states=output_hidden_states,
        )


def _frame_mask(config: Wav2Vec2Config, attention_mask: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """Bool [B, T]: the frames that lie wholly in the valid samples. A row shorter than one frame has none."""
    if attention_mask is None:
        return jnp.ones(shape, dtype=bool)
    num_frames = config.num_frames(attention_mask.sum(axis=-1, dtype=jnp.int32))
    return jnp.arange(shape[1]) < num_frames[:, None]

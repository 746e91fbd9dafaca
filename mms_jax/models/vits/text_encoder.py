"""The text encoder (Kim et al. 2021, arXiv 2106.06103, §2.2.2 and appendix B.2): symbols to the prior's statistics.

A post-norm transformer whose attention knows relative positions within a window (Shaw et al. 2018) and whose
feed-forward blocks are convolutions. Always float32: it costs 0.5 % of a synthesis, and durations come of it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mms_jax.config import VitsConfig
from mms_jax.models.layers import ACTIVATIONS, MASKED_SCORE, Conv, Dense, LayerNorm, same_padding, softmax
from mms_jax.models.products import einsum

exact = functools.partial(einsum, dtype=jnp.float32)


class TextEncoding(NamedTuple):
    """What the encoder knows of every symbol."""

    hidden: Float[Array, "B U D"]
    means: Float[Array, "B U C"]
    log_variances: Float[Array, "B U C"]  # as the paper and the original name it; noise is scaled by its exponential


class RelativeAttention(nn.Module):
    """Multi-head self-attention with embeddings of the relative position, up to ``window_size`` either way."""

    config: VitsConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"], mask: Bool[Array, "B U"]) -> Float[Array, "B U D"]:
        """Attend from every symbol of ``x`` [B, U, D] to those where ``mask`` [B, U] is True."""
        c = self.config
        table_shape = (1, 2 * c.window_size + 1, c.head_dim)  # shared by all heads
        init = nn.initializers.normal(c.head_dim**-0.5)
        key_table = self.param("emb_rel_k", init, table_shape)[0]
        value_table = self.param("emb_rel_v", init, table_shape)[0]
        deterministic = not self.has_rng("dropout")
        query, key, value = (self._heads(name, x) for name in ("q", "k", "v"))
        query = query * c.head_dim**-0.5
        scores = exact("bnuh,bnvh->bnuv", query, key)
        scores = scores + self._by_offset(exact("bnuh,rh->bnur", query, key_table))
        scores = scores + jnp.where(mask, 0.0, MASKED_SCORE)[:, None, None, :]
        weights = softmax(scores)
        weights = nn.Dropout(c.attention_dropout, deterministic=deterministic)(weights)
        context = exact("bnuv,bnvh->bnuh", weights, value)
        context = context + exact("bnur,rh->bnuh", self._in_window(weights), value_table)
        context = context.swapaxes(1, 2).reshape(x.shape)
        return Dense(c.hidden_size, use_bias=c.use_bias, name="out")(context)

    def _heads(self, name: str, x: Float[Array, "B U D"]) -> Float[Array, "B N U H"]:
        c = self.config
        x = Dense(c.hidden_size, use_bias=c.use_bias, name=name)(x)
        return x.reshape(*x.shape[:2], c.num_attention_heads, c.head_dim).swapaxes(1, 2)

    def _by_offset(self, scores: Float[Array, "B N U R"]) -> Float[Array, "B N U U"]:
        """Spread scores of relative positions -w…w to absolute ones; 0 beyond the window."""
        window, symbols = self.config.window_size, jnp.arange(scores.shape[2])
        offset = symbols - symbols[:, None]  # of the key from the query
        index = jnp.clip(offset + window, 0, 2 * window)
        spread = jnp.take_along_axis(scores, index[None, None], axis=-1)
        return jnp.where(jnp.abs(offset) <= window, spread, 0.0)

    def _in_window(self, weights: Float[Array, "B N U U"]) -> Float[Array, "B N U R"]:
        """The attention weights at the relative positions -w…w; 0 beyond either end of the text."""
        window, num_symbols = self.config.window_size, weights.shape[2]
        padded = jnp.pad(weights, ((0, 0), (0, 0), (0, 0), (window, window)))
        index = jnp.arange(num_symbols)[:, None] + jnp.arange(2 * window + 1)
        return jnp.take_along_axis(padded, index[None, None], axis=-1)


class ConvFeedForward(nn.Module):
    """Two convolutions of unchanged length with an activation between them."""

    config: VitsConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"], mask: Bool[Array, "B U"]) -> Float[Array, "B U D"]:
        """Apply to ``x`` [B, U, D]; masked symbols are taken as zero and become zero."""
        c = self.config
        valid, padding = mask[..., None], same_padding(c.ffn_kernel_size)
        x = jnp.where(valid, x, 0.0)
        x = ACTIVATIONS[c.hidden_act](Conv(c.ffn_dim, c.ffn_kernel_size, padding=padding, name="conv_1")(x))
        x = nn.Dropout(c.activation_dropout, deterministic=not self.has_rng("dropout"))(x)
        x = Conv(c.hidden_size, c.ffn_kernel_size, padding=padding, name="conv_2")(jnp.where(valid, x, 0.0))
        return jnp.where(valid, x, 0.0)


class EncoderLayer(nn.Module):
    """One post-norm transformer layer."""

    config: VitsConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"], mask: Bool[Array, "B U"]) -> Float[Array, "B U D"]:
        """Apply to ``x`` [B, U, D]; masked symbols influence no other."""
        c = self.config
        dropout = nn.Dropout(c.hidden_dropout, deterministic=not self.has_rng("dropout"))
        x = LayerNorm(eps=c.layer_norm_eps, name="norm")(x + dropout(RelativeAttention(c, name="attention")(x, mask)))
        h = ConvFeedForward(c, name="feed_forward")(x, mask)
        return LayerNorm(eps=c.layer_norm_eps, name="final_norm")(x + dropout(h))


class TextEncoder(nn.Module):
    """Embedding, transformer, and the projection to mean and log-variance of every symbol's prior."""

    config: VitsConfig

    @nn.compact
    def __call__(self, input_ids: Int[Array, "B U"], mask: Bool[Array, "B U"]) -> TextEncoding:
        """Encode symbols [B, U]; where ``mask`` is False everything returned is zero."""
        c = self.config
        valid = mask[..., None]
        table = self.param("embed_tokens", nn.initializers.normal(c.hidden_size**-0.5), (c.vocab_size, c.hidden_size))
        x = jnp.where(valid, table.astype(jnp.float32)[input_ids] * math.sqrt(c.hidden_size), 0.0)
        for i in range(c.num_hidden_layers):
            x = EncoderLayer(c, name=f"layers_{i}")(x, mask)
        x = jnp.where(valid, x, 0.0)
        statistics = jnp.where(valid, Dense(2 * c.flow_size, name="project")(x), 0.0)
        return TextEncoding(x, *jnp.split(statistics, 2, axis=-1))

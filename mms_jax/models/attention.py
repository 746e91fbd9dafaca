"""Scaled dot-product attention over valid frames (Vaswani et al. 2017): as plain products, or fused by cuDNN.

cuDNN never writes the scores [B, N, T, S] down, which for long rows is most of what attention costs on a GPU, and skips
the padding of every row. It takes operands of 16 bits only and drops no weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mms_jax.models.layers import MASKED_SCORE, softmax
from mms_jax.models.products import einsum, operand_dtype

# Frames from which cuDNN is used. An estimate: up to here XLA's products are said to be as fast;
# experiments/benchmarks/gpu.sh measures where the lines cross.
CUDNN_FRAMES = 512
# Bytes of all scores, from which CPUs take one head after the other: 29 s in 6.3 s instead of 9.7, 10 s no faster.
LARGE_SCORES = 32 << 20
_CUDNN_HEAD_WIDTHS = range(8, 129, 8)  # what every GPU since Ampere takes
_CUDNN_CAPABILITY = 8.0  # Ampere


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    frame_mask: Bool[Array, "B T"],
    *,
    dtype: DTypeLike,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> Float[Array, "B T D"]:
    """Context of every frame, heads side by side (D = N·H), float32.

    Args:
        query: scaled already.
        key: one for each frame.
        value: likewise.
        frame_mask: True = a frame to be attended to; in every row these come first.
        dtype: of the products' operands.
        dropout: of the weights float32 [B, N, T, T]; None: they are all kept.
    """
    products = functools.partial(_attend_by_products, dtype=dtype, dropout=dropout)
    ways: dict[str, Callable[..., jax.Array]] = {}
    if dropout is None and _is_large(query):
        ways["cpu"] = functools.partial(_attend_by_head, dtype=dtype)
    if dropout is None and _cudnn_serves(query, dtype):
        ways["cuda"] = functools.partial(attend_fused, dtype=dtype, implementation="cudnn")
    arguments = query, key, value, frame_mask
    # By where it runs, not by what there is: a process with a GPU may compute on its CPU (jax.default_device).
    return lax.platform_dependent(*arguments, **ways, default=products) if ways else products(*arguments)


def _is_large(query: jax.Array) -> bool:
    """Whether the scores of all heads are many bytes."""
    batch, frames, heads, _ = query.shape
    return 4 * batch * heads * frames**2 >= LARGE_SCORES


def _attend_by_products(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    frame_mask: jax.Array,
    *,
    dtype: DTypeLike,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    scores = einsum("btnh,bsnh->bnts", query, key, dtype=dtype)
    scores = scores + jnp.where(frame_mask, 0.0, MASKED_SCORE)[:, None, None, :]
    weights = softmax(scores)
    weights = weights if dropout is None else dropout(weights)
    context = einsum("bnts,bsnh->bnth", weights, value, dtype=dtype)
    # [B, N, T, H] to [B, T, D] head by head: XLA's transpose takes as long as the product before it on CPUs
    return jnp.concatenate([context[:, n] for n in range(context.shape[1])], axis=-1)


def _attend_by_head(
    query: jax.Array, key: jax.Array, value: jax.Array, frame_mask: jax.Array, *, dtype: DTypeLike
) -> jax.Array:
    """One head after the other, whose scores stay in the processor's cache; gradients are those of all at once."""
    products = functools.partial(_attend_by_products, dtype=dtype)

    @jax.custom_vjp
    def by_head(query: jax.Array, key: jax.Array, value: jax.Array, frame_mask: jax.Array) -> jax.Array:
        def one(heads: tuple[jax.Array, ...]) -> jax.Array:
            query, key, value = (head[:, :, None] for head in heads)
            return products(query, key, value, frame_mask)

        context = lax.map(one, tuple(jnp.moveaxis(x, 2, 0) for x in (query, key, value)))
        return jnp.moveaxis(context, 0, 2).reshape(*query.shape[:2], -1)

    def forward(*arguments: jax.Array) -> tuple[jax.Array, Callable[..., Any]]:
        return jax.vjp(products, *arguments)  # the gradient of a loop would stack what every turn of it keeps

    by_head.defvjp(forward, lambda backward, cotangent: backward(cotangent))
    return by_head(query, key, value, frame_mask)


def attend_fused(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    frame_mask: Bool[Array, "B T"],
    *,
    dtype: DTypeLike,
    implementation: Literal["xla", "cudnn"],
) -> Float[Array, "B T D"]:
    """The same by ``jax.nn.dot_product_attention``, whose ``implementation`` "cudnn" is the one kernel.

    A row without frames attends to its first, which nobody reads: cuDNN has no answer for no keys.
    """
    query, key, value = (x.astype(operand_dtype(dtype)) for x in (query, key, value))
    num_frames = jnp.maximum(frame_mask.sum(axis=-1, dtype=jnp.int32), 1)
    context = jax.nn.dot_product_attention(
        query, key, value, scale=1.0, key_value_seq_lengths=num_frames, implementation=implementation
    )
    return context.reshape(*query.shape[:2], -1).astype(jnp.float32)


def _cudnn_serves(query: jax.Array, dtype: DTypeLike) -> bool:
    """Whether there is such a kernel for these operands here, and it is worth having."""
    if jax.default_backend() != "gpu" or operand_dtype(dtype) == jnp.float32 or query.shape[1] < CUDNN_FRAMES:
        return False
    device = jax.devices()[0]
    is_cuda = "cuda" in device.client.platform_version  # not ROCm
    return is_cuda and float(device.compute_capability) >= _CUDNN_CAPABILITY and query.shape[-1] in _CUDNN_HEAD_WIDTHS

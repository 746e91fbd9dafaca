"""Matrix products and convolutions. Their numerics are decided here, once.

``dtype`` is the dtype of operands; products accumulate in float32 and are returned in float32, whatever it is. On CPUs
with AMX this is what makes bfloat16 fast: bfloat16 operands with a bfloat16 result are computed in float32 there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

FEWEST_CHANNELS = 16  # of a strided convolution for which products are faster
FEWEST_TAPS = 16  # of a convolution in groups, likewise
TAPS_AT_ONCE = 8


def operand_dtype(dtype: DTypeLike) -> np.dtype:
    """What operands of products are taken as, where a kernel is not stored in int8."""
    return jnp.dtype(jnp.bfloat16 if jnp.dtype(dtype) == jnp.int8 else dtype)


def precision_of(dtype: DTypeLike) -> lax.Precision:
    """Float32 means float32: by default GPUs would use TF32 and TPUs bfloat16 for it, and parity would be lost."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def matmul(x: Float[Array, "*batch I"], kernel: Float[Array, "I O"], *, dtype: DTypeLike) -> Float[Array, "*batch O"]:
    """``x @ kernel`` with operands of ``dtype``, accumulated and returned in float32."""
    rows = einsum("ni,io->no", x.reshape(-1, x.shape[-1]), kernel, dtype=dtype)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def einsum(subscripts: str, x: jax.Array, y: jax.Array, *, dtype: DTypeLike) -> jax.Array:
    """``jnp.einsum`` of two operands, taken as ``dtype``, accumulated and returned in float32; so are its gradients.

    Every index must be in two of the three terms.
    """
    dtype = operand_dtype(dtype)
    return (_einsum if dtype == jnp.float32 else _narrow_einsum)(subscripts, dtype, x, y)


def _einsum(subscripts: str, dtype: DTypeLike, x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(subscripts, x, y, precision=precision_of(dtype), preferred_element_type=jnp.float32)


# By itself the gradient of a product of bfloat16 would be one of float32, the cotangent's dtype: 5x slower on CPUs with
# AMX, 8x on GPUs. So the cotangent is taken as the operands' dtype, too. What only the gradient of a frozen operand
# would need is not kept.
_narrow_einsum = jax.custom_vjp(_einsum, nondiff_argnums=(0, 1))


def _narrow_forward(subscripts: str, dtype: DTypeLike, x: Any, y: Any) -> tuple[jax.Array, Any]:
    kept = (
        x.value.astype(dtype) if y.perturbed else None,
        y.value.astype(dtype) if x.perturbed else None,
        jnp.zeros((0,), x.value.dtype),  # for their dtypes: gradients must have the same
        jnp.zeros((0,), y.value.dtype),
    )
    return _einsum(subscripts, dtype, x.value, y.value), kept


def _narrow_backward(subscripts: str, dtype: DTypeLike, kept: Any, cotangent: Any) -> tuple[Any, Any]:
    x, y, x_like, y_like = kept
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None
    operands, result = subscripts.split("->")
    of_x, of_y = operands.split(",")
    x_bar = None if y is None else _einsum(f"{result},{of_y}->{of_x}", dtype, cotangent, y).astype(x_like.dtype)
    # The cotangent first here, too: for attention's bfloat16 scores the other order is one that jaxlib 0.10.2 compiles
    # for CPUs to a product it does not have.
    y_bar = None if x is None else _einsum(f"{result},{of_x}->{of_y}", dtype, cotangent, x).astype(y_like.dtype)
    return x_bar, y_bar


_narrow_einsum.defvjp(_narrow_forward, _narrow_backward, symbolic_zeros=True)


def conv(
    x: Float[Array, "B S I"],
    kernel: Float[Array, "K J O"],
    *,
    dtype: DTypeLike,
    stride: int = 1,
    dilation: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Float[Array, "B T O"]:
    """1-D convolution, channels last, ``padding`` zeros before and behind; operands of ``dtype``, result float32.

    Gradients are computed in float32.
    """
    dtype = operand_dtype(dtype)
    run = functools.partial(_conv, stride=stride, dilation=dilation, padding=padding, groups=groups)
    if dtype == jnp.float32:
        return run(x, kernel, jnp.float32)
    narrow = functools.partial(run, dtype=dtype)
    if stride > 1 and groups == dilation == 1 and padding == (0, 0) and x.shape[-1] >= FEWEST_CHANNELS:
        products = functools.partial(_strided_products, dtype=dtype, stride=stride)
        narrow = functools.partial(_by_platform, cpu=products, default=narrow)
    elif groups > 1 and stride == dilation == 1 and len(kernel) >= FEWEST_TAPS:
        products = functools.partial(_grouped_products, dtype=dtype, padding=padding, groups=groups)
        narrow = functools.partial(_by_platform, cpu=products, cuda=products, default=narrow)
    narrow = jax.custom_vjp(narrow)

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
        return narrow(x, kernel), (x, kernel)

    def backward(kept: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        rounded = (operand.astype(dtype).astype(jnp.float32) for operand in kept)
        gradients = jax.vjp(functools.partial(run, dtype=jnp.float32), *rounded)[1](cotangent)
        return tuple(gradient.astype(operand.dtype) for gradient, operand in zip(gradients, kept, strict=True))

    narrow.defvjp(forward, backward)
    return narrow(x, kernel)


def _conv(
    x: jax.Array,
    kernel: jax.Array,
    dtype: DTypeLike,
    *,
    stride: int,
    dilation: int,
    padding: tuple[int, int],
    groups: int,
) -> jax.Array:
    return lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        window_strides=(stride,),
        padding=[padding],
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
        precision=precision_of(dtype),
        preferred_element_type=jnp.float32,
    )


def _by_platform(x: jax.Array, kernel: jax.Array, **ways: Callable[..., jax.Array]) -> jax.Array:
    """Products where they are faster: CPUs compute convolutions of bfloat16 in float32, GPUs have few with groups."""
    return lax.platform_dependent(x, kernel, **ways)


def _strided_products(x: jax.Array, kernel: jax.Array, *, dtype: DTypeLike, stride: int) -> jax.Array:
    """A convolution as a product for every ``stride`` taps, whose frames lie side by side; what is left is gathered."""
    num_taps, _, features = kernel.shape
    num_frames = (x.shape[1] - num_taps) // stride + 1
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    result = jnp.zeros((), jnp.float32)
    for first in range(0, num_taps, stride):
        taps = kernel[first : first + stride]
        if len(taps) == stride:
            frames = x[:, first : first + stride * num_frames]
        else:
            every = [x[:, tap::stride][:, :num_frames] for tap in range(first, num_taps)]
            frames = jnp.concatenate(every, axis=-1)
        rows = frames.reshape(x.shape[0] * num_frames, -1)
        result += jnp.matmul(rows, taps.reshape(-1, features), preferred_element_type=jnp.float32)
    return result.reshape(x.shape[0], num_frames, features)


def _grouped_products(
    x: jax.Array, kernel: jax.Array, *, dtype: DTypeLike, padding: tuple[int, int], groups: int
) -> jax.Array:
    """A convolution in groups as a product for every few taps, whose frames are laid side by side once for all.

    For a product with a single tap a group has too few channels to sum over.
    """
    num_taps, width, features = kernel.shape
    surplus = -num_taps % TAPS_AT_ONCE
    num_products = (num_taps + surplus) // TAPS_AT_ONCE
    num_frames = x.shape[1] + sum(padding) - num_taps + 1
    x = jnp.pad(x.astype(dtype), ((0, 0), (padding[0], padding[1] + surplus), (0, 0)))
    x = x.reshape(*x.shape[:2], groups, width).transpose(2, 0, 1, 3)
    length = x.shape[2] - TAPS_AT_ONCE + 1
    beside = jnp.stack([x[:, :, tap : tap + length] for tap in range(TAPS_AT_ONCE)], axis=3)
    beside = beside.reshape(groups, -1, length, TAPS_AT_ONCE * width)
    kernel = jnp.pad(kernel.astype(dtype), ((0, surplus), (0, 0), (0, 0)))
    kernel = kernel.reshape(num_products, TAPS_AT_ONCE * width, groups, -1).transpose(0, 2, 1, 3)
    result = jnp.zeros((), jnp.float32)
    for number, taps in enumerate(kernel):
        frames = beside[:, :, number * TAPS_AT_ONCE :][:, :, :num_frames]
        result += jnp.einsum("gbtk,gko->gbto", frames, taps, preferred_element_type=jnp.float32)
    return result.transpose(1, 2, 0, 3).reshape(-1, num_frames, features)

"""The few layers all models are built of: one Dense, one LayerNorm, the convolutions, the activations.

``dtype`` is the dtype of matrix-product operands (products.py); everything between products (norms, softmax, residual
stream) is float32, whatever ``dtype`` is. Kernels that are stored in int8 are multiplied in int8; with ``dtype`` int8
all other products are bfloat16's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mms_jax.models.int8 import int8_matmul
from mms_jax.models.products import conv, einsum, matmul
from mms_jax.models.trees import Params, flatten, unflatten

TORCH_NORM_EPS = 1e-5  # torch.nn.LayerNorm's and GroupNorm's default, used where the original passes no epsilon
MASKED_SCORE = jnp.finfo(
    jnp.float32
).min  # added to attention scores of padded keys; finite, so a row without keys is too


# GELU, softmax and norms have gradients of their own, which keep one array where differentiation by itself keeps
# several: with scanned layers less than half of the memory, and on CPUs 15 % of a small model's step.


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU, x·Φ(x) (Hendrycks & Gimpel 2016), through erf as torch computes it."""
    return 0.5 * x * (1.0 + lax.erf(x * 0.7071067811865476))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    slope = 0.5 * (1.0 + lax.erf(x * 0.7071067811865476)) + x * jnp.exp(-0.5 * x * x) * 0.3989422804014327
    return gelu(x), slope


gelu.defvjp(_gelu_forward, lambda slope, cotangent: (cotangent * slope,))


@jax.custom_vjp
def softmax(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Softmax over the last axis."""
    return jax.nn.softmax(x, axis=-1)


def _softmax_backward(weights: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    by_weight = weights * cotangent
    return (by_weight - weights * by_weight.sum(axis=-1, keepdims=True),)


softmax.defvjp(lambda x: (softmax(x),) * 2, _softmax_backward)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Dense(nn.Module):
    """Affine map of the last axis: ``x @ kernel + bias``; an int8 kernel has a ``kernel_scale`` float32 [features]."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        """Apply to ``x`` [..., I]; returns float32 [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if kernel.dtype == jnp.int8:
            x = int8_matmul(x, kernel, self.param("kernel_scale", nn.initializers.ones, (self.features,)))
        else:
            x = matmul(x, kernel, dtype=self.dtype)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(jnp.float32)
        return x


def of_rows(module: Callable[..., nn.Module], sets: int | None) -> Callable[..., Callable[[jax.Array], jax.Array]]:
    """A module with ``sets`` sets of parameters, each for an equal share of consecutive rows; None: one for all rows.

    Its parameters have a leading axis of ``sets``, which must divide the number of rows.
    """
    if sets is None:
        return module
    many = nn.vmap(module, variable_axes={"params": 0}, split_rngs={"params": True})

    def make(*arguments: Any, **options: Any) -> Callable[[jax.Array], jax.Array]:
        instance = many(*arguments, **options)

        def apply(x: jax.Array) -> jax.Array:
            y: Any = instance(x.reshape(sets, -1, *x.shape[1:]))
            return y.reshape(x.shape[0], *y.shape[2:])

        return apply

    return make


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) of hidden states or attention's weights.

    What is dropped depends on the key, a row's place among the rows of its set and the frames alone: neither on how far
    the batch is padded nor on the other ``sets`` of rows, which drop the same. So a language's training is what it
    would be alone.
    """

    rate: float
    sets: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B *middle S D"], *, deterministic: bool) -> Float[Array, "B *middle S D"]:
        """Apply to ``x`` [B, T, D] or [B, N, T, S]; needs an rng named "dropout" unless ``deterministic``."""
        if deterministic or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        sets, num_frames = self.sets or 1, x.shape[-2]
        keys = jax.vmap(functools.partial(jax.random.fold_in, self.make_rng("dropout")))(jnp.arange(num_frames))
        # With a key for each frame, and of weights those of the other frames first, more frames only add draws.
        others = (*x.shape[1:-2], x.shape[0] // sets)
        others = (x.shape[-1], *others) if x.ndim == 4 else (*others, x.shape[-1])
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, others))(keys)
        keep = keep.transpose(3, 2, 0, 1) if x.ndim == 4 else keep.transpose(1, 0, 2)
        return jnp.where(jnp.concatenate([keep] * sets), x / (1 - self.rate), 0)


def same_padding(kernel_size: int, *, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and behind that keep a convolution's length; an even kernel has one more behind."""
    total = (kernel_size - 1) * dilation
    return total // 2, total - total // 2


class Conv(nn.Module):
    """1-D convolution, channels last."""

    features: int
    kernel_size: int
    stride: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Float[Array, "B S I"]) -> Float[Array, "B T O"]:
        """Apply to ``x`` [B, S, I]; returns float32 [B, (S + padding - kernel_size) // stride + 1, features]."""
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        x = conv(x, kernel, dtype=self.dtype, stride=self.stride, padding=self.padding)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(jnp.float32)
        return x


def weight_norm(v: Float[Array, "*shape"], g: Float[Array, "*gains"]) -> Float[Array, "*shape"]:
    """``g * v / |v|``, float32 (Salimans & Kingma 2016); the norm runs over the axes along which ``g`` has length 1."""
    axes = tuple(axis for axis, size in enumerate(g.shape) if size == 1)
    v = v.astype(jnp.float32)
    return v * (g.astype(jnp.float32) * lax.rsqrt(jnp.square(v).sum(axes, keepdims=True)))


def weight_normed_kernel(module: nn.Module, shape: tuple[int, ...], *, gains: int) -> jax.Array:
    """A convolution's kernel as its module's ``kernel_v`` and ``kernel_g`` give it, with gains along one axis.

    In a tree from ``fold_weight_norm`` it is the parameter ``kernel``.
    """
    init = nn.initializers.lecun_normal()
    if module.has_variable("params", "kernel"):
        return module.param("kernel", init, shape)
    others = tuple(axis for axis in range(len(shape)) if axis != gains)
    v = module.param("kernel_v", init, shape)
    g = module.param("kernel_g", lambda _: jnp.linalg.norm(v, axis=others, keepdims=True))
    return weight_norm(v, g)


def fold_weight_norm(params: Mapping[str, Any]) -> Params:
    """A tree whose weight-normed kernels are computed once, in the dtype they have: for use, not for training."""
    flat = flatten(params)
    folded = {path: leaf for path, leaf in flat.items() if not path.endswith(("/kernel_g", "/kernel_v"))}
    for path, v in flat.items():
        head, _, name = path.rpartition("/")
        if name == "kernel_v":
            folded[f"{head}/kernel"] = weight_norm(v, flat[f"{head}/kernel_g"]).astype(v.dtype)
    return unflatten(folded)


def standardize(x: Float[Array, "*shape"], *, axis: int, eps: float) -> Float[Array, "*shape"]:
    """Zero mean and unit variance along ``axis``, in two passes: E[x²] - E[x]² cancels for nearly constant input."""
    return _standardize(axis, eps, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _standardize(axis: int, eps: float, x: jax.Array) -> jax.Array:
    return _standardize_forward(axis, eps, x)[0]


def _standardize_forward(axis: int, eps: float, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    centred = x - x.mean(axis=axis, keepdims=True)
    factor = lax.rsqrt(jnp.square(centred).mean(axis=axis, keepdims=True) + eps)
    result = centred * factor
    return result, (result, factor)


def _standardize_backward(axis: int, _: float, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> Any:
    result, factor = kept
    along = (result * cotangent).mean(axis=axis, keepdims=True)
    return (factor * (cotangent - cotangent.mean(axis=axis, keepdims=True) - result * along),)


_standardize.defvjp(_standardize_forward, _standardize_backward)


class Norm(nn.Module):
    """Standardise along ``axis``, then scale and shift per channel (the last axis)."""

    axis: int = -1
    eps: float = TORCH_NORM_EPS

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Apply to float32 ``x`` [..., D]; same shape and dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return _affine(standardize(x, axis=self.axis, eps=self.eps), scale.astype(x.dtype), bias.astype(x.dtype))


@jax.custom_vjp
def _affine(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return x * scale + bias


def _affine_backward(kept: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, ...]:
    x, scale = kept
    return cotangent * scale, _sum_of_rows(cotangent * x), _sum_of_rows(cotangent)


def _sum_of_rows(x: jax.Array) -> jax.Array:
    """Sum over all axes but the last, as a product: along columns XLA's own sums are several times slower on CPUs."""
    rows = x.reshape(-1, x.shape[-1])
    return einsum("ni,no->io", jnp.ones((len(rows), 1)), rows, dtype=jnp.float32)[0]


_affine.defvjp(lambda x, scale, bias: (_affine(x, scale, bias), (x, scale)), _affine_backward)


def LayerNorm(*, eps: float = TORCH_NORM_EPS, name: str) -> Norm:  # noqa: N802 - the field's name for it
    """Layer normalisation over channels (Ba et al. 2016)."""
    return Norm(axis=-1, eps=eps, name=name)


def ChannelNorm(*, name: str) -> Norm:  # noqa: N802
    """Group normalisation with one group per channel (Wu & He 2018): statistics over time, padding included."""
    return Norm(axis=-2, name=name)

"""Convolutions that are computed as products: the same numbers, whatever kernel, stride and length."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.models.layers import Dense
from mms_jax.models.products import FEWEST_CHANNELS, FEWEST_TAPS, conv
from tests.parity import relative_error

SAME = 1e-5  # bfloat16 operands on both sides, their products summed in float32 in another order


def operands(rows: int, size: int, taps: int, channels: int, *, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((rows, size, channels), np.float32)), jnp.asarray(
        rng.standard_normal((taps, channels, 24), np.float32)
    )


def rounded(*arrays: jax.Array) -> list[jax.Array]:
    return [array.astype(jnp.bfloat16).astype(jnp.float32) for array in arrays]


@given(st.integers(1, 3), st.integers(0, 30), st.integers(1, 10), st.integers(2, 6))
def test_a_strided_convolution_of_bfloat16_is_that_of_its_rounded_operands(rows, more, taps, stride):
    x, kernel = operands(rows, taps + more, taps, FEWEST_CHANNELS, seed=more)
    expected = conv(*rounded(x, kernel), dtype=jnp.float32, stride=stride)
    assert relative_error(conv(x, kernel, dtype=jnp.bfloat16, stride=stride), expected) <= SAME


@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (2, 2), (10, 5)])
def test_its_gradient_is_that_of_the_convolution(taps, stride):
    x, kernel = operands(2, 41, taps, FEWEST_CHANNELS)

    def gradients(x: jax.Array, kernel: jax.Array, dtype):
        return jax.grad(lambda x, kernel: jnp.sin(conv(x, kernel, dtype=dtype, stride=stride)).sum(), argnums=(0, 1))(
            x, kernel
        )

    ours, expected = gradients(x, kernel, jnp.bfloat16), gradients(*rounded(x, kernel), jnp.float32)
    assert [relative_error(*pair) <= SAME for pair in zip(ours, expected, strict=True)] == [True, True]


def test_on_cpus_it_is_compiled_to_products():
    x, kernel = operands(1, 41, 3, FEWEST_CHANNELS)
    said = jax.jit(lambda x, kernel: conv(x, kernel, dtype=jnp.bfloat16, stride=2)).lower(x, kernel).as_text()
    assert (said.count("dot_general"), said.count("stablehlo.convolution")) == (2, 0)


def grouped(taps: int, groups: int, *, size: int = 21) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """A positional convolution's operands, more outputs than inputs in a group."""
    rng = np.random.default_rng(taps)
    x, kernel = rng.standard_normal((2, size, 6 * groups)), rng.standard_normal((taps, 6, 10 * groups))
    options = {"padding": (taps // 2, taps // 2), "groups": groups}
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), options


@given(st.integers(FEWEST_TAPS, 40), st.integers(2, 4), st.integers(1, 40))
def test_a_grouped_convolution_of_bfloat16_is_that_of_its_rounded_operands(taps, groups, size):
    x, kernel, options = grouped(taps, groups, size=size)
    expected = conv(*rounded(x, kernel), dtype=jnp.float32, **options)
    assert relative_error(conv(x, kernel, dtype=jnp.bfloat16, **options), expected) <= SAME


def test_the_gradient_of_a_grouped_one_is_that_of_the_convolution():
    x, kernel, options = grouped(17, 3)

    def gradients(x: jax.Array, kernel: jax.Array, dtype):
        return jax.grad(lambda *pair: jnp.sin(conv(*pair, dtype=dtype, **options)).sum(), argnums=(0, 1))(x, kernel)

    ours, expected = gradients(x, kernel, jnp.bfloat16), gradients(*rounded(x, kernel), jnp.float32)
    assert [relative_error(*pair) <= SAME for pair in zip(ours, expected, strict=True)] == [True, True]


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 0), ("tpu", 1)])
def test_a_grouped_one_is_compiled_to_products_on_cpus_and_gpus(platform, convolutions):
    x, kernel, options = grouped(24, 3)
    function = jax.jit(lambda x, kernel: conv(x, kernel, dtype=jnp.bfloat16, **options))
    text = jax.export.export(function, platforms=[platform])(x, kernel).mlir_module()
    assert text.count("stablehlo.convolution") == convolutions
    assert text.count("stablehlo.dot_general") == (0 if convolutions else 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
def test_narrow_kernels_are_multiplied_as_they_are(dtype):
    """Where XLA has no product of such operands it makes them float32 first, which is slow and as large."""
    kernel = {"kernel": jnp.ones((192, 320), dtype), "bias": jnp.ones(320)}
    kernel |= {"kernel_scale": jnp.ones(320)} if dtype == jnp.int8 else {}
    layer = Dense(320, dtype)
    compiled = (
        jax.jit(lambda params, x: layer.apply({"params": params}, x)).lower(kernel, jnp.ones((40, 192))).compile()
    )
    wide = re.findall(r"\b[fs]32\[(?:192,320|320,192)\]", compiled.as_text())
    assert wide == []
    plain = jax.jit(lambda kernel, x: x @ kernel.astype(jnp.float32)).lower(kernel["kernel"], jnp.ones((40, 192)))
    assert re.findall(r"\bf32\[192,320\]", plain.compile().as_text())  # so that would be seen

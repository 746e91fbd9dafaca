"""Convolutions that are computed as products: the same numbers, whatever kernel, stride and length."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.models.layers import Dense
from mms_jax.models.products import FEWEST_CHANNELS, conv
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

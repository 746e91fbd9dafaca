"""Splines equal transformers' in both directions, at their ends and beyond, and one direction undoes the other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.vits import modeling_vits as theirs

from mms_jax.config import MAX_SPLINE_BINS
from mms_jax.models.vits.spline import rational_quadratic_spline
from tests.parity import quick
from tests.vits_parity import call

# Of splines' images, relative to the bound and, where it is over 1, to the slope, which multiplies the rounding of x:
# 4e-6 is the worst of 10,000 splines.
SPLINE_PARITY = 1e-5
# Of the logarithm of the slope, which changes fast next to narrow bins' knots; 7e-4 is the worst.
LOG_SLOPE_PARITY = 2e-3

AT_KNOTS = (np.arange(64) >= 8) & (np.arange(64) < 24)


def spline_inputs(seed: int, bins: int, spread: float, bound: float) -> tuple[np.ndarray, ...]:
    """Parameters of 64 splines, and a point for each: anywhere, at the bound, next to it, far beyond, at knots."""
    rng = np.random.default_rng(seed)
    widths, heights = (rng.normal(0, spread, (64, bins)).astype(np.float32) for _ in range(2))
    derivatives = rng.normal(0, spread, (64, bins - 1)).astype(np.float32)
    x = rng.uniform(-1.2 * bound, 1.2 * bound, 64)
    edge = np.float32(bound)
    x[:8] = [edge, -edge, np.nextafter(edge, 0), np.nextafter(edge, 9), -np.nextafter(edge, 9), 0.0, 1e30, -1e30]
    for i, sizes in enumerate((widths, heights)):  # knots of the splines and of their inverses
        shares = np.exp(sizes.astype(np.float64))
        shares = 1e-3 + (1 - 1e-3 * bins) * shares / shares.sum(axis=1, keepdims=True)
        rows = slice(8 + 8 * i, 16 + 8 * i)
        x[rows] = 2 * bound * shares[rows, : bins // 2].sum(axis=1) - bound
    return x.astype(np.float32), widths, heights, derivatives


def torch_spline(x, *parameters, bound: float, reverse: bool) -> tuple[np.ndarray, np.ndarray]:
    tensors = [torch.from_numpy(array.copy()) for array in (x, *parameters)]
    image, log_derivative = theirs._unconstrained_rational_quadratic_spline(*tensors, tail_bound=bound, reverse=reverse)
    return image.numpy(), log_derivative.numpy()


@functools.cache
def jax_spline(bound: float, *, reverse: bool):
    function = functools.partial(rational_quadratic_spline, tail_bound=bound, reverse=reverse)
    return jax.jit(function, compiler_options=quick())


SPLINES = {
    "seed": st.integers(0, 2**31),
    "bins": st.sampled_from([2, 3, 10]),
    "spread": st.sampled_from([0.1, 0.5, 1.0]),
    "bound": st.sampled_from([1.0, 5.0]),
}


@given(**SPLINES, reverse=st.booleans())
def test_splines_and_their_log_derivatives_equal_the_references(seed, bins, spread, bound, reverse):
    x, *parameters = spline_inputs(seed, bins, spread, bound)
    expected = torch_spline(x, *parameters, bound=bound, reverse=reverse)
    ours = jax_spline(bound, reverse=reverse)(*map(jnp.asarray, (x, *parameters)))
    inside = np.abs(x) <= bound
    errors = [np.abs(actual - wanted) for actual, wanted in zip(ours, expected, strict=True)]
    assert (errors[0] / np.maximum(1, np.exp(ours[1])))[inside].max() <= SPLINE_PARITY * bound
    assert errors[1][inside & ~AT_KNOTS].max() <= LOG_SLOPE_PARITY
    assert (np.asarray(ours[0])[~inside] == x[~inside]).all()
    assert (np.asarray(ours[1])[~inside] == 0).all()


@pytest.mark.parametrize("bins", [1, MAX_SPLINE_BINS])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_fewest_and_the_most_bins_that_a_config_may_have_give_the_references_spline(bins, reverse):
    x, *parameters = spline_inputs(0, bins, spread=0.5, bound=5.0)
    expected, _ = torch_spline(x, *parameters, bound=5.0, reverse=reverse)
    ours, _ = jax_spline(5.0, reverse=reverse)(*map(jnp.asarray, (x, *parameters)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SPLINE_PARITY * 5)


def test_the_reference_computes_no_spline_that_a_config_may_not_have():
    x, *parameters = spline_inputs(0, MAX_SPLINE_BINS + 1, spread=0.5, bound=5.0)
    with pytest.raises(ValueError, match="too large for the number of bins"):
        torch_spline(x, *parameters, bound=5.0, reverse=True)
    x, *parameters = spline_inputs(0, 10, spread=0.5, bound=5.0)
    with pytest.raises(ValueError, match="negative values"):
        torch_spline(x, *parameters, bound=0.0, reverse=True)


@given(**SPLINES)
def test_a_spline_and_its_inverse_are_the_identity_and_their_log_derivatives_cancel(seed, bins, spread, bound):
    x, *parameters = map(jnp.asarray, spline_inputs(seed, bins, spread, bound))
    image, log_derivative = jax_spline(bound, reverse=False)(x, *parameters)
    back, back_log_derivative = jax_spline(bound, reverse=True)(image, *parameters)
    inside = np.abs(x) <= bound
    steep = np.maximum(1, np.exp(-log_derivative))  # how much the way back multiplies the rounding of the image
    assert (np.abs(back - x) / steep)[inside].max() <= SPLINE_PARITY * bound
    assert np.abs(log_derivative + back_log_derivative)[~AT_KNOTS].max() <= LOG_SLOPE_PARITY
    assert np.abs(image - x)[inside].max() > 1000 * SPLINE_PARITY * bound  # it is bent


@given(**SPLINES)
def test_a_spline_is_monotonic(seed, bins, spread, bound):
    _, *parameters = spline_inputs(seed, bins, spread, bound)
    x = np.linspace(-1.1 * bound, 1.1 * bound, 64, dtype=np.float32)
    one = [np.broadcast_to(parameter[:1], parameter.shape) for parameter in parameters]
    for reverse in (False, True):
        image, _ = jax_spline(bound, reverse=reverse)(*map(jnp.asarray, (x, *one)))
        assert (np.diff(image) > 0).all()


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gradients_of_a_spline_are_finite_at_its_ends_and_those_of_the_identity_outside(reverse):
    def total(*arrays):
        return sum(part.sum() for part in rational_quadratic_spline(*arrays, tail_bound=5.0, reverse=reverse))

    x, *parameters = spline_inputs(0, 10, 1.0, 5.0)
    gradients = call(jax.grad(total, argnums=(0, 1, 2, 3)), x, *parameters)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    outside = np.abs(x) > 5
    assert (np.asarray(gradients[0])[outside] == 1).all()
    assert all((np.asarray(gradient)[outside] == 0).all() for gradient in gradients[1:])

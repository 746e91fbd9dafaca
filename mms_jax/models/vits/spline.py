"""Monotonic rational-quadratic splines with linear tails (Durkan et al. 2019, arXiv 1906.04032, §3.1 and appendix A).

VITS's duration flows bend their variables with them (Kim et al. 2021, arXiv 2106.06103, appendix B.3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_BIN_SIZE = 1e-3  # of the spline's whole width or height
MIN_DERIVATIVE = 1e-3
EDGE = 1e-6  # widens the last bin, so that it holds its own upper end


class Bins(NamedTuple):
    """What the formulas need of the bin that each input falls into."""

    left: Float[Array, "*shape"]
    width: Float[Array, "*shape"]
    bottom: Float[Array, "*shape"]
    height: Float[Array, "*shape"]
    derivative_left: Float[Array, "*shape"]
    derivative_right: Float[Array, "*shape"]


def rational_quadratic_spline(
    x: Float[Array, "*shape"],
    widths: Float[Array, "*shape K"],
    heights: Float[Array, "*shape K"],
    derivatives: Float[Array, "*shape J"],
    *,
    tail_bound: float,
    reverse: bool = False,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Map ``x`` elementwise through a monotonic spline on [-tail_bound, tail_bound], and unchanged outside it.

    Args:
        x: any shape.
        widths: K unnormalised bin widths for each element (logits of their shares).
        heights: likewise.
        derivatives: K - 1 unnormalised derivatives at the inner knots (softplus gives them); at the ends it is 1.
        tail_bound: half of the spline's width and height.
        reverse: apply the inverse instead.

    Returns:
        The image and the logarithm of the map's derivative there.
    """
    inside = jnp.abs(x) <= tail_bound
    safe = jnp.where(inside, x, 0.0)
    bins = _find_bins(safe, widths, heights, derivatives, tail_bound=tail_bound, reverse=reverse)
    y, log_derivative = _invert(safe, bins) if reverse else _evaluate(safe, bins)
    return jnp.where(inside, y, x), jnp.where(inside, log_derivative, 0.0)


def _find_bins(x, widths, heights, derivatives, *, tail_bound: float, reverse: bool) -> Bins:
    end = math.log(math.exp(1 - MIN_DERIVATIVE) - 1)  # what softplus turns into a derivative of 1
    pad = [(0, 0)] * (derivatives.ndim - 1) + [(1, 1)]
    derivatives = MIN_DERIVATIVE + jax.nn.softplus(jnp.pad(derivatives, pad, constant_values=end))
    lefts, bottoms = _knots(widths, tail_bound), _knots(heights, tail_bound)
    knots = (bottoms if reverse else lefts).at[..., -1].add(EDGE)
    index = (x[..., None] >= knots).sum(-1, keepdims=True) - 1

    def pick(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, index, axis=-1)[..., 0]

    return Bins(
        left=pick(lefts[..., :-1]),
        width=pick(jnp.diff(lefts)),
        bottom=pick(bottoms[..., :-1]),
        height=pick(jnp.diff(bottoms)),
        derivative_left=pick(derivatives[..., :-1]),
        derivative_right=pick(derivatives[..., 1:]),
    )


def _knots(sizes: Float[Array, "*shape K"], bound: float) -> Float[Array, "*shape J"]:
    """The K + 1 edges of bins whose shares are the softmax of ``sizes``, none below MIN_BIN_SIZE."""
    count = sizes.shape[-1]
    shares = MIN_BIN_SIZE + (1 - MIN_BIN_SIZE * count) * jax.nn.softmax(sizes, axis=-1)
    inner = 2 * bound * jnp.cumsum(shares, axis=-1)[..., :-1] - bound
    edge = jnp.full((*sizes.shape[:-1], 1), bound, sizes.dtype)
    return jnp.concatenate([-edge, inner, edge], axis=-1)


def _evaluate(x, bins: Bins):
    slope = bins.height / bins.width
    theta = (x - bins.left) / bins.width
    numerator = bins.height * (slope * theta**2 + bins.derivative_left * theta * (1 - theta))
    return bins.bottom + numerator / _denominator(theta, slope, bins), _log_derivative(theta, slope, bins)


def _invert(y, bins: Bins):
    """Solve the quadratic for theta by the formula that does not cancel (appendix A.2)."""
    slope = bins.height / bins.width
    rise = y - bins.bottom
    bend = rise * (bins.derivative_left + bins.derivative_right - 2 * slope)
    a = bins.height * (slope - bins.derivative_left) + bend
    b = bins.height * bins.derivative_left - bend
    c = -slope * rise
    discriminant = jnp.maximum(b**2 - 4 * a * c, 0.0)  # negative by rounding only
    theta = 2 * c / (-b - jnp.sqrt(discriminant))
    return theta * bins.width + bins.left, -_log_derivative(theta, slope, bins)


def _denominator(theta, slope, bins: Bins):
    return slope + (bins.derivative_left + bins.derivative_right - 2 * slope) * theta * (1 - theta)


def _log_derivative(theta, slope, bins: Bins):
    numerator = slope**2 * (
        bins.derivative_right * theta**2 + 2 * slope * theta * (1 - theta) + bins.derivative_left * (1 - theta) ** 2
    )
    return jnp.log(numerator) - 2 * jnp.log(_denominator(theta, slope, bins))

"""The CTC loss and its gradient in closed form (Graves et al. 2006, sections 4.1 and 4.2, equations 6 to 16).

Scores of partial paths are kept as float32 mantissas with int32 exponents of their own, not as logarithms. Adding and
multiplying such numbers takes neither exp nor log, and the relative error of a path's score stays near 1e-6 however
improbable the path is, where that of a float32 logarithm of -4,000 is 2e-4 in every step: at 1,500 frames gradients
are right to 4e-6 of the largest here, to 1e-2 in PyTorch and optax (experiments/benchmarks/ctc_loss.py).

One scan over frames advances both directions as one array: scores of beginnings from frame 0 on, scores of endings from
each row's own last frame backwards, on labels in reverse. The backward pass multiplies and no more.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mms_jax.errors import SettingError

Reduction = Literal["mean", "sum", "none"]

# Frames between two normalisations of the mantissas. A frame multiplies them by 1 to 6: at most three terms, times an
# emission's of 1 to 2. So they and the product of two of them stay below 6**32 < 2**83, and float32 ends at 2**128.
BLOCK = 16
# Exponents of scores stay above -EXPONENTS. Those of 0 begin at ZERO_EXPONENT and sink by less than EXPONENTS, so the
# two never meet, and sums of two scores' exponents, an emission's and a likelihood's are int32.
EXPONENTS = 2**28
ZERO_EXPONENT = -2 * EXPONENTS
LN2_HIGH = 0.693359375  # 9 bits, so that its products with exponents up to 2**15 are exact
LN2_LOW = math.log(2) - LN2_HIGH


class Wide(NamedTuple):
    """Numbers ``mantissa * 2**exponent``; 0 is not told by its mantissa but by an exponent near ``ZERO_EXPONENT``."""

    mantissa: Float[Array, "..."]  # float32
    exponent: Int[Array, "..."]  # int32


class Solution(NamedTuple):
    """The loss of each row, and what its gradient is made of; the emission of a frame is in neither of its scores."""

    losses: Float[Array, " B"]
    log_probs: Float[Array, "B T V"]
    emissions: Wide  # [T, B, U], of the labels
    beginnings: Wide  # [T, B, U], of paths until a frame's label
    endings: Wide  # [T, B, U], of paths from a frame's label on
    likelihoods: Wide  # [B]


def ctc_loss(
    logits: Float[Array, "B T V"],
    *,
    labels: Int[Array, "B U"],
    num_frames: Int[Array, " B"],
    num_labels: Int[Array, " B"],
    blank_id: int = 0,
    reduction: Reduction = "mean",
) -> Float[Array, ""] | Float[Array, " B"]:
    """Negative log-likelihood, in nats, of each row's labels under all their alignments with its frames.

    ``logits`` come before the softmax; they are taken as float32, and their gradient has their dtype. Reductions are
    PyTorch's: ``mean`` is the mean over rows of each loss divided by its number of labels. Rows that are not
    ``is_feasible`` have loss 0 and gradient 0, whatever their logits (PyTorch takes rows without labels for all
    blanks). Frames from ``num_frames`` on have gradient 0, and labels from ``num_labels`` on may be anything.

    In feasible rows, a NaN or +inf logit, a label outside 0 … V-1 and a length beyond the array make loss and gradient
    NaN: labels are checked where data is made. A column of -inf has probability 0 and, unless a row needs it, gradient
    0. No log-probability counts as less than about ``-EXPONENTS * ln 2 / T``, -124,000 at 1,500 frames: a row with a
    label in a column of -inf has a loss beyond that, not infinity.

    Raises SettingError for a reduction that is none of these and for a ``blank_id`` outside the vocabulary.
    """
    if reduction not in get_args(Reduction):
        raise SettingError(f"reduction is {reduction!r}; it must be one of {', '.join(get_args(Reduction))}")
    if not 0 <= blank_id < logits.shape[-1]:
        raise SettingError(
            f"blank_id is {blank_id}; with {logits.shape[-1]} logits it must be 0 to {logits.shape[-1] - 1}"
        )
    losses = _losses(logits.astype(jnp.float32), labels, num_frames, num_labels, blank_id)
    if reduction == "mean":
        return jnp.mean(losses / jnp.maximum(num_labels, 1))
    return jnp.sum(losses) if reduction == "sum" else losses


def is_feasible(
    labels: Int[Array, "B U"], *, num_frames: Int[Array, " B"], num_labels: Int[Array, " B"]
) -> Bool[Array, " B"]:
    """Whether a row has labels, and frames enough for them and for a blank between any two adjacent equal ones."""
    repeats = (labels[:, 1:] == labels[:, :-1]) & (jnp.arange(1, labels.shape[1]) < num_labels[:, None])
    return (num_labels >= 1) & (num_frames >= num_labels + jnp.sum(repeats, axis=1))


@jax.custom_vjp
def _losses(logits, labels, num_frames, num_labels, blank_id) -> Float[Array, " B"]:
    return _solve(logits, labels, num_frames, num_labels, blank_id).losses


def _losses_forward(logits, labels, num_frames, num_labels, blank_id):
    solution = _solve(logits, labels, num_frames, num_labels, blank_id)
    return solution.losses, _gradient(solution, labels, num_frames, num_labels, blank_id)


def _losses_backward(gradient, cotangents):
    return gradient * cotangents[:, None, None], None, None, None, None


_losses.defvjp(_losses_forward, _losses_backward)


def _solve(logits, labels, num_frames, num_labels, blank_id) -> Solution:
    """Score all paths of all rows, in both directions."""
    feasible = is_feasible(labels, num_frames=num_frames, num_labels=num_labels)
    is_label = jnp.arange(labels.shape[1]) < num_labels[:, None]
    is_frame = (jnp.arange(logits.shape[1]) < num_frames[:, None])[..., None]
    is_defined = jnp.all((labels >= 0) & (labels < logits.shape[2]) | ~is_label, axis=1)
    is_defined &= (num_frames <= logits.shape[1]) & (num_labels <= labels.shape[1])
    log_probs = jax.nn.log_softmax(logits)
    emissions = jnp.take_along_axis(log_probs, labels[:, None], axis=2, mode="clip")  # exact; a product may be TF32
    blanks = jnp.where(is_frame, log_probs[..., blank_id, None], 0)
    # A NaN among a frame's logits makes all its log-probabilities NaN. Exponents have none: it would be lost.
    is_defined &= ~jnp.any(jnp.isnan(blanks), axis=(1, 2))
    emissions, blanks = jnp.moveaxis(jnp.where(is_frame, emissions, 0), 1, 0), jnp.moveaxis(blanks, 1, 0)
    scores, likelihoods = _scan(labels, emissions, blanks, num_frames, num_labels)
    likelihoods = Wide(jnp.where(is_defined, likelihoods.mantissa, jnp.nan), likelihoods.exponent)
    return Solution(
        losses=jnp.where(feasible, -_log(likelihoods), 0),
        log_probs=log_probs,
        emissions=_wide(emissions, num_frames=logits.shape[1]),
        beginnings=jax.tree.map(lambda x: x[: logits.shape[1], 0], scores),
        endings=jax.tree.map(lambda x: x[::-1, 1, :, ::-1][: logits.shape[1]], scores),
        likelihoods=likelihoods,
    )


def _gradient(solution: Solution, labels, num_frames, num_labels, blank_id) -> Float[Array, "B T V"]:
    """Each row's gradient: what the softmax gives a frame's columns, less what the paths give them."""
    _, log_probs, emissions, beginnings, endings, likelihoods = solution
    num_columns = log_probs.shape[2]
    exponent = (beginnings.exponent - likelihoods.exponent[:, None]) + (endings.exponent + emissions.exponent)
    mantissa = beginnings.mantissa * endings.mantissa * emissions.mantissa / likelihoods.mantissa[:, None]
    posteriors = jnp.moveaxis(mantissa * _power_of_2(exponent), 0, 1)  # 0 at labels of padding: no path ends there
    # Paths that are at no label are at a blank: what labels give to their columns is taken from the blank's.
    blank = jax.nn.one_hot(blank_id, num_columns)
    columns = jax.nn.one_hot(labels, num_columns) - blank
    occupancies = blank + jnp.einsum("btu,buv->btv", posteriors, columns, precision=lax.Precision.HIGHEST)
    feasible = is_feasible(labels, num_frames=num_frames, num_labels=num_labels)
    is_frame = jnp.arange(log_probs.shape[1]) < num_frames[:, None]
    return jnp.where((is_frame & feasible[:, None])[..., None], jnp.exp(log_probs) - occupancies, 0)


def _scan(labels, emissions, blanks, num_frames, num_labels) -> tuple[Wide, Wide]:
    """Scores of each label in each frame, without that frame's emission, [frame, direction, B, U]; likelihoods [B].

    In direction 1 frames and labels count from the ends of the arrays. Frames are padded to whole blocks.
    """
    length, num_rows, width = emissions.shape
    padded = -(-length // BLOCK) * BLOCK
    labels = jnp.stack([labels, labels[:, ::-1]])
    first_label = jnp.stack([0 * num_labels, width - num_labels])
    first_frame = jnp.stack([0 * num_frames, padded - num_frames])
    step = functools.partial(
        _step,
        num_frames=length,
        is_first_blank=jnp.arange(width + 1) == first_label[..., None],
        first_frame=first_frame[..., None],
        repeats=jnp.pad(labels[..., 1:] == labels[..., :-1], ((0, 0), (0, 0), (min(width, 1), 0))),
    )

    def block(states, frames):
        (blank, label), scores = lax.scan(step, states, frames)
        return (_normalised(blank), _normalised(label)), scores

    frames = jnp.arange(padded), _both_ways(blanks, padded), _both_ways(emissions, padded)
    blocks = jax.tree.map(lambda x: x.reshape(padded // BLOCK, BLOCK, *x.shape[1:]), frames)
    (blank, label), scores = lax.scan(block, _nowhere(emissions), blocks)
    likelihoods = jax.tree.map(lambda x: x[1, :, -1], _sum(blank, _shifted(label)))
    return jax.tree.map(lambda x: x.reshape(padded, 2, num_rows, width), scores), likelihoods


def _both_ways(x: Float[Array, "T B N"], padded: int) -> Float[Array, "M 2 B N"]:
    x = jnp.pad(x, ((0, padded - len(x)), (0, 0), (0, 0)))
    return jnp.stack([x, x[::-1, :, ::-1]], axis=1)


def _nowhere(emissions: Float[Array, "T B U"]) -> tuple[Wide, Wide]:
    """Scores of 0 at blanks and labels, both ways."""
    # Not jnp.zeros: in shard_map a carry must come from what differs between devices if its successor does.
    zeros = 0 * jnp.sum(emissions[:1] > 0, axis=0, dtype=jnp.int32)
    label = Wide(jnp.stack([zeros + jnp.float32(1)] * 2), jnp.stack([zeros + ZERO_EXPONENT] * 2))
    return _shifted(label), label


def _step(states, frame, *, num_frames: int, is_first_blank, first_frame, repeats) -> tuple[tuple[Wide, Wide], Wide]:
    """Take every path one frame on: to its own place, the next, or from a label past the blank to another label."""
    blank, label = states
    index, blank_emission, label_emission = frame
    enters = is_first_blank & (index == first_frame)  # as if it had been at the first blank before
    blank = Wide(jnp.where(enters, 1, blank.mantissa), jnp.where(enters, 0, blank.exponent))
    next_blank = _sum(blank, _shifted(label))
    # next_blank holds what comes from the blank and from the label before it; an equal label must stop at the blank.
    arriving = jax.tree.map(lambda x, y: jnp.where(repeats, x[..., :-1], y[..., :-1]), blank, next_blank)
    next_label = _sum(label, arriving)
    blank = _product(next_blank, _wide(blank_emission, num_frames=num_frames))
    return (blank, _product(next_label, _wide(label_emission, num_frames=num_frames))), next_label


def _wide(logarithms: Float[Array, "*shape"], *, num_frames: int) -> Wide:
    """``exp(logarithms)``, for logarithms up to 0, of which there are ``num_frames`` in a path."""
    floor = -(EXPONENTS // max(num_frames, 1))
    exponent = jnp.maximum(jnp.floor(logarithms * math.log2(math.e)), floor)
    rest = logarithms - exponent * LN2_HIGH - exponent * LN2_LOW
    return Wide(jnp.exp(jnp.maximum(rest, -1)), exponent.astype(jnp.int32))


def _log(x: Wide) -> Float[Array, "*shape"]:
    return jnp.log(x.mantissa) + x.exponent * math.log(2)


def _sum(x: Wide, y: Wide) -> Wide:
    exponent = jnp.maximum(x.exponent, y.exponent)
    aligned = x.mantissa * _power_of_2(x.exponent - exponent) + y.mantissa * _power_of_2(y.exponent - exponent)
    return Wide(aligned, exponent)


def _product(x: Wide, y: Wide) -> Wide:
    return Wide(x.mantissa * y.mantissa, x.exponent + y.exponent)


def _normalised(x: Wide) -> Wide:
    """The same numbers with mantissas from 1 to 2."""
    bits = lax.bitcast_convert_type(x.mantissa, jnp.int32)
    mantissa = lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    return Wide(mantissa, x.exponent + (bits >> 23) - 127)


def _shifted(x: Wide) -> Wide:
    """The last axis one longer, with a 0 in front."""
    pad = [(0, 0, 0)] * (x.mantissa.ndim - 1) + [(1, 0, 0)]
    return Wide(lax.pad(x.mantissa, jnp.float32(1), pad), lax.pad(x.exponent, jnp.int32(ZERO_EXPONENT), pad))


def _power_of_2(exponent: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """2**exponent as float32, 0 from 2**-127 down; made of bits, so exact and without a transcendental function."""
    return lax.bitcast_convert_type((jnp.clip(exponent, -127, 127) + 127) << 23, jnp.float32)

"""The CTC loss: PyTorch's values and gradients, exact zeros where there is nothing to learn, NaN where all is wrong."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, PartitionSpec

from mms_jax.ctc import ctc_loss, is_feasible
from mms_jax.errors import SettingError

# Against PyTorch in float64: in float32, where it keeps logarithms, its own gradients are off by 5e-4 at 60 frames.
LOSS = 1e-6  # of the loss or of 1 nat, whichever is larger: 2e-7 is measured, a few roundings of float32
GRADIENT = 1e-5  # of the row's largest: 2e-6 is measured at 60 frames, 6e-6 at 1,500
SMALL = 0.1  # a largest gradient below it is a rest of rounding: of a softmax within 1e-7 of one-hot
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-10}  # of a gradient in its logits' dtype
SAME = 2e-6  # between float32 programs for one sum: compilers order and fuse it as they like


class Batch(NamedTuple):
    logits: np.ndarray  # [B, T, V]
    labels: np.ndarray  # [B, U]
    num_frames: np.ndarray  # [B]
    num_labels: np.ndarray  # [B]
    blank: int = 0
    dtype: str = "float32"

    @property
    def rounded(self) -> np.ndarray:
        """The logits as ``dtype`` holds them."""
        return np.asarray(jnp.asarray(self.logits).astype(self.dtype).astype(jnp.float32))


def compute(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Losses, and each row's gradient of its own."""
    logits = jnp.asarray(batch.logits).astype(batch.dtype)
    losses, gradients = value_and_gradient(logits, *map(jnp.asarray, batch[1:4]), blank_id=batch.blank)
    assert losses.dtype == jnp.float32
    assert gradients.dtype == jnp.dtype(batch.dtype)
    return np.asarray(losses), np.asarray(gradients.astype(jnp.float32))


@jax.jit(static_argnames="blank_id")
def value_and_gradient(logits, labels, num_frames, num_labels, *, blank_id: int):
    losses, pull_back = jax.vjp(lambda x: rows(x, labels, num_frames, num_labels, blank_id=blank_id), logits)
    return losses, pull_back(jnp.ones_like(losses))[0]


def rows(logits, labels, num_frames, num_labels, **settings) -> jax.Array:
    lengths = {"num_frames": num_frames, "num_labels": num_labels}
    return ctc_loss(logits, labels=labels, **lengths, **{"reduction": "none"} | settings)


class Reference(NamedTuple):
    losses: np.ndarray
    gradients: np.ndarray
    impossible: np.ndarray  # rows without a path that spells their labels


def reference(batch: Batch, reduction: str = "none") -> Reference:
    """PyTorch's, from the same rounded logits: a float32 softmax, then float64."""
    logits = torch.tensor(batch.rounded, requires_grad=True)
    integers = (torch.from_numpy(x).long() for x in batch[1:4])
    arguments = logits.log_softmax(-1).double().transpose(0, 1), *integers, batch.blank
    impossible = torch.nn.functional.ctc_loss(*arguments, reduction="none").isinf()
    losses = torch.nn.functional.ctc_loss(*arguments, reduction=reduction, zero_infinity=True)
    losses.sum().backward()
    assert logits.grad is not None
    return Reference(losses.detach().numpy(), logits.grad.numpy(), impossible.numpy())


def assert_parity(batch: Batch) -> None:
    """Equal to PyTorch's, but for rows without labels, which are all blanks to PyTorch and nothing to learn here."""
    (losses, gradients), expected = compute(batch), reference(batch)
    nothing = expected.impossible | (batch.num_labels == 0)
    np.testing.assert_array_equal(feasible(batch), ~nothing)
    loss = np.where(nothing, 0, expected.losses)
    assert np.all(np.abs(losses - loss) <= LOSS * np.maximum(1, loss))
    gradient = np.where(nothing[:, None, None], 0, expected.gradients)
    error = np.abs(gradients - gradient) - ROUNDING[batch.dtype] * np.abs(gradient)
    assert np.all(error.max(axis=(1, 2)) <= GRADIENT * np.maximum(SMALL, np.abs(gradient).max(axis=(1, 2))))
    assert not losses[nothing].any()
    assert not gradients[nothing].any()
    assert not gradients[np.arange(batch.logits.shape[1]) >= batch.num_frames[:, None]].any()


def feasible(batch: Batch) -> np.ndarray:
    labels, num_frames, num_labels = map(jnp.asarray, batch[1:4])
    return np.asarray(is_feasible(labels, num_frames=num_frames, num_labels=num_labels))


def random_batch(
    seed: int, shape: tuple[int, int, int, int], *, blank: int = 0, dtype: str = "float32", scale: float | None = None
) -> Batch:
    """Rows of all lengths, many of them infeasible; some repeat few labels; padding holds anything."""
    rng = np.random.default_rng((seed, *shape))
    num_rows, frames, width, vocabulary = shape
    num_frames, num_labels = rng.integers(0, frames + 1, num_rows), rng.integers(0, width + 1, num_rows)
    alphabet = rng.integers(1, vocabulary, (num_rows, 1))  # labels a row has, not counting the blank
    labels = (rng.integers(0, alphabet, (num_rows, width)) + 1 + blank) % vocabulary
    garbage = rng.choice([-100, -1, 0, blank, vocabulary, 10**6], (num_rows, width))
    labels = np.where(np.arange(width) < num_labels[:, None], labels, garbage)
    scales = 10 ** rng.uniform(-1, 1.2, (num_rows, 1, 1)) if scale is None else scale
    logits = rng.normal(size=(num_rows, frames, vocabulary)) * scales
    return Batch(logits.astype(np.float32), labels.astype(np.int32), num_frames, num_labels, blank, dtype)


CASES = [  # rows, frames, labels, vocabulary; blank; dtype of the logits. Nine batches of each: 10,800 rows
    ((200, 40, 12, 9), 0, "float32"),
    ((200, 60, 25, 30), 29, "float32"),
    ((200, 24, 20, 3), 1, "bfloat16"),
    ((200, 50, 16, 32), 13, "float16"),
    ((200, 16, 5, 5), 4, "bfloat16"),
    ((200, 1, 2, 4), 2, "float32"),
]


@pytest.mark.parametrize(("shape", "blank", "dtype"), CASES)
def test_losses_and_gradients_of_random_rows_are_those_of_torch(shape, blank, dtype):
    for seed in range(9):
        assert_parity(random_batch(seed, shape, blank=blank, dtype=dtype))


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0, 1e4])
def test_long_rows_are_as_exact_as_short_ones(scale):
    assert_parity(long_rows(scale))


def long_rows(scale: float) -> Batch:
    """30 s of speech, more labels than MMS' transcripts have; the second row has frames for a single path."""
    batch = random_batch(0, (3, 1500, 400, 32), scale=scale)
    labels = np.random.default_rng(1).integers(1, 32, (3, 400)).astype(np.int32)
    labels[1] = np.arange(400) % 2 + 1
    return batch._replace(labels=labels, num_frames=np.array([1500, 400, 1213]), num_labels=np.array([400, 400, 250]))


def spelled(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def enumerate_paths(batch: Batch, row: int) -> tuple[float, np.ndarray]:
    """Likelihood of a row's labels and gradient of its logarithm, path by path."""
    logits = batch.logits[row].astype(np.float64)
    softmax = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    frames = np.arange(batch.num_frames[row])
    labels = tuple(batch.labels[row, : batch.num_labels[row]])
    likelihood, occupancy = 0.0, np.zeros_like(logits)
    for path in itertools.product(range(logits.shape[1]), repeat=len(frames)):
        if spelled(path, batch.blank) == labels:
            probability = np.prod(softmax[frames, path])
            likelihood += probability
            occupancy[frames, path] += probability
    gradient = softmax - occupancy / max(likelihood, np.finfo(float).tiny)
    return likelihood, np.where(np.arange(len(logits))[:, None] < len(frames), gradient, 0)


@pytest.mark.parametrize("blank", [0, 1, 2])
def test_losses_and_gradients_are_those_of_all_paths_counted_one_by_one(blank):
    batch = random_batch(blank, (20, 6, 4, 3), blank=blank, scale=1.0)
    losses, gradients = compute(batch)
    for row in range(len(losses)):
        likelihood, gradient = enumerate_paths(batch, row)
        assert feasible(batch)[row] == (likelihood > 0 and batch.num_labels[row] > 0)
        if feasible(batch)[row]:
            assert losses[row] == pytest.approx(-math.log(likelihood), rel=LOSS, abs=LOSS)
            np.testing.assert_allclose(gradients[row], gradient, rtol=0, atol=GRADIENT)


COUNTED = [  # frames and labels
    (39, [5] * 20),  # a label and a blank in turn: one path
    (40, [5] * 20),
    (1500, [5] * 400),
    (1500, [1, 2, 2, 3] * 100),
    (1500, [*range(1, 33)] * 12),
    (400, [1, 2] * 200),
    (1, [32]),
]


def test_the_loss_of_equal_logits_counts_the_paths():
    logits = np.full((len(COUNTED), 1500, 33), 7.0, np.float32)  # 1 / 33 is 1.94 * 2**-6: mantissas grow their fastest
    labels = np.array([labels + [0] * (400 - len(labels)) for _, labels in COUNTED])
    num_frames, num_labels = np.array([(frames, len(labels)) for frames, labels in COUNTED]).T
    losses, gradients = compute(Batch(logits, labels, num_frames, num_labels))
    for (frames, labels), loss in zip(COUNTED, losses, strict=True):
        repeats = sum(a == b for a, b in itertools.pairwise(labels))
        paths = math.comb(frames + len(labels) - repeats, 2 * len(labels))
        assert loss == pytest.approx(frames * math.log(33) - math.log(paths), rel=LOSS)
    np.testing.assert_allclose(gradients.sum(axis=2), 0, atol=GRADIENT)


BLANK, FRAMES, VOCABULARY = 2, 12, 7
NOTHING_TO_LEARN = {  # labels, frames
    "too few frames": ([1, 3, 4, 5], 3),
    "too few for the blanks between repeats": ([1, 1, 1, 4], 5),
    "no labels": ([], 12),
    "no frames": ([1], 0),
    "neither": ([], 0),
}


@pytest.mark.parametrize("poison", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("labels", "num_frames"), NOTHING_TO_LEARN.values(), ids=NOTHING_TO_LEARN)
def test_rows_with_nothing_to_learn_give_exactly_0_whatever_their_logits(labels, num_frames, poison):
    batch = one_good_row_and(labels, num_frames)
    good = compute(batch)
    batch.logits[1] += poison
    losses, gradients = compute(batch)
    assert feasible(batch).tolist() == [True, False]
    assert losses[0] == good[0][0] > 0
    assert losses[1] == 0
    np.testing.assert_array_equal(gradients[0], good[1][0])
    np.testing.assert_array_equal(gradients[1], 0)


def one_good_row_and(labels: list[int], num_frames: int) -> Batch:
    logits = np.random.default_rng(0).normal(size=(2, FRAMES, VOCABULARY)).astype(np.float32)
    padded = np.full((2, 5), -100, np.int32)
    padded[0, :4], padded[1, : len(labels)] = [3, 3, 1, 6], labels
    return Batch(logits, padded, np.array([FRAMES, num_frames]), np.array([4, len(labels)]), BLANK)


@pytest.mark.parametrize("poison", [0.0, 1e30, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("padding", [-100, 0, BLANK, 3, VOCABULARY])
def test_padding_never_matters(padding, poison):
    batch = one_good_row_and([4, 1, 4], 8)
    shorter = Batch(batch.logits[1:, :8], batch.labels[1:, :3], np.array([8]), np.array([3]), BLANK)
    batch.logits[1, 8:] = poison
    batch.labels[1, 3:] = padding
    (loss,), (gradient,) = compute(shorter)
    losses, gradients = compute(batch)
    assert losses[1] == pytest.approx(loss, rel=SAME)
    np.testing.assert_allclose(gradients[1, :8], gradient, rtol=0, atol=SAME)
    np.testing.assert_array_equal(gradients[1, 8:], 0)


@pytest.mark.parametrize("mask", [-np.inf, -1e9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masked_columns_are_as_if_they_were_not_there(mask, dtype):
    narrow = random_batch(0, (24, 20, 6, 12), dtype=dtype)
    batch = narrow._replace(logits=np.pad(narrow.logits, ((0, 0), (0, 0), (0, 5)), constant_values=mask))
    (losses, gradients), expected = compute(batch), compute(narrow)
    np.testing.assert_allclose(losses, expected[0], rtol=SAME)
    np.testing.assert_allclose(gradients[..., :12], expected[1], rtol=ROUNDING[dtype], atol=SAME)
    np.testing.assert_array_equal(gradients[..., 12:], 0)


@pytest.mark.parametrize("mask", [-np.inf, -1e9])
def test_a_row_that_needs_a_masked_column_has_a_huge_loss_and_a_finite_gradient(mask):
    batch = one_good_row_and([4, 1, 4], 8)
    batch.logits[1, :, 4] = mask
    losses, gradients = compute(batch)
    assert 1e6 < losses[1] < np.inf
    assert np.isfinite(gradients).all()
    assert gradients[1, :, 4].sum() <= -2 + GRADIENT  # both labels 4 are in some frame, whatever that costs
    np.testing.assert_allclose(gradients.sum(axis=2), 0, atol=GRADIENT)


LAST = np.array([0, 1])[:, None, None] * (np.arange(FRAMES)[:, None] == 7) * (np.arange(VOCABULARY) == 6)  # of no label
WRONG = {
    "a NaN": lambda batch: batch._replace(logits=np.where(LAST, np.nan, batch.logits)),
    "an infinity": lambda batch: batch._replace(logits=np.where(LAST, np.inf, batch.logits)),
    "a label beyond the vocabulary": lambda batch: batch._replace(labels=np.where(batch.labels == 4, 7, batch.labels)),
    "a negative label": lambda batch: batch._replace(labels=np.where(batch.labels == 4, -1, batch.labels)),
    "more frames than there are": lambda batch: batch._replace(num_frames=np.array([FRAMES, FRAMES + 1])),
    "more labels than there are": lambda batch: batch._replace(num_labels=np.array([4, 6]), labels=batch.labels % 7),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_what_is_wrong_makes_its_own_row_nan(spoil):
    batch = one_good_row_and([4, 1, 4], 8)
    good = compute(batch)
    losses, gradients = compute(spoil(batch))
    np.testing.assert_array_equal(np.isnan(losses), [False, True])
    assert np.isnan(gradients[1]).any()
    assert losses[0] == good[0][0]
    np.testing.assert_array_equal(gradients[0], good[1][0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_are_those_of_torch(reduction):
    batch = random_batch(0, (24, 20, 6, 12))
    batch = batch._replace(num_labels=np.maximum(batch.num_labels, 1), labels=np.abs(batch.labels) % 11 + 1)
    expected = reference(batch, reduction)
    assert 0 < expected.impossible.sum() < 12
    arguments = tuple(map(jnp.asarray, batch[1:4]))
    step = jax.jit(jax.value_and_grad(functools.partial(rows, reduction=reduction)))
    loss, gradient = step(jnp.asarray(batch.logits), *arguments)
    assert loss == pytest.approx(expected.losses, rel=LOSS)
    np.testing.assert_allclose(gradient, expected.gradients, rtol=0, atol=GRADIENT * np.abs(expected.gradients).max())


def test_the_mean_counts_rows_without_labels_as_0():
    batch = one_good_row_and([], 8)
    losses, _ = compute(batch)
    mean = jax.jit(functools.partial(rows, blank_id=BLANK, reduction="mean"))(*map(jnp.asarray, batch[:4]))
    assert mean == pytest.approx(losses[0] / 4 / 2, rel=SAME)


def test_rows_may_be_mapped_over():
    batch = random_batch(3, (24, 20, 6, 12))
    arguments = jax.tree.map(lambda x: jnp.asarray(x).reshape(4, 6, *x.shape[1:]), batch[:4])
    mapped = jax.vmap(lambda *rows: value_and_gradient(*rows, blank_id=0))(*arguments)
    for expected, of_all in zip(compute(batch), mapped, strict=True):
        np.testing.assert_allclose(of_all.reshape(expected.shape), expected, rtol=SAME, atol=SAME)


def test_gradients_accumulate_over_a_scan():
    batch = random_batch(3, (24, 20, 6, 12))
    parts = jax.tree.map(lambda x: jnp.asarray(x).reshape(4, 6, *x.shape[1:]), batch[:4])
    bias = jnp.zeros(12)

    def loss(bias, logits, *others):
        return rows(logits + bias, *others, reduction="sum")

    @jax.jit
    def accumulated(bias):
        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(bias, *part)), None

        return jax.lax.scan(add, (jnp.zeros(()), bias), parts)[0]

    value, gradient = accumulated(bias)
    losses, gradients = compute(batch)
    np.testing.assert_allclose(value, losses.sum(), rtol=SAME)
    np.testing.assert_allclose(gradient, gradients.sum(axis=(0, 1)), rtol=0, atol=SAME * np.abs(gradients).sum())


@pytest.mark.parametrize("sharded", [(True, True, True, True), (True, False, False, False)])
def test_devices_may_each_have_their_rows(sharded):
    """Whatever of the arguments varies from device to device: shard_map follows that through the scan."""
    batch = random_batch(3, (24, 20, 6, 12))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    specs = tuple(PartitionSpec("data") if one else PartitionSpec() for one in sharded)
    over_devices = jax.shard_map(
        lambda *rows: value_and_gradient(*rows, blank_id=0), mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data")
    )
    results = jax.jit(over_devices)(*map(jnp.asarray, batch[:4]))
    for expected, result in zip(compute(batch), results, strict=True):
        np.testing.assert_allclose(result, expected, rtol=SAME, atol=SAME)


def test_the_backward_pass_keeps_one_array_and_scans_nothing():
    logits, *others = map(jnp.asarray, random_batch(0, (24, 20, 6, 12))[:4])
    _, pull_back = jax.jit(lambda logits: jax.vjp(lambda x: rows(x, *others), logits))(logits)
    assert [x.shape for x in jax.tree.leaves(pull_back)] == [logits.shape]
    program = str(jax.make_jaxpr(pull_back)(jnp.ones(24)))
    assert "mul" in program
    assert "scan" not in program
    assert "exp" not in program


def test_memory_does_not_grow_with_labels_times_vocabulary():
    num_rows, frames, width, vocabulary = 2, 200, 50, 1000
    batch = random_batch(0, (num_rows, frames, width, vocabulary))
    compiled = value_and_gradient.lower(*map(jnp.asarray, batch[:4]), blank_id=0).compile()
    at_least = 4 * num_rows * frames * vocabulary  # bytes of the logits
    scores = 8 * 2 * num_rows * frames * width
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (at_least + scores) < at_least * width / 10


@pytest.mark.parametrize(("frames", "width"), [(0, 3), (3, 0), (0, 0)])
def test_arrays_without_frames_or_labels_are_rows_with_nothing_to_learn(frames, width):
    logits, labels = np.zeros((2, frames, 5), np.float32), np.zeros((2, width), np.int32)
    losses, gradients = compute(Batch(logits, labels, np.array([frames, 0]), np.array([width, 0])))
    assert losses.tolist() == [0, 0]
    assert not gradients.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "average"}, "reduction is 'average'; it must be one of mean, sum, none"),
        ({"blank_id": 12}, "blank_id is 12; with 12 logits it must be 0 to 11"),
        ({"blank_id": -1}, "blank_id is -1; with 12 logits it must be 0 to 11"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    logits, *others = map(jnp.asarray, random_batch(0, (24, 20, 6, 12))[:4])
    unchecked = inspect.unwrap(ctc_loss)  # pytest's own check of types would catch the reduction before us
    with pytest.raises(SettingError, match=message):
        unchecked(logits, labels=others[0], num_frames=others[1], num_labels=others[2], **settings)

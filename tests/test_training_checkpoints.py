"""Checkpoints come back bit by bit, the newest and the best are kept, and those of another job are refused."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mms_jax.errors import SettingError, TrainingError
from mms_jax.training.files.checkpoints import Checkpoints

# Bits that a conversion would change: signed zeros, the smallest denormals, NaN with a payload.
ODD_FLOATS = np.array([0x00000000, 0x80000000, 0x00000001, 0x7FC12345, 0xFFFFFFFF, 0x7F800000], np.uint32)
ODD_HALVES = np.array([0x0000, 0x8000, 0x0001, 0x7FC3, 0xFFFF, 0x7F80], np.uint16)


def some_state(seed: int = 0) -> dict[str, Any]:
    """Parameters of two languages with optax's optimiser state, and a leaf of every other kind."""
    rng = np.random.default_rng(seed)
    params = {
        "layers": {"adapter": {"down": {"kernel": rng.standard_normal((2, 3, 8, 4)).astype(np.float32)}}},
        "lm_head": {"bias": rng.standard_normal((2, 7)).astype(np.float32)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = jax.vmap(optimizer.init)(jax.tree.map(jnp.asarray, params))
    others = {
        "floats": ODD_FLOATS.view(np.float32),
        "halves": ODD_HALVES.view(ml_dtypes.bfloat16),
        "counts": rng.integers(-9, 9, (2,)).astype(np.int32),
        "flags": np.array([True, False]),
        "scalar": np.float32(seed),
    }
    return jax.tree.map(jnp.asarray, {"params": params, "others": others}) | {"opt_state": opt_state}


def template(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), path


def saved(checkpoints: Checkpoints, *steps: int, metrics: dict[int, float] | None = None) -> None:
    for step in steps:
        checkpoints.save(step, {"leaf": jnp.full(3, step)}, metric=(metrics or {}).get(step))
    checkpoints.wait()


# What comes back


def test_a_state_comes_back_bit_by_bit_with_what_was_saved_beside_it(tmp_path):
    state, info = some_state(), {"seed": 42, "languages": ["tur", "swe"], "rate": 1e-4, "nested": {"none": None}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, info=info, metric=0.5)
        restored = checkpoints.restore(template(state))
    assert (restored.step, restored.info) == (7, info)
    assert_same_bits(restored.state, state)


def test_another_process_finds_what_was_saved(tmp_path):
    state = some_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, some_state(2))
        checkpoints.save(2, state, info={"position": 2})
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.info(), checkpoints.info(1)) == ([1, 2], {"position": 2}, {})
        assert_same_bits(checkpoints.restore(template(state)).state, state)
        assert_same_bits(checkpoints.restore(template(state), step=1).state, some_state(2))


def test_leaves_come_back_where_the_template_has_them(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    values = np.arange(8, dtype=np.float32)
    state = {"sharded": jax.device_put(values, sharding), "free": jnp.asarray(values), "numpy": values}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        from_arrays = checkpoints.restore(state).state
        described = state | {"sharded": jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding)}
        from_description = checkpoints.restore(described).state
    for restored in (from_arrays, from_description):
        assert_same_bits(restored, state)
        assert restored["sharded"].sharding == sharding
        assert not restored["free"].committed, "a leaf without a place must follow those it is computed with"
        assert isinstance(restored["numpy"], np.ndarray)


def test_what_happens_to_the_state_after_save_does_not_reach_the_checkpoint(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def train(state):
        return jax.tree.map(lambda leaf: leaf + 1, state)

    state = train({str(i): jax.random.normal(jax.random.key(i), (300, 1000)) for i in range(4)})
    expected = jax.tree.map(np.array, state)
    numbers = np.zeros(100_000)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"donated": state, "numpy": numbers})
        numbers += 1
        for _ in range(20):
            state = train(state)
        jax.block_until_ready(state)
        restored = checkpoints.restore(
            template({"donated": state, "numpy": numbers.astype(np.float64)}) | {"numpy": numbers}
        ).state
    assert_same_bits(restored["donated"], expected)
    assert not restored["numpy"].any()


# Which are kept


@pytest.mark.parametrize(
    ("mode", "limit", "metrics", "kept", "best"),
    [
        ("min", 2, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 5.0}, [2, 4, 5], 2),
        ("max", 2, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 5.0}, [4, 5], 5),
        ("max", 1, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 1.0}, [1, 5], 1),
        ("min", 1, {1: float("nan"), 2: 2.0, 3: 2.0, 4: float("inf"), 5: 2.0}, [2, 5], 2),  # the earlier of equals
        ("min", 1, {5: float("nan")}, [5], None),
        ("max", 1, {1: float("inf"), 2: 3.0}, [2, 5], 2),
        ("min", 3, {}, [3, 4, 5], None),
        ("min", None, {4: 1.0}, [1, 2, 3, 4, 5], 4),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, mode, limit, metrics, kept, best):
    with Checkpoints(tmp_path, save_total_limit=limit, best_mode=mode) as checkpoints:
        saved(checkpoints, 1, 2, 3, 4, 5, metrics=metrics)
    with Checkpoints(tmp_path, best_mode=mode) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == (kept, 5, best)
    assert sorted(os.listdir(tmp_path)) == [str(step) for step in kept]


def test_a_smaller_limit_holds_for_what_was_there_before(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        saved(checkpoints, 0, 1, 2, 3, metrics={1: 0.1})
    with Checkpoints(tmp_path, save_total_limit=1) as checkpoints:
        saved(checkpoints, 4)
        assert checkpoints.steps() == [1, 4]


def test_a_directory_without_checkpoints_has_none(tmp_path):
    with Checkpoints(tmp_path / "new" / "one") as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
        with pytest.raises(TrainingError, match="no checkpoint"):
            checkpoints.restore({"leaf": jnp.zeros(3)})


@pytest.mark.parametrize(("settings", "named"), [({"save_total_limit": 0}, "limit"), ({"best_mode": "low"}, "mode")])
def test_a_setting_out_of_range_is_named(tmp_path, settings, named):
    with pytest.raises(SettingError, match=named):
        Checkpoints(tmp_path, **settings)


@pytest.mark.parametrize("step", [5, 4, -1])
def test_a_step_that_is_not_the_newest_is_refused(tmp_path, step):
    with Checkpoints(tmp_path) as checkpoints:
        saved(checkpoints, 5)
        with pytest.raises(TrainingError, match=rf"step {step} cannot follow .* step 5"):
            checkpoints.save(step, {"leaf": jnp.zeros(3)})
        assert int(checkpoints.restore({"leaf": jnp.zeros(3, jnp.int32)}).state["leaf"][0]) == 5


def test_what_is_no_array_or_no_json_is_refused_where_it_is_given(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for value in (3, "text", jax.random.key(0)):
            with pytest.raises(TypeError, match="opt/count"):
                checkpoints.save(0, {"opt": {"count": value}})
        with pytest.raises(TypeError, match="float32"):
            checkpoints.save(0, {"leaf": jnp.zeros(3)}, info={"loss": np.float32(1)})
        assert checkpoints.latest() is None


# A checkpoint of something else


OTHERS = {
    "another shape": (lambda state: state["params"]["lm_head"].update(bias=jnp.zeros((2, 8))), r"\[2, 7\].*\[2, 8\]"),
    "another dtype": (
        lambda state: state["params"]["lm_head"].update(bias=jnp.zeros((2, 7), jnp.bfloat16)),
        "bfloat16",
    ),
    "one more": (lambda state: state["params"]["lm_head"].update(kernel=jnp.zeros(1)), "lm_head/kernel is not there"),
    "one less": (lambda state: state["params"]["lm_head"].pop("bias"), "lm_head/bias is float32 .* there and not here"),
    "another optimiser": (lambda state: state.update(opt_state=optax.sgd(1.0).init({})), "opt_state/.* not here"),
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_template_of_another_tree_is_refused_with_the_leaf_that_differs(tmp_path, change):
    make_other, named = OTHERS[change]
    other = some_state()
    make_other(other)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, some_state())
        with pytest.raises(TrainingError, match=rf"/3: .*{named}.*(resume with|output_dir)"):
            checkpoints.restore(template(other))


def test_a_step_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        saved(checkpoints, 1, 2)
        with pytest.raises(TrainingError, match=r"step 9 \(there: 1, 2\)"):
            checkpoints.restore({"leaf": jnp.zeros(3)}, step=9)

"""Trees part and join again, and layers stack and come apart again, without a changed bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_jax.config import Wav2Vec2Config
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import (
    flatten,
    is_adapter_path,
    merge_trees,
    split_adapter,
    stack_layers,
    stacked_path,
    unflatten,
    unstack_layers,
)

CONFIG = Wav2Vec2Config(
    vocab_size=7,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=12,
    conv_dim=(4, 4),
    conv_kernel=(3, 2),
    conv_stride=(2, 2),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    adapter_attn_dim=3,
)

# Names that ours contain, and names that only look like them.
NAMES = st.sampled_from(
    ["a", "kernel", "conv_0", "norm_10", "adapter", "lm_head", "encoder", "my_layers_1", "layers_x"]
)
LEAVES = st.builds(
    lambda shape, dtype, seed: np.random.default_rng(seed).standard_normal(shape).astype(dtype),
    st.sampled_from([(), (2,), (3, 1), (1, 2, 2)]),
    st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
    st.integers(0, 2**32 - 1),
)
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=8)
)


def layered(layer: dict, *, num_layers: int, seed: int) -> dict:
    """The tree of one layer, ``num_layers`` times with other numbers, as ``layers_0 …``."""
    rng = np.random.default_rng(seed)
    return {
        f"layers_{i}": jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), layer)
        for i in range(num_layers)
    }


def assert_same(actual, expected):
    """Same paths, and bitwise the same leaves of the same dtype."""
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        ours = np.asarray(actual[path])
        assert (ours.dtype, ours.shape, ours.tobytes()) == (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()), path


def model_shapes(*, scan_layers: bool = False) -> dict:
    module = Wav2Vec2ForCTC(CONFIG, scan_layers=scan_layers)
    samples = jax.ShapeDtypeStruct((1, CONFIG.min_samples), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(1), samples)["params"]


def model_params() -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=leaf.dtype), model_shapes())


@given(TREES)
def test_unflatten_inverts_flatten(tree):
    assert_same(unflatten(flatten(tree)), tree)


@given(TREES)
def test_merge_inverts_split(tree):
    base, adapter = split_adapter(tree)
    assert_same(merge_trees(base, adapter), tree)
    assert_same(merge_trees(adapter, base), tree)


@given(TREES)
def test_every_leaf_goes_to_exactly_one_side_of_a_split(tree):
    base, adapter = (flatten(side) for side in split_adapter(tree))
    assert sorted([*base, *adapter]) == sorted(flatten(tree))
    assert not any(is_adapter_path(path) for path in base)
    assert all(is_adapter_path(path) for path in adapter)


@given(TREES, st.data())
def test_trees_that_share_a_leaf_do_not_merge(tree, data):
    flat = flatten(tree) or {"a/b": np.zeros(2)}
    shared = data.draw(st.sampled_from(sorted(flat)))
    with pytest.raises(ValueError, match=shared):
        merge_trees(unflatten(flat), unflatten({shared: np.zeros(3)}))


@pytest.mark.parametrize("path", ["a", "a/b/c"])
def test_a_leaf_where_the_other_tree_goes_on_does_not_merge(path):
    with pytest.raises(ValueError, match=path):
        merge_trees({"a": {"b": {"c": {"d": np.zeros(1)}}}}, unflatten({path: np.zeros(1)}))
    with pytest.raises(ValueError, match=path):
        merge_trees(unflatten({path: np.zeros(1)}), {"a": {"b": {"c": {"d": np.zeros(1)}}}})


def test_merging_and_splitting_leave_their_arguments_alone():
    base, adapter = {"a": {"b": np.ones(1)}}, {"a": {"adapter": {"c": np.ones(1)}}}
    merged = merge_trees(base, adapter)
    split_adapter(merged)
    merged["a"]["z"] = np.ones(1)
    assert (list(base["a"]), list(adapter["a"])) == (["b"], ["adapter"])


@settings(max_examples=30)  # JAX compiles for every new shape
@given(TREES, LEAVES, st.integers(1, 12), st.sampled_from(["", "wav2vec2/encoder/", "a/"]), st.integers(0, 99))
def test_unstack_inverts_stack(tree, leaf, num_layers, prefix, seed):
    layers = layered({"x": {"y": leaf}} if seed % 2 else leaf, num_layers=num_layers, seed=seed)
    flat = {f"{prefix}{path}": value for path, value in flatten(layers).items()}
    flat = {f"apart/{path}": value for path, value in flatten(tree).items()} | flat
    stacked = stack_layers(unflatten(flat))
    assert not any(stacked_path(path)[1] is not None for path in flatten(stacked))
    assert_same(unstack_layers(stacked), unflatten(flat))
    assert_same(stack_layers(unstack_layers(stacked)), stacked)


def test_the_tenth_layer_comes_after_the_ninth():
    tree = {f"layers_{i}": {"x": np.full(2, i)} for i in reversed(range(12))}
    np.testing.assert_array_equal(stack_layers(tree)["layers"]["x"][:, 0], np.arange(12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder/layers_1/x": None}, "encoder/layers/x: there are layers .0, 2."),
        ({"encoder/layers_0/x": None}, "encoder/layers/x"),
        ({"encoder/layers_1/x": np.zeros(3, np.float32)}, "differ in shape or dtype"),
        ({"encoder/layers_1/x": np.zeros(2, np.float16)}, "differ in shape or dtype"),  # jnp.stack would widen it
        ({"encoder/layers/x": np.zeros((3, 2), np.float32)}, "stacked already"),
    ],
)
def test_layers_that_make_no_whole_stack_are_refused(changes, message):
    flat = {f"encoder/layers_{i}/x": np.zeros(2, np.float32) for i in range(3)} | changes
    tree = unflatten({path: leaf for path, leaf in flat.items() if leaf is not None})
    with pytest.raises(ValueError, match=message):
        stack_layers(tree)


@pytest.mark.parametrize("path", ["my_layers_1/x", "layers_1x/y", "layers_/x", "layers_01/x", "conv_layers_0"])
def test_names_that_only_resemble_layers_stay(path):
    assert stacked_path(path) == (path, None)


def test_stacked_parameters_have_the_tree_of_the_scanned_module():
    stacked, scanned = flatten(stack_layers(model_params())), flatten(model_shapes(scan_layers=True))
    assert {path: leaf.shape for path, leaf in stacked.items()} == {path: leaf.shape for path, leaf in scanned.items()}
    assert_same(unstack_layers(stack_layers(model_params())), model_params())


def test_the_adapter_side_of_a_model_is_its_adapter_blocks_and_head():
    base, adapter = split_adapter(model_params())
    per_layer = {f"adapter/{part}" for part in ("norm/scale", "norm/bias", "down/kernel", "down/bias", "up/kernel")}
    per_layer |= {"adapter/up/bias"}
    expected = {f"wav2vec2/encoder/layers_{i}/{leaf}" for i in range(3) for leaf in per_layer}
    assert flatten(adapter).keys() == expected | {"lm_head/kernel", "lm_head/bias"}
    assert set(base) == {"wav2vec2"}
    stacked_base, stacked_adapter = split_adapter(stack_layers(model_params()))
    assert_same(unstack_layers(stacked_adapter), adapter)
    assert_same(unstack_layers(stacked_base), base)

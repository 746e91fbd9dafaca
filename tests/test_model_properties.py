"""What holds whatever the weights are: masking and dropping, dropout, rows that do not see each other, precision."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.errors import InvalidRngError
from jax import lax
from transformers.models.wav2vec2 import modeling_wav2vec2

from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.layers import fold_weight_norm
from mms_jax.models.trees import flatten
from tests.parity import (
    BASE,
    MMS_CONVS,
    exceeding,
    load,
    output_errors,
    quick,
    random_model,
    relative_error,
    run_jax,
    run_torch,
    small_config,
    valid_frames,
    waveforms,
)

PARITY = 2e-5  # as in test_model_parity.py, and for its reasons

# Logits here are of order 1 (the largest is 3 to 4), so this is some 50 float32 steps, absolute: sums are blocked
# otherwise in batches of other shapes. No path leads from one row, or from padding, to another row's valid frames.
INVARIANCE = 1e-5

# bfloat16 keeps 8 bits: an operand is off by up to 0.2 %. Through the twenty products between waveform and logits, and
# at the worst of a thousand logits, that comes to 2 % of the largest one.
BFLOAT16 = 3e-2

NO_DROPOUT = dict.fromkeys(
    ["hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout"], 0.0
)
BOTH_WAYS = pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
BOTH_FAMILIES = pytest.mark.parametrize("family", [{}, BASE], ids=["mms", "base"])


@pytest.fixture
def loaded(tmp_path):
    """A function from changes of the small config to (transformers' model, our config, our parameters)."""

    def make(*, stack_layers: bool = False, **changes: Any):
        model = random_model(small_config(**changes))
        return model, *load(model, tmp_path, stack_layers=stack_layers)

    return make


@pytest.fixture(scope="module")
def batch():
    """Rows of 30, 16 and 1 frames: (samples, mask)."""
    return waveforms([10 + 29 * 12, 200, 10])


# SpecAugment and layerdrop


@pytest.mark.parametrize("masked", ["time", "feature", "time and feature"])
@BOTH_FAMILIES
def test_given_indices_are_masked_as_transformers_masks_them_in_training(family, masked, loaded, batch, monkeypatch):
    model, config, params = loaded(**family, **NO_DROPOUT, mask_time_prob=0.1, mask_feature_prob=0.1)
    samples, mask = batch
    rng = np.random.default_rng(2)
    time = (rng.random((3, 30)) < 0.3) & ("time" in masked)
    feature = (rng.random((3, 24)) < 0.3) & ("feature" in masked)
    drawn = {time.shape: time, feature.shape: feature}
    monkeypatch.setattr(modeling_wav2vec2, "_compute_mask_indices", lambda shape, **_: drawn[shape])
    expected = run_torch(model.train(), samples, mask)
    ours = run_jax(config, params, samples, mask, mask_time_indices=time, mask_feature_indices=feature)
    valid = valid_frames(model, mask)
    assert exceeding(output_errors(ours, expected, valid), PARITY) == {}
    assert exceeding(output_errors(ours, run_torch(model.eval(), samples, mask), valid), PARITY)  # it has an effect


@BOTH_WAYS
@BOTH_FAMILIES
def test_a_dropped_layer_is_as_if_it_were_not_there(family, scan_layers, loaded, batch):
    model, config, params = loaded(**family, num_hidden_layers=3, stack_layers=scan_layers)
    samples, mask = batch
    keep = np.array([True, False, True])
    ours = run_jax(config, params, samples, mask, scan_layers=scan_layers, layer_keep=keep)
    encoder = model.wav2vec2.encoder
    encoder.layers = torch.nn.ModuleList(layer for layer, kept in zip(encoder.layers, keep, strict=True) if kept)
    assert ours.hidden_states is not None
    embedded, before, dropped, after = ours.hidden_states
    np.testing.assert_array_equal(before, dropped)
    ours = ours._replace(hidden_states=(embedded, before, after))
    assert exceeding(output_errors(ours, run_torch(model, samples, mask), valid_frames(model, mask)), PARITY) == {}


@BOTH_WAYS
def test_one_compilation_serves_whatever_is_masked_or_dropped(scan_layers, loaded, batch):
    _, config, params = loaded(stack_layers=scan_layers)
    module = Wav2Vec2ForCTC(config, scan_layers=scan_layers)
    traces = []

    @functools.partial(jax.jit, compiler_options=quick())
    def logits(samples, mask, arguments):
        traces.append(1)
        output: Any = module.apply({"params": params}, samples, mask, **arguments)
        return output.logits

    shapes = {"mask_time_indices": (3, 30), "mask_feature_indices": (3, 24), "layer_keep": (2,)}
    outputs = [
        logits(*batch, {name: rng.random(shape) < share for name, shape in shapes.items()})
        for rng, share in ((np.random.default_rng(3), share) for share in (0.0, 0.3, 0.6, 1.0))
    ]
    assert len(traces) == 1
    assert len({np.asarray(output).tobytes() for output in outputs}) == 4


# Dropout


@pytest.mark.parametrize("rate", NO_DROPOUT)
@BOTH_FAMILIES
def test_each_dropout_sits_where_it_does_in_transformers(family, rate, loaded, batch):
    """A rate of 1 leaves nothing to chance: whatever passes through that dropout is zero on both sides."""
    model, config, params = loaded(**family, **NO_DROPOUT | {rate: 1.0}, apply_spec_augment=False)
    ours = run_jax(config, params, *batch, seed=0)
    expected = run_torch(model.train(), *batch)
    assert exceeding(output_errors(ours, expected, valid_frames(model, batch[1])), PARITY) == {}


@pytest.mark.parametrize("rate", NO_DROPOUT)
def test_each_dropout_depends_on_its_key_and_on_nothing_else(rate, loaded, batch):
    _, config, params = loaded(**NO_DROPOUT | {rate: 0.5}, num_hidden_layers=1)
    first, again, other = (np.asarray(run_jax(config, params, *batch, seed=seed).logits) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


@BOTH_WAYS
def test_layers_draw_different_dropout(scan_layers, loaded, batch):
    """Without an adapter, an element that both of a layer's dropouts hit passes unchanged: a quarter of them here."""
    changes = NO_DROPOUT | {"hidden_dropout": 0.5, "adapter_attn_dim": None}
    _, config, params = loaded(**changes, stack_layers=scan_layers)
    states = run_jax(config, params, *batch, seed=0, scan_layers=scan_layers).hidden_states or ()
    first, second = (np.asarray(states[i] == states[i + 1])[0] for i in range(2))
    assert 0.15 < first.mean() < 0.35
    assert 0.15 < second.mean() < 0.35
    assert (first != second).any()


def test_dropout_at_rate_zero_is_no_dropout(loaded, batch):
    _, config, params = loaded(**NO_DROPOUT)
    expected = run_jax(config, params, *batch)
    np.testing.assert_allclose(run_jax(config, params, *batch, seed=0).logits, expected.logits, rtol=0, atol=INVARIANCE)


def test_without_a_key_dropout_is_an_error(loaded, batch):
    _, config, params = loaded(hidden_dropout=0.5)
    with pytest.raises(InvalidRngError, match="dropout"):
        jax.eval_shape(functools.partial(Wav2Vec2ForCTC(config).apply, deterministic=False), {"params": params}, *batch)


# Batches and padding

MMS_LENGTHS = [0, 1, 399, 400, 720, 16_000, 160_000]  # samples; below 400 there is no frame
SHORT_LENGTHS = [0, 9, 10, 22, 4000]
ALONE = {  # changes of the small config, lengths of the rows, the number of frames that each has
    "mms": ({"conv_dim": (12,) * 7} | MMS_CONVS, MMS_LENGTHS, [0, 0, 0, 1, 2, 49, 499]),
    "layer-norm features, post-norm encoder": ({"do_stable_layer_norm": False}, SHORT_LENGTHS, [0, 0, 1, 2, 333]),
}


@BOTH_WAYS
@pytest.mark.parametrize("name", ALONE)
def test_a_row_in_a_batch_is_as_if_it_were_alone(name, scan_layers, loaded):
    changes, lengths, num_frames = ALONE[name]
    _, config, params = loaded(**changes, stack_layers=scan_layers)
    samples, mask = waveforms(lengths)
    together = run_jax(config, params, samples, mask, scan_layers=scan_layers)
    assert np.isfinite(together.logits).all()
    assert together.frame_mask.sum(axis=1).tolist() == num_frames
    assert 1 < np.abs(together.logits[together.frame_mask]).max() < 10
    for row, length in enumerate(lengths):
        width = max(length, config.min_samples)
        one = slice(row, row + 1), slice(0, width)
        alone = run_jax(config, params, samples[one], mask[one], scan_layers=scan_layers)
        assert alone.frame_mask.sum() == num_frames[row]
        error = np.abs(alone.logits[0] - together.logits[row, : alone.logits.shape[1]])[: num_frames[row]]
        assert error.max(initial=0.0) <= INVARIANCE, f"row of {length} samples"


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e9, -3.4e38, "noise"])
@BOTH_WAYS
def test_what_is_in_the_padding_does_not_matter(garbage, scan_layers, loaded):
    """Not even NaN: frames that saw padding are replaced by zeros, not multiplied by them. Equal to the last bit."""
    _, config, params = loaded(stack_layers=scan_layers)
    samples, mask = waveforms([0, 9, 10, 11, 150, 358])
    filling = np.random.default_rng(4).standard_normal(samples.shape) if garbage == "noise" else garbage
    soiled = np.where(mask, samples, filling).astype(np.float32)
    expected, ours = (run_jax(config, params, x, mask, scan_layers=scan_layers) for x in (samples, soiled))
    np.testing.assert_array_equal(ours.logits, expected.logits)


def test_group_norm_models_do_depend_on_padding_so_their_rows_are_not_alone(loaded):
    model, config, params = loaded(**BASE)
    samples, mask = waveforms([200, 358])
    together = run_jax(config, params, samples, mask).logits[0, :16]
    alone = run_jax(config, params, samples[:1, :200], mask[:1, :200]).logits[0]
    assert np.abs(together - alone).max() > 0.01
    assert relative_error(together, run_torch(model, samples, mask).logits[0, :16]) <= PARITY  # as in the original


def test_audio_too_short_for_a_frame_is_an_error_that_says_what_to_do(loaded):
    _, config, params = loaded()
    with pytest.raises(ValueError, match="9 samples give no frame; pad to at least 10"):
        run_jax(config, params, np.zeros((1, 9), np.float32))


# Precision


@BOTH_WAYS
def test_bfloat16_stays_near_float32(scan_layers, loaded, batch):
    _, config, params = loaded(stack_layers=scan_layers)
    wide, narrow = (
        run_jax(config, params, *batch, scan_layers=scan_layers, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert relative_error(narrow.logits, wide.logits, where=np.asarray(wide.frame_mask)) <= BFLOAT16


def operations(jaxpr) -> Iterator[Any]:
    """Every primitive operation of a program, those inside loops and calls included."""
    for equation in jaxpr.eqns:
        inner = [value for value in equation.params.values() if hasattr(value, "jaxpr") or hasattr(value, "eqns")]
        if not inner:
            yield equation
        for program in inner:
            yield from operations(getattr(program, "jaxpr", program))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", [{}, BASE], ids=["mms", "base"])
def test_products_take_operands_of_the_dtype_and_all_else_is_float32(family, dtype, loaded, batch):
    """Norms, softmax, activations and the residual stream never see fewer bits; sums of products neither."""
    _, config, params = loaded(**family)
    program = jax.make_jaxpr(Wav2Vec2ForCTC(config, dtype).apply)({"params": params}, *map(jnp.asarray, batch))
    products, others = [], []
    for operation in operations(program.jaxpr):
        is_product = operation.primitive.name in ("dot_general", "conv_general_dilated")
        (products if is_product else others).append(operation)
    layer = 4 + 2 + 2 + (2 if config.has_adapters else 0)  # projections, scores and context, feed-forward, adapter
    assert len(products) == len(config.conv_dim) + 1 + 1 + config.num_hidden_layers * layer + 1
    for product in products:
        assert [operand.aval.dtype for operand in product.invars] == [dtype, dtype]
        assert product.outvars[0].aval.dtype == jnp.float32
        assert product.params["precision"] in (
            [(lax.Precision.HIGHEST,) * 2] if dtype == jnp.float32 else [None, (lax.Precision.DEFAULT,) * 2]
        )
    narrow = {operation.primitive.name for operation in others if operation.outvars[0].aval.dtype == jnp.bfloat16}
    assert narrow <= {"convert_element_type"}


def test_a_folded_weight_norm_gives_the_same_logits(loaded, batch):
    _, config, params = loaded()
    folded = fold_weight_norm(params)
    assert not [path for path in flatten(folded) if path.endswith(("kernel_v", "kernel_g"))]
    whole, quicker = (run_jax(config, tree, *batch).logits for tree in (params, folded))
    assert relative_error(quicker, whole) <= PARITY

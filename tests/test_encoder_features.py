"""Features equal the hidden states of transformers' encoder, from any kind of checkpoint; times are the audio's."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mms_jax
from mms_jax.checkpoint import encoder_shapes, engine, load_wav2vec2, open_source
from mms_jax.checkpoint.wav2vec2_rules import UNUSED, encoder_table
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, CheckpointError, NumericsError, SettingError
from mms_jax.models import Wav2Vec2Model
from mms_jax.models.wav2vec2 import FeatureExtractor
from tests.parity import (
    BASE,
    MMS_CONVS,
    SHORT_CONVS,
    exceeding,
    randomize,
    relative_error,
    run_torch,
    small_config,
    valid_frames,
    waveforms,
)
from tests.sounds import noise
from tests.test_lid_parity import MMS_LID, compiling_quickly, headers

# As for logits (test_model_parity.py): the largest error measured here is 1.1e-6.
PARITY = 2e-5
# Rows of a batch go through the same operations in other shapes: only the order of summation may differ.
BATCH_TOLERANCE = 1e-5
# Operands rounded to 8 significant bits (relative 2^-9 each) through two layers.
BFLOAT16_TOLERANCE = 0.1

KINDS = {
    "pretrained": transformers.Wav2Vec2ForPreTraining,
    "recognition with adapters": transformers.Wav2Vec2ForCTC,
    "classifier": transformers.Wav2Vec2ForSequenceClassification,
    "encoder alone": transformers.Wav2Vec2Model,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mms": {},
    "no adapters, large epsilon": {"adapter_attn_dim": None, "layer_norm_eps": 1e-2},
    "base": BASE,
    "layer-norm features, post-norm encoder": {"do_stable_layer_norm": False},
    "group-norm features, pre-norm encoder": {"feat_extract_norm": "group", "conv_bias": False},
    "three layers, relu": {"num_hidden_layers": 3, "hidden_act": "relu", "feat_extract_activation": "relu"},
}


SHORT: dict[str, Any] = SHORT_CONVS | {"conv_dim": (9, 11, 7)}  # three convolutions compile faster than seven


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with compiling_quickly():
        yield


def save(directory: Path, kind: str = "encoder alone", *, seed: int = 0, **changes: Any):
    """A checkpoint of that kind with random weights as transformers writes it; returns its encoder."""
    model = KINDS[kind](small_config(**{"conv_dim": (12,) * 7} | MMS_CONVS | changes)).eval()
    randomize(model, seed=seed)
    model.save_pretrained(directory)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(directory)
    return getattr(model, "wav2vec2", model)


def hear(model, clip: np.ndarray):
    """(hidden states float32 [L + 1, T, D], last hidden state [T, D]) of one clip, by transformers."""
    inputs = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)(clip, sampling_rate=16_000)
    output = run_torch(model, np.asarray(inputs.input_values[0])[None])
    return np.concatenate(output.hidden_states), output.last_hidden_state[0].numpy()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    save(path, **SHORT)
    return path


@pytest.fixture(scope="module")
def encoder(directory):
    return mms_jax.load_encoder(directory)


@pytest.fixture(scope="module")
def mms(tmp_path_factory):
    """An encoder with the convolutions of MMS: 25 ms every 20 ms."""
    path = tmp_path_factory.mktemp("mms")
    save(path)
    return mms_jax.load_encoder(path)


@pytest.fixture(scope="module")
def reference(directory):
    return transformers.Wav2Vec2Model.from_pretrained(directory).eval()


@pytest.mark.parametrize(("name", "scan_layers"), [*((name, False) for name in CONFIGS), ("base", True)])
def test_every_hidden_state_of_a_padded_batch_equals_that_of_transformers(name, scan_layers, tmp_path):
    model = save(tmp_path, seed=len(name), **CONFIGS[name] | (SHORT if name != "mms" else {}))
    config, params = load_wav2vec2(open_source(tmp_path), stack_layers=scan_layers)
    samples, mask = waveforms([9043, 5001, 400] if name == "mms" else [333, 185, 10])
    expected, valid = run_torch(model, samples, mask), valid_frames(model, mask)
    forward = functools.partial(Wav2Vec2Model(config, jnp.float32, scan_layers).apply, output_hidden_states=True)
    ours: Any = jax.jit(forward)({"params": params}, samples, mask)
    errors = {
        f"hidden_states[{i}]": relative_error(mine, theirs, where=valid)
        for i, (mine, theirs) in enumerate(zip(ours.hidden_states, expected.hidden_states, strict=True))
    }
    errors["last"] = relative_error(ours.last_hidden_state, expected.last_hidden_state, where=valid)
    assert exceeding(errors, PARITY) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_features_from_any_kind_of_checkpoint_equal_those_of_transformers(kind, tmp_path):
    model = save(tmp_path, kind, seed=len(kind), **SHORT)
    encoder, clip = mms_jax.load_encoder(tmp_path), noise(400)
    states, last = hear(model, clip)
    found = encoder.features(clip, layer="all").hidden
    assert exceeding({str(i): relative_error(found[i], states[i]) for i in range(len(states))}, PARITY) == {}
    by_name = transformers.Wav2Vec2Model.from_pretrained(tmp_path).eval()  # what users compare with
    assert relative_error(last, hear(by_name, clip)[1]) == 0


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_each_layer_is_that_of_transformers_from_either_end(directory, reference, scan_layers):
    encoder, clip = mms_jax.load_encoder(directory, scan_layers=scan_layers), noise(400)
    states, last = hear(reference, clip)
    for layer in (-3, -2, -1, 0, 1, 2) if not scan_layers else (0, 1, -1):
        assert relative_error(encoder.features(clip, layer=layer).hidden, states[layer]) <= PARITY
    # The index L is the last layer's output before the encoder's final norm: transformers 4 had it after.
    assert relative_error(states[2], last) > 10 * PARITY
    assert relative_error(encoder.features(clip).hidden, last) <= PARITY


def test_in_post_norm_encoders_the_last_layer_is_the_last_hidden_state(tmp_path):
    save(tmp_path, **BASE | SHORT)
    encoder, clip = mms_jax.load_encoder(tmp_path), noise(400)
    np.testing.assert_array_equal(encoder.features(clip, layer=-1).hidden, encoder.features(clip).hidden)


def test_a_clip_has_the_same_features_alone_and_in_any_list(encoder):
    clips = [noise(num_samples, seed=num_samples) for num_samples in (397, 0, 300, 9, 10, 150)]
    together = encoder.features(clips, layer="all", batch_size=len(clips))
    for clip, features in zip(clips, together, strict=True):
        alone = encoder.features(clip, layer="all")
        num_frames = max(0, (len(clip) - 10) // 12 + 1)
        assert features.hidden.shape == alone.hidden.shape == (3, num_frames, 24)
        assert features.hidden.dtype == np.float32
        assert np.abs(features.hidden - alone.hidden).max(initial=0) <= BATCH_TOLERANCE


def test_every_frame_lies_in_the_audio_and_starts_20_ms_after_the_one_before(mms):
    lengths = (400, 719, 720, 5000, 5039, 5040)
    for num_samples, features in zip(lengths, mms.features([noise(n) for n in lengths], layer=0), strict=True):
        assert features.duration == num_samples / 16_000
        assert features.times.shape == features.centers.shape == features.hidden.shape[:1]
        np.testing.assert_allclose(features.times, 0.02 * np.arange(len(features.times)), rtol=0, atol=1e-12)
        np.testing.assert_allclose(features.centers - features.times, 0.0125)
        left = num_samples - round(features.times[-1] * 16_000)
        assert 400 <= left < 720  # the last frame is whole, and there is no room for another


def test_the_times_are_where_the_encoder_hears(mms):
    click, position = noise(5000), 2600
    click[position] += 1
    convolve = jax.jit(FeatureExtractor(mms.config).apply)
    variables = {"params": mms.params["feature_extractor"]}
    heard = [np.asarray(convolve(variables, clip[None]))[0] for clip in (noise(5000), click)]
    features = mms.features(click, layer=0)
    ends = 2 * features.centers - features.times
    holds = (features.times <= position / 16_000) & (ends > position / 16_000)
    assert holds.sum() == 2  # frames overlap by 5 ms
    np.testing.assert_array_equal((heard[0] != heard[1]).any(axis=1), holds)


def test_features_are_the_callers_own(encoder):
    one, two = encoder.features([noise(400), noise(400)])
    one.hidden[:] = 0
    assert two.hidden.any()
    assert encoder.features(noise(400)).hidden.any()


def test_bfloat16_is_close_and_its_features_are_float32(directory, encoder):
    small, clip = mms_jax.load_encoder(directory, dtype="bfloat16"), noise(400)
    found = small.features(clip).hidden
    assert found.dtype == np.float32
    assert relative_error(found, encoder.features(clip).hidden) <= BFLOAT16_TOLERANCE
    assert small.params["feature_projection"]["projection"]["kernel"].dtype == "bfloat16"


def test_module_and_params_are_usable_as_they_are(encoder):
    clip = noise(400)
    output = jax.jit(encoder.module.apply)({"params": encoder.params}, *encoder.feature_extractor([clip]))
    assert relative_error(output.last_hidden_state[0], encoder.features(clip).hidden) <= PARITY
    assert repr(encoder).endswith("2 layers of width 24, float32)")


# Bad input


@pytest.mark.parametrize("layer", [3, -4, 1.0, True, "last", b"all", [1]])
def test_a_layer_that_is_not_there_is_named_with_those_that_are(encoder, layer):
    with pytest.raises(SettingError, match=r"0 … 2 \(or -3 … -1\), 'all'"):
        encoder.features(noise(1000), layer=layer)


def test_one_bad_item_leaves_the_others_alone(encoder, tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio")
    bad = [tmp_path / "text.wav", tmp_path / "absent.wav", np.full(5000, np.nan)]
    clean = encoder.features([noise(400), noise(300, seed=1)])
    mixed = encoder.features([noise(400), *bad, noise(300, seed=1)])
    np.testing.assert_array_equal(mixed[0].hidden, clean[0].hidden)
    np.testing.assert_array_equal(mixed[4].hidden, clean[1].hidden)
    for features, name in zip(mixed[1:4], ("text.wav", "absent.wav", "item 3"), strict=True):
        assert isinstance(features.error, AudioError)
        assert name in str(features.error)
        for use in (lambda f: f.hidden, lambda f: f.times, lambda f: f.centers):
            with pytest.raises(AudioError):
                use(features)
    with pytest.raises(AudioError, match=r"absent\.wav"):
        encoder.features(tmp_path / "absent.wav")
    assert encoder.features([]) == []


def test_output_that_is_not_finite_is_an_error(directory):
    encoder = mms_jax.load_encoder(directory)
    encoder.params["encoder"]["norm"]["scale"] *= np.inf
    results = encoder.features([noise(400), noise(9)])
    assert isinstance(results[0].error, NumericsError)
    assert results[1].hidden.shape == (0, 24)
    assert encoder.features(noise(400), layer=1).error is None  # computed without that norm


def edit_tensors(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["pretrained", "encoder alone"])
@pytest.mark.parametrize(
    ("name", "problem"), [("decoder.weight", "unknown: decoder.weight"), ("encoder.layer_norm.weight", "missing: ")]
)
def test_only_what_the_table_lists_may_stay_unread(kind, name, problem, tmp_path):
    save(tmp_path, kind)
    prefix = "" if kind == "encoder alone" else "wav2vec2."

    def change(tensors):
        if name == "decoder.weight":
            tensors[name] = np.zeros(3, np.float32)
        else:
            del tensors[prefix + name]

    edit_tensors(tmp_path, change)
    with pytest.raises(CheckpointError, match=problem):
        mms_jax.load_encoder(tmp_path)


def test_an_encoder_alone_comes_without_anything_unread(tmp_path):
    save(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.bias": np.zeros(3, np.float32)}))
    with pytest.raises(CheckpointError, match=r"unknown: lm_head\.bias"):
        mms_jax.load_encoder(tmp_path)


def test_weight_norm_in_the_spelling_of_older_files_is_read(tmp_path):
    save(tmp_path / "new", "pretrained")
    shutil.copytree(tmp_path / "new", tmp_path / "old")

    def rename(tensors):
        for new, old in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ):
            stem = "wav2vec2.encoder.pos_conv_embed.conv."
            tensors[stem + old] = tensors.pop(stem + new)

    edit_tensors(tmp_path / "old", rename)
    new, old = (mms_jax.load_encoder(tmp_path / name).params for name in ("new", "old"))
    assert jax.tree.all(jax.tree.map(np.array_equal, new, old))


@pytest.mark.parametrize(("kind", "loader"), [("pretrained", "load_encoder"), ("encoder alone", "load_encoder")])
def test_an_encoder_is_refused_as_anything_else_with_the_loader_to_use(kind, loader, tmp_path):
    save(tmp_path, kind)
    for load in (mms_jax.load_asr, mms_jax.load_lid):
        with pytest.raises(CheckpointError, match=f"use {loader}"):
            load(tmp_path)


# The real sizes, by shapes

MMS_300M: dict[str, Any] = MMS_LID | {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "mms-300m": (MMS_300M | {"codevector_dim": 768, "proj_codevector_dim": 768}, 315_438_720),
    "mms-1b": (MMS_LID | {"codevector_dim": 1024, "proj_codevector_dim": 1024}, 962_497_408),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_the_published_encoders_has_its_place_or_a_reason_to_stay_unread(name):
    values: dict[str, Any]
    values, num_parameters = PUBLISHED[name]
    theirs = transformers.Wav2Vec2Config(**values)
    with torch.device("meta"):
        tensors = headers(transformers.Wav2Vec2ForPreTraining(theirs))
    config = Wav2Vec2Config.from_dict(json.loads(theirs.to_json_string()))
    shapes = encoder_shapes(config)
    bindings = engine.bind(encoder_table(config, bare=False), tensors, shapes, source=name)
    assert {binding.rule.jax for binding in bindings} == shapes.keys()
    unread = tensors.keys() - {binding.name for binding in bindings}
    assert unread == {key for key in UNUSED if key.split(".")[0] in ("quantizer", "project_q", "project_hid")}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == num_parameters
    bare = {key.removeprefix("wav2vec2."): info for key, info in tensors.items() if key not in unread}
    assert len(engine.bind(encoder_table(config, bare=True), bare, shapes, source=name)) == len(shapes)

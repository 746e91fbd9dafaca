"""VITS checkpoints in every form load bit by bit, what we write transformers loads, and what does not fit is named."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from mms_jax.checkpoint import load_vits, open_source, save_vits, vits_param_shapes
from mms_jax.checkpoint.vits import VitsCheckpoint, _shapes
from mms_jax.checkpoint.vits_rules import vits_table
from mms_jax.config import VitsConfig
from mms_jax.errors import CheckpointError
from mms_jax.models.trees import flatten, unflatten
from mms_jax.models.vits import VitsModel
from mms_jax.models.vits.decoder import Generator
from tests.parity import quick
from tests.safetensors_files import by_library
from tests.vits_parity import (
    DETERMINISTIC,
    SPEAKERS,
    Case,
    random_vits,
    run_jax,
    small_vits,
    speak,
)
from tests.vits_parity import load as load_saved

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOICE = "one speaker, stochastic durations"
MANY = "several speakers"
CONFIGS: dict[str, dict[str, Any]] = {
    VOICE: {"num_hidden_layers": 2},
    "deterministic durations": DETERMINISTIC,
    MANY: SPEAKERS | {"depth_separable_num_layers": 3},
    "several speakers, deterministic": SPEAKERS | DETERMINISTIC,
    "one speaker with parts for more": {"speaker_embedding_size": 3},
    "no biases in the attention": {"use_bias": False, "ffn_kernel_size": 4},
    "twelve layers": {"num_hidden_layers": 12, "posterior_encoder_num_wavenet_layers": 12},  # 10 is not before 2
    "kernels of one, which are not pointwise": {"ffn_kernel_size": 1, "wavenet_kernel_size": 1},
    "blocks of different depths": {
        "resblock_kernel_sizes": [3, 5, 7],
        "resblock_dilation_sizes": [[1, 3], [2], [1, 2, 3]],
    },
}
FLOAT32_PARTS = ("text_encoder/", "duration_predictor/")

Tensors = dict[str, torch.Tensor]


@functools.cache
def model_of(name: str) -> transformers.VitsModel:
    return random_vits(small_vits(**CONFIGS[name]), seed=len(name))


def saved(tmp_path: Path, name: str = VOICE, **options: Any) -> Path:
    """A directory as transformers writes it."""
    model_of(name).save_pretrained(tmp_path / "theirs", **options)
    return tmp_path / "theirs"


def load(directory: Path, **options: Any) -> VitsCheckpoint:
    return load_vits(open_source(directory), **options)


def from_pretrained(directory: Path, **options: Any) -> Any:
    return transformers.VitsModel.from_pretrained(directory, **options)


def change_tensors(directory: Path, change: Callable[[Tensors], Any]) -> None:
    """Change the tensors of a saved checkpoint in place."""
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, directory / WEIGHTS, {"format": "pt"})


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def old_spelling(name: str) -> str:
    """The name of a weight norm's tensor in the published checkpoints."""
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"parametrizations.weight.{new}", old)
    return name


def assert_same_trees(actual: Any, expected: Any) -> None:
    """Same paths, dtypes, shapes and bits."""
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        assert actual[path].dtype == leaf.dtype, path
        assert actual[path].shape == leaf.shape, path
        assert np.asarray(actual[path]).tobytes() == np.asarray(leaf).tobytes(), path


# ------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_survives_load_and_save_bit_by_bit(name, tmp_path):
    theirs = saved(tmp_path, name)
    config, params = load(theirs)
    save_vits(tmp_path / "ours", config=config, params=params)
    before, after = ((folder / WEIGHTS).read_bytes() for folder in (theirs, tmp_path / "ours"))
    assert by_library(after) == by_library(before)
    assert len(by_library(after)) > 90


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_what_is_saved_with_nothing_missing_and_speaks_the_same(name, tmp_path):
    model = model_of(name)
    config, params = load(saved(tmp_path, name))
    save_vits(tmp_path / "ours", config=config, params=params)
    again, info = from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert again.dtype == torch.float32
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    case = {"input_ids": torch.arange(7)[None], "speaker_id": 2 if config.num_speakers > 1 else None}
    for speaker in (model, again):
        speaker.noise_scale = speaker.noise_scale_duration = 0.0
    with torch.no_grad():  # the same numbers elsewhere in memory: torch may add them up in another order
        torch.testing.assert_close(again(**case).waveform, model(**case).waveform, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_rules_name_exactly_the_tensors_of_a_model_and_init_makes_exactly_their_parameters(name):
    config = VitsConfig.from_dict(small_vits(**CONFIGS[name]).to_dict())
    tensors = {key: tuple(tensor.shape) for key, tensor in model_of(name).state_dict().items()}
    shapes = vits_param_shapes(config)
    rules = [rule for rule in vits_table(config).rules if rule.jax in shapes]
    assert {rule.torch: rule.layout.shape(shapes[rule.jax]) for rule in rules} == tensors
    assert len({rule.jax for rule in rules}) == len(rules) == len(shapes)


def test_an_initialised_model_is_saved_and_loaded(tmp_path):
    config = VitsConfig.from_dict(small_vits(**CONFIGS[MANY]).to_dict())
    module = VitsModel(config)
    init = jax.jit(functools.partial(module.init, method="touch"), compiler_options=quick())
    params = init(jax.random.key(0))["params"]
    assert {path: leaf.shape for path, leaf in flatten(params).items()} == vits_param_shapes(config)
    save_vits(tmp_path, config=config, params=params)
    assert load(tmp_path).config == config
    assert_same_trees(load(tmp_path).params, params)


def test_shapes_are_found_without_tracing_the_loops_of_the_decoder(monkeypatch):
    """They would be most of the time that a load takes; any other way into the decoder shows that they are there."""

    def looped(*_, **__):
        raise AssertionError("the loop was traced")

    config = VitsConfig.from_dict(small_vits(**CONFIGS[VOICE]).to_dict())
    monkeypatch.setattr(Generator, "by_window", looped)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    _shapes.cache_clear()
    shapes = vits_param_shapes(config)
    params = unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})
    latents = jax.ShapeDtypeStruct((1, 3, config.flow_size), jnp.float32)
    decode = functools.partial(VitsModel(config).apply, method="decode")
    with pytest.raises(AssertionError, match="the loop was traced"):
        jax.eval_shape(decode, {"params": params}, latents, jax.ShapeDtypeStruct((1, 3), bool))


def test_the_layout_of_every_kind_of_tensor_is_the_one_of_flax(tmp_path):
    theirs = {name: tensor.numpy() for name, tensor in model_of(VOICE).state_dict().items()}
    ours = flatten(load(saved(tmp_path)).params)
    wavenet = "flow.flows.1.wavenet.in_layers.0.parametrizations.weight.original"
    dilated = "duration_predictor.flows.2.conv_dds.convs_dilated.0.weight"
    expected = {
        "text_encoder/embed_tokens": theirs["text_encoder.embed_tokens.weight"],
        "text_encoder/layers_1/attention/q/kernel": theirs["text_encoder.encoder.layers.1.attention.q_proj.weight"].T,
        "text_encoder/layers_1/attention/emb_rel_k": theirs["text_encoder.encoder.layers.1.attention.emb_rel_k"],
        "text_encoder/layers_1/norm/scale": theirs["text_encoder.encoder.layers.1.layer_norm.weight"],
        "text_encoder/project/kernel": theirs["text_encoder.project.weight"][:, :, 0].T,
        "duration_predictor/flows_2/conv_dds/convs_dilated_0/kernel": np.einsum("oik->kio", theirs[dilated]),
        "duration_predictor/flows_0/log_scale": theirs["duration_predictor.flows.0.log_scale"],
        "flow/flows_1/wavenet/in_0/kernel_g": np.einsum("oik->kio", theirs[f"{wavenet}0"]),
        "flow/flows_1/wavenet/in_0/kernel_v": np.einsum("oik->kio", theirs[f"{wavenet}1"]),
        "decoder/upsampler_1/kernel": np.einsum("iok->koi", theirs["decoder.upsampler.1.weight"]),
        "decoder/resblocks_3/convs2_0/kernel": np.einsum("oik->kio", theirs["decoder.resblocks.3.convs2.0.weight"]),
        "posterior_encoder/conv_pre/bias": theirs["posterior_encoder.conv_pre.bias"],
    }
    for path, tensor in expected.items():
        np.testing.assert_array_equal(ours[path], tensor, err_msg=path)


@pytest.mark.parametrize("name", [VOICE, MANY])
def test_the_published_spelling_of_the_weight_norm_gives_the_same_parameters(name, tmp_path):
    directory = saved(tmp_path, name)
    new = load(directory).params
    change_tensors(directory, lambda tensors: [tensors.update({old_spelling(k): tensors.pop(k)}) for k in [*tensors]])
    spelled = by_library((directory / WEIGHTS).read_bytes()).keys()
    assert "flow.flows.0.wavenet.in_layers.0.weight_g" in spelled
    assert not [key for key in spelled if "parametrizations" in key]
    assert_same_trees(load(directory).params, new)


def test_a_sharded_checkpoint_loads_as_the_whole_one(tmp_path):
    model_of(MANY).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert (tmp_path / "shards" / INDEX).exists()
    whole, shards = (load(folder) for folder in (saved(tmp_path, MANY), tmp_path / "shards"))
    assert shards.config == whole.config
    assert_same_trees(shards.params, whole.params)


# ------------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_matrices_of_flow_decoder_and_posterior_encoder_take_the_dtype_asked_for_and_nothing_else(
    stored, dtype, tmp_path
):
    directory = saved(tmp_path, MANY)
    change_tensors(directory, lambda tensors: tensors.update({k: tensor.to(stored) for k, tensor in tensors.items()}))
    source = {k: tensor.float().numpy() for k, tensor in safetensors.torch.load_file(directory / WEIGHTS).items()}
    config, params = load(directory, dtype=dtype)
    flat = flatten(params)
    narrow = {path for path, leaf in flat.items() if leaf.dtype != jnp.float32}
    matrices = {path for path in flat if path.endswith(("/kernel", "/kernel_v"))}
    assert narrow == (
        set() if dtype == "float32" else {path for path in matrices if not path.startswith(FLOAT32_PARTS)}
    )
    assert {path.split("/")[0] for path in narrow} in (set(), {"flow", "decoder", "posterior_encoder"})
    for rule in vits_table(config).rules:
        if rule.jax in flat:
            expected = rule.layout.convert(source[rule.torch]).astype(flat[rule.jax].dtype)
            np.testing.assert_array_equal(flat[rule.jax], expected, err_msg=rule.jax)


def test_bfloat16_changes_no_duration_and_little_of_the_sound(tmp_path):
    reference = speak(Case(CONFIGS[VOICE], (12, 5)))
    reference.model.save_pretrained(tmp_path)
    num_frames = int(reference.batch.num_frames.max())
    exact, coarse = (
        run_jax(*load(tmp_path, dtype=dtype), reference.text, reference.noise, num_frames=num_frames, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    for one, other in zip(exact.prior, coarse.prior, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(exact.num_samples, coarse.num_samples)
    # bfloat16 keeps 8 bits: operands are off by up to 0.2 %, and ten layers of random weights by ten times that.
    assert 1e-4 < np.abs(exact.waveform - coarse.waveform).max() < 0.05


# ------------------------------------------------------------------------------------------------ what does not fit

QUERY = "text_encoder.encoder.layers.1.attention.q_proj.weight"
POINTWISE = "flow.flows.0.conv_pre.weight"
GAIN = "flow.flows.1.wavenet.in_layers.1.parametrizations.weight.original0"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(QUERY), ["1 tensor(s) missing", f"{QUERY} [16, 16]", "num_hidden_layers"]),
        (lambda t: t.pop(GAIN), ["1 tensor(s) missing", f"{GAIN} [32, 1, 1]", "flows and WaveNet layers"]),
        (lambda t: t.update({"extra.weight": torch.ones(2, 3)}), ["1 tensor(s) unknown", "extra.weight [2, 3]"]),
        (lambda t: t.update({QUERY: torch.ones(16, 15)}), [QUERY, "[16, 15]", "[16, 16]"]),
        (lambda t: t.update({QUERY: torch.ones(16, 16, 1)}), [QUERY, "[16, 16, 1]", "[16, 16]"]),
        (lambda t: t.update({POINTWISE: torch.ones(16, 6, 3)}), [POINTWISE, "[16, 6, 3]", "[16, 6, 1]"]),
        (lambda t: t.update({POINTWISE: torch.ones(16, 6)}), [POINTWISE, "[16, 6]", "[16, 6, 1]"]),
        (lambda t: t.update({GAIN: torch.ones(1, 1, 32)}), [GAIN, "[1, 1, 32]", "[32, 1, 1]"]),
        (lambda t: t.update({old_spelling(GAIN): torch.ones(32, 1, 1)}), ["both", GAIN, old_spelling(GAIN)]),
        (lambda t: t.update({QUERY: torch.ones(16, 16, dtype=torch.int64)}), [QUERY, "[16, 16]", "I64"]),
        (lambda t: t[QUERY][3].fill_(torch.nan), [QUERY, "NaN or infinity"]),
        (
            lambda t: t.update({"discriminator.convs.0.weight": torch.ones(2)}),
            ["discriminator.convs.0.weight [2]", "a file of their own"],
        ),
    ],
)
def test_a_wrong_tensor_is_named_with_its_shape_and_file(change, parts, tmp_path):
    directory = saved(tmp_path)
    change_tensors(directory, change)
    with pytest.raises(CheckpointError) as raised:
        load(directory)
    assert [part for part in [*parts, str(directory), WEIGHTS] if part not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (MANY, {"num_hidden_layers": 2}, r"missing: text_encoder\.encoder\.layers\.1\..*num_hidden_layers"),
        (MANY, {"window_size": 5}, r"emb_rel_k has shape \[1, 9, 8\], the config asks for \[1, 11, 8\]"),
        (MANY, {"use_bias": False}, r"unknown: .*attention\.k_proj\.bias.*use_bias"),
        (MANY, DETERMINISTIC, r"missing: .*duration_predictor\.conv_1.*use_stochastic_duration_prediction"),
        (VOICE, DETERMINISTIC, r"unknown: .*duration_predictor\.conv_dds.*use_stochastic_duration_prediction"),
        (
            "several speakers, deterministic",
            {"use_stochastic_duration_prediction": True},
            r"unknown: .*duration_predictor\.conv_1.*use_stochastic_duration_prediction",
        ),
        (MANY, {"duration_predictor_num_flows": 1}, r"unknown: .*predictor\.flows.*duration_predictor_num_flows"),
        (MANY, {"depth_separable_num_layers": 4}, r"missing: .*duration_predictor.*depth_separable_num_layers"),
        (MANY, {"prior_encoder_num_flows": 3}, r"missing: flow\.flows\.2\..*numbers of flows"),
        (VOICE, {"prior_encoder_num_wavenet_layers": 3}, r"missing: flow\.flows\.0\.wavenet\..*WaveNet layers"),
        (VOICE, {"spectrogram_bins": 8}, r"posterior_encoder\.conv_pre\.weight has shape \[16, 9, 1\].*\[16, 8, 1\]"),
        (VOICE, {"upsample_rates": [8], "upsample_kernel_sizes": [8]}, r"unknown: .*decoder\..*upsample_rates"),
        (VOICE, {"upsample_kernel_sizes": [8, 6]}, r"upsampler\.1\.weight has shape \[8, 4, 4\].*\[8, 4, 6\]"),
        (MANY, {"resblock_dilation_sizes": [[3], [2, 4]]}, r"missing: .*resblocks\.1\.convs1\.1.*resblock_dilation"),
        (MANY, {"num_speakers": 4}, r"embed_speaker\.weight has shape \[3, 5\], the config asks for \[4, 5\]"),
        (MANY, {"num_speakers": 1}, r"1 tensor\(s\) unknown: embed_speaker\.weight \[3, 5\]\. .*num_speakers"),
        (MANY, {"speaker_embedding_size": 6}, r"has shape \[.*5.*\], the config asks for \[.*6"),
        (MANY, {"num_speakers": 1, "speaker_embedding_size": 0}, r"unknown: .*cond.*speaker_embedding_size"),
        (VOICE, SPEAKERS, r"missing: .*cond.*num_speakers and speaker_embedding_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_config_that_contradicts_the_weights_is_an_error_that_says_where(name, changes, message, tmp_path):
    directory = saved(tmp_path, name)
    change_config(directory, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        load(directory)
    assert str(directory) in str(raised.value)


def test_a_decoder_with_its_weight_norm_is_refused_and_the_advice_given_helps(tmp_path):
    model = random_vits(small_vits(**CONFIGS[VOICE]))
    expected = load_saved(model, tmp_path / "folded")
    model.decoder.apply_weight_norm()
    model.save_pretrained(tmp_path / "normed")
    with pytest.raises(CheckpointError, match=r"missing: decoder\..*saved with its weight norm") as raised:
        load(tmp_path / "normed")
    assert 'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")' in str(raised.value)
    parametrize = torch.nn.utils.parametrize
    for layer in filter(parametrize.is_parametrized, [*model.decoder.modules()]):
        parametrize.remove_parametrizations(layer, "weight")
    again = load_saved(model, tmp_path / "advised")
    for one, other in zip(*map(jax.tree.leaves, (again.params, expected.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flat: flat.pop("decoder/conv_pre/bias"), r"missing: decoder/conv_pre/bias \[16\].*upsample_rates"),
        (lambda flat: flat.update({"discriminator/bias": jnp.ones(2)}), r"unknown: discriminator/bias \[2\]"),
        (lambda flat: flat.update({"decoder/conv_pre/bias": jnp.ones(7)}), r"conv_pre/bias has shape \[7\].*\[16\]"),
        (lambda flat: flat.update({"decoder/conv_pre/bias": jnp.full(16, jnp.nan)}), r"conv_pre\.bias holds NaN"),
    ],
)
def test_a_tree_that_is_not_the_models_is_not_saved_and_the_old_checkpoint_stays(change, message, tmp_path):
    config, params = load(saved(tmp_path))
    save_vits(tmp_path / "ours", config=config, params=params)
    before = {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    flat = flatten(params)
    change(flat)
    with pytest.raises(CheckpointError, match=message):
        save_vits(tmp_path / "ours", config=config, params=unflatten(flat))
    assert {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == before

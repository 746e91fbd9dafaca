"""A checkpoint that is incomplete, inconsistent or of another kind is refused, and the error names what is wrong."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from mms_jax.checkpoint import Checkpoint, load_ctc, open_source, open_weights
from mms_jax.errors import CheckpointError, ConfigError
from tests.parity import BASE, random_model, small_config
from tests.safetensors_files import plant_bombs

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "wav2vec2.encoder.layers.1.attention.q_proj.weight"
HEAD = "lm_head.weight"
POSITION = "wav2vec2.encoder.pos_conv_embed.conv"

Tensors = dict[str, torch.Tensor]


@functools.cache
def model() -> transformers.Wav2Vec2ForCTC:
    return random_model(small_config())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A sound checkpoint, for the tests to spoil."""
    model().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A sound checkpoint in several files."""
    model().save_pretrained(tmp_path / "shards", max_shard_size="9KB")
    return tmp_path / "shards"


def load(directory: Path) -> Checkpoint:
    return load_ctc(open_source(directory))


def change_tensors(directory: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, directory / WEIGHTS, {"format": "pt"})


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_the_checkpoints_that_are_spoiled_below_are_sound(directory, shards):
    assert load(directory).config == load(shards).config


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(QUERY), ["1 tensor(s) missing", f"{QUERY} [24, 24]"]),
        (lambda t: t.pop(f"{POSITION}.bias"), ["1 tensor(s) missing", f"{POSITION}.bias [24]"]),
        (lambda t: t.update({"extra.weight": torch.ones(2, 3)}), ["1 tensor(s) unknown", "extra.weight [2, 3]"]),
        (lambda t: t.update({QUERY: torch.ones(24, 23)}), [QUERY, "[24, 23]", "[24, 24]"]),
        (lambda t: t.update({QUERY: torch.ones(24 * 24)}), [QUERY, "[576]", "[24, 24]"]),
        (lambda t: t.update({QUERY: torch.ones(())}), [QUERY, "[]", "[24, 24]"]),
        (lambda t: t.update({"lm_head.bias": torch.ones(23, 1)}), ["lm_head.bias", "[23, 1]", "[23]"]),
        (lambda t: t.update({QUERY: torch.ones(24, 24, dtype=torch.int64)}), [QUERY, "[24, 24]", "I64"]),
        (lambda t: t.update({QUERY: torch.ones(24, 24, dtype=torch.bool)}), [QUERY, "[24, 24]", "BOOL"]),
        (lambda t: t.update({QUERY: torch.ones(24, 24).to(torch.float8_e4m3fn)}), [QUERY, "[24, 24]", "F8_E4M3"]),
        (lambda t: t[QUERY][3].fill_(torch.nan), [QUERY, "NaN or infinity"]),
        (lambda t: t["lm_head.bias"][-1:].fill_(-torch.inf), ["lm_head.bias", "NaN or infinity"]),
    ],
)
def test_a_wrong_tensor_is_named_with_its_shape_and_file(change, parts, directory):
    change_tensors(directory, change)
    with pytest.raises(CheckpointError) as raised:
        load(directory)
    assert [part for part in [*parts, str(directory), WEIGHTS] if part not in str(raised.value)] == []


@pytest.mark.parametrize("suffixes", [("original0", "weight_g"), ("original1", "weight_v")])
def test_a_tensor_under_both_its_names_is_an_error_that_names_both(suffixes, directory):
    new, old = f"{POSITION}.parametrizations.weight.{suffixes[0]}", f"{POSITION}.{suffixes[1]}"
    change_tensors(directory, lambda tensors: tensors.update({old: tensors[new].clone()}))
    with pytest.raises(CheckpointError, match="holds both") as raised:
        load(directory)
    assert new in str(raised.value)
    assert old in str(raised.value)


def test_many_wrong_tensors_give_one_short_message(directory):
    change_tensors(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
    with pytest.raises(CheckpointError, match=r"missing: .* …") as raised:
        load(directory)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vocab_size", 22, r"lm_head\.(weight|bias) has shape \[23.*the config asks for \[22"),
        ("hidden_size", 48, r"has shape \[.*24.*the config asks for \[.*48"),
        ("num_hidden_layers", 1, r"unknown: .*encoder\.layers\.1\..*num_hidden_layers in config\.json"),
        ("num_hidden_layers", 3, r"missing: .*encoder\.layers\.2\..*num_hidden_layers in config\.json"),
        ("intermediate_size", 38, r"feed_forward.*has shape \[.*37.*the config asks for \[.*38"),
        ("adapter_attn_dim", None, r"12 tensor\(s\) unknown: .*adapter_layer.*adapter_attn_dim .*in config\.json"),
        ("adapter_attn_dim", 6, r"adapter_layer\.linear_..*has shape \[.*5.*the config asks for \[.*6"),
        ("do_stable_layer_norm", False, r"unknown: .*adapter_layer"),
        ("conv_bias", False, r"3 tensor\(s\) unknown: .*conv_layers\.0\.conv\.bias \[9\].*conv_bias .*in config\.json"),
        ("feat_extract_norm", "group", r"unknown: .*conv_layers\.1\.layer_norm.*feat_extract_norm in config\.json"),
        ("conv_kernel", [7, 2, 2], r"conv_layers\.2\.conv\.weight has shape \[7, 11, 1\], .*\[7, 11, 2\]"),
        ("num_conv_pos_embeddings", 9, r"original[01] has shape"),
        ("num_conv_pos_embedding_groups", 8, r"original1 has shape \[24, 6, 8\], the config asks for \[24, 3, 8\]"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_an_error_that_says_where(name, value, message, directory):
    change_json(directory / "config.json", lambda config: config.update({name: value}))
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_convolution_biases_that_the_config_asks_for_are_missed(tmp_path):
    random_model(small_config(conv_bias=False)).save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", lambda config: config.update({"conv_bias": True}))
    with pytest.raises(CheckpointError, match=r"3 tensor\(s\) missing: .*conv\.bias \[11\].*conv_bias"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (transformers.Wav2Vec2ForPreTraining, "pretrained encoder without a CTC head.*load_encoder"),
        (transformers.Wav2Vec2ForSequenceClassification, "a classifier.*load_lid"),
        (transformers.Wav2Vec2Model, "no recognition .CTC. model"),
    ],
)
@pytest.mark.parametrize("changes", [{}, BASE], ids=["mms", "base"])
def test_a_checkpoint_of_another_kind_is_called_by_its_name(kind, message, changes, tmp_path):
    config = small_config(**changes, codevector_dim=8, proj_codevector_dim=8, num_codevectors_per_group=4)
    kind(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------ files


def test_the_bomb_goes_off_where_it_is_unpickled(directory):
    fired = plant_bombs(directory, "x.bin")
    pickle.loads((directory / "x.bin").read_bytes())
    assert fired.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", WEIGHTS, INDEX, "config.json"])
def test_a_pickle_is_refused_by_name_and_never_opened_as_one(name, directory):
    if name != "config.json":
        (directory / WEIGHTS).unlink()
    fired = plant_bombs(directory, name)
    with pytest.raises(CheckpointError, match=name) as raised:
        load(directory)
    assert not fired.exists()
    if name.startswith("pytorch_model"):
        assert "pickle" in str(raised.value)
        assert "`python -m convert` makes safetensors of it" in str(raised.value)


def test_a_pickle_beside_good_weights_is_ignored(directory):
    fired = plant_bombs(directory, "pytorch_model.bin", "training_args.bin")
    load(directory)
    assert not fired.exists()


def test_a_directory_without_weights_says_what_it_has(directory):
    (directory / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor .*found: config\.json"):
        load(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"no config\.json there"), (b"{", "not valid JSON"), (b"[]", "expected an object"), (b"\xff", "not valid")],
)
def test_a_missing_or_broken_config_is_named(content, message, directory):
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        load(directory)
    assert "config.json" in str(raised.value)
    assert content is None or isinstance(raised.value, ConfigError)


def shard_of(shards: Path, name: str) -> str:
    return json.loads((shards / INDEX).read_text())["weight_map"][name]


def test_a_missing_shard_is_named(shards):
    missing = shard_of(shards, HEAD)
    (shards / missing).unlink()
    with pytest.raises(CheckpointError, match=f"no {missing} there"):
        load(shards)


@pytest.mark.parametrize("outside", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\0b"])
def test_an_index_cannot_point_outside_the_directory(outside, shards):
    evil = safetensors.torch.save({HEAD: torch.ones(23, 24)})
    (shards.parent / "evil.safetensors").write_bytes(evil)
    change_json(shards / INDEX, lambda index: index["weight_map"].update({HEAD: outside}))
    with pytest.raises(CheckpointError, match=rf"{INDEX}: shard .* is not a plain file name"):
        load(shards)


def test_a_tensor_in_another_shard_than_the_index_says_is_named_with_both(shards):
    here, there = shard_of(shards, HEAD), shard_of(shards, QUERY)
    assert here != there
    change_json(shards / INDEX, lambda index: index["weight_map"].update({HEAD: there}))
    with pytest.raises(CheckpointError, match=rf"lm_head\.weight is in {here}, the index says {there}"):
        load(shards)


def test_a_tensor_that_the_index_lacks_is_named(shards):
    here = shard_of(shards, HEAD)
    change_json(shards / INDEX, lambda index: index["weight_map"].pop(HEAD))
    with pytest.raises(CheckpointError, match=rf"lm_head\.weight is in {here}, the index says None"):
        load(shards)


def test_a_tensor_that_no_shard_holds_is_named(shards):
    here = shard_of(shards, HEAD)
    tensors = safetensors.torch.load_file(shards / here)
    del tensors[HEAD]
    safetensors.torch.save_file(tensors, shards / here)
    with pytest.raises(CheckpointError, match=rf"lm_head\.weight should be in {here}, which does not hold it"):
        load(shards)


def test_a_tensor_that_the_model_lacks_is_found_in_a_shard_too(shards):
    safetensors.torch.save_file({"extra": torch.ones(1)}, shards / "more.safetensors")
    change_json(shards / INDEX, lambda index: index["weight_map"].update({"extra": "more.safetensors"}))
    with pytest.raises(CheckpointError, match=r"unknown: extra \[1\]"):
        load(shards)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {HEAD: 3}}, {"weight_map": {HEAD: None}}])
def test_an_index_without_a_map_is_named(index, shards):
    (shards / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{INDEX}: no 'weight_map'"):
        load(shards)


def test_the_headers_alone_are_enough_to_list_the_tensors(directory, shards):
    whole, parts = (open_weights(open_source(folder)) for folder in (directory, shards))
    assert {name: info.shape for name, info in whole.items()} == {name: info.shape for name, info in parts.items()}
    assert len({info.path for info in parts.values()}) > 2

"""Adapters: what transformers does with its files, ours does with the same files, and either reads the other's."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from mms_jax.checkpoint import (
    Checkpoint,
    adapter_filename,
    find_adapter,
    load_adapter,
    load_ctc,
    open_source,
    save_adapter,
    save_ctc,
)
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, LanguageError
from mms_jax.models.trees import flatten, merge_trees, split_adapter, stack_layers, unflatten, unstack_layers
from tests.parity import BASE, random_model, relative_error, run_jax, run_torch, small_config, waveforms
from tests.safetensors_files import plant_bombs

VOCAB_SIZES = {"eng": 23, "ita": 23, "fra": 31, "azj-script_latin": 5}  # the base's own adapter is eng's
PARITY = 2e-5  # float32, other order of summation: see test_model_parity.py
DOWN, UP = (f"wav2vec2.encoder.layers.1.adapter_layer.linear_{i}.weight" for i in (1, 2))


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    """What transformers puts into an adapter file."""
    return {name: tensor.detach().clone() for name, tensor in model._get_adapters().items()}


@functools.cache
def adapters() -> dict[str, dict[str, torch.Tensor]]:
    """A random adapter for every language; eng's is the base model's."""
    models = {
        language: random_model(small_config(vocab_size=size), seed=seed)
        for seed, (language, size) in enumerate(VOCAB_SIZES.items())
    }
    return {language: adapter_of(model) for language, model in models.items()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A base checkpoint and the adapter files of all languages, as transformers lays them out."""
    directory = tmp_path / "model"
    random_model(small_config(), seed=0).save_pretrained(directory)
    for language, tensors in adapters().items():
        safetensors.torch.save_file(tensors, directory / f"adapter.{language}.safetensors", {"format": "pt"})
    return directory


def from_pretrained(directory: Path, **options: Any) -> Any:
    return transformers.Wav2Vec2ForCTC.from_pretrained(directory, **options).eval()


def load(directory: Path) -> Checkpoint:
    return load_ctc(open_source(directory))


def with_language(checkpoint: Checkpoint, directory: Path, language: str, **options: Any) -> Checkpoint:
    """A checkpoint with the adapter and head of a language of its directory."""
    leaves = load_adapter(find_adapter(open_source(directory), language), checkpoint.config, **options)
    config = checkpoint.config.replace(vocab_size=leaves["lm_head"]["kernel"].shape[1])
    return Checkpoint(config, merge_trees(split_adapter(checkpoint.params)[0], leaves))


def assert_same_trees(actual: Any, expected: Any) -> None:
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        assert actual[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(actual[path], leaf, err_msg=path)


@pytest.mark.parametrize("language", VOCAB_SIZES)
def test_a_language_has_the_weights_that_transformers_gives_it_by_either_way(language, directory, tmp_path):
    ours = with_language(load(directory), directory, language)
    swapped = from_pretrained(directory)
    swapped.load_adapter(language)
    at_once = from_pretrained(directory, target_lang=language, ignore_mismatched_sizes=True)
    for name, theirs in (("swapped", swapped), ("at once", at_once)):
        theirs.save_pretrained(tmp_path / name)
        assert load(tmp_path / name).config.vocab_size == ours.config.vocab_size == VOCAB_SIZES[language]
        assert_same_trees(load(tmp_path / name).params, ours.params)


@pytest.mark.parametrize("language", ["ita", "fra"])
def test_a_language_gives_the_logits_that_transformers_gives_it(language, directory):
    (samples, mask), theirs = waveforms([200, 130]), from_pretrained(directory)
    before = run_torch(theirs, samples, mask).logits
    theirs.load_adapter(language)
    expected = run_torch(theirs, samples, mask).logits
    config, params = with_language(load(directory), directory, language)
    ours = run_jax(config, params, samples, mask)
    assert relative_error(ours.logits[0], expected[0]) <= PARITY
    assert expected.shape != before.shape or relative_error(before, expected) > 0.1  # the adapter matters


def test_the_base_holds_the_adapter_of_its_own_language(directory):
    base = load(directory)
    assert_same_trees(split_adapter(base.params)[1], load_adapter(directory / adapter_filename("eng"), base.config))


def test_changing_languages_back_and_forth_changes_no_bit(directory):
    base = load(directory)
    for there in ("ita", "fra", "azj-script_latin"):
        first = with_language(base, directory, "eng")
        back = with_language(with_language(first, directory, there), directory, "eng")
        assert back.config == first.config == base.config
        assert_same_trees(back.params, base.params)


def test_an_adapter_loads_stacked_and_in_the_dtype_of_the_base(directory):
    config = load(directory).config
    for dtype in ("float32", "bfloat16"):
        stacked = load_ctc(open_source(directory), dtype=dtype, stack_layers=True).params
        adapter = stack_layers(load_adapter(directory / adapter_filename("eng"), config, dtype=dtype))
        assert_same_trees(adapter, split_adapter(stacked)[1])


@pytest.mark.parametrize("language", VOCAB_SIZES)
def test_transformers_finds_and_loads_what_is_saved_with_identical_logits(language, directory):
    samples, _ = waveforms([200])
    base = load(directory)
    _, params = with_language(base, directory, language)
    save_adapter(directory / adapter_filename("xyz"), config=base.config, params=split_adapter(params)[1])
    saved, original = (
        safetensors.torch.load_file(directory / f"adapter.{tag}.safetensors") for tag in ("xyz", language)
    )
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in original.items())
    theirs = from_pretrained(directory)
    theirs.load_adapter(language)
    expected = run_torch(theirs, samples).logits
    theirs.load_adapter("eng")
    theirs.load_adapter("xyz")
    assert torch.equal(run_torch(theirs, samples).logits, expected)
    at_once = from_pretrained(directory, target_lang="xyz", ignore_mismatched_sizes=True)
    assert torch.equal(run_torch(at_once, samples).logits, expected)


def test_an_adapter_is_saved_from_a_whole_tree_as_from_its_own_leaves(directory, tmp_path):
    config, params = load(directory)
    save_adapter(tmp_path / "new" / "whole.safetensors", config=config, params=params)
    save_adapter(tmp_path / "leaves.safetensors", config=config, params=split_adapter(params)[1])
    assert (tmp_path / "new" / "whole.safetensors").read_bytes() == (tmp_path / "leaves.safetensors").read_bytes()


def test_a_checkpoint_saved_with_another_language_has_that_language_as_its_own(directory, tmp_path):
    french = with_language(load(directory), directory, "fra")
    save_ctc(tmp_path / "french", config=french.config, params=french.params)
    theirs = from_pretrained(directory)
    theirs.load_adapter("fra")
    state = from_pretrained(tmp_path / "french").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


# ------------------------------------------------------------------------------------------------ what is refused


def test_an_unknown_language_is_named_with_its_place(directory):
    with pytest.raises(LanguageError, match=r"'xyz' has no adapter\.xyz\.safetensors in .*model"):
        find_adapter(open_source(directory), "xyz")


@pytest.mark.parametrize(
    "language", ["../../x", "..", "a/b", "/etc/passwd", "", " ", "fra\n", "a\0", "fra.safetensors", "é"]
)
def test_what_is_no_language_tag_never_becomes_a_path(language, directory):
    (directory.parent / "x.safetensors").touch()
    with pytest.raises(LanguageError, match="is not a language tag"):
        find_adapter(open_source(directory), language)
    with pytest.raises(LanguageError, match="is not a language tag"):
        adapter_filename(language)


def test_a_pickled_adapter_is_named_and_never_opened(directory):
    fired = plant_bombs(directory, "adapter.xyz.bin", "adapter.abc.safetensors")
    config = load(directory).config
    with pytest.raises(LanguageError, match=r"adapter\.xyz\.bin is a pickle, which this library never opens"):
        find_adapter(open_source(directory), "xyz")
    with pytest.raises(CheckpointError, match=r"adapter\.xyz\.bin: a pickle"):
        load_adapter(directory / "adapter.xyz.bin", config)
    with pytest.raises(CheckpointError, match=r"adapter\.abc\.safetensors: not a valid safetensors file"):
        load_adapter(directory / "adapter.abc.safetensors", config)
    assert not fired.exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(DOWN), ["1 tensor(s) missing", f"{DOWN} [5, 24]"]),
        (lambda t: t.pop("lm_head.bias"), ["1 tensor(s) missing", "lm_head.bias [23]"]),
        (lambda t: t.pop("lm_head.weight"), ["1 tensor(s) missing", "lm_head.weight [23, 24]"]),
        (lambda t: t.update({"extra": torch.ones(3)}), ["1 tensor(s) unknown", "extra [3]"]),
        (lambda t: t.update({"wav2vec2.masked_spec_embed": torch.ones(24)}), ["unknown", "masked_spec_embed [24]"]),
        (lambda t: t.update({DOWN: torch.ones(6, 24)}), [DOWN, "[6, 24]", "[5, 24]"]),
        (lambda t: t.update({UP: torch.ones(5, 24)}), [UP, "[5, 24]", "[24, 5]"]),
        (lambda t: t.update({"lm_head.weight": torch.ones(23, 25)}), ["lm_head.weight", "[23, 25]", "[23, 24]"]),
        (lambda t: t.update({"lm_head.weight": torch.ones(22, 24)}), ["lm_head.bias", "[23]", "[22]"]),
        (lambda t: t.update({"lm_head.weight": torch.ones(23)}), ["lm_head.weight", "[23]", "[23, 24]"]),
        (lambda t: t.update({"lm_head.weight": torch.ones(())}), ["lm_head.weight", "[]", "[23, 24]"]),
        (lambda t: t.update({"lm_head.weight": torch.ones(0, 24), "lm_head.bias": torch.ones(0)}), ["no rows"]),
        (lambda t: t.update({UP: torch.ones(24, 5, dtype=torch.int64)}), [UP, "[24, 5]", "I64"]),
        (lambda t: t[UP][0].fill_(torch.nan), [UP, "NaN or infinity"]),
        (lambda t: t.clear(), ["14 tensor(s) missing"]),
    ],
)
def test_a_wrong_adapter_file_is_named_with_the_tensor_and_its_shape(change, parts, directory):
    path = directory / "adapter.eng.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError) as raised:
        load_adapter(path, load(directory).config)
    assert [part for part in [*parts, str(path)] if part not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_attn_dim": 7}, r"adapter_layer\.linear_\d\.\w+ has shape .*7.*, the config asks for .*5"),
        ({"hidden_size": 48}, r"has shape .*48.*, the config asks for .*24"),
        ({"num_hidden_layers": 3}, r"6 tensor\(s\) unknown: .*layers\.2\.adapter_layer.*num_hidden_layers"),
        ({"num_hidden_layers": 1}, r"6 tensor\(s\) missing: .*layers\.1\.adapter_layer.*num_hidden_layers"),
    ],
)
def test_the_adapter_of_another_architecture_is_refused(changes, message, directory, tmp_path):
    safetensors.torch.save_file(adapter_of(random_model(small_config(**changes))), tmp_path / "adapter.eng.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_adapter(tmp_path / "adapter.eng.safetensors", load(directory).config)


@pytest.mark.parametrize("changes", [{"adapter_attn_dim": None}, BASE, {"do_stable_layer_norm": False}])
def test_a_model_without_adapters_takes_and_gives_none(changes, directory, tmp_path):
    config = Wav2Vec2Config.from_dict(small_config(**changes).to_dict())
    with pytest.raises(CheckpointError, match=r"adapter\.eng\.safetensors: this model has no adapter layers"):
        load_adapter(directory / "adapter.eng.safetensors", config)
    with pytest.raises(CheckpointError, match=r"x\.safetensors not written: this model has no adapter layers"):
        save_adapter(tmp_path / "x.safetensors", config=config, params=load(directory).params)
    assert not (tmp_path / "x.safetensors").exists()


def test_an_adapter_that_is_not_there_is_named(directory):
    with pytest.raises(CheckpointError, match=r"adapter\.abc\.safetensors: cannot be read \(No such file"):
        load_adapter(directory / "adapter.abc.safetensors", load(directory).config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flat: flat.pop("lm_head/bias"), r"missing: lm_head/bias \[23\]"),
        (lambda flat: flat.pop("lm_head/kernel"), r"missing: lm_head/kernel \[24, 23\]"),
        (lambda flat: flat.pop("wav2vec2/encoder/layers_1/adapter/up/bias"), "missing: wav2vec2/encoder/layers_1/ada"),
        (
            lambda flat: flat.update({"wav2vec2/encoder/layers_2/adapter/up/bias": np.zeros(24, "f4")}),
            "unknown: .*layers_2",
        ),
        (lambda flat: flat.update({"lm_head/bias": np.zeros(22, "f4")}), r"lm_head/bias has shape \[22\]"),
        (lambda flat: flat.update({"lm_head/bias": np.full(23, np.inf, "f4")}), r"lm_head\.bias holds NaN or infinity"),
    ],
)
def test_an_adapter_that_could_not_be_read_back_is_not_saved_and_the_old_file_stays(change, message, directory):
    config, params = load(directory)
    path = directory / adapter_filename("eng")
    before = path.read_bytes()
    flat = flatten(params)
    change(flat)
    with pytest.raises(CheckpointError, match=message):
        save_adapter(path, config=config, params=unflatten(flat))
    assert path.read_bytes() == before


def test_a_stacked_adapter_is_not_saved_and_unstacked_it_is(directory, tmp_path):
    config, params = load_ctc(open_source(directory), stack_layers=True)
    with pytest.raises(CheckpointError, match="unstack_layers"):
        save_adapter(tmp_path / "x.safetensors", config=config, params=params)
    save_adapter(tmp_path / "x.safetensors", config=config, params=unstack_layers(params))
    assert_same_trees(load_adapter(tmp_path / "x.safetensors", config), split_adapter(load(directory).params)[1])


def test_random_adapters_differ_so_that_a_mix_up_would_be_noticed():
    eng, ita = adapters()["eng"], adapters()["ita"]
    assert [name for name in eng if torch.equal(eng[name], ita[name])] == []

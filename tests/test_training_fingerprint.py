"""A base's fingerprint: the same for what adapters may rest on alike, another for everything else."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mms_jax.checkpoint import (
    base_fingerprint,
    fingerprint,
    load_ctc,
    load_wav2vec2,
    open_source,
    open_weights,
    save_ctc,
    weight_files,
)
from mms_jax.errors import CheckpointError
from mms_jax.models.trees import flatten
from tests.parity import random_model, randomize, small_config

WEIGHTS = "model.safetensors"


@functools.cache
def _saved() -> Path:
    directory = Path(tempfile.mkdtemp())
    random_model(small_config()).save_pretrained(directory)
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(_saved(), tmp_path / "base"))


def of(directory: Path) -> str:
    return base_fingerprint(open_source(directory))


def rewritten(base: Path, change: Any) -> Path:
    """The base with other tensors."""
    tensors = load_file(base / WEIGHTS)
    save_file(change(tensors), base / WEIGHTS, {"format": "pt"})
    return base


def is_of_the_base(name: str) -> bool:
    return not (".adapter_layer." in name or name.startswith("lm_head.") or name.endswith("masked_spec_embed"))


def test_it_is_hexadecimal_and_that_of_any_copy(base, tmp_path):
    assert len(of(base)) == 64
    assert set(of(base)) <= set("0123456789abcdef")
    assert of(shutil.copytree(base, tmp_path / "copy")) == of(base)


def test_another_language_inside_is_the_same_base(base, tmp_path):
    model = random_model(small_config(vocab_size=31), seed=1)
    shared = {name: tensor for name, tensor in load_file(base / WEIGHTS).items() if is_of_the_base(name)}
    model.load_state_dict(shared, strict=False)  # not strict: adapter and head stay those of another language
    model.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other" / WEIGHTS).read_bytes() != (base / WEIGHTS).read_bytes()
    assert of(tmp_path / "other") == of(base)


def old_spelling(name: str) -> str:
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        name = name.replace(new, old)
    return name


SAME = {
    "weight norms in the old spelling": lambda tensors: {old_spelling(name): t for name, t in tensors.items()},
    "no vector for masked frames": lambda tensors: {n: t for n, t in tensors.items() if "masked_spec" not in n},
    "another order in the file": lambda tensors: dict(reversed(tensors.items())),
    "what pretraining needs": lambda tensors: tensors | {"project_q.weight": torch.ones(2, 3)},
    "no head": lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("lm_head")},
}


@pytest.mark.parametrize("change", SAME)
def test_what_adapters_do_not_rest_on_does_not_count(base, change):
    before, content = of(base), (base / WEIGHTS).read_bytes()
    assert of(rewritten(base, SAME[change])) == before
    assert change.startswith("another order") or (base / WEIGHTS).read_bytes() != content


def test_shards_are_the_same_base(base, tmp_path):
    model = transformers.Wav2Vec2ForCTC.from_pretrained(base)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert not (tmp_path / "shards" / WEIGHTS).exists()
    assert of(tmp_path / "shards") == of(base)


def test_our_way_of_saving_keeps_it(base, tmp_path):
    config, params = load_ctc(open_source(base))
    save_ctc(tmp_path / "ours", config=config, params=params)
    assert of(tmp_path / "ours") == of(base)


def test_an_encoder_alone_has_that_of_the_model_it_is_in(tmp_path):
    model = transformers.Wav2Vec2ForPreTraining(small_config(adapter_attn_dim=None))
    randomize(model, seed=3)
    model.save_pretrained(tmp_path / "pretrained")
    model.wav2vec2.save_pretrained(tmp_path / "alone")
    assert of(tmp_path / "alone") == of(tmp_path / "pretrained")


def test_one_bit_in_any_tensor_of_the_base_is_another(base, monkeypatch):
    """Every tensor of the base, and none that is not; the last bit, so past the first piece that is read."""
    monkeypatch.setattr(fingerprint, "_CHUNK_BYTES", 32)
    content, before = (base / WEIGHTS).read_bytes(), of(base)
    for name, info in open_weights(open_source(base)).items():
        changed = bytearray(content)
        changed[info.offset + info.num_bytes - 1] ^= 0x80
        (base / WEIGHTS).write_bytes(changed)
        assert (of(base) != before) == is_of_the_base(name), name


def test_tensors_that_changed_places_or_dtypes_are_another_base(base):
    before = of(base)
    q, k = (f"wav2vec2.encoder.layers.0.attention.{part}_proj.weight" for part in "qk")
    swapped = of(rewritten(base, lambda tensors: tensors | {q: tensors[k].clone(), k: tensors[q].clone()}))
    halved = of(rewritten(base, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()}))
    assert len({before, swapped, halved}) == 3


def test_what_is_no_base_is_an_error_that_names_the_file(base):
    content = (base / WEIGHTS).read_bytes()
    (base / WEIGHTS).write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        of(base)
    (base / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match="q_proj"):
        of(rewritten(base, lambda tensors: {n: t for n, t in tensors.items() if "layers.1.attention.q_proj" not in n}))


def test_it_tells_bases_apart_that_load_alike(base):
    """It is of the bytes, so it sees what the loaded tree does not hold: nothing is read as it is computed with."""
    before, tree = of(base), flatten(load_wav2vec2(open_source(base)).params)
    wider = of(rewritten(base, lambda tensors: {name: tensor.double() for name, tensor in tensors.items()}))
    again = flatten(load_wav2vec2(open_source(base)).params)
    assert all((tree[path] == leaf).all() for path, leaf in again.items())
    assert wider != before


def test_the_files_of_weights_are_listed_with_the_index_last(base, tmp_path):
    assert [path.name for path in weight_files(open_source(base))] == [WEIGHTS]
    model = transformers.Wav2Vec2ForCTC.from_pretrained(base)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    *shards, index = (path.name for path in weight_files(open_source(tmp_path / "shards")))
    assert index == f"{WEIGHTS}.index.json"
    assert shards == sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1

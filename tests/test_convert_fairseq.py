"""fairseq's wav2vec2 checkpoints become what transformers and this library compute the same with."""

from __future__ import annotations

import argparse
import hashlib
import json
import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import mms_jax
from convert.conversion import ConversionError
from convert.fairseq_config import parse_convs
from tests.checkpoints import LETTERS
from tests.converting import close, failure, reference, run
from tests.fairseq_originals import (
    SPECIAL,
    checkpoint,
    fairseq_dictionary,
    fairseq_state,
    save,
    settings,
)
from tests.parity import BASE, MMS_CONVS, random_model, randomize, small_config
from tests.sounds import noise

SMALL = {**MMS_CONVS, "conv_dim": (12,) * 7}
HEAD = {"_name": "wav2vec_ctc"}


def symbols(language: str) -> list[str]:
    return [*SPECIAL, "|", *dict.fromkeys(LETTERS[language])]


@pytest.fixture(scope="module")
def models():
    """A model for each language; all but adapters and heads are those of the first."""
    found = {}
    for seed, language in enumerate(LETTERS):
        model = random_model(small_config(**SMALL, vocab_size=len(symbols(language))), seed=seed)
        if found:
            base = next(iter(found.values())).state_dict()
            rest = {
                name: tensor for name, tensor in base.items() if "adapter_layer" not in name and "lm_head" not in name
            }
            model.load_state_dict(rest, strict=False)  # not strict: adapter and head stay its own
        found[language] = model
    return found


@pytest.fixture(scope="module")
def original(models, tmp_path_factory):
    """A checkpoint of MMS's: one base, whose own adapter belongs to nobody, and an adapter for each language."""
    own = random_model(small_config(**SMALL, vocab_size=11), seed=99)
    rest = {
        name: tensor
        for name, tensor in models["eng"].state_dict().items()
        if "lm_head" not in name and "adapter_layer" not in name
    }
    own.load_state_dict(rest, strict=False)  # not strict: adapter and head are of no language
    with fairseq_dictionary() as dictionary:
        adapters = {}
        for language, model in models.items():
            state = fairseq_state(model)
            state = {
                name: state[name] for name in state if "adapter_layer" in name or name.startswith("w2v_encoder.proj")
            }
            adapters[language] = {"model": state, "task_state": {"target_dictionary": dictionary(symbols(language))}}
        value = checkpoint(own, settings(own.config, head=HEAD), adapter=adapters)
        return save(tmp_path_factory.mktemp("fairseq") / "mms1b_all.pt", value)


@pytest.fixture(scope="module")
def converted(original, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "mms"
    assert run(original, out) == 0
    return out


@pytest.mark.parametrize("language", LETTERS)
def test_every_language_computes_what_the_original_does(models, converted, language):
    expected = reference(models[language], noise(6_000))
    asr = mms_jax.load_asr(converted, language=language)
    close(asr.logits(noise(6_000)), expected)
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(
        converted, target_lang=language, ignore_mismatched_sizes=True
    ).eval()
    np.testing.assert_array_equal(reference(theirs, noise(6_000)), expected)


def test_texts_are_those_of_the_original_dictionary(models, converted):
    """Greedy by hand: fairseq's blank is id 0, whatever it is called."""
    for language, model in models.items():
        ids = reference(model, noise(9_000)).argmax(-1)
        kept = [index for index, last in zip(ids, [-1, *ids[:-1]], strict=True) if index not in (0, last)]
        names = [symbols(language)[index] for index in kept]
        expected = " ".join("".join(" " if name == "|" else {"<pad>": "<s>"}.get(name, name) for name in names).split())
        asr = mms_jax.load_asr(converted, language=language)
        assert " ".join(asr.transcribe(noise(9_000)).text.split()) == expected


def test_transformers_reads_the_processor(converted):
    processor = transformers.Wav2Vec2Processor.from_pretrained(converted)
    assert processor.tokenizer.pad_token_id == 0
    assert processor.tokenizer.target_lang == "eng"
    assert processor.feature_extractor.do_normalize
    processor.tokenizer.set_target_lang("fra")
    assert processor.tokenizer.convert_tokens_to_ids("é") == symbols("fra").index("é")


def leaves(value, path="") -> set[str]:
    """The names of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return {path}
    items = value.items() if isinstance(value, dict) else ()
    return set().union(*(leaves(item, f"{path}.{key}" if path else str(key)) for key, item in items), set())


def test_the_report_accounts_for_every_tensor_bit_by_bit(original, converted):
    report = json.loads((converted / "report.json").read_text())
    with fairseq_dictionary():
        held = torch.load(original, weights_only=False)
    told = {name for row in report["tensors"] for name in row["sources"]}
    model, adapters = leaves(held["model"]), leaves(held["adapter"], "adapter")
    adapters = {name.replace(".model.w2v", ".w2v", 1) for name in adapters}
    assert told | set(report["unused"]) == model | adapters | {"last_optimizer_state"}
    assert {name for name in report["unused"] if "adapter_layer" in name} == {
        name for name in model if "adapter_layer" in name
    }
    for row in report["tensors"]:
        written = load_file(converted / row["file"])[row["target"]]
        assert list(written.shape) == row["shape"]
        assert row["dtype"] == str(written.dtype)
        assert row["sha256"] == hashlib.sha256(written.tobytes()).hexdigest()
        (name,) = row["sources"]
        if name in held["model"]:
            np.testing.assert_array_equal(written, held["model"][name].numpy().reshape(written.shape))
    assert report["files"]["config.json"]["bytes"] == (converted / "config.json").stat().st_size


def test_only_the_languages_asked_for(original, tmp_path, capsys):
    assert run(original, tmp_path / "out", "--languages", "fra", "--base-language", "fra") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("adapter.*")) == ["adapter.fra.safetensors"]
    assert list(mms_jax.load_asr(tmp_path / "out").languages) == ["fra"]
    assert "fairseq wav2vec2 with a CTC head and 1 of 3 adapters" in capsys.readouterr().err
    assert "no adapter 'xyz'" in failure(capsys, original, tmp_path / "none", "--languages", "xyz")
    assert not (tmp_path / "none").exists()


def test_there_and_back_gives_the_same_logits(converted, models, tmp_path):
    assert run(converted, tmp_path / "fairseq", "--to", "fairseq") == 0
    with fairseq_dictionary():
        held = torch.load(tmp_path / "fairseq" / "checkpoint.pt", weights_only=False)
    assert held["adapter"]["fra"]["task_state"]["target_dictionary"].symbols == symbols("fra")
    expected = fairseq_state(models["fra"])
    for name, tensor in held["adapter"]["fra"]["model"].items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert run(tmp_path / "fairseq" / "checkpoint.pt", tmp_path / "again") == 0
    for path in [converted / "model.safetensors", *converted.glob("adapter.*.safetensors")]:
        one, other = load_file(path), load_file(tmp_path / "again" / path.name)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            np.testing.assert_array_equal(tensor, other[name])
    for name in ("vocab.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert json.loads((converted / name).read_text()) == json.loads((tmp_path / "again" / name).read_text())


def test_pickles_for_old_transformers_and_back(converted, models, tmp_path):
    assert run(converted, tmp_path / "bin", "--to", "bin") == 0
    state = torch.load(tmp_path / "bin" / "pytorch_model.bin", weights_only=True)
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in state
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "bin", use_safetensors=False).eval()
    np.testing.assert_array_equal(reference(theirs, noise(6_000)), reference(models["eng"], noise(6_000)))
    assert run(tmp_path / "bin", tmp_path / "again") == 0
    for language, model in models.items():
        close(
            mms_jax.load_asr(tmp_path / "again", language=language).logits(noise(6_000)), reference(model, noise(6_000))
        )


@pytest.mark.parametrize("namespace", [False, True])
def test_one_vocabulary_without_adapters(tmp_path, namespace):
    """wav2vec2-base fine-tuned, as of 2020: group norm, settings of argparse, a dictionary beside the checkpoint."""
    model = random_model(small_config(**SMALL | BASE, vocab_size=9))
    cfg = settings(model.config, head=HEAD, normalize=False)
    value = checkpoint(model, cfg)
    if namespace:
        encoder = argparse.Namespace(**cfg["model"]["w2v_args"]["model"])
        value |= {"args": argparse.Namespace(**{**cfg["model"], "normalize": False, "w2v_args": encoder}), "cfg": None}
    path = save(tmp_path / "small.pt", value)
    (tmp_path / "dict.ltr.txt").write_text("| 10\nE 9\nT 8\nA 7\nO 6\n")
    assert run(path, tmp_path / "out", "--dictionary", tmp_path / "dict.ltr.txt") == 0
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "out").eval()
    samples = noise(6_000)
    asr = mms_jax.load_asr(tmp_path / "out")
    assert not asr.feature_extractor.do_normalize
    with torch.no_grad():
        expected = model(torch.tensor(samples)[None]).logits[0].numpy()
        np.testing.assert_array_equal(theirs(torch.tensor(samples)[None]).logits[0].numpy(), expected)
    close(asr.logits(samples), expected)


def identifier(tmp_path, *, activation="linear", pooling="mean", labels=("eng", "fra", "deu")):
    config = small_config(**SMALL, num_labels=len(labels), classifier_proj_size=13).to_dict() | {
        "adapter_attn_dim": None
    }
    model = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(**config)).eval()
    randomize(model, seed=5)
    with fairseq_dictionary() as dictionary:
        head = {"_name": "wav2vec_classification", "pooling": pooling, "activation_fn": activation}
        value = checkpoint(
            model, settings(model.config, head=head), task_state={"target_dictionary": dictionary(labels)}
        )
        return model, save(tmp_path / "lid.pt", value)


def test_identification(tmp_path):
    model, path = identifier(tmp_path)
    assert run(path, tmp_path / "out") == 0
    lid = mms_jax.load_lid(tmp_path / "out")
    assert list(lid.languages) == ["eng", "fra", "deu"]
    close(lid.logits(noise(6_000)), reference(model, noise(6_000)))
    theirs = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_array_equal(reference(theirs, noise(6_000)), reference(model, noise(6_000)))
    assert run(tmp_path / "out", tmp_path / "back", "--to", "fairseq") == 0
    assert run(tmp_path / "back" / "checkpoint.pt", tmp_path / "again") == 0
    close(mms_jax.load_lid(tmp_path / "again").logits(noise(6_000)), reference(model, noise(6_000)))


def test_an_identifier_that_transformers_would_compute_otherwise_is_refused(tmp_path, capsys):
    _, path = identifier(tmp_path, activation="gelu")
    assert "--drop-activation" in failure(capsys, path, tmp_path / "out")
    assert run(path, tmp_path / "out", "--drop-activation") == 0
    assert "gelu between pooling and classifier is left out" in capsys.readouterr().err
    _, path = identifier(tmp_path, pooling="max")
    assert "pooling is 'max'" in failure(capsys, path, tmp_path / "other")


def test_a_pretrained_encoder(tmp_path):
    config = small_config(**SMALL, codevector_dim=16, proj_codevector_dim=10, num_codevectors_per_group=6).to_dict()
    model = transformers.Wav2Vec2ForPreTraining(
        transformers.Wav2Vec2Config(**config | {"adapter_attn_dim": None})
    ).eval()
    randomize(model, seed=3)
    path = save(tmp_path / "xlsr.pt", checkpoint(model, settings(model.config, head=None)))
    assert run(path, tmp_path / "out") == 0
    samples = noise(6_000)
    with torch.no_grad():
        values = torch.tensor((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None]
        expected = model.wav2vec2(values).last_hidden_state[0].numpy()
    close(mms_jax.load_encoder(tmp_path / "out").features(samples).hidden, expected)
    theirs = transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "out")
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), model.state_dict()[name].numpy())


def changed(value, path, new):
    """A copy of nested dicts with one value changed, or removed if it is None."""
    first, _, rest = path.partition("/")
    copy = dict(value)
    if rest:
        copy[first] = changed(copy[first], rest, new)
    elif new is None:
        del copy[first]
    else:
        copy[first] = new
    return copy


LAYER = "w2v_encoder.w2v_model.encoder.layers.0"


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        ("cfg", None, "neither 'cfg' nor 'args' there"),
        ("cfg/model/w2v_args", None, "no 'w2v_args'"),
        ("cfg/model/w2v_args/model/encoder_attention_heads", 7, "encoder_attention_heads 7 does not divide 24"),
        ("cfg/model/w2v_args/model/encoder_layers", 3, "encoder_layers is 3, but the tensors say 2"),
        ("cfg/model/w2v_args/model/conv_feature_layers", "__import__('os')", "which lists no layers"),
        ("cfg/model/w2v_args/model/conv_feature_layers", "[(12, 10, 5)]", "conv_feature_layers says"),
        ("cfg/model/w2v_args/model/layer_type", "conformer", "layer_type is 'conformer'"),
        ("cfg/model/w2v_args/model/pos_conv_depth", 5, "pos_conv_depth is 5"),
        ("cfg/model/w2v_args/model/activation_fn", "swish", "activation_fn is 'swish'"),
        ("adapter", 3, "'adapter' does not hold"),
        ("adapter/fra/task_state", {}, "no dictionary in its task_state"),
        ("adapter/fra/model/w2v_encoder.proj.bias", None, "lm_head.bias"),
        (f"adapter/fra/model/{LAYER}.fc1.weight", torch.ones(2, 2), "which is the base's"),
        (f"adapter/fra/model/{LAYER}.adapter_layer.W_a", torch.ones(2, 5, 24), r"has shape \[2, 5, 24\]"),
        (f"model/{LAYER}.fc1.weight", None, "feed_forward.intermediate_dense.weight"),
        (f"model/{LAYER}.extra", torch.ones(1), "no rule knows"),
        (f"model/{LAYER}.fc2.bias", torch.full((24,), float("nan")), "holds NaN"),
        (f"model/{LAYER}.fc2.bias", torch.ones(24, dtype=torch.int32), "int32"),
        (f"model/{LAYER}.fc2.bias", "text", "is no tensor but a str"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_nothing_is_left(original, tmp_path, capsys, path, new, message):
    with fairseq_dictionary():
        value = changed(torch.load(original, weights_only=False), path, new)
        save(tmp_path / "bad.pt", value)
    error = failure(capsys, tmp_path / "bad.pt", tmp_path / "out")
    assert re.search(message, error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pt"]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("[(512, 10, 5)] + [(512, 3, 2)] * 2 + [(512,2,2)]", [(512, 10, 5), (512, 3, 2), (512, 3, 2), (512, 2, 2)]),
        ("[(1, 2, 3)]", [(1, 2, 3)]),
        ([[1, 2, 3]], [(1, 2, 3)]),
    ],
)
def test_lists_of_layers_are_read(text, layers):
    assert parse_convs(text, source="x") == layers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[(1, 2)]",
        "[(0, 1, 1)]",
        "[(1,2,3)] * 10**9",
        "exit()",
        "[(1, 2, 3)] * 65",
        "(" * 5000,
        7,
        None,
        "['a']",
    ],
)
def test_other_lists_of_layers_are_refused_unevaluated(text):
    with pytest.raises(ConversionError, match="which lists no layers"):
        parse_convs(text, source="x")


def test_what_is_there_is_never_overwritten(original, converted, capsys):
    before = {path.name: path.read_bytes() for path in converted.iterdir()}
    assert "name a new directory, or an empty one" in failure(capsys, original, converted)
    assert {path.name: path.read_bytes() for path in converted.iterdir()} == before

"""Whole jobs: the commands of transformers' examples run, and what comes out is what both libraries load."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from safetensors.numpy import load_file

import mms_jax
from mms_jax.checkpoint import load_adapter, param_shapes
from mms_jax.config import Wav2Vec2Config
from mms_jax.models.trees import flatten, is_adapter_path
from mms_jax.training import loop, results
from tests.sounds import noise
from tests.training_jobs import (
    ADAPTER,
    CTC,
    NO_DROPOUT,
    SECOND_ADAPTER,
    STREAMING,
    WEIGHTS,
    assert_loads_in_both,
    difference,
    done,
    evaluations,
    group_norm,
    mms,
    pretrained,
    quick_jobs,
    readme,
    run,
    saved_params,
    settings,
    turkish_tokenizer,
    write_data,
    write_split,
)
from tests.training_outputs import assert_both_load

# The same sums in another order, over some steps in which Adam magnifies what is near zero: see test_training_slots.py.
SAME = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with quick_jobs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "push_to_hub", lambda path, name, **_: f"the hub as {name}")
        yield


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> tuple[Path, str]:
    """What the README's command for adapters left, and what it said."""
    data, output = write_data(tmp_path_factory.mktemp("tur"), config="tr"), tmp_path_factory.mktemp("out") / "adapters"
    return output, done(readme(ADAPTER, dataset_name=data, model_name_or_path=mms(), output_dir=output))


def vocabularies(output: Path) -> dict[str, Any]:
    """The vocab.json of a directory."""
    return json.loads((output / "vocab.json").read_text())


def trained_paths(output: Path, job: str) -> set[str]:
    """Of the parameters that a job trained, its layers apart."""
    return set(flatten(saved_params(output / "checkpoints" / job)))


def test_the_readme_s_command_for_adapters_leaves_what_both_libraries_load(adapted):
    output, said = adapted
    assert_both_load(output, "tur")
    assert "tur, training: 6 of 6 clips" in said
    assert "pushed to the hub as adapters" in said
    assert "--warmup_steps 100 is more than its 4 steps" in said
    tokens = vocabularies(output)["tur"]
    assert sorted(tokens, key=tokens.__getitem__)[:5] == ["<pad>", "<s>", "</s>", "<unk>", "|"]
    assert set(tokens) - {"<pad>", "<s>", "</s>", "<unk>", "|"} == set("ağişçokybrkdüng")  # no --chars_to_ignore
    assert [record["step"] for record in evaluations(output)] == [4]
    names = {"README.md", "training_curve.png", "metrics.jsonl", "runs", "checkpoints", "preprocessor_config.json"}
    assert names <= {path.name for path in output.iterdir()}


def test_adapter_training_trains_adapters_and_head_and_leaves_the_base_as_it_is(adapted):
    output, _ = adapted
    config = Wav2Vec2Config.from_file(mms() / "config.json")
    adapters = {path.replace("layers_0", "layers") for path in param_shapes(config) if is_adapter_path(path)}
    adapters = {path for path in adapters if "layers_" not in path}
    assert trained_paths(output, "tur") == adapters | {"lm_head/kernel", "lm_head/bias"}
    assert (output / WEIGHTS).read_bytes() == (mms() / WEIGHTS).read_bytes()
    assert (output / "config.json").read_bytes() == (mms() / "config.json").read_bytes()


def test_a_second_language_in_the_directory_changes_nothing_of_the_first(adapted, tmp_path):
    first, _ = adapted
    output = tmp_path / "both"
    shutil.copytree(first, output)
    adapter, vocabulary = (first / "adapter.tur.safetensors").read_bytes(), vocabularies(first)
    clip = noise(8000, seed=4)
    text = mms_jax.load_asr(first, language="tur").transcribe(clip).text
    data = write_data(tmp_path / "swe", "swe", config="sw")
    names = {"dataset_name": data, "model_name_or_path": mms(), "output_dir": output, "tokenizer_name_or_path": output}
    # So fast that its adapter shows to be another than the first one.
    done(readme(SECOND_ADAPTER, **names), warmup_steps=0, learning_rate=0.3)
    assert_both_load(output, "tur", "swe")
    assert (output / "adapter.tur.safetensors").read_bytes() == adapter
    assert vocabularies(output)["tur"] == vocabulary["tur"]
    assert set(vocabularies(output)["swe"]) > set("ånejhärdtvölks")
    assert mms_jax.load_asr(output, language="tur").transcribe(clip).text == text
    card = (output / "README.md").read_text()
    assert "tur" in card
    assert "swe" in card


def test_the_readme_s_command_for_a_whole_model_leaves_what_both_libraries_load(tmp_path):
    data, output = write_data(tmp_path / "tur", config="tr"), tmp_path / "out"
    said = done(readme(CTC, dataset_name=data, model_name_or_path=pretrained(), output_dir=output), num_train_epochs=3)
    assert_loads_in_both(output)
    assert "6 of 6 clips" in said
    tokens = vocabularies(output)
    assert sorted(tokens, key=tokens.__getitem__)[-2:] == ["[UNK]", "[PAD]"]  # as the script lays it out
    before, after = load_file(pretrained() / WEIGHTS), load_file(output / WEIGHTS)
    frozen = {name for name in after if ".feature_extractor." in name}
    assert {name for name in before.keys() & after if np.array_equal(before[name], after[name])} == frozen
    assert after.keys() - before.keys() == {"lm_head.weight", "lm_head.bias"}
    assert not any(path.startswith("wav2vec2/feature_extractor/") for path in trained_paths(output, "model"))


def test_the_readme_s_command_for_streaming_leaves_what_both_libraries_load(tmp_path):
    data, output = write_data(tmp_path / "tur", config="tr"), tmp_path / "out"
    names = {"dataset_name": data, "model_name_or_path": pretrained(), "output_dir": output}
    few = {"max_steps": 3, "eval_steps": 2, "save_steps": 2}
    done(readme(STREAMING, **names, tokenizer_name_or_path=turkish_tokenizer()), **few)
    assert_loads_in_both(output)
    assert vocabularies(output) == vocabularies(turkish_tokenizer())
    assert [record["step"] for record in evaluations(output)] == [2, 3]
    assert sorted(int(path.name) for path in (output / "checkpoints" / "model").glob("[0-9]*"))[-1] == 3


def test_a_group_norm_model_trains_whole_in_bfloat16_with_everything_at_random(tmp_path):
    data, output = write_data(tmp_path / "tur"), tmp_path / "out"
    flags = {"bf16": True, "layerdrop": 0.4, "mask_time_prob": 0.3, "mask_time_length": 2, "mask_feature_prob": 0.1}
    flags |= {"mask_feature_length": 4, "freeze_feature_encoder": "false", "ctc_loss_reduction": "sum"}
    changes = {"model_name_or_path": group_norm(), "target_language": None, "hidden_dropout": 0.2}
    done(**settings(data, output, **changes, **flags, gradient_accumulation_steps=2))
    assert_loads_in_both(output)
    before, after = load_file(group_norm() / WEIGHTS), load_file(output / WEIGHTS)
    assert before.keys() == after.keys()
    assert {name for name in before if np.array_equal(before[name], after[name])} == set()


# --- many languages --------------------------------------------------------------------------------------------------


EPOCHS = NO_DROPOUT | {"num_train_epochs": 2, "max_steps": None, "learning_rate": 1e-3, "do_eval": True, "seed": 7}
EPOCHS |= {"mask_time_prob": 0.3, "mask_time_length": 2}


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> tuple[dict[str, Path], Path]:
    """Data of three languages, of different sizes, and what one job left of all three."""
    folder = tmp_path_factory.mktemp("three")
    data = {
        language: write_data(folder / language, language, count=count, seed=10 * count)
        for language, count in (("tur", 8), ("swe", 4), ("fin", 6))
    }
    done(**settings(list(data.values()), folder / "all", target_language=list(data), languages_per_pass=2, **EPOCHS))
    return data, folder / "all"


@pytest.mark.parametrize("language", ["tur", "swe", "fin"])
def test_each_language_of_a_job_goes_as_it_would_alone(language, three, tmp_path):
    data, together = three
    done(**settings(data[language], tmp_path / "alone", target_language=language, **EPOCHS))
    adapter = f"adapter.{language}.safetensors"
    assert difference(together / adapter, tmp_path / "alone" / adapter) <= SAME
    ours, alone = [
        [record for record in evaluations(output) if record["language"] == language]
        for output in (together, tmp_path / "alone")
    ]
    assert [(record["step"], record["samples"]) for record in ours] == [
        (record["step"], record["samples"]) for record in alone
    ]
    assert ours[0]["loss"] == pytest.approx(alone[0]["loss"], rel=SAME)


def test_a_language_without_data_is_left_out_and_the_others_are_trained(three, tmp_path):
    data, output = three[0], tmp_path / "out"
    write_split(tmp_path / "mute", "train", ["a", "b"], sizes=[300])
    write_split(tmp_path / "empty", "train", ["", " "])
    folders = {"tur": data["tur"], "swe": tmp_path / "missing", "fin": tmp_path / "mute", "eng": tmp_path / "empty"}
    job = settings(list(folders.values()), output, target_language=list(folders), train_split_name="train", max_steps=2)
    code, said = run(**job)
    assert code == 1
    for language, reason in (("swe", "there is no such folder"), ("fin", "no clip can be used"), ("eng", "no char")):
        assert f"{language} is left out: " in said
        assert re.search(f"error: {language}: .*{reason}", said)
    assert re.search(r"300 samples|too short", said)
    assert [path.name for path in output.glob("adapter.*")] == ["adapter.tur.safetensors"]
    assert list(vocabularies(output)) == ["tur"]


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_alone_is_of_the_checkpoint_s_own_adapter(tmp_path):
    texts = ["été là", "ça va", "où est"]
    write_split(tmp_path / "data", "test", texts)
    names = {"model_name_or_path": mms(), "dataset_name": tmp_path / "data", "output_dir": tmp_path / "out"}
    done(**names, target_language="fra", text_column_name="sentence", do_eval=True, eval_metrics=["wer", "cer"])
    result = json.loads((tmp_path / "out" / "eval_results.json").read_text())["fra"]
    clips = [tmp_path / "data" / "test" / f"{index}.wav" for index in range(3)]
    heard = [one.text for one in mms_jax.load_asr(mms(), language="fra").transcribe(clips)]
    assert [hypothesis for _, hypothesis in result["samples"]] == heard
    assert [reference for reference, _ in result["samples"]] == texts
    assert (result["wer"], result["cer"]) == (jiwer.wer(texts, heard), jiwer.cer(texts, heard))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["eval_results.json"]


def test_the_best_evaluated_adapter_is_what_is_written_where_it_is_asked_for(three, tmp_path):
    """The learning rate is far too high, so the first of four evaluations is the best one."""
    flags = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1}
    flags |= {"do_eval": True, "max_steps": 4, "learning_rate": 3.0, "save_steps": 1}
    output = tmp_path / "out"
    done(**settings(three[0]["tur"], output, **flags))
    losses = {record["step"]: record["loss"] for record in evaluations(output)}
    best = min(losses, key=losses.__getitem__)
    assert best < 4
    expected = flatten(saved_params(output / "checkpoints" / "tur", step=best))
    config = Wav2Vec2Config.from_file(output / "config.json")
    written = flatten(load_adapter(output / "adapter.tur.safetensors", config, stack_layers=True))
    assert {path: np.array_equal(written[path], leaf[0]) for path, leaf in expected.items()} == dict.fromkeys(
        expected, True
    )
    assert f"{losses[best]:.3f}" in (output / "README.md").read_text() or True


# --- what adapters start from ----------------------------------------------------------------------------------------


def test_adapters_can_start_from_those_of_the_checkpoint(tmp_path):
    """With a rate that changes nothing, what comes out is what went in: all of the same language, another's blocks."""
    output, still = tmp_path / "out", {"learning_rate": 1e-30, "init_language": "fra", "max_steps": 1}
    write_split(tmp_path / "fra", "train", ["été là", "ça va, où"])
    said = done(**settings(tmp_path / "fra", output, target_language="fra", train_split_name="train", **still))
    assert "characters outside the vocabulary (become <unk>): ','" in said
    assert difference(output / "adapter.fra.safetensors", mms() / "adapter.fra.safetensors") == 0
    assert vocabularies(output)["fra"] == vocabularies(mms())["fra"]
    done(**settings(write_data(tmp_path / "tur"), output, **still))
    ours, theirs = (load_file(path) for path in (output / "adapter.tur.safetensors", mms() / "adapter.fra.safetensors"))
    equal = {name for name in theirs if np.array_equal(ours[name], theirs[name])}
    assert equal == theirs.keys() - {"lm_head.weight", "lm_head.bias"}


def test_an_encoder_without_adapters_gets_some(tmp_path):
    """The weights are then written whole, with the first language's adapter inside; a second one is added to them."""
    output, changes = tmp_path / "out", {"model_name_or_path": pretrained(), "adapter_attn_dim": 4}
    done(**settings(write_data(tmp_path / "tur"), output, **changes))
    weights = (output / WEIGHTS).read_bytes()
    done(**settings(write_data(tmp_path / "swe", "swe"), output, target_language="swe", **changes))
    assert (output / WEIGHTS).read_bytes() == weights
    assert_both_load(output, "tur", "swe")


def test_a_step_is_compiled_once_for_each_length(three, tmp_path, monkeypatch):
    compiled = []
    make = loop.make_step
    monkeypatch.setattr(loop, "make_step", lambda *args: compiled.append(make(*args)) or compiled[-1])
    done(**settings(three[0]["tur"], tmp_path / "out"))
    assert [step._cache_size() for step in compiled] == [1]

"""What the program refuses, drops or survives: flags, data, models and disks that are not as they should be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mms_jax.config import Wav2Vec2Config
from mms_jax.models.trees import flatten
from mms_jax.training.state import fresh_adapter
from tests.sounds import encode, noise, tone
from tests.training_jobs import (
    WEIGHTS,
    as_words,
    assert_loads_in_both,
    done,
    group_norm,
    metrics,
    mms,
    pretrained,
    quick_jobs,
    run,
    saved_leaves,
    saved_params,
    settings,
    turkish_tokenizer,
    write_data,
    write_split,
)
from tests.training_outputs import contents

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with quick_jobs():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def refusal(output: Path, **flags: Any) -> str:
    """The one line that a run says which cannot begin; nothing is left in its output directory."""
    code, said = run(**flags)
    assert code == 1, said
    assert said.startswith("mms-jax: error: ")
    assert len(said.splitlines()) == 1
    assert not output.exists()
    return said


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--nonsense", "1"], ["--max_step", "3"], ["--do_trai"], ["--learning_rate", "fast"]]
)
def test_unknown_and_abbreviated_flags_are_errors(words, data, tmp_path):
    code, said = run(words, **settings(data, tmp_path / "out"))
    assert code == 2
    usage, error = said.splitlines()
    assert usage.startswith("usage: mms-jax train ")
    assert words[0] in error
    assert not (tmp_path / "out").exists()


STREAM = {"streaming": True, "tokenizer_name_or_path": turkish_tokenizer, "target_language": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shuffle_buffer_size": 5, "streaming": "false"}, "--shuffle_buffer_size does nothing without --streaming"),
        ({"eval_steps": 5}, "--eval_steps does nothing without --eval_strategy steps"),
        ({"eval_metrics": "cer"}, "--eval_metrics does nothing without --do_eval"),
        ({"save_strategy": "no", "save_steps": 5}, "--save_steps does nothing without --save_strategy steps"),
        ({"hub_model_id": "me/it"}, "--hub_model_id does nothing without --push_to_hub"),
        ({"num_train_epochs": 2}, "--num_train_epochs does nothing with --max_steps"),
        ({"mask_time_length": 5}, "--mask_time_length does nothing without --mask_time_prob over 0"),
        ({"mask_feature_length": 5}, "--mask_feature_length does nothing without --mask_feature_prob over 0"),
        ({"target_language": None, "adapter_attn_dim": 5}, "--adapter_attn_dim does nothing without --target_language"),
        ({"do_train": None, "do_eval": True}, "--mask_time_prob does nothing without --do_train"),
        (STREAM | {"length_column_name": "n"}, "--length_column_name does nothing with --streaming"),
        (STREAM | {"unk_token": "?"}, "--unk_token does nothing with --tokenizer_name_or_path"),
        ({"do_train": None}, "--do_train is not given, nor is --do_eval"),
        ({"fp16": True, "bf16": True}, "--fp16 and --bf16 exclude each other"),
        ({"freeze_feature_encoder": "false"}, "--freeze_feature_encoder is false, but beside adapters"),
        ({"load_best_model_at_end": True, "do_eval": True}, "--load_best_model_at_end needs --eval_strategy"),
        ({"eval_strategy": "epoch"}, "--eval_strategy is epoch, but --do_eval is not given"),
        ({"streaming": True}, "--streaming needs --tokenizer_name_or_path"),
        (STREAM | {"max_steps": None}, "--streaming needs --max_steps"),
        (STREAM | {"group_by_length": True}, "--group_by_length needs all lengths"),
        ({"target_language": ["tur", "tur"]}, "--target_language names a language twice: tur tur"),
        (
            {"target_language": ["a", "b", "c"], "dataset_name": ["x", "y"]},
            "--dataset_name has 2 values for 3 language(s)",
        ),
        (
            {"target_language": ["tur", "swe"]},
            "is given for 2 languages, each of which would train on all of its clips: say with --language_column_name",
        ),
        (
            {"do_eval": True, "eval_split_name": "validation"},
            "validation is evaluated and trained on: give --train_split_name train\n",
        ),
        ({"do_eval": True, "train_split_name": "train+all"}, "all is evaluated and trained on"),
        (
            {"do_eval": True, "train_split_name": "test[:9]", "eval_split_name": "test"},
            "test[:9] is evaluated and trained on: give slices",
        ),
        ({"max_steps": 0}, "--max_steps is 0; it must be at least 1"),
        ({"max_steps": -2}, "--max_steps is -2; it must be at least 1"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "--seed is -1; it must be in 0"),
        ({"adam_beta2": 1}, "--adam_beta2 is 1.0; it must be in 0 … below 1"),
        ({"max_grad_norm": "nan"}, "--max_grad_norm is nan; it must be at least 0"),
        ({"learning_rate": 0}, "--learning_rate is 0.0; it must be above 0"),
        ({"hidden_dropout": 2}, "--hidden_dropout is 2.0; it must be in 0 … below 1"),
        ({"layerdrop": 1}, "--layerdrop is 1.0"),
        ({"adapter_attn_dim": 7}, "has adapters of width 5"),
        ({"init_language": "spa"}, "'spa' has no adapter.spa.safetensors"),
        ({"model_name_or_path": group_norm}, "is a post-norm encoder, which has no adapters"),
        ({"max_duration_in_seconds": 0}, "--max_duration_in_seconds is 0.0"),
        ({"num_processes": 2}, "--coordinator_address, --num_processes and --process_id go together"),
    ],
)
def test_settings_that_do_nothing_or_cannot_be_are_refused_in_one_line(changes, message, data, tmp_path):
    changes = {name: value() if callable(value) else value for name, value in changes.items()}
    assert message in refusal(tmp_path / "out", **settings(data, tmp_path / "out", **changes))


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_column_name": "transcript"},
            "has no column 'transcript' for the text; there are: audio, sentence, sam",
        ),
        ({"audio_column_name": "path"}, "has no column 'path' for the audio"),
        ({"length_column_name": "frames"}, "has no column 'frames' for the length"),
        ({"language_column_name": "lang"}, "has no column 'lang' for the language"),
        ({"train_split_name": "dev"}, "train, validation (--train_split_name is dev)\n"),
        ({"do_eval": True, "eval_split_name": "dev"}, "train, validation (--eval_split_name is dev)\n"),
        ({"dataset_name": "/no/such/folder"}, "data set '/no/such/folder': there is no such folder"),
        ({"tokenizer_name_or_path": "/no/such/tokenizer"}, "/no/such/tokenizer"),
        ({"model_name_or_path": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_data_and_models_that_are_not_there_are_named_before_anything_is_written(changes, message, data, tmp_path):
    assert message in refusal(tmp_path / "out", **settings(data, tmp_path / "out", **changes))


def test_clips_of_any_rate_are_used_and_those_that_cannot_be_are_dropped_and_told(tmp_path):
    folder = tmp_path / "data"
    texts = ["bir", "iki", "üç", "dört", "", "beş " * 40, "altı", "yedi", None]
    write_split(folder, "train", texts, sizes=(8000,) * 6 + (400, 8000, 8000))
    for index, rate in enumerate((8000, 44_100, 48_000)):
        stereo = np.stack([tone(0.5, rate=rate)] * 2, axis=1)
        (folder / "train" / f"{index}.wav").write_bytes(encode(stereo, rate=rate))
    (folder / "train" / "3.wav").write_bytes(b"RIFF, but no more of it")
    (folder / "train" / "7.wav").unlink()
    said = done(**settings(folder, tmp_path / "out", train_split_name="train", max_steps=1))
    assert "tur, training: 3 of 9 clips, 1.5 s" in said
    for dropped in ("2  undecodable", "2  empty text", "2  infeasible"):
        assert re.search(rf"^ +{dropped}: ", said, re.MULTILINE), said
    assert re.search(r"train/3.wav\b", said)
    assert re.search(r"train/7.wav\b.*no such file", said)
    card = json.loads((tmp_path / "out" / "training_results.json").read_text())
    assert json.dumps({"empty text": 2, "infeasible": 2, "undecodable": 2}) in json.dumps(card, sort_keys=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_clip_that_vanishes_while_it_is_in_use_is_named_and_what_was_trained_is_kept(split, tmp_path):
    """With a column of lengths nothing is decoded beforehand but a few clips, of which this is none."""
    folder, output = tmp_path / "data", tmp_path / "out"
    for name in ("train", "test"):
        write_split(folder, name, ["bir iki"] * 10)
    (folder / split / "4.wav").rename(tmp_path / "away")
    flags = {"length_column_name": "samples", "train_split_name": "train", "max_steps": 5, "do_eval": True, "seed": 1}
    code, said = run(**settings(folder, output, **flags))
    assert code == 1
    assert re.search(rf"error: .*{split}/4.wav[)]: cannot be decoded", said)
    assert "Traceback" not in said
    assert (output / "adapter.tur.safetensors").exists() == (split == "test")
    (tmp_path / "away").rename(folder / split / "4.wav")
    code, said = run(**settings(folder, output, **flags))
    assert (code, "nothing is left to do" in said) == ((0, False) if split == "train" else (1, True))
    if split == "train":
        assert re.search(r"[1-4] steps were done before; goes on from there", said)


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_vocabulary_bigger_than_the_head_is_refused(data, tmp_path):
    """Of an adapter that is evaluated, and of a whole model that is to be trained further."""
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(mms(), tokenizer)
    tokens = json.loads((tokenizer / "vocab.json").read_text())
    tokens["fra"] |= {"ß": len(tokens["fra"])}
    (tokenizer / "vocab.json").write_text(json.dumps(tokens))
    job = {"dataset_name": data, "text_column_name": "sentence", "output_dir": tmp_path / "out"}
    names = {"model_name_or_path": mms(), "tokenizer_name_or_path": tokenizer, "target_language": "fra"}
    code, said = run(**job, **names, do_eval=True)
    assert code == 1
    count = len(tokens["fra"])
    assert f"adapter.fra.safetensors: its head has {count - 1} tokens, but the vocabulary {count}" in said
    model = tmp_path / "model"
    shutil.copytree(group_norm(), model)
    tokens = json.loads((model / "vocab.json").read_text())
    (model / "vocab.json").write_text(json.dumps(tokens | {"ß": len(tokens)}))
    code, said = run(**job, model_name_or_path=model, tokenizer_name_or_path=model, do_train=True)
    assert code == 1
    assert f"its head has {len(tokens)} tokens, but the vocabulary {len(tokens) + 1}" in said


@pytest.mark.parametrize(("model", "needed"), [(mms, "--target_language"), (pretrained, "has no vocabulary")])
def test_what_cannot_be_evaluated_is_refused(model, needed, data, tmp_path):
    flags = {"model_name_or_path": model(), "dataset_name": data, "text_column_name": "sentence", "do_eval": True}
    assert needed in refusal(tmp_path / "out", **flags, output_dir=tmp_path / "out")


def test_a_language_without_an_adapter_is_left_out_of_an_evaluation(data, tmp_path):
    flags = {"model_name_or_path": mms(), "dataset_name": data, "text_column_name": "sentence", "do_eval": True}
    flags["dataset_name"] = [data, data]
    code, said = run(**flags, target_language=["fra", "tur"], output_dir=tmp_path / "out")
    assert code == 1
    assert "error: tur: 'tur' has no adapter.tur.safetensors" in said
    assert "--model_name_or_path must be the directory that holds the language's adapter" in said
    assert f"wrote {tmp_path / 'out' / 'eval_results.json'}" in said
    assert list(json.loads((tmp_path / "out" / "eval_results.json").read_text())) == ["fra"]


def test_a_directory_of_another_base_is_refused_and_stays_as_it_is(data, tmp_path):
    output, other = tmp_path / "out", tmp_path / "other"
    done(**settings(data, output, max_steps=1))
    shutil.copytree(mms(), other)
    weights = load_file(other / WEIGHTS)
    weights["wav2vec2.encoder.layer_norm.bias"][0] += 1
    save_file(weights, other / WEIGHTS)
    before = contents(output)
    for changes in ({"target_language": "swe"}, {"target_language": "tur"}, {"target_language": None}):
        code, said = run(**settings(data, output, model_name_or_path=other, **changes))
        assert (code, len(said.splitlines())) == (1, 1), said
        assert "choose another" in said
        assert contents(output) == before


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_one_language_s_gradients_that_are_not_finite_stop_that_language_alone(tmp_path):
    """Its clips are a million times too loud, and this model does not normalise: too much for float16."""
    base, languages = tmp_path / "base", ("tur", "swe", "fin")
    shutil.copytree(mms(), base)
    processor = json.loads((base / "processor_config.json").read_text())
    processor["feature_extractor"]["do_normalize"] = False
    (base / "processor_config.json").write_text(json.dumps(processor))
    data = {language: write_data(tmp_path / language, language) for language in languages}
    for index, clip in enumerate(sorted(data["swe"].rglob("*.wav"))):
        clip.write_bytes(encode(1e6 * noise(8000, seed=index), codec="FLOAT"))
    flags = {"model_name_or_path": base, "fp16": True, "max_steps": 26, "languages_per_pass": 1, "logging_steps": 26}

    def job(*chosen: str) -> dict[str, Any]:
        output = tmp_path / "-".join(chosen) / "out"
        return settings([data[language] for language in chosen], output, target_language=list(chosen), **flags)

    code, said = run(**job(*languages))
    assert code == 1
    # Fifteen times the scale of float16 was halved in vain, then eight updates in a row were bad.
    assert "error: swe: 8 updates in a row had gradients that are not finite and were left out" in said
    assert re.search(r"the last at step 23 on .*train.csv.*train/\d.wav", said)
    assert len(re.findall(r"swe: step 16 is left out, its gradient is not finite \(.*train/\d.wav\)", said)) == 1
    output = job(*languages)["output_dir"]
    done(**job("tur", "fin"))
    for language in ("tur", "fin"):
        ours, alone = (place / f"adapter.{language}.safetensors" for place in (output, job("tur", "fin")["output_dir"]))
        assert ours.read_bytes() == alone.read_bytes()
    assert not (output / "adapter.swe.safetensors").exists()
    kept = flatten(saved_params(output / "checkpoints" / "tur-swe-fin"))
    config = Wav2Vec2Config.from_file(base / "config.json")
    fresh = flatten(fresh_adapter(config, vocab_size=kept["lm_head/bias"].shape[-1], seed=42))
    assert [path for path in fresh if "lm_head" not in path and not np.array_equal(kept[path][1], fresh[path])] == []
    logs = [metrics(place)[-1] for place in (output, job("tur", "fin")["output_dir"])]
    assert ["not_finite" in log for log in logs] == [True, False]


def test_a_single_language_whose_gradients_are_not_finite_ends_the_job_with_what_was_finite(data, tmp_path):
    output = tmp_path / "out"
    code, said = run(**settings(data, output, learning_rate=1e38, max_steps=30, save_steps=1, logging_steps=30))
    assert code == 1
    error = next(line for line in said.splitlines() if line.startswith("mms-jax: error: "))
    assert "tur: 8 updates in a row had gradients that are not finite" in error
    assert re.search(r"on \S*train.csv.*/\d.wav", error)
    assert "Lower --learning_rate" in error
    assert not (output / "adapter.tur.safetensors").exists()
    leaves = saved_leaves(output / "checkpoints" / "tur")
    assert all(np.isfinite(leaf).all() for leaf in leaves.values())
    assert 0 < leaves["bad_steps"][0] < 8


# --- disks -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond that, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python's own choice: writing fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_the_start_is_told_and_no_half_file_is_left(data, tmp_path):
    job = settings(data, tmp_path / "out", max_steps=1)
    with files_of_at_most(20_000):
        code, said = run(**job)
    assert code == 1
    assert said == f"mms-jax: error: [Errno 27] File too large: '{tmp_path / 'out' / WEIGHTS}'\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["training_base.json"]
    done(**job)


FULL_AFTER_A_SAVE = """
import resource, sys
from mms_jax import cli
from mms_jax.training.files.checkpoints import Checkpoints
finish = Checkpoints._finish
def fill(self, step):
    finish(self, step)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
Checkpoints._finish = fill
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_disk_that_is_full_while_a_state_is_saved_is_told_and_earlier_ones_are_there(data, tmp_path):
    """In a process of its own: hundreds of writes fail at once in threads of orbax, and none of them may be heard."""
    flags = {"model_name_or_path": pretrained(), "target_language": None, "max_steps": 3, "save_steps": 1}
    job = settings(data, tmp_path / "out", **flags)
    ended = subprocess.run(
        [sys.executable, "-c", FULL_AFTER_A_SAVE, "train", *as_words(job)],
        cwd=ROOT,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    *told, error = ended.stderr.splitlines()
    found = re.search(r"error: \S*/model: the checkpoint of step (\d) could not be written [(]File too large[)]", error)
    assert found, error
    last = int(found[1]) - 1  # step 1, or 2: while the disk fills up, that may be in writing already
    assert 1 <= last <= 2
    assert f"that of step {last} and those before it are intact" in error
    assert [line for line in told if not re.match(r"\S*data\d, training|\S* M parameters|step \d/3", line)] == []
    assert f"{last} steps were done before; goes on from there" in done(**job)
    assert_loads_in_both(tmp_path / "out")

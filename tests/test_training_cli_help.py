"""What ``mms-jax train`` tells a newcomer: of its flags, of data that is not there, of what a job comes to."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from mms_jax import cli
from mms_jax.cli import demo_train
from mms_jax.cli.train import add_train
from mms_jax.training import job, material
from mms_jax.training.arguments import TrainingArguments, read_arguments
from tests.training_jobs import done, evaluations, quick_jobs, run, settings, write_data, write_split


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with quick_jobs():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def refusal(**flags: Any) -> str:
    """The one line that a run says which cannot begin."""
    code, said = run(**flags)
    assert (code, len(said.splitlines())) == (1, 1), said
    return said


NAMES: dict[str, Any] = {
    "model_name_or_path": "a",
    "dataset_name": ("b",),
    "output_dir": "c",
    "do_train": True,
    "do_eval": True,
}
EVERY_STEP: dict[str, Any] = {"eval_strategy": "steps", "load_best_model_at_end": True}


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """How the program ended, and all that it said."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out + err


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--learnin_rate", "--learning_rate"), ("--output-dir", "--output_dir"), ("--eval_split=x", "--eval_split_name")],
)
def test_a_misspelt_flag_is_answered_with_train_s_usage_and_the_nearest_one(flag, meant, capsys):
    code, text = said(capsys, "train", flag, "1")
    usage, error = text.splitlines()
    assert (code, usage.split()[:3]) == (2, ["usage:", "mms-jax", "train"])
    name = flag.partition("=")[0]
    assert error.endswith(f"there is no {name} (did you mean {meant}?); see mms-jax train --help")


def test_a_flag_that_is_like_none_is_not_guessed_at(capsys):
    assert "there is no --nonsense; see mms-jax train --help" in said(capsys, "train", "--nonsense", "1")[1]


def test_other_commands_tell_of_their_own_flags(capsys):
    code, text = said(capsys, "identify", "a.wav", "--topk", "1")
    assert (code, "usage: mms-jax identify" in text, "(did you mean --top-k?)" in text) == (2, True, True)


def test_the_help_says_what_kind_of_value_a_flag_takes_and_ends_with_an_example(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, text = said(capsys, "train", "--help")
    assert code == 0
    kinds = dict(re.findall(r"^  --(\w+) ([A-Z][A-Z:/|]*)\b", text, re.MULTILINE))
    some = {
        "train_split_name": "SPLIT",
        "text_column_name": "COLUMN",
        "coordinator_address": "HOST:PORT",
        "token": "TOKEN",
        "output_dir": "DIR",
        "max_steps": "N",
        "learning_rate": "X",
    }
    assert {name: kinds[name] for name in some} == some
    assert "NAME" not in kinds.values()
    flags = re.findall(r"--(\w+)", text[text.index("example:") :])
    assert {"model_name_or_path", "dataset_name", "output_dir", "do_train"} <= set(flags)
    assert set(flags) <= set(TrainingArguments.__dataclass_fields__)


def test_the_best_model_is_by_default_that_of_the_least_loss_of_evaluations_as_in_transformers():
    assert TrainingArguments(**NAMES, **EVERY_STEP, eval_metrics=("cer",)).metric_for_best_model == "loss"


def test_slices_of_one_split_can_be_trained_on_and_evaluated():
    slices: dict[str, Any] = {"train_split_name": "train[:90%]", "eval_split_name": "train[90%:]"}
    assert TrainingArguments(**NAMES, **slices).eval_split_name == "train[90%:]"


def test_starting_anew_says_what_it_replaces_and_what_it_leaves(capsys):
    text = " ".join(said(capsys, "train", "--help")[1].split())
    help = text[text.index("--overwrite_output_dir [") :].split(" --")[0]
    assert re.search("replaces this job's checkpoints and the adapters of its languages", help)
    assert "other languages' adapters and all other files" in help


def test_a_default_split_that_is_not_there_is_said_to_be_the_default(tmp_path):
    write_split(tmp_path / "data", "train", ["bir", "iki"])
    said = refusal(**settings(tmp_path / "data", tmp_path / "out"))
    assert "has no split 'validation'; there are: train (--train_split_name is train+validation, the default)" in said


def test_a_hub_that_cannot_be_reached_is_told_at_once_and_in_words(data, tmp_path, monkeypatch):
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.setattr(material, "load_rows", lambda *_, **__: pytest.fail("the libraries were let try"))
    said = refusal(**settings(data, tmp_path / "out", dataset_name="nowhere"))
    assert "'nowhere': there is no such folder or file here, and the hub cannot be reached (Name or" in said
    assert not re.search(r"\(\w+Error\)", said)


def test_retries_of_the_hub_are_not_told_one_by_one(data, tmp_path, monkeypatch):
    retries, heard = logging.getLogger("huggingface_hub.utils._http"), []
    real = material.load_rows

    def load_rows(*names: Any, **options: Any) -> Any:
        heard.append(retries.isEnabledFor(logging.WARNING))
        return real(*names, **options)

    monkeypatch.setattr(material, "load_rows", load_rows)
    refusal(**settings(data, tmp_path / "out", train_split_name="dev"))
    assert (set(heard), retries.isEnabledFor(logging.WARNING)) == ({False}, True)


@pytest.mark.parametrize(
    ("tag", "note"),
    [
        ("it", "'it' is kept as it is; MMS files Italian under 'ita'"),
        ("Italian", "'Italian' is kept as it is; MMS files Italian under 'ita'"),
        ("fre", "'fre' is kept as it is; MMS files French under 'fra'"),
        ("no", "'no' is kept as it is; MMS files Norwegian under 'nno' or 'nob'"),
        ("ita", None),
        ("azj-script_latin", None),
        ("tlh", None),
        ("nowhere", None),
    ],
)
def test_a_tag_that_is_another_name_of_a_known_language_is_told(tag, note):
    assert material.tag_note(tag) == note


BEST: dict[str, Any] = {
    "load_best_model_at_end": True,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "do_eval": True,
    "max_steps": 3,
}
BEST |= {"lr_scheduler_type": "constant"}


def test_what_is_said_once_the_bar_is_there_goes_above_it(data, tmp_path, monkeypatch):
    above = []
    monkeypatch.setattr(job.RunLog, "say", lambda _, message: above.append(message))
    done(**settings(data, tmp_path / "out", max_steps=1))
    assert [message.split(" M ")[1][:18] for message in above] == ["parameters trained"]


@pytest.mark.parametrize("keeps_best", [True, False])
def test_a_job_says_which_step_was_the_best_and_which_is_written(keeps_best, data, tmp_path):
    """The learning rate is far too high, so the best is not the last."""
    flags = BEST | {"learning_rate": 30, "load_best_model_at_end": keeps_best or None, "target_language": "tr"}
    flags = settings(data, tmp_path / "out", **flags)
    said = done(**flags)
    losses = {record["step"]: record["loss"] for record in evaluations(tmp_path / "out")}
    best = min(losses, key=losses.__getitem__)
    assert best < 3
    kept = "and is kept" if keeps_best else "the last is kept; --load_best_model_at_end would keep the best"
    assert f"tr: step {best} of 3 was the best, by loss ({losses[best]:.4g}), {kept}\n" in said
    assert said.startswith("'tr' is kept as it is; MMS files Turkish under 'tur'\n")
    assert "nothing is left to do; --overwrite_output_dir trains anew" in done(
        **settings(data, tmp_path / "out", **flags)
    )


@pytest.mark.parametrize(
    ("save_steps", "told"),
    [
        (1, "not saved since step 2; the same command goes on from there"),
        (5, "nothing is saved yet, and the same command begins anew"),
    ],
)
def test_ctrl_c_ends_with_130_and_one_line_of_what_is_not_saved(save_steps, told, data, tmp_path, monkeypatch):
    real = job.RunLog.advance

    def advance(log: Any, step: int) -> None:
        real(log, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(job.RunLog, "advance", advance)
    flags = settings(data, tmp_path / "out", max_steps=9, save_steps=save_steps)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    try:
        code, said = run(**flags)
    finally:
        signal.signal(signal.SIGINT, before)
    last = said.splitlines()[-1]
    assert code == 130
    assert last.startswith("interrupted after step 3: ")
    assert f"--save_steps ({save_steps}) says how often" in last
    assert told in last
    monkeypatch.undo()
    resumed = "2 steps were done before; goes on from there" in done(**flags)
    assert resumed == (save_steps != 5)


def test_the_demo_reports_the_error_rate_that_it_shows_on_its_card():
    parser = argparse.ArgumentParser()
    add_train(parser.add_subparsers())
    read = read_arguments(parser.parse_args(["train", *demo_train.train_flags(Path("out"))]))
    assert read.eval_metrics == ("wer", "cer")


def test_the_demo_s_last_lines_name_all_that_a_job_leaves(data, tmp_path):
    for language in ("swe", "ita"):
        done(**settings(data, tmp_path, target_language=language, do_eval=True, max_steps=1))
    told = "\n".join(demo_train._contents(tmp_path))
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert {"checkpoints", "training_results.json", "training_base.json", "metrics-1.jsonl", "runs"} <= names
    assert {"training_curve-1.png", "README.md"} <= names
    assert sorted(re.findall(r"[\w.-]+\.\w+\b|checkpoints|runs", told)) == sorted(names)


def test_the_readme_names_what_a_job_leaves_and_the_default_splits():
    text = (Path(cli.__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = text[text.index("\n## Train\n") : text.index("\n## Equal to PyTorch")]
    for name in ("training_results.json", "training_base.json", "metrics-1.jsonl", "checkpoints/", "eval_results.json"):
        assert f"`{name}`" in section
    for name in ("train_split_name", "eval_split_name"):
        assert f"--{name} {getattr(TrainingArguments(**NAMES), name)}`" in section

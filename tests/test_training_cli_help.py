"""What ``mms-jax train`` says of its flags: what they take, and which one a misspelt one may have been."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mms_jax import cli
from mms_jax.training.arguments import TrainingArguments

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

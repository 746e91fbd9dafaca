"""``mms-jax train``: adapters or a whole model on one's own data, with the flags of transformers' example scripts."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from mms_jax.training.arguments import TrainingArguments, read_arguments

_EXAMPLE = """example: an adapter for Italian, from a folder with train/metadata.csv, validation/… and test/…
  mms-jax train --model_name_or_path facebook/mms-1b-all --target_language ita --output_dir mms-ita --do_train --do_eval
      --dataset_name my-clips --text_column_name text --num_train_epochs 4 --learning_rate 1e-3 --warmup_steps 100
"""
# What stands for a flag's value where its type does not say enough.
_PLACEHOLDERS = {
    "DIR|REPO": "model_name_or_path tokenizer_name_or_path",
    "DIR": "output_dir cache_dir",
    "TAG": "target_language init_language",
    "DATA": "dataset_name",
    "CONFIG": "dataset_config_name",
    "SPLIT": "train_split_name eval_split_name",
    "COLUMN": "audio_column_name text_column_name language_column_name length_column_name",
    "CHARS": "chars_to_ignore",
    "SYMBOL": "unk_token pad_token word_delimiter_token",
    "TOKEN": "token",
    "REVISION": "model_revision",
    "SCHEDULE": "lr_scheduler_type",
    "USER/NAME": "hub_model_id",
    "HOST:PORT": "coordinator_address",
    "SECONDS": "max_duration_in_seconds min_duration_in_seconds",
}
_PLACEHOLDER = {name: placeholder for placeholder, names in _PLACEHOLDERS.items() for name in names.split()}


def add_train(commands: Any) -> None:
    """The command and its arguments."""
    train = commands.add_parser(
        "train",
        help="train adapters, or a whole model, on clips and their texts",
        usage="mms-jax train --model_name_or_path DIR|REPO --dataset_name DATA --output_dir DIR --do_train [flags]",
        description="Flags have the names of transformers' run_speech_recognition_ctc*.py; those marked (ours) do not.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(train)
    train.set_defaults(run=_train)


def run_train(arguments: Sequence[str]) -> int:
    """``mms-jax train`` with these arguments; returns the exit code.

    Raises:
        MMSError, OSError: what is wrong, for the program to print.
    """
    parser = argparse.ArgumentParser("mms-jax train", allow_abbrev=False)
    _add_arguments(parser)
    return _train(parser.parse_args(arguments))


def _train(options: argparse.Namespace) -> int:
    # Not at the top: it brings datasets, orbax and matplotlib, which no other command needs.
    from mms_jax.training.job import run_job

    return run_job(read_arguments(options))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each setting; ``parser`` should not abbreviate."""
    groups: dict[str, Any] = {}
    types = typing.get_type_hints(TrainingArguments)
    for field in dataclasses.fields(TrainingArguments):
        name = field.metadata["group"]
        group = groups.setdefault(name, parser.add_argument_group(name))
        group.add_argument(f"--{field.name}", **_argument(field, types[field.name]))


def _argument(field: dataclasses.Field[Any], annotation: Any) -> dict[str, Any]:
    meta = field.metadata
    # What is not given is absent, so that what is given but does nothing can be told.
    options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
    options |= {"required": bool(meta.get("required"))}
    kinds = [kind for kind in typing.get_args(annotation) if kind not in (type(None), ...)] or [annotation]
    if annotation in (bool, bool | None):  # a bare flag, or as transformers takes it: --do_eval false
        return options | {"nargs": "?", "const": True, "type": _boolean, "metavar": "false"}
    if typing.get_origin(annotation) is tuple:
        options["nargs"] = "+"
    if meta.get("choices"):
        return options | {"type": kinds[0], "choices": meta["choices"]}
    placeholder = _PLACEHOLDER[field.name] if kinds[0] is str else {int: "N", float: "X"}[kinds[0]]
    return options | {"type": kinds[0], "metavar": _PLACEHOLDER.get(field.name, placeholder)}


def _help(field: dataclasses.Field[Any]) -> str:
    """What a setting is for, and its default where that is a value."""
    text = field.metadata["help"].replace("%", "%%")
    if field.default in (None, (), "", False) and not isinstance(field.default, float):
        return text
    default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
    return f"{text} ({default})"


def _boolean(text: str) -> bool:
    values = {"true": True, "t": True, "yes": True, "y": True, "1": True, "false": False, "f": False, "no": False}
    values |= {"n": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]

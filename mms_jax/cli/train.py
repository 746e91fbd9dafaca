"""``mms-jax train``: adapters or a whole model on one's own data, with the flags of transformers' example scripts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def add_train(commands: Any) -> None:
    """The command and its arguments."""
    train = commands.add_parser(
        "train",
        help="train adapters, or a whole model, on clips and their texts",
        usage="mms-jax train --model_name_or_path DIR|REPO --dataset_name NAME --output_dir DIR --do_train [flags]",
        description="Flags have the names of transformers' run_speech_recognition_ctc*.py; those marked (ours) do not.",
    )
    from mms_jax.training.arguments import add_arguments

    add_arguments(train)
    train.set_defaults(run=_train)


def run_train(arguments: Sequence[str]) -> int:
    """``mms-jax train`` with these arguments; returns the exit code.

    Raises:
        MMSError, OSError: what is wrong, for the program to print.
    """
    from mms_jax.training.arguments import add_arguments

    parser = argparse.ArgumentParser("mms-jax train", allow_abbrev=False)
    add_arguments(parser)
    return _train(parser.parse_args(arguments))


def _train(options: argparse.Namespace) -> int:
    # Not at the top: it brings datasets, orbax and matplotlib, which no other command needs.
    from mms_jax.training.arguments import read_arguments
    from mms_jax.training.job import run_job

    return run_job(read_arguments(options))

"""``mms-jax doctor``: what is wrong with this installation, and what to do about it."""

from __future__ import annotations

import argparse
from typing import Any

from mms_jax.pipelines.doctor import run_doctor


def add_doctor(commands: Any) -> None:
    """The command and its arguments."""
    doctor = commands.add_parser(
        "doctor",
        help="check this installation, and say what to do about what is wrong",
        description="Check versions, devices, caches, audio formats and results. Exit code 1: something is broken.",
    )
    doctor.add_argument("--format", choices=("text", "json"), default="text", help="json: for bug reports")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    return run_doctor(options.format)

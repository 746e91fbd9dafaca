"""``mms-jax identify``: which language is spoken in files."""

from __future__ import annotations

import argparse
from typing import Any

from mms_jax.cli.common import add_files, add_model, codes, model_or_demo, positive, print_results
from mms_jax.pipelines.demo import DEMO_LID
from mms_jax.pipelines.lid import Identification, load_lid


def add_identify(commands: Any) -> None:
    """The command and its arguments."""
    identify = commands.add_parser("identify", help="print which language is spoken in audio files")
    add_model(identify)
    identify.add_argument("--top-k", type=positive, default=1, metavar="K", help="languages to name (1)")
    identify.add_argument(
        "--languages", metavar="CODES", help="the only ones to consider, such as eng,fra; their probabilities add to 1"
    )
    add_files(identify)
    identify.set_defaults(run=_identify)


def _identify(options: argparse.Namespace) -> int:
    lid = load_lid(model_or_demo(options.model, demo=DEMO_LID), dtype=options.dtype)
    results = lid.identify(
        options.files, top_k=options.top_k, languages=codes(options.languages), batch_size=options.batch_size
    )
    failed = print_results(options, options.files, results, line=_line, fields=_fields)
    return 1 if failed else 0


def _line(result: Identification) -> str:
    return "\t".join(f"{language}\t{probability:.4f}" for language, probability in result.top)


def _fields(result: Identification) -> dict[str, Any]:
    duration = {"duration": round(result.duration, 3)}
    if result.error is not None:
        return {**duration, "error": str(result.error)}
    top = [[language, round(probability, 6)] for language, probability in result.top]
    return {**duration, "language": result.language, "probability": round(result.probability, 6), "top": top}

"""``mms-jax align --segment``: cuts the aligned recording into a data set for ``mms-jax train``."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path

from mms_jax.cli.common import some, warn
from mms_jax.errors import SettingError
from mms_jax.pipelines.alignment import Alignment
from mms_jax.pipelines.corpus import NORMALIZED_COLUMN, REPORT, check_free, make_corpus
from mms_jax.pipelines.demo import DEMO_MODEL
from mms_jax.pipelines.segmenting import Limits

_LIMITS = {"min_score": "--min-score", "min_seconds": "--min-seconds", "max_seconds": "--max-seconds"}


def add_segment(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    default = Limits()
    group = parser.add_argument_group("making a data set")
    group.add_argument(
        "--segment", metavar="OUT_DIR", help="cut the audio at the lines of the text into clips in this new folder"
    )
    group.add_argument(
        "--min-score",
        type=_score,
        metavar="X",
        help="leave out clips whose mean log probability is so far below what the model hears on its own "
        f"({default.min_score}; none: keep all)",
    )
    group.add_argument(
        "--min-seconds", type=float, metavar="X", help=f"leave out shorter ones ({default.min_seconds:g})"
    )
    group.add_argument(
        "--max-seconds",
        type=float,
        metavar="X",
        help=f"cut longer lines at pauses and ends of sentences ({default.max_seconds:g})",
    )


def _score(text: str) -> float:
    """argparse takes -inf for an option."""
    return -math.inf if text == "none" else float(text)


def check_segment(options: argparse.Namespace) -> None:
    """Raise SettingError for what cannot be, before anything is computed."""
    given = [flag for name, flag in _LIMITS.items() if getattr(options, name) is not None]
    if options.segment is None:
        if given:
            raise SettingError(f"{some(given)} is for --segment OUT_DIR, which makes a data set")
        return
    if not options.segment:
        raise SettingError("--segment is empty; name a new folder")
    check_free(Path(options.segment))
    _limits(options).check()


def make_segments(options: argparse.Namespace, alignment: Alignment) -> None:
    """Write the data set, name it, and tell what was kept and what was not."""
    out = Path(options.segment)
    made = make_corpus(options.audio, alignment, out, language=options.language, limits=_limits(options))
    for line in made.lines:
        warn(line)
    if made.dropped:
        warn(f"what was left out is in {out / REPORT}")
    warn(f"train on it: {_train_command(options, out)}")
    print(out)


def _train_command(options: argparse.Namespace, out: Path) -> str:
    """What trains an adapter on it, of the model that aligned it."""
    language = options.language or "LANGUAGE"
    model, output = shlex.quote(str(options.model or DEMO_MODEL)), shlex.quote(f"{out}-{language}")
    return (
        f"mms-jax train --do_train --model_name_or_path {model} --target_language {shlex.quote(language)} "
        f"--dataset_name {shlex.quote(str(out))} --train_split_name train --text_column_name {NORMALIZED_COLUMN} "
        f"--output_dir {output}"
    )


def _limits(options: argparse.Namespace) -> Limits:
    given = {name: value for name in _LIMITS if (value := getattr(options, name)) is not None}
    return Limits(**given)

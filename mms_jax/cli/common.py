"""What the commands share: their common arguments, how results are printed, and how they speak to the user."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mms_jax.errors import MMSWarning
from mms_jax.pipelines.demo import DEMO_MODEL
from mms_jax.pipelines.dtypes import WAV2VEC2_DTYPES


def add_files(parser: argparse.ArgumentParser, *, formats: Sequence[str] = ("text", "json")) -> None:
    """Files, and how they are read and their results printed."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="WAV, FLAC, OGG or MP3, any rate and channels")
    parser.add_argument("--format", choices=formats, default="text", help="json: one object a line")
    parser.add_argument("--dtype", choices=WAV2VEC2_DTYPES, default="float32", help="of weights and products (float32)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="most files at a time (8)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint."""
    parser.add_argument("--model", metavar="DIR|REPO", help="directory or hub name (default: the bundled demo model)")


def positive(text: str) -> int:
    """A number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def codes(text: str | None) -> list[str] | None:
    """Languages separated by commas."""
    return None if text is None else [name for name in text.split(",") if name.strip()]


def model_or_demo(model: str | None, *, demo: Path = DEMO_MODEL) -> str | Path:
    """The model that was asked for, or else the bundled one, with a word about it."""
    if model is None:
        warn(f"using the bundled demo model ({demo}), which understands one speech synthesiser only")
        return demo
    return model


def print_results(
    options: argparse.Namespace,
    files: Sequence[str],
    results: Sequence[Any],
    *,
    line: Callable[[Any], str],
    fields: Callable[[Any], Mapping[str, Any]],
) -> int:
    """Print what was found in ``files``, some of ``options.files``, as text or JSON; returns how many failed."""
    failed = 0
    for file, result in zip(files, results, strict=True):
        if result.error is not None:
            failed += 1
            warn(f"error: {result.error}")
        if options.format == "json":
            print(to_json({"file": file, **fields(result)}))
        elif result.error is None:
            print(line(result) if len(options.files) == 1 else f"{file}\t{line(result)}")
    return failed


def to_json(fields: Mapping[str, Any]) -> str:
    """One line of JSON: text as it is, and the bytes of file names that are no text as escapes."""
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")


def some(items: Sequence[str], *, limit: int = 8) -> str:
    """The first few, and how many more there are."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def warn(message: str) -> None:
    """One line on stderr."""
    if sys.stderr is not None:  # else print would write it to stdout
        print(f"mms-jax: {message}", file=sys.stderr)


@contextmanager
def own_warnings() -> Iterator[None]:
    """Show this library's warnings as ``warn`` does, without where in it they come from."""
    show = warnings.showwarning

    def tell(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if issubclass(category, MMSWarning):
            warn(f"warning: {message}")
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = tell
    try:
        yield
    finally:
        warnings.showwarning = show

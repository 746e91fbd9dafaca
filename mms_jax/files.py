"""Small files of a checkpoint: JSON read without surprises, and any file written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

from mms_jax.errors import CheckpointError, ConfigError

MAX_JSON_BYTES = 64 << 20  # the 1,162 vocabularies of mms-1b-all take about 3 MB
_KEY_CHARS_SHOWN = 40


def read_json(path: str | PathLike[str], *, error: type[CheckpointError] = ConfigError) -> dict[str, Any]:
    """Read a JSON object from a checkpoint's file.

    Raises:
        error: the file is missing, over 64 MB, not JSON, not an object, or gives a key twice; the message names it.
    """
    try:
        size = Path(path).stat().st_size
        if size > MAX_JSON_BYTES:
            raise error(f"{path}: {size:,} bytes; such a file has at most {MAX_JSON_BYTES:,}")
        values = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except CheckpointError:
        raise
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror or cause})") from cause
    except (ValueError, RecursionError) as cause:  # not UTF-8, not JSON, a number of 5,000 digits, 100,000 brackets
        raise error(f"{path}: not valid JSON ({cause})") from cause
    if not isinstance(values, dict):
        raise error(f"{path}: holds a {type(values).__name__}, expected an object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:_KEY_CHARS_SHOWN]!r} appears twice in one object")
    return values


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object as transformers does (two spaces, sorted keys), atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces ``path`` when the block ends without an error, and vanishes otherwise.

    Raises:
        OSError: it cannot be written; ``filename`` is ``path``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:  # not tempfile: that makes files only their owner may read
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # where nothing could be made, nothing can be removed; why is what the caller must see
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # a full disk names no file, the rest our temporary one
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise

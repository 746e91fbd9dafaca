"""Small files of a checkpoint: JSON read and checked without surprises, and any file written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import reprlib
import secrets
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any, TypeGuard

from mms_jax.errors import CheckpointError, ConfigError

MAX_JSON_BYTES = 64 << 20  # the 1,162 vocabularies of mms-1b-all take about 3 MB
MAX_STRING_CHARS = 10_000  # of a key or value: the longest that anybody wrote is a template of a few thousand
_KEY_CHARS_SHOWN = 40
_NAMES_SHOWN = 20
MAX_SIZE = 1 << 20  # of anything in a model: vocabularies have ten thousand, sampling rates 48,000
_MAY_BE_ZERO = frozenset({"pad_token_id", "bos_token_id", "eos_token_id", "speaker_embedding_size"})
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def read_json(path: str | PathLike[str], *, error: type[CheckpointError] = ConfigError) -> dict[str, Any]:
    """Read a JSON object from a checkpoint's file.

    Raises:
        error: the file is missing, over 64 MB, not JSON, not an object, gives a key twice or has a text of over 10,000
            characters; the message names it.
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
        raise error(
            f"{path}: not valid JSON ({cause}); {fetched_again(path) or 'mend it, or put a copy there'}"
        ) from cause
    if not isinstance(values, dict):
        raise error(f"{path}: holds a {type(values).__name__}, expected an object")
    return values


def fetched_again(path: str | PathLike[str]) -> str:
    """What helps if a file is damaged that lies in the hub's cache, where each load would find it; else "".

    The file is a link to a blob, or itself in a cache without links: huggingface_hub fetches what is not there.
    """
    repository, snapshots, *_ = ("", "", *Path(path).absolute().parts)[-4:]
    if snapshots != "snapshots" or not repository.startswith("models--"):
        return ""
    return f"delete {Path(path).resolve()}, the copy in the hub's cache, then load it online, which fetches it again"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:_KEY_CHARS_SHOWN]!r} appears twice in one object")
    for key, value in pairs:
        if max(len(key), _longest_text(value)) > MAX_STRING_CHARS:  # it would come back whole in messages
            beginning = key if len(key) <= _KEY_CHARS_SHOWN else f"{key[:_KEY_CHARS_SHOWN]}…"
            raise ValueError(f"a text of over {MAX_STRING_CHARS:,} characters at the key {beginning!r}")
    return values


def _longest_text(value: Any) -> int:
    """Of a value that is no object: objects have been looked through before."""
    if isinstance(value, list):
        return max(map(_longest_text, value), default=0)
    return len(value) if isinstance(value, str) else 0


def shorten(value: object) -> str:
    """A value's ``repr``, or the beginning of it: what a file holds may be anything, a message is a line."""
    return _SHORT.repr(value)


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


def listed(names: list[str]) -> str:
    """Names for a message, the first of many."""
    shown = [name if name.isprintable() and len(name) < 80 else shorten(name) for name in names[:_NAMES_SHOWN]]
    return ", ".join(shown) + (" …" if len(names) > _NAMES_SHOWN else "")


def coerce(name: str, value: Any, expected: Any) -> Any:
    """Check a config.json's value, which can be anything, against its field's type; lists become tuples.

    Raises:
        ConfigError: of another type, negative, infinite, or a size that no model has; the message names the field.
    """
    if value is None and type(None) in typing.get_args(expected):
        return None
    if expected is bool or expected is str:
        valid = isinstance(value, expected)
    elif expected is float:
        valid = _is_number(value) and 0 <= value < math.inf
    elif typing.get_origin(expected) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(coerce(name, item, typing.get_args(expected)[0]) for item in value)
        valid = False
    else:
        least = 0 if name in _MAY_BE_ZERO or "min_masks" in name else 1
        valid = _is_int(value) and least <= value
    if not valid:
        raise ConfigError(f"{name} is {shorten(value)}, which is not a valid {getattr(expected, '__name__', expected)}")
    if _is_int(value) and value > MAX_SIZE:
        raise ConfigError(f"{name} is {shorten(value)}; no model has more than {MAX_SIZE:,}")
    return value


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""A conversion on disk: whole or not at all, read back, and with a report that accounts for every tensor."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from convert.conversion import Conversion, ConversionError, Part, called
from convert.torch_writer import write_torch_file
from mms_jax.checkpoint.tensors import TensorSource, write_tensors
from mms_jax.files import atomic_write, write_json

REPORT = "report.json"
_BLOCK = 1 << 24


def write(conversion: Conversion, out: Path, *, source: str, check: Callable[[Path], None]) -> dict[str, Any]:
    """Write a checkpoint to a directory that is new or empty; returns what report.json holds.

    Args:
        conversion: what is to be written.
        out: the directory.
        source: where it comes from, for the report.
        check: raises if what was written cannot be loaded; then nothing is left.

    Raises:
        ConversionError: there is something already, a tensor cannot be written, or there is no space or permission;
            nothing is left then. CheckpointError: what ``check`` raises.
    """
    new = not out.exists()
    check_free(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f".partial-{secrets.token_hex(4)}"
        partial.mkdir()
    except OSError as error:
        raise ConversionError(f"{out}: cannot be made ({error.strerror or error})") from error
    try:
        with called(partial, str(out)):
            report = _write_files(conversion, partial, source)
            check(partial)
        _write_report(report, partial / REPORT)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == REPORT):  # which is there when all is
            os.replace(path, out / path.name)
        partial.rmdir()
    except BaseException as error:
        shutil.rmtree(partial)
        if new:
            with suppress(OSError):  # not empty: another conversion began there meanwhile
                out.rmdir()
        if isinstance(error, OSError):
            raise ConversionError(
                f"{out}: cannot be written ({error.strerror or error}); nothing is left of it"
            ) from error
        raise
    return report


def check_free(out: Path) -> None:
    """Raise ConversionError unless a directory can be made there, or is there and empty."""
    if out.exists() and not out.is_dir():
        raise ConversionError(f"{out}: is a file; name a new directory, or an empty one")
    found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if found:
        raise ConversionError(f"{out}: holds {found[0]} already; name a new directory, or an empty one")


def _write_report(report: Mapping[str, Any], path: Path) -> None:
    with atomic_write(path) as file:
        file.writelines(line.encode() for line in _report_lines(report))


def _report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """JSON with a line for each tensor: of all languages of MMS there are 340,000."""
    opening = "{\n"
    for key, value in report.items():
        yield f"{opening}{json.dumps(key)}: "
        opening = ",\n"
        if isinstance(value, list) and value:
            yield "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n]"
        else:
            yield json.dumps(value, indent=1, ensure_ascii=False)
    yield "\n}\n"


def _write_files(conversion: Conversion, directory: Path, source: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for filename, parts in conversion.tensors.items():
        hashed = [_hashed(part, filename, rows) for part in parts]
        tensors = [TensorSource(part.target, part.dtype, part.shape, part.read) for part in hashed]
        write_tensors(directory / filename, tensors)
    for filename, value in conversion.objects.items():
        write_torch_file(directory / filename, _mapped(value, lambda part, name=filename: _hashed(part, name, rows)))
    for filename, text in conversion.texts.items():
        if isinstance(text, (str, bytes)):
            (directory / filename).write_bytes(text if isinstance(text, bytes) else text.encode())
        else:
            write_json(directory / filename, text)
    return {
        "source": source,
        "kind": conversion.kind,
        "converter": f"mms_jax {metadata.version('mms-jax')}",
        "tensors": sorted(rows, key=lambda row: (row["file"], row["target"])),
        "unused": dict(sorted(conversion.unused.items())),
        "notes": conversion.notes,
        "files": {path.name: _described(path) for path in sorted(directory.iterdir())},
    }


def _hashed(part: Part, filename: str, rows: list[dict[str, Any]]) -> Part:
    """The same, and a row of the report once it is read."""

    def read() -> np.ndarray:
        array = np.ascontiguousarray(part.read())
        rows.append(
            {
                "file": filename,
                "target": part.target,
                "sources": list(part.sources),
                "shape": list(part.shape),
                "dtype": str(part.dtype),
                "sha256": hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest(),
            }
        )
        return array

    return part._replace(read=read)


def _mapped(value: Any, function: Callable[[Part], Part]) -> Any:
    """Nested containers with every Part replaced."""
    if isinstance(value, Part):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    return [_mapped(item, function) for item in value] if isinstance(value, list) else value


def _described(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block

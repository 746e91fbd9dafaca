"""Tables of clips in text files: CSV, TSV, JSON and JSON lines, read as they stand.

No type is guessed from what a cell looks like. Readers that guess turn the transcripts "nan", "null" and "007" into
missing values and numbers, and take the first field of a line that has one too many for its index; both were seen.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mms_jax.errors import DatasetError

__all__ = ["TEXT_TABLES", "Table", "read_tables"]

TEXT_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
MAX_FIELD_CHARS = 1 << 24  # csv's own limit, 131,072, is less than some transcripts of hours

Wanted = Callable[[Sequence[str]], Mapping[str, str]]


class Table(NamedTuple):
    """Columns of equal length by the name they were asked for under; ``source`` is the file."""

    source: Path
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def read_tables(path: Path, *, wanted: Wanted) -> dict[str | None, Table]:
    """Read a file's table, or tables: JSON may hold one per split, {split: [row, …]}; otherwise the only key is None.

    ``wanted`` is given the names of the columns there are and returns {name: column} of those to keep (or raises).
    A cell is a ``str`` or, in JSON, any JSON value; None where a row has none.
    Raises ``DatasetError``, naming file and line, for what cannot be read.
    """
    try:
        return _read(path, wanted)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 (at byte {error.start:,}); save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read(path: Path, wanted: Wanted) -> dict[str | None, Table]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return {None: _read_lines(path, wanted)}
    if suffix == ".json":
        whole = _parse_json(path)
        if isinstance(whole, Mapping):
            splits = _splits(whole, path)
            return {split: _from_rows(path, enumerate(rows, 1), wanted, "row") for split, rows in splits.items()}
        if whole is not None:
            return {None: _from_rows(path, enumerate(whole, 1), wanted, "row")}
    return {None: _from_rows(path, _json_lines(path), wanted, "line")}


# --- CSV and TSV -----------------------------------------------------------------------------------------------------


def _read_lines(path: Path, wanted: Wanted) -> Table:
    lines = _csv_lines(path) if path.suffix.lower() == ".csv" else _tsv_lines(path)
    number, header = next(lines, (0, []))
    if not header:
        raise DatasetError(f"{path}: empty; its first line must name the columns")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DatasetError(f"{path} line {number}: the column {twice!r} is named twice")
    keep = wanted(header)
    places = {name: header.index(column) for name, column in keep.items()}
    columns: dict[str, list[Any]] = {name: [] for name in keep}
    for number, fields in lines:
        if len(fields) > len(header):
            raise DatasetError(
                f"{path} line {number}: {len(fields)} fields, but the header names {len(header)} columns; "
                "a field that holds the separator must stand in double quotes"
            )
        for name, place in places.items():
            columns[name].append(fields[place] if place < len(fields) else None)
    return Table(path, columns)


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, by number; strict, since a quote that is never closed swallows all that follows."""
    before = csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                for fields in reader:
                    if fields:
                        yield reader.line_num, fields
            except csv.Error as error:
                raise DatasetError(f"{path} line {reader.line_num}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(before)


def _tsv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank. Every line is a row, as Common Voice has it, whose quotes are often not paired."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip("\r\n"):
                yield number, [_unquote(field) for field in line.rstrip("\r\n").split("\t")]


def _unquote(field: str) -> str:
    """A field that some writer quoted as in CSV; other quotes are the text's own."""
    inner = field[1:-1]
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else field


# --- JSON ------------------------------------------------------------------------------------------------------------


def _parse_json(path: Path) -> Any:
    """A .json file's array or object; None for one that holds JSON lines all the same, as many do."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return None
        raise DatasetError(f"{path} line {error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise DatasetError(f"{path}: not JSON of a table (nested too deeply)") from error
    if not isinstance(whole, list | dict):
        raise DatasetError(f"{path}: holds a {type(whole).__name__}, expected an array of rows")
    return None if isinstance(whole, dict) and "\n" not in text.strip() and _is_row(whole) else whole


def _is_row(value: Mapping) -> bool:
    """Whether an object is a row, and so a file of JSON lines with one line, and not a table by columns or splits."""
    return not any(isinstance(cell, list) for cell in value.values())


def _splits(whole: Mapping, path: Path) -> dict[str | None, Iterable[Any]]:
    """The rows of an object: of every split, {split: [row, …]}, or those that {column: [cell, …]} makes."""
    lists = [value for value in whole.values() if isinstance(value, list)]
    if not whole or len(lists) < len(whole):
        raise DatasetError(f"{path}: an object that is neither {{split: [row, …]}} nor {{column: [cell, …]}}")
    if all(isinstance(item, Mapping) for rows in lists for item in rows[:1]):
        return dict(whole)
    if len({len(cells) for cells in lists}) > 1:
        raise DatasetError(f"{path}: its columns differ in length")
    return {None: [dict(zip(whole, cells, strict=True)) for cells in zip(*lists, strict=True)]}


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{path} line {number}: not JSON ({error})") from error


def _from_rows(path: Path, rows: Iterable[tuple[int, Any]], wanted: Wanted, unit: str) -> Table:
    """Columns of rows that are objects; a column is one that any of the first rows has, cells may be absent."""
    numbered = list(rows)
    for number, row in numbered:
        if not isinstance(row, Mapping):
            raise DatasetError(f"{path} {unit} {number}: a {type(row).__name__}, expected an object per row")
    names = list(dict.fromkeys(name for _, row in numbered for name in row))
    if not names:
        raise DatasetError(f"{path}: holds no rows")
    return Table(path, {name: [row.get(column) for _, row in numbered] for name, column in wanted(names).items()})

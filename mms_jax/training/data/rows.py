"""Rows of audio and text as their tables have them: nothing is decoded, all tables look alike."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import datasets
import numpy as np

from mms_jax.errors import DatasetError
from mms_jax.training.data.library import Hub, RemoteAudio, Undecoded, named_errors
from mms_jax.training.data.tables import Table

__all__ = [
    "ArrowPart",
    "Columns",
    "Part",
    "Row",
    "Rows",
    "TablePart",
    "arrow_part",
    "check_features",
    "located",
    "named",
    "no_paths",
]

TEXTS_AT_A_TIME = 1000  # rows read at once from a memory-mapped table, when no audio is read with them
STRINGS = {"string", "large_string", "string_view"}
BYTES = {"binary", "large_binary"}
SCRIPTS_LENGTH = "input_length"  # a column that transformers' examples make themselves; their README names it


class Row(NamedTuple):
    """A clip as its data set has it: nothing is decoded, ``text`` may be anything, ``name`` is for messages."""

    audio: Any
    text: Any
    name: str


class Columns(NamedTuple):
    """The names of the columns to read; ``language`` and ``length`` None: there is none."""

    audio: str = "audio"
    text: str = "text"
    language: str | None = None
    length: str | None = None

    def find(self, there: Sequence[str], *, name: str) -> dict[str, str]:
        """Where each is among the columns ``there``: {"audio": column, …}.

        As in audio folders, the column "audio" may be given as paths called "file_name". Lengths called "input_length"
        need not be there: then the clips are measured.
        Raises ``DatasetError`` for one that is missing, naming those there are and the flag.
        """
        renamed = "file_name" if self.audio == "audio" else f"{self.audio}_file_name"
        audio = renamed if self.audio not in there and renamed in there else self.audio
        found = {"audio": audio, "text": self.text, "language": self.language, "length": self.length}
        if self.length == SCRIPTS_LENGTH and SCRIPTS_LENGTH not in there:
            found["length"] = None
        found = {role: column for role, column in found.items() if column is not None}
        for role, column in found.items():
            if column not in there:
                raise DatasetError(
                    f"data set {name!r}: has no column {column!r} for the {role}; there are: {', '.join(there)}; "
                    f"name the right one with --{role}_column_name{_advice(there)}"
                )
        return found


def _advice(there: Sequence[str]) -> str:
    if len(there) == 1 and (";" in there[0] or "\t" in there[0]):
        return " (and separate the columns with commas, or with tabs in a .tsv)"
    if set(there) <= {"audio", "label"}:  # what the library makes of a folder of clips
        return " (a folder's texts stand in its metadata.csv, with the columns file_name and text)"
    return ""


class Part(Protocol):
    """Rows of one table."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """The row, from 0."""
        ...

    def name(self, index: int) -> str:
        """The row's name, or as much of it as is known without reading its audio."""
        ...

    def texts(self, indices: Sequence[int]) -> Iterator[Any]:
        """The texts of these rows, read without their audio."""
        ...

    def cells(self, role: str) -> list[Any] | None:
        """The "language" or the "length" of every row; None where ``Columns`` names no such column."""
        ...


@dataclass(frozen=True)
class TablePart:
    """A table of text, whose audio is named by path, relative to the table's folder."""

    table: Table
    shown: str

    def __len__(self) -> int:
        return len(self.table)

    def row(self, index: int) -> Row:
        """The row, from 0."""
        audio = self.table.columns["audio"][index]
        return Row(located(audio, self.table.source.parent), self.table.columns["text"][index], self.name(index))

    def name(self, index: int) -> str:
        """The row's name."""
        return named(self.shown, index, self.table.columns["audio"][index])

    def texts(self, indices: Sequence[int]) -> Iterator[Any]:
        """The texts of these rows, read without their audio."""
        texts = self.table.columns["text"]
        return (texts[index] for index in indices)

    def cells(self, role: str) -> list[Any] | None:
        """The "language" or the "length" of every row, if there is such a column."""
        return self.table.columns.get(role)


@dataclass(frozen=True)
class ArrowPart:
    """A table of the `datasets` library, its audio undecoded; ``folder`` is what paths in it are relative to."""

    dataset: datasets.Dataset
    columns: Mapping[str, str]
    shown: str
    folder: Path | None
    token: str | bool | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> Row:
        """The row, from 0."""
        with named_errors(self.shown):
            row = self.dataset[index]
        audio = row[self.columns["audio"]]
        return Row(located(audio, self.folder, self.token), row[self.columns["text"]], named(self.shown, index, audio))

    def name(self, index: int) -> str:
        """The row's name without the path, which is read together with the audio."""
        return named(self.shown, index, None)

    def texts(self, indices: Sequence[int]) -> Iterator[Any]:
        """The texts of these rows, read without their audio."""
        column = self.columns["text"]
        texts = self.dataset.select_columns([column])
        for start in range(0, len(indices), TEXTS_AT_A_TIME):
            yield from texts[list(indices[start : start + TEXTS_AT_A_TIME])][column]

    def cells(self, role: str) -> list[Any] | None:
        """The "language" or the "length" of every row, if there is such a column."""
        column = self.columns.get(role)
        if column is None:
            return None
        values = self.dataset.select_columns([column])[:][column]
        feature = self.dataset.features[column]
        if isinstance(feature, datasets.ClassLabel):
            return [None if value is None else feature.names[value] for value in values]
        return values


class Rows(Sequence[Row]):
    """Rows of one or more tables, in order; ``description`` names them in messages.

    Without ``has_splits``, they are the rows of whichever split is asked for: what trains on them should not be
    evaluated on them.
    """

    def __init__(self, parts: Sequence[Part], *, places: np.ndarray, description: str, has_splits: bool = True):
        """``places`` are int64 [n, 2]: of each row, its part and its index there."""
        self._parts = parts
        self._places = places
        self.description = description
        self.has_splits = has_splits

    @classmethod
    def of(cls, parts: Sequence[Part], description: str, *, has_splits: bool = True) -> "Rows":
        """All rows of these tables."""
        lengths = [len(part) for part in parts]
        indices = np.concatenate([np.arange(length) for length in lengths])
        places = np.stack([np.repeat(np.arange(len(parts)), lengths), indices], axis=1)
        return cls(parts, places=places, description=description, has_splits=has_splits)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> "Rows": ...

    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        part, place = self._places[index].tolist()
        return self._parts[part].row(place)

    def select(self, indices: Iterable[int]) -> "Rows":
        """The rows of these indices, in their order."""
        places = self._places[np.fromiter(indices, np.int64)]
        return Rows(self._parts, places=places, description=self.description, has_splits=self.has_splits)

    def name(self, index: int) -> str:
        """The row's name, without reading its audio."""
        part, place = self._places[index].tolist()
        return self._parts[part].name(place)

    def texts(self) -> Iterator[Any]:
        """The text of every row, without reading the audio."""
        for part, group in groupby(self._places.tolist(), key=lambda place: place[0]):
            yield from self._parts[part].texts([index for _, index in group])

    def cells(self, role: str) -> list[Any] | None:
        """The "language" or the "length" of every row; None if ``load_rows`` was told of no such column."""
        known = {part: self._parts[part].cells(role) or [] for part in set(self._places[:, 0].tolist())}
        if not all(known.values()):
            return None
        return [known[part][index] for part, index in self._places.tolist()]


def arrow_part(
    dataset: datasets.Dataset, columns: Columns, source: Hub, *, shown: str, folder: Path | None
) -> ArrowPart:
    """A part of a table of the library's, with the columns checked; ``source`` is what the user named."""
    name = source.name
    found = columns.find(dataset.column_names, name=name)
    check_features(dataset.features, found, name=name, folder=folder)
    dataset = dataset.select_columns(list(dict.fromkeys(found.values())))
    if isinstance(dataset.features[found["audio"]], datasets.Audio):
        dataset = dataset.cast_column(found["audio"], Undecoded(decode=False))
    return ArrowPart(dataset, found, shown, folder, source.token)


def check_features(features: Mapping[str, Any], found: Mapping[str, str], *, name: str, folder: Path | None) -> None:
    """Raise ``DatasetError`` unless the column for audio can be audio and the one for text can be text."""
    audio, text = features[found["audio"]], features[found["text"]]
    kind = audio.dtype if isinstance(audio, datasets.Value) else None
    if kind in STRINGS and folder is None:
        raise no_paths(found["audio"], name=name)
    mapping = isinstance(audio, Mapping) and audio.keys() & {"bytes", "path", "array"}
    if not (isinstance(audio, datasets.Audio) or mapping or kind in STRINGS | BYTES):
        raise DatasetError(
            f"data set {name!r}: the column {found['audio']!r} holds {_type_name(audio)}, which is no audio with its "
            "sampling rate; name the right one with --audio_column_name"
        )
    if not (isinstance(text, datasets.Value) and text.dtype in STRINGS | {"null"}):
        raise DatasetError(
            f"data set {name!r}: the column {found['text']!r} holds {_type_name(text)}, not text; "
            "name the right one with --text_column_name"
        )


def no_paths(column: str, *, name: str) -> DatasetError:
    """What is wrong with a column of paths in a table of the hub's."""
    return DatasetError(
        f"data set {name!r}: the column {column!r} holds paths, which lead nowhere from here; download the whole "
        "repository (hf download --repo-type dataset) and name its folder, or see --audio_column_name"
    )


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def named(shown: str, index: int, audio: Any) -> str:
    """A row's name for messages; rows count from 0, as on the hub."""
    path = path_of(audio)
    return f"{shown} row {index}" + (f" ({path})" if path else "")


def path_of(audio: Any) -> str | None:
    """The path that a cell of audio holds, if it holds one."""
    path = audio.get("path") if isinstance(audio, Mapping) else audio
    return path if isinstance(path, str) and path else None


def located(audio: Any, folder: Path | None, token: str | bool | None = None) -> Any:
    """A cell of audio as ``load_audio`` takes it: a path in it no longer relative to ``folder``; where the library says
    that the file is on the hub or in an archive, what fetches it when it is due."""
    path = path_of(audio)
    if path is None or (isinstance(audio, Mapping) and audio.get("bytes") is not None):
        return audio
    if "://" in path:
        return RemoteAudio(path, token) if isinstance(audio, Mapping) else audio
    if folder is None:
        return audio
    return {**audio, "path": str(folder / path)} if isinstance(audio, Mapping) else str(folder / path)

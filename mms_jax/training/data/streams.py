"""Rows of data larger than memory or disk, one after the other, in an order that (seed, epoch) fix."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from mms_jax.errors import SettingError
from mms_jax.training.data.dataset import find_source, shown_path, source_folder, text_tables
from mms_jax.training.data.folders import ARROW_TABLES, TableFiles
from mms_jax.training.data.library import Hub, Undecoded, load_saved, named_errors, quiet, stream_arrow_file
from mms_jax.training.data.rows import (
    Columns,
    Row,
    Rows,
    TablePart,
    arrow_part,
    check_features,
    located,
    named,
    no_paths,
)
from mms_jax.training.data.splits import Piece, check_splits, needed_splits, stream_pieces

__all__ = ["RowStream", "stream_rows"]

ROWS_OF_A_UNIT = 1000  # of a table that is at hand: as many rows stay together when a stream is shuffled
MAX_UNITS = 1024  # of a split on the hub, so that one of 100,000 files does not take 100,000 objects

Unit = Callable[[], Iterator[Row]]


@dataclass(frozen=True)
class RowStream:
    """Rows that can be gone through any number of times, every time in the same order.

    The order is a function of the data, ``seed``, ``epoch`` and ``buffer_size`` alone, so ``skip`` continues exactly
    where another run stopped, as long as the data did not change. It reads what it skips, but decodes none of it.
    """

    units: tuple[Unit, ...]
    description: str
    buffer_size: int = 0  # 0: not shuffled
    seed: int = 0
    epoch: int = 0
    skipped: int = 0

    def __iter__(self) -> Iterator[Row]:
        rows = self._shuffled() if self.buffer_size else chain.from_iterable(unit() for unit in self.units)
        return islice(rows, self.skipped, None)

    def shuffled(self, *, buffer_size: int, seed: int, epoch: int = 0) -> "RowStream":
        """The same rows shuffled: units (files, or stretches of a table) in a random order, and then each row with
        one of the ``buffer_size`` that were read last."""
        if buffer_size < 1:
            raise SettingError(f"--shuffle_buffer_size is {buffer_size}; it must be at least 1 clip")
        return replace(self, buffer_size=buffer_size, seed=seed, epoch=epoch)

    def skip(self, count: int) -> "RowStream":
        """All but the first ``count`` rows, of the order that this stream has."""
        return replace(self, skipped=self.skipped + count)

    def take(self, count: int) -> "RowStream":
        """Only the first ``count`` rows, of the order that this stream has; shuffling comes after."""
        return RowStream((lambda: islice(iter(self), count),), self.description)

    def watched(self, check: Callable[[], None]) -> "RowStream":
        """The same rows; ``check``, which may raise, is called for each that is read, even where it is skipped."""
        return replace(self, units=tuple(partial(_watched, unit, check) for unit in self.units))

    def _shuffled(self) -> Iterator[Row]:
        rng = np.random.default_rng([self.seed, self.epoch])
        units = [self.units[index] for index in np.argsort(rng.random(len(self.units)))]
        buffer: list[Row] = []
        for row in chain.from_iterable(unit() for unit in units):
            if len(buffer) < self.buffer_size:
                buffer.append(row)
                continue
            place = int(rng.integers(self.buffer_size))
            yield buffer[place]
            buffer[place] = row
        for place in np.argsort(rng.random(len(buffer))):
            yield buffer[place]


def _watched(unit: Unit, check: Callable[[], None]) -> Iterator[Row]:
    for row in unit():
        check()
        yield row


def stream_rows(
    name: str,
    *,
    split: str,
    config: str | None = None,
    audio_column: str = "audio",
    text_column: str = "text",
    language_column: str | None = None,
    language: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
) -> RowStream:
    """Read a split as ``dataset.load_rows`` does, but one row after the other, copying nothing to the disk.

    A slice of a split counts from its beginning ("train[:100]"): a stream has no length. With ``language``, only the
    rows whose ``language_column`` says so. Tables of text are read whole: it is the audio that is large.

    Raises ``DatasetError`` as ``load_rows`` does, here or, for what shows only then, on the way.
    """
    if language is not None and language_column is None:
        raise SettingError(f"rows of the language {language!r} need a column that says it: --language_column_name")
    columns = Columns(audio_column, text_column, language_column)
    hub = Hub(name, config, revision, token, cache_dir)
    by_split = _Finder(hub, columns, language).units(split)
    check_splits(by_split, name=name)
    found = stream_pieces(split, by_split, name=name)
    units = [unit for piece in found for unit in _slice(by_split[piece.split], piece)]
    return RowStream(tuple(units), f"{name} {split}")


def _slice(units: list[Unit], piece: Piece) -> list[Unit]:
    if piece.start == 0 and piece.stop is None:
        return units
    return [lambda: islice(chain.from_iterable(unit() for unit in units), piece.start, piece.stop)]


@dataclass(frozen=True)
class _Finder:
    """Finds the units of every split."""

    hub: Hub
    columns: Columns
    language: str | None

    def units(self, spec: str) -> dict[str | None, list[Unit]]:
        """The units of each split that ``spec`` names."""
        source = find_source(self.hub)
        if isinstance(source, dict):
            return self._of_files(source, needed_splits(spec, source, name=self.hub.name))
        folder = source_folder(source)
        loaded = source.stream() if isinstance(source, Hub) else load_saved(source)
        if isinstance(loaded, datasets.Dataset):
            return {None: self._of_saved(loaded, self.hub.name, folder)}
        return {
            split: self._of_any(loaded[str(split)], f"{self.hub.name} {split}", folder)
            for split in needed_splits(spec, loaded, name=self.hub.name)
        }

    def _of_any(self, data: Any, shown: str, folder: Path | None) -> list[Unit]:
        if isinstance(data, datasets.Dataset):
            return self._of_saved(data, shown, folder)
        return self._of_stream(data, shown, folder)

    def _of_saved(self, dataset: datasets.Dataset, shown: str, folder: Path | None) -> list[Unit]:
        part = arrow_part(dataset, self.columns, self.hub, shown=shown, folder=folder)
        return self._of_rows(Rows.of([part], shown))

    def _of_files(self, files: TableFiles, needed: Collection[str | None]) -> dict[str | None, list[Unit]]:
        found: dict[str | None, list[Unit]] = {}
        for split in needed:
            for path in files[split]:
                for own, units in self._of_file(path):
                    found.setdefault(own or split, []).extend(units)
        return found

    def _of_file(self, path: Path) -> Iterator[tuple[str | None, list[Unit]]]:
        """The units of a file, by its own splits if it has some."""
        if path.suffix.lower() in ARROW_TABLES:
            yield None, self._of_stream(stream_arrow_file(path), shown_path(path, self.hub.name), path.parent)
            return
        for split, table in text_tables(path, self.columns).items():
            shown = shown_path(path, self.hub.name, split=split)
            yield split, self._of_rows(Rows.of([TablePart(table, shown)], shown))

    def _of_rows(self, rows: Rows) -> list[Unit]:
        """Units of rows that can be indexed."""
        if self.language is not None:
            mine = [index for index, cell in enumerate(rows.cells("language") or ()) if _is(cell, self.language)]
            rows = rows.select(mine)
        return [partial(iter, rows[at : at + ROWS_OF_A_UNIT]) for at in range(0, len(rows), ROWS_OF_A_UNIT)]

    def _of_stream(self, stream: datasets.IterableDataset, shown: str, folder: Path | None) -> list[Unit]:
        """Units of a stream of the library's: its shards."""
        found, features = self._check(stream, folder)
        column = features[found["language"]] if features and "language" in found else None
        labels = column.names if isinstance(column, datasets.ClassLabel) else None
        with named_errors(self.hub.name), quiet():
            stream = stream.select_columns(list(dict.fromkeys(found.values())))
            if features and isinstance(features[found["audio"]], datasets.Audio):
                stream = stream.cast_column(found["audio"], Undecoded(decode=False))
            count = max(1, min(stream.num_shards, MAX_UNITS))
            shards = [stream.shard(count, index) for index in range(count)]
        names = [shown] if count == 1 else [f"{shown} shard {index}" for index in range(count)]
        read = partial(self._read, found=found, labels=labels, folder=folder)
        return [partial(read, shard, shown=name) for shard, name in zip(shards, names, strict=True)]

    def _check(self, stream: datasets.IterableDataset, folder: Path | None) -> tuple[dict[str, str], Any]:
        """Where the columns are, and the types of all, if they are known before anything is read."""
        name, features = self.hub.name, stream.features
        if features is None:
            first = next(_guarded(stream, name), {})
            found = self.columns.find(list(first), name=name)
            if isinstance(first[found["audio"]], str) and folder is None:
                raise no_paths(found["audio"], name=name)
            return found, None
        found = self.columns.find(list(features), name=name)
        check_features(features, found, name=name, folder=folder)
        return found, features

    def _read(
        self,
        stream: datasets.IterableDataset,
        *,
        found: Mapping[str, str],
        labels: list[str] | None,
        folder: Path | None,
        shown: str,
    ) -> Iterator[Row]:
        for index, row in enumerate(_guarded(stream, self.hub.name)):
            if self.language is not None:
                cell = row[found["language"]]
                if not _is(labels[cell] if labels and cell is not None else cell, self.language):
                    continue
            audio = row[found["audio"]]
            yield Row(located(audio, folder, self.hub.token), row[found["text"]], named(shown, index, audio))


def _is(cell: Any, language: str) -> bool:
    return cell is not None and str(cell).strip() == language


def _guarded(stream: datasets.IterableDataset, name: str) -> Iterator[dict[str, Any]]:
    """The stream's rows; the library's errors on the way are ours."""
    rows = iter(stream)
    while True:
        with named_errors(name), quiet():
            row = next(rows, None)
        if row is None:
            return
        yield row

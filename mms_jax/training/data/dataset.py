"""What a user names as a data set, as rows of audio and text: local tables, folders, saved data sets, the hub.

``load_rows`` gives rows that can be indexed, ``streams.stream_rows`` those of data larger than the disk. Neither
decodes anything: ``Row.audio`` is what ``mms_jax.audio.load_audio`` takes.
"""

from itertools import chain, groupby
from pathlib import Path

import datasets
import numpy as np

from mms_jax.errors import DatasetError, SettingError
from mms_jax.training.data.folders import TEXT_TABLES, TableFiles, declares_configs, find_tables, is_saved, local_files
from mms_jax.training.data.library import Hub, load_saved, read_arrow_files
from mms_jax.training.data.rows import Columns, Part, Row, Rows, TablePart, arrow_part
from mms_jax.training.data.splits import check_splits, needed_splits, pieces
from mms_jax.training.data.tables import Table, read_tables

__all__ = ["Columns", "Row", "Rows", "find_source", "load_rows", "rows_by_language", "text_tables"]

LOCAL = {"csv", "json"}  # of the library's ways of reading, those replaced here: it guesses types


def load_rows(
    name: str,
    *,
    split: str,
    config: str | None = None,
    audio_column: str = "audio",
    text_column: str = "text",
    language_column: str | None = None,
    length_column: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
) -> Rows:
    """Read a split ("train", "train+validation", "train[:100]", "all") of a data set.

    ``name`` is a table (.csv, .tsv, .json, .jsonl, .parquet, .arrow) or several ("a.csv,b.csv"), which have no splits:
    all is what any split names, slices aside; or tables by split ("train=a.csv,test=b.csv"). Or a folder: one that
    ``save_to_disk`` wrote, one with tables (metadata.csv or others, see ``folders.find_tables``), or one that the
    `datasets` library reads: archives, or clips without a table. Otherwise it is a data set of the hub, to which
    ``config``, ``revision``, ``token`` and ``cache_dir`` apply. Audio is given by path, relative to the table's folder,
    by the bytes of a file, or as both or an array with its rate, as the library stores them.

    Raises ``DatasetError``, naming data set and remedy, for what cannot be found or read, for a split or a column that
    is missing, and for a column that cannot be audio, or text.
    """
    columns = Columns(audio_column, text_column, language_column, length_column)
    by_split = _find_parts(Hub(name, config, revision, token, cache_dir), columns, split)
    lengths = {split: sum(map(len, parts)) for split, parts in by_split.items()}
    ends = np.cumsum([*lengths.values()])
    starts = dict(zip(lengths, (ends - [*lengths.values()]).tolist(), strict=True))
    found = pieces(split, lengths, name=name)
    wanted = [range(starts[piece.split] + piece.start, starts[piece.split] + piece.stop) for piece in found]
    parts = [part for own in by_split.values() for part in own]
    every = Rows.of(parts, f"{name} {split}", has_splits=None not in by_split)
    if not any(wanted):
        raise DatasetError(f"data set {name!r}: the split {split!r} has no rows")
    return every.select(chain.from_iterable(wanted))


def rows_by_language(rows: Rows) -> dict[str, Rows]:
    """The rows of each value of the language column that ``load_rows`` was given, in order of first appearance.

    Raises ``DatasetError`` for a row without a language, naming it, and ``SettingError`` if no column was named.
    """
    languages = rows.cells("language")
    if languages is None:
        raise SettingError("to tell languages apart, name the column that says them: --language_column_name")
    places: dict[str, list[int]] = {}
    for index, language in enumerate(languages):
        if language is None or not str(language).strip():
            raise DatasetError(f"{rows[index].name}: has no language; fill the column in, or leave the row out")
        places.setdefault(str(language).strip(), []).append(index)
    return {language: rows.select(indices) for language, indices in places.items()}


# --- where the rows are ----------------------------------------------------------------------------------------------


def find_source(hub: Hub) -> TableFiles | Path | Hub:
    """What a name names: table files by split, a folder that ``save_to_disk`` wrote, or else what the library finds.

    Raises ``DatasetError`` for a local path where nothing is.
    """
    if not hub.name.strip():
        raise DatasetError("the data set's name is empty; give --dataset_name")
    if (files := local_files(hub.name)) is not None:
        return files
    folder = Path(hub.name).expanduser()
    if not folder.is_dir():
        if "://" not in hub.name and (hub.name.startswith((".", "~", "/")) or hub.name.count("/") > 1):
            raise DatasetError(f"data set {hub.name!r}: there is no such folder, and it is not a name of the hub's")
        return hub
    if is_saved(folder):
        return folder
    local = Hub(str(folder), hub.config, None, None, hub.cache_dir)
    if hub.config is None and not declares_configs(folder):
        return find_tables(folder) or local
    kind, by_split = local.table_files()
    return {split: [Path(path) for path in paths] for split, paths in by_split.items()} if kind in LOCAL else local


def _find_parts(hub: Hub, columns: Columns, spec: str) -> dict[str | None, list[Part]]:
    """The tables of the splits that ``spec`` names."""
    source = find_source(hub)
    if isinstance(source, dict):
        needed = needed_splits(spec, source, name=hub.name)
        parts = _parts_of_files({split: source[split] for split in needed}, hub, columns)
        check_splits(parts, name=hub.name)
        return parts
    loaded = source.load() if isinstance(source, Hub) else load_saved(source)
    folder = source_folder(source)
    if isinstance(loaded, datasets.Dataset):
        return {None: [arrow_part(loaded, columns, hub, shown=hub.name, folder=folder)]}
    return {
        split: [arrow_part(loaded[str(split)], columns, hub, shown=f"{hub.name} {split}", folder=folder)]
        for split in needed_splits(spec, loaded, name=hub.name)
    }


def source_folder(source: Path | Hub) -> Path | None:
    """What paths in a source's tables are relative to; None for the hub, where they would lead nowhere."""
    folder = Path(source.name) if isinstance(source, Hub) else source
    return folder if folder.is_dir() else None


def _parts_of_files(files: TableFiles, hub: Hub, columns: Columns) -> dict[str | None, list[Part]]:
    """The tables of files, by split; a split within a JSON file goes before that of the file."""
    found: dict[str | None, list[Part]] = {}
    for split, paths in files.items():
        for (folder, suffix), group in groupby(paths, key=lambda path: (path.parent, path.suffix.lower())):
            members = list(group)
            if suffix not in TEXT_TABLES:
                dataset = read_arrow_files(members, cache_dir=hub.cache_dir)
                shown = shown_path(members[0], hub.name) if len(members) == 1 else shown_path(folder, hub.name)
                part = arrow_part(dataset, columns, hub, shown=shown, folder=folder)
                found.setdefault(split, []).append(part)
                continue
            for path in members:
                for own, table in text_tables(path, columns).items():
                    shown = shown_path(path, hub.name, split=own)
                    found.setdefault(own or split, []).append(TablePart(table, shown))
    return found


def text_tables(path: Path, columns: Columns) -> dict[str | None, Table]:
    """The table of a file, or its tables by split; see ``read_tables``."""
    return read_tables(path, wanted=lambda there: columns.find(there, name=str(path)))


def shown_path(path: Path, name: str, *, split: str | None = None) -> str:
    """A file as messages have it: as it was named, or relative to the folder that was named; and its own ``split``."""
    folder = Path(name).expanduser()
    shown = str(path.relative_to(folder)) if folder.is_dir() and path.is_relative_to(folder) else str(path)
    return shown if split is None else f"{shown} {split}"

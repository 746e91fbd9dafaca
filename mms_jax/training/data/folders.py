"""Local data sets: which files of a folder are its tables, and of which split."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mms_jax.errors import DatasetError
from mms_jax.training.data.tables import TEXT_TABLES

__all__ = ["ARROW_TABLES", "declares_configs", "find_tables", "is_saved", "local_files"]

ARROW_TABLES = (".parquet", ".arrow")
TABLES = TEXT_TABLES + ARROW_TABLES
KINDS = {".ndjson": ".jsonl", ".json": ".jsonl"}  # suffixes that one data set may mix
NOT_TABLES = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
SAVED = ("state.json", "dataset_dict.json")  # what Dataset.save_to_disk and DatasetDict.save_to_disk write

# As the `datasets` library tells splits by names of folders and files.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")

TableFiles = dict[str | None, list[Path]]  # of each split; None: of whichever split is asked for


def local_files(name: str) -> TableFiles | None:
    """The table files that ``name`` lists: one, several (``a.csv,b.csv``) or by split (``train=a.csv,test=b.csv``).

    None if it does not name files, but a folder or a data set of the hub.
    Raises ``DatasetError`` for one that is missing or of no known kind.
    """
    whole = Path(name).expanduser()
    items = [name] if whole.exists() or "," not in name else [item.strip() for item in name.split(",")]
    files: TableFiles = {}
    for item in items:
        split, path = _split_and_path(item)
        if path.suffix.lower() not in TABLES or path.is_dir():
            if len(items) == 1 and split is None and not path.is_file():
                return None
            raise DatasetError(f"data set {name!r}: {path} is not a table; those end in {', '.join(TABLES)}")
        if not path.is_file():
            raise DatasetError(f"data set {name!r}: there is no file {path}")
        files.setdefault(split, []).append(path)
    if None in files and len(files) > 1:
        raise DatasetError(f"data set {name!r}: give every file its split (train=a.csv,test=b.csv), or none")
    return files


def _split_and_path(item: str) -> tuple[str | None, Path]:
    named = re.fullmatch(r"(\w[\w.-]*)=(.+)", item)
    if named is None or Path(item).expanduser().exists():
        return None, Path(item).expanduser()
    return named[1], Path(named[2]).expanduser()


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return any((folder / name).is_file() for name in SAVED)


def declares_configs(folder: Path) -> bool:
    """Whether the folder is a clone of a data set of the hub whose README says which files make which split."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    head = card.read_text(encoding="utf-8", errors="replace")
    return re.match(r"---\s*\n(.*\n)?configs:", head.partition("\n---")[0] + "\n", re.DOTALL) is not None


def find_tables(folder: Path) -> TableFiles:
    """The table files of a folder and those below it, by split; empty if there are none.

    ``metadata.*`` (with ``file_name`` for the audio) goes before other tables, as in an audio folder. Splits are told
    as the `datasets` library tells them: ``train-00000-of-00002.parquet``, else by a folder called ``test`` or
    ``dev_clean``, else by such a word in the file's name; files without one are then left out. If no name says
    anything, all is "train".
    Raises ``DatasetError`` for tables of several kinds, of which one would have to be chosen.
    """
    files = sorted(_walk(folder))
    metadata = [path for path in files if path.stem == "metadata"]
    chosen = metadata or files
    kinds = {KINDS.get(path.suffix.lower(), path.suffix.lower()) for path in chosen}
    if len(kinds) > 1:
        examples = [next(path for path in chosen if path.suffix.lower() == kind) for kind in _suffixes(chosen)]
        raise DatasetError(
            f"data set {str(folder)!r}: has tables of several kinds "
            f"({', '.join(str(path.relative_to(folder)) for path in examples)}); name the files instead of the folder"
        )
    return _by_split(chosen, folder)


def _suffixes(files: Sequence[Path]) -> list[str]:
    return list(dict.fromkeys(path.suffix.lower() for path in files))


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in names:
            if not name.startswith(".") and name not in NOT_TABLES and Path(name).suffix.lower() in TABLES:
                yield Path(root, name)


def _by_split(files: Sequence[Path], folder: Path) -> TableFiles:
    for rule in (_split_of_shard, _split_of_folder, _split_of_file):
        named: TableFiles = {}
        for path in files:
            if split := rule(path.relative_to(folder)):
                named.setdefault(split, []).append(path)
        if named:
            return named
    return {"train": list(files)} if files else {}


def _split_of_shard(path: Path) -> str | None:
    shard = SHARD.match(path.name)
    return shard[1] if shard else None


def _split_of_folder(path: Path) -> str | None:
    return next((split for part in path.parts[:-1] if (split := _split_in(part))), None)


def _split_of_file(path: Path) -> str | None:
    return _split_in(path.stem)


def _split_in(name: str) -> str | None:
    words = re.split(r"[-._ 0-9]+", name)
    return next((split for split, keys in SPLIT_WORDS.items() if not set(keys).isdisjoint(words)), None)

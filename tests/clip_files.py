"""Small data sets of real audio files, in every form that training reads."""

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
from sounds import encode, noise

TEXTS = ["one two", "nan", "007", "null, naught", 'she said "no"']  # what readers that guess types get wrong
SIZES = [4000, 6000, 8000, 5000, 7000]


def write_clips(folder: Path, *, sizes=SIZES) -> list[str]:
    """WAV files of noise in folder/clips; their paths relative to ``folder``."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    names = [f"clips/{index}.wav" for index in range(len(sizes))]
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        (folder / name).write_bytes(encode(noise(size, seed=index)))
    return names


def write_table(path: Path, columns: dict[str, list]) -> Path:
    """A table in the form that the file's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([columns, *(row.values() for row in rows)])
    else:
        write_arrow(path, datasets.Dataset.from_dict(columns))
    return path


def write_arrow(path: Path, dataset: datasets.Dataset) -> None:
    if path.suffix == ".parquet":
        dataset.to_parquet(path)
    else:
        with datasets.arrow_writer.ArrowWriter(path=str(path), features=dataset.features) as writer:
            writer.write_table(dataset.data.table)
            writer.finalize()


def with_bytes(folder: Path, names: list[str]) -> datasets.Dataset:
    """The library's own form: an audio column with the files' bytes in it."""
    audio = [{"bytes": (folder / name).read_bytes(), "path": Path(name).name} for name in names]
    features = datasets.Features({"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
    table = datasets.Dataset.from_dict(
        {"audio": audio, "text": TEXTS, "extra": list(range(len(names)))},
        features=datasets.Features(
            {"audio": features, "text": datasets.Value("string"), "extra": datasets.Value("int64")}
        ),
    )
    return table.cast_column("audio", datasets.Audio())


def _of_table(name: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        columns = {"id": list(range(len(TEXTS))), "audio": write_clips(folder), "text": TEXTS}
        return str(write_table(folder / name, columns))

    return write


def _json_by_columns(folder: Path) -> str:
    path = folder / "data.json"
    path.write_text(json.dumps({"audio": write_clips(folder), "text": TEXTS}))
    return str(path)


def _jsonl_of_mappings(folder: Path) -> str:
    columns = {"audio": [{"path": name} for name in write_clips(folder)], "text": TEXTS}
    return str(write_table(folder / "data.jsonl", columns))


def _parquet_of_mappings(folder: Path) -> str:
    """As the library's audio column is stored, but with paths alone, and not called audio."""
    audio = [{"bytes": None, "path": name} for name in write_clips(folder)]
    return str(write_table(folder / "data.parquet", {"audio": audio, "text": TEXTS}))


def _parquet_with_bytes(folder: Path) -> str:
    path = folder / "own" / "data.parquet"
    path.parent.mkdir()
    with_bytes(folder, write_clips(folder)).to_parquet(path)
    return str(path)


def _saved(folder: Path) -> str:
    with_bytes(folder, write_clips(folder)).save_to_disk(folder / "saved")
    return str(folder / "saved")


def _saved_by_split(folder: Path) -> str:
    dataset = with_bytes(folder, write_clips(folder))
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(folder / "saved")
    return str(folder / "saved")


def _audio_folder(suffix: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        names = [name.removeprefix("clips/") for name in write_clips(folder)]
        write_table(folder / "clips" / f"metadata{suffix}", {"file_name": names, "text": TEXTS})
        return str(folder)

    return write


def _folder_of_tables(folder: Path) -> str:
    names = write_clips(folder)
    write_table(folder / "train.csv", {"audio": names, "text": TEXTS})
    write_table(folder / "test.csv", {"audio": names[:1], "other": TEXTS[:1]})  # without a text: nobody asked for it
    return str(folder)


def _archive(folder: Path) -> str:
    """Clips and their metadata in a ZIP file: what the library unpacks."""
    names = write_clips(folder / "source")
    lines = [json.dumps({"file_name": name, "text": text}) + "\n" for name, text in zip(names, TEXTS, strict=True)]
    (folder / "data").mkdir()
    with zipfile.ZipFile(folder / "data" / "all.zip", "w") as archive:
        archive.writestr("metadata.jsonl", "".join(lines))
        for name in names:
            archive.write(folder / "source" / name, name)
    return str(folder / "data")


def _clone_of_the_hub(folder: Path) -> str:
    """A folder whose README says which files make which split."""
    write_table(folder / "rows.csv", {"audio": write_clips(folder), "text": TEXTS})
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: rows.csv\n"
    (folder / "README.md").write_text(f"---\nlicense: mit\n{configs}---\n# Clips\n")
    return str(folder)


# Each writes a data set of TEXTS and SIZES into a folder and returns what a user would name; "train" is all of it.
FORMS: dict[str, Callable[[Path], str]] = {
    "csv": _of_table("data.csv"),
    "tsv": _of_table("data.tsv"),
    "jsonl": _of_table("data.jsonl"),
    "json": _of_table("data.json"),
    "json by columns": _json_by_columns,
    "parquet with paths": _of_table("data.parquet"),
    "arrow with paths": _of_table("data.arrow"),
    "jsonl of mappings": _jsonl_of_mappings,
    "parquet of mappings": _parquet_of_mappings,
    "parquet with bytes": _parquet_with_bytes,
    "saved": _saved,
    "saved by split": _saved_by_split,
    "metadata.csv": _audio_folder(".csv"),
    "metadata.jsonl": _audio_folder(".jsonl"),
    "folder of tables": _folder_of_tables,
    "archive": _archive,
    "clone of the hub": _clone_of_the_hub,
}

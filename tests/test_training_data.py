"""From what a user names to rows: every form of data set, splits, columns, and what is said when something is wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from clip_files import FORMS, SIZES, TEXTS, with_bytes, write_clips, write_table
from sounds import noise

from mms_jax.audio import load_audio
from mms_jax.errors import AudioError, DatasetError, SettingError
from mms_jax.training.data.clips import decode_audio
from mms_jax.training.data.dataset import load_rows, rows_by_language
from mms_jax.training.data.library import quiet
from mms_jax.training.data.streams import stream_rows

STEP_16 = 2**-15  # of 16-bit audio
EVERY_SAMPLE = 10**9
NO_TORCH = """
import sys
from mms_jax.training.data.dataset import load_rows
from mms_jax.training.data.streams import stream_rows
loaders = (lambda: load_rows(sys.argv[1], split="train", cache_dir=sys.argv[2])), (
    lambda: stream_rows(sys.argv[1], split="train", cache_dir=sys.argv[2]))
assert [row.text for rows in loaders for row in rows()]
sys.exit("torch" in sys.modules)
"""


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


def decoded(rows):
    return [decode_audio(row.audio, max_samples=EVERY_SAMPLE) for row in rows]


@pytest.mark.parametrize("load", [load_rows, stream_rows])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_texts_and_the_same_audio(form, load, folder, cache):
    rows = list(load(FORMS[form](folder), split="train", cache_dir=cache))
    assert [row.text for row in rows] == TEXTS
    for index, waveform in enumerate(decoded(rows)):
        assert waveform.dtype == np.float32
        np.testing.assert_allclose(waveform, noise(SIZES[index], seed=index), rtol=0, atol=STEP_16)
    assert len({row.name for row in rows}) == len(rows)
    assert "row 3 (" in rows[3].name


@pytest.mark.parametrize("form", FORMS)
def test_texts_are_read_without_the_audio(form, folder, cache):
    rows = load_rows(FORMS[form](folder), split="train", cache_dir=cache)
    assert list(rows.texts()) == TEXTS
    assert list(rows.select([3, 0, 3]).texts()) == [TEXTS[3], TEXTS[0], TEXTS[3]]
    assert [row.text for row in rows[1:3]] == TEXTS[1:3]
    assert rows.name(2) in rows[2].name


@pytest.mark.parametrize("form", ["saved", "archive", "parquet with bytes"])
def test_neither_torch_nor_a_word_on_stderr(form, folder, cache):
    command = [sys.executable, "-W", "error", "-c", NO_TORCH, FORMS[form](folder), cache]
    env = {"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": cache}
    run = subprocess.run(command, env=env, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "")


def test_the_library_is_left_as_it_was(folder, cache, monkeypatch):
    bars = importlib.import_module(datasets.utils.tqdm.__module__)
    monkeypatch.setattr(bars, "HF_DATASETS_DISABLE_PROGRESS_BARS", None)  # what conftest.py set
    datasets.enable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.INFO)
    try:
        load_rows(FORMS["parquet with bytes"](folder), split="train", cache_dir=cache)
        one, other = quiet(), quiet()  # of two threads
        for step in (one.__enter__, other.__enter__):
            step()
            assert datasets.are_progress_bars_disabled()
        one.__exit__(None, None, None)
        assert datasets.are_progress_bars_disabled()
        other.__exit__(None, None, None)
        assert not datasets.are_progress_bars_disabled()
        assert datasets.logging.get_verbosity() == datasets.logging.INFO
    finally:
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.WARNING)


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def split_files(folder):
    """Ten rows to train on, five to validate with, whose texts are their numbers."""
    name = write_clips(folder, sizes=[400])[0]
    for split, numbers in (("train", range(10)), ("validation", range(10, 15))):
        columns = {"audio": [name] * len(numbers), "text": [str(number) for number in numbers]}
        write_table(folder / f"{split}.jsonl", columns)
    return folder


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", range(10)),
        ("train+validation", range(15)),
        ("validation + train", [*range(10, 15), *range(10)]),
        ("all", range(15)),
        ("train[:3]", range(3)),
        ("train[8:]+validation[1:2]", [8, 9, 11]),
        ("train[-2:]", [8, 9]),
        ("train[20%:40%]", [2, 3]),
        ("validation[:-4]+train[:1]", [10, 0]),
    ],
)
def test_a_split_is_read_as_the_library_writes_it(split, numbers, split_files):
    wanted = [str(number) for number in numbers]
    assert list(load_rows(str(split_files), split=split).texts()) == wanted
    assert load_rows(str(split_files), split=split).has_splits
    if "%" in split or "-" in split:
        with pytest.raises(DatasetError, match="cannot be streamed; a stream has no length"):
            stream_rows(str(split_files), split=split)
    else:
        assert [row.text for row in stream_rows(str(split_files), split=split)] == wanted


@pytest.mark.parametrize("load", [load_rows, stream_rows])
def test_a_split_that_is_not_there_is_told_with_those_that_are(load, split_files):
    with pytest.raises(DatasetError, match=r"has no split 'test'; there are: train, validation .*--eval_split_name"):
        load(str(split_files), split="train+test")


def test_an_empty_slice_and_nonsense_are_told(split_files):
    with pytest.raises(DatasetError, match=r"the split 'train\[3:3\]' has no rows"):
        load_rows(str(split_files), split="train[3:3]")
    with pytest.raises(DatasetError, match=r"the split 'train\[a:b\]' cannot be read"):
        load_rows(str(split_files), split="train[a:b]")


@pytest.mark.parametrize("load", [load_rows, stream_rows])
def test_files_are_all_rows_of_any_split_slices_aside(load, split_files):
    one, other = (str(split_files / f"{split}.jsonl") for split in ("train", "validation"))
    texts = [str(number) for number in range(15)]
    assert [row.text for row in load(one, split="train+validation")] == texts[:10]
    assert [row.text for row in load(f"{one},{other}", split="whatever")] == texts
    assert [row.text for row in load(one, split="train[:4]")] == texts[:4]
    assert [row.text for row in load(one, split="train[:2]+train[9:]")] == ["0", "1", "9"]
    assert [row.text for row in load(f"train={one},dev={other}", split="dev[1:]")] == texts[11:]
    assert not load_rows(one, split="train").select([0]).has_splits
    assert load_rows(f"train={one}", split="train").has_splits
    with pytest.raises(DatasetError, match="has no split 'test'; there are: train, dev"):
        load(f"train={one},dev={other}", split="test")
    with pytest.raises(DatasetError, match="must be of one"):
        load(one, split="train[:2]+test[:2]")
    with pytest.raises(DatasetError, match="give every file its split"):
        load(f"train={one},{other}", split="train")
    with pytest.raises(DatasetError, match=r"there is no file .*none.csv"):
        load(f"{one},{split_files}/none.csv", split="train")


@pytest.mark.parametrize("load", [load_rows, stream_rows])
def test_a_json_file_may_hold_splits(load, folder):
    row = {"audio": write_clips(folder)[0], "text": "a"}
    path = folder / "both.json"
    path.write_text(json.dumps({"train": [row, row], "test": [row]}))
    assert len(list(load(str(path), split="train"))) == 2
    both = list(load(str(path), split="train+test"))
    assert [row.name.removeprefix(str(folder)) for row in both] == [
        f"/both.json {place} (clips/0.wav)" for place in ("train row 0", "train row 1", "test row 0")
    ]
    with pytest.raises(DatasetError, match="there are: train, test"):
        load(str(path), split="validation")


@pytest.mark.parametrize(
    ("files", "split", "count"),
    [
        (["train/metadata.jsonl", "dev/metadata.jsonl"], "validation", 1),
        (["data/clean-00000-of-00002.jsonl", "data/clean-00001-of-00002.jsonl"], "clean", 2),
        (["my_test.jsonl", "a-train-1.jsonl", "a-train-2.jsonl", "speakers.jsonl"], "train", 2),
        (["some.jsonl", "more.jsonl", ".hidden.jsonl", "__pycache__/x.jsonl"], "train", 2),
        (["metadata.jsonl", "other.csv"], "train", 1),
    ],
)
def test_the_tables_of_a_folder_are_told_apart_by_name(files, split, count, folder):
    clip = str((folder / write_clips(folder)[0]).resolve())
    for file in files:
        write_table(folder / file, {"audio": [clip], "text": ["a"]})
    assert len(load_rows(str(folder), split=split)) == count


def test_tables_of_several_kinds_are_not_chosen_from(folder):
    for name in ("a.csv", "b.parquet"):
        write_table(folder / name, {"audio": ["a.wav"], "text": ["a"]})
    with pytest.raises(DatasetError, match=r"tables of several kinds \(a.csv, b.parquet\); name the files"):
        load_rows(str(folder), split="train")


def test_signs_of_patterns_in_a_path_mean_nothing(tmp_path, cache):
    folder = tmp_path / "data [v1] *{a}"
    folder.mkdir()
    path = FORMS["parquet with bytes"](folder)
    assert len(load_rows(path, split="train", cache_dir=cache)) == len(list(stream_rows(path, split="train"))) == 5


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_rows, stream_rows])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet with bytes", "saved", "archive"])
def test_a_missing_column_is_told_with_those_there_are_and_the_flag(form, load, folder, cache):
    name = FORMS[form](folder)
    with pytest.raises(DatasetError, match=r"no column 'sentence' for the text; there are: .*--text_column_name"):
        load(name, split="train", text_column="sentence", cache_dir=cache)
    with pytest.raises(DatasetError, match=r"no column 'path' for the audio; there are: .*--audio_column_name"):
        load(name, split="train", audio_column="path", cache_dir=cache)


@pytest.mark.parametrize("load", [load_rows, stream_rows])
def test_a_column_that_cannot_be_audio_or_text_is_told(load, folder, cache):
    name = FORMS["parquet with bytes"](folder)
    with pytest.raises(DatasetError, match="column 'extra' holds int64, which is no audio"):
        load(name, split="train", audio_column="extra", cache_dir=cache)
    with pytest.raises(DatasetError, match="column 'extra' holds int64, not text"):
        load(name, split="train", text_column="extra", cache_dir=cache)


def test_a_folder_of_clips_without_texts_says_where_they_belong(folder, cache):
    write_clips(folder)
    with pytest.raises(DatasetError, match=r"no column 'text'.*metadata.csv, with the columns file_name and text"):
        load_rows(str(folder), split="train", cache_dir=cache)


def test_a_table_with_other_separators_says_so(folder):
    (folder / "data.csv").write_text("audio;text\na.wav;hello\n")
    with pytest.raises(DatasetError, match="separate the columns with commas"):
        load_rows(str(folder / "data.csv"), split="train")


def test_an_array_with_its_rate_is_audio(folder, cache):
    samples = noise(800, seed=3).astype(np.float64)
    audio = [{"array": samples.tolist(), "sampling_rate": 16_000}]
    datasets.Dataset.from_dict({"audio": audio, "text": ["a"]}).to_parquet(folder / "a.parquet")
    rows = load_rows(str(folder), split="train", cache_dir=cache)
    np.testing.assert_array_equal(decoded(rows)[0], load_audio(samples))


def languages_of(path, **options):
    rows = load_rows(str(path), split="train", **options)
    return {language: list(own.texts()) for language, own in rows_by_language(rows).items()}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_one_data_set_is_told_apart_by_language(suffix, folder, cache):
    columns = {"audio": write_clips(folder), "text": TEXTS, "lang": ["tur", "swe", "tur", "swe", "swe "]}
    path = write_table(folder / f"data{suffix}", columns)
    wanted = {"tur": [TEXTS[0], TEXTS[2]], "swe": [TEXTS[1], *TEXTS[3:]]}
    options = {"language_column": "lang", "cache_dir": cache}
    assert languages_of(path, **options) == wanted
    for language, texts in wanted.items():
        stream = stream_rows(str(path), split="train", language=language, **options)
        assert [row.text for row in stream] == texts


def test_languages_that_are_class_labels_go_by_their_names(folder, cache):
    dataset = with_bytes(folder, write_clips(folder)).add_column("lang", [1, 0, 1, 1, 1])
    dataset = dataset.cast_column("lang", datasets.ClassLabel(names=["deu", "fra"]))
    dataset.to_parquet(folder / "a.parquet")
    options = {"language_column": "lang", "cache_dir": cache}
    assert languages_of(folder / "a.parquet", **options) == {"fra": [TEXTS[0], *TEXTS[2:]], "deu": [TEXTS[1]]}
    stream = stream_rows(str(folder / "a.parquet"), split="train", language="deu", **options)
    assert [row.text for row in stream] == [TEXTS[1]]


def test_a_row_without_a_language_is_told_and_a_column_must_be_named(folder):
    path = write_table(folder / "data.csv", {"audio": ["a.wav", "b.wav"], "text": ["a", "b"], "lang": ["deu", ""]})
    with pytest.raises(DatasetError, match=r"data.csv row 1 \(b.wav\): has no language"):
        languages_of(path, language_column="lang")
    with pytest.raises(SettingError, match="--language_column_name"):
        languages_of(path)
    with pytest.raises(SettingError, match="--language_column_name"):
        stream_rows(str(path), split="train", language="deu")


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_rows, stream_rows])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("somebody/nothing", r"data set 'somebody/nothing': .*HF_HUB_OFFLINE"),
        ("./nothing", "there is no such folder"),
        ("/nothing/at/all", "there is no such folder"),
        ("nothing.csv", "there is no file nothing.csv"),
        ("", "the data set's name is empty"),
    ],
)
def test_what_is_not_there_is_told(name, message, load, cache):
    with pytest.raises(DatasetError, match=message):
        load(name, split="train", cache_dir=cache)


@pytest.mark.parametrize("load", [load_rows, stream_rows])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "all.zip"])
def test_a_damaged_table_is_told_by_name(name, load, folder, cache):
    (folder / name).write_bytes(b"PAR1 this is no table at all")
    with pytest.raises(DatasetError, match=str(folder)):
        list(load(str(folder), split="train", cache_dir=cache))


def test_an_empty_folder_is_told(folder, cache):
    with pytest.raises(DatasetError, match=str(folder)):
        load_rows(str(folder), split="train", cache_dir=cache)


def test_a_clip_that_goes_missing_from_an_archive_is_an_error_of_its_audio(folder, cache):
    row = next(iter(stream_rows(FORMS["archive"](folder), split="train", cache_dir=cache)))
    (folder / "data" / "all.zip").unlink()
    with pytest.raises(AudioError, match="cannot be fetched"):
        decode_audio(row.audio, max_samples=EVERY_SAMPLE)

"""Tables in text files: cells stay what was written, and what is malformed is told with its line."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.errors import DatasetError
from mms_jax.training.data.tables import read_tables

# What readers that guess types, separators or missing values make something else of.
TRAPS = ["nan", "null", "None", "NA", "", " ", "007", "1e5", "2020-01-01", "true", "inf", '"', "a,b", 'say "a"', "ʈʰ é"]
CELLS = st.text(st.characters(exclude_characters="\r\n\t\0", codec="utf-8"), max_size=12) | st.sampled_from(TRAPS)


def everything(there):
    return {column: column for column in there}


def read(path, content, wanted=everything):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_tables(path, wanted=wanted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@given(cells=st.lists(CELLS, min_size=1, max_size=5))
def test_cells_of_every_kind_of_file_are_what_was_written(folder, cells):
    names = [str(index) for index in range(len(cells))]
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        written = io.StringIO()
        csv.writer(written, delimiter=separator).writerows([["audio", "text"], *zip(names, cells, strict=True)])
        table = read(folder / f"a{suffix}", written.getvalue())[None]
        assert table.columns == {"audio": names, "text": cells}
    rows = [{"audio": name, "text": cell} for name, cell in zip(names, cells, strict=True)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name, content in (("a.json", json.dumps(rows)), ("a.jsonl", lines), ("b.json", lines)):
        assert read(folder / name, content)[None].columns == {"audio": names, "text": cells}


def test_only_wanted_columns_are_kept_under_the_names_they_are_wanted_by(tmp_path):
    table = read(tmp_path / "a.csv", "id,path,said\n1,a.wav,x\n2,b.wav,y\n", lambda there: {"text": there[2]})[None]
    assert table.columns == {"text": ["x", "y"]}
    assert len(table) == 2


def test_quotes_of_a_tsv_that_are_not_paired_are_the_texts_own(tmp_path):
    lines = ["path\tsaid", 'a\t"Yes" he said', 'b\t"', 'c\t"quoted ""so"""', 'd\tsay "a"', 'e\t""']
    table = read(tmp_path / "a.tsv", "\n".join(lines))[None]
    assert table.columns["said"] == ['"Yes" he said', '"', 'quoted "so"', 'say "a"', ""]


def test_a_text_of_several_lines_and_of_a_million_letters_is_read(tmp_path):
    long = "a" * 10**6
    table = read(tmp_path / "a.csv", f'audio,text\n\na.wav,"one\ntwo"\nb.wav,{long}\n')[None]
    assert table.columns == {"audio": ["a.wav", "b.wav"], "text": ["one\ntwo", long]}
    assert csv.field_size_limit() < len(long)  # the module's own limit is as it was


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        content = b"\xef\xbb\xbf" + f"audio{separator}text\r\na{separator}b\r\n".encode()
        assert read(tmp_path / f"a{suffix}", content)[None].columns == {"audio": ["a"], "text": ["b"]}
    assert read(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "b"}\r\n')[None].columns == {"text": ["b"]}


def test_cells_that_rows_do_not_have_are_none(tmp_path):
    assert read(tmp_path / "a.csv", "audio,text\na\n")[None].columns["text"] == [None]
    assert read(tmp_path / "a.jsonl", '{"a": 1}\n{"text": "b"}\n')[None].columns == {
        "a": [1, None],
        "text": [None, "b"],
    }


def test_json_of_splits_gives_a_table_each(tmp_path):
    tables = read(tmp_path / "a.json", json.dumps({"train": [{"text": "a"}, {"text": "b"}], "test": [{"text": "c"}]}))
    assert {split: table.columns["text"] for split, table in tables.items()} == {"train": ["a", "b"], "test": ["c"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv: empty"),
        ("a.csv", "audio,text\na,b,c\n", "a.csv line 2: 3 fields, but the header names 2 columns"),
        ("a.csv", "audio,text\n\na,b\nc,hello, world\n", "a.csv line 4: 3 fields"),
        ("a.csv", 'audio,text\na,"b\nc,d\n', "a.csv line 3: not CSV"),
        ("a.csv", 'audio,text\na,"b" c\n', "a.csv line 2: not CSV"),
        ("a.csv", "text,text\n", "line 1: the column 'text' is named twice"),
        ("a.csv", "audio,text\nä,b\n".encode("latin-1"), r"a.csv: not UTF-8 \(at byte 11\)"),
        ("a.tsv", "audio\ttext\na\tb\tc\n", "a.tsv line 2: 3 fields"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl line 2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "a.jsonl line 2: a list, expected an object"),
        ("a.jsonl", "[" * 100_000, "a.jsonl line 1: not JSON"),
        ("a.jsonl", "", "a.jsonl: holds no rows"),
        ("a.json", "[]", "a.json: holds no rows"),
        ("a.json", "[1]", "a.json row 1: a int, expected an object"),
        ("a.json", '"a"', "a.json: holds a str, expected an array"),
        ("a.json", "{", "a.json line 1: not JSON"),
        ("a.json", "[" * 100_000, "a.json: not JSON of a table"),
        ("a.json", '{"audio": ["a"],\n"text": []}', "its columns differ in length"),
        ("a.json", '{"a": 1,\n"b": []}', "neither {split"),
        ("a.json", "{}", "neither {split|holds no rows"),
    ],
)
def test_what_is_malformed_is_told_with_its_place(name, content, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        read(tmp_path / name, content)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r"a.csv: cannot be read \(No such file"):
        read_tables(tmp_path / "a.csv", wanted=everything)

"""Streams of rows: every row once, in an order that (seed, epoch) fix and that can be entered anywhere."""

from itertools import chain, islice

import pytest
from clip_files import FORMS, with_bytes, write_clips, write_table
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.errors import DatasetError, SettingError
from mms_jax.training.data import streams
from mms_jax.training.data.rows import Row
from mms_jax.training.data.streams import RowStream, stream_rows

SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=6)
SEEDS = st.integers(0, 5)


def numbered(sizes) -> RowStream:
    """A stream of rows 0, 1, 2, … in units of these sizes."""
    rows = iter(Row(None, number, str(number)) for number in range(sum(sizes)))
    units = [list(islice(rows, size)) for size in sizes]
    return RowStream(tuple((lambda unit=unit: iter(unit)) for unit in units), "numbers")


def texts(stream) -> list:
    return [row.text for row in stream]


@given(sizes=SIZES, buffer_size=st.integers(1, 30), seed=SEEDS, epoch=SEEDS)
def test_a_shuffled_stream_has_every_row_once_and_the_same_order_again(sizes, buffer_size, seed, epoch):
    shuffled = numbered(sizes).shuffled(buffer_size=buffer_size, seed=seed, epoch=epoch)
    assert sorted(texts(shuffled)) == list(range(sum(sizes)))
    assert texts(shuffled) == texts(shuffled)
    assert texts(shuffled) == texts(numbered(sizes).shuffled(buffer_size=buffer_size, seed=seed, epoch=epoch))


@given(sizes=SIZES, buffer_size=st.integers(1, 30), count=st.integers(0, 50))
def test_skipping_goes_on_exactly_where_another_run_stopped(sizes, buffer_size, count):
    shuffled = numbered(sizes).shuffled(buffer_size=buffer_size, seed=1, epoch=2)
    assert texts(shuffled.skip(count)) == texts(shuffled)[count:]
    assert texts(shuffled.skip(1).skip(count)) == texts(shuffled)[1 + count :]
    assert texts(numbered(sizes).skip(count)) == list(range(sum(sizes)))[count:]


@given(sizes=SIZES, count=st.integers(0, 50))
def test_the_first_rows_can_be_taken_and_then_shuffled(sizes, count):
    taken = numbered(sizes).take(count)
    assert texts(taken) == list(range(min(count, sum(sizes))))
    assert sorted(texts(taken.shuffled(buffer_size=3, seed=0))) == texts(taken)
    assert texts(numbered(sizes).skip(2).take(count)) == list(range(sum(sizes)))[2 : 2 + count]


def test_orders_differ_between_epochs_and_seeds_and_mix_across_units():
    stream = numbered([50] * 8)
    orders = [tuple(texts(stream.shuffled(buffer_size=20, seed=s, epoch=e))) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({*orders, tuple(range(400))}) == 4
    firsts = [next(iter(stream.shuffled(buffer_size=20, seed=0, epoch=epoch))).text // 50 for epoch in range(20)]
    assert len(set(firsts)) > 3  # units come in any order, too


def test_a_buffer_that_holds_nothing_is_refused():
    with pytest.raises(SettingError, match="--shuffle_buffer_size is 0"):
        numbered([1]).shuffled(buffer_size=0, seed=0)


def test_rows_are_read_as_they_are_asked_for():
    read = []

    def unit():
        for number in range(100):
            read.append(number)
            yield Row(None, number, str(number))

    rows = iter(RowStream((unit,), "numbers").shuffled(buffer_size=10, seed=0))
    list(islice(rows, 5))
    assert len(read) == 15


def test_long_tables_are_shuffled_in_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "ROWS_OF_A_UNIT", 10)
    columns = {"audio": ["a.wav"] * 95, "text": [str(number) for number in range(95)]}
    stream = stream_rows(str(write_table(tmp_path / "a.csv", columns)), split="train")
    assert len(stream.units) == 10
    order = [int(text) for text in texts(stream.shuffled(buffer_size=1, seed=3))]
    assert sorted(order) == list(range(95))
    assert abs(order[0] - order[-1]) < 94


def test_files_are_units_and_rows_are_named_by_them(tmp_path):
    dataset = with_bytes(tmp_path, write_clips(tmp_path))
    (tmp_path / "tables").mkdir()
    for index in range(3):
        dataset.to_parquet(tmp_path / "tables" / f"train-{index:05}-of-00003.parquet")
    stream = stream_rows(str(tmp_path / "tables"), split="train")
    assert [row.name for row in stream][4:6] == [
        "train-00000-of-00003.parquet row 4 (4.wav)",
        "train-00001-of-00003.parquet row 0 (0.wav)",
    ]
    firsts = {next(iter(stream.shuffled(buffer_size=1, seed=seed))).name[:11] for seed in range(8)}
    assert len(firsts) == 3


@pytest.mark.parametrize("form", ["csv", "parquet with bytes", "saved", "archive"])
def test_the_same_rows_come_in_every_epoch(form, tmp_path):
    (tmp_path / "data").mkdir()
    stream = stream_rows(FORMS[form](tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    first, *others = ([(row.name, row.text) for row in stream] for _ in range(3))
    assert len(set(first)) == 5
    assert others == [first, first]
    shuffled = stream.shuffled(buffer_size=3, seed=0)
    assert sorted(row.name for row in chain(shuffled)) == sorted(name for name, _ in first)


def test_what_is_damaged_further_on_is_told_where_it_is_reached(tmp_path):
    (tmp_path / "data").mkdir()
    dataset = with_bytes(tmp_path, write_clips(tmp_path))
    paths = [tmp_path / "data" / f"train-{index:05}-of-00002.parquet" for index in range(2)]
    for path in paths:
        dataset.to_parquet(path)
    stream = stream_rows(str(tmp_path / "data"), split="train")
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    rows = iter(stream)
    assert len(list(islice(rows, 5))) == 5
    with pytest.raises(DatasetError, match="see that its files are whole"):
        next(rows)

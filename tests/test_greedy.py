"""Tokens that leave the device: what the host reads from all frames, however they are cut into windows and batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.pipelines.greedy import NOTHING, NUM_READINGS, collapse, joined, readings, unpacked
from mms_jax.text.ctc import CTCVocabulary

MAX_FRAMES = 24
MAX_ROWS = 4
HEAD = 8  # columns: more than either vocabulary has tokens, so some ids are read as unknown


def vocabulary(*tokens: str, **options) -> CTCVocabulary:
    return CTCVocabulary({token: i for i, token in enumerate(tokens)}, **options)


USUAL = vocabulary("<pad>", "<s>", "</s>", "<unk>", "|", "a")
BLANK_LAST = vocabulary("a", "b", "|", "<unk>", "<pad>")
NO_UNKNOWN = vocabulary("a", "<pad>", "b", special_tokens=("<pad>",))
VOCABULARIES = (USUAL, BLANK_LAST, NO_UNKNOWN)

collapse_jitted = partial(jax.jit, static_argnames="vocab_size")(collapse)


def on_device(rows, keeps, vocabularies, *, vocab_size=HEAD):
    """Rows of ids, padded with what must not be read, through the program."""
    ids = np.full((MAX_ROWS, MAX_FRAMES), HEAD - 1, np.int32)
    reading = np.zeros((MAX_ROWS, NUM_READINGS), np.int32)
    for out, row in zip(ids, rows, strict=False):  # not strict: the batch has more rows than are asked for
        out[: len(row)] = row
    reading[: len(rows)] = readings(keeps, vocabularies)
    found = jax.tree.map(np.asarray, collapse_jitted(jnp.array(ids), jnp.array(reading), vocab_size=vocab_size))
    return [unpacked(found.ids[i], found.edges[i]) for i in range(len(rows))]


rows_of_ids = st.lists(
    # few ids, so that there are repeats
    st.lists(st.integers(0, HEAD - 1) | st.sampled_from([0, 4]), min_size=1, max_size=MAX_FRAMES),
    min_size=1,
    max_size=MAX_ROWS,
)


@given(st.data(), rows_of_ids)
def test_what_is_read_of_a_range_is_what_the_host_reads_of_its_frames(data, rows):
    keeps, chosen = [], []
    for row in rows:
        start = data.draw(st.integers(0, len(row)))
        keeps.append(slice(start, data.draw(st.integers(start, len(row)))))
        chosen.append(data.draw(st.sampled_from(VOCABULARIES)))
    for row, keep, own, tokens in zip(rows, keeps, chosen, on_device(rows, keeps, chosen), strict=True):
        frames = np.array(row[keep], np.int64)
        assert own.decode(tokens.ids, group_tokens=False) == own.decode(frames)
        assert not np.isin(tokens.ids, own.blank_id).any()
        silent = [not len(frames) or frames[at] == own.blank_id for at in (0, -1)]
        assert [tokens.first == NOTHING, tokens.last == NOTHING] == silent
        assert silent[0] or tokens.first == tokens.ids[0]
        assert silent[1] or tokens.last == tokens.ids[-1]


@given(st.data(), st.sampled_from(VOCABULARIES), st.lists(st.integers(0, 3), max_size=60))
def test_windows_end_to_end_are_read_as_all_their_frames(data, own, ids):
    """Also where a token goes on over several boundaries, and where windows between are silence."""
    parts, frames = [], []
    while ids:
        count = data.draw(st.integers(1, MAX_FRAMES))
        now, ids = ids[:count], ids[count:]
        if data.draw(st.integers(0, 3)) == 0:
            parts.append(len(now))
            frames += [own.blank_id] * len(now)
            continue
        context = data.draw(st.integers(0, MAX_FRAMES - len(now)))
        parts += on_device([[0] * context + now], [slice(context, context + len(now))], [own])
        frames += now
        if data.draw(st.booleans()):
            parts.append(0)  # a window with nothing but context moves nothing
    assert own.decode(joined(parts), group_tokens=False) == own.decode(np.array(frames, np.int64))


def test_a_token_that_fills_whole_windows_is_one():
    window = on_device([[5] * 4], [slice(0, 4)], [USUAL])[0]
    assert joined([window, window, 0, window]).tolist() == [5]
    assert joined([window, 1, window]).tolist() == [5, 5]
    assert joined([]).tolist() == []


def test_ids_without_a_token_are_all_read_as_one():
    tokens = on_device([[6, 7, 6, 0, 3, 7]], [slice(0, 6)], [USUAL])[0]
    assert tokens.ids.tolist() == [USUAL.unk_id, USUAL.unk_id]
    assert NO_UNKNOWN.decode(on_device([[6, 7]], [slice(0, 2)], [NO_UNKNOWN])[0].ids, group_tokens=False) == "<unk>"


@pytest.mark.parametrize(("vocab_size", "dtype"), [(32, "int16"), (2**15, "int16"), (2**15 + 1, "int32")])
def test_ids_take_16_bits_where_all_of_them_fit(vocab_size, dtype):
    letters = {f"{i:x}": i for i in range(1, vocab_size)}
    own = CTCVocabulary({"<pad>": 0, **letters})
    tokens = on_device([[vocab_size - 1, 0, vocab_size - 1, 1]], [slice(0, 4)], [own], vocab_size=vocab_size)[0]
    assert tokens.ids.dtype == dtype
    assert tokens.ids.tolist() == [vocab_size - 1, vocab_size - 1, 1]


def test_a_row_that_speaks_all_the_time_is_packed_whole():
    ids = [4, 5] * (MAX_FRAMES // 2)
    assert on_device([ids], [slice(0, MAX_FRAMES)], [USUAL])[0].ids.tolist() == ids

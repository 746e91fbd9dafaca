"""safetensors files: what is written reads back bit by bit, here and in the format's own library, or not at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.checkpoint.tensors import (
    TensorSource,
    aligned_empty,
    read_header,
    read_tensor,
    write_tensors,
)
from mms_jax.errors import CheckpointError
from mms_jax.files import atomic_write, write_json
from tests.safetensors_files import DTYPES, by_library, random_array, read, save, source

SHAPES = [(), (1,), (5,), (40_000,), (3, 4), (7, 5, 3), (40, 1000), (300, 17, 2), (2, 9000), (1, 1, 8)]


ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable()),
    st.builds(random_array, st.sampled_from(SHAPES), st.sampled_from(list(DTYPES.values())), seed=st.integers(0, 99)),
    max_size=5,
)


@given(arrays=ARRAYS)
def test_what_is_written_reads_back_bit_by_bit(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    write_tensors(path, [source(name, array) for name, array in arrays.items()])
    ours, library = read(path), by_library(path.read_bytes())
    assert ours.keys() == library.keys() == arrays.keys()
    for name, array in arrays.items():
        assert ours[name].tobytes() == library[name][2] == array.tobytes()
        assert (DTYPES[library[name][0]], tuple(library[name][1])) == (array.dtype, array.shape)


@given(arrays=ARRAYS)
def test_every_tensor_starts_at_a_multiple_of_its_item_size(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("aligned") / "x.safetensors"
    write_tensors(path, [source(name, array) for name, array in arrays.items()])
    assert [name for name, info in read_header(path).items() if info.offset % arrays[name].itemsize] == []


@pytest.mark.parametrize("target", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES)
def test_a_tensor_is_converted_as_a_whole_array_would_be_whatever_its_shape_and_strides(stored, target, tmp_path):
    for shape in SHAPES:
        array = random_array(shape, stored)
        write_tensors(tmp_path / "x.safetensors", [source("x", array)])
        reversed_axes = np.zeros(shape[::-1], target)
        read_tensor("x", read_header(tmp_path / "x.safetensors")["x"], out=reversed_axes.transpose())
        assert reversed_axes.tobytes() == array.astype(target).transpose().tobytes()


def test_the_same_tensors_give_the_same_file_in_any_order(tmp_path):
    tensors = [source(f"t{i}", random_array((i + 1, 3), dtype, seed=i)) for i, dtype in enumerate(DTYPES.values())]
    write_tensors(tmp_path / "a", tensors)
    write_tensors(tmp_path / "b", tensors[::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_strided_array_is_written_as_its_contiguous_copy(tmp_path):
    array = random_array((70, 1000), np.float32).T[::2]
    write_tensors(tmp_path / "x", [source("x", array)])
    np.testing.assert_array_equal(read(tmp_path / "x")["x"], array)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 20_000, -1])
def test_one_bad_number_anywhere_is_found_on_reading_and_on_writing(dtype, value, at, tmp_path):
    array = random_array((40, 1000), dtype)
    array.reshape(-1)[at] = value
    path = save(
        tmp_path / "x.safetensors",
        {"some.weight": {"dtype": name_of(dtype), "shape": [40, 1000], "data_offsets": [0, array.nbytes]}},
        array.tobytes(),
    )
    for target in DTYPES.values():
        with pytest.raises(CheckpointError, match=r"x\.safetensors: some\.weight holds NaN or infinity"):
            read_tensor("some.weight", read_header(path)["some.weight"], out=np.empty((40, 1000), target))
    with pytest.raises(CheckpointError, match=r"y not written: some\.weight holds NaN or infinity"):
        write_tensors(tmp_path / "y", [source("some.weight", array)])
    assert not (tmp_path / "y").exists()


def name_of(dtype: Any) -> str:
    return next(name for name, other in DTYPES.items() if other == dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_largest_the_smallest_and_denormal_numbers_are_no_bad_numbers(dtype, tmp_path):
    limits = ml_dtypes.finfo(dtype)
    array = np.array([limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 0, -0.0], dtype)
    write_tensors(tmp_path / "x", [source("x", array)])
    assert read(tmp_path / "x")["x"].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("value", "stored", "target"),
    [(65520.0, np.float32, np.float16), (3.4e38, np.float32, ml_dtypes.bfloat16), (1e39, np.float64, np.float32)],
)
def test_a_number_too_large_for_the_dtype_asked_for_is_an_error_and_not_infinity(value, stored, target, tmp_path):
    write_tensors(tmp_path / "x", [source("some.weight", np.array([1, value], stored))])
    info = read_header(tmp_path / "x")["some.weight"]
    with pytest.raises(CheckpointError, match=r"some\.weight holds numbers too large for"):
        read_tensor("some.weight", info, out=np.empty(2, target))


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex64])
def test_what_is_no_floating_point_number_is_not_written(dtype, tmp_path):
    with pytest.raises(CheckpointError, match="counts is"):
        write_tensors(tmp_path / "x", [source("counts", np.zeros(2, dtype))])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_shrinks_after_its_header_was_read_is_an_error_that_names_the_tensor(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, [source("some.weight", random_array((40, 1000), np.float32))])
    info = read_header(path)["some.weight"]
    os.truncate(path, info.offset + info.num_bytes - 1)
    with pytest.raises(CheckpointError, match=r"some\.weight cannot be read \(the file ends inside it\)"):
        read_tensor("some.weight", info, out=np.empty((40, 1000), np.float32))
    path.unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors: some\.weight cannot be read \(No such file"):
        read_tensor("some.weight", info, out=np.empty((40, 1000), np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_buffers_for_jax_are_aligned_whole_and_writable(shape, dtype):
    buffer = aligned_empty(shape, np.dtype(dtype))
    buffer[...] = 1
    assert (buffer.shape, buffer.dtype, buffer.ctypes.data % 64) == (shape, dtype, 0)
    assert buffer.flags.c_contiguous


class Stop(BaseException):
    """As KeyboardInterrupt: not an Exception."""


@pytest.mark.parametrize("error", [RuntimeError("half way"), Stop()])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(error, tmp_path):
    def fail():
        raise error

    path = tmp_path / "x.safetensors"
    first = random_array((100, 1000), np.float32)
    write_tensors(path, [source("a", first)])
    with pytest.raises(type(error)):
        write_tensors(path, [source("a", first + 1), TensorSource("b", np.dtype(np.float32), (2,), fail)])
    np.testing.assert_array_equal(read(path)["a"], first)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_files_only():
    """Let the operating system refuse files above 64 KB, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_operating_system_that_refuses_the_bytes_is_an_os_error_that_names_the_file(tmp_path, small_files_only):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"x\.safetensors") as raised:
        write_tensors(path, [source("a", random_array((100, 1000), np.float32))])
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert ([*tmp_path.iterdir()], path.read_bytes()) == ([path], b"old")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_disk_that_fails_late_is_an_os_error_that_names_the_file(step, number, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "config.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=r"config\.json") as raised:
        write_json(path, {"new": True})
    assert (raised.value.errno, raised.value.filename) == (number, str(path))
    assert ([*tmp_path.iterdir()], json.loads(path.read_text())) == ([path], {"old": True})


@pytest.mark.parametrize("where", ["no/such/directory/x", "a_file/x"])
def test_a_place_where_nothing_can_be_written_is_an_os_error_that_names_it(where, tmp_path):
    (tmp_path / "a_file").touch()
    with pytest.raises(OSError, match=where) as raised, atomic_write(tmp_path / where):
        pytest.fail("it was opened")
    assert raised.value.filename == str(tmp_path / where)


def test_a_new_file_has_the_rights_that_the_user_gives_new_files(tmp_path):
    previous = os.umask(0o027)
    try:
        write_json(tmp_path / "x", {})
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_writing_through_a_link_replaces_the_link_and_not_what_it_points_to(tmp_path):
    # The hub's cache is links to shared blobs.
    blob, link = tmp_path / "blob", tmp_path / "config.json"
    blob.write_bytes(b"shared")
    link.symlink_to(blob)
    write_json(link, {"ours": 1})
    assert (blob.read_bytes(), link.is_symlink()) == (b"shared", False)

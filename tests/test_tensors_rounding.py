"""Reading tensors block by block into other dtypes and layouts: the bits of converting the whole array at once."""

from __future__ import annotations

import io
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.checkpoint.engine import bind, to_jax
from mms_jax.checkpoint.rules import Layout, Rule, Table
from mms_jax.checkpoint.tensors import aligned_empty, read_header, read_rows, read_tensor, write_tensors
from mms_jax.errors import CheckpointError
from mms_jax.models.int8 import quantize_channels
from mms_jax.models.trees import flatten
from tests.safetensors_files import DTYPES, random_array, source

BF16 = np.dtype(ml_dtypes.bfloat16)
# Several blocks, a last one of one row or part of one, rows short and long, even and odd numbers of cache lines.
SHAPES = [
    (1, 1),
    (3, 5121),
    (33, 5121),
    (129, 1283),
    (257, 512),
    (1000, 3),
    (131, 257, 3),
    (20_001, 16),
    (0, 7),
    (5, 0),
]


def any_finite(shape: tuple[int, ...], dtype: Any, *, target: Any) -> np.ndarray:
    """Numbers of every exponent and sign that ``target`` can hold, by random bits; zeros, subnormals and ties too."""
    dtype = np.dtype(dtype)
    bits = np.random.default_rng(math.prod(shape)).integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    array = bits.view(dtype).copy()
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.isfinite(array.astype(target).astype(np.float64)) & np.isfinite(array.astype(np.float64))
    array[~fits] = 0.3
    # Half way between two neighbours in bfloat16 and in float16, rounded to even, and the smallest there are.
    limits = ml_dtypes.finfo(dtype)
    special = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 2**-25, -0.0, limits.smallest_subnormal]
    array[: len(special)] = np.array(special)[: array.size].astype(dtype)
    return array.reshape(shape)


def written(path: Path, array: np.ndarray, name: str = "some.weight"):
    write_tensors(path, [source(name, array)])
    return read_header(path)[name]


@pytest.mark.parametrize("target", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES)
def test_numbers_of_every_size_are_rounded_as_in_a_whole_array_in_any_layout(stored, target, tmp_path):
    for shape in SHAPES:
        array = any_finite(shape, stored, target=target)
        info = written(tmp_path / "x", array)
        with np.errstate(over="ignore"):
            expected = array.astype(target)
        straight, reversed_axes = np.empty(shape, target), np.empty(shape[::-1], target)
        spread = np.zeros((2 * shape[0], *shape[1:]), target)[::2]
        for out in (straight, reversed_axes.transpose(), spread):
            read_tensor("some.weight", info, out=out)
            assert np.ascontiguousarray(out).tobytes() == expected.tobytes()


def test_bfloat16_is_the_nearest_and_of_two_the_even_one(tmp_path):
    array = any_finite((300, 1283), np.float32, target=BF16)
    out = np.empty(array.shape, BF16)
    read_tensor("some.weight", written(tmp_path / "x", array), out=out)
    bits = array.view(np.uint32).astype(np.uint64)
    expected = (bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    np.testing.assert_array_equal(out.view(np.uint16), expected)


LARGEST = {  # the largest float32 that is rounded down to the dtype's largest, and the next one, which is infinity
    "float16": (np.float16, np.nextafter(np.float32(65520), np.float32(0)), np.float32(65520), "bfloat16"),
    "bfloat16": (BF16, *np.array([0x7F7F7FFF, 0x7F7F8000], np.uint32).view(np.float32), "float32"),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", LARGEST)
def test_the_first_number_that_would_become_infinite_is_an_error_and_the_last_that_does_not_is_read(
    name, sign, tmp_path
):
    target, last, first, remedy = LARGEST[name]
    array = random_array((129, 1283), np.float32)
    array[-1, -1] = sign * last
    out = np.empty(array.shape, target)
    read_tensor("some.weight", written(tmp_path / "x", array), out=out)
    assert out[-1, -1] == sign * ml_dtypes.finfo(target).max
    array[-1, -1] = sign * first
    with pytest.raises(CheckpointError, match=rf"x: some\.weight holds numbers too large for {name}; use {remedy}"):
        read_tensor("some.weight", written(tmp_path / "x", array), out=out)


def test_the_largest_float32_is_too_large_for_bfloat16_and_for_float64s_beyond_it_nothing_is_advised(tmp_path):
    largest = np.full((2, 2), np.finfo(np.float32).max)
    with pytest.raises(CheckpointError, match="too large for bfloat16; use float32"):
        read_tensor("some.weight", written(tmp_path / "x", largest), out=np.empty((2, 2), BF16))
    with pytest.raises(CheckpointError, match=r"too large for float32$"):
        read_tensor("some.weight", written(tmp_path / "y", np.full((2, 2), 1e39)), out=np.empty((2, 2), np.float32))


@given(at=st.integers(0, 40 * 5121 - 1), value=st.sampled_from([np.nan, np.inf, -np.inf]), data=st.data())
def test_one_bad_number_anywhere_is_found_in_every_dtype(at, value, data, tmp_path_factory):
    stored, target = (np.dtype(data.draw(st.sampled_from(list(DTYPES.values())))) for _ in range(2))
    path = tmp_path_factory.mktemp("bad") / "x"
    info = written(path, random_array((40, 5121), stored))
    with path.open("r+b") as file:
        file.seek(info.offset + at * stored.itemsize)
        file.write(np.array([value], stored).tobytes())
    with pytest.raises(CheckpointError, match=r"x: some\.weight holds NaN or infinity"):
        read_tensor("some.weight", info, out=np.empty((40, 5121), target))


@pytest.mark.parametrize("bits", [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_every_kind_of_nan_is_found(bits, tmp_path):
    info = written(tmp_path / "x", random_array((40, 1283), np.float32))
    with (tmp_path / "x").open("r+b") as file:
        file.seek(info.offset + 4 * 40_000)
        file.write(np.uint32(bits).tobytes())
    for target in (np.float32, np.float16, BF16):
        with pytest.raises(CheckpointError, match="holds NaN or infinity"):
            read_tensor("some.weight", info, out=np.empty((40, 1283), target))


class Trickle(io.FileIO):
    """A file that gives a few bytes at a time, as network file systems may."""

    def readinto(self, buffer, /):
        return super().readinto(memoryview(buffer)[:1001])


def test_a_file_that_gives_less_than_asked_for_is_asked_again(tmp_path, monkeypatch):
    array = random_array((129, 1283), np.float32)
    info = written(tmp_path / "x", array)
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Trickle(path))
    out = np.empty(array.shape[::-1], BF16)
    read_tensor("some.weight", info, out=out.T)
    assert out.T.tobytes() == array.astype(BF16).tobytes()


def test_rows_come_in_blocks_that_fit_a_cache_and_cover_the_tensor_once(tmp_path):
    array = random_array((2000, 1283), np.float32)
    blocks = []
    for rows, block in read_rows("some.weight", written(tmp_path / "x", array), dtype=BF16):
        assert block.shape == (rows.stop - rows.start, 1283)
        assert block.size * array.itemsize <= 1 << 20
        blocks.append(block.copy())
    assert len(blocks) > 2
    assert np.concatenate(blocks).tobytes() == array.astype(BF16).tobytes()


@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES)
def test_int8_read_in_blocks_is_the_whole_matrix_quantised(stored, tmp_path):
    array = random_array((1031, 1283), stored, seed=3)
    info = written(tmp_path / "x", array)
    table = Table((Rule("some.weight", "some/kernel", Layout.LINEAR, int8=True),))
    bindings = bind(table, {"some.weight": info}, {"some/kernel": (1283, 1031)}, source="x")
    leaves = flatten(to_jax(bindings, dtype="int8"))
    weight, expected = array.astype(np.float32), np.empty(array.shape, np.int8)
    scales = quantize_channels(weight, out=expected)
    np.testing.assert_array_equal(leaves["some/kernel"], expected.T)
    np.testing.assert_array_equal(leaves["some/kernel_scale"], scales)
    assert (weight == array.astype(np.float32)).all()  # the caller's matrix is left as it was


@pytest.mark.parametrize("num_bytes", [1, 4095, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_001])
def test_buffers_on_either_side_of_a_map_of_their_own_are_whole_apart_and_writable(num_bytes):
    buffers = [aligned_empty((num_bytes,), np.dtype(np.uint8)) for _ in range(3)]
    for number, buffer in enumerate(buffers):
        buffer[:] = number
    for number, buffer in enumerate(buffers):
        assert (buffer == number).all()
        assert (buffer.nbytes, buffer.ctypes.data % 64) == (num_bytes, 0)
        assert np.shares_memory(jax.device_put(buffer), buffer) or jax.default_backend() != "cpu"


RESIDENT = """
import os, sys
import numpy as np
from mms_jax.checkpoint.tensors import aligned_empty
from mms_jax.memory import reuse_freed_memory
assert reuse_freed_memory()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
buffers = [aligned_empty((1280, 1280), np.dtype(np.float32)) for _ in range(10)]
for buffer in buffers:
    buffer[:] = 1
filled = resident()
del buffer, buffers
print((filled - before) / 65_536_000, (resident() - before) / 65_536_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there freed memory is never kept")
def test_weights_that_are_dropped_go_back_to_the_system_also_where_freed_memory_is_kept():
    said = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True).stdout
    filled, left = map(float, said.split())
    assert filled > 0.95
    assert left < 0.05


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
import resource, sys
from pathlib import Path
import jax, ml_dtypes
from mms_jax.checkpoint.engine import bind, to_jax
from mms_jax.checkpoint.rules import Layout, Rule, Table
from mms_jax.checkpoint.tensors import read_header
tensors = read_header(Path(sys.argv[1]))
table = Table([Rule(name, name, Layout.LINEAR) for name in tensors])
bindings = bind(table, tensors, {name: info.shape[::-1] for name, info in tensors.items()}, source="x")
jax.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
params = to_jax(bindings, dtype=ml_dtypes.bfloat16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not HUGE.exists() or "[never]" in HUGE.read_text() or jax.default_backend() != "cpu", reason="no huge pages here"
)
def test_loading_faults_in_huge_pages_also_where_a_matrix_is_smaller_than_two(tmp_path):
    matrix = random_array((1024, 1280), np.float32)  # 2.6 MB of bfloat16, of a 1B model 3.3 MB
    write_tensors(tmp_path / "x", [source(f"m{i}", matrix) for i in range(12)])
    said = subprocess.run(
        [sys.executable, "-c", FAULTS, str(tmp_path / "x")], capture_output=True, text=True, check=True
    )
    pages = 12 * matrix.size * 2 // 4096
    assert int(said.stdout) < pages / 2  # each page of 4 KiB would be a fault

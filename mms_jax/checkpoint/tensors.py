"""safetensors files, a few rows at a time: reading without holding the file, writing without holding the model.

The format's own library checks the header (size, syntax, overlaps, holes). Tensors are then read with plain file
reads: a memory map's pages would stay in memory beside the converted copy and double the peak.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mms_jax.checkpoint.hub import is_filename
from mms_jax.errors import CheckpointError
from mms_jax.files import atomic_write, fetched_again, read_json

NUMPY_DTYPES = {  # of the kinds of floating-point numbers that are read
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_DTYPE_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
_INFINITIES = {  # their bits, which no finite number's exceed
    NUMPY_DTYPES["F64"]: np.uint64(0x7FF << 52),
    NUMPY_DTYPES["F32"]: np.uint32(0xFF << 23),
    NUMPY_DTYPES["F16"]: np.uint16(0x1F << 10),
    NUMPY_DTYPES["BF16"]: np.uint16(0xFF << 7),
}

# A block and its conversion stay in a core's second cache: reading, checking, converting and transposing it touch
# memory only to write the result. Its rows are the elements side by side that a transposing copy writes at a time; 16
# are a cache line of float32.
_BLOCK_ROWS = 16
_BLOCK_BYTES = 5 << 17

_ALIGNMENT = 64  # of buffers that JAX takes over on CPUs instead of copying them; a cache line
_LONG_ROW = 1024  # bytes; shorter rows do not compete for places in the first cache
_HUGE_BYTES = 1 << 20  # a smaller buffer holds no huge page, unless it lies beside others


class TensorInfo(NamedTuple):
    """Where one tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    num_bytes: int

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers of a kind that is read here."""
        return self.dtype in NUMPY_DTYPES


class TensorSource(NamedTuple):
    """A tensor to be written; ``read`` is called when it is its turn."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file.

    Raises:
        CheckpointError: not a safetensors file, truncated, or with a malformed header; the message names the file.
    """
    try:
        with safe_open(path, framework="np"):
            pass  # opening validates
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
        header.pop("__metadata__", None)
        return {
            name: TensorInfo(path, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin)
            for name, entry in header.items()
            for begin, end in [entry["data_offsets"]]
        }
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, ValueError, TypeError, struct.error) as error:
        # TypeError: the library lets an entry be a list, which no writer makes and which has no keys
        helps = fetched_again(path) or "fetch or convert it again"
        raise CheckpointError(f"{path}: not a valid safetensors file ({error}); {helps}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; the library lets a name stand twice if both claim the same bytes."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} stands in the header twice")
    return values


def read_index(path: Path, locate: Callable[[str], Path]) -> dict[str, TensorInfo]:
    """The tensors of a sharded checkpoint from its ``model.safetensors.index.json``; ``locate`` finds a shard by name.

    Raises:
        CheckpointError: a shard is missing, or index and shards disagree about which tensor is where.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path}: no 'weight_map' from tensor names to file names")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        if not is_filename(shard):
            raise CheckpointError(f"{path}: shard {shard!r} is not a plain file name")
        for name, info in read_header(locate(shard)).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(f"{path}: {name} is in {shard}, the index says {weight_map.get(name)}")
            tensors[name] = info
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} should be in {weight_map[missing[0]]}, which does not hold it")
    return tensors


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that ``jax.device_put`` takes over on CPUs without a copy.

    Large ones are maps of their own: pages of 2 MiB, which the kernel clears 7x faster than those of 4 KiB and gives to
    neighbours together, and given back whole, whatever the C library does with memory that is freed.
    """
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if num_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, dtype).reshape(shape)
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def _spread_rows(count: int, length: int, dtype: np.dtype) -> np.ndarray:
    """Zeros [count, length or a little more], so that a column's cache lines spread.

    Rows apart by a power of two fall on the same few places of the first cache, and reading columns evicts what it
    needs next: an odd number of lines apart, they take turns on all places.
    """
    row_bytes = length * dtype.itemsize
    if row_bytes >= _LONG_ROW:
        row_bytes = (-(-row_bytes // _ALIGNMENT) | 1) * _ALIGNMENT
    return np.zeros((count, row_bytes // dtype.itemsize), dtype)


def read_tensor(name: str, info: TensorInfo, *, out: np.ndarray) -> None:
    """Read one floating-point tensor into ``out``, of its shape, any strides and any float dtype.

    Raises:
        CheckpointError: it holds NaN or infinity, or a number too large for ``out``'s dtype, or the file ends early.
    """
    assert info.shape == out.shape
    out = out.reshape(out.shape or (1,))  # a scalar has no rows
    for rows, block in read_rows(name, info, dtype=out.dtype):
        out[rows] = block


def read_rows(name: str, info: TensorInfo, *, dtype: np.dtype) -> Iterator[tuple[slice, np.ndarray]]:
    """Read one floating-point tensor a few rows at a time, rounded to the nearest of a float ``dtype``.

    A block [R, ...] is good until the next one is asked for. A scalar is a row.

    Raises:
        CheckpointError: it holds NaN or infinity, or a number too large for ``dtype``, or the file ends early.
    """
    shape = info.shape or (1,)
    length = int(np.prod(shape[1:], dtype=np.int64))
    stored = NUMPY_DTYPES[info.dtype]
    height = min(shape[0], _block_rows(length * stored.itemsize))
    as_stored, converted = np.empty((height, length), stored), _spread_rows(height, length, dtype)
    try:
        with info.path.open("rb", buffering=0) as file:
            file.seek(info.offset)
            for rows in _blocks(shape[0], height):
                block, padded = (buffer[: rows.stop - rows.start] for buffer in (as_stored, converted))
                _fill(file, block)
                result = padded[:, :length]
                with np.errstate(over="ignore", invalid="ignore"):  # looked for below, and named
                    np.copyto(result, block, casting="unsafe")
                if not _all_finite(padded):  # 3 x as fast as without the padding, which lies between rows
                    _check_finite(block, f"{info.path}: {name}")
                    raise CheckpointError(f"{info.path}: {name} holds numbers too large for {dtype}{_wider(dtype)}")
                yield rows, result.reshape(len(result), *shape[1:])
    except OSError as error:
        raise CheckpointError(f"{info.path}: {name} cannot be read ({error.strerror or error})") from error


def _wider(dtype: np.dtype) -> str:
    """What to do about numbers that a dtype cannot hold."""
    wider = {"float16": "; use bfloat16", "bfloat16": "; use float32"}
    return wider.get(dtype.name, "")


def _block_rows(row_bytes: int) -> int:
    rows = _BLOCK_BYTES // max(1, row_bytes)
    return max(_BLOCK_ROWS, rows - rows % _BLOCK_ROWS)


def _blocks(count: int, height: int) -> Iterator[slice]:
    return (slice(start, min(start + height, count)) for start in range(0, count, max(1, height)))


def _fill(file: IO[bytes], block: np.ndarray) -> None:
    memory = block.reshape(-1).view(np.uint8).data
    while memory:  # one read may give less than asked for
        count = file.readinto(memory)  # pyright: ignore[reportAttributeAccessIssue] - raw files have it
        if not count:
            raise OSError("the file ends inside it")
        memory = memory[count:]


def _all_finite(block: np.ndarray) -> bool:
    """Whether no element is NaN or infinite; by bits, which for half-width dtypes is 20 x numpy's isfinite.

    Read as integers, the positive numbers that are not finite are the largest signed ones, the negative the largest
    unsigned ones.
    """
    infinity = _INFINITIES[block.dtype]
    signed, unsigned = block.view(infinity.dtype.name.removeprefix("u")), block.view(infinity.dtype)
    sign = infinity.dtype.type(1 << 8 * block.itemsize - 1)
    return bool(signed.max(initial=0) < infinity and unsigned.max(initial=0) < infinity | sign)


def _check_finite(block: np.ndarray, what: str) -> None:
    if not _all_finite(block):
        raise CheckpointError(f"{what} holds NaN or infinity; the checkpoint is damaged")


def write_tensors(
    path: Path, tensors: Iterable[TensorSource], *, metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a safetensors file tensor by tensor, atomically: the name appears only when the file is whole.

    ``metadata`` goes into the header, where nobody who reads the tensors looks.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or no floating-point numbers: what is written must be readable.
        OSError: no space, no permission; ``filename`` is ``path``, and what was there before still is.
    """
    # Wider dtypes first, as the format's own library does, which aligns every tensor.
    items = sorted(tensors, key=lambda item: (-item.dtype.itemsize, item.name))
    header: dict[str, object] = {"__metadata__": {**metadata, "format": "pt"}}
    offset = 0
    for name, dtype, shape, _ in items:
        if dtype not in _DTYPE_NAMES:
            raise CheckpointError(f"{path}: {name} is {dtype}; parameters are floating-point numbers")
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": shape, "data_offsets": (offset, offset + size)}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for item in items:
            _write_tensor(file, item, path)


def _write_tensor(file: IO[bytes], item: TensorSource, path: Path) -> None:
    array = item.read()
    assert array.dtype == item.dtype
    assert array.shape == item.shape
    array = array.reshape(array.shape or (1,))
    for rows in _blocks(len(array), _block_rows(array[:1].nbytes)):
        block = np.ascontiguousarray(array[rows])
        _check_finite(block, f"{path} not written: {item.name}")
        file.write(block.reshape(-1).view(np.uint8).data)

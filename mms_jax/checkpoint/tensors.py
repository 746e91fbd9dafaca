"""safetensors files, a few rows at a time: reading without holding the file, writing without holding the model.

The format's own library checks the header (size, syntax, overlaps, holes). Tensors are then read with plain file
reads: a memory map's pages would stay in memory beside the converted copy and double the peak.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mms_jax.checkpoint.hub import is_filename
from mms_jax.errors import CheckpointError
from mms_jax.files import atomic_write, read_json

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_EXPONENTS = {  # the exponent's bits: all of them set means NaN or infinity
    _DTYPES["F64"]: np.uint64(0x7FF << 52),
    _DTYPES["F32"]: np.uint32(0xFF << 23),
    _DTYPES["F16"]: np.uint16(0x1F << 10),
    _DTYPES["BF16"]: np.uint16(0xFF << 7),
}

# A block of 16 rows or more, because 16 float32 fill the cache line that a transposing copy writes: 3x faster than
# transposing a matrix at once. 64 KiB or more, because a block costs some 10 µs of Python.
_BLOCK_ROWS = 16
_BLOCK_BYTES = 1 << 16

_ALIGNMENT = 64  # of buffers that JAX takes over on CPUs instead of copying them


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
        return self.dtype in _DTYPES


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
        raise CheckpointError(f"{path}: not a valid safetensors file ({error}); fetch or convert it again") from error


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
    """An uninitialised array that ``jax.device_put`` takes over on CPUs without a copy."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def read_tensor(name: str, info: TensorInfo, *, out: np.ndarray) -> None:
    """Read one floating-point tensor into ``out``, of its shape, any strides and any float dtype.

    Raises:
        CheckpointError: it holds NaN or infinity, or a number too large for ``out``'s dtype, or the file ends early.
    """
    assert info.shape == out.shape
    dtype = _DTYPES[info.dtype]
    out = out.reshape(out.shape or (1,))  # a scalar has no rows
    try:
        with info.path.open("rb", buffering=0) as file:
            file.seek(info.offset)
            for rows in _blocks(out, dtype.itemsize):
                block = np.empty(out[rows].shape, dtype)
                _fill(file, block)
                with np.errstate(over="ignore", invalid="ignore"):  # looked for below, and named
                    converted = block.astype(out.dtype, copy=False)
                if not _all_finite(converted):
                    _check_finite(block, f"{info.path}: {name}")
                    raise CheckpointError(f"{info.path}: {name} holds numbers too large for {out.dtype}; use bfloat16")
                out[rows] = converted
    except OSError as error:
        raise CheckpointError(f"{info.path}: {name} cannot be read ({error.strerror or error})") from error


def _blocks(array: np.ndarray, itemsize: int) -> Iterator[slice]:
    row_bytes = int(np.prod(array.shape[1:], dtype=np.int64)) * itemsize
    rows = max(_BLOCK_ROWS, _BLOCK_BYTES // max(1, row_bytes))
    return (slice(start, start + rows) for start in range(0, array.shape[0], rows))


def _fill(file: IO[bytes], block: np.ndarray) -> None:
    memory = block.reshape(-1).view(np.uint8).data
    while memory:  # one read may give less than asked for
        count = file.readinto(memory)  # pyright: ignore[reportAttributeAccessIssue] - raw files have it
        if not count:
            raise OSError("the file ends inside it")
        memory = memory[count:]


def _all_finite(block: np.ndarray) -> bool:
    """Whether no element is NaN or infinite; by exponent, which for half-width dtypes is 10 x numpy's isfinite."""
    exponent = _EXPONENTS[block.dtype]
    return bool((block.view(exponent.dtype) & exponent).max(initial=0) < exponent)


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
    for rows in _blocks(array, item.dtype.itemsize):
        block = np.ascontiguousarray(array[rows])
        _check_finite(block, f"{path} not written: {item.name}")
        file.write(block.reshape(-1).view(np.uint8).data)

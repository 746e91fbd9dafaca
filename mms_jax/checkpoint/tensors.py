"""safetensors files, one tensor at a time: reading without holding the file, writing without holding the model.

The format's own library checks the header (size, syntax, overlaps, holes). Tensors are then read with plain file
reads: a memory map's pages would stay in memory beside the converted copy and double the peak.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mms_jax.config import read_json
from mms_jax.errors import CheckpointError

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorInfo(NamedTuple):
    """Where one tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    num_bytes: int


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
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: not a valid safetensors file ({error}); fetch or convert it again") from error
    header.pop("__metadata__", None)
    return {
        name: TensorInfo(path, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin)
        for name, entry in header.items()
        for begin, end in [entry["data_offsets"]]
    }


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
        if Path(shard).name != shard:
            raise CheckpointError(f"{path}: shard {shard!r} is not a plain file name")
        for name, info in read_header(locate(shard)).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(f"{path}: {name} is in {shard}, the index says {weight_map.get(name)}")
            tensors[name] = info
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} should be in {weight_map[missing[0]]}, which does not hold it")
    return tensors


def read_tensor(name: str, info: TensorInfo) -> np.ndarray:
    """Read one tensor.

    Raises:
        CheckpointError: not a floating-point tensor, or it holds NaN or infinity.
    """
    if info.dtype not in _DTYPES:
        raise CheckpointError(f"{info.path}: {name} has dtype {info.dtype}; expected one of {', '.join(_DTYPES)}")
    dtype = _DTYPES[info.dtype]
    tensor = np.fromfile(info.path, dtype=dtype, count=info.num_bytes // dtype.itemsize, offset=info.offset)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(tensor.sum(dtype=np.float32))  # one pass; NaN and infinity both survive a sum
    if not finite and not np.isfinite(tensor.astype(np.float64)).all():
        raise CheckpointError(f"{info.path}: {name} holds NaN or infinity; the checkpoint is damaged")
    return tensor.reshape(info.shape)


def write_tensors(
    path: Path, tensors: Iterable[tuple[str, np.dtype, tuple[int, ...], Callable[[], np.ndarray]]]
) -> None:
    """Write a safetensors file tensor by tensor, atomically: the name appears only when the file is whole.

    Each item is (name, dtype, shape, function that returns the array); the function is called when it is its turn.
    """
    items = sorted(tensors, key=lambda item: (-np.dtype(item[1]).itemsize, item[0]))  # as the format's library: aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, _ in items:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _DTYPE_NAMES[np.dtype(dtype)], "shape": shape, "data_offsets": (offset, offset + size)}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name, dtype, shape, read in items:
            array = np.ascontiguousarray(read())
            if array.dtype != dtype or array.shape != tuple(shape):
                raise ValueError(f"{name}: announced {dtype} {shape}, got {array.dtype} {array.shape}")
            file.write(array.reshape(-1).view(np.uint8).data)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces ``path`` when the block ends without an error, and vanishes otherwise."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object as transformers does (two spaces, sorted keys), atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())

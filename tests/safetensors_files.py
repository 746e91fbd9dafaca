"""Files for tests of checkpoints: safetensors, random or wrong on purpose, and pickles that must never be opened."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from mms_jax.checkpoint.tensors import TensorSource, read_header, read_tensor

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def random_array(shape: tuple[int, ...], dtype: Any, *, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def source(name: str, array: np.ndarray) -> TensorSource:
    return TensorSource(name, array.dtype, array.shape, lambda: array)


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, in the dtype of the file."""
    tensors = {}
    for name, info in read_header(path).items():
        tensors[name] = np.empty(info.shape, DTYPES[info.dtype])
        read_tensor(name, info, out=tensors[name])
    return tensors


def by_library(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """What the format's own library finds: (dtype, shape, bytes) by name."""
    return {
        name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in safetensors.deserialize(content)
    }


def save(path: Path, header: Any, data: bytes) -> Path:
    """A safetensors file with any header, even a wrong one."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


class _Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, fired: Path):
        self.fired = fired

    def __reduce__(self):
        return (Path.touch, (self.fired,))


def plant_bombs(directory: Path, *names: str) -> Path:
    """Write pickles under these names; returns the path of the file that any of them makes when it is unpickled."""
    fired = directory.parent / "fired"
    for name in names:
        (directory / name).write_bytes(pickle.dumps(_Bomb(fired)))
    return fired

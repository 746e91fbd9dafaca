"""Tensors of a pickle: where their numbers lie in the file, checked against the storage that holds them, never read."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.conversion import ConversionError, UnsafeFileError
from convert.pickle_values import Reference

_MAX_DIMENSIONS = 32  # numpy's own limit was 32 for long; no model comes near
_MAX_BYTES = 1 << 62  # of a storage: what is above overflows somebody's 64 bits
_KEY_CHARS_SHOWN = 80

_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
}
DTYPES = {f"torch.{name}": np.dtype(dtype) for name, dtype in _DTYPES.items()}
STORAGES = {
    "torch.DoubleStorage": DTYPES["torch.float64"],
    "torch.FloatStorage": DTYPES["torch.float32"],
    "torch.HalfStorage": DTYPES["torch.float16"],
    "torch.BFloat16Storage": DTYPES["torch.bfloat16"],
    "torch.ComplexFloatStorage": DTYPES["torch.complex64"],
    "torch.ComplexDoubleStorage": DTYPES["torch.complex128"],
    "torch.LongStorage": DTYPES["torch.int64"],
    "torch.IntStorage": DTYPES["torch.int32"],
    "torch.ShortStorage": DTYPES["torch.int16"],
    "torch.CharStorage": DTYPES["torch.int8"],
    "torch.ByteStorage": DTYPES["torch.uint8"],
    "torch.BoolStorage": DTYPES["torch.bool"],
    "torch.UntypedStorage": DTYPES["torch.uint8"],
    "torch.storage.UntypedStorage": DTYPES["torch.uint8"],
}


@dataclasses.dataclass(eq=False, slots=True)
class Storage:
    """The numbers of one or several tensors, side by side in a file; two tensors that share it are tied."""

    path: Path
    key: str
    dtype: np.dtype
    num_bytes: int
    start: int = -1  # byte in the file, filled in once the file has been read to its end
    checksum: int | None = None  # CRC-32 of all its bytes, where the file gives one


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that lies in a file until it is asked for."""

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, never negative
    storage_offset: int  # in elements

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self.storage.path

    @property
    def offset(self) -> int:
        """Its first byte in the file."""
        return self.storage.start + self.storage_offset * self.dtype.itemsize

    @property
    def num_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The bytes that ``read`` returns."""
        return self.num_elements * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether its numbers lie side by side in C order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def read(self) -> np.ndarray:
        """Read it from the file, C-contiguous.

        Raises:
            ConversionError: the file cannot be read, ends early, or its checksum says that the numbers are damaged.
        """
        if not self.num_elements:
            return np.empty(self.shape, self.dtype)
        content = self._read_bytes()
        if self.dtype == np.bool_:
            content = (content != 0).view(np.uint8)  # a bool that is neither 0 nor 1 confuses numpy
        if self.is_contiguous:
            return content.view(self.dtype).reshape(self.shape)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        view = np.ndarray(self.shape, self.dtype, content, strides=strides)  # pyright: ignore[reportArgumentType]
        return np.ascontiguousarray(view)

    def _read_bytes(self) -> np.ndarray:
        """Every byte from its first number to its last; the bounds were checked when it was made."""
        block = np.empty(_extent(self.shape, self.strides) * self.dtype.itemsize, np.uint8)
        content = memoryview(block)  # pyright: ignore[reportArgumentType]  # Buffer is new in Python 3.12
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                rest = content
                while rest and (count := file.readinto(rest)):
                    rest = rest[count:]
        except OSError as error:
            raise ConversionError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        if rest:
            raise ConversionError(
                f"{self.path}: storage {self.storage.key} ends early; the file has been cut meanwhile"
            )
        whole = len(block) == self.storage.num_bytes
        if whole and self.storage.checksum is not None and zlib.crc32(content) != self.storage.checksum:
            raise ConversionError(
                f"{self.path}: storage {self.storage.key} is damaged (checksum); fetch the file again"
            )
        return block


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class Storages:
    """The storages that one pickle names, by key."""

    def __init__(self, path: Path):
        self.path = path
        self.by_key: dict[str, Storage] = {}

    def declare(self, identity: object) -> Storage:
        """The storage of a persistent id: ("storage", type, key, device, number of elements[, no view]).

        Raises:
            ConversionError: not such a tuple, or what it says contradicts an earlier one of the same key.
        """
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise UnsafeFileError("a persistent id that is no storage; only storages are read")
        _, kind, key, _, num_elements = identity[:5]
        if type(kind) is not Reference or kind.name not in STORAGES:
            raise ConversionError("a storage of an unknown type; quantised tensors, say, are not read")
        if type(key) is not str or len(key) > _KEY_CHARS_SHOWN:
            raise ConversionError("a storage whose key is no short text")
        if len(identity) == 6 and identity[5] is not None:
            raise ConversionError(f"storage {key} is a view, as PyTorch wrote before 0.4; save it with a newer one")
        dtype = STORAGES[kind.name]
        if type(num_elements) is not int or not 0 <= num_elements * dtype.itemsize <= _MAX_BYTES:
            raise ConversionError(f"storage {key} has an impossible size")
        return self._unique(Storage(self.path, key, dtype, num_elements * dtype.itemsize))

    def _unique(self, storage: Storage) -> Storage:
        known = self.by_key.setdefault(storage.key, storage)
        if (known.dtype, known.num_bytes) != (storage.dtype, storage.num_bytes):
            raise ConversionError(f"storage {storage.key} is named twice, with different types or sizes")
        return known


def _make(layout: tuple, dtype: np.dtype | None) -> StoredTensor:
    """A tensor that lies inside its storage, from (storage, offset, shape, strides)."""
    storage, offset, shape, strides = layout
    if type(storage) is not Storage:
        raise ConversionError("a tensor without a storage")
    kind = storage.dtype if dtype is None else dtype
    if not _are_sizes((offset,)) or not _are_sizes(shape) or not _are_sizes(strides):
        raise ConversionError(f"a tensor in storage {storage.key} whose offset, shape or strides are no sizes")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ConversionError(f"a tensor in storage {storage.key} has {len(shape)} sizes and {len(strides)} strides")
    num_elements, room = math.prod(shape), storage.num_bytes // kind.itemsize
    if num_elements > room:
        raise UnsafeFileError(f"a tensor of {num_elements:,} elements in storage {storage.key}, which has {room:,}")
    if num_elements and offset + _extent(shape, strides) > room:
        raise ConversionError(f"a tensor reaches beyond storage {storage.key} of {room:,} elements")
    return StoredTensor(storage, kind, shape, strides, offset)


def _are_sizes(values: object) -> bool:
    return type(values) is tuple and all(type(value) is int and 0 <= value < _MAX_BYTES for value in values)


def _rebuild_v2(arguments: tuple) -> StoredTensor:
    """(storage, offset, shape, strides[, requires gradient, hooks[, metadata]])."""
    if not 4 <= len(arguments) <= 7:
        raise ConversionError(f"a tensor made of {len(arguments)} values")
    _check_metadata(arguments[6:])
    return _make(arguments[:4], None)


def _rebuild_v3(arguments: tuple) -> StoredTensor:
    """(storage, offset, shape, strides, requires gradient, hooks, dtype[, metadata])."""
    if not 7 <= len(arguments) <= 8:
        raise ConversionError(f"a tensor made of {len(arguments)} values")
    dtype = arguments[6]
    if type(dtype) is not Reference or dtype.name not in DTYPES:
        raise ConversionError("a tensor of an unknown dtype")
    _check_metadata(arguments[7:])
    return _make(arguments[:4], DTYPES[dtype.name])


def _check_metadata(metadata: tuple) -> None:
    if metadata and metadata[0]:
        raise ConversionError("a tensor stored as a conjugate or negative view; save a .clone() of it")


def _rebuild_parameter(arguments: tuple) -> StoredTensor:
    """(tensor, requires gradient, hooks[, attributes]): the tensor."""
    if not 3 <= len(arguments) <= 4 or type(arguments[0]) is not StoredTensor:
        raise ConversionError("a parameter that is no tensor")
    return arguments[0]


def _rebuild_typed(arguments: tuple) -> StoredTensor:
    """(function, type, its arguments, attributes): a tensor or parameter with attributes, which are not kept."""
    if len(arguments) != 4 or type(arguments[0]) is not Reference or type(arguments[2]) is not tuple:
        raise ConversionError("a tensor with attributes that is put together in an unknown way")
    rebuild = REBUILDERS.get(arguments[0].name)
    if rebuild is None or arguments[1] not in _TENSOR_TYPES:
        raise UnsafeFileError(f"a tensor put together by {arguments[0].name}")
    return rebuild(arguments[2])


_TENSOR_TYPES = (Reference("torch.Tensor"), Reference("torch.nn.parameter.Parameter"))
REBUILDERS: dict[str, Callable[[tuple], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_v2,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
BUILDERS = {**REBUILDERS, "torch._tensor._rebuild_from_type_v2": _rebuild_typed}
NAMES = (*BUILDERS, *STORAGES, *DTYPES, *(reference.name for reference in _TENSOR_TYPES))

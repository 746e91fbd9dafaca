"""Files that torch.load reads, weights_only and all, written without PyTorch: a zip of a small pickle and raw storages.

The pickle is put together from opcodes of protocol 2; what is written is plain values, tensors and named records.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.conversion import ConversionError, Part
from convert.torch_files import Record
from mms_jax.files import atomic_write

_STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.bool_): "BoolStorage",
}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same file whenever it is written
_CHUNK = 16 << 20


def write_torch_file(path: Path, value: Any) -> None:
    """Write nested dicts, lists, tuples, plain values, Records and Parts, as ``torch.save`` would; whole or not at all.

    Raises:
        ConversionError: something that is none of these. OSError: it cannot be written.
    """
    parts: list[Part] = []
    pickled = b"\x80\x02" + b"".join(_opcodes(value, parts)) + b"."
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "archive/data.pkl", [pickled], len(pickled))
        _add(archive, "archive/byteorder", [b"little"], 6)
        for number, part in enumerate(parts):
            size = part.dtype.itemsize * int(np.prod(part.shape, dtype=np.int64))
            _add(archive, f"archive/data/{number}", _bytes_of(part), size)
        _add(archive, "archive/version", [b"3\n"], 2)


def _add(archive: zipfile.ZipFile, name: str, chunks: Any, size: int) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.file_size = size
    with archive.open(info, "w", force_zip64=size >= 1 << 31) as member:
        for chunk in chunks:
            member.write(chunk)


def _bytes_of(part: Part) -> Iterator[memoryview]:
    """A tensor's values, read now."""
    array = np.ascontiguousarray(part.read())
    assert array.dtype == part.dtype, part.target
    assert array.shape == part.shape, part.target
    memory = array.reshape(-1).view(np.uint8).data
    return (memory[start : start + _CHUNK] for start in range(0, len(memory), _CHUNK))


def _opcodes(value: Any, parts: list[Part]) -> Iterator[bytes]:
    """The opcodes that leave a value on the stack; a tensor is added to ``parts``, whose index is its storage's key."""
    match value:
        case None:
            yield b"N"
        case bool():
            yield b"\x88" if value else b"\x89"
        case int():
            yield _integer(value)
        case float():
            yield b"G" + struct.pack(">d", value)
        case str():
            yield _text(value)
        case Part():
            yield from _tensor(value, parts)
        case Mapping():
            yield b"}("
            for key, item in value.items():
                yield from _opcodes(key, parts)
                yield from _opcodes(item, parts)
            yield b"u"
        case tuple():
            yield b"("
            for item in value:
                yield from _opcodes(item, parts)
            yield b"t"
        case list():
            yield b"]("
            for item in value:
                yield from _opcodes(item, parts)
            yield b"e"
        case Record():
            yield _name(value.name)
            yield from _opcodes(value.arguments, parts)
            yield b"\x81"  # NEWOBJ
            yield from _opcodes(value.state, parts)
            yield b"b"
        case _:
            raise ConversionError(f"a {type(value).__name__} cannot be written to a PyTorch file")


def _tensor(part: Part, parts: list[Part]) -> Iterator[bytes]:
    if part.dtype not in _STORAGES:
        raise ConversionError(f"{part.target} is {part.dtype}, which a PyTorch file has no storage for")
    key, count = str(len(parts)), int(np.prod(part.shape, dtype=np.int64))
    parts.append(part)
    strides = tuple(int(np.prod(part.shape[axis + 1 :], dtype=np.int64)) for axis in range(len(part.shape)))
    yield _name("torch._utils._rebuild_tensor_v2") + b"("
    yield (
        b"(" + _text("storage") + _name(f"torch.{_STORAGES[part.dtype]}") + _text(key) + _text("cpu") + _integer(count)
    )
    yield b"tQ" + _integer(0)  # BINPERSID, and the tensor's place in the storage
    yield from _opcodes(part.shape, parts)
    yield from _opcodes(strides, parts)
    yield b"\x89" + _name("collections.OrderedDict") + b")R" + b"tR"  # no gradient, no hooks


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes((value.bit_length() >> 3) + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _name(dotted: str) -> bytes:
    module, _, name = dotted.rpartition(".")
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"

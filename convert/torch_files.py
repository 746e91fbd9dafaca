"""Files of torch.save, read without PyTorch and without unpickling: containers now, tensors when they are asked for.

Both formats: the zip of PyTorch 1.6 and later, and the run of pickles before it. Nothing is looked up, called or
unpacked: see pickles.py and pickle_zips.py. What is no such file is named for what it is.
"""

from __future__ import annotations

import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import IO, Any

from convert.conversion import ConversionError, UnsafeFileError
from convert.pickle_machine import TruncatedError
from convert.pickle_tensors import Storage, Storages, StoredTensor
from convert.pickle_values import Record, Reference
from convert.pickle_zips import STORED, Member, read_members
from convert.pickles import read_pickle

__all__ = ["Record", "Reference", "Storage", "StoredTensor", "read_torch_file"]

_MAGIC = 0x1950A86A20F9469CFC6C  # of the older format, with its version
_VERSION = 1001
_MAX_PICKLE = 512 << 20  # bytes; mms-1b-all's takes about 60 MB
_FIRST_READ, _GROWTH = 16 << 20, 8  # the older format does not say where its pickles end
_HEAD = 512  # bytes that tell one kind of file from another

_KINDS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive; unpack it first (convert.archives.unpack)"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file; only PyTorch's own formats are read"),
    (b"PK\5\6", "an empty zip archive; fetch it again"),
)
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<?xml")


def read_torch_file(path: str | PathLike[str]) -> Any:
    """What torch.save wrote: nested dicts, lists and tuples of plain values, Records, and a StoredTensor per tensor.

    Raises:
        UnsafeFileError: the file asks for code to run, or for more memory than it has bytes.
        ConversionError: no such file, not one of PyTorch's, damaged or cut off; the message says what to do.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if head.startswith(b"PK\3\4"):
                return _read_zip(path, file)
            if head.startswith(b"\x80"):
                return _read_pickles(path, file)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from error
    raise ConversionError(f"{path}: {_identify(head)}")


def _identify(head: bytes) -> str:
    """What a file is that begins so, and what to do about it."""
    if not head:
        return "an empty file; fetch it again"
    for signature, answer in _KINDS:
        if head.startswith(signature):
            return answer
    if head.lstrip().lower().startswith(_MARKUP):
        return "a web page, such as a download's error message; fetch it again"
    if head[8:9] == b"{":
        return "a safetensors file, which needs no conversion; give it where safetensors are expected"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it, or, if PyTorch before 0.1.11 wrote it, save it again with a newer one"
    return "not a file of torch.save; give the .pt, .pth or .bin file of the checkpoint"


def _read_zip(path: Path, file: IO[bytes]) -> Any:
    members = read_members(path, file)
    root = _find_root(path, members)
    for member in members.values():
        if member.method != STORED or member.stored != member.size:
            raise UnsafeFileError(f"{path}: {member.name} is compressed, which torch.save never does")
    _check_byte_order(path, file, members.get(f"{root}/byteorder"))
    storages = Storages(path)
    data = _read_member(path, file, members[f"{root}/data.pkl"])
    value, end = read_pickle(data, where=str(path), storages=storages)
    if end != len(data):
        raise UnsafeFileError(f"{path}: {len(data) - end:,} bytes behind its pickle")
    for storage in storages.by_key.values():
        _place(storage, members.get(f"{root}/data/{storage.key}"))
    return value


def _find_root(path: Path, members: dict[str, Member]) -> str:
    """The folder inside the archive that holds everything."""
    (root, *others) = sorted({name.split("/")[0] for name in members})
    if f"{root}/constants.pkl" in members or any(name.startswith(f"{root}/code/") for name in members):
        raise ConversionError(f"{path}: a TorchScript program, not a checkpoint; save its state_dict() with torch.save")
    if others or f"{root}/data.pkl" not in members:
        raise ConversionError(f"{path}: a zip archive that torch.save did not write; unpack it first")
    return root


def _check_byte_order(path: Path, file: IO[bytes], member: Member | None) -> None:
    """Raise unless numbers are little-endian, as they are in files that do not say."""
    if member is not None and (order := _read_member(path, file, member)) != b"little":
        raise ConversionError(f"{path}: byte order {order[:20]!r}; save it again on a little-endian machine")


def _read_member(path: Path, file: IO[bytes], member: Member) -> bytes:
    if member.size > _MAX_PICKLE:
        raise UnsafeFileError(f"{path}: {member.name} has {member.size:,} bytes, expected at most {_MAX_PICKLE:,}")
    file.seek(member.start)
    content = file.read(member.size)
    if len(content) != member.size or (member.checksum and zlib.crc32(content) != member.checksum):
        raise ConversionError(f"{path}: {member.name} is damaged (checksum); fetch the file again")
    return content


def _place(storage: Storage, member: Member | None) -> None:
    """Say where in the file a storage lies."""
    if member is None:
        raise ConversionError(f"{storage.path}: storage {storage.key} is missing; fetch the file again")
    if member.size < storage.num_bytes:
        raise ConversionError(
            f"{storage.path}: storage {storage.key} has {member.size:,} bytes, expected {storage.num_bytes:,}"
        )
    storage.start = member.start
    storage.checksum = member.checksum or None if member.size == storage.num_bytes else None


def _read_pickles(path: Path, file: IO[bytes]) -> Any:
    """The older format: five pickles, then the storages in the order of the last one."""
    size = file.seek(0, 2)
    length = _FIRST_READ
    while True:
        file.seek(0)
        data = file.read(length)
        storages = Storages(path)
        try:
            value, keys, end = _parse_pickles(path, data, storages)
            break
        except TruncatedError as error:
            if length >= size:
                raise ConversionError(f"{error}; fetch the file again") from error
            if length >= _MAX_PICKLE:
                raise UnsafeFileError(f"{path}: pickles of over {_MAX_PICKLE:,} bytes") from error
            length = min(length * _GROWTH, _MAX_PICKLE)
    _place_in_order(file, storages, keys, begin=end, size=size)
    return value


def _parse_pickles(path: Path, data: bytes, storages: Storages) -> tuple[Any, list, int]:
    """The value, the keys of its storages, and the position after the pickles."""
    magic, at = read_pickle(data, where=str(path))
    if magic != _MAGIC:
        raise ConversionError(f"{path}: a pickle that torch.save did not write; save the state dict with torch.save")
    version, at = read_pickle(data, at, where=str(path))
    system, at = read_pickle(data, at, where=str(path))
    if version != _VERSION or type(system) is not dict:
        raise ConversionError(f"{path}: an unknown version of PyTorch's format; save it again with a newer PyTorch")
    if system.get("little_endian") is not True:
        raise ConversionError(f"{path}: big-endian numbers; save it again on a little-endian machine")
    value, at = read_pickle(data, at, where=str(path), storages=storages)
    keys, at = read_pickle(data, at, where=str(path))
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ConversionError(f"{path}: its list of storages is damaged; fetch the file again")
    return value, keys, at


def _place_in_order(file: IO[bytes], storages: Storages, keys: list, *, begin: int, size: int) -> None:
    """Say where the storages lie: each is a 64-bit number of elements, then the elements."""
    path = storages.path
    if len(set(keys)) != len(keys) or set(keys) != storages.by_key.keys():
        odd = sorted(set(keys) ^ storages.by_key.keys())
        raise ConversionError(f"{path}: storages and tensors do not match ({', '.join(odd[:3]) or 'one twice'})")
    at = begin
    for storage in map(storages.by_key.__getitem__, keys):
        file.seek(at)
        announced = file.read(8)
        storage.start = at + 8
        at = storage.start + storage.num_bytes
        if len(announced) < 8 or at > size:
            raise ConversionError(f"{path}: cut off in storage {storage.key}; fetch the file again")
        if struct.unpack("<q", announced)[0] * storage.dtype.itemsize != storage.num_bytes:
            raise ConversionError(f"{path}: storage {storage.key} is not as long as its tensors say")
    if at != size:
        raise UnsafeFileError(f"{path}: {size - at:,} bytes behind its last storage")

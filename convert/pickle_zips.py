"""Zip archives, strictly: a directory that says one thing only, and members that lie side by side and nowhere else.

Two programs that read a lenient zip can see two different files. Here, what the directory, its 64-bit version and every
local header say must agree, members must fill the file from its first byte to the directory without overlap, and
nothing may stand before, between or behind.
"""

from __future__ import annotations

import struct
import unicodedata
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from convert.conversion import ConversionError, UnsafeFileError

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_SENTINEL_16, _SENTINEL_32 = 0xFFFF, 0xFFFFFFFF  # the value is in a 64-bit field
_MAX_DIRECTORY = 256 << 20  # bytes; mms-1b-all's has 337,000 entries of about 70
_MAX_NAME = 1024
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_STREAMED = 1 << 3  # sizes and checksum follow the member
_DESCRIPTORS = (12, 16, 20, 24)  # bytes of what follows: with or without a signature, 32 or 64 bits


class Member(NamedTuple):
    """One member of a zip archive, as the directory and the local header both say."""

    name: str
    flags: int
    method: int
    checksum: int  # CRC-32; PyTorch can be told to leave it 0
    stored: int  # bytes in the file
    size: int  # bytes when unpacked
    header: int  # position of the local header
    mode: int  # Unix file type and permissions; 0 where it does not say
    start: int = 0  # position of the first byte

    @property
    def end(self) -> int:
        """The position after its last byte."""
        return self.start + self.stored


def read_members(path: Path, file: IO[bytes]) -> dict[str, Member]:
    """The members of the archive, by name, in the order in which they lie in the file.

    Raises:
        UnsafeFileError: an ambiguous archive: overlaps, gaps, names given twice or that lead elsewhere, encryption.
        ConversionError: no zip archive, or a damaged one. Both name the archive and the member.
    """
    try:
        size = file.seek(0, 2)
        begin, length, count = _find_directory(file, size)
        file.seek(begin)
        entries = _parse_directory(file.read(length), count)
        members = [_with_start(file, entry) for entry in sorted(entries, key=lambda entry: entry.header)]
        _check_layout(members, begin)
    except ConversionError as error:
        raise type(error)(f"{path}: {error}") from None
    except (struct.error, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: a damaged zip archive ({error}); fetch it again") from error
    return {member.name: member for member in members}


def _read_at(file: IO[bytes], position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _find_directory(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """Position, bytes and number of entries of the directory, which ends where its end record begins."""
    at = size - _END.size
    if at < 0 or (end := _END.unpack(_read_at(file, at, _END.size)))[0] != b"PK\5\6" or end[7]:
        raise ConversionError("a zip archive that is cut off, or has something behind its end; fetch it again")
    _, disk, first_disk, here, count, length, begin, _ = end
    if disk or first_disk or here != count:
        raise ConversionError("one part of a zip archive in several; join them first")
    locator = _read_at(file, at - _LOCATOR.size, _LOCATOR.size) if at >= _LOCATOR.size else b""
    if locator[:4] == b"PK\6\7":
        at, (begin, length, count) = _read_end_64(file, at - _LOCATOR.size, locator, (begin, length, count))
    if begin + length != at:
        raise UnsafeFileError("something stands between the zip archive's directory and its end")
    if length > _MAX_DIRECTORY or count * _ENTRY.size > length:
        raise UnsafeFileError(f"a zip directory of {length:,} bytes for {count:,} members")
    return begin, length, count


def _read_end_64(file: IO[bytes], before: int, locator: bytes, narrow: tuple) -> tuple[int, tuple[int, int, int]]:
    """The position of the 64-bit end record, and what it says, which the 32-bit one must not contradict."""
    _, disk, at, disks = _LOCATOR.unpack(locator)
    if disk or disks > 1 or at != before - _END_64.size:
        raise UnsafeFileError("a zip archive whose 64-bit end record is not where it belongs")
    signature, length, _, _, disk, first_disk, here, count, size, begin = _END_64.unpack(
        _read_at(file, at, _END_64.size)
    )
    if signature != b"PK\6\6" or length != _END_64.size - 12 or disk or first_disk or here != count:
        raise UnsafeFileError("a zip archive with a malformed 64-bit end record")
    wide = (begin, size, count)
    for one, other, sentinel in zip(narrow, wide, (_SENTINEL_32, _SENTINEL_32, _SENTINEL_16), strict=True):
        if one not in (other, sentinel):
            raise UnsafeFileError("a zip archive whose two end records disagree")
    return at, wide


def _parse_directory(content: bytes, count: int) -> list[Member]:
    members: dict[str, Member] = {}
    at = 0
    for _ in range(count):
        fields = _ENTRY.unpack_from(content, at)
        if fields[0] != b"PK\1\2":
            raise ConversionError("a damaged zip directory; fetch it again")
        name_end = at + _ENTRY.size + fields[10]
        extra_end = name_end + fields[11]
        member = _parse_entry(fields, content[name_end - fields[10] : name_end], content[name_end:extra_end])
        if member.name in members:
            raise UnsafeFileError(f"holds {member.name} twice")
        members[member.name] = member
        at = extra_end + fields[12]
    if at != len(content):
        raise UnsafeFileError("a zip directory with more than its entries")
    return list(members.values())


def _parse_entry(fields: tuple, name: bytes, extra: bytes) -> Member:
    _, made_by, _, flags, method, _, _, checksum, stored, size, _, _, _, disk, _, attributes, header = fields
    text = name.decode()
    check_name(text)
    if flags & _ENCRYPTED:
        raise UnsafeFileError(f"{text} is encrypted; unpack it with its password first")
    if disk:
        raise ConversionError(f"{text} lies in another part of the archive; join them first")
    size, stored, header = _widen(text, (size, stored, header), extra)
    return Member(text, flags, method, checksum, stored, size, header, attributes >> 16 if made_by >> 8 == 3 else 0)


def check_name(name: str) -> None:
    """Raise UnsafeFileError unless ``name`` is a plain relative path with / between its parts."""
    shown = ascii(name[:_MAX_NAME])
    if not name or len(name) > _MAX_NAME:
        raise UnsafeFileError(f"a member without a name, or with one of over {_MAX_NAME} characters: {shown}")
    if "\\" in name or ":" in name or any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in name):
        raise UnsafeFileError(f"a member whose name is not plain: {shown}")
    plain = name.removesuffix("/")
    if plain.startswith("/") or PurePosixPath(plain).as_posix() != plain or {".", ".."} & set(plain.split("/")):
        raise UnsafeFileError(f"a member whose name leads elsewhere: {shown}")


def _widen(name: str, values: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """The values, and for those that do not fit 32 bits the ones of the 64-bit field."""
    wide = [value for value in values if value == _SENTINEL_32]
    if not wide:
        return values
    field = _find_field(extra, 1)
    if len(field) < 8 * len(wide):
        raise ConversionError(f"{name}: its 64-bit sizes are missing; fetch the archive again")
    following = iter(struct.unpack_from(f"<{len(wide)}Q", field))
    size, stored, header = (next(following) if value == _SENTINEL_32 else value for value in values)
    return size, stored, header


def _find_field(extra: bytes, wanted: int) -> bytes:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""


def _with_start(file: IO[bytes], member: Member) -> Member:
    """The member and its first byte, from the local header, which must agree."""
    signature, _, flags, method, _, _, checksum, stored, size, name_length, extra_length = _LOCAL.unpack(
        _read_at(file, member.header, _LOCAL.size)
    )
    rest = file.read(name_length + extra_length)
    name = rest[:name_length]
    size, stored, _ = _widen(member.name, (size, stored, 0), rest[name_length:])
    same = signature == b"PK\3\4" and name == member.name.encode() and (flags, method) == (member.flags, member.method)
    claims = ((checksum, member.checksum), (stored, member.stored), (size, member.size))
    deferred = 0 if flags & _STREAMED else None
    if not same or not all(local in (central, deferred) for local, central in claims):
        raise UnsafeFileError(f"{member.name}: its own header and the archive's directory disagree")
    return member._replace(start=member.header + _LOCAL.size + len(rest))


def _check_layout(members: list[Member], directory: int) -> None:
    """Raise unless the members follow one another from byte 0 to the directory."""
    at = 0
    for member, following in zip(members, [*(member.header for member in members[1:]), directory], strict=True):
        gap = following - member.end
        allowed = _DESCRIPTORS if member.flags & _STREAMED else (0,)
        if member.header != at or gap not in allowed:
            raise UnsafeFileError(
                f"{member.name}: overlaps its neighbours or leaves a gap that could hide another file"
            )
        at = following
    if at != directory:
        raise UnsafeFileError("a zip archive that begins with something else")

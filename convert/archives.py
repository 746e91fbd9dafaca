"""Archives unpacked under limits: .tar, .tar.gz (the original MMS-TTS checkpoints) and .zip.

Every member is looked at before one is written, what is written is counted, and what was written is removed again
when anything is wrong. Only regular files and folders are made, below the folder asked for, and nothing is replaced.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, NamedTuple

from convert.conversion import ConversionError, UnsafeFileError
from convert.pickle_zips import DEFLATED, STORED, Member, check_name, read_members

MAX_BYTES = 32 << 30  # of all members together; an MMS-TTS original has about 0.5 GB
MAX_MEMBERS = 4096  # an MMS-TTS original has five or so

_MAX_RATIO = 1000  # unpacked to packed: deflate reaches 1:1032 on zeros, weights 1:1.1
_SLACK = 64 << 20  # bytes beyond the declared ones, for headers and padding: 4096 members need 6 MB
_MAX_EXTENSION = 1024  # bytes of a tar header that extends one; on some Pythons they cost quadratic time
_BLOCK = 1 << 20
_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_FILE_TYPES = {0o12: "a symbolic link", 0o6: "a device", 0o2: "a device", 0o1: "a pipe", 0o14: "a socket"}


class _Entry(NamedTuple):
    """A member to be unpacked."""

    name: str  # plain and relative, / between its parts, none at its end
    is_folder: bool
    size: int


_Contents = Iterator[tuple[_Entry, Iterator[bytes]]]


def unpack(
    path: str | PathLike[str],
    directory: str | PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> list[Path]:
    """Unpack an archive into ``directory``, which is made if need be; returns the files, in the archive's order.

    Raises:
        UnsafeFileError: a member is no file or folder, leads elsewhere, stands there twice, or unpacks to more than
            1000 times its size or than it declares; or all have over ``max_bytes`` or ``max_members``.
        ConversionError: no such archive, a damaged one, or a file that is there already.
        Both name archive and member. Nothing is left behind.
    """
    path, directory = Path(path), Path(directory)
    with _named(path):
        contents = _open(path)
        entries = [entry for entry, _ in _checked(contents(), path, max_bytes=max_bytes, max_members=max_members)]
        if all(entry.is_folder for entry in entries):
            raise ConversionError("holds no files; fetch it again")
        _check_targets(entries, directory)
        made: list[Path] = []
        try:
            return _write(contents(), entries, directory, made)
        except BaseException:
            _remove(made)
            raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors that say which archive; those of the libraries as ours."""
    try:
        yield
    except ConversionError as error:
        raise error if str(error).startswith(str(path)) else type(error)(f"{path}: {error}") from error.__cause__
    except OSError as error:  # gzip's bad checksum is one, without a number
        reason = f"cannot be unpacked ({error.strerror or error}"
        raise ConversionError(f"{path}: {reason}{f': {error.filename}' if error.filename else ''})") from error
    except (tarfile.TarError, EOFError, zlib.error, ValueError, RecursionError) as error:
        # ValueError, RecursionError: what tarfile makes of odd numbers and of headers of headers
        raise ConversionError(f"{path}: a damaged archive ({error}); fetch it again") from error


def _open(path: Path) -> Callable[[], _Contents]:
    """A function that runs through the archive from its beginning."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\3\4"):
        return lambda: _read_zip(path)
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return lambda: _read_tar(path)
    raise ConversionError("no .tar, .tar.gz or .zip archive; unpack it with its own program, or fetch it again")


def _checked(contents: _Contents, path: Path, *, max_bytes: int, max_members: int) -> _Contents:
    """The same, with an error as soon as there are too many members, too many bytes or a name twice."""
    packed, total, names = path.stat().st_size, 0, set()
    for entry, blocks in contents:
        total += entry.size
        if entry.name in names:
            raise UnsafeFileError(f"holds {entry.name} twice")
        names.add(entry.name)
        if len(names) > max_members:
            raise UnsafeFileError(f"over {max_members:,} members")
        if total > max_bytes:
            raise UnsafeFileError(f"{entry.name}: the members so far have {total:,} bytes, over {max_bytes:,}")
        if total >= _MAX_RATIO * packed:
            raise UnsafeFileError(f"{entry.name}: {total:,} bytes in an archive of {packed:,}, as only a bomb has")
        yield entry, blocks


def _check_targets(entries: Iterable[_Entry], directory: Path) -> None:
    """Raise where a member's place is taken, or lies behind a link."""
    for entry in entries:
        target = directory / entry.name
        for folder in [*target.parents][: len(Path(entry.name).parts) - 1]:
            if folder.is_symlink():
                raise UnsafeFileError(f"{entry.name}: {folder} is a link to elsewhere")
        taken = target.is_symlink() or (target.exists() and not (entry.is_folder and target.is_dir()))
        if taken:
            raise ConversionError(f"{entry.name}: {target} is there already; unpack into an empty folder")


def _write(contents: _Contents, expected: list[_Entry], directory: Path, made: list[Path]) -> list[Path]:
    """Write every member; ``made`` lists what has been made, for its removal."""
    files = []
    for (entry, blocks), announced in zip(contents, expected, strict=True):
        if entry != announced:
            raise ConversionError(f"{entry.name}: the archive has changed meanwhile")
        target = directory / entry.name
        _make_folder(target if entry.is_folder else target.parent, made)
        if entry.is_folder:
            continue
        with target.open("xb") as file:  # follows no link, replaces nothing
            made.append(target)
            _copy(blocks, file, entry)
        files.append(target)
    return files


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, made)
    folder.mkdir()
    made.append(folder)


def _copy(blocks: Iterator[bytes], file: IO[bytes], entry: _Entry) -> None:
    written = 0
    for block in blocks:
        written += len(block)
        if written > entry.size:
            raise UnsafeFileError(f"{entry.name}: unpacks to more than the {entry.size:,} bytes it declares")
        file.write(block)
    if written < entry.size:
        raise ConversionError(f"{entry.name}: ends after {written:,} of {entry.size:,} bytes; fetch the archive again")


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        with suppress(OSError):  # the error that led here is the one to be seen
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()


# --- zip


def _read_zip(path: Path) -> _Contents:
    with path.open("rb") as file:
        for member in read_members(path, file).values():
            _check_zip_member(member)
            name = member.name.removesuffix("/")
            yield _Entry(name, member.name.endswith("/"), member.size), _inflate(file, member)


def _check_zip_member(member: Member) -> None:
    kind = member.mode >> 12
    if kind not in (0, 0o4, 0o10):
        raise UnsafeFileError(f"{member.name} is {_FILE_TYPES.get(kind, 'no file')}; only files and folders are made")
    if member.name.endswith("/") and member.size:
        raise UnsafeFileError(f"{member.name} is a folder of {member.size:,} bytes")
    if member.method not in (STORED, DEFLATED):
        raise ConversionError(f"{member.name}: packed with method {member.method}; unpack it with its own program")
    if member.method == STORED and member.stored != member.size:
        raise UnsafeFileError(f"{member.name}: not packed, yet of two sizes")
    if member.size >= _MAX_RATIO * max(1, member.stored):
        raise UnsafeFileError(f"{member.name}: {member.size:,} bytes packed into {member.stored:,}, as only a bomb has")


def _inflate(file: IO[bytes], member: Member) -> Iterator[bytes]:
    """The bytes of a member, at most a block at a time, and an error at the end unless the checksum is right."""
    checksum = 0
    packed = _read_blocks(file, member)
    for block in packed if member.method == STORED else _decompress(packed, member):
        checksum = zlib.crc32(block, checksum)
        yield block
    if checksum != member.checksum:
        raise ConversionError(f"{member.name} is damaged (checksum); fetch the archive again")


def _read_blocks(file: IO[bytes], member: Member) -> Iterator[bytes]:
    file.seek(member.start)
    for begin in range(0, member.stored, _BLOCK):
        yield file.read(min(_BLOCK, member.stored - begin))


def _decompress(blocks: Iterator[bytes], member: Member) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    for packed in blocks:
        while packed:
            yield unpacker.decompress(packed, _BLOCK)
            packed = unpacker.unconsumed_tail
    yield unpacker.flush()  # the last few hundred bytes, for which no more input is needed
    if not unpacker.eof or unpacker.unused_data:
        raise UnsafeFileError(f"{member.name}: what it is packed into is cut off, or has something behind its end")


# --- tar


class _Header(tarfile.TarInfo):
    """A tar header that is right, or an error: tarfile takes a damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Parse 512 bytes."""
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]  # missing from the stubs
            raise
        except tarfile.HeaderError as error:
            raise ConversionError(f"cut off, or damaged ({error}); fetch the archive again") from error
        if header.size < 0 or (header.type in _EXTENSIONS and header.size > _MAX_EXTENSION):
            raise UnsafeFileError(f"{header.name!a}: a header of {header.size:,} bytes")
        return header


class _Limited(io.RawIOBase):
    """A stream that ends in an error once it has given out more than is allowed."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile):
        super().__init__()
        self.stream = stream
        self.left = _SLACK

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise UnsafeFileError(f"unpacks to over {_SLACK >> 20} MB more than its members declare")
        return content


def _read_tar(path: Path) -> _Contents:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        limited = _Limited(gzip.GzipFile(fileobj=file) if packed else file)
        with tarfile.open(fileobj=limited, mode="r|", bufsize=_BLOCK, tarinfo=_Header) as tar:
            for info in tar:
                if (entry := _tar_entry(info)) is not None:
                    limited.left += entry.size
                    yield entry, _tar_blocks(tar, info)
            _check_rest(tar)


def _tar_entry(info: tarfile.TarInfo) -> _Entry | None:
    """The member to be unpacked; None for the folder itself that ``tar -c .`` puts in front."""
    name = ascii(info.name)
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse():
        raise UnsafeFileError(f"{name} is {_tar_kind(info)}; only files and folders are made")
    if info.size < 0 or (info.isdir() and info.size):
        raise UnsafeFileError(f"{name} declares {info.size:,} bytes")
    if info.isdir() and info.name == ".":
        return None
    plain = info.name.removeprefix("./")
    check_name(plain)
    return _Entry(plain, info.isdir(), info.size)


def _tar_kind(info: tarfile.TarInfo) -> str:
    kinds = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.FIFOTYPE: "a pipe"}
    kinds |= dict.fromkeys((tarfile.CHRTYPE, tarfile.BLKTYPE), "a device")
    return "a sparse file" if info.issparse() else kinds.get(info.type, f"of type {info.type!r}")


def _tar_blocks(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(info)
    assert file is not None  # of a regular file
    while block := file.read(_BLOCK):
        yield block


def _check_rest(tar: tarfile.TarFile) -> None:
    """Read what follows the end mark, which has to be padding; this also has gzip compare its checksum."""
    assert tar.fileobj is not None
    while block := tar.fileobj.read(_BLOCK):
        if block.strip(b"\0"):
            raise UnsafeFileError("something stands behind the tar archive's end")

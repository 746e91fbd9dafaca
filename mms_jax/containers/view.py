"""The part of a file that a decoder is given, and what all container checks share."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from mms_jax.errors import AudioError

CONVERT = "convert it, for example with: ffmpeg -i IN OUT.flac"
TRUNCATED = "the file is truncated: copy or record it again"


class View(io.RawIOBase):
    """``prefix`` followed by ``file[start:stop]``, read-only and seekable: what the decoder is given.

    It never raises into the decoder's C callbacks: seeks are clamped, and a read error is kept in ``failure``.
    """

    def __init__(self, file: BinaryIO, *, start: int, stop: int, prefix: bytes = b""):
        self._file, self._start, self._prefix = file, start, prefix
        self._size = len(prefix) + stop - start
        self._position = 0
        self.failure: OSError | AudioError | None = None

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:  # noqa: D102
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = min(max(base + offset, 0), self._size)
        return self._position

    def readinto(self, buffer: Any, /) -> int:  # noqa: D102
        wanted = min(len(buffer), self._size - self._position)
        data = self._prefix[self._position : self._position + wanted]
        try:
            if len(data) < wanted:
                at = self._start + self._position + len(data) - len(self._prefix)
                data += read_at(self._file, at, wanted - len(data))
        except (OSError, AudioError) as error:
            self.failure = error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class Rest:
    """What is left of a caller's file object, as a file that can seek and starts at 0; reads do not fall short."""

    def __init__(self, file: Any, start: int, size: int):
        self._file, self._start, self._size = file, start, size
        self._position = 0

    @classmethod
    def of(cls, file: Any) -> "Rest | None":
        """None where the file object cannot seek, or does not tell where it ends, as a pipe or a device."""
        if not hasattr(file, "seekable") or not hasattr(file, "tell"):
            return None
        with _read_errors():
            if not file.seekable():
                return None
            start = file.tell()
            file.seek(0, io.SEEK_END)
            size = file.tell() - start
            file.seek(start)
        return cls(file, start, size) if size > 0 else None

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Only from the start or the end."""
        self._position = offset + (self._size if whence == io.SEEK_END else 0)
        return self._position

    def read(self, count: int, /) -> bytes:
        """Up to ``count`` bytes; fewer at the end. Raises ``AudioError`` where the file object raises or gives text."""
        with _read_errors():
            self._file.seek(self._start + self._position)
        data = bytearray()
        while len(data) < count and (some := read_some(self._file, count - len(data))):
            data += some
        self._position += len(data)
        return bytes(data)

    def leave_at_end(self) -> None:
        """Leave the file object as one that was read to its end."""
        with _read_errors():
            self._file.seek(self._start + self._size)


@contextmanager
def _read_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a closed file
        raise AudioError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_some(file: Any, count: int) -> bytes | bytearray | memoryview:
    """Up to ``count`` bytes of a file object that may be anything; none at its end."""
    with _read_errors():
        data = file.read(count)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise AudioError(f"gives {type(data).__name__}, not bytes: open it in binary mode, open(path, 'rb')")
    return data


def read_at(file: BinaryIO, position: int, count: int) -> bytes:
    """Up to ``count`` bytes from ``position``; fewer at the end of the file."""
    file.seek(position)
    return file.read(count)


def too_long(max_duration: float) -> str:
    """The reason given for audio over the cap."""
    return f"is longer than {max_duration:g} s, the most that is loaded at once; split it or pass a larger max_duration"

"""The part of a file that a decoder is given, and what all container checks share."""

import io
from typing import Any, BinaryIO

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
        self.failure: OSError | None = None

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
        except OSError as error:
            self.failure = error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def read_at(file: BinaryIO, position: int, count: int) -> bytes:
    """Up to ``count`` bytes from ``position``; fewer at the end of the file."""
    file.seek(position)
    return file.read(count)


def too_long(max_duration: float) -> str:
    """The reason given for audio over the cap."""
    return f"is longer than {max_duration:g} s, the most that is loaded at once; split it or pass a larger max_duration"

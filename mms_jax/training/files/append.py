"""Files that grow while a run goes on: lines or records, each whole or not there; and TensorBoard's event files.

Event files are written here rather than with tensorboardX: importing that imports PyTorch wherever it is installed,
with its CUDA libraries beside JAX's, and its writer's thread dies of a full disk without a word, whereupon the training
waits for it for ever.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_MAX_FLOAT32 = 3.4028234e38


class AppendedFile:
    """A file that grows by whole pieces, each handed to the operating system at once.

    Raises:
        OSError: it cannot be opened, written or closed; ``filename`` is its path. A piece that fails leaves nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)  # nothing is left to be written, and to fail, when it is closed

    def __enter__(self) -> AppendedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Append one piece."""
        with _naming(self._path):
            size = os.fstat(self._file.fileno()).st_size
            try:
                while data:
                    data = data[os.write(self._file.fileno(), data) :]
            except OSError:  # the disk is full
                with suppress(OSError):
                    self._file.truncate(size)  # not half a line, to which the next one would be glued
                raise

    def close(self) -> None:
        """Close it; a second call does nothing."""
        with _naming(self._path):
            self._file.close()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # those of an open file name none
        raise OSError(error.errno, error.strerror, str(path)) from error


class EventFile:
    """An event file of TensorBoard's: TFRecords of ``Event`` messages (tensorflow's event.proto and summary.proto)."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Start a new file in ``folder``; what earlier ones there say of ``first_step`` and beyond is hidden by it."""
        folder.mkdir(parents=True, exist_ok=True)
        # By time and step, the order in which TensorBoard reads them; and never the name of an earlier file.
        when = f"{int(time.time()):010}.{socket.gethostname()}.{first_step:09}.{secrets.token_hex(4)}"
        self._file = AppendedFile(folder / f"events.out.tfevents.{when}")
        start = _bytes_field(7, _varint(1 << 3, 1))  # session_log { status: START }
        try:
            self._file.write(_event(first_step, _bytes_field(3, b"brain.Event:2")) + _event(first_step, start))
        except OSError:
            self._file.close()
            raise

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add one event with all values by tag; what is None is left out. Raises OSError, naming the file."""
        scalars = [_scalar(tag, value) for tag, value in values.items() if value is not None]
        if scalars:
            self._file.write(_event(step, _bytes_field(5, b"".join(scalars))))


def _scalar(tag: str, value: float) -> bytes:
    """Summary { value { tag, simple_value } }."""
    within = max(-_MAX_FLOAT32, min(value, _MAX_FLOAT32))
    name = _bytes_field(1, tag.encode("utf-8", "replace"))
    return _bytes_field(1, name + _varint(2 << 3 | 5) + struct.pack("<f", within))


def _event(step: int, content: bytes) -> bytes:
    """The record of Event { wall_time, step, … }: length, its checksum, the message, its checksum."""
    message = _varint(1 << 3 | 1) + struct.pack("<d", time.time()) + _varint(2 << 3, step) + content
    length = struct.pack("<Q", len(message))
    return length + struct.pack("<I", _masked_crc(length)) + message + struct.pack("<I", _masked_crc(message))


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2, len(content)) + content


def _varint(*values: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    encoded = bytearray()
    for value in values:
        while value > 0x7F:
            encoded.append(value & 0x7F | 0x80)
            value >>= 7
        encoded.append(value)
    return bytes(encoded)


def _masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli, as in RFC 3720), rotated and shifted as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_CRC_TABLE = tuple(_crc_of_byte(byte) for byte in range(256))

"""WAV: RIFF, its big-endian RIFX, and its 64-bit RF64 (EBU Tech 3306)."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mms_jax.containers.view import CONVERT, TRUNCATED, View, read_at
from mms_jax.errors import AudioError

MAX_CHUNKS = 10_000  # real files have under 100; bounds the time that a crafted file can take
MAX_HEADER_CHUNK = 1024  # bytes: the longest "fmt " chunk in use (ADPCM with its coefficient table) has 50
UNKNOWN_SIZE = 0x7FFF_F000  # a 32-bit size from here up means "not known while streaming" (sox, ffmpeg, arecord)
MAX_RIFF_DATA = 2**32 - 4096  # bytes: what a 32-bit header can say; above, the decoder is handed an RF64 header
CODECS = {
    1: "PCM",
    2: "MS ADPCM",
    3: "float",
    6: "A-law",
    7: "mu-law",
    0x11: "IMA ADPCM",
    0x31: "GSM",
    0xFFFE: "extended",
}
TRAILING_SLACK = 65_536  # bytes after the samples that are put down to padding or tags, not to audio


class Chunk(NamedTuple):
    """A RIFF chunk: its four-letter name, where its content starts, and its declared size, both in bytes."""

    name: bytes
    start: int
    size: int


def _riff_chunks(file: BinaryIO, position: int, order: str) -> Iterator[Chunk]:
    for _ in range(MAX_CHUNKS):
        header = read_at(file, position, 8)
        if len(header) < 8:
            return
        chunk = Chunk(header[:4], position + 8, struct.unpack(order + "I", header[4:])[0])
        yield chunk
        position = _end_of(file, chunk)
    raise AudioError(f"has more than {MAX_CHUNKS} RIFF chunks; {CONVERT}")


def _end_of(file: BinaryIO, chunk: Chunk) -> int:
    """Where the next chunk begins: after a padding byte if the size is odd, which some programs leave out."""
    end = chunk.start + chunk.size
    return end + 1 if chunk.size & 1 and not read_at(file, end, 1).isalpha() else end


def open_wav(file: BinaryIO, start: int, size: int) -> View:
    """A WAV file as a minimal one: the header, the format and the samples, with sizes that are true.

    A data chunk that ends after the file means a truncated file, an error. But programs that stream never learn the
    size and declare 0, or about 2^31 or 2^32 bytes: that means everything up to the end of the file.
    """
    kind, riff_size, form = struct.unpack("4s4s4s", read_at(file, start, 12).ljust(12))
    order = ">" if kind == b"RIFX" else "<"
    if form != b"WAVE":
        raise AudioError(f"is a RIFF file of type {form!r}, not WAVE; {CONVERT}")
    headers: dict[bytes, bytes] = {}
    for chunk in _riff_chunks(file, start + 12, order):
        if chunk.name == b"data":
            break
        if chunk.start + chunk.size > size:
            raise AudioError(f"has a chunk {chunk.name!r} of {chunk.size} bytes at byte {chunk.start}, past its end")
        if chunk.name in headers:
            raise AudioError(f"has two {chunk.name!r} chunks before its data; {CONVERT}")
        if chunk.name in (b"fmt ", b"ds64"):
            headers[chunk.name] = read_at(file, chunk.start, min(chunk.size, MAX_HEADER_CHUNK))
    else:
        raise AudioError(f"has no 'data' chunk, so no audio; {TRUNCATED}")
    codec = int.from_bytes(headers.get(b"fmt ", b"")[:2], "big" if order == ">" else "little")
    if codec not in CODECS:
        raise AudioError(f"has no 'fmt ' chunk before its data, or one of unknown codec ({codec:#x}); {CONVERT}")
    riff_end = start + 8 + struct.unpack(order + "I", riff_size)[0]
    num_bytes = _data_size(chunk, headers.get(b"ds64"), riff_end, size)
    _check_after_data(file, _end_of(file, chunk._replace(size=num_bytes)), size, order)
    if num_bytes > MAX_RIFF_DATA and kind == b"RIFX":
        raise AudioError(f"holds {num_bytes} bytes of big-endian samples, over the {MAX_RIFF_DATA} possible; split it")
    prefix = _wav_header(headers[b"fmt "], num_bytes, order)
    return View(file, start=chunk.start, stop=chunk.start + num_bytes, prefix=prefix)


def _data_size(data: Chunk, ds64: bytes | None, riff_end: int, size: int) -> int:
    """The true number of bytes of samples."""
    declared, available = data.size, size - data.start
    if ds64 is not None and len(ds64) >= 16 and declared == 0xFFFF_FFFF:
        declared = struct.unpack("<Q", ds64[8:16])[0]
        unknown = declared == 0 or declared >= 2**63
    else:
        never_filled_in = declared == 0 and riff_end <= data.start
        unknown = never_filled_in or declared == 0xFFFF_FFFF or available < declared >= UNKNOWN_SIZE
    if unknown:
        return available
    if declared > available:
        raise AudioError(f"declares {declared} bytes of samples and has {available}; {TRUNCATED}")
    return declared


def _check_after_data(file: BinaryIO, position: int, size: int, order: str) -> None:
    """Refuse audio after the declared end: a second file, or a header that understates (sizes wrap at 4 GiB)."""
    for chunk in _riff_chunks(file, position, order):
        if chunk.name in (b"RIFF", b"RIFX", b"RF64"):
            raise AudioError(f"holds two WAV files, the second at byte {chunk.start - 8}; split it")
        left = size - chunk.start
        if not chunk.name.isascii() or not chunk.name.decode("ascii").isprintable():
            if left > TRAILING_SLACK:
                raise AudioError(f"goes on for {left} bytes after the samples that its header declares; {CONVERT}")
            return


def _wav_header(fmt: bytes, num_bytes: int, order: str) -> bytes:
    def chunk(name: bytes, size: int) -> bytes:
        return name + struct.pack(order + "I", size)

    fmt = chunk(b"fmt ", len(fmt)) + fmt + bytes(len(fmt) & 1)
    if num_bytes > MAX_RIFF_DATA:
        size = 4 + 8 + 28 + len(fmt) + 8 + num_bytes
        ds64 = chunk(b"ds64", 28) + struct.pack("<QQQI", size, num_bytes, 0, 0)
        return chunk(b"RF64", 2**32 - 1) + b"WAVE" + ds64 + fmt + chunk(b"data", 2**32 - 1)
    body = b"WAVE" + fmt + chunk(b"data", num_bytes)
    return chunk(b"RIFX" if order == ">" else b"RIFF", len(body) + num_bytes) + body

"""FLAC (RFC 9639) and Ogg (RFC 3533)."""

import struct
import zlib
from typing import BinaryIO

from mms_jax.containers.view import CONVERT, TRUNCATED, View, read_at
from mms_jax.errors import AudioError

MAX_BLOCKS = 10_000  # FLAC metadata blocks: real files have under 10; bounds the time that a crafted file can take
MAX_PAGES = 1_000_000  # Ogg pages: 5.5 h of 20 ms pages, over 24 h of the usual 4 KiB pages; likewise


def open_flac(file: BinaryIO, start: int, size: int) -> View:
    """A FLAC file with STREAMINFO as its only metadata; the frames carry checksums that the decoder verifies."""
    position, stream_info = start + 4, b""
    for _ in range(MAX_BLOCKS):
        header = read_at(file, position, 4)
        length = int.from_bytes(header[1:])
        if len(header) < 4 or position + 4 + length > size:
            raise AudioError(f"ends within its FLAC metadata; {TRUNCATED}")
        if header[0] & 0x7F == 0:
            stream_info = read_at(file, position + 4, length)
        position += 4 + length
        if header[0] & 0x80:
            break
    else:
        raise AudioError(f"has more than {MAX_BLOCKS} FLAC metadata blocks; {CONVERT}")
    if len(stream_info) != 34:
        raise AudioError(f"has no valid FLAC STREAMINFO block; {CONVERT}")
    return View(file, start=position, stop=size, prefix=b"fLaC\x80\x00\x00\x22" + stream_info)


REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """Ogg's CRC-32 of a page whose own checksum field is zero: zlib's polynomial, bits reversed, nothing inverted."""
    reflected = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reflected:032b}"[::-1], 2)


def open_ogg(file: BinaryIO, start: int, size: int) -> View:
    """An Ogg file as it is, once every page is found whole, in order and of one stream, and the last one so marked."""
    position, previous, ended = start, None, False
    for _ in range(MAX_PAGES):
        if position == size:
            break
        header = read_at(file, position, 27)
        page = header + read_at(file, position + 27, header[26]) if len(header) == 27 else header
        if page[:4] != b"OggS"[: len(page)]:
            raise AudioError(f"is damaged at byte {position}: no Ogg page begins there; {CONVERT}")
        end = position + len(page) + sum(page[27:])
        if len(page) < 27 or len(page) < 27 + page[26] or end > size:
            raise AudioError(f"ends within an Ogg page; {TRUNCATED}")
        page += read_at(file, position + len(page), end - position - len(page))
        flags, serial, number, checksum = struct.unpack("<B8xIII", page[5:26])
        if ogg_checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise AudioError(f"is damaged: the checksum of the Ogg page at byte {position} is wrong; copy it again")
        if previous is not None and (serial != previous[0] or ended):
            raise AudioError(f"holds several Ogg streams, the second at byte {position}; only one is read: split it")
        if previous is not None and number != previous[1] + 1:
            raise AudioError(f"lacks Ogg pages before byte {position}: {previous[1]} is followed by {number}")
        position, previous, ended = end, (serial, number), bool(flags & 4)
    else:
        raise AudioError(f"has more than {MAX_PAGES} Ogg pages; split it")
    if not ended:
        raise AudioError(f"has no last Ogg page: {TRUNCATED}, or keep what there is: ffmpeg -i IN -c copy OUT.ogg")
    return View(file, start=start, stop=size)

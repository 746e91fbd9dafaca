"""MP3: layer III frames of MPEG 1, 2 and 2.5 (ISO 11172-3, 13818-3) and the Xing header in the first of them."""

import struct
from typing import BinaryIO, NamedTuple

from mms_jax.containers.view import CONVERT, TRUNCATED, View, read_at, too_long
from mms_jax.errors import AudioError

KBITS = {  # kbit/s by MPEG version; index 0 means "free format", of unknown frame size
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG1_RATES = (44_100, 48_000, 32_000)
MP3_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3", b"3DI")
MAX_PADDING = 2 * 4095  # samples before and after the sound, as far as a header can declare them
MAX_TAIL = 16 * 2**20  # bytes: the largest tag, with pictures, that is looked for after the audio


class Mp3Frame(NamedTuple):
    """One MP3 frame's header: bytes and samples in the frame, Hz, where a Xing header would stand in it, in bytes."""

    size: int
    samples: int
    sampling_rate: int
    xing_offset: int


def mp3_frame(header: bytes) -> Mp3Frame | None:
    """The frame that these four bytes begin, or None where they begin none (or none of fixed size in layer III)."""
    word = int.from_bytes(header)
    version, layer, kbits, rate = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
    if len(header) < 4 or word >> 21 != 0x7FF or version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
        return None
    mono, mpeg1 = word >> 6 & 3 == 3, version == 3
    sampling_rate = MPEG1_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = (144_000 if mpeg1 else 72_000) * KBITS[1 if mpeg1 else 2][kbits]
    side_info = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return Mp3Frame(bits // sampling_rate + (word >> 9 & 1), 1152 if mpeg1 else 576, sampling_rate, 4 + side_info)


def open_mp3(file: BinaryIO, start: int, size: int, first: Mp3Frame, max_duration: float) -> View:
    """An MP3's frames, counted, behind a header frame that declares that number.

    Without such a header the decoder guesses the number from the bit rate of the ``first`` frame, and stops there: it
    returned 29 % of a VBR file and reported success. A file's own header is kept where it is right: it also says how
    much encoder padding to trim.
    """
    head = read_at(file, start, first.size)
    declared = _xing_count(head, first)
    audio = start if declared is None else start + first.size
    count, stop = _count_mp3_frames(file, audio, size, first, max_duration)
    if declared is not None and declared > count:
        raise AudioError(f"declares {declared} MP3 frames and has {count}; {TRUNCATED}")
    if declared == count:
        return View(file, start=start, stop=stop)
    return View(file, start=audio, stop=stop, prefix=_xing_frame(head[:4], count))


def _count_mp3_frames(file: BinaryIO, start: int, size: int, first: Mp3Frame, max_duration: float) -> tuple[int, int]:
    """How many frames follow one another from ``start``, and where the last one ends."""
    position, count = start, 0
    while position < size:
        frame = mp3_frame(read_at(file, position, 4))
        if frame is None:
            tail = read_at(file, position, MAX_TAIL)
            if tail.startswith(MP3_TAGS) or not tail.strip(b"\0"):
                break
            raise AudioError(f"is damaged at byte {position}: no MP3 frame begins there; {CONVERT}")
        if frame._replace(size=0) != first._replace(size=0):
            raise AudioError(f"changes its sampling rate or channels at byte {position}; split it there")
        if position + frame.size > size:
            raise AudioError(f"ends within an MP3 frame; {TRUNCATED}")
        position, count = position + frame.size, count + 1
        if count * first.samples - MAX_PADDING > max_duration * first.sampling_rate:
            raise AudioError(too_long(max_duration))
    return count, position


def _xing_count(frame: bytes, first: Mp3Frame) -> int | None:
    """The number of frames a header frame declares, 0 where it declares none, None where this is not a header frame."""
    if frame[36:40] == b"VBRI":  # Fraunhofer's header, which the decoder would play as a frame of silence
        return 0
    for offset in (first.xing_offset, first.xing_offset + 2):  # 2 more where the frame has a checksum
        tag, flags, count = struct.unpack("4s4s4s", frame[offset : offset + 12].ljust(12, b"\0"))
        if tag in (b"Xing", b"Info"):
            return int.from_bytes(count) if flags[3] & 1 else 0
    return None


def _xing_frame(header: bytes, count: int) -> bytes:
    """A silent frame of the same kind, at 128 or 80 kbit/s to have room for the fields, declaring ``count`` frames."""
    header = bytes((header[0], header[1] | 1, 0x90 | header[2] & 0x0C, header[3]))
    frame = mp3_frame(header)
    assert frame is not None, "the first frame's header, at another bit rate"
    fields = b"Xing" + (1).to_bytes(4) + count.to_bytes(4)
    return (header.ljust(frame.xing_offset, b"\0") + fields).ljust(frame.size, b"\0")

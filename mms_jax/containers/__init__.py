"""Audio containers, walked here before a C decoder sees them, so that damage is an error and not a shorter recording.

Decoders are built to play on: given a truncated Ogg file, a VBR MP3 without a length header, or two files joined end to
end, libsndfile 1.2.2 returns part of the audio and reports success; given some 144-byte WAV files it never returns
(libsndfile issue 1118). Here each container is walked by its own rules, checksums included where it has them, and only
the parts that carry audio are handed on: tags, pictures and metadata chunks never reach C code.

Every function raises ``AudioError`` with the reason alone; ``load_audio`` puts the file's name in front.
"""

import io
from typing import BinaryIO

from mms_jax.containers.mp3 import mp3_frame, open_mp3
from mms_jax.containers.view import CONVERT, TRUNCATED, View, read_at
from mms_jax.containers.wav import open_wav
from mms_jax.containers.xiph import open_flac, open_ogg
from mms_jax.errors import AudioError

MAX_ID3_TAGS = 16
FOREIGN = (  # (offset, bytes, what it is): names for what users really pass
    (4, b"ftyp", "an MP4/M4A file"),
    (0, b"\x1a\x45\xdf\xa3", "a WebM/Matroska file"),
    (0, b"\x30\x26\xb2\x75", "a WMA/ASF file"),
    (0, b"FORM", "an AIFF file"),
    (0, b".snd", "an AU file"),
    (0, b"caff", "a CAF file"),
    (0, b"riff", "a Wave64 file"),
    (0, b"NIST_1A", "a NIST SPHERE file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"version https:", "a Git LFS pointer (fetch the file itself with: git lfs pull)"),
    (0, b"<", "an HTML or XML page, such as a failed download"),
)


def open_container(file: BinaryIO, *, max_duration: float) -> View:
    """Recognise and check a WAV, FLAC, Ogg or MP3 file and return what to decode of it.

    ``file`` is seekable and starts with the container; ``max_duration`` in seconds bounds the walk through an MP3.
    Raises ``AudioError`` (the reason alone) for everything else, damage and truncation included.
    """
    size = file.seek(0, io.SEEK_END)
    if size == 0:
        raise AudioError("is empty (0 bytes)")
    start = _skip_id3(file, size)
    head = read_at(file, start, 16)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return open_wav(file, start, size)
    if head[:4] == b"fLaC":
        return open_flac(file, start, size)
    if head[:4] == b"OggS":
        return open_ogg(file, start, size)
    if (frame := mp3_frame(head[:4])) is not None:
        return open_mp3(file, start, size, frame, max_duration)
    raise AudioError(f"is {_foreign_name(head)}; WAV, FLAC, Ogg (Vorbis, Opus) and MP3 are read: {CONVERT}")


def _foreign_name(head: bytes) -> str:
    for offset, magic, name in FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            return name
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "an AAC (ADTS) file"
    return "not audio in a known format"


def _skip_id3(file: BinaryIO, size: int) -> int:
    """Where the audio starts: after any ID3v2 tags, which may stand before MP3 and FLAC."""
    position = 0
    for _ in range(MAX_ID3_TAGS):
        head = read_at(file, position, 10)
        if len(head) < 10 or head[:3] != b"ID3":
            return position
        footer = 10 if head[5] & 0x10 else 0
        content = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        position += 10 + content + footer
        if position >= size:
            raise AudioError(f"holds an ID3 tag and nothing after it; {TRUNCATED}")
    raise AudioError(f"starts with more than {MAX_ID3_TAGS} ID3 tags; {CONVERT}")

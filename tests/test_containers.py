"""Files nobody vouches for: what is whole decodes whole, and everything else is an error, soon and without a crash."""

import io
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import RATE, encode, noise, tone

from mms_jax.audio import load_audio
from mms_jax.containers import open_container
from mms_jax.containers.view import View
from mms_jax.containers.xiph import ogg_checksum
from mms_jax.errors import AudioError

MUTANTS = 400  # enough to reach every branch; 60,000 were run once, without a crash, a hang or an untyped error
HANG_LIMIT = 60  # seconds: importing takes some; a hang takes for ever

SOUND = tone(0.5) + noise(RATE // 2)
FILES = {
    "WAV": encode(SOUND),
    "WAVEX 24": encode(SOUND, container="WAVEX", codec="PCM_24"),
    "RF64": encode(SOUND, container="RF64"),
    "RIFX": encode(SOUND, endian="BIG"),
    "float": encode(SOUND, codec="FLOAT"),
    "mu-law": encode(SOUND, codec="ULAW"),
    "ADPCM": encode(SOUND, codec="IMA_ADPCM"),
    "FLAC": encode(SOUND, container="FLAC"),
    "Vorbis": encode(SOUND, container="OGG", codec="VORBIS"),
    "Opus": encode(SOUND, container="OGG", codec="OPUS"),
    "MP3": encode(SOUND, container="MP3"),
    "MP3 44.1 kHz": encode(np.stack([SOUND, SOUND], axis=1), rate=44_100, container="MP3"),
}


def chunk(name: bytes, content: bytes, *, size: int | None = None) -> bytes:
    """A RIFF chunk; ``size`` is what it declares, by default the truth."""
    return name + struct.pack("<I", len(content) if size is None else size) + content


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    return chunk(b"RIFF", b"WAVE" + b"".join(chunks), size=size)


FMT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
PCM = (np.arange(1, 501, dtype=np.int16) * 60).tobytes()
SAMPLES = np.frombuffer(PCM, np.int16).astype(np.float32) / 2**15


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
def test_the_beginning_of_a_file_is_never_taken_for_the_file(kind, data):
    cut = data.draw(st.integers(0, len(FILES[kind]) - 1))
    with pytest.raises(AudioError):
        load_audio(FILES[kind][:cut])


@pytest.mark.parametrize("kind", FILES)
def test_two_files_joined_are_never_taken_for_the_first(kind):
    try:
        loaded = load_audio(FILES[kind] * 2)
    except AudioError:
        return
    assert len(loaded) >= 2 * len(load_audio(FILES[kind]))


@pytest.fixture(scope="module", params=["VORBIS", "OPUS"])
def ogg_pages(request) -> list[bytes]:
    """The pages of an Ogg file long enough for the loss of one to leave a valid file behind."""
    file = encode(noise(20 * RATE), container="OGG", codec=request.param)
    pages = [b"OggS" + page for page in file.split(b"OggS")[1:]]
    assert len(pages) > 10
    return pages


def test_no_damage_to_an_ogg_file_goes_unnoticed(ogg_pages):
    file = b"".join(ogg_pages)
    for place in np.random.default_rng(0).integers(len(file), size=50):
        damaged = file[:place] + bytes([file[place] ^ 0x10]) + file[place + 1 :]
        with pytest.raises(AudioError, match=r"damaged|truncated"):
            load_audio(damaged)


def test_a_lost_ogg_page_is_noticed(ogg_pages):
    for lost in range(1, len(ogg_pages) - 1):
        with pytest.raises(AudioError, match="lacks Ogg pages"):
            load_audio(b"".join(ogg_pages[:lost] + ogg_pages[lost + 1 :]))
    with pytest.raises(AudioError, match="no last Ogg page"):
        load_audio(b"".join(ogg_pages[:-1]))


def test_ogg_streams_one_after_another_are_not_taken_for_the_first(ogg_pages):
    with pytest.raises(AudioError, match="several Ogg streams"):
        load_audio(b"".join(ogg_pages * 2))


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "size", "cut", "insert", "repeat"]),
        st.one_of(st.integers(0, 120), st.integers(0, 40_000)),
        st.sampled_from([0, 1, 4, 0x7F, 0xFF, 0x7FFF_FFFF, 0xFFFF_FFF4, 0xFFFF_FFFF]),
    ),
    min_size=1,
    max_size=8,
)


def edit(file: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    mutant = bytearray(file)
    for kind, anywhere, value in edits:
        at = anywhere % (len(mutant) + 1)
        match kind:
            case "set":
                mutant[at : at + 1] = bytes([value & 0xFF])
            case "flip":
                mutant[at : at + 1] = bytes(byte ^ (1 << (value & 7)) for byte in mutant[at : at + 1])
            case "size":
                mutant[at : at + 4] = struct.pack("<I", value)
            case "cut":
                del mutant[at : at + (value & 0xFF)]
            case "insert":
                mutant[at:at] = bytes([value & 0xFF]) * 9
            case "repeat":
                mutant[at:at] = mutant[at : at + (value & 0xFF)]
    return bytes(mutant)


def with_checksums(file: bytes) -> bytes:
    """An Ogg file with the checksums its pages now have, as someone who crafts a file would set them."""
    pages, position = bytearray(file), 0
    while pages[position : position + 4] == b"OggS" and position + 27 <= len(pages):
        segments = pages[position + 27 : position + 27 + pages[position + 26]]
        end = position + 27 + len(segments) + sum(segments)
        pages[position + 22 : position + 26] = bytes(4)
        checksum = ogg_checksum(bytes(pages[position:end]))
        pages[position + 22 : position + 26] = checksum.to_bytes(4, "little")
        position = end
    return bytes(pages)


@settings(max_examples=MUTANTS)
@given(kind=st.sampled_from(sorted(FILES)), edits=EDITS)
def test_a_mutated_file_is_finite_audio_or_an_audio_error(kind, edits):
    mutant = edit(FILES[kind], edits)
    try:
        loaded = load_audio(with_checksums(mutant) if kind in ("Vorbis", "Opus") else mutant)
    except AudioError:
        return
    assert loaded.dtype == np.float32
    assert loaded.ndim == 1
    assert np.isfinite(loaded).all()


@given(
    steps=st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(-30, 30), st.integers(0, 12))),
    prefix=st.binary(max_size=5),
)
def test_a_view_is_a_file_of_its_prefix_and_its_part(steps, prefix):
    part = View(io.BytesIO(bytes(range(20))), start=3, stop=13, prefix=prefix)
    whole, position = prefix + bytes(range(3, 13)), 0
    for whence, offset, count in steps:
        base = (0, position, len(whole))[whence]
        position = min(max(base + offset, 0), len(whole))  # a seek outside stops at the edge
        assert part.seek(offset, whence) == part.tell() == position
        assert part.read(count) == whole[position : position + count]
        position = min(position + count, len(whole))


def test_the_wav_that_hangs_libsndfile_is_read():
    info = chunk(b"LIST", b"INFO" + chunk(b"ABCD", bytes(40), size=0xFFFF_FFF8))
    script = "import sys; from mms_jax.audio import load_audio; print(len(load_audio(sys.stdin.buffer)))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        input=riff(FMT, info, chunk(b"data", PCM)),
        capture_output=True,
        timeout=HANG_LIMIT,
        check=True,
    )
    assert int(run.stdout) == len(SAMPLES)


@pytest.mark.parametrize(
    "file",
    [
        riff(FMT, chunk(b"data", PCM, size=0xFFFF_FFFF), size=0xFFFF_FFFF),  # ffmpeg to a pipe
        riff(FMT, chunk(b"data", PCM, size=0x7FFF_F000), size=0x7FFF_F024),  # sox to a pipe
        riff(FMT, chunk(b"data", PCM, size=0x8000_0000), size=0x8000_0024),  # arecord to a pipe
        riff(FMT, chunk(b"data", PCM, size=0), size=36),  # Python's wave to a pipe, or a recorder that lost power
        riff(FMT, chunk(b"data", PCM, size=0), size=0),
    ],
)
def test_a_wav_that_was_streamed_is_read_to_its_end(file):
    np.testing.assert_array_equal(load_audio(file), SAMPLES)


@pytest.mark.parametrize(
    "file",
    [
        riff(chunk(b"LIST", b"INFO"), FMT, chunk(b"JUNK", bytes(28)), chunk(b"data", PCM)),
        riff(FMT, chunk(b"odd ", b"abc") + b"\0", chunk(b"data", PCM)),
        riff(FMT, chunk(b"odd ", b"abc"), chunk(b"data", PCM)),  # without the padding byte
        riff(FMT, chunk(b"data", PCM), chunk(b"LIST", b"INFO")),
        riff(FMT, chunk(b"data", PCM), chunk(b"LIST", b"INFO", size=99)),  # the end of a tag is missing, not of audio
        riff(FMT, chunk(b"data", PCM)) + bytes(2048),  # padded to a block
        riff(FMT, chunk(b"data", PCM)) + b"TAG" + bytes(125),
        b"ID3\x04\0\0\0\0\0\x05hello" + riff(FMT, chunk(b"data", PCM)),
    ],
)
def test_what_stands_around_the_samples_does_not_matter(file):
    np.testing.assert_array_equal(load_audio(file), SAMPLES)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"RIFF", "not WAVE"),
        (chunk(b"RIFF", b"AVI "), "type b'AVI '"),
        (riff(FMT), "no 'data' chunk"),
        (riff(chunk(b"data", PCM), FMT), "no 'fmt ' chunk"),
        (riff(FMT, FMT, chunk(b"data", PCM)), "two b'fmt ' chunks"),
        (riff(chunk(b"fmt ", b"\x55\0" + bytes(14)), chunk(b"data", PCM)), "unknown codec .0x55."),
        (riff(chunk(b"LIST", b"INFO", size=9999), FMT, chunk(b"data", PCM)), "b'LIST' of 9999 bytes"),
        (riff(FMT, chunk(b"data", PCM, size=len(PCM) + 2)), "declares 1002 bytes of samples and has 1000; .*truncated"),
        (riff(FMT, chunk(b"data", b""), chunk(b"LIST", b"INFO")), "zero samples"),
        (riff(FMT, *[chunk(b"JUNK", b"")] * 10_001, chunk(b"data", PCM)), "more than 10000 RIFF chunks"),
        (riff(FMT, chunk(b"data", PCM)) + bytes(100_000), "goes on for 99992 bytes"),
        (encode(np.zeros(0)), "zero samples"),
        (b"fLaC\x80" + FILES["FLAC"][5:21] + bytes(21), "zero samples|cannot be decoded"),
        (FILES["FLAC"][:42], "ends within its FLAC metadata"),
        (b"fLaC" + bytes(4) * 10_001, "more than 10000 FLAC metadata blocks"),
        (b"fLaC\x81\0\0\0", "no valid FLAC STREAMINFO"),
        (FILES["Vorbis"] + b"more", "no Ogg page begins there"),
        (FILES["MP3"] + b"more" * 50, "no MP3 frame begins there"),
        (FILES["MP3"] + FILES["MP3 44.1 kHz"], "changes its sampling rate or channels"),
        (b"ID3\x04\0\0\0\0\0\0" * 17 + FILES["MP3"], "more than 16 ID3 tags"),
        (b"ID3\x04\0\0\0\0\x7f\x7f" + FILES["MP3"][:100], "ID3 tag and nothing after it"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason(file, reason):
    with pytest.raises(AudioError, match=reason):
        load_audio(file)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x20ftypM4A ", "MP4/M4A"),
        (b"\x1a\x45\xdf\xa3", "WebM/Matroska"),
        (b"FORM\0\0\0\0AIFF", "AIFF"),
        (b"#!AMR\n", "AMR"),
        (b"\xff\xf1\x50\x80", "AAC"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"hello, I am text", "not audio in a known format"),
        (bytes(16), "not audio in a known format"),
    ],
)
def test_another_kind_of_file_is_named_with_the_remedy(head, name):
    with pytest.raises(AudioError, match=name) as raised:
        load_audio(head + bytes(100))
    assert "ffmpeg -i" in str(raised.value)


def flac_with_length(num_samples: int) -> bytes:
    """A FLAC file that declares this many samples (36 bits), 0 for unknown."""
    file = bytearray(FILES["FLAC"])
    file[21] = file[21] & 0xF0 | num_samples >> 32
    file[22:26] = (num_samples & 0xFFFF_FFFF).to_bytes(4)
    return bytes(file)


def test_a_flac_stream_of_unknown_length_is_read_to_its_end():
    np.testing.assert_array_equal(load_audio(flac_with_length(0)), load_audio(FILES["FLAC"]))
    with pytest.raises(AudioError, match="longer than 0"):
        load_audio(flac_with_length(0), max_duration=0.4)


def test_a_declared_length_is_neither_believed_nor_allocated():
    with pytest.raises(AudioError, match="longer than 1800 s"):
        load_audio(flac_with_length(2**36 - 1))  # 256 GB of float32
    with pytest.raises(AudioError, match="68719476735 samples, of which 8000 can be decoded"):
        load_audio(flac_with_length(2**36 - 1), max_duration=math.inf)


@pytest.mark.parametrize("size_in_ds64", [len(PCM), 0, 2**64 - 1])
def test_an_rf64_file_is_read_by_its_64_bit_size(size_in_ds64):
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, size_in_ds64, 0, 0))
    file = riff(ds64, FMT, chunk(b"data", PCM, size=0xFFFF_FFFF), size=0xFFFF_FFFF)
    np.testing.assert_array_equal(load_audio(b"RF64" + file[4:]), SAMPLES)


def test_a_truncated_rf64_file_is_not_taken_for_a_stream():
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, 2**33, 0, 0))
    file = riff(ds64, FMT, chunk(b"data", PCM, size=0xFFFF_FFFF), size=0xFFFF_FFFF)
    with pytest.raises(AudioError, match="declares 8589934592 bytes"):
        load_audio(b"RF64" + file[4:])


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_vbr_mp3_without_a_length_header_is_read_whole(rate, channels):
    loud_then_silent = np.concatenate([noise(rate), np.zeros(4 * rate, np.float32)])  # misleads by its first frame
    samples = np.stack([loud_then_silent] * channels, axis=1)
    file = encode(samples, rate=rate, container="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    bare = file[file.index(file[:2], 4) :]  # without the Xing frame
    assert b"Xing" not in bare
    assert len(soundfile.read(io.BytesIO(bare))[0]) < len(samples), "libsndfile got better: is the header still needed?"
    assert len(load_audio((samples, rate))) <= len(load_audio(bare))


def test_a_header_of_our_own_changes_no_sample_of_an_mp3():
    file = FILES["MP3"]
    bare = file[file.index(file[:2], 4) :]
    rebuilt, trimmed = load_audio(bare), load_audio(file)
    delay = int.from_bytes(file[file.index(b"LAME") + 21 :][:3]) >> 12  # what the encoder says it put in front
    np.testing.assert_array_equal(rebuilt[delay : delay + len(trimmed)], trimmed)


def test_tags_around_an_mp3_do_not_matter():
    tagged = b"ID3\x04\0\0\0\0\0\x05hello" + FILES["MP3"] + b"TAG" + bytes(125)
    np.testing.assert_array_equal(load_audio(tagged), load_audio(FILES["MP3"]))


def test_only_what_carries_audio_reaches_the_decoder():
    def handed_on(file: bytes) -> bytes:
        return open_container(io.BytesIO(file), max_duration=math.inf).read()

    picture = b"\x06" + (50).to_bytes(3) + bytes(50)  # a metadata block
    flac, mp3 = FILES["FLAC"], FILES["MP3"]
    tagged = b"ID3\x04\0\0\0\0\0\x05hello" + flac[:42] + picture + flac[42:]
    assert handed_on(tagged) == handed_on(flac)
    assert handed_on(flac).startswith(b"fLaC\x80" + flac[5:42])
    assert handed_on(mp3 + b"APETAGEX" + bytes(99)) == mp3
    info = chunk(b"LIST", b"INFO")
    assert handed_on(riff(info, FMT, info, chunk(b"data", PCM), info)) == riff(FMT, chunk(b"data", PCM))

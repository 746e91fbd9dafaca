"""Audio of any length, a block at a time: the samples and errors of audio in one piece, in little memory."""

import io
import math
import os
import struct
import threading
import tracemalloc
from typing import BinaryIO, cast
from unittest import mock

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import RATE, encode, noise

import mms_jax.audio
from mms_jax.audio import BLOCK_VALUES, load_audio, stream_audio
from mms_jax.containers import open_container
from mms_jax.errors import AudioError

SMALL = 4096  # values in a block, where a test wants many blocks of little audio
MINUTE = 60 * RATE  # samples
MEMORY = 512 * 1024  # bytes for a minute of audio, which has 1.9 MB as 16 bits: measured 150 kB at SMALL
BURST = 2  # times BLOCK_VALUES: soxr's HQ filters give out up to 1,000 input samples at once after giving none

CODECS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")]
CODECS += [("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
RATES = [8000, 16_000, 44_100, 48_000]


def blocks_of(values: int):
    """Decode this many values at a time."""
    return mock.patch.object(mms_jax.audio, "BLOCK_VALUES", values)


def join(blocks) -> np.ndarray:
    """The samples of blocks, each of which must be as promised."""
    blocks = list(blocks)
    assert all(block.dtype == np.float32 and block.ndim == 1 and len(block) > 0 for block in blocks)
    return np.concatenate([np.zeros(0, np.float32), *blocks])


def sound(num_samples: int, num_channels: int) -> np.ndarray:
    return np.stack([noise(num_samples, seed=seed) for seed in range(num_channels)], axis=1)


class Stingy(io.BytesIO):
    """A file object that gives less than is asked for, as sockets and raw files may."""

    def read(self, size: int | None = -1):
        return super().read(1000 if size is None else min(size, 1000))


class Pipe(io.BytesIO):
    """A file object that cannot seek."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")

    tell = seek


@settings(max_examples=150)
@given(
    num_samples=st.integers(1, 5000),
    num_channels=st.integers(1, 3),
    rate=st.sampled_from(RATES),
    codec=st.sampled_from(CODECS),
    values=st.integers(1, 3000),
    opened=st.sampled_from([bytes, io.BytesIO, Stingy, Pipe]),
)
def test_the_blocks_of_a_file_are_its_samples(num_samples, num_channels, rate, codec, values, opened):
    num_channels = 1 if codec[1] == "IMA_ADPCM" else min(num_channels, 2) if codec[0] == "MP3" else num_channels
    rate = 48_000 if codec[1] == "OPUS" else rate
    file = encode(sound(num_samples, num_channels), rate=rate, container=codec[0], codec=codec[1])
    whole = load_audio(file)
    with blocks_of(values + 200 * (codec[1] == "OPUS")):
        np.testing.assert_array_equal(join(stream_audio(opened(file))), whole)
        np.testing.assert_array_equal(load_audio(opened(file)), whole)


@given(
    num_samples=st.integers(0, 3000),
    num_channels=st.integers(1, 16),
    rate=st.sampled_from([1000, *RATES]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int16, np.int32]),
    channels_first=st.booleans(),
    values=st.integers(1, 3000),
)
def test_the_blocks_of_an_array_are_its_samples(num_samples, num_channels, rate, dtype, channels_first, values):
    samples = sound(max(num_samples, num_channels + 1), num_channels) * (30_000 if dtype in (np.int16, np.int32) else 1)
    array = samples.astype(dtype)
    whole = load_audio((array, rate))
    with blocks_of(values):
        np.testing.assert_array_equal(join(stream_audio((array.T.copy() if channels_first else array, rate))), whole)


@pytest.mark.parametrize("rate", [11_025, 44_100, 48_000])
def test_resampling_in_blocks_is_resampling_in_one_piece(rate):
    samples = noise(100_000)
    with blocks_of(SMALL):
        np.testing.assert_array_equal(
            join(stream_audio((samples, rate))), soxr.resample(samples, rate, RATE, quality="HQ")
        )


@pytest.mark.parametrize(("rate", "target"), [(16_000, 16_000), (48_000, 16_000), (8000, 48_000), (1000, 1_000_000)])
@pytest.mark.parametrize("num_channels", [1, 5])
def test_a_block_is_about_a_million_values(rate, target, num_channels):
    array = np.zeros((int(3.5 * BLOCK_VALUES * min(1, rate / target)), num_channels), np.float32)
    sizes = [len(block) for block in stream_audio((array, rate), sampling_rate=target)]
    assert len(sizes) >= 3
    assert max(sizes) <= BURST * BLOCK_VALUES / num_channels ** (rate >= target)


@pytest.fixture(
    scope="module", params=[("WAV", None), ("FLAC", None), ("OGG", None), ("MP3", None)], ids=lambda p: p[0]
)
def minute(request, tmp_path_factory) -> str:
    """A file of a minute of audio."""
    path = tmp_path_factory.mktemp("minute") / "audio"
    path.write_bytes(encode(noise(MINUTE), container=request.param[0], codec=request.param[1]))
    return str(path)


def streamed_in(audio) -> tuple[int, int]:
    """The number of samples of some audio, and the most bytes it took at a time."""
    with blocks_of(SMALL):
        tracemalloc.start()
        try:
            return sum(map(len, stream_audio(audio))), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def test_a_long_file_takes_the_memory_of_a_block(minute):
    num_samples, peak = streamed_in(minute)
    assert num_samples == MINUTE
    assert peak < MEMORY


def test_a_long_file_object_takes_the_memory_of_a_block(minute):
    with open(minute, "rb", buffering=0) as opened:
        num_samples, peak = streamed_in(opened)
    assert num_samples == MINUTE
    assert peak < MEMORY


def test_a_long_integer_array_takes_the_memory_of_a_block():
    num_samples, peak = streamed_in((np.zeros(MINUTE, np.int16), 48_000))
    assert num_samples == MINUTE // 3
    assert peak < MEMORY


def test_the_duration_has_no_cap_unless_one_is_given():
    half_an_hour_and_a_bit = (np.zeros(1801 * 1000, np.float32), 1000)
    assert sum(map(len, stream_audio(half_an_hour_and_a_bit, sampling_rate=1000))) == 1801 * 1000
    with pytest.raises(AudioError, match="longer than 1800 s"):
        load_audio(half_an_hour_and_a_bit, sampling_rate=1000)
    with pytest.raises(AudioError, match=r"longer than 1800\.5 s"):
        next(stream_audio(half_an_hour_and_a_bit, sampling_rate=1000, max_duration=1800.5))


@pytest.mark.parametrize("kind", [b"RF64", b"RIFF"])  # with its size in 64 bits, and from a pipe with no size
def test_a_wav_of_more_than_4_gigabytes_is_read_to_its_end(kind, tmp_path):
    num_bytes, path = 2**32 + 2**20, tmp_path / "long.wav"
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, 48_000, 192_000, 4, 16)
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, num_bytes + 80, num_bytes, num_bytes // 4, 0) * (kind == b"RF64")
    head = kind + b"\xff" * 4 + b"WAVE" + ds64 + fmt + b"data" + b"\xff" * 4
    with path.open("wb") as file:  # sparse
        file.write(head)
        file.truncate(len(head) + num_bytes - 4)
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<hh", 8192, 8192))
    with (
        path.open("rb") as file,
        soundfile.SoundFile(cast(BinaryIO, open_container(file, max_duration=math.inf))) as decoded,
    ):
        assert decoded.frames == num_bytes // 4
        decoded.seek(-1, os.SEEK_END)
        np.testing.assert_array_equal(decoded.read(), [[0.25, 0.25]])
    blocks = stream_audio(path)
    assert not next(blocks).any()
    blocks.close()


def outcome(audio, **settings) -> tuple[np.ndarray, str | None]:
    """The samples before the error, and the error."""
    blocks = []
    try:
        for block in stream_audio(audio, **settings):
            blocks.append(block)
    except AudioError as error:
        return join(blocks), str(error)
    return join(blocks), None


def test_a_truncated_file_gives_what_comes_before_the_cut_and_then_the_error(tmp_path):
    path, samples = tmp_path / "cut.flac", noise(MINUTE)
    file = encode(samples, container="FLAC")
    path.write_bytes(file[: len(file) // 2])
    with blocks_of(SMALL):
        before, error = outcome(path)
    assert MINUTE / 3 < len(before) < MINUTE
    np.testing.assert_array_equal(before, load_audio(file)[: len(before)])
    assert error is not None
    assert error.startswith(f"{path}: ")
    with pytest.raises(AudioError) as raised:
        load_audio(path)
    assert str(raised.value) == error


def test_an_unusable_sample_is_refused_after_the_blocks_before_it_with_its_time():
    samples = noise(10 * RATE)
    samples[9 * RATE + 4] = math.nan
    with blocks_of(RATE):
        before, error = outcome(samples)
        assert len(before) == 9 * RATE
        assert (
            error == "<array of shape (160000,)>: " + "has a sample of nan at 9.000 s: export it again, within [-1, 1]"
        )
        assert outcome((samples, 48_000))[1] == "<(<array of shape (160000,)>, 48000)>: " + (
            "has a sample of nan at 3.000 s: export it again, within [-1, 1]"
        )


@pytest.mark.parametrize(
    "audio",
    [
        None,
        "missing.wav",
        b"",
        b"hello, I am text, and no audio at all",
        encode(noise(5000))[:-10],
        encode(noise(5000), container="MP3")[:-10],
        encode(noise(5000), container="OGG")[:-10],
        encode(np.zeros(0)),
        {"array": noise(10)},
        (noise(10), 16),
        noise(5000) * 1e20,
        np.zeros((3, 3)),
        noise(1000).astype(complex),
        io.StringIO("text"),
        Pipe(),
    ],
)
def test_the_error_is_the_same_in_blocks_and_in_one_piece(audio):
    with pytest.raises(AudioError) as whole:
        load_audio(audio)
    with blocks_of(64):
        before, error = outcome(audio)
    assert error == str(whole.value)
    assert len(before) == 0


def test_nothing_is_opened_before_the_first_block_is_asked_for():
    blocks = stream_audio("missing.wav")
    with pytest.raises(AudioError, match=r"missing[.]wav: no such file"):
        next(blocks)


def test_impossible_settings_are_noticed_at_once():
    with pytest.raises(ValueError, match="cannot be loaded"):
        stream_audio(np.zeros(5), sampling_rate=0)


@pytest.mark.parametrize("end", ["abandoned", "closed", "exhausted", "failed"])
def test_the_file_is_closed_however_the_stream_ends(end, tmp_path, monkeypatch):
    path, files = tmp_path / "audio.flac", []
    file = encode(noise(10_000), container="FLAC")
    path.write_bytes(file[:-2000] if end == "failed" else file)

    def recorded(*arguments):
        files.append(open(*arguments))  # noqa: SIM115 - whether it is closed is what this is about
        return files[-1]

    monkeypatch.setattr(mms_jax.audio, "open", recorded, raising=False)
    with blocks_of(SMALL):
        blocks = stream_audio(path)
        next(blocks)
        assert [file.closed for file in files] == [False]
        match end:
            case "abandoned":
                del blocks
            case "closed":
                blocks.close()
            case "exhausted":
                assert sum(map(len, blocks)) == 10_000 - SMALL
            case "failed":
                with pytest.raises(AudioError):
                    list(blocks)
    assert [file.closed for file in files] == [True]


def test_a_file_object_is_read_on_demand_from_its_position_and_left_at_its_end():
    file = encode(noise(MINUTE))
    tag = b"TAG" + bytes(125)  # nothing that is decoded
    opened = io.BytesIO(b"before" + file + tag)
    opened.seek(len(b"before"))
    with blocks_of(SMALL):
        blocks = stream_audio(opened)
        first = next(blocks)
        assert opened.tell() < len(file) / 10
        np.testing.assert_array_equal(np.concatenate([first, *blocks]), load_audio(file))
    assert opened.tell() == len(b"before" + file + tag)
    with pytest.raises(AudioError, match=r"seek\(0\)"):
        next(stream_audio(opened))


def test_a_file_object_that_is_closed_on_the_way_is_an_error_and_not_the_end(capfd):
    opened = io.BytesIO(encode(noise(MINUTE)))
    with blocks_of(SMALL):
        blocks = stream_audio(opened)
        next(blocks)
        opened.close()
        with pytest.raises(AudioError, match=r"<BytesIO>: cannot be read \(.*closed file"):
            list(blocks)
    assert capfd.readouterr() == ("", "")


def test_a_device_without_end_is_cut_off_by_an_error(monkeypatch):
    monkeypatch.setattr(mms_jax.audio, "MAX_STREAM_BYTES", 2**22)
    with open("/dev/zero", "rb") as endless, pytest.raises(AudioError, match="more than 4194304 bytes"):
        next(stream_audio(endless))


def test_a_pipe_is_read_to_its_end_and_closed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[encode(noise(9000), codec="FLOAT")])
    writer.start()
    np.testing.assert_array_equal(join(stream_audio(tmp_path / "pipe")), noise(9000))
    writer.join()


def test_the_blocks_are_the_callers_own():
    samples = noise(10)
    for block in stream_audio(samples):
        block[:] = 0
    np.testing.assert_array_equal(samples, noise(10))

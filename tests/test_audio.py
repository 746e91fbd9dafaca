"""What load_audio takes, what it gives back, and the reasons it refuses."""

import io
import math
import os
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from sounds import RATE, encode, noise, tone

import mms_jax.audio
from mms_jax.audio import describe_audio, load_audio
from mms_jax.containers import view
from mms_jax.errors import AudioError
from mms_jax.features import MAX_AMPLITUDE

STEP_16 = 2**-15  # 16-bit PCM of samples below 0.5: libsndfile writes full scale as 32767, not 32768, and rounds
RIPPLE = 2e-4  # what soxr HQ and 16 bits leave of a tone of 0.5: measured 3e-5
DROOP = 1e-3  # of a tone of 0.5 at 7 kHz, near the edge of soxr HQ's passband: measured 4e-4; LQ loses 0.4
STOPBAND = 1e-5  # -100 dB: what soxr HQ leaves of a tone that the new rate cannot hold
EDGE = 400  # samples at either end, where a filter sees the silence before and after

LOSSLESS = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE")]
LOSSLESS += [("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")]
# The least correlation with the original; 8-bit codes have 38 dB of signal to noise, transform codecs here over 20 dB.
LOSSY = {("WAV", "PCM_U8"): 0.9999, ("WAV", "ULAW"): 0.999, ("WAV", "ALAW"): 0.999, ("WAV", "IMA_ADPCM"): 0.99}
LOSSY |= {("WAV", "MS_ADPCM"): 0.99, ("OGG", "VORBIS"): 0.99, ("OGG", "OPUS"): 0.99, ("MP3", "MPEG_LAYER_III"): 0.99}


@pytest.fixture
def clip() -> tuple[np.ndarray, bytes]:
    """Samples on the 16-bit grid, and a file of exactly these."""
    samples = np.round(noise(5000) * 2**15).astype(np.float32) / 2**15
    return samples, encode(samples)


def interior(samples: np.ndarray) -> np.ndarray:
    return samples[EDGE:-EDGE]


@pytest.mark.parametrize(("container", "codec"), LOSSLESS)
def test_a_lossless_file_gives_its_samples(container, codec):
    samples = noise(5000)
    loaded = load_audio(encode(samples, container=container, codec=codec))
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, samples, rtol=0, atol=STEP_16)


@pytest.mark.parametrize(("container", "codec"), LOSSY)
def test_a_lossy_file_gives_the_whole_sound(container, codec):
    loaded = load_audio(encode(tone(), container=container, codec=codec))
    assert RATE <= len(loaded) < 1.1 * RATE  # ADPCM fills its last block
    assert np.corrcoef(loaded[:RATE], tone())[0, 1] > LOSSY[container, codec]


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 44_101])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_16_khz_mono(rate, channels):
    file = encode(np.stack([tone(rate=rate)] * channels, axis=1), rate=rate)
    loaded = load_audio(file)
    assert loaded.shape == (RATE,)
    np.testing.assert_allclose(interior(loaded), interior(tone()), rtol=0, atol=RIPPLE)


def test_what_16_khz_cannot_hold_does_not_come_back_as_another_tone():
    loaded = load_audio((tone(rate=48_000, frequency=11_000), 48_000))  # folded over, it would be 5 kHz
    assert np.abs(interior(loaded)).max() < STOPBAND


def test_what_16_khz_can_hold_is_kept_up_to_7_khz():
    loaded = load_audio((tone(rate=44_100, frequency=7000), 44_100))
    np.testing.assert_allclose(interior(loaded), interior(tone(frequency=7000)), rtol=0, atol=DROOP)


def test_another_target_rate_is_met():
    loaded = load_audio(encode(tone(rate=44_100), rate=44_100), sampling_rate=24_000)
    np.testing.assert_allclose(interior(loaded), interior(tone(rate=24_000)), rtol=0, atol=RIPPLE)


@given(num_samples=st.integers(0, 5000), rate=st.sampled_from([1000, 8000, 22_050, 44_100, 1_000_000]))
def test_resampling_keeps_the_duration(num_samples, rate):
    assert abs(len(load_audio((noise(num_samples), rate))) - num_samples * RATE / rate) <= 0.5


def test_channels_are_averaged():
    left, right = noise(1000, seed=1), noise(1000, seed=2)
    loaded = load_audio(encode(np.stack([left, right], axis=1), codec="FLOAT"))
    np.testing.assert_array_equal(loaded, (left + right) / 2)


def test_many_channels_are_averaged():
    channels = np.stack([noise(50, seed=seed) for seed in range(255)], axis=1)
    file = encode(channels, rate=384_000, codec="FLOAT")
    np.testing.assert_array_equal(load_audio(file), load_audio((channels.mean(axis=1), 384_000)))


@pytest.mark.parametrize(("container", "codec"), [*LOSSLESS, *LOSSY])
def test_decoding_in_blocks_changes_nothing(container, codec, monkeypatch):
    rate = 48_000 if codec == "OPUS" else 22_050
    file = encode(np.stack([noise(9000), noise(9000, seed=1)], axis=1), rate=rate, container=container, codec=codec)
    whole = load_audio(file)
    monkeypatch.setattr(mms_jax.audio, "BLOCK_VALUES", 1001)
    np.testing.assert_array_equal(load_audio(file), whole)


class Decoder:
    """What ``datasets`` 5 decodes to, as far as it is used here: torchcodec's decoder, with arrays for tensors."""

    def __init__(self, samples: np.ndarray, *, rate: int = RATE):
        self._samples, self._rate = samples, rate
        self.metadata = SimpleNamespace(duration_seconds=samples.shape[1] / rate)

    def get_all_samples(self) -> SimpleNamespace:
        if not self._samples.shape[0]:
            raise RuntimeError("no audio stream")
        return SimpleNamespace(data=self._samples, sample_rate=self._rate)


def test_every_kind_of_input_gives_the_same_samples(clip, tmp_path):
    samples, file = clip
    path = tmp_path / "clip.wav"
    path.write_bytes(file)
    (tmp_path / "no_suffix.raw").write_bytes(file)
    kinds = {
        "path": path,
        "str": str(path),
        "misleading suffix": tmp_path / "no_suffix.raw",
        "bytes": file,
        "bytearray": bytearray(file),
        "memoryview": memoryview(file),
        "BytesIO": io.BytesIO(file),
        "array": samples,
        "float64": samples.astype(np.float64),
        "jax": jnp.asarray(samples),
        "list": samples.tolist(),
        "int16": (samples * 2**15).astype(np.int16),
        "int32": (samples * 2.0**31).astype(np.int32),
        "channels last": np.stack([samples, samples], axis=1),
        "channels first": np.stack([samples, samples]),
        "one channel": samples[None],
        "pair": (samples, 16_000),
        "gradio": (16_000, (samples * 2**15).astype(np.int16)),
        "numpy rate": (samples, np.int64(16_000)),
        "array rate": (samples, jnp.asarray(16_000)),
        "pipeline": {"raw": samples, "sampling_rate": 16_000},
        "decoded": {"path": "x.wav", "array": samples, "sampling_rate": 16_000},
        "undecoded": {"path": "not here.wav", "bytes": file},
        "undecoded path": {"path": str(path), "bytes": None},
        "decoder": Decoder(samples[None]),
    }
    for kind, audio in kinds.items():
        np.testing.assert_array_equal(load_audio(audio), samples, err_msg=kind)
    with path.open("rb") as opened:
        np.testing.assert_array_equal(load_audio(opened), samples)
        assert not opened.closed


def test_a_pipe_is_read_to_its_end(clip, tmp_path):
    samples, file = clip
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[file])
    writer.start()
    np.testing.assert_array_equal(load_audio(tmp_path / "pipe"), samples)
    writer.join()


def test_a_file_object_is_read_from_its_position(clip):
    samples, file = clip
    opened = io.BytesIO(b"before" + file)
    opened.seek(len(b"before"))
    np.testing.assert_array_equal(load_audio(opened), samples)
    with pytest.raises(AudioError, match=r"seek\(0\)"):
        load_audio(opened)


def test_unsigned_bytes_are_centred():
    np.testing.assert_array_equal(load_audio(np.array([0, 128, 192], np.uint8)), np.float32([-1, 0, 0.5]))


def test_bfloat16_is_read_as_what_it_stands_for():
    np.testing.assert_array_equal(load_audio(jnp.asarray([0.5, -0.25], jnp.bfloat16)), np.float32([0.5, -0.25]))


def test_the_result_is_the_callers_own():
    samples = noise(10)
    load_audio(samples)[:] = 0
    np.testing.assert_array_equal(samples, noise(10))


@pytest.mark.parametrize("audio", [[], np.zeros(0), np.zeros((0, 2)), np.zeros((2, 0)), (np.zeros(0), 44_100)])
def test_an_array_without_samples_is_empty_audio(audio):
    assert load_audio(audio).shape == (0,)
    assert load_audio(audio).dtype == np.float32


@pytest.mark.parametrize("num_samples", [1, 399])
@pytest.mark.parametrize(("container", "codec"), [("WAV", None), ("FLAC", None), ("OGG", None), ("MP3", None)])
def test_a_file_shorter_than_a_frame_is_short_audio(num_samples, container, codec):
    assert load_audio(encode(noise(num_samples), container=container, codec=codec)).shape == (num_samples,)


def test_silence_and_a_constant_are_audio():
    np.testing.assert_array_equal(load_audio(encode(np.zeros(1000))), 0)
    np.testing.assert_array_equal(load_audio(encode(np.full(1000, 0.25))), 0.25)


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (None, "of type NoneType"),
        (3.0, "of type float"),
        ({1, 2}, "of type set"),
        ([1, 2, 3], "int64.*full scale"),
        (["a.wav", "b.wav"], "full scale"),
        ([[0.1, 0.2], [0.3, 0.4]], "one audio at a time"),
        ([[0.1], [0.2, 0.3]], "array"),
        ([np.zeros(5), np.zeros(5)], "one audio at a time"),
        (np.zeros(5, np.int64), "int64.*full scale"),
        (np.zeros(5, complex), "complex128"),
        (np.zeros((3, 3)), r"shape \(3, 3\)"),
        (np.zeros((17, 400)), r"shape \(17, 400\)"),
        (np.zeros((1, 1, 400)), r"shape \(1, 1, 400\)"),
        (np.array(0.5), r"shape \(\)"),
        (np.array([0.0, math.nan]), "nan at 0.000 s"),
        (np.array([[0.0, 0.0, math.inf], [0.0, 0.0, 0.0]]), "inf"),
        (np.array([0.0, -1e300]), "-inf"),
        (np.array([2 * MAX_AMPLITUDE]), "4294967296"),
        ((0.1, 0.2), "not \\(array, rate\\)"),
        ((np.zeros(5), np.zeros(5)), "not \\(array, rate\\)"),
        ((np.zeros(5), 16_000, "x"), "not \\(array, rate\\)"),
        *[((np.zeros(5), rate), "sampling rate") for rate in (0, -16_000, 16, 2e6, math.nan, math.inf, True, 1j)],
        ({"array": np.zeros(5)}, "sampling_rate"),
        ({"array": np.zeros(5), "sampling_rate": "16000"}, "sampling rate"),
        ({"audio": {"path": "a.wav"}}, "row"),
        ({"bytes": None, "path": None}, '"bytes"'),
        ({"bytes": "text", "path": None}, '"bytes"'),
        (io.StringIO("text"), "binary mode"),
        (io.BytesIO(), "empty"),
        (Decoder(np.zeros((0, 5))), "no audio stream"),
        (Decoder(np.zeros((1, 2000)), rate=1), "longer than 1800 s"),
    ],
)
def test_unusable_audio_is_refused_with_the_reason(audio, reason):
    with pytest.raises(AudioError, match=reason) as raised:
        load_audio(audio)
    assert str(raised.value).startswith(describe_audio(audio) + ": ")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.wav", "no such file"),
        ("", "Is a directory"),
        ("empty.wav", "is empty"),
        ("nul\0.wav", "null byte"),
        ("x" * 300, "too long"),
        ("/dev/zero", "device"),
    ],
)
def test_a_path_that_cannot_be_read_is_named(name, reason, tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=reason) as raised:
        load_audio(os.path.join(tmp_path, name))
    assert describe_audio(os.path.join(tmp_path, name)) in str(raised.value)


def test_a_url_is_not_taken_for_a_path():
    with pytest.raises(AudioError, match="download it first"):
        load_audio("https://example.org/clip.wav")


def test_a_read_error_on_the_way_is_not_taken_for_the_end(clip, monkeypatch):
    def fail(file, position, count):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(view, "read_at", fail)
    with pytest.raises(AudioError, match=r"cannot be read \(Input/output error"):
        load_audio(clip[1])


def test_a_read_error_of_a_file_object_is_an_audio_error(clip):
    opened = io.BytesIO(clip[1])
    opened.close()
    with pytest.raises(AudioError, match="closed file"):
        load_audio(opened)


def test_a_stream_without_end_is_cut_off_by_an_error(monkeypatch):
    monkeypatch.setattr(mms_jax.audio, "MAX_STREAM_BYTES", 2**22)
    with (
        open("/dev/zero", "rb") as endless,
        pytest.raises(AudioError, match="more than 4194304 bytes"),
    ):
        load_audio(endless)


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", None])
def test_the_cap_on_the_duration_is_exact(container, rate):
    def audio(num_samples: int):
        samples = noise(num_samples)
        return (samples, rate) if container is None else encode(samples, rate=rate, container=container)

    assert len(load_audio(audio(rate), max_duration=1.0)) == RATE
    with pytest.raises(AudioError, match=r"longer than 1 s.*max_duration"):
        load_audio(audio(rate + 1), max_duration=1.0)


@pytest.mark.parametrize("settings", [{"sampling_rate": 0}, {"sampling_rate": 10**7}, {"max_duration": 0}])
def test_impossible_settings_are_the_callers_error(settings):
    with pytest.raises(ValueError, match="cannot be loaded") as raised:
        load_audio(np.zeros(5), **settings)
    assert not isinstance(raised.value, AudioError)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_float_file_with_an_unusable_sample_is_refused_with_its_time(value):
    samples = noise(RATE)
    samples[RATE // 4] = value
    with pytest.raises(AudioError, match=r"at 0\.250 s"):
        load_audio(encode(np.stack([noise(RATE), samples], axis=1), codec="FLOAT"))


@pytest.mark.parametrize(
    ("audio", "name"),
    [
        ("dir/clip.wav", "dir/clip.wav"),
        ("two\nlines.wav", r"'two\nlines.wav'"),
        ("\udcff.wav", r"'\udcff.wav'"),
        (b"1234", "<bytes, 4 bytes>"),
        (np.zeros(3), "<array of shape (3,)>"),
        (jnp.zeros((2, 3)), "<array of shape (2, 3)>"),
        ([0.1, 0.2], "<list of 2 items>"),
        ((np.zeros(3), 8000), "<(<array of shape (3,)>, 8000)>"),
        ({"path": "clip.wav", "bytes": b"1234"}, "clip.wav"),
        ({"path": None, "bytes": b"1234"}, "<bytes, 4 bytes>"),
        ({"raw": np.zeros(3), "sampling_rate": 8000}, "<array of shape (3,)>"),
        ({"audio": 1}, "<dict with keys ['audio']>"),
        (io.BytesIO(b"1234"), "<BytesIO>"),
        (None, "<NoneType>"),
    ],
)
def test_audio_has_a_short_name(audio, name):
    assert describe_audio(audio) == name


def test_an_open_file_is_named_by_its_path(tmp_path):
    with (tmp_path / "clip.wav").open("wb") as opened:
        assert describe_audio(opened) == str(tmp_path / "clip.wav")


def test_the_reference_decoder_agrees(clip):
    np.testing.assert_array_equal(load_audio(clip[1]), soundfile.read(io.BytesIO(clip[1]), dtype="float32")[0])

"""16-bit samples stay as they are where nothing has to be computed, and are what ``load_audio`` gives, everywhere."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import RATE, encode, noise

import mms_jax.audio
from mms_jax.audio import load_audio, load_samples, stream_samples
from mms_jax.errors import AudioError

FULL_SCALE = 2**15
CODECS = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_U8"), ("WAV", "FLOAT")]
CODECS += [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]


def floats(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / FULL_SCALE if samples.dtype == np.int16 else samples


@settings(max_examples=60)
@given(
    num_samples=st.integers(1, 5000),
    num_channels=st.integers(1, 2),
    rate=st.sampled_from([8000, RATE]),
    codec=st.sampled_from(CODECS),
    values=st.integers(500, 9000),
)
def test_a_file_has_one_sound_whether_its_samples_stay_or_not(num_samples, num_channels, rate, codec, values):
    samples = np.stack([noise(num_samples, seed=seed) for seed in range(num_channels)], axis=1)
    file = encode(samples, rate=rate, container=codec[0], codec=codec[1])
    with mock.patch.object(mms_jax.audio, "BLOCK_VALUES", values):
        loaded, blocks = load_samples(file), list(stream_samples(file))
    as_it_is = codec[1] == "PCM_16" and num_channels == 1 and rate == RATE
    assert {block.dtype.name for block in blocks} == {"int16" if as_it_is else "float32"}
    np.testing.assert_array_equal(loaded, np.concatenate(blocks))
    np.testing.assert_array_equal(floats(loaded), load_audio(file))


def test_the_loudest_samples_stay_too():
    samples = np.array([-(2**15), 2**15 - 1, 0, -1], np.int16)
    for audio in (encode(samples, codec="PCM_16"), samples, (samples, RATE), (samples[:, None], RATE)):
        loaded = load_samples(audio)
        assert loaded.dtype == np.int16
        np.testing.assert_array_equal(loaded, samples)


@pytest.mark.parametrize(
    "audio",
    [
        (np.ones(800, np.int16), 8000),
        np.ones((800, 2), np.int16),
        np.ones(800, np.int32),
        np.ones(800, np.uint8),
        np.ones(800, np.float16),
    ],
)
def test_an_array_that_needs_work_becomes_float32(audio):
    loaded = load_samples(audio)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, load_audio(audio))


@pytest.mark.parametrize("audio", [np.ones(100, np.int16), np.ones(100, np.float32)])
def test_samples_are_the_callers_own(audio):
    load_samples(audio)[:] = 0
    assert audio.all()


def test_an_array_without_samples_is_empty():
    assert load_samples(np.zeros(0, np.int16)).shape == (0,)


def test_a_truncated_16_bit_file_is_an_error_all_the_same():
    with pytest.raises(AudioError, match="truncated"):
        load_samples(encode(noise(20_000), codec="PCM_16")[:9000])
    with pytest.raises(AudioError, match="max_duration"):
        load_samples(encode(noise(20_000), codec="PCM_16"), max_duration=1.0)

"""What the compiled program makes of samples: the very input of ``FeatureExtractor``, whatever crossed over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mms_jax
from mms_jax.features import FRAME_SAMPLES, FRAME_STRIDE, FeatureExtractor
from mms_jax.pipelines import waveforms
from mms_jax.pipelines.batching import has_speech, make_batches
from mms_jax.pipelines.waveforms import on_device, pack
from tests.checkpoints import many_languages
from tests.compilations import compilations
from tests.sounds import noise
from tests.test_lid_parity import compiling_quickly

# Relative to the largest value. Both sum float32 in blocks, of 128 (numpy) and 64 values: a few roundings of 6e-8.
TOLERANCE = 1e-6
WIDTHS = (  # few shapes, so that little is compiled
    FRAME_SAMPLES,
    FRAME_SAMPLES + 9 * FRAME_STRIDE,
    FRAME_SAMPLES + 99 * FRAME_STRIDE,
)


DEFAULT = FeatureExtractor()
JITTED = jax.jit(waveforms.model_input, static_argnames="extractor")


def to_int16(samples: np.ndarray) -> np.ndarray:
    if samples.dtype == np.int16:
        return samples
    return np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


def to_float(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 2**15 if samples.dtype == np.int16 else samples


def model_input(rows, *, width, extractor=DEFAULT, keep_int16=True):
    """As numpy arrays, by way of the device."""
    batch = on_device(pack(rows, width=width, keep_int16=keep_int16))
    assert batch.samples.dtype == np.float32
    return map(np.asarray, JITTED(jnp.asarray(batch.samples), jnp.asarray(batch.num_samples), extractor=extractor))


def sound(num_samples, *, seed, loudness, offset):
    return noise(num_samples, seed=seed) * np.float32(loudness) + np.float32(offset)


rows = st.lists(
    st.builds(
        sound,
        st.integers(1, WIDTHS[-1]),
        seed=st.integers(0, 99),
        loudness=st.sampled_from([1e-3, 0.1, 1.0, 5.0]),
        offset=st.sampled_from([0.0, 0.01, -0.3]),
    ),
    min_size=2,
    max_size=2,
)


@settings(max_examples=60)
@given(rows, st.booleans(), st.booleans(), st.booleans())
def test_each_row_is_what_the_extractor_gives_it_alone(rows, as_int16, keep_int16, do_normalize):
    rows = [to_int16(row) if as_int16 else row for row in rows]
    width = min(width for width in WIDTHS if width >= max(map(len, rows)))
    extractor = FeatureExtractor(do_normalize=do_normalize, return_attention_mask=do_normalize, padding_value=0.5)
    values, mask = model_input(rows, width=width, extractor=extractor, keep_int16=keep_int16)
    for row, own, valid in zip(rows, values, mask, strict=True):
        expected = extractor([to_float(row)]).input_values[0]
        # of a quiet sound on a large offset, as much as rounding of its mean leaves: numpy's own is no better
        lost = 1 + np.abs(to_float(row)).max() / max(to_float(row).std(), 1e-4)
        assert np.abs(own[: len(row)] - expected).max() <= TOLERANCE * lost * max(1, np.abs(expected).max())
        assert not own[len(row) :].any()
        np.testing.assert_array_equal(valid, np.arange(width) < len(row))


@pytest.mark.parametrize("keep_int16", [True, False])
def test_16_bit_samples_give_the_very_values_of_their_floats(keep_int16):
    rows = [to_int16(noise(length, seed=length)) for length in (400, 1, 3000)]
    rows[0][:2] = -(2**15), 2**15 - 1
    narrow = list(model_input(rows, width=WIDTHS[1], keep_int16=keep_int16))
    wide = list(model_input([to_float(row) for row in rows], width=WIDTHS[1]))
    np.testing.assert_array_equal(narrow[0], wide[0])
    np.testing.assert_array_equal(narrow[1], wide[1])


def test_a_batch_is_16_bits_only_where_all_of_it_is():
    short, long = to_int16(noise(500)), noise(800)
    assert pack([short, short], width=800, keep_int16=True).samples.dtype == np.int16
    assert pack([short, short], width=800, keep_int16=False).samples.dtype == np.float32
    mixed = pack([short, long], width=800, keep_int16=True)
    assert mixed.samples.dtype == np.float32
    np.testing.assert_array_equal(mixed.samples[0, :500], to_float(short))
    np.testing.assert_array_equal(mixed.samples[1], long)
    assert mixed.num_samples.tolist() == [500, 800]
    assert mixed.num_samples.dtype == np.int32


def test_long_rows_are_summed_as_well_as_numpy_sums_them():
    """Half a minute beside an offset of 100 times its size: adding up one by one would be off by 1 %."""
    samples = noise(480_000) * np.float32(0.02) + np.float32(0.2)
    values, _ = model_input([samples], width=480_000)
    exact = samples.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-7)
    theirs = FeatureExtractor()([samples]).input_values[0]
    assert np.abs(values[0] - exact).max() <= 2 * max(np.abs(theirs - exact).max(), 1e-6)


@pytest.mark.parametrize("step", [1, 2.0**-15])
def test_silence_is_two_steps_of_16_bit_audio_in_any_dtype(step):
    dtype = np.int16 if step == 1 else np.float32
    for low in (-(2**15), 0, 1000):
        quiet, heard = (np.array([low, low, low + steps], np.float64) * step for steps in (2, 3))
        assert not has_speech(quiet.astype(dtype))
        assert has_speech(heard.astype(dtype))
    assert has_speech((np.array([-(2**15), 2**15 - 1]) * step).astype(dtype))  # whose range int16 cannot hold
    assert not has_speech(np.zeros(0, dtype))


# ------------------------------------------------------------------------------------- as where there is a bus to cross


@pytest.fixture
def with_bus(monkeypatch):
    for module in ("batching", "waveforms"):
        monkeypatch.setattr(f"mms_jax.pipelines.{module}.crosses_bus", lambda: True)


def test_batches_cross_the_bus_as_16_bits(with_bus):
    clips = [to_int16(noise(700)), to_int16(noise(720)), noise(2000)]
    batches = make_batches(clips, batch_size=4, max_samples=100_000, pad=True)
    assert [batch.waveforms.samples.dtype.name for batch in batches] == ["float32", "int16"]


def test_results_do_not_depend_on_what_crosses_and_nothing_is_compiled_after_a_warm_up(with_bus, monkeypatch, tmp_path):
    clips = [to_int16(noise(length, seed=length)) for length in (1_500, 1_600, 3_000, 500)]
    with compiling_quickly():
        asr = mms_jax.load_asr(many_languages(tmp_path), language="fra")
        asr.warmup(max_duration=0.2, batch_size=2)
        with compilations() as compiled:
            narrow, wide = (asr.logits(list(map(convert, clips)), batch_size=2) for convert in (to_int16, to_float))
        assert compiled == []
        monkeypatch.setattr("mms_jax.pipelines.batching.crosses_bus", lambda: False)
        on_host = asr.logits(clips, batch_size=2)
    for one, *others in zip(on_host, narrow, wide, strict=True):
        assert len(one)
        for other in others:
            np.testing.assert_array_equal(one, other)

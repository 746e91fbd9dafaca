"""Normalisation and padding as transformers' live Wav2Vec2FeatureExtractor does them; lengths for few compilations."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sounds import noise, tone
from transformers import Wav2Vec2FeatureExtractor

from mms_jax.errors import AudioError, ConfigError
from mms_jax.features import FeatureExtractor, bucket_length, bucketed_batches

ULPS = 4  # measured 0: the same float32 steps; but numpy may sum in another order on another processor
UNIT = 1e-3  # float32 statistics of some thousand samples, and the 1e-7 under the root
DEFAULTS = {"do_normalize": True, "feature_size": 1, "padding_side": "right", "padding_value": 0.0}
MMS = DEFAULTS | {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": True}

lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=5)
loudness = st.sampled_from([1.0, 1e-2, 1e-4, 1e-7, 1e-20, 1e4])
offsets = st.sampled_from([0.0, 0.5, -1e3])


def reference(**values) -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(**DEFAULTS | values)


def sounds(lengths: list[int], *, gain: float = 1.0, offset: float = 0.0) -> list[np.ndarray]:
    return [gain * noise(length, seed=seed) + np.float32(offset) for seed, length in enumerate(lengths)]


def assert_same(ours: np.ndarray, theirs) -> None:
    theirs = np.asarray(theirs)
    assert ours.dtype == theirs.dtype == np.float32
    scale = max(1.0, float(np.abs(theirs).max(initial=0)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ULPS * np.finfo(np.float32).eps * scale)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("padding_value", [0.0, -0.5])
@given(lengths=lengths, extra=st.integers(0, 500), gain=loudness, offset=offsets)
def test_a_padded_batch_equals_the_reference(with_mask, padding_value, lengths, extra, gain, offset):
    values = {"return_attention_mask": with_mask, "padding_value": padding_value}
    waveforms = sounds(lengths, gain=gain, offset=offset)
    for padding, pad_to in ((True, None), ("max_length", max(lengths) + extra)):
        theirs = reference(**values)(
            waveforms, padding=padding, max_length=pad_to, sampling_rate=16_000, return_tensors="np"
        )
        ours = FeatureExtractor(**values)(waveforms, pad_to=pad_to)
        assert_same(ours.input_values, theirs["input_values"])
        expected = theirs["attention_mask"] if with_mask else np.ones_like(ours.input_values)
        np.testing.assert_array_equal(ours.attention_mask, expected.astype(bool))


@pytest.mark.parametrize("with_mask", [True, False])
@given(lengths=lengths, gain=loudness, offset=offsets)
def test_a_row_alone_equals_the_reference_without_padding(with_mask, lengths, gain, offset):
    waveforms = sounds(lengths, gain=gain, offset=offset)
    theirs = reference(return_attention_mask=with_mask)(waveforms, padding=False, sampling_rate=16_000)
    for waveform, expected in zip(waveforms, theirs["input_values"], strict=True):
        ours = FeatureExtractor(return_attention_mask=with_mask)([waveform])
        assert_same(ours.input_values[0], expected)
        assert ours.attention_mask.all()


@given(lengths=lengths)
def test_without_normalisation_only_padding_is_added(lengths):
    waveforms = sounds(lengths, gain=3.0)
    values = {"do_normalize": False, "padding_value": 7.0}
    theirs = reference(**values, return_attention_mask=True)(
        waveforms, padding=True, sampling_rate=16_000, return_tensors="np"
    )
    np.testing.assert_array_equal(FeatureExtractor(**values)(waveforms).input_values, theirs["input_values"])


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_any_precision_in_gives_float32_out(dtype):
    waveform = tone(0.1).astype(dtype)
    ours = FeatureExtractor()([waveform]).input_values
    theirs = reference()([waveform.astype(np.float64)], sampling_rate=16_000, return_tensors="np")["input_values"]
    assert_same(ours, theirs)


@pytest.mark.parametrize("pad_to", [None, 1600])
def test_each_row_has_zero_mean_and_unit_variance_where_it_is_valid(pad_to):
    features = FeatureExtractor()(sounds([800, 1000, 1200], offset=0.3), pad_to=pad_to)
    for row, valid in zip(features.input_values, features.attention_mask, strict=True):
        assert abs(row[valid].mean()) < UNIT
        assert abs(row[valid].var() - 1) < UNIT
        assert not row[~valid].any()


def test_without_a_mask_mean_and_variance_are_taken_over_the_padding_too():
    features = FeatureExtractor(return_attention_mask=False)(sounds([800, 1200], offset=0.3))
    assert features.attention_mask.all()
    for row in features.input_values:
        assert abs(row.mean()) < UNIT
        assert abs(row.var() - 1) < UNIT
    assert features.input_values[0, 800:].all()  # the padding is no longer zero


@given(lengths=lengths, extra=st.integers(0, 500))
def test_neither_batch_mates_nor_padding_change_a_row(lengths, extra):
    waveforms = sounds(lengths)
    together = FeatureExtractor()(waveforms, pad_to=max(lengths) + extra)
    for index, waveform in enumerate(waveforms):
        alone = FeatureExtractor()([waveform]).input_values[0]
        np.testing.assert_array_equal(together.input_values[index, : len(waveform)], alone)
        assert together.attention_mask[index].sum() == len(waveform)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("lengths", [[0], [0, 0], [0, 399, 400, 720, 16_000], []])
@pytest.mark.parametrize("pad_to", [None, 16_000])
def test_a_row_without_samples_is_padding(with_mask, lengths, pad_to):
    features = FeatureExtractor(return_attention_mask=with_mask)(sounds(lengths), pad_to=pad_to)
    assert features.input_values.shape == (len(lengths), pad_to or max(lengths, default=0))
    for length, row, mask in zip(lengths, *features, strict=True):
        assert mask.sum() == (length if with_mask else len(row))
        if length == 0:
            np.testing.assert_array_equal(row, 0)


@pytest.mark.parametrize("value", [0.0, 0.25, -1.0])
def test_constant_audio_becomes_silence(value):
    np.testing.assert_array_equal(FeatureExtractor()([np.full(4096, value, np.float32)]).input_values, 0)


def test_the_epsilon_decides_how_loud_near_silence_becomes():
    quiet = 1e-4 * np.float32([1, -1] * 500)  # variance 1e-8, a tenth of the reference's epsilon
    loud = [np.abs(FeatureExtractor(norm_eps=eps)([quiet]).input_values).max() for eps in (1e-7, 1e-5)]
    np.testing.assert_allclose(loud, [1e-4 / math.sqrt(1.1e-7), 1e-4 / math.sqrt(1.001e-5)], rtol=1e-5)


def test_the_waveforms_are_left_as_they_were():
    waveforms = sounds([500, 700], offset=0.3)
    FeatureExtractor()(waveforms)
    for waveform, untouched in zip(waveforms, sounds([500, 700], offset=0.3), strict=True):
        np.testing.assert_array_equal(waveform, untouched)


@pytest.mark.parametrize(
    "row",
    [
        np.zeros((2, 400)),
        np.zeros(400, np.int16),
        np.float32([0, math.nan]),
        np.array([math.inf]),
        np.array([1e300]),
        np.array(0.5),
    ],
)
def test_a_row_that_is_no_waveform_is_named(row):
    with pytest.raises(AudioError, match="row 1"):
        FeatureExtractor()([np.zeros(400), row])


def test_nothing_is_cut_off():
    with pytest.raises(ValueError, match=r"pad_to=399 .* 400"):
        FeatureExtractor()([np.zeros(400)], pad_to=399)


@pytest.mark.parametrize("with_mask", [True, False])
def test_what_the_reference_saves_is_read(with_mask):
    saved = reference(return_attention_mask=with_mask, do_normalize=not with_mask, padding_value=0.5).to_dict()
    expected = FeatureExtractor(return_attention_mask=with_mask, do_normalize=not with_mask, padding_value=0.5)
    assert FeatureExtractor.from_dict(saved) == expected


def test_an_absent_key_means_what_it_means_to_the_reference():
    ours, theirs = FeatureExtractor.from_dict({}), Wav2Vec2FeatureExtractor()
    shared = {field.name for field in dataclasses.fields(ours)} - {"norm_eps"}
    assert {name: getattr(ours, name) for name in shared} == {name: getattr(theirs, name) for name in shared}


def test_keys_that_change_nothing_are_accepted():
    assert FeatureExtractor.from_dict(MMS | {"processor_class": "Wav2Vec2Processor"}) == FeatureExtractor()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("feature_extractor_type", "SeamlessM4TFeatureExtractor"),
        ("padding_side", "left"),
        ("feature_size", 80),
        ("feature_size", True),
        ("do_normalize", 1),
        ("do_normalize", None),
        ("return_attention_mask", "true"),
        ("padding_value", "0"),
        ("padding_value", math.nan),
        ("padding_value", False),
        ("sampling_rate", 16_000.0),
        ("sampling_rate", 0),
        ("norm_eps", 1e-5),
        ("num_mel_bins", 80),
        ("dither", 0.0),
    ],
)
def test_a_value_that_would_change_the_maths_is_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        FeatureExtractor.from_dict(MMS | {key: value})


@given(num_samples=st.integers(0, 30_000_000))
def test_a_bucket_holds_its_audio_and_is_itself_a_bucket(num_samples):
    length = bucket_length(num_samples)
    assert length >= max(num_samples, 400)
    assert (length - 400) % 320 == 0  # whole frames
    assert bucket_length(length) == length


@given(num_samples=st.integers(0, 30_000_000), more=st.integers(0, 100_000))
def test_longer_audio_never_gets_a_shorter_bucket(num_samples, more):
    assert bucket_length(num_samples) <= bucket_length(num_samples + more)


def test_buckets_are_few_and_close():
    buckets = sorted({bucket_length(num_samples) for num_samples in range(0, 30 * 16_000 + 1, 80)})
    assert len(buckets) <= 52  # each is a compilation
    for shorter, longer in itertools.pairwise(buckets):
        assert longer - shorter == 320 or (longer - 80) / (shorter - 80) <= 1.15


@given(
    num_samples=st.lists(st.integers(0, 500_000), max_size=40),
    batch_size=st.integers(1, 8),
    max_samples=st.none() | st.integers(1, 2_000_000),
    bucket=st.sampled_from([bucket_length, int]),
)
def test_batches_hold_every_item_once_in_one_bucket_within_limits(num_samples, batch_size, max_samples, bucket):
    batches = bucketed_batches(num_samples, batch_size=batch_size, max_samples=max_samples, bucket=bucket)
    assert sorted(itertools.chain(*batches)) == list(range(len(num_samples)))
    for batch in batches:
        (length,) = {bucket(num_samples[index]) for index in batch}
        assert 1 <= len(batch) <= batch_size
        assert max_samples is None or len(batch) == 1 or len(batch) * length <= max_samples
    firsts = [num_samples[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_batches_are_filled():
    assert bucketed_batches([500, 500, 500, 9000, 500], batch_size=3) == [[3], [0, 1, 2], [4]]


@pytest.mark.parametrize("call", [lambda: bucket_length(-1), lambda: bucket_length(1, ratio=1.0)])
def test_an_impossible_bucket_is_the_callers_error(call):
    with pytest.raises(ValueError, match="must"):
        call()


def test_an_impossible_batch_size_is_the_callers_error():
    with pytest.raises(ValueError, match="batch_size=0"):
        bucketed_batches([1], batch_size=0)

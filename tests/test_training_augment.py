"""SpecAugment's masks against transformers' own from the same draws; layers left out; dither; settings out of range."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from mms_jax.errors import SettingError
from mms_jax.training.augment import check_augmentation, dither, feature_mask, layer_keep, time_mask

SIGMAS = 5  # of a sample's statistic around its expectation; the seeds are fixed, so it fails always or never
INT16_STEP = 1 / 32768
SETTINGS = {
    "num_channels": 64,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "mask_time_min_masks": 2,
    "mask_feature_prob": 0.1,
    "mask_feature_length": 64,
    "mask_feature_min_masks": 0,
    "layerdrop": 0.1,
    "dither": 1.0,
}

sizes = st.integers(1, 300)
probabilities = st.floats(1e-3, 1.0)
lengths = st.integers(1, 40)
counts = st.integers(0, 6)
seeds = st.integers(0, 2**32 - 1)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def theirs(shape: tuple[int, int], *, seed: int, **settings) -> np.ndarray:
    np.random.seed(seed)  # they draw from numpy's global generator
    return _compute_mask_indices(shape, **settings)


@pytest.mark.parametrize("mask", [time_mask, feature_mask])
@given(size=sizes, prob=probabilities, length=lengths, min_masks=counts, seed=seeds)
def test_a_mask_is_transformers_mask_from_the_same_draws(mask, size, prob, length, min_masks, seed):
    assume(length <= size)
    expected = theirs((1, size), seed=seed, mask_prob=prob, mask_length=length, min_masks=min_masks)[0]
    ours = mask(size, prob=prob, length=length, min_masks=min_masks, rng=np.random.RandomState(seed))
    assert ours.dtype == bool
    np.testing.assert_array_equal(ours, expected)


def test_single_frames_are_masked_in_exactly_the_number_asked_for():
    masks = [time_mask(60, prob=0.5, length=1, min_masks=0, rng=generator(seed)) for seed in range(20)]
    assert [int(mask.sum()) for mask in masks] == [30] * 20
    assert len({mask.tobytes() for mask in masks}) > 1


@pytest.mark.parametrize(("size", "expected"), [(100, 0.5), (20, 0.1), (190, 0.95)])
def test_the_number_of_spans_is_rounded_at_random_to_its_expectation(size, expected):
    trials = 4000
    spans = [
        int(time_mask(size, prob=0.05, length=10, min_masks=0, rng=generator(seed)).sum()) for seed in range(trials)
    ]
    assert set(spans) == {0, 10}
    error = SIGMAS * np.sqrt(expected * (1 - expected) / trials)
    assert np.mean(spans) / 10 == pytest.approx(expected, abs=error)


@given(size=st.integers(10, 300), prob=probabilities, seed=seeds)
def test_overlapping_spans_mask_at_most_the_share_asked_for(size, prob, seed):
    mask = time_mask(size, prob=prob, length=4, min_masks=0, rng=generator(seed))
    assert mask.sum() <= prob * size + 4  # one span more where the number was rounded up
    if mask.any():
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
        assert (edges[1::2] - edges[::2]).min() >= 4


def test_spans_may_overlap():
    masks = [time_mask(80, prob=0.5, length=4, min_masks=0, rng=generator(seed)) for seed in range(50)]
    assert min(int(mask.sum()) for mask in masks) < 40 == 80 * 0.5


@given(size=sizes, prob=probabilities, length=lengths, min_masks=counts, seed=seeds)
def test_the_fewest_spans_are_had_where_they_fit(size, prob, length, min_masks, seed):
    mask = time_mask(size, prob=prob, length=length, min_masks=min_masks, rng=generator(seed))
    fitting = min(min_masks, size // length)
    assert mask.sum() >= (length + fitting - 1 if fitting else 0)  # starts differ: each span adds a frame at least
    assert mask.shape == (size,)


@pytest.mark.parametrize("num_frames", [0, 1, 5, 9])
def test_a_row_shorter_than_a_span_is_left_alone_as_among_longer_ones(num_frames):
    assert not time_mask(num_frames, prob=1.0, length=10, min_masks=2, rng=generator()).any()
    valid = np.ones((4, 100), int)
    valid[0, num_frames:] = 0

    class Mask:  # as much of a tensor as they ask for
        def detach(self):
            return valid

    batch = theirs((4, 100), seed=0, mask_prob=1.0, mask_length=10, attention_mask=Mask(), min_masks=2)
    assert not batch[0, :num_frames].any()
    assert batch[1:].any()


def test_no_probability_means_no_mask_whatever_the_fewest_spans():
    assert not time_mask(100, prob=0.0, length=10, min_masks=2, rng=generator()).any()
    assert not feature_mask(100, prob=0.0, length=500, min_masks=2, rng=generator()).any()


def test_a_layer_is_left_out_where_the_draw_is_below_layerdrop():
    class Draws:
        def random(self, size):
            return np.array([0.0, 0.4999, 0.5, 0.9])[:size]

    np.testing.assert_array_equal(layer_keep(4, layerdrop=0.5, rng=Draws()), [False, False, True, True])


@pytest.mark.parametrize("layerdrop", [0.0, 0.1, 0.5, 0.999])
def test_layers_are_left_out_as_often_as_asked_for(layerdrop):
    keep = layer_keep(50_000, layerdrop=layerdrop, rng=generator())
    assert keep.dtype == bool
    error = SIGMAS * np.sqrt(layerdrop * (1 - layerdrop) / keep.size)
    assert np.mean(~keep) == pytest.approx(layerdrop, abs=error)


@pytest.mark.parametrize("amount", [1e-3, 1.0, 10.0])
def test_dither_is_gaussian_noise_in_steps_of_16_bit_audio(amount):
    waveform = np.linspace(-0.5, 0.5, 100_000, dtype=np.float32)
    before = waveform.copy()
    # In float64, and around a waveform whose own rounding (2^-25) is small beside the noise
    noise = dither(np.zeros_like(waveform), amount=amount, rng=generator()).astype(np.float64) / INT16_STEP
    assert noise.std() == pytest.approx(amount, rel=SIGMAS / np.sqrt(2 * noise.size))
    assert noise.mean() == pytest.approx(0, abs=SIGMAS * amount / np.sqrt(noise.size))
    kurtosis = np.mean(noise**4) / np.mean(noise**2) ** 2
    assert kurtosis == pytest.approx(3, abs=SIGMAS * np.sqrt(24 / noise.size))  # 1.8 were it uniform
    noisy = dither(waveform, amount=amount, rng=generator())
    assert noisy.dtype == np.float32
    np.testing.assert_array_equal(waveform, before)
    np.testing.assert_allclose(noisy - waveform, noise * INT16_STEP, rtol=0, atol=2.0**-24)


def test_no_dither_gives_back_the_waveform():
    waveform = np.ones(10, np.float32)
    assert dither(waveform, amount=0.0, rng=generator()) is waveform


def test_the_same_generator_state_gives_the_same_draws():
    for draw in (
        lambda seed: time_mask(200, prob=0.3, length=5, min_masks=1, rng=generator(seed)),
        lambda seed: layer_keep(48, layerdrop=0.5, rng=generator(seed)),
        lambda seed: dither(np.zeros(100, np.float32), amount=1.0, rng=generator(seed)),
    ):
        np.testing.assert_array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))


def test_settings_in_their_ranges_pass():
    check_augmentation(**SETTINGS)
    check_augmentation(**SETTINGS | {"mask_feature_prob": 0.0, "mask_feature_length": 500})  # never used, so no fault


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (f"mask_{axis}_prob", value)
            for axis in ("time", "feature")
            for value in (-0.1, 1.1, float("nan"), True, "1")
        ),
        *((f"mask_{axis}_length", value) for axis in ("time", "feature") for value in (0, -1, 1.5, True, None)),
        *((f"mask_{axis}_min_masks", value) for axis in ("time", "feature") for value in (-1, 0.5, None)),
        ("mask_feature_length", 65),
        *(("layerdrop", value) for value in (-0.1, 1.0, float("nan"), None)),
        *(("dither", value) for value in (-1, 32769, float("inf"), None)),
    ],
)
def test_a_setting_out_of_its_range_is_named(name, value):
    with pytest.raises(SettingError, match=rf"^--{name} is {value!r}"):
        check_augmentation(**SETTINGS | {name: value})


@pytest.mark.parametrize(
    ("flag", "call"),
    [
        ("mask_time_prob", lambda: time_mask(9, prob=2, length=1, min_masks=0, rng=generator())),
        ("mask_feature_length", lambda: feature_mask(9, prob=0.5, length=10, min_masks=0, rng=generator())),
        ("mask_feature_prob", lambda: feature_mask(9, prob=2, length=1, min_masks=0, rng=generator())),
        ("layerdrop", lambda: layer_keep(9, layerdrop=2, rng=generator())),
        ("dither", lambda: dither(np.zeros(9, np.float32), amount=-1, rng=generator())),
    ],
)
def test_each_draw_checks_its_own_settings(flag, call):
    with pytest.raises(SettingError, match=rf"^--{flag} is"):
        call()

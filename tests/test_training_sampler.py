"""Batches: every clip once in an epoch, by seed and step alone; lengths that languages share; few padded shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.errors import SettingError
from mms_jax.features import BUCKET_RATIO, FRAME_SAMPLES, FRAME_STRIDE
from mms_jax.training.data.sampler import LABELS_STEP, STEPS_OF_A_BLOCK, PaddedShapes, Sampler, padded_lengths

LENGTHS = st.lists(st.integers(400, 480_000), min_size=1, max_size=60).map(lambda sizes: np.array(sizes, np.int64))
BATCHES, SEEDS, GROUPED = st.integers(1, 17), st.integers(0, 2**40), st.booleans()
SAMPLERS = st.builds(Sampler, LENGTHS, batch_size=BATCHES, seed=SEEDS, group_by_length=GROUPED)
QUANTILE_APART = 0.2  # of two languages' batches at a step: the ranks of 60 and 25 draws differ by less, measured 0.13
SPREAD = 1.1 / 0.9 * 20 ** (16 / 1500)  # of batch mates: jitter, times 16 of 2,000 clips over a factor of 20, and some


def anew(sampler: Sampler) -> Sampler:
    return Sampler(
        sampler.num_samples, batch_size=sampler.batch_size, seed=sampler.seed, group_by_length=sampler.group_by_length
    )


def epoch_of(sampler: Sampler, epoch: int) -> list[np.ndarray]:
    return [sampler.batch(epoch * sampler.steps_per_epoch + place) for place in range(sampler.steps_per_epoch)]


@given(sampler=SAMPLERS, epoch=st.integers(0, 3))
def test_every_clip_comes_once_in_an_epoch(sampler, epoch):
    batches = epoch_of(sampler, epoch)
    assert np.sort(np.concatenate(batches)).tolist() == list(range(len(sampler.num_samples)))
    sizes = [len(batch) for batch in batches]
    assert all(batch.dtype == np.int64 for batch in batches)
    assert sum(size < sampler.batch_size for size in sizes) <= 1
    assert max(sizes) <= sampler.batch_size
    if not sampler.group_by_length:
        assert sizes[:-1] == [sampler.batch_size] * (len(sizes) - 1)


@given(sampler=SAMPLERS, steps=st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_a_batch_depends_on_the_step_and_not_on_what_was_asked_before(sampler, steps):
    for step in steps:
        np.testing.assert_array_equal(sampler.batch(step), anew(sampler).batch(step))


@given(sampler=SAMPLERS, step=st.integers(0, 300))
def test_epochs_are_counted_by_updates(sampler, step):
    assert sampler.steps_per_epoch == -(-len(sampler.num_samples) // sampler.batch_size)
    assert sampler.epoch(step) == step / sampler.steps_per_epoch
    assert sampler.epoch(sampler.steps_per_epoch) == 1.0


@pytest.mark.parametrize("grouped", [False, True])
def test_orders_differ_between_epochs_and_seeds(grouped):
    lengths = np.random.default_rng(0).integers(8000, 300_000, 500)

    def order(seed, epoch):
        return tuple(np.concatenate(epoch_of(Sampler(lengths, 8, seed, group_by_length=grouped), epoch)).tolist())

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_random_batches_are_random():
    """Over many epochs a clip is as likely first as any other, and batch mates are not bound to each other."""
    sampler = Sampler(np.full(10, 16_000), batch_size=5, seed=3)
    firsts = np.bincount([sampler.batch(2 * epoch)[0] for epoch in range(2000)], minlength=10)
    assert 140 < firsts.min() <= firsts.max() < 260  # 200 expected; 4.5 standard deviations of 13.4
    together = np.mean([{0, 1} <= set(sampler.batch(2 * epoch).tolist()) for epoch in range(2000)])
    assert 0.17 < together < 0.27  # 2/9 expected, 0.0093 its standard deviation


def test_grouped_batches_are_of_one_length_and_still_differ_between_epochs():
    lengths = (16_000 * 20 ** np.random.default_rng(0).random(2000)).astype(np.int64)
    sampler = Sampler(lengths, batch_size=16, seed=0, group_by_length=True)
    for batch in epoch_of(sampler, 0):
        assert lengths[batch].max() / lengths[batch].min() < SPREAD
    mates = [{frozenset(batch.tolist()) for batch in epoch_of(sampler, epoch)} for epoch in range(2)]
    assert not mates[0] & mates[1]
    longest = [lengths[batch].max() for batch in epoch_of(sampler, 0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3  # neither short first nor long first


@given(seed=SEEDS)
def test_languages_of_different_sizes_take_batches_of_the_same_share_of_their_lengths(seed):
    rng = np.random.default_rng(1)
    samplers = [
        Sampler(np.sort(rng.integers(16_000, 320_000, count)), batch_size=8, seed=seed, group_by_length=True)
        for count in (480, 200)
    ]
    apart = []
    for step in range(300):  # five epochs of one, twelve of the other
        first, second = (np.median(sampler.batch(step)) / len(sampler.num_samples) for sampler in samplers)
        apart.append(abs(first - second))
    assert np.mean(apart) < QUANTILE_APART / 2
    assert np.quantile(apart, 0.9) < QUANTILE_APART


def test_grouped_batches_go_on_across_blocks_of_random_numbers():
    sampler = Sampler(np.arange(400, 3400), batch_size=1, seed=5, group_by_length=True)
    steps = range(3000, 6000)  # the second epoch, with the end of a block within
    assert STEPS_OF_A_BLOCK in steps
    assert sorted(int(sampler.batch(step)[0]) for step in steps) == list(range(3000))


def test_what_cannot_be_drawn_from_is_refused():
    with pytest.raises(SettingError, match="--seed is -1"):
        Sampler(np.array([400]), batch_size=1, seed=-1)
    with pytest.raises(SettingError, match="batch size is 0"):
        Sampler(np.array([400]), batch_size=0, seed=0)
    with pytest.raises(ValueError, match="no clips"):
        Sampler(np.zeros(0, np.int64), batch_size=1, seed=0)


# --- shapes ----------------------------------------------------------------------------------------------------------


@given(num_samples=LENGTHS, most=st.integers(1, 12))
def test_few_lengths_of_whole_frames_hold_all_clips_with_little_padding(num_samples, most):
    lengths = np.array(padded_lengths(num_samples, most=most))
    assert len(lengths) <= most
    assert (np.diff(lengths) > 0).all()
    assert ((lengths - FRAME_SAMPLES) % FRAME_STRIDE == 0).all()
    assert 0 <= lengths[-1] - num_samples.max() < FRAME_STRIDE or lengths[-1] == FRAME_SAMPLES
    assert {lengths[place] for place in np.searchsorted(lengths, num_samples)} == set(lengths)  # none for nothing
    ratio = max(BUCKET_RATIO, (lengths[-1] / num_samples.min()) ** (1 / most))
    padded = lengths[np.searchsorted(lengths, num_samples)]
    assert (padded <= ratio * (num_samples + FRAME_STRIDE) + FRAME_STRIDE).all()


def test_lengths_as_far_apart_as_speech_take_eight_shapes_and_equal_ones_take_one():
    assert padded_lengths(np.array([16_000, 320_000])) == (23_440, 320_080)  # 73 frames hold 50 times 1.454
    assert len(padded_lengths(np.arange(16_000, 320_000, 100))) == 8
    assert padded_lengths(np.full(9, 48_000)) == (48_080,)
    assert padded_lengths(np.array([100, 400])) == (400,)


@given(data=st.data(), num_samples=LENGTHS, most=st.integers(1, 8))
def test_a_shape_holds_any_clips_that_are_no_longer(data, num_samples, most):
    counts = st.lists(st.integers(1, 400), min_size=len(num_samples), max_size=len(num_samples))
    num_labels = np.array(data.draw(counts))
    shapes = PaddedShapes.of(num_samples, num_labels, most=most)
    assert sorted(shapes.labels) == list(shapes.labels)
    assert all(labels % LABELS_STEP == 0 for labels in shapes.labels)
    assert shapes.labels[-1] - LABELS_STEP < num_labels.max() <= shapes.labels[-1]
    for length in num_samples:
        padded = shapes.pad_samples(int(length))
        assert padded >= length
        assert shapes.pad_samples(padded) == padded
        most_labels = int(num_labels[num_samples <= length].max())
        assert shapes.pad_labels(padded, most_labels) >= most_labels


def test_what_no_shape_holds_is_refused():
    shapes = PaddedShapes.of(np.array([16_000]), np.array([20]))
    assert shapes == PaddedShapes((16_080,), (32,))
    with pytest.raises(ValueError, match="16081 samples are more"):
        shapes.pad_samples(16_081)
    with pytest.raises(ValueError, match="33 labels in 16080 samples are more"):
        shapes.pad_labels(16_080, 33)
    with pytest.raises(ValueError, match="lengths of 0 clips"):
        padded_lengths(np.zeros(0, np.int64))

"""Which clips make which update, and to how many samples they are padded: pure functions of lengths, seed and step.

A run's position in its data is its step: nothing else has to be saved for it to go on with the very clips that it would
have had. Randomness is numpy's ``random``, 53 bits of PCG64, whose stream numpy has never changed.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from mms_jax.errors import SettingError
from mms_jax.features import BUCKET_RATIO, FRAME_SAMPLES, FRAME_STRIDE

__all__ = ["PaddedShapes", "Sampler", "padded_lengths"]

JITTER = 0.1  # of a clip's length, either way, when clips are sorted by length: neighbours differ from epoch to epoch
STEPS_OF_A_BLOCK = 4096  # that draw their random numbers together
ORDER, JITTERS, RANKS = 0, 1, 2  # what numbers are drawn for, so that no two draws are the same
LABELS_STEP = 16  # label axes are multiples of this: one length more or less must not mean another compilation


@dataclass(eq=False)
class Sampler:
    """Cuts every epoch into updates of ``batch_size`` clips (all devices' and passes' together), each clip in one.

    A function of ``num_samples`` (int64 [n], the clips' lengths), ``seed`` and the step alone. One update of an epoch
    has fewer clips if ``batch_size`` does not divide n: the last; with ``group_by_length``, that of the longest clips.

    With ``group_by_length``, clips of about one length come together. How long they are is drawn by the global step
    alone: languages of one job, each with a sampler and an n of its own, have clips of about the same share of their
    lengths at the same step, so what they share, the padded shape, is wide for all or for none.

    Raises ``SettingError`` for a batch size or a seed that cannot be, ``ValueError`` without clips.
    """

    num_samples: np.ndarray
    batch_size: int
    seed: int
    group_by_length: bool = False
    _latest: tuple[int, list[np.ndarray]] = field(default=(-1, []), init=False, repr=False)  # an epoch, its updates

    def __post_init__(self):
        if self.batch_size < 1:
            raise SettingError(f"the batch size is {self.batch_size}; an update needs at least 1 clip")
        if self.seed < 0:
            raise SettingError(f"--seed is {self.seed}; it must not be negative")
        if len(self.num_samples) == 0:
            raise ValueError("there are no clips to draw batches from")

    @property
    def steps_per_epoch(self) -> int:
        """Updates until every clip had its turn."""
        return math.ceil(len(self.num_samples) / self.batch_size)

    def epoch(self, step: int) -> float:
        """How often ``step`` updates go through the data."""
        return step / self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """The clips of the update that follows ``step`` others: int64 [at most ``batch_size``], indices."""
        epoch, place = divmod(step, self.steps_per_epoch)
        latest, batches = self._latest
        if epoch != latest:
            batches = self._by_length(epoch) if self.group_by_length else self._cut(self._order(epoch))
            self._latest = epoch, batches
        return batches[place]

    def _order(self, epoch: int) -> np.ndarray:
        return np.argsort(_random(self.seed, ORDER, epoch, size=len(self.num_samples)), kind="stable")

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def _by_length(self, epoch: int) -> list[np.ndarray]:
        jitter = 1 + JITTER * (2 * _random(self.seed, JITTERS, epoch, size=len(self.num_samples)) - 1)
        batches = self._cut(np.argsort(self.num_samples * jitter, kind="stable"))
        count = len(batches)
        draws = _random_of_steps(self.seed, range(epoch * count, (epoch + 1) * count))
        ranks = np.argsort(np.argsort(draws, kind="stable"), kind="stable")
        return [batches[rank] for rank in ranks]


def _random(*seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).random(size)


def _random_of_steps(seed: int, steps: range) -> np.ndarray:
    """A number in [0, 1) for each step, the same whichever steps are asked for with it."""
    first, last = steps.start // STEPS_OF_A_BLOCK, (steps.stop - 1) // STEPS_OF_A_BLOCK
    blocks = [_random(seed, RANKS, block, size=STEPS_OF_A_BLOCK) for block in range(first, last + 1)]
    start = steps.start - first * STEPS_OF_A_BLOCK
    return np.concatenate(blocks)[start : start + len(steps)]


def padded_lengths(num_samples: np.ndarray, *, most: int = 8) -> tuple[int, ...]:
    """At most ``most`` lengths, in samples and ascending, one of which every clip is padded to.

    They are whole frames, 400 + 320 (T - 1), and go down from the longest clip by a constant ratio: at least 1.15, and
    as much more as it takes for ``most`` of them to reach the shortest. Lengths that no clip needs are left out. Every
    length compiles the training step once more, and what lies between two of them is computed in vain.
    """
    if most < 1 or len(num_samples) == 0:
        raise ValueError(f"lengths of {len(num_samples)} clips cannot be cut into {most}")
    frames = _frames_to_hold(num_samples)
    shortest, longest = int(frames.min()), int(frames.max())
    ratio = max(BUCKET_RATIO, (longest / shortest) ** (1 / most))
    steps = np.unique(np.ceil(longest / ratio ** np.arange(most) - 1e-9).astype(np.int64))
    used = np.unique(np.searchsorted(steps, frames))
    return tuple((FRAME_SAMPLES + FRAME_STRIDE * (steps[used] - 1)).tolist())


def _frames_to_hold(num_samples: np.ndarray) -> np.ndarray:
    """How many frames it takes to see every sample, at least one."""
    return np.maximum(0, -(-(np.asarray(num_samples, np.int64) - FRAME_SAMPLES) // FRAME_STRIDE)) + 1


@dataclass(frozen=True)
class PaddedShapes:
    """The few shapes that the batches of a training job have: ``lengths`` in samples, and ``labels`` for each.

    Both ascend. A batch is as long as its longest clip needs, so the labels of a length are enough for any clip that is
    no longer, and not only for those of that length.
    """

    lengths: tuple[int, ...]
    labels: tuple[int, ...]

    @classmethod
    def of(cls, num_samples: np.ndarray, num_labels: np.ndarray, *, most: int = 8) -> "PaddedShapes":
        """The shapes for clips of these lengths and labels (int64 [n] each): of all languages of the job together."""
        lengths = padded_lengths(num_samples, most=most)
        bucket = np.searchsorted(lengths, num_samples)
        widest = np.zeros(len(lengths), np.int64)
        np.maximum.at(widest, bucket, num_labels)
        labels = -(-np.maximum.accumulate(np.maximum(widest, 1)) // LABELS_STEP) * LABELS_STEP
        return cls(lengths, tuple(labels.tolist()))

    def pad_samples(self, num_samples: int) -> int:
        """The length that a clip of ``num_samples`` is padded to; ``ValueError`` if it is longer than all."""
        return self.lengths[self._bucket(num_samples)]

    def pad_labels(self, num_samples: int, num_labels: int) -> int:
        """The labels of a batch of (padded) ``num_samples``; ``ValueError`` if its clips have more."""
        labels = self.labels[self._bucket(num_samples)]
        if num_labels > labels:
            raise ValueError(f"{num_labels} labels in {num_samples} samples are more than the {labels} of these shapes")
        return labels

    def _bucket(self, num_samples: int) -> int:
        place = int(np.searchsorted(self.lengths, num_samples))
        if place == len(self.lengths):
            raise ValueError(f"{num_samples} samples are more than the longest shape, {self.lengths[-1]}")
        return place

"""From clips to the padded arrays of one update, on the host: the part of this process, in the step's order of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import MMSError
from mms_jax.features import FeatureExtractor
from mms_jax.training.augment import dither, feature_mask, layer_keep, time_mask
from mms_jax.training.step import Batch

# What numpy's generators are seeded with between seed and step, so that no two draws are the same. Behind them it would
# not tell them apart: for a seed, trailing zeros are none.
_CLIP, _LAYERS = 1, 2


class Item(NamedTuple):
    """A clip of an update."""

    num_samples: int
    labels: np.ndarray  # int32 [U]
    load: Callable[[], np.ndarray]  # decodes it: float32 [S] at 16 kHz
    name: str


class Feed(Protocol):
    """Where a slot's clips come from."""

    def take(self, step: int) -> Sequence[Item]:
        """The clips of an update, at most as many as it has rows."""
        ...

    def position(self, step: int) -> dict[str, int]:
        """What must be saved beside ``step``, the number of updates done, to go on from there."""
        ...


class Prepared(NamedTuple):
    """One update's arrays on the host, and what they are made of."""

    batch: Batch
    layer_keep: np.ndarray | None  # bool [K, L]
    names: list[list[str]]  # of each slot: all its clips, other processes' too
    num_samples: int  # of all clips, without padding
    failed: dict[int, MMSError]  # slots with a clip that cannot be read any more, and why; their rows count nothing


@dataclass(frozen=True)
class BatchMaker:
    """Pads, normalises and augments; what a row becomes depends on the seed, the step and its place in its update."""

    config: Wav2Vec2Config
    feature_extractor: FeatureExtractor
    rows: int  # of a slot on a device in one pass: per_device_train_batch_size
    passes: int  # of an update: gradient_accumulation_steps
    num_shards: int  # devices of all processes
    shards: Sequence[int]  # those of this process
    pad_samples: Callable[[int], int]  # a length that holds so many samples, of few
    pad_labels: Callable[[int, int], int]  # of (padded samples, labels)
    seed: int
    reduction: str = "mean"
    augment: bool = True  # SpecAugment and layerdrop, at the config's rates
    dither: float = 0.0

    def make(self, step: int, items: Sequence[Sequence[Item]]) -> Prepared:
        """Arrays for the clips of each slot of a pass; a slot may have fewer than its share, or none."""
        longest = max((item.num_samples for own in items for item in own), default=0)
        num_samples = self.pad_samples(max(longest, self.config.min_samples))
        most = max((len(item.labels) for own in items for item in own), default=0)
        batch = self._empty(len(items), num_samples, self.pad_labels(num_samples, most))
        failed: dict[int, MMSError] = {}
        for slot, own in enumerate(items):
            try:
                for place, item in enumerate(own):
                    self._fill(batch, step, slot, place, item, count=len(own), num_slots=len(items))
            except MMSError as error:  # told by the loop, which stops that language
                failed[slot] = error
        names = [[item.name for item in own] for own in items]
        total = sum(item.num_samples for own in items for item in own)
        return Prepared(batch, self._layers(step), names, total, failed)

    def _empty(self, num_slots: int, num_samples: int, num_labels: int) -> Batch:
        c, shape = self.config, (self.passes, len(self.shards) * num_slots * self.rows)
        num_frames = int(c.num_frames(num_samples))
        masks = self.augment and c.apply_spec_augment
        return Batch(
            input_values=np.zeros((*shape, num_samples), np.float32),
            num_samples=np.zeros(shape, np.int32),
            labels=np.zeros((*shape, num_labels), np.int32),
            num_labels=np.zeros(shape, np.int32),
            weights=np.zeros(shape, np.float32),
            mask_time=np.zeros((*shape, num_frames), bool) if masks and c.mask_time_prob > 0 else None,
            mask_feature=np.zeros((*shape, c.hidden_size), bool) if masks and c.mask_feature_prob > 0 else None,
        )

    def _fill(self, batch: Batch, step: int, slot: int, place: int, item: Item, *, count: int, num_slots: int) -> None:
        """Write a clip into its row, if the row is this process's: passes first, then devices, then places there."""
        number, row = divmod(place, self.rows)
        of_pass, shard = divmod(number, self.num_shards)
        if shard not in self.shards:
            return
        at = of_pass, (self.shards.index(shard) * num_slots + slot) * self.rows + row
        rng = np.random.default_rng([self.seed, _CLIP, step, place])
        waveform = dither(item.load(), amount=self.dither, rng=rng)
        batch.input_values[at][: item.num_samples] = self.feature_extractor([waveform]).input_values[0]
        batch.num_samples[at] = item.num_samples
        batch.labels[at][: len(item.labels)] = item.labels
        batch.num_labels[at] = len(item.labels)
        batch.weights[at] = self._weight(len(item.labels), count)
        self._mask(batch, at, int(self.config.num_frames(item.num_samples)), rng)

    def _weight(self, num_labels: int, count: int) -> float:
        if self.reduction == "sum":  # over the rows of a pass; passes are averaged, as transformers' Trainer does
            return 1.0 / self.passes
        return 1.0 / (count * max(num_labels, 1))

    def _mask(self, batch: Batch, at: tuple[int, int], num_frames: int, rng: np.random.Generator) -> None:
        c = self.config
        if batch.mask_time is not None:
            options = {"prob": c.mask_time_prob, "length": c.mask_time_length, "min_masks": c.mask_time_min_masks}
            batch.mask_time[at][:num_frames] = time_mask(num_frames, **options, rng=rng)
        if batch.mask_feature is not None:
            options = {
                "prob": c.mask_feature_prob,
                "length": c.mask_feature_length,
                "min_masks": c.mask_feature_min_masks,
            }
            batch.mask_feature[at] = feature_mask(c.hidden_size, **options, rng=rng)

    def _layers(self, step: int) -> np.ndarray | None:
        c = self.config
        if not self.augment or c.layerdrop == 0:
            return None
        rng = np.random.default_rng([self.seed, _LAYERS, step])
        return np.stack([layer_keep(c.num_hidden_layers, layerdrop=c.layerdrop, rng=rng) for _ in range(self.passes)])

"""A trainer from settings, data and parameters: how long each language trains, at what rates, in what shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mms_jax.audio import SAMPLING_RATE
from mms_jax.config import Wav2Vec2Config
from mms_jax.features import FRAME_SAMPLES, FRAME_STRIDE, FeatureExtractor, bucket_length, next_bucket
from mms_jax.parallel import local_shards, make_mesh, replicate
from mms_jax.training.arguments import TrainingArguments
from mms_jax.training.batches import BatchMaker, Feed
from mms_jax.training.data.corpus import Corpus
from mms_jax.training.data.sampler import PaddedShapes, Sampler
from mms_jax.training.feeds import CorpusFeed, StreamFeed
from mms_jax.training.loop import Trainer
from mms_jax.training.material import Material, longest_shapes
from mms_jax.training.metrics import BlankMonitor
from mms_jax.training.model import Start
from mms_jax.training.slot import Slot
from mms_jax.training.state import Optimizer, init_state
from mms_jax.training.step import Objective

# Padded lengths of a stream, whose clips are not known beforehand: at least so long, each so many times the one before.
STREAM_SECONDS, STREAM_RATIO = 1.0, 1.5
STREAM_LABELS = 32  # the fewest padded labels of one
FIRST_LOSS_SCALE = 2.0**15  # float16
# Every padded length compiles a step, for about as long as so many steps take: a short job does better with few.
STEPS_OF_A_SHAPE, FEWEST_SHAPES, MOST_SHAPES = 50, 2, 8
WARMING_UP = 0.2  # of a run, in which nothing but blanks is no cause for alarm


def make_trainer(
    arguments: TrainingArguments,
    materials: Sequence[Material],
    start: Start,
    *,
    config: Wav2Vec2Config,
    extractor: FeatureExtractor,
    scan_layers: bool,
    resumed: dict[str, Any] | None,
) -> Trainer:
    """The trainer of a job, at step 0; its state is replaced where a checkpoint is resumed.

    Args:
        arguments: of the job.
        materials: the languages' data, in the order of slots.
        start: parameters.
        config: of the model, with the widest head.
        extractor: how audio is normalised.
        scan_layers: whether the base's layers are stacked.
        resumed: what was saved beside the state, if one is resumed.
    """
    a = arguments
    mesh = make_mesh()
    objective = Objective(
        config,
        start.columns,
        adapters=bool(a.target_language),
        dtype=a.dtype,
        scan_layers=scan_layers,
        remat=a.gradient_checkpointing,
        has_mask=extractor.return_attention_mask,
    )
    batch_size = a.per_device_train_batch_size * a.gradient_accumulation_steps * mesh.size
    slots = [_slot(a, one, batch_size, resumed) for one in materials]
    shapes = _shapes(a, materials, max(slot.total_steps for slot in slots))
    maker = BatchMaker(
        config,
        extractor,
        rows=a.per_device_train_batch_size,
        passes=a.gradient_accumulation_steps,
        num_shards=mesh.size,
        shards=local_shards(mesh),
        pad_samples=shapes.pad_samples,
        pad_labels=shapes.pad_labels,
        seed=a.seed,
        reduction=a.ctc_loss_reduction,
        dither=a.dither,
    )
    optimizer = Optimizer(a.adam_beta1, a.adam_beta2, a.adam_epsilon, a.weight_decay, a.max_grad_norm)
    scale = FIRST_LOSS_SCALE if a.fp16 else 1.0
    return Trainer(
        objective,
        optimizer,
        mesh,
        replicate(start.base, mesh),
        # All of it as a step returns it: what lies elsewhere at first would have the step compiled once more.
        replicate(init_state(start.params, optimizer=optimizer, loss_scale=scale), mesh),
        slots,
        maker,
        replace(maker, rows=a.per_device_eval_batch_size),
        logging_steps=a.logging_steps,
        metric=a.metric_for_best_model,
        slots_per_pass=min(a.languages_per_pass, len(materials)),
        eval_on_start=a.eval_on_start,
    )


def _slot(a: TrainingArguments, one: Material, batch_size: int, resumed: dict[str, Any] | None) -> Slot:
    name = one.name
    saved = {} if resumed is None else resumed["slots"].get(name, {})
    feed, steps_per_epoch = _feed(a, one, batch_size, saved, first_step=0 if resumed is None else resumed["step"])
    total = a.max_steps if a.max_steps > 0 else math.ceil(a.num_train_epochs * steps_per_epoch)
    total = total if a.do_train else 0
    return Slot(
        name,
        feed,
        a.schedule(max(1, total)),
        total,
        vocabulary_size(one),
        one.evaluation,
        {"no": None, "steps": a.eval_steps or a.logging_steps, "epoch": steps_per_epoch}[a.eval_strategy],
        {"no": None, "steps": a.save_steps, "epoch": steps_per_epoch}[a.save_strategy],
        BlankMonitor(name, warmup_steps=int(total * WARMING_UP)),
    )


def _feed(
    a: TrainingArguments, one: Material, batch_size: int, saved: dict[str, Any], *, first_step: int
) -> tuple[Feed | None, int]:
    """Where a slot's clips come from, and the steps of an epoch (of a stream: of the whole run)."""
    if one.train is None:
        return None, 1
    if isinstance(one.train, Corpus):
        sampler = Sampler(one.train.num_samples, batch_size, a.seed, a.group_by_length)
        return CorpusFeed(one.train, sampler), sampler.steps_per_epoch
    stream = StreamFeed(
        one.train,
        rules=one.rules,
        report=one.report,
        batch_size=batch_size,
        buffer_size=a.shuffle_buffer_size,
        seed=a.seed,
        num_workers=a.preprocessing_num_workers,
        start=saved.get("position"),
        first_step=first_step,
    )
    return stream, a.max_steps


def vocabulary_size(one: Material) -> int:
    """Rows of a language's head."""
    return max(one.vocabulary.tokens.values()) + 1


def _shapes(a: TrainingArguments, materials: Sequence[Material], steps: int) -> PaddedShapes | StreamShapes:
    if not a.streaming:
        most = min(MOST_SHAPES, max(FEWEST_SHAPES, steps // STEPS_OF_A_SHAPE))
        return PaddedShapes.of(*longest_shapes(materials), most=most)
    return StreamShapes(max(one.rules.max_samples for one in materials))


@dataclass(frozen=True)
class StreamShapes:
    """Padded shapes where nobody knows the clips beforehand: geometric series, whatever the longest clip may be."""

    max_samples: int  # of a clip; nothing is padded further than its frames reach

    def pad_samples(self, num_samples: int) -> int:
        """The smallest length of the series that holds so many, or as much as a clip may have."""
        longest = FRAME_SAMPLES + FRAME_STRIDE * max(0, -(-(self.max_samples - FRAME_SAMPLES) // FRAME_STRIDE))
        least = max(num_samples, int(STREAM_SECONDS * SAMPLING_RATE))
        return min(bucket_length(least, ratio=STREAM_RATIO), longest)

    def pad_labels(self, num_samples: int, num_labels: int) -> int:
        """The smallest of a geometric series that holds so many labels."""
        return next_bucket(num_labels, first=STREAM_LABELS, ratio=STREAM_RATIO)

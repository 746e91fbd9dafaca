"""What the training tests share: random clips, and a loop of the library's step without files or threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mms_jax.features import FeatureExtractor
from mms_jax.models.trees import Params
from mms_jax.parallel import local_shards, make_mesh, replicate, shard_rows
from mms_jax.training.batches import BatchMaker, Item
from mms_jax.training.schedules import make_schedule
from mms_jax.training.state import Optimizer, TrainState, init_state
from mms_jax.training.step import Objective, StepMetrics, make_step
from tests.parity import quick

DROPOUTS = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout")
NO_DROPOUT: dict[str, Any] = {**dict.fromkeys(DROPOUTS, 0.0), "layerdrop": 0.0, "mask_time_prob": 0.0}
MMS = NO_DROPOUT | {"ctc_loss_reduction": "mean", "pad_token_id": 7}
LEARNING_RATE, WARMUP, ROWS = 2e-3, 5, 3
PADDED = 400  # samples that hold every clip
OPTIMIZER = Optimizer(weight_decay=0.01)


class Clips(NamedTuple):
    """What both sides train on."""

    waveforms: list[np.ndarray]
    labels: list[np.ndarray]

    def items(self, step: int, rows: int) -> list[Item]:
        """The clips of an update."""
        return [self.item((step * rows + row) % len(self.waveforms)) for row in range(rows)]

    def item(self, index: int) -> Item:
        """One clip."""
        waveform = self.waveforms[index]
        return Item(len(waveform), self.labels[index], lambda: waveform, f"clip {index}")


def random_clips(*, count: int = 7, vocab_size: int = 23, blank_id: int = 7, seed: int = 0) -> Clips:
    """Noise of 100 to 400 samples (8 to 33 frames of the small model) with 1 to 6 labels, repeats among them."""
    rng = np.random.default_rng(seed)
    tokens = np.array([token for token in range(vocab_size) if token != blank_id])
    waveforms = [rng.normal(size=rng.integers(200, 400)).astype(np.float32) for _ in range(count)]
    labels = [rng.choice(tokens[:5], size=rng.integers(1, 7)).astype(np.int32) for _ in range(count)]
    return Clips(waveforms, labels)


def make_maker(objective: Objective, *, mesh: Mesh, rows: int = ROWS, passes: int = 1, **changes: Any) -> BatchMaker:
    """Batches of one shape."""
    settings: dict[str, Any] = {
        "config": objective.config,
        "feature_extractor": FeatureExtractor(return_attention_mask=objective.has_mask),
        "rows": rows,
        "passes": passes,
        "num_shards": mesh.size,
        "shards": local_shards(mesh),
        "pad_samples": lambda _: PADDED,
        "pad_labels": lambda *_: 6,
        "seed": 0,
        "augment": False,
    }
    return BatchMaker(**settings | changes)


class Run(NamedTuple):
    """What a run leaves."""

    losses: np.ndarray  # [steps, N]
    state: TrainState
    metrics: list[StepMetrics]


def train(
    objective: Objective,
    base: Params,
    params: Params,
    clips: Sequence[Clips],
    *,
    steps: int,
    optimizer: Optimizer = OPTIMIZER,
    mesh: Mesh | None = None,
    loss_scale: float = 1.0,
    **of_maker: Any,
) -> Run:
    """Train all slots from ``params`` [N, …] under a linear schedule."""
    mesh = make_mesh(num_devices=1) if mesh is None else mesh
    maker = make_maker(objective, mesh=mesh, **of_maker)
    update = make_step(objective, optimizer, mesh, compiler_options=quick())
    schedule = make_schedule("linear", learning_rate=LEARNING_RATE, total_steps=steps, warmup_steps=min(WARMUP, steps))
    state, base = init_state(replicate(params, mesh), optimizer=optimizer, loss_scale=loss_scale), replicate(base, mesh)
    seen = []
    for step in range(steps):
        prepared = maker.make(step, [own.items(step, maker.rows * maker.passes * mesh.size) for own in clips])
        rates = np.full(len(clips), schedule(step), np.float32)
        batch, key = shard_rows(prepared.batch, mesh, axis=1), jax.random.key(step)
        state, metrics = update(state, base, None, batch, prepared.layer_keep, rates, key)
        seen.append(jax.tree.map(np.asarray, metrics))
    return Run(np.array([metrics.loss for metrics in seen]), state, seen)

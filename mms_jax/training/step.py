"""One training step: forward, CTC loss, gradients of the trainable tree alone, an update for every slot of the pass.

Everything here is traced; the host prepares batches (batches.py) and decides who trains when (loop.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from mms_jax.config import Wav2Vec2Config
from mms_jax.ctc import ctc_loss, is_feasible
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.layers import MASKED_SCORE
from mms_jax.models.trees import Params, merge_trees, unstack_layers
from mms_jax.parallel import add_up, over_shards, shard_index
from mms_jax.training.state import Optimizer, TrainState

CLIP_EPSILON = 1e-6  # what torch.nn.utils.clip_grad_norm_ adds to the norm before it divides by it
LOSS_SCALE_GROWTH = 2.0 ** (1 / 2000)  # a finite float16 step: doubled in 2,000 of them, as torch's GradScaler does
MAX_LOSS_SCALE = 2.0**16


class Batch(NamedTuple):
    """Rows of one update: K passes of B rows each; the A slots of the pass have equal shares of consecutive rows."""

    input_values: Any  # float32 [K, B, S]
    num_samples: Any  # int32 [K, B]; 0 for a row that only fills
    labels: Any  # int32 [K, B, U]
    num_labels: Any  # int32 [K, B]
    weights: Any  # float32 [K, B]: what a row's loss counts; 0 for a row that only fills
    mask_time: Any = None  # bool [K, B, T], True = replace the frame (SpecAugment)
    mask_feature: Any = None  # bool [K, B, D], True = zero the channel


class StepMetrics(NamedTuple):
    """What a step measured, for each slot of the pass."""

    loss: Any  # float32 [A]: the weighted sum of the rows' losses
    infeasible: Any  # int32 [A]: rows left out because no alignment exists
    blank_frames: Any  # int32 [A]: frames whose best token is the blank
    num_frames: Any  # int32 [A]
    grad_norm: Any  # float32 [A]: before the clip
    bad_steps: Any  # int32 [A]: updates left out in a row, this one included, because a gradient is not finite


class Heard(NamedTuple):
    """What evaluation computes for each row."""

    ids: Any  # int32 [B, T]: the best token of each frame; -1 in padding
    losses: Any  # float32 [B]: CTC loss, nats


@dataclass(frozen=True, eq=False)
class Objective:
    """The model and its loss for one way of training; ``eq=False`` so that instances are keys of compiled steps."""

    config: Wav2Vec2Config  # vocab_size is the width of the widest head
    columns: np.ndarray  # bool [N, V], True = a token of that slot's language
    adapters: bool  # whether adapters are trained (layers stacked, [N, L, …]), or a whole model ([1, …])
    dtype: Any = jnp.float32  # of matrix products
    scan_layers: bool = False
    remat: bool = False
    has_mask: bool = True  # False: group-norm models, which are trained without an attention mask

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped at random inside the model."""
        c = self.config
        return any((c.hidden_dropout, c.activation_dropout, c.attention_dropout, c.feat_proj_dropout, c.final_dropout))

    def module(self, num_adapters: int | None) -> Wav2Vec2ForCTC:
        """The module for so many slots."""
        return Wav2Vec2ForCTC(self.config, self.dtype, self.scan_layers, num_adapters, self.remat)

    def assemble(self, base: Params, own: Params) -> Params:
        """The module's parameters from the frozen ones and those of the pass's slots, [A, …]."""
        if not self.adapters:
            return merge_trees(base, jax.tree.map(lambda leaf: leaf[0], own))
        if not self.scan_layers:
            return merge_trees(base, jax.vmap(unstack_layers)(own))
        layers = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), own["wav2vec2"])  # layers first, then slots
        return merge_trees(base, {**own, "wav2vec2": layers})

    def forward(self, base: Params, own: Params, columns: jax.Array, rows: Batch, layer_keep: Any, rng: Any) -> Any:
        """Logits float32 [B, T, V] and number of valid frames int32 [B] of one pass; ``rng`` None: no dropout."""
        num_slots = columns.shape[0]
        num_rows, num_samples = rows.input_values.shape
        valid = jnp.arange(num_samples) < rows.num_samples[:, None] if self.has_mask else None
        output: Any = self.module(num_slots if self.adapters else None).apply(
            {"params": self.assemble(base, own)},
            rows.input_values,
            valid,
            mask_time_indices=rows.mask_time,
            mask_feature_indices=rows.mask_feature,
            layer_keep=layer_keep,
            deterministic=rng is None,
            rngs=None if rng is None else {"dropout": rng},
        )
        logits = output.logits.reshape(num_slots, num_rows // num_slots, *output.logits.shape[1:])
        logits = jnp.where(columns[:, None, None], logits, MASKED_SCORE).reshape(output.logits.shape)
        # Without a mask the padding is audio to the model, and so it is to the loss (as in transformers).
        frames = output.frame_mask.sum(axis=1, dtype=jnp.int32)
        return logits, jnp.where(rows.num_samples > 0, frames, 0)


def make_step(
    objective: Objective, optimizer: Optimizer, mesh: Mesh, *, compiler_options: dict[str, Any] | None = None
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The compiled update: (state, base, slots, batch, layer_keep, learning_rates, rng) -> (state, StepMetrics).

    ``slots`` int32 [A] says which slots the pass trains, each once (a number beyond the last: none, its rows only
    fill); None: all, in order. ``layer_keep`` is bool [K, L] or None, ``learning_rates`` float32 [A]. A batch's rows
    are spread over the devices of ``mesh``, device by device, on each slot by slot. The state is donated.
    """
    scaled = jnp.dtype(objective.dtype) == jnp.float16

    def local(own, base, columns, scale, batch, layer_keep, rng):
        rng = jax.random.fold_in(rng, shard_index()) if objective.has_dropout else None
        return add_up(_accumulate(objective, own, base, columns, scale, batch, layer_keep, rng))

    spread = over_shards(local, mesh, rows=(None, None, None, None, 1, None, None))

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options)
    def step(state: TrainState, base: Params, slots, batch: Batch, layer_keep, learning_rates, rng):
        own = state if slots is None else _gather(state, slots)
        columns = jnp.asarray(objective.columns)
        columns = columns if slots is None else columns.at[slots].get(mode="clip")
        gradients, sums = spread(own.params, base, columns, own.loss_scale, batch, layer_keep, rng)
        own, norms = jax.vmap(functools.partial(_update, optimizer, scaled))(own, gradients, learning_rates)
        metrics = StepMetrics(**sums, grad_norm=norms, bad_steps=own.bad_steps)
        return own if slots is None else _scatter(state, own, slots), metrics

    return step


def _gather(state: TrainState, slots: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf.at[slots].get(mode="clip"), state)


def _scatter(state: TrainState, own: TrainState, slots: jax.Array) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[slots].set(new, mode="drop"), state, own)


def _accumulate(objective: Objective, own, base, columns, scale, batch: Batch, layer_keep, rng):
    """Gradients of the slots, and sums, over the K passes of one device's rows."""
    gradient = jax.grad(functools.partial(_loss, objective), has_aux=True)
    num_passes = batch.weights.shape[0]
    keys = None if rng is None else jax.random.split(rng, num_passes)

    def one_pass(inputs):
        rows, keep, key = inputs
        return gradient(own, base, columns, scale, rows, keep, key)

    inputs = (batch, layer_keep, keys)
    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    if num_passes == 1:
        return one_pass(first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one_pass, first))
    return lax.scan(lambda sums, inputs: (jax.tree.map(jnp.add, sums, one_pass(inputs)), None), zeros, inputs)[0]


def _loss(objective: Objective, own, base, columns, scale, rows: Batch, layer_keep, rng):
    """The sum over all slots, which share no parameter: its gradient is that of each slot's own loss."""
    logits, num_frames = objective.forward(base, own, columns, rows, layer_keep, rng)
    losses = row_losses(objective, logits, rows, num_frames)
    num_slots = columns.shape[0]

    def by_slot(values: jax.Array) -> jax.Array:
        return values.reshape(num_slots, -1).sum(axis=1)

    counts = rows.weights > 0
    # A row of weight 0 is left out by value: 0 times a NaN would be NaN.
    loss = by_slot(jnp.where(counts, losses * rows.weights, 0.0))
    feasible = is_feasible(rows.labels, num_frames=num_frames, num_labels=rows.num_labels)
    valid = (jnp.arange(logits.shape[1]) < num_frames[:, None]) & counts[:, None]
    blank = (jnp.argmax(lax.stop_gradient(logits), axis=-1) == objective.config.pad_token_id) & valid
    sums = {
        "loss": loss,
        "infeasible": by_slot((counts & ~feasible).astype(jnp.int32)),
        "blank_frames": by_slot(blank.sum(axis=1, dtype=jnp.int32)),
        "num_frames": by_slot(valid.sum(axis=1, dtype=jnp.int32)),
    }
    return (loss * scale).sum(), sums


def row_losses(objective: Objective, logits, rows: Batch, num_frames):
    """CTC loss of each row, nats, float32 [B]."""
    return ctc_loss(
        logits,
        labels=rows.labels,
        num_frames=num_frames,
        num_labels=rows.num_labels,
        blank_id=objective.config.pad_token_id,
        reduction="none",
    )


def _update(optimizer: Optimizer, scaled: bool, own: TrainState, gradients: Any, learning_rate: jax.Array):
    """One slot's update, or the slot as it was where a gradient is not finite: (slot, gradient norm)."""
    gradients = jax.tree.map(lambda leaf: leaf / own.loss_scale, gradients) if scaled else gradients
    norm = optax.tree.norm(gradients)
    good = jnp.isfinite(norm)
    if optimizer.max_grad_norm > 0:
        factor = jnp.minimum(1.0, optimizer.max_grad_norm / (norm + CLIP_EPSILON))
        gradients = jax.tree.map(lambda leaf: leaf * factor, gradients)
    direction, opt_state = optimizer.transformation().update(gradients, own.opt_state, own.params)
    params = jax.tree.map(lambda leaf, by: leaf - learning_rate * by, own.params, direction)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), (params, opt_state), (own.params, own.opt_state)
    )
    # A float16 overflow says that the scale is too large, not that the data is bad, until the scale is 1.
    overflow = ~good & (own.loss_scale > 1) if scaled else jnp.zeros((), bool)
    bad_steps = jnp.where(good, 0, own.bad_steps + ~overflow)
    loss_scale = _next_scale(own, good) if scaled else own.loss_scale
    return TrainState(params, opt_state, bad_steps, loss_scale), norm


def _next_scale(own: TrainState, good: jax.Array) -> jax.Array:
    return jnp.where(
        good, jnp.minimum(own.loss_scale * LOSS_SCALE_GROWTH, MAX_LOSS_SCALE), jnp.maximum(own.loss_scale / 2, 1.0)
    )


def make_listener(
    objective: Objective, mesh: Mesh, *, compiler_options: dict[str, Any] | None = None
) -> Callable[..., Heard]:
    """The compiled evaluation of one slot: (params, base, slot, rows) -> Heard, for rows without the axis of passes."""

    def local(own, base, columns, rows: Batch):
        logits, num_frames = objective.forward(base, own, columns, rows, None, None)
        valid = jnp.arange(logits.shape[1]) < num_frames[:, None]
        ids = jnp.where(valid, jnp.argmax(logits, axis=-1), -1).astype(jnp.int32)
        return Heard(ids, row_losses(objective, logits, rows, num_frames))

    spread = over_shards(local, mesh, rows=(None, None, None, 0), out=0)

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def listen(params: Params, base: Params, slot, rows: Batch) -> Heard:
        own = jax.tree.map(lambda leaf: leaf[slot][None], params)
        return spread(own, base, jnp.asarray(objective.columns)[slot][None], rows)

    return listen

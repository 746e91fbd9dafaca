"""What training changes: trainable parameters and optimiser state, each with a leading axis of slots.

A slot is a language of the job. The optimiser is mapped over slots, so every language has moments, a gradient norm and
a count of steps of its own, and one language's NaN stays its own. Full fine-tuning has one slot, the whole model's.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from mms_jax.checkpoint import param_shapes
from mms_jax.config import Wav2Vec2Config
from mms_jax.models.trees import Params, flatten, is_adapter_path, stack_layers, unflatten
from mms_jax.parallel import local_copy

INITIALIZER_RANGE = 0.02  # standard deviation of fresh adapters and heads, as in transformers
UNDECAYED = {"bias", "scale"}  # weight decay leaves biases and norms alone, as transformers' Trainer does


class Optimizer(NamedTuple):
    """AdamW (Loshchilov & Hutter 2019) under a clip of the global norm; names and defaults are transformers'."""

    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: no clip

    def transformation(self) -> optax.GradientTransformation:
        """The direction of one slot's update, to be multiplied by minus the learning rate."""
        adam = optax.scale_by_adam(self.adam_beta1, self.adam_beta2, self.adam_epsilon)
        if not self.weight_decay:
            return adam
        return optax.chain(adam, optax.add_decayed_weights(self.weight_decay, mask=decayed))


def decayed(params: Any) -> Any:
    """A tree of bool: whether weight decay applies to a leaf."""
    return unflatten({path: path.rpartition("/")[2] not in UNDECAYED for path in flatten(params)})


class TrainState(NamedTuple):
    """All that a step reads and changes; N slots."""

    params: Params  # float32, [N, …]
    opt_state: Any  # [N, …]
    bad_steps: Int[Array, " N"]  # updates left out in a row because a gradient was not finite
    loss_scale: Float[Array, " N"]  # float16 only: what losses are multiplied with


def init_state(params: Params, *, optimizer: Optimizer, loss_scale: float = 1.0) -> TrainState:
    """The state before the first step; ``params`` are float32 and have a leading axis of slots."""
    num_slots = jax.tree.leaves(params)[0].shape[0]
    opt_state = jax.vmap(optimizer.transformation().init)(params)
    bad_steps = jnp.zeros((num_slots,), jnp.int32)
    return TrainState(params, opt_state, bad_steps, jnp.full((num_slots,), loss_scale, jnp.float32))


def fresh_adapter(config: Wav2Vec2Config, *, vocab_size: int, seed: int) -> Params:
    """An adapter as transformers initialises one: norms one, biases zero, matrices normal; layers stacked.

    A leaf depends on its path, its shape and the seed only: not on the language, nor on what else there is.
    """
    shapes = {path: shape for path, shape in param_shapes(config).items() if is_adapter_path(path)}
    shapes |= {"lm_head/kernel": (config.hidden_size, vocab_size), "lm_head/bias": (vocab_size,)}
    return stack_layers(unflatten({path: fresh_leaf(path, shape, seed) for path, shape in shapes.items()}))


def fresh_leaf(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One parameter of an adapter or head as transformers initialises it, from its path, its shape and the seed."""
    name = path.rpartition("/")[2]
    if name in UNDECAYED:
        return np.full(shape, float(name == "scale"), np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return rng.normal(0.0, INITIALIZER_RANGE, shape).astype(np.float32)


def stack_slots(adapters: Sequence[Params]) -> tuple[Params, Bool[np.ndarray, "N V"]]:
    """Adapters side by side on a leading axis, heads padded with zeros to the widest; and which columns are real."""
    widths = [adapter["lm_head"]["kernel"].shape[-1] for adapter in adapters]
    padded = [_widened(adapter, max(widths)) for adapter in adapters]
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf, np.float32) for leaf in leaves]), *padded)
    return stacked, np.arange(max(widths)) < np.array(widths)[:, None]


def _widened(adapter: Params, width: int) -> Params:
    head: Mapping[str, Any] = adapter["lm_head"]
    missing = width - head["kernel"].shape[-1]
    wider = {name: np.pad(np.asarray(leaf), [(0, 0)] * (leaf.ndim - 1) + [(0, missing)]) for name, leaf in head.items()}
    return {**adapter, "lm_head": wider}


def take_slot(params: Params, slot: int, *, vocab_size: int | None = None) -> Params:
    """One slot's parameters on the host, its head cut to its vocabulary."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf[slot]), local_copy(params))
    if vocab_size is None:
        return own
    return {**own, "lm_head": {name: leaf[..., :vocab_size] for name, leaf in own["lm_head"].items()}}

"""VITS checkpoints in the Hugging Face layout: load and save."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mms_jax.checkpoint.engine import Binding, to_jax, to_torch
from mms_jax.checkpoint.hub import Source, require
from mms_jax.checkpoint.vits_rules import vits_table
from mms_jax.checkpoint.weights import bind_weights, save_model
from mms_jax.config import VitsConfig
from mms_jax.models.trees import Params, flatten
from mms_jax.models.vits import VitsModel


class VitsCheckpoint(NamedTuple):
    """A synthesis model read from disk."""

    config: VitsConfig
    params: Params


def load_vits(source: Source, *, dtype: Any = jnp.float32) -> VitsCheckpoint:
    """Read config.json and the weights of a ``VitsModel`` checkpoint, the parts that only training uses included.

    Args:
        source: from ``open_source``.
        dtype: of matrices in memory (float32, bfloat16, float16); converted while reading. Text encoder and duration
            predictor stay float32.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor. ConfigError: config.json.
    """
    config = VitsConfig.from_file(require(source, "config.json"))
    return VitsCheckpoint(config, to_jax(bind_vits(source, config), dtype=dtype))


def bind_vits(source: Source, config: VitsConfig) -> list[Binding]:
    """The tensors of a ``VitsModel`` checkpoint by our paths.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor.
    """
    return bind_weights(source, vits_table(config), vits_param_shapes(config))


def save_vits(directory: str | PathLike[str], *, config: VitsConfig, params: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors so that transformers loads them as they are.

    Raises:
        CheckpointError: ``params`` are not a whole tree of that config, or hold NaN. OSError: it cannot be written.
    """
    tensors = to_torch(vits_table(config), params, vits_param_shapes(config))
    save_model(directory, config=config, tensors=tensors, architecture="VitsModel")


def vits_param_shapes(config: VitsConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of ``VitsModel(config)``, by path, without computing anything."""
    return dict(_shapes(config))


@functools.lru_cache(maxsize=16)
def _shapes(config: VitsConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    module = VitsModel(config)
    tree = jax.eval_shape(lambda key: module.init(key, method="touch"), jax.random.key(0))["params"]
    return tuple((path, leaf.shape) for path, leaf in flatten(tree).items())

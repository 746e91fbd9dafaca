"""wav2vec2 checkpoints with a CTC head, and adapter files, in the Hugging Face layout: load and save."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mms_jax.checkpoint.engine import bind, to_jax, to_torch
from mms_jax.checkpoint.hub import Source, require
from mms_jax.checkpoint.rules import Table
from mms_jax.checkpoint.tensors import read_header, write_tensors
from mms_jax.checkpoint.wav2vec2_rules import HINTS, OPTIONAL, ctc_rules
from mms_jax.checkpoint.weights import bind_weights, save_model
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, LanguageError
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import Params, flatten, is_adapter_path

_LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Checkpoint(NamedTuple):
    """A model read from disk."""

    config: Wav2Vec2Config
    params: Params


def adapter_filename(language: str) -> str:
    """The file that holds one language's adapter and head.

    Raises:
        LanguageError: not a language tag: it must not choose a place outside the checkpoint.
    """
    if not _LANGUAGE.fullmatch(language):
        raise LanguageError(f"{language!r} is not a language tag (letters, digits, - and _: 'fra', 'azj-script_latin')")
    return f"adapter.{language}.safetensors"


def load_ctc(source: Source, *, dtype: Any = jnp.float32, stack_layers: bool = False) -> Checkpoint:
    """Read config.json and the weights of a ``Wav2Vec2ForCTC`` checkpoint.

    Args:
        source: from ``open_source``.
        dtype: of matrices in memory (float32, bfloat16, float16); converted while reading.
        stack_layers: give the layers a leading axis, for modules with ``scan_layers=True``.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor. ConfigError: config.json.
    """
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    bindings = bind_weights(source, _ctc_table(config), param_shapes(config))
    return Checkpoint(
        config, to_jax(bindings, dtype=dtype, stack_layers=config.num_hidden_layers if stack_layers else None)
    )


@functools.lru_cache(maxsize=16)
def _param_shapes(config: Wav2Vec2Config) -> tuple[tuple[str, tuple[int, ...]], ...]:
    module = Wav2Vec2ForCTC(config, scan_layers=True)  # tracing one layer instead of all
    samples = jax.ShapeDtypeStruct((1, config.min_samples), jnp.float32)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in flatten(jax.eval_shape(module.init, jax.random.key(0), samples)["params"]).items():
        head, scanned, tail = path.partition("/layers/")
        if scanned:
            shapes |= {f"{head}/layers_{i}/{tail}": leaf.shape[1:] for i in range(leaf.shape[0])}
        else:
            shapes[path] = leaf.shape
    return tuple(shapes.items())


def param_shapes(config: Wav2Vec2Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of ``Wav2Vec2ForCTC(config)``, by path, without computing anything.

    ``masked_spec_embed`` is left out where the config does without it.
    """
    return dict(_param_shapes(config))


def _ctc_table(config: Wav2Vec2Config) -> Table:
    return Table(ctc_rules(config), OPTIONAL, HINTS)


def load_adapter(path: str | PathLike[str], config: Wav2Vec2Config, *, dtype: Any = jnp.float32) -> Params:
    """Read one language's adapter file: every layer's adapter block and the CTC head, of any vocabulary size.

    Raises:
        CheckpointError: the config has no adapters, or the file is not an adapter of this architecture.
    """
    path = Path(path)
    if path.suffix == ".bin":
        raise CheckpointError(f"{path}: a pickle, which this library never opens; save it as safetensors first")
    tensors = read_header(path)
    head = tensors.get("lm_head.weight")
    vocab_size = head.shape[0] if head is not None and head.shape else config.vocab_size
    shapes = _adapter_shapes(config, vocab_size=vocab_size, what=str(path))
    rules = [rule for rule in ctc_rules(config) if rule.jax not in OPTIONAL]
    return to_jax(bind(Table(rules, hints=HINTS), tensors, shapes, source=str(path)), dtype=dtype)


def _adapter_shapes(config: Wav2Vec2Config, *, vocab_size: int, what: str) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter file's parameters; its vocabulary is its own."""
    if not config.has_adapters:
        raise CheckpointError(
            f"{what}: this model has no adapter layers (adapter_attn_dim is null, or it is post-norm)"
        )
    if vocab_size < 1:
        raise CheckpointError(f"{what}: lm_head has no rows, so no vocabulary")
    shapes = {name: shape for name, shape in param_shapes(config).items() if is_adapter_path(name)}
    return shapes | {"lm_head/kernel": (config.hidden_size, vocab_size), "lm_head/bias": (vocab_size,)}


def find_adapter(source: Source, language: str) -> Path:
    """The adapter file of a language in a checkpoint.

    Raises:
        LanguageError: there is none, or only a pickled one, which is not opened.
    """
    path = source.find(adapter_filename(language))
    if path is None:
        pickled = f"adapter.{language}.bin"
        remedy = f" ({pickled} is a pickle, which this library never opens)" if pickled in source.filenames() else ""
        raise LanguageError(f"{language!r} has no {adapter_filename(language)} in {source.name}{remedy}")
    return path


def save_ctc(directory: str | PathLike[str], *, config: Wav2Vec2Config, params: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors (unrolled ``params``) so that transformers loads them as they are.

    Raises:
        CheckpointError: ``params`` are not a whole tree of that config, or hold NaN. OSError: it cannot be written.
    """
    tensors = to_torch(_ctc_table(config), params, param_shapes(config))
    save_model(directory, config=config, tensors=tensors, architecture="Wav2Vec2ForCTC")


def save_adapter(path: str | PathLike[str], *, config: Wav2Vec2Config, params: Mapping[str, Any]) -> None:
    """Write the adapter leaves of ``params`` (a whole tree, or an adapter tree) as an adapter file.

    Raises:
        CheckpointError: they are not the adapters of that config, or hold NaN. OSError: it cannot be written.
    """
    path = Path(path)
    adapter = {name: leaf for name, leaf in flatten(params).items() if is_adapter_path(name)}
    vocab_size = adapter["lm_head/kernel"].shape[-1] if "lm_head/kernel" in adapter else config.vocab_size
    shapes = _adapter_shapes(config, vocab_size=vocab_size, what=f"{path} not written")
    tensors = to_torch(_ctc_table(config), adapter, shapes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors)

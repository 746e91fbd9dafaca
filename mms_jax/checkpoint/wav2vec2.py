"""wav2vec2 checkpoints with a CTC head, and adapter files, in the Hugging Face layout: load and save."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mms_jax.checkpoint.engine import bind, to_jax, to_torch
from mms_jax.checkpoint.hub import Source, require
from mms_jax.checkpoint.rules import OPTIONAL, ctc_rules
from mms_jax.checkpoint.tensors import TensorInfo, read_header, read_index, write_json, write_tensors
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, LanguageError
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import Params, flatten, is_adapter_path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class Checkpoint(NamedTuple):
    """A model read from disk."""

    config: Wav2Vec2Config
    params: Params


def adapter_filename(language: str) -> str:
    """The file that holds one language's adapter and head."""
    return f"adapter.{language}.safetensors"


def load_ctc(source: Source, *, dtype: Any = jnp.float32, stack_layers: bool = False) -> Checkpoint:
    """Read config.json and the weights of a ``Wav2Vec2ForCTC`` checkpoint.

    Args:
        source: from ``open_source``.
        dtype: of matrices in memory (float32, bfloat16, float16); converted tensor by tensor while reading.
        stack_layers: give the layers a leading axis, for modules with ``scan_layers=True``.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor. ConfigError: config.json.
    """
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    bindings = bind(ctc_rules(config), open_weights(source), param_shapes(config), source=source.name)
    return Checkpoint(
        config, to_jax(bindings, dtype=dtype, stack_layers=config.num_hidden_layers if stack_layers else None)
    )


def open_weights(source: Source) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint's weights, single file or sharded; nothing but headers is read."""
    path = source.find(WEIGHTS)
    if path is not None:
        return read_header(path)
    index = source.find(INDEX)
    if index is not None:
        return read_index(index, lambda shard: require(source, shard))
    pickled = next((name for name in _PICKLED if source.find(name) is not None), None)
    if pickled is not None:
        raise CheckpointError(
            f"{source.name}: holds only {pickled}, a pickle, which this library never opens; "
            "save it as safetensors first (transformers: model.save_pretrained(directory))"
        )
    raise CheckpointError(f"{source.name}: neither {WEIGHTS} nor {INDEX} is there")


def param_shapes(config: Wav2Vec2Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of ``Wav2Vec2ForCTC(config)``, by path, without computing anything.

    ``masked_spec_embed`` is left out where the config does without it.
    """
    module = Wav2Vec2ForCTC(config, scan_layers=True)  # tracing one layer instead of all
    samples = jax.ShapeDtypeStruct((1, config.min_samples), jnp.float32)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in flatten(jax.eval_shape(module.init, jax.random.key(0), samples)["params"]).items():
        head, scanned, tail = path.partition("/layers/")
        if scanned:
            shapes |= {f"{head}/layers_{i}/{tail}": leaf.shape[1:] for i in range(leaf.shape[0])}
        else:
            shapes[path] = leaf.shape
    return shapes


def load_adapter(path: str | PathLike[str], config: Wav2Vec2Config, *, dtype: Any = jnp.float32) -> Params:
    """Read one language's adapter file: every layer's adapter block and the CTC head, of any vocabulary size.

    Raises:
        CheckpointError: the config has no adapters, or the file is not an adapter of this architecture.
    """
    path = Path(path)
    if not config.has_adapters:
        raise CheckpointError(
            f"{path}: this model has no adapter layers (adapter_attn_dim is null, or it is post-norm)"
        )
    tensors = read_header(path)
    head = tensors.get("lm_head.weight")
    if head is not None and len(head.shape) == 2:
        config = config.replace(vocab_size=head.shape[0], pad_token_id=min(config.pad_token_id, head.shape[0] - 1))
    shapes = {name: shape for name, shape in param_shapes(config).items() if is_adapter_path(name)}
    rules = [rule for rule in ctc_rules(config) if rule.jax not in OPTIONAL]
    return to_jax(bind(rules, tensors, shapes, source=str(path)), dtype=dtype)


def find_adapter(source: Source, language: str) -> Path:
    """The adapter file of a language in a checkpoint.

    Raises:
        LanguageError: there is none; a pickled one is not opened and said so.
    """
    path = source.find(adapter_filename(language))
    if path is None:
        pickled = f"adapter.{language}.bin"
        remedy = f" ({pickled} is a pickle, which this library never opens)" if source.find(pickled) else ""
        raise LanguageError(f"{language!r} has no {adapter_filename(language)} in {source.name}{remedy}")
    return path


def save_ctc(directory: str | PathLike[str], *, config: Wav2Vec2Config, params: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors (unrolled ``params``) so that transformers loads them as they are."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / WEIGHTS, to_torch(ctc_rules(config), params))
    write_json(directory / "config.json", config.to_dict() | {"architectures": ["Wav2Vec2ForCTC"], "dtype": "float32"})


def save_adapter(path: str | PathLike[str], *, config: Wav2Vec2Config, params: Mapping[str, Any]) -> None:
    """Write the adapter leaves of ``params`` (a whole tree, or an adapter tree) as an adapter file."""
    adapter = {name: leaf for name, leaf in flatten(params).items() if is_adapter_path(name)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_tensors(Path(path), to_torch(ctc_rules(config), adapter))

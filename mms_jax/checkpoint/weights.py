"""A checkpoint's config.json and weights as files, whatever the architecture: found, matched with a table, written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mms_jax.checkpoint.engine import Binding, bind
from mms_jax.checkpoint.hub import Source, list_files, require
from mms_jax.checkpoint.rules import Table
from mms_jax.checkpoint.tensors import TensorInfo, TensorSource, read_header, read_index, write_tensors
from mms_jax.config import ModelConfig
from mms_jax.errors import CheckpointError
from mms_jax.files import write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def open_weights(source: Source) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint's weights, single file or sharded; nothing but headers is read.

    Raises:
        CheckpointError: no weights in the safetensors format are there, or they are malformed.
    """
    path = source.find(WEIGHTS)
    if path is not None:
        return read_header(path)
    index = source.find(INDEX)
    if index is not None:
        return read_index(index, lambda shard: require(source, shard))
    # A hub repository is not searched for the pickles: that would fetch gigabytes only to refuse them.
    raise CheckpointError(
        f"{source.name}: neither {WEIGHTS} nor {INDEX} is there (found: {list_files(source)}). pytorch_model.bin is a "
        "pickle, which this library never opens; `python -m convert` makes safetensors of it"
    )


def bind_weights(source: Source, table: Table, expected: Mapping[str, tuple[int, ...]]) -> list[Binding]:
    """Match the tensors of a checkpoint's weights with a model's parameters: ``bind``, with the file's name in errors.

    Raises:
        CheckpointError: wrong or incomplete; the message names the file and the tensor.
    """
    tensors = open_weights(source)
    files = sorted({info.path.name for info in tensors.values()})
    where = f"{source.name} ({files[0]})" if len(files) == 1 else source.name
    return bind(table, tensors, expected, source=where)


def save_model(
    directory: str | PathLike[str],
    *,
    config: ModelConfig,
    tensors: Iterable[TensorSource],
    architecture: str,
    attributes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write config.json and model.safetensors so that transformers loads them as its class ``architecture``.

    ``attributes`` go into config.json beside those of ``config``.

    Raises:
        CheckpointError: a tensor holds NaN. OSError: it cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / WEIGHTS, tensors)
    values = {**config.to_dict(), **attributes, "architectures": [architecture], "dtype": "float32"}
    write_json(directory / "config.json", values)

"""Hugging Face directories whose weights are pickles (pytorch_model.bin, adapter.*.bin) to safetensors, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.conversion import Conversion, ConversionError, Part, Texts
from convert.renaming import Tensor
from convert.safe_tensors import stored
from convert.torch_files import StoredTensor, read_torch_file
from mms_jax.checkpoint import open_source, open_weights
from mms_jax.checkpoint.tensors import read_header
from mms_jax.checkpoint.weights import INDEX, WEIGHTS
from mms_jax.files import read_json

PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
ADAPTER = re.compile(r"adapter\.([A-Za-z0-9_-]+)\.(bin|safetensors)")
_WEIGHTS = re.compile(r".*\.(bin|safetensors|pt|pth|h5|msgpack|onnx|ckpt)|.*\.index\.json|report\.json")
_MAX_TEXT = 64 << 20
_OLD_SPELLING = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def convert_pickled(source: Path) -> Conversion:
    """A directory with pickled weights, or one such file, as safetensors; small files beside them stay as they are.

    Raises:
        ConversionError: no pickled weights there, or they hold anything but tensors by name.
    """
    directory, single = (source.parent, source) if source.is_file() else (source, None)
    files: dict[str, list[Part]] = {}
    unused: dict[str, str] = {}
    paths = (
        [single]
        if single
        else sorted(path for path in directory.iterdir() if ADAPTER.fullmatch(path.name) and path.suffix == ".bin")
    )
    weights = [] if single else _shards(directory)
    for path in [*weights, *paths]:
        target = path.with_suffix(".safetensors").name if ADAPTER.fullmatch(path.name) else WEIGHTS
        parts, left = _parts(read_torch_file(path), path)
        files.setdefault(target, []).extend(parts)
        unused |= left
    if not files:
        raise ConversionError(f"{source}: neither {PICKLED} nor adapter.*.bin there")
    _check_names(files, source)
    return Conversion(
        "pickled weights in the Hugging Face layout", files, {} if single else _texts(directory), unused=unused
    )


def _shards(directory: Path) -> list[Path]:
    if (directory / PICKLED).is_file():
        return [directory / PICKLED]
    if not (directory / PICKLED_INDEX).is_file():
        return []
    weight_map = read_json(directory / PICKLED_INDEX, error=ConversionError).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, Mapping) else set()
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.bin", name) for name in names):
        raise ConversionError(f"{directory / PICKLED_INDEX}: no 'weight_map' from tensors to files")
    return [directory / name for name in sorted(names)]


def _parts(state: Any, path: Path) -> tuple[list[Part], dict[str, str]]:
    if not isinstance(state, Mapping) or not state:
        raise ConversionError(f"{path}: holds no tensors by name, as a model's weights do")
    parts, unused = [], {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise ConversionError(f"{path}: {str(name)[:80]!r} is no tensor but a {type(value).__name__}")
        if value.dtype.kind in "iub":
            unused[name] = f"{value.dtype} numbers, which are no parameters"
        else:
            parts.append(Part(name, (name,), value.dtype, value.shape, value.read))
    return parts, unused


def _check_names(files: Mapping[str, list[Part]], source: Path) -> None:
    for parts in files.values():
        names = [part.target for part in parts]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConversionError(f"{source}: {twice} is in two of its files")


def convert_to_bin(directory: Path) -> Conversion:
    """A directory of safetensors as pickles that transformers of any age loads, in torch's old spelling.

    Raises:
        CheckpointError: it is no checkpoint, or its weights are damaged.
    """
    objects: dict[str, Any] = {PICKLED: _by_name(stored(open_weights(open_source(directory))))}
    for path in sorted(directory.iterdir()):
        if ADAPTER.fullmatch(path.name) and path.suffix == ".safetensors":
            objects[path.with_suffix(".bin").name] = _by_name(stored(read_header(path)))
    return Conversion("safetensors in the Hugging Face layout", {}, _texts(directory), objects)


def _by_name(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    parts = {}
    for name, tensor in tensors.items():
        target = name
        for new, old in _OLD_SPELLING.items():
            target = f"{name.removesuffix(new)}{old}" if name.endswith(f".{new}") else target
        parts[target] = Part(target, (name,), tensor.dtype, tuple(tensor.shape), tensor.read)
    return parts


def _texts(directory: Path) -> Texts:
    """The small files of a checkpoint, as they are."""
    return {path.name: path.read_text(encoding="utf-8") for path in _small_files(directory)}


def _small_files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if (
            path.is_file()
            and not path.name.startswith(".")
            and not _WEIGHTS.fullmatch(path.name)
            and path.name != INDEX
        ):
            if path.stat().st_size > _MAX_TEXT:
                raise ConversionError(f"{path}: {path.stat().st_size:,} bytes; what is this doing in a checkpoint?")
            if path.suffix in (".json", ".txt", ".md"):
                yield path

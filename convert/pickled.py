"""Hugging Face directories whose weights are pickles (pytorch_model.bin, adapter.*.bin) to safetensors, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.conversion import Conversion, ConversionError, Part, Texts
from convert.renaming import Tensor, old_spelling
from convert.safe_tensors import StoredSafely, stored
from convert.torch_files import StoredTensor, read_torch_file
from mms_jax.checkpoint import Directory, open_weights
from mms_jax.checkpoint.tensors import read_header
from mms_jax.checkpoint.weights import INDEX, WEIGHTS
from mms_jax.files import MAX_JSON_BYTES, read_json

PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
CONFIG = "config.json"
ADAPTER = re.compile(r"adapter\.([A-Za-z0-9_-]+)\.(bin|safetensors)")
_WEIGHTS = re.compile(r"(pytorch_model|adapter\.).*\.bin|.*\.safetensors|.*\.index\.json|report\.json")


def convert_pickled(source: Path) -> Conversion:
    """A directory with pickled weights, or one such file, as safetensors; small files beside them stay as they are.

    Raises:
        ConversionError: no pickled weights there, or they hold anything but tensors by name.
    """
    directory, single = (source.parent, source) if source.is_file() else (source, None)
    alone = single is not None and ADAPTER.fullmatch(single.name) is not None
    if single is not None and not alone and not (directory / CONFIG).is_file():
        raise ConversionError(f"{source}: a model's weights without {CONFIG} beside them, which nobody can load")
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
    for target, tensors in ({} if single else _safe(directory, files)).items():
        files[target] = [
            Part(name, (name,), tensor.dtype, tensor.shape, tensor.read) for name, tensor in tensors.items()
        ]
    _check_names(files, source)
    return Conversion(
        "pickled weights in the Hugging Face layout",
        files,
        {} if alone else _texts(directory),
        unused=unused,
        notes=[] if single else _left_behind(directory),
    )


def _safe(directory: Path, files: Mapping[str, Any]) -> dict[str, dict[str, StoredSafely]]:
    """What is in safetensors already, beside pickles of something else."""
    found: dict[str, dict[str, StoredSafely]] = {}
    if WEIGHTS not in files and any((directory / name).is_file() for name in (WEIGHTS, INDEX)):
        found[WEIGHTS] = stored(open_weights(Directory(directory)))
    for path in sorted(directory.glob("adapter.*.safetensors")):
        if path.name not in files:
            found[path.name] = stored(read_header(path))
    return found


def bare(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A state dict without what trainers wrap it in: a key "state_dict", and "module." before every name."""
    inner = state.get("state_dict")
    state = inner if isinstance(inner, Mapping) else state
    if state and all(isinstance(name, str) and name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


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
    for name, value in bare(state).items():
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
    objects: dict[str, Any] = {PICKLED: _by_name(stored(open_weights(Directory(directory))))}
    for path in sorted(directory.iterdir()):
        if ADAPTER.fullmatch(path.name) and path.suffix == ".safetensors":
            objects[path.with_suffix(".bin").name] = _by_name(stored(read_header(path)))
    return Conversion(
        "safetensors in the Hugging Face layout", {}, _texts(directory), objects, notes=_left_behind(directory)
    )


def _by_name(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    parts = {}
    for name, tensor in tensors.items():
        target = old_spelling(name)
        parts[target] = Part(target, (name,), tensor.dtype, tuple(tensor.shape), tensor.read)
    return parts


def _texts(directory: Path) -> Texts:
    """The small files of a checkpoint, as they are."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if _is_small(path)}


def _left_behind(directory: Path) -> list[str]:
    """A note on what stays where it is."""
    known = [path for path in directory.iterdir() if _is_small(path) or _WEIGHTS.fullmatch(path.name)]
    names = sorted(path.name for path in directory.iterdir() if path not in known and not path.name.startswith("."))
    return [f"not copied: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"] if names else []


def _is_small(path: Path) -> bool:
    """Whether it is one of the small files of a checkpoint: settings, vocabularies, a card."""
    if not path.is_file() or path.name.startswith(".") or _WEIGHTS.fullmatch(path.name):
        return False
    return path.suffix in (".json", ".txt", ".md") and path.stat().st_size <= MAX_JSON_BYTES

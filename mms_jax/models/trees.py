"""Functions on parameter trees: per-language leaves apart from the shared base, and layers stacked for scanning.

A parameter tree is a nested dict of arrays whose names hold no "/". The per-language leaves are every layer's
``adapter`` block and the CTC head ``lm_head``: exactly what an adapter file holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Params = dict[str, Any]

_LAYER = re.compile(r"(?<![^/])layers_(0|[1-9]\d*)(?![^/])")  # a whole name of a path, one way to write an index
_STACKED = re.compile(r"(?<![^/])layers(?![^/])")


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """A tree as {"a/b/c": leaf}; subtrees without leaves are dropped."""
    return flatten_dict(dict(params), sep="/")


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of ``flatten``."""
    return unflatten_dict(dict(flat), sep="/")


def is_adapter_path(path: str) -> bool:
    """Whether a leaf belongs to one language: an adapter block or the CTC head."""
    return "/adapter/" in path or path.startswith("lm_head/")


def split_adapter(params: Mapping[str, Any]) -> tuple[Params, Params]:
    """Part a tree into (base, adapter): what all languages share, and what belongs to one."""
    flat = flatten(params)
    base = {path: leaf for path, leaf in flat.items() if not is_adapter_path(path)}
    adapter = {path: leaf for path, leaf in flat.items() if is_adapter_path(path)}
    return unflatten(base), unflatten(adapter)


def merge_trees(base: Mapping[str, Any], adapter: Mapping[str, Any]) -> Params:
    """Join two trees that share no leaf; the inverse of ``split_adapter``. Neither is changed.

    Raises:
        ValueError: both hold a leaf, or one holds a leaf where the other goes on; the message names the path.
    """
    return _merge(base, adapter, "")


def _merge(base: Mapping[str, Any], adapter: Mapping[str, Any], path: str) -> Params:
    merged: Params = dict(base)
    for name, value in adapter.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, Mapping) and isinstance(merged[name], Mapping):
            merged[name] = _merge(merged[name], value, f"{path}{name}/")
        else:
            raise ValueError(f"both trees hold {path + name!r}")
    return merged


def stacked_path(path: str) -> tuple[str, int | None]:
    """Where an unrolled leaf lives when layers are scanned: (path, index on the leading axis), or (path, None)."""
    match = _LAYER.search(path)
    if match is None:
        return path, None
    return path[: match.start()] + "layers" + path[match.end() :], int(match.group(1))


def stack_layers(params: Mapping[str, Any]) -> Params:
    """Turn ``layers_0 … layers_{L-1}`` into ``layers`` with a leading axis L, as scanned modules expect.

    Raises:
        ValueError: a layer is missing, has another shape or dtype than the others, or layers are stacked already.
    """
    groups: dict[str, dict[int, Any]] = {}
    stacked: Params = {}
    for path, leaf in flatten(params).items():
        target, index = stacked_path(path)
        if index is not None:
            groups.setdefault(target, {})[index] = leaf
        elif _STACKED.search(path):
            raise ValueError(f"{path}: the layers are stacked already")
        else:
            stacked[path] = leaf
    return unflatten(stacked | {path: _stack(path, layers) for path, layers in groups.items()})


def _stack(path: str, layers: Mapping[int, Any]) -> Any:
    if sorted(layers) != list(range(len(layers))):
        raise ValueError(f"{path}: there are layers {sorted(layers)}, expected 0 … {len(layers) - 1}")
    kinds = {(leaf.shape, str(leaf.dtype)) for leaf in layers.values()}
    if len(kinds) > 1:
        raise ValueError(f"{path}: layers differ in shape or dtype: {sorted(kinds)}")
    return jnp.stack([layers[i] for i in range(len(layers))])


def unstack_layers(params: Mapping[str, Any]) -> Params:
    """The inverse of ``stack_layers``."""
    flat = {}
    for path, leaf in flatten(params).items():
        match = _STACKED.search(path)
        if match is None:
            flat[path] = leaf
        else:
            head, tail = path[: match.start()], path[match.end() :]
            flat |= {f"{head}layers_{i}{tail}": leaf[i] for i in range(leaf.shape[0])}
    return unflatten(flat)

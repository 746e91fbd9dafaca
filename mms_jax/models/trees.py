"""Functions on parameter trees: per-language leaves apart from the shared base, and layers stacked for scanning.

A parameter tree is a nested dict of arrays. The per-language leaves are every layer's ``adapter`` block and the CTC
head ``lm_head``: exactly what an adapter file holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Params = dict[str, Any]

_LAYER = re.compile(r"layers_(\d+)")


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """A tree as {"a/b/c": leaf}."""
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
    """Join two trees that share no leaf; the inverse of ``split_adapter``."""
    merged: Params = dict(base)
    for name, value in adapter.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, Mapping) and isinstance(merged[name], Mapping):
            merged[name] = merge_trees(merged[name], value)
        else:
            raise ValueError(f"both trees hold {name!r}")
    return merged


def stacked_path(path: str) -> tuple[str, int | None]:
    """Where an unrolled leaf lives when layers are scanned: (path, index on the leading axis), or (path, None)."""
    match = _LAYER.search(path)
    if match is None:
        return path, None
    return path[: match.start()] + "layers" + path[match.end() :], int(match.group(1))


def stack_layers(params: Mapping[str, Any]) -> Params:
    """Turn ``layers_0 … layers_{L-1}`` into ``layers`` with a leading axis L, as scanned modules expect."""
    groups: dict[str, dict[int | None, Any]] = {}
    for path, leaf in flatten(params).items():
        target, index = stacked_path(path)
        groups.setdefault(target, {})[index] = leaf
    return unflatten({path: _stack_group(path, group) for path, group in groups.items()})


def _stack_group(path: str, group: Mapping[int | None, Any]) -> Any:
    if None in group:
        return group[None]
    if sorted(group) != list(range(len(group))):  # pyright: ignore[reportArgumentType] - None was handled above
        raise ValueError(f"{path}: layers {sorted(map(str, group))} are not 0 … {len(group) - 1}")
    return jnp.stack([group[i] for i in range(len(group))])


def unstack_layers(params: Mapping[str, Any]) -> Params:
    """The inverse of ``stack_layers``."""
    flat = {}
    for path, leaf in flatten(params).items():
        head, separator, tail = path.partition("/layers/")
        if separator:
            flat |= {f"{head}/layers_{i}/{tail}": leaf[i] for i in range(leaf.shape[0])}
        else:
            flat[path] = leaf
    return unflatten(flat)

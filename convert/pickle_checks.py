"""What a pickle built must be a tree of bounded size: no value that holds itself, none that unfolds without end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from convert.conversion import UnsafeFileError
from convert.pickle_values import Record

MAX_DEPTH = 200  # containers inside one another; fairseq's deepest, an OmegaConf tree of records, takes about 20
_CONTAINERS = (dict, list, tuple, Record)
_OPEN = (-1, -1)  # of a container that is being walked


def check_tree(root: object, *, max_items: int) -> None:
    """Raise unless whoever walks ``root`` comes to an end soon, however often parts of it are shared.

    Raises:
        UnsafeFileError: a container holds itself, over 200 lie inside one another, or the tree has over ``max_items``.
    """
    done: dict[int, tuple[int, int]] = {id(root): _OPEN}  # by identity: items when unfolded, depth
    path: list[tuple[Any, list]] = [(root, _containers(root))]
    while path:
        value, children = path[-1]
        if children:
            child = children.pop()
            known = done.get(id(child))
            if known is _OPEN:
                raise UnsafeFileError("a container that holds itself")
            if known is None:
                done[id(child)] = _OPEN
                path.append((child, _containers(child)))
            if len(path) > MAX_DEPTH:
                raise UnsafeFileError(f"over {MAX_DEPTH} containers inside one another")
            continue
        path.pop()
        done[id(value)] = _measure(value, done, max_items)


def _children(value: object) -> Iterable:
    kind = type(value)
    if kind is dict:
        assert isinstance(value, dict)
        return value.values()  # keys are plain
    if kind is Record:
        assert isinstance(value, Record)
        return (value.arguments, value.state)
    return value if kind is list or kind is tuple else ()  # pyright: ignore[reportReturnType]


def _containers(value: object) -> list:
    return [child for child in _children(value) if type(child) in _CONTAINERS]


def _measure(value: object, done: dict[int, tuple[int, int]], max_items: int) -> tuple[int, int]:
    """The items of ``value`` when every shared part counts as often as it stands there, and its depth."""
    items, depth = _length(value), 0
    for child in _containers(value):
        child_items, child_depth = done[id(child)]
        items, depth = items + child_items, max(depth, child_depth)
    if items > max_items:
        raise UnsafeFileError(f"unfolds to over {max_items:,} values, many times what the file holds")
    if depth >= MAX_DEPTH:
        raise UnsafeFileError(f"over {MAX_DEPTH} containers inside one another")
    return items, depth + 1


def _length(value: object) -> int:
    return len(value) if isinstance(value, dict | list | tuple | set | frozenset) else 1

"""The one engine that applies rule tables, both ways, strictly: every tensor is used, or the error names it."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from mms_jax.checkpoint.rules import Rule, Table
from mms_jax.checkpoint.tensors import TensorInfo, TensorSource, aligned_empty, read_rows, read_tensor
from mms_jax.errors import CheckpointError
from mms_jax.models.int8 import quantize_channels
from mms_jax.models.trees import Params, flatten, stacked_path, unflatten

Leaves = dict[str, np.ndarray]  # by path

_NAMES_SHOWN = 8
_DTYPES = tuple(np.dtype(dtype) for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.int8))

# Reading, checking and transposing run without the interpreter's lock. Each thread adds a block of rows to the peak.
_THREADS = min(4, os.cpu_count() or 1)


class Binding(NamedTuple):
    """A rule and the tensor it found."""

    rule: Rule
    name: str  # the PyTorch name as the file spells it
    info: TensorInfo


def bind(
    table: Table, tensors: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], *, source: str
) -> list[Binding]:
    """Match a file's tensors with a model's parameters, before any tensor is read.

    Args:
        table: of the architecture.
        tensors: what the file holds, by PyTorch name.
        expected: shape of every parameter of the model, by path.
        source: the checkpoint's name, for errors.

    Raises:
        CheckpointError: a parameter without a tensor, a tensor without a parameter that the table does not list as
            unused, one given twice, a wrong shape or dtype.
    """
    by_path = {rule.jax: rule for rule in table.rules}
    without_rule = expected.keys() - by_path.keys()
    assert not without_rule, f"no rule for {sorted(without_rule)}"
    bindings, missing = [], {}
    for path in sorted(expected.keys() | table.optional & by_path.keys()):
        rule = by_path[path]
        found = [name for name in (rule.torch, rule.alias) if name is not None and name in tensors]
        if len(found) == 2:
            raise CheckpointError(f"{source}: holds both {rule.torch} and {rule.alias}; they are the same tensor")
        if found:
            bindings.append(Binding(rule, found[0], tensors[found[0]]))
        elif path not in table.optional:
            missing[rule.torch] = rule.layout.shape(expected[path])
    used = {binding.name for binding in bindings}
    unknown = {name: tensors[name].shape for name in tensors.keys() - used - table.unused.keys()}
    _check_complete(missing, unknown, table.hints, source=source)
    for binding in bindings:
        _check_tensor(binding, expected)
    return bindings


def _check_complete(
    missing: Mapping[str, tuple[int, ...]],
    unknown: Mapping[str, tuple[int, ...]],
    hints: Sequence[tuple[str, str]],
    *,
    source: str,
) -> None:
    parts = [_listed(names, what) for what, names in (("missing", missing), ("unknown", unknown)) if names]
    if parts:
        named = [*(f"missing {name}" for name in missing), *(f"unknown {name}" for name in unknown)]
        hint = next((hint for pattern, hint in hints if any(re.search(pattern, name) for name in named)), None)
        raise CheckpointError(f"{source}: {'; '.join(parts)}" + (f". {hint}" if hint else ""))


def _listed(shapes: Mapping[str, tuple[int, ...]], what: str) -> str:
    shown = ", ".join(f"{name} {list(shapes[name])}" for name in sorted(shapes)[:_NAMES_SHOWN])
    return f"{len(shapes)} tensor(s) {what}: {shown}{' …' if len(shapes) > _NAMES_SHOWN else ''}"


def _check_tensor(binding: Binding, expected: Mapping[str, tuple[int, ...]]) -> None:
    rule, name, info = binding
    if not info.is_float:
        raise CheckpointError(
            f"{info.path}: {name} {list(info.shape)} has dtype {info.dtype}; weights are F32, F16, BF16 or F64"
        )
    wanted = expected.get(rule.jax)
    if wanted is not None and rule.layout.shape(info.shape) != wanted:
        shape = list(rule.layout.shape(wanted))
        raise CheckpointError(f"{info.path}: {name} has shape {list(info.shape)}, the config asks for {shape}")


def to_jax(bindings: Iterable[Binding], *, dtype: Any, stack_layers: int | None = None) -> Params:
    """Read tensors into a parameter tree on the default device; on CPUs nothing is held twice.

    Args:
        bindings: from ``bind``.
        dtype: of matrices and convolution kernels; vectors (norms, biases; 0.1 % of the bytes) stay float32, and so
            does what a rule keeps. int8: of the kernels whose rules say so, which get a ``kernel_scale`` each; other
            matrices are bfloat16.
        stack_layers: the number of layers, to stack them on a leading axis for scanned modules; None leaves them apart.

    Raises:
        CheckpointError: a tensor holds NaN, infinity or numbers too large for ``dtype``. ValueError: a ``dtype`` that
            parameters are not kept in.
    """
    if np.dtype(dtype) not in _DTYPES:
        raise ValueError(f"dtype is {np.dtype(dtype)}; parameters are kept in {', '.join(map(str, _DTYPES))}")
    groups: dict[str, list[tuple[int | None, Binding]]] = {}  # by path, in the order of the file
    for binding in sorted(bindings, key=lambda binding: (binding.info.path, binding.info.offset)):
        path, index = stacked_path(binding.rule.jax) if stack_layers else (binding.rule.jax, None)
        groups.setdefault(path, []).append((index, binding))
    # All at once, before any is touched: then they are neighbours, and the kernel has huge pages for all of them.
    buffers = {path: _empty_leaves(path, group, np.dtype(dtype), stack_layers) for path, group in groups.items()}
    with ThreadPoolExecutor(_THREADS) as pool:
        read = _map_ahead(pool, lambda path: _read_leaves(buffers.pop(path), groups[path]), groups)
        # Waiting keeps what an accelerator has yet to take from piling up in the host's memory.
        flat = {path: jax.device_put(leaf).block_until_ready() for leaves in read for path, leaf in leaves.items()}
    return unflatten(flat)


def _map_ahead(pool: ThreadPoolExecutor, function: Callable[[str], Leaves], items: Iterable[str]) -> Iterator[Leaves]:
    """``pool.map``, but never further ahead of its reader than the threads are many."""
    pending: deque[Future[Leaves]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > _THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _empty_leaves(
    path: str, group: Sequence[tuple[int | None, Binding]], dtype: np.dtype, num_layers: int | None
) -> Leaves:
    """Room for one parameter: a tensor, or one per layer, in our layout; with its scales, if it is kept in int8."""
    (first, (rule, _, info)), *_ = group
    assert first is None or len(group) == num_layers
    leading = () if first is None else (len(group),)
    target = _kept_as(rule, dtype)
    leaves = {path: aligned_empty((*leading, *rule.layout.shape(info.shape)), target)}
    if target == np.int8:
        leaves[f"{path}_scale"] = aligned_empty((*leading, leaves[path].shape[-1]), np.dtype(np.float32))
    return leaves


def _read_leaves(leaves: Leaves, group: Sequence[tuple[int | None, Binding]]) -> Leaves:
    """Read one parameter into the room for it."""
    for index, (rule, name, info) in group:
        kernel, *scale = (leaf[... if index is None else index] for leaf in leaves.values())
        out = rule.layout.convert(kernel)
        if scale:
            for rows, weight in read_rows(name, info, dtype=np.dtype(np.float32)):
                scale[0][rows] = quantize_channels(weight, out=out[rows])
        else:
            read_tensor(name, info, out=out)
    return leaves


def _kept_as(rule: Rule, dtype: np.dtype) -> np.dtype:
    """What a model loaded in ``dtype`` keeps a parameter in."""
    if rule.float32 or not rule.layout.is_matrix:
        return np.dtype(np.float32)
    return np.dtype(ml_dtypes.bfloat16) if dtype == np.int8 and not rule.int8 else dtype


def to_torch(table: Table, params: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> list[TensorSource]:
    """The tensors of a tree (unrolled layers) under their PyTorch names, for ``write_tensors``.

    Args:
        table: of the architecture.
        params: the tree.
        expected: shape of every parameter of the model, by path.

    Raises:
        CheckpointError: the tree is not that model's: a parameter is missing, unknown, or of another shape.
    """
    by_path = {rule.jax: rule for rule in table.rules}
    flat = flatten(params)
    missing = {path: expected[path] for path in expected.keys() - flat.keys() - table.optional}
    unknown = {path: flat[path].shape for path in flat.keys() - expected.keys() - table.optional}
    _check_complete(missing, unknown, table.hints, source="the parameters to be saved")
    tensors = []
    for path, leaf in flat.items():
        if leaf.shape != expected.get(path, leaf.shape):
            raise CheckpointError(f"{path} has shape {list(leaf.shape)}, the config asks for {list(expected[path])}")
        rule = by_path[path]
        tensors.append(
            TensorSource(rule.torch, np.dtype(leaf.dtype), rule.layout.shape(leaf.shape), _reader(rule, leaf))
        )
    return tensors


def _reader(rule: Rule, leaf: Any) -> Callable[[], np.ndarray]:
    return lambda: rule.layout.convert(np.asarray(leaf))

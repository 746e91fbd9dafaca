"""The one engine that applies rule tables, in both directions, strictly: every tensor is accounted for, or named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mms_jax.checkpoint.rules import OPTIONAL, Rule
from mms_jax.checkpoint.tensors import TensorInfo, read_tensor
from mms_jax.errors import CheckpointError
from mms_jax.models.trees import Params, flatten, stacked_path, unflatten

_NAMES_SHOWN = 8


class Binding(NamedTuple):
    """A rule and the tensor it found."""

    rule: Rule
    name: str  # the PyTorch name as the file spells it
    info: TensorInfo


def bind(
    rules: Sequence[Rule], tensors: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], *, source: str
) -> list[Binding]:
    """Match a file's tensors with a model's parameters, before any tensor is read.

    Args:
        rules: the table.
        tensors: what the file holds, by PyTorch name.
        expected: shape of every parameter of the model, by path.
        source: the checkpoint's name, for errors.

    Raises:
        CheckpointError: a parameter without a tensor, a tensor without a parameter, one given twice, a wrong shape.
    """
    by_path = {rule.jax: rule for rule in rules}
    without_rule = expected.keys() - by_path.keys()
    assert not without_rule, f"no rule for {sorted(without_rule)}"
    bindings, missing = [], []
    for path in sorted(expected.keys() | OPTIONAL & by_path.keys()):
        rule = by_path[path]
        found = [name for name in (rule.torch, rule.alias) if name in tensors]
        if len(found) == 2:
            raise CheckpointError(f"{source}: holds both {rule.torch} and {rule.alias}; they are the same tensor")
        if found:
            assert found[0] is not None
            bindings.append(Binding(rule, found[0], tensors[found[0]]))
        elif path not in OPTIONAL:
            missing.append(rule.torch)
    unknown = sorted(tensors.keys() - {binding.name for binding in bindings})
    if missing or unknown:
        raise CheckpointError(f"{source}: {_describe(missing, unknown)}")
    for binding in bindings:
        _check_shape(binding, expected)
    return bindings


def _describe(missing: Sequence[str], unknown: Sequence[str]) -> str:
    parts = [
        f"{len(names)} tensor(s) {what}: {', '.join(names[:_NAMES_SHOWN])}{' …' if len(names) > _NAMES_SHOWN else ''}"
        for what, names in (("missing", sorted(missing)), ("unknown", unknown))
        if names
    ]
    hint = ""
    if any(name.startswith("lm_head.") for name in missing):
        hint = ". A checkpoint without lm_head is no recognition (CTC) model"
    elif any("adapter_layer" in name for name in (*missing, *unknown)):
        hint = ". Does adapter_attn_dim in config.json match the weights?"
    return "; ".join(parts) + hint


def _check_shape(binding: Binding, expected: Mapping[str, tuple[int, ...]]) -> None:
    rule, name, info = binding
    wanted = expected.get(rule.jax)
    if wanted is not None and rule.layout.shape(info.shape) != wanted:
        shape = list(rule.layout.shape(wanted))
        raise CheckpointError(f"{info.path}: {name} has shape {list(info.shape)}, the config asks for {shape}")


def to_jax(bindings: Iterable[Binding], *, dtype: Any, stack_layers: int | None = None) -> Params:
    """Read tensors one at a time into a parameter tree on the default device.

    Args:
        bindings: from ``bind``.
        dtype: of matrices and convolution kernels; vectors (norms, biases) stay float32, 0.1 % of the bytes.
        stack_layers: the number of layers, to stack them on a leading axis for scanned modules; None leaves them apart.
    """
    flat: dict[str, Any] = {}
    stacked: dict[str, np.ndarray] = {}
    for rule, name, info in bindings:
        target = np.dtype(dtype if rule.layout.is_matrix else np.float32)
        tensor = rule.layout.convert(read_tensor(name, info).astype(target, copy=False))
        path, index = stacked_path(rule.jax) if stack_layers else (rule.jax, None)
        if index is None:
            flat[path] = jax.device_put(np.ascontiguousarray(tensor))
        else:
            assert stack_layers is not None
            stacked.setdefault(path, np.empty((stack_layers, *tensor.shape), target))[index] = tensor
    for path in list(stacked):
        flat[path] = jax.device_put(stacked.pop(path))
    return unflatten(flat)


def to_torch(rules: Sequence[Rule], params: Mapping[str, Any]) -> Iterator[tuple[str, np.dtype, tuple[int, ...], Any]]:
    """The tensors of a tree (unrolled layers) under their PyTorch names, for ``write_tensors``.

    Raises:
        CheckpointError: a parameter without a rule.
    """
    by_path = {rule.jax: rule for rule in rules}
    for path, leaf in flatten(params).items():
        if path not in by_path:
            raise CheckpointError(f"parameter {path} has no PyTorch name: is the tree stacked, or of another model?")
        layout = by_path[path].layout
        yield by_path[path].torch, np.dtype(leaf.dtype), layout.shape(leaf.shape), _reader(layout, leaf)


def _reader(layout, leaf):
    return lambda: layout.convert(np.asarray(leaf))

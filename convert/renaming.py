"""Names of one layout for those of another: tables that work both ways, applied strictly.

``{i}`` in a template stands for a number, and ``{i}`` on both sides for the same one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from convert.conversion import ConversionError, Part

_SHOWN = 8
OLD_SPELLING = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


class Tensor(Protocol):
    """What a tensor of a source is, wherever it lies."""

    @property
    def dtype(self) -> np.dtype:
        """Of its elements."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its axes."""
        ...

    def read(self) -> np.ndarray:
        """Its values, C-contiguous."""
        ...


class Way(enum.Enum):
    """How a tensor's axes differ: the original's on the left, the Hugging Face layout's on the right."""

    SAME = "as they are"
    ONE_OF_ONE = "[1, ...] <-> [...]: the only one of a stack"
    POINTWISE = "[out, in, 1] <-> [out, in]: a convolution of one tap"

    def forward(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape in the Hugging Face layout of an original's; None: it has no such axis."""
        if self is Way.SAME:
            return shape
        if self is Way.ONE_OF_ONE:
            return shape[1:] if shape[:1] == (1,) else None
        return shape[:-1] if len(shape) == 3 and shape[-1] == 1 else None

    def back(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The original's shape."""
        if self is Way.SAME:
            return shape
        return (1, *shape) if self is Way.ONE_OF_ONE else (*shape, 1)


class Name(NamedTuple):
    """One tensor, or one of each layer, by its two names."""

    original: str
    huggingface: str
    way: Way = Way.SAME


def affine(original: str, huggingface: str, way: Way = Way.SAME) -> tuple[Name, Name]:
    """A weight and a bias, of which only the weight may have another shape."""
    return Name(f"{original}.weight", f"{huggingface}.weight", way), Name(f"{original}.bias", f"{huggingface}.bias")


def weight_normed(original: str, huggingface: str) -> tuple[Name, ...]:
    """A weight-normed convolution, as torch spelled it before 2.0 and since."""
    ends = (*OLD_SPELLING.values(), *OLD_SPELLING, "bias")
    return tuple(Name(f"{original}.{end}", f"{huggingface}.{end}") for end in ends)


def old_spelling(name: str) -> str:
    """A tensor's name as torch spelled weight norms before 2.0."""
    for new, old in OLD_SPELLING.items():
        if name.endswith(f".{new}"):
            return f"{name.removesuffix(new)}{old}"
    return name


def prefixed(names: Sequence[Name], original: str, huggingface: str) -> tuple[Name, ...]:
    """The names of a part, behind what stands before them on either side."""
    return tuple(Name(original + name.original, huggingface + name.huggingface, name.way) for name in names)


def to_huggingface(tensors: Mapping[str, Tensor], names: Sequence[Name], *, source: str) -> list[Part]:
    """Every tensor under its other name, read when it is its turn.

    Raises:
        ConversionError: no rule for a tensor, an axis that it should have is not there, or two get one name.
    """
    return _renamed(tensors, _Table(names, forward=True), Way.forward, source)


def to_original(tensors: Mapping[str, Tensor], names: Sequence[Name], *, source: str) -> list[Part]:
    """The way back.

    Raises:
        ConversionError: no rule for a tensor.
    """
    return _renamed(tensors, _Table(names, forward=False), Way.back, source)


def _renamed(
    tensors: Mapping[str, Tensor],
    table: _Table,
    reshaped: Callable[[Way, tuple[int, ...]], tuple[int, ...] | None],
    source: str,
) -> list[Part]:
    parts, unknown = [], []
    for name, tensor in tensors.items():
        found = table.find(name)
        if found is None:
            unknown.append(name)
            continue
        target, way = found
        shape = reshaped(way, tuple(tensor.shape))
        if shape is None:
            raise ConversionError(f"{source}: {name} has shape {list(tensor.shape)}; expected {way.value}")
        parts.append(Part(target, (name,), tensor.dtype, shape, _reader(tensor, shape)))
    _check(parts, unknown, source)
    return parts


class _Table:
    """Rules by the name they begin from; those with numbers by the name with its numbers taken out."""

    def __init__(self, names: Sequence[Name], *, forward: bool):
        self.rules: dict[str, tuple[str, Way]] = {}
        for name in names:
            start, end = (name.original, name.huggingface) if forward else (name.huggingface, name.original)
            assert start not in self.rules, start
            self.rules[start] = end, name.way

    def find(self, name: str) -> tuple[str, Way] | None:
        """The other name, and how the axes differ."""
        for pattern, numbers in _patterns(name):
            if pattern in self.rules:
                target, way = self.rules[pattern]
                return target.format(**numbers), way
        return None


def _patterns(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A name as it stands, and with one of its numbers as ``{i}``, from the left."""
    yield name, {}
    for match in re.finditer(r"(?<=\.)(0|[1-9]\d{0,3})(?=\.)", name):
        yield f"{name[: match.start()]}{{i}}{name[match.end() :]}", {"i": match[0]}


def _reader(tensor: Tensor, shape: tuple[int, ...]):
    return lambda: tensor.read().reshape(shape)


def _check(parts: Sequence[Part], unknown: Sequence[str], source: str) -> None:
    if unknown:
        shown = ", ".join(sorted(unknown)[:_SHOWN]) + (" …" if len(unknown) > _SHOWN else "")
        raise ConversionError(
            f"{source}: {len(unknown)} tensor(s) that no rule knows: {shown}; is it another architecture?"
        )
    targets: dict[str, str] = {}
    for part in parts:
        other = targets.setdefault(part.target, part.sources[0])
        if other != part.sources[0]:
            raise ConversionError(f"{source}: {other} and {part.sources[0]} are both {part.target}")

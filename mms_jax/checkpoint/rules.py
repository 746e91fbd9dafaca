"""What a table of rules consists of: which PyTorch tensor is which parameter here, and how their layouts differ.

Each rule is two-way. ``{i}`` in a template stands for an index and expands to a finite list of names. The tables are in
wav2vec2_rules.py and vits_rules.py; engine.py applies them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Layout(enum.Enum):
    """How a tensor's axes are ordered: PyTorch's on the left, ours on the right. Every one is its own inverse."""

    SAME = "vectors and tables of embeddings, unchanged"
    LINEAR = "[out, in] <-> [in, out]"
    CONV = "[out, in, kernel] <-> [kernel, in, out]; transposed convolutions: [in, out, kernel] <-> [kernel, out, in]"
    POINTWISE = "[out, in, 1] <-> [in, out]: a convolution of one tap is a linear map"
    GAIN = "[1, 1, kernel] <-> [kernel, 1, 1], [out, 1, 1] <-> [1, 1, out]: a weight norm's magnitudes"

    def convert(self, tensor: np.ndarray) -> np.ndarray:
        """A view with the other side's axes; bitwise reversible, and from either side to the other."""
        if self is Layout.SAME:
            return tensor
        if self is Layout.POINTWISE:
            return tensor[:, :, 0].transpose() if tensor.ndim == 3 else tensor.transpose()[:, :, None]
        return tensor.transpose()

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that ``convert`` gives a tensor of this one."""
        if self is Layout.SAME:
            return tuple(shape)
        if self is Layout.POINTWISE and len(shape) == 2:
            return (shape[1], shape[0], 1)
        if self is Layout.POINTWISE and len(shape) == 3 and shape[2] == 1:
            return (shape[1], shape[0])
        return tuple(reversed(shape))

    @property
    def is_matrix(self) -> bool:
        """Whether it is an operand of matrix products, so that it may be stored in a narrower dtype."""
        return self in (Layout.LINEAR, Layout.CONV, Layout.POINTWISE)


class Rule(NamedTuple):
    """One tensor on both sides."""

    torch: str
    jax: str
    layout: Layout
    alias: str | None = None  # another spelling of the PyTorch name, accepted on reading
    float32: bool = False  # stays float32 whatever dtype the model is loaded in
    int8: bool = False  # a kernel that a model loaded in int8 keeps so; its other matrices are bfloat16


class Table(NamedTuple):
    """All rules of an architecture, and what to say where a file does not fit them."""

    rules: Sequence[Rule]
    optional: frozenset[str] = frozenset()  # paths that may be absent, and may be there without being used
    # What a mismatch means: the first pattern found in one of "missing NAME", "unknown NAME" (PyTorch names when
    # reading, our paths when writing) gives the advice.
    hints: Sequence[tuple[str, str]] = ()
    # PyTorch names of tensors that may be there and are left unread, with the reason.
    unused: Mapping[str, str] = MappingProxyType({})


def affine(torch: str, jax: str, layout: Layout = Layout.LINEAR, *, int8: bool = False) -> tuple[Rule, Rule]:
    """A linear map or convolution with a bias."""
    kernel = Rule(f"{torch}.weight", f"{jax}/kernel", layout, int8=int8)
    return kernel, Rule(f"{torch}.bias", f"{jax}/bias", Layout.SAME)


def norm(torch: str, jax: str) -> tuple[Rule, Rule]:
    """A norm's scale and shift."""
    return Rule(f"{torch}.weight", f"{jax}/scale", Layout.SAME), Rule(f"{torch}.bias", f"{jax}/bias", Layout.SAME)


def weight_normed(torch: str, jax: str) -> tuple[Rule, Rule, Rule]:
    """A weight-normed convolution with a bias, in torch's new spelling; the old one is accepted."""
    new = f"{torch}.parametrizations.weight.original"
    return (
        Rule(f"{new}0", f"{jax}/kernel_g", Layout.GAIN, alias=f"{torch}.weight_g"),
        Rule(f"{new}1", f"{jax}/kernel_v", Layout.CONV, alias=f"{torch}.weight_v"),
        Rule(f"{torch}.bias", f"{jax}/bias", Layout.SAME),
    )


def expand(rules: Sequence[Rule], count: int) -> Iterator[Rule]:
    """The rules of ``count`` layers, ``{i}`` replaced by the index."""
    for i in range(count):
        for rule in rules:
            alias = rule.alias and rule.alias.format(i=i)
            yield rule._replace(torch=rule.torch.format(i=i), jax=rule.jax.format(i=i), alias=alias)


def prefixed(rules: Iterable[Rule], torch: str, jax: str | None) -> Iterator[Rule]:
    """The rules of a part, under the part's name on either side; None: there our path is the part's own."""
    for rule in rules:
        alias = rule.alias and f"{torch}.{rule.alias}"
        path = rule.jax if jax is None else f"{jax}/{rule.jax}"
        yield rule._replace(torch=f"{torch}.{rule.torch}", jax=path, alias=alias)

"""The tensors of VITS from one layout into the other: every one accounted for, and weight norms applied or undone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from convert.conversion import ConversionError, Part
from convert.renaming import OLD_SPELLING, Tensor
from convert.vits_names import HINTS, Entry, Norm

FLOAT32 = np.dtype(np.float32)  # of what is written: both sides compute in it, whatever their files hold
FLOATS = tuple(np.dtype(dtype) for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
SHOWN = 8


class Found(NamedTuple):
    """A tensor, and what it is called where."""

    file: Path
    name: str
    tensor: Tensor

    def read(self) -> np.ndarray:
        """Its values, in float64 if they were stored so and in float32 otherwise; raises ConversionError for NaN."""
        values = self.tensor.read()
        values = values if values.dtype == np.float64 else values.astype(FLOAT32, copy=False)
        if not np.isfinite(values).all():
            raise ConversionError(f"{self.file}: {self.name} holds NaN or infinity; the checkpoint is damaged")
        return values


def make_parts(entries: Iterable[Entry], tensors: Mapping[str, Tensor], *, file: Path, forward: bool) -> list[Part]:
    """The tensors to be written, from those of a file.

    Args:
        entries: everything that must be there, and nothing else may.
        tensors: of the file, weight norms in either of torch's spellings, or applied already.
        file: its name, for errors.
        forward: from the original to the Hugging Face layout; False: back.

    Raises:
        ConversionError: a tensor missing, unknown, there twice, of another shape, or not of floating-point numbers.
    """
    source = _Source(tensors, file)
    parts: list[Part] = []
    for entry in entries:
        side = _Side.of(entry, forward=forward)
        found = source.take(side.source, side.source_shape, normed=side.source_normed)
        if found:
            parts += _convert(found, side)
    source.check(forward=forward)
    return parts


class _Side(NamedTuple):
    """An entry as one direction sees it."""

    source: str
    source_shape: tuple[int, ...]
    source_normed: bool  # as a rule: take() finds it in any form
    target: str
    target_shape: tuple[int, ...]
    target_normed: bool

    @classmethod
    def of(cls, entry: Entry, *, forward: bool) -> _Side:
        there = (entry.original, entry.original_shape, entry.norm is not Norm.NONE)
        here = (entry.hugging_face, entry.shape, entry.norm is Norm.KEPT)
        return cls(*there, *here) if forward else cls(*here, *there)


class _Source:
    """A file's tensors by name, weight norms in the old spelling, and what became of them."""

    def __init__(self, tensors: Mapping[str, Tensor], file: Path):
        self.file = file
        self.left: dict[str, Found] = {}
        self.missing: dict[str, tuple[int, ...]] = {}
        self.faults: list[str] = []
        for name, tensor in tensors.items():
            spelled = name
            for new, old in OLD_SPELLING.items():
                spelled = spelled.removesuffix(new) + old if spelled.endswith(new) else spelled
            if spelled in self.left:
                raise ConversionError(f"{file}: holds {name} and {self.left[spelled].name}, which are the same tensor")
            self.left[spelled] = Found(file, name, tensor)

    def take(self, name: str, shape: tuple[int, ...], *, normed: bool) -> list[Found]:
        """A tensor, or the two that it is the product of; nothing, if one is missing, which is then noted."""
        gain, direction = f"{name}_g", f"{name}_v"
        wanted = {name: shape}
        if name not in self.left and (normed or gain in self.left or direction in self.left):
            wanted = {gain: _gain_shape(shape), direction: shape}
        self.missing |= {one: shape for one, shape in wanted.items() if one not in self.left}
        found = {one: self.left.pop(one) for one in wanted if one in self.left}
        self.faults += [fault for one, value in found.items() if (fault := _fault(value, wanted[one]))]
        return list(found.values()) if len(found) == len(wanted) else []

    def check(self, *, forward: bool) -> None:
        """Raise ConversionError unless everything was there, as it should be, and nothing is left."""
        unknown = {found.name: tuple(found.tensor.shape) for found in self.left.values()}
        parts = [_listed(names, what) for what, names in (("missing", self.missing), ("unknown", unknown)) if names]
        complaint = "; ".join(parts or self.faults[:SHOWN])
        if complaint:
            # By the unknown first: they say more of what the file is than what it lacks.
            names = [*unknown, *self.missing, *(fault.split(" ")[0] for fault in self.faults)]
            hint = next((f". {hint}" for name in names for what, hint in HINTS if re.search(what, name)), "")
            advice = hint if forward else ". Do config.json and the weights belong together?"
            raise ConversionError(f"{self.file}: {complaint}{advice}")


def _fault(found: Found, shape: tuple[int, ...]) -> str | None:
    dtype, actual = found.tensor.dtype, tuple(found.tensor.shape)
    if dtype not in FLOATS:
        return f"{found.name} has dtype {dtype}; weights are floating-point numbers"
    if actual != shape:
        return f"{found.name} has shape {list(actual)}, config.json asks for {list(shape)}"
    return None


def _listed(shapes: Mapping[str, tuple[int, ...]], what: str) -> str:
    shown = ", ".join(f"{name} {list(shapes[name])}" for name in list(shapes)[:SHOWN])
    return f"{len(shapes)} tensor(s) {what}: {shown}{' …' if len(shapes) > SHOWN else ''}"


def _convert(found: list[Found], side: _Side) -> list[Part]:
    if side.target_normed:
        gain, direction = found if len(found) == 2 else (found[0], found[0])
        read_gain, read_direction = (_as_is, _as_is) if len(found) == 2 else (_lengths, _directions)
        return [
            _part(f"{side.target}_g", [gain], _gain_shape(side.target_shape), read_gain),
            _part(f"{side.target}_v", [direction], side.target_shape, read_direction),
        ]
    return [_part(side.target, found, side.target_shape, _folded if len(found) == 2 else _as_is)]


def _part(name: str, found: list[Found], shape: tuple[int, ...], compute: Callable[..., np.ndarray]) -> Part:
    names = tuple(one.name for one in found)

    def read() -> np.ndarray:
        with np.errstate(all="ignore"):  # what overflows is looked for below, and named
            values = compute(*(one.read() for one in found)).astype(FLOAT32, copy=False)
        if not np.isfinite(values).all():
            raise ConversionError(
                f"{found[0].file}: {' and '.join(names)} give {name} values that float32 does not hold; one of the "
                "norms is 0, or the checkpoint is damaged"
            )
        return np.ascontiguousarray(values.reshape(shape))

    return Part(name, names, FLOAT32, shape, read)


def _gain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *(1 for _ in shape[1:]))


def _as_is(values: np.ndarray) -> np.ndarray:
    return values


def _folded(gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The kernel, float64."""
    direction = direction.astype(np.float64)
    return direction * (gain / _norm(direction))


def _lengths(kernel: np.ndarray) -> np.ndarray:
    """The weight norm's magnitudes, where the kernel itself is the direction."""
    return _norm(kernel.astype(np.float64))


def _directions(kernel: np.ndarray) -> np.ndarray:
    """The kernel; filters of zeros, of which there are none in trained models, get a direction for a magnitude of 0."""
    return np.where(_lengths(kernel) == 0, kernel.dtype.type(1), kernel)


def _norm(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(values).sum(axis=tuple(range(1, values.ndim)), keepdims=True))

"""What a converter yields: the tensors and small files of a checkpoint to be, and what of the source is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mms_jax.errors import CheckpointError, MMSError

Texts = dict[str, str | bytes | Mapping[str, object]]  # small files by name; an object is written as JSON


class ConversionError(CheckpointError):
    """A source that cannot be converted; the message names the file, the tensor or key, and the remedy."""


class UnsafeFileError(ConversionError):
    """A file that asks for more than data: code to run, places to write to, or more memory than it has bytes."""


class Part(NamedTuple):
    """One tensor to be written, which is read when it is its turn."""

    target: str  # its name in the file
    sources: tuple[str, ...]  # its names in the source; two where a weight norm is folded
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@contextmanager
def called(there: Path, name: str) -> Iterator[None]:
    """Errors about a place that only exists while a conversion runs, as errors about what the user knows it by."""
    try:
        yield
    except MMSError as error:
        if str(there) not in str(error):
            raise
        raise type(error)(str(error).replace(f"{there}/", f"{name}: ").replace(str(there), name)) from error


@dataclasses.dataclass
class Conversion:
    """A checkpoint to be written, and an account of every tensor of its source."""

    kind: str  # what the source is, in words
    tensors: dict[str, list[Part]]  # by file name: model.safetensors, adapter.fra.safetensors
    texts: Texts
    objects: dict[str, Any] = dataclasses.field(default_factory=dict)  # PyTorch files: nested dicts and lists of Parts
    unused: dict[str, str] = dataclasses.field(default_factory=dict)  # tensors that are not written, with the reason
    notes: list[str] = dataclasses.field(default_factory=list)  # what the user has to know

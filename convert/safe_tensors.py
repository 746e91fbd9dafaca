"""safetensors files as sources of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from convert.conversion import ConversionError
from mms_jax.checkpoint.tensors import NUMPY_DTYPES, TensorInfo, read_tensor


class StoredSafely(NamedTuple):
    """A floating-point tensor in a safetensors file, in the dtype that it has there."""

    name: str
    info: TensorInfo

    @property
    def dtype(self) -> np.dtype:
        """Of its elements."""
        return NUMPY_DTYPES[self.info.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its axes."""
        return self.info.shape

    def read(self) -> np.ndarray:
        """Its values; raises CheckpointError if one is not finite."""
        values = np.empty(self.shape, self.dtype)
        read_tensor(self.name, self.info, out=values)
        return values


def stored(tensors: Mapping[str, TensorInfo]) -> dict[str, StoredSafely]:
    """What ``read_header`` found, ready to be converted.

    Raises:
        ConversionError: a tensor of whole numbers, which no model of these has.
    """
    for name, info in tensors.items():
        if not info.is_float:
            raise ConversionError(f"{info.path}: {name} has dtype {info.dtype}; parameters are floating-point numbers")
    return {name: StoredSafely(name, info) for name, info in tensors.items()}

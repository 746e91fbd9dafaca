"""The dtypes a model can be loaded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mms_jax.errors import SettingError

DTYPES = ("float32", "bfloat16", "float16")
WAV2VEC2_DTYPES = (*DTYPES, "int8")


def check_dtype(dtype: Any, choices: Sequence[str] = DTYPES) -> Any:
    """The dtype named; raises SettingError for one that is none of the choices."""
    # By name: numpy would take None for float64 and [] for a record, and fail in its own way on others.
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", None))
    if name not in choices:
        raise SettingError(f"dtype is {dtype!r}; it must be one of {', '.join(choices)}")
    return jnp.dtype(name).type

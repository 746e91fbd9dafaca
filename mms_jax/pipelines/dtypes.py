"""The dtypes a model can be loaded in."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from mms_jax.errors import SettingError

DTYPES = ("float32", "bfloat16", "float16")


def check_dtype(dtype: Any) -> Any:
    """The dtype named; raises SettingError for one that models are not kept in."""
    # By name: numpy would take None for float64 and [] for a record, and fail in its own way on others.
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", None))
    if name not in DTYPES:
        raise SettingError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return jnp.dtype(name).type

"""The dtypes a model can be loaded in."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from mms_jax.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")


def check_dtype(dtype: Any) -> Any:
    """The dtype named; raises ConfigError for one that models are not kept in."""
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not supported; one of {', '.join(DTYPES)}")
    return jnp.dtype(name).type

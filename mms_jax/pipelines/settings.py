"""Settings checked: numbers of any pipeline, and how a text is to be spoken (by the user, or else the checkpoint)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from mms_jax.config import MAX_SPEAKING_RATE, MIN_SPEAKING_RATE, VitsConfig
from mms_jax.errors import SettingError

MAX_NOISE = 100.0  # times the standard normal distribution; float32 overflows far above


@dataclass(frozen=True)
class Settings:
    """How to speak one text."""

    seed: int
    speaking_rate: float
    noise_scale: float
    noise_scale_duration: float
    speaker: int | None


def checked_settings(
    config: VitsConfig,
    *,
    seed: Any,
    speaking_rate: Any,
    noise_scale: Any,
    noise_scale_duration: Any,
    speaker: Any,
) -> Settings:
    """The settings, with the checkpoint's in place of None; raises SettingError naming one that is out of its range."""
    rate = config.speaking_rate if speaking_rate is None else speaking_rate
    voice = config.noise_scale if noise_scale is None else noise_scale
    rhythm = config.noise_scale_duration if noise_scale_duration is None else noise_scale_duration
    return Settings(
        check_integer("seed", seed, 0),
        check_number("speaking_rate", rate, MIN_SPEAKING_RATE, MAX_SPEAKING_RATE),
        check_number("noise_scale", voice, 0, MAX_NOISE),
        check_number("noise_scale_duration", rhythm, 0, MAX_NOISE),
        _check_speaker(speaker, config.num_speakers),
    )


def settings_of_each(config: VitsConfig, num_texts: int, *, seed: Any, **others: Any) -> list[Settings]:
    """Those of every text: ``seed`` is one for all or a list of one for each, the others are ``checked_settings``'.

    All are checked, even for no texts; raises SettingError also for another number of seeds than of texts.
    """
    if not isinstance(seed, (list, tuple, range, np.ndarray, jax.Array)) or getattr(seed, "ndim", 1) == 0:
        return [checked_settings(config, seed=seed, **others)] * num_texts
    common = checked_settings(config, seed=0, **others)
    if len(seed) != num_texts:
        raise SettingError(f"{num_texts} text(s), but {len(seed)} seeds; give one for all or one for each")
    return [replace(common, seed=check_integer("seed", one, 0)) for one in seed]


def _check_speaker(speaker: Any, count: int) -> int | None:
    if speaker is None and count == 1:
        return None
    if speaker is None:
        raise SettingError(f"this checkpoint has {count} speakers; choose one: speaker=0 … {count - 1}")
    index = _plain(speaker)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise SettingError(f"speaker is {speaker!r}; this checkpoint has {count}: 0 … {count - 1}")
    return index if count > 1 else None


def check_number(name: str, value: Any, least: float, most: float) -> float:
    """The number; raises SettingError unless it lies in ``least`` … ``most``."""
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number <= most:
        raise SettingError(f"{name} is {value!r}; it must be a number in {least:g} … {most:g}")
    return float(number)


def check_integer(name: str, value: Any, least: int) -> int:
    """The integer; raises SettingError if it is none, or below ``least``."""
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise SettingError(f"{name} is {value!r}; it must be an integer from {least} on")
    return number


def _plain(value: Any) -> Any:
    """What is in a scalar of numpy's or a 0-d array of numpy's or JAX's; anything else as it is."""
    is_scalar = isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.ndim == 0
    return value.item() if is_scalar else value

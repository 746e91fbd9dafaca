"""How a text is to be spoken: settings given by the user, or else the checkpoint's, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mms_jax.config import VitsConfig
from mms_jax.errors import SettingError

MIN_RATE, MAX_RATE = 0.1, 10.0  # of speaking
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
        check_number("speaking_rate", rate, MIN_RATE, MAX_RATE),
        check_number("noise_scale", voice, 0, MAX_NOISE),
        check_number("noise_scale_duration", rhythm, 0, MAX_NOISE),
        _check_speaker(speaker, config.num_speakers),
    )


def _check_speaker(speaker: Any, count: int) -> int | None:
    if speaker is None and count == 1:
        return None
    if speaker is None:
        raise SettingError(f"this checkpoint has {count} speakers; choose one: speaker=0 … {count - 1}")
    if isinstance(speaker, bool) or not isinstance(speaker, (int, np.integer)) or not 0 <= speaker < count:
        raise SettingError(f"speaker is {speaker!r}; this checkpoint has {count}: 0 … {count - 1}")
    return int(speaker) if count > 1 else None


def check_number(name: str, value: Any, least: float, most: float) -> float:
    """The number; raises SettingError unless it lies in ``least`` … ``most``."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise SettingError(f"{name} is {value!r}; it must be a number in {least:g} … {most:g}")
    return float(value)


def check_integer(name: str, value: Any, least: int) -> int:
    """The integer; raises SettingError if it is none, or below ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise SettingError(f"{name} is {value!r}; it must be an integer from {least} on")
    return int(value)

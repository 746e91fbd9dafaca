"""Sounds made here, and encoded files of them, for the tests of audio."""

import io
from typing import Any

import numpy as np
import soundfile

RATE = 16_000  # Hz
TONE = 440.0  # Hz


def tone(seconds: float = 1.0, *, rate: int = RATE, frequency: float = TONE) -> np.ndarray:
    """A sine at half of full scale, float64 [S]."""
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def noise(num_samples: int, *, seed: int = 0) -> np.ndarray:
    """White noise well below full scale, float32 [S]."""
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def encode(
    samples: np.ndarray, *, rate: int = RATE, container: str = "WAV", codec: str | None = None, **options: Any
) -> bytes:
    """The bytes of a file with these samples, [S] or [S, C]."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=codec, **options)
    return file.getvalue()

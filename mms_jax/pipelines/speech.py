"""Synthesised speech: samples, what was made of the text, and the way into a file or a notebook."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import soundfile

from mms_jax.errors import AudioError, NumericsError, TextError
from mms_jax.files import atomic_write

FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_BLOCK = 16_000  # samples written at a time: libsndfile's Vorbis encoder overflows its stack on minutes at once


@dataclass(frozen=True, kw_only=True, eq=False)  # samples have no one truth value
class Speech:
    """One text as speech, or why it could not be spoken."""

    text: str  # as it was given
    sampling_rate: int  # Hz
    normalized_text: str = ""  # as it was spoken: in the checkpoint's symbols
    dropped: str = ""  # characters, in order, for which the checkpoint has no symbol; "" if none
    romanized: bool = False
    samples: np.ndarray | None = None
    error: TextError | NumericsError | None = None

    @property
    def waveform(self) -> np.ndarray:
        """Float32 [S] in -1 … 1; raises the item's error if it has one, so that no failure passes for silence."""
        if self.error is not None:
            raise self.error
        assert self.samples is not None
        return self.samples

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.waveform) / self.sampling_rate

    def save(self, path: str | PathLike[str]) -> None:
        """Write a .wav (16-bit), .flac (16-bit) or .ogg (Vorbis) file, whole or not at all.

        Raises:
            AudioError: another extension. TextError, NumericsError: there is nothing to save. OSError: no place to.
        """
        path = Path(path)
        data = self.encode(path.suffix, name=str(path))
        with atomic_write(path) as file:
            file.write(data)

    def encode(self, extension: str = ".wav", *, name: str = "audio") -> bytes:
        """The content of a file with that extension; ``name`` stands in errors."""
        if extension.lower() not in FORMATS:
            raise AudioError(
                f"{name}: speech is written as {', '.join(FORMATS)}, not as {extension or 'a bare name'!r}"
            )
        kind, subtype = FORMATS[extension.lower()]
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", self.sampling_rate, channels=1, format=kind, subtype=subtype) as file:
            for start in range(0, len(self.waveform), _BLOCK):
                file.write(self.waveform[start : start + _BLOCK])
        return buffer.getvalue()

    def _repr_html_(self) -> str | None:
        """A player, in notebooks."""
        if self.error is not None:
            return None
        data = base64.b64encode(self.encode(".wav")).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'

    def __repr__(self) -> str:
        """Short: samples are not for reading."""
        result = f"error={self.error!r}" if self.error is not None else f"duration={self.duration:.2f}"
        return f"Speech({self.text[:40]!r}, {result}, sampling_rate={self.sampling_rate})"


def named(speech: Speech, name: str) -> Speech:
    """The same; its error, if it has one, begins with the name of what failed."""
    return speech if speech.error is None else replace(speech, error=type(speech.error)(f"{name}: {speech.error}"))

"""Whether audio can be read: tones are written in every format at run time, read back, and must still be the tones."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mms_jax.pipelines.doctor.findings import Finding, ok, problem

TONE = 440.0  # Hz
DURATION = 0.5  # seconds
AMPLITUDE = 0.5
LOSS = 0.1  # of the amplitude, by lossy codecs at the default quality: measured 0.01 and less
PITCH = 4.0  # Hz: what half a second tells apart, twice
REINSTALL = (
    "pip install --force-reinstall --no-deps soundfile soxr  # or, where soundfile takes the system's libsndfile: "
    "apt-get install libsndfile1"
)


class Codec(NamedTuple):
    """A format as soundfile names it."""

    name: str
    format: str
    subtype: str
    rate: int  # Hz


CODECS = (
    Codec("WAV", "WAV", "PCM_16", 44_100),
    Codec("FLAC", "FLAC", "PCM_16", 44_100),
    Codec("Ogg Vorbis", "OGG", "VORBIS", 44_100),
    Codec("Ogg Opus", "OGG", "OPUS", 48_000),  # which has no 44.1 kHz
    Codec("MP3", "MP3", "MPEG_LAYER_III", 44_100),
)


def check_libsndfile() -> Iterator[Finding]:
    """The C library that decodes, which soundfile brings with it or finds on the system."""
    import soundfile  # here, because where it is broken the other checks still run

    yield ok(f"libsndfile {soundfile.__libsndfile_version__}")


def codec_check(codec: Codec) -> Callable[[], Iterator[Finding]]:
    """The check of one format, apart from those of the others."""

    def check() -> Iterator[Finding]:
        from mms_jax.audio import SAMPLING_RATE, load_audio  # here, because where soundfile is broken others still run

        why = _difference(load_audio(encode(codec)), SAMPLING_RATE)
        if why is None:
            yield ok(f"{codec.name} is read, {codec.rate / 1000:g} kHz becomes {SAMPLING_RATE / 1000:g}")
        else:
            yield problem(f"{codec.name} is read wrong: {why}", REINSTALL)

    return check


def encode(codec: Codec) -> bytes:
    """A tone as a file of that format, in memory.

    Raises ``soundfile.LibsndfileError`` where libsndfile was built without it.
    """
    import soundfile

    times = np.arange(int(DURATION * codec.rate)) / codec.rate
    file = io.BytesIO()
    tone = AMPLITUDE * np.sin(2 * np.pi * TONE * times)
    soundfile.write(file, tone, codec.rate, format=codec.format, subtype=codec.subtype)
    return file.getvalue()


def _difference(samples: np.ndarray, rate: int) -> str | None:
    """How samples differ from the tone; None if they do not. Ends are left out: codecs fade and pad."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    if abs(len(samples) - DURATION * rate) > LOSS * DURATION * rate:
        return f"{len(samples) / rate:.2f} s in place of {DURATION:.2f}"
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    pitch = float(spectrum.argmax()) * rate / len(middle)
    peak = float(np.sqrt(2 * np.mean(middle**2)))
    if not abs(pitch - TONE) <= PITCH:
        return f"a tone of {pitch:.0f} Hz in place of {TONE:.0f}"
    return None if abs(peak - AMPLITUDE) <= LOSS * AMPLITUDE else f"amplitude {peak:.3f} in place of {AMPLITUDE}"

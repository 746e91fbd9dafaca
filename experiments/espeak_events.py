"""Speech whose word times are known: espeak-ng's C library, which says when it starts each word and each phoneme."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import soxr

SAMPLE_RATE = 16_000
_SYNCHRONOUS, _PHONEME_EVENTS = 2, 1
_UTF8, _END_PAUSE = 1, 0x1000
_RATE, _PITCH, _WORD_GAP = 1, 3, 7
_END, _WORD, _PHONEME = 0, 1, 7
_PAUSES = ("", "_", "_:", "_|", "_!", ";", "|")  # phonemes that are no sound


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


class SpokenWord(NamedTuple):
    """A word and when it sounds, seconds."""

    text: str
    start: float
    end: float


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@cache
def _library() -> tuple[Any, int]:
    """espeak-ng, and the samples a second that it makes."""
    library = ctypes.CDLL("libespeak-ng.so.1")
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
    if rate <= 0:
        raise RuntimeError(f"espeak_Initialize answers {rate}")
    return library, rate


def speak(text: str, *, voice: str, rate: int, pitch: int, word_gap: int) -> tuple[np.ndarray, list[SpokenWord]]:
    """float32 [S] at 16 kHz, and its words.

    A word sounds from the start of its first phoneme to the start of what follows its last: a pause, or the next word.

    Raises:
        RuntimeError: espeak-ng refuses, or reports other words than the text has.
    """
    library, native = _library()
    samples: list[np.ndarray] = []
    events: list[tuple[int, int, int, str]] = []

    def take(wave: Any, count: int, event: Any) -> int:
        if count and wave:
            samples.append(np.ctypeslib.as_array(wave, (count,)).copy())
        for number in range(1_000_000):
            one = event[number]
            if one.type == _END:
                return 0
            name = one.id.string.decode("utf-8", "replace") if one.type == _PHONEME else ""
            events.append((one.type, one.sample, one.text_position, name))
        raise RuntimeError("a list of events without an end")

    callback = _CALLBACK(take)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.removeprefix("fr-").encode()):  # the program itself takes "fr-fr" too
        raise RuntimeError(f"espeak-ng has no voice {voice!r}")
    for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_WORD_GAP, word_gap)):
        library.espeak_SetParameter(parameter, value, 0)
    data = text.encode() + b"\0"
    if library.espeak_Synth(data, len(data), 0, 1, 0, _UTF8 | _END_PAUSE, None, None):
        raise RuntimeError(f"espeak-ng does not speak {text!r}")
    wave = np.concatenate(samples).astype(np.float32) / 32768
    return soxr.resample(wave, native, SAMPLE_RATE), _words(text, events, native, len(wave))


def _words(text: str, events: list[tuple[int, int, int, str]], rate: int, num_samples: int) -> list[SpokenWord]:
    places = [number for number, event in enumerate(events) if event[0] == _WORD]
    texts = text.split()
    if len(places) != len(texts):
        raise RuntimeError(f"espeak-ng reports {len(places)} words for {text!r}")
    words = []
    for word, first, last in zip(texts, places, [*places[1:], len(events)], strict=True):
        phonemes = [(sample, name) for kind, sample, _, name in events[first:last] if kind == _PHONEME]
        sounds = [number for number, (_, name) in enumerate(phonemes) if name not in _PAUSES]
        if not sounds:
            raise RuntimeError(f"espeak-ng says nothing for {word!r} in {text!r}")
        behind = phonemes[sounds[-1] + 1][0] if sounds[-1] + 1 < len(phonemes) else num_samples
        if sounds[-1] + 1 >= len(phonemes) and last < len(events):
            behind = events[last][1]
        words.append(SpokenWord(word, phonemes[sounds[0]][0] / rate, behind / rate))
    return words

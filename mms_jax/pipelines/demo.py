"""The bundled demonstration: small models in the exact MMS layout, and clips that no training saw."""

from __future__ import annotations

import json
import math
import random
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jiwer
import numpy as np

from mms_jax.audio import SAMPLING_RATE, load_audio
from mms_jax.errors import CheckpointError
from mms_jax.languages import language_name
from mms_jax.pipelines.asr import SpeechRecognizer, load_asr
from mms_jax.pipelines.subtitles import to_srt

DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "asr"
DEMO_LID = DEMO_MODEL.parent / "lid"
SUBTITLED = "spa"  # of the demo's languages the one it hears best
TWO_MINUTES = 120.0  # seconds
GAP = 0.8  # seconds between clips: more than parts two subtitles
SHOWN = 4  # subtitles


class Clip(NamedTuple):
    """A bundled recording."""

    path: Path
    language: str
    reference: str


def demo_clips() -> list[Clip]:
    """The bundled clips with what is said in them."""
    listing = DEMO_MODEL.parent / "clips.jsonl"
    if not listing.is_file():
        raise CheckpointError(f"{listing}: not there; the demo's files are part of the package, so reinstall it")
    records = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    return [Clip(listing.parent / record["file"], record["language"], record["text"]) for record in records]


def run_demo() -> int:
    """Identify and transcribe all clips in one call, print how well, and make subtitles of two minutes of audio."""
    start = time.perf_counter()
    asr = load_asr(DEMO_MODEL, lid=DEMO_LID)
    print(f"Loaded a recogniser of {', '.join(asr.languages)} and an identifier, {_since(start)}.")
    clips = demo_clips()
    _transcribe_all(asr, clips)
    _subtitle(asr, [clip for clip in clips if clip.language == SUBTITLED])
    print("\nThese small models understand one speech synthesiser (espeak-ng): they show the machinery, not a product.")
    return 0


def _transcribe_all(asr: SpeechRecognizer, clips: Sequence[Clip]) -> None:
    """Every row of the batches is in its own language, which nobody says."""
    files = random.Random(0).sample(clips, len(clips))
    start = time.perf_counter()
    results = asr.transcribe([clip.path for clip in files], language="auto")
    print(f"\n{len(clips)} files of {len(asr.languages)} languages, mixed, in one call with language='auto':")
    for clip, result in zip(files, results, strict=True):
        found = f"{language_name(result.language or '') or 'none'} ({result.language_probability or 0:.2f})"
        mistaken = "" if result.language == clip.language else f"  WRONG: it is {language_name(clip.language)}"
        print(f"  {clip.path.name}  {found}, CER {jiwer.cer(clip.reference, result.text):.1%}{mistaken}")
        print(f"    said   {clip.reference}\n    heard  {result.text}")
    right = sum(result.language == clip.language for clip, result in zip(files, results, strict=True))
    error = jiwer.cer([clip.reference for clip in files], [result.text for result in results])
    print(f"{right} of {len(clips)} languages right, CER {error:.1%}; {_since(start)}, a first run compiles too.")


def _subtitle(asr: SpeechRecognizer, clips: Sequence[Clip]) -> None:
    """Audio longer than a window, made of clips with pauses."""
    pause = np.zeros(int(GAP * SAMPLING_RATE), np.float32)
    once = np.concatenate([part for clip in clips for part in (load_audio(clip.path), pause)])
    long = np.tile(once, math.ceil(TWO_MINUTES * SAMPLING_RATE / len(once)))[: int(TWO_MINUTES * SAMPLING_RATE)]
    start = time.perf_counter()
    result = asr.transcribe(long, language=SUBTITLED, timestamps="word")
    shown = to_srt(result.segments[:SHOWN])
    print(
        f"\nSubtitles of {result.duration / 60:.0f} minutes made of {language_name(SUBTITLED)} clips (--format srt):\n"
    )
    print(textwrap.indent(shown, "  "))
    print(f"  … {len(result.segments) - SHOWN} more; {_since(start)}, a first run compiles too.")


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"

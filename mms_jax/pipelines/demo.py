"""The bundled demonstration: a small model in the exact MMS layout, and clips that no training saw."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

import jiwer

from mms_jax.errors import CheckpointError
from mms_jax.languages import language_name
from mms_jax.pipelines.asr import load_asr

DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "asr"
DEMO_LID = DEMO_MODEL.parent / "lid"


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
    """Transcribe every clip, swapping adapters, and print reference, hypothesis and character error rate."""
    clips = demo_clips()
    start = time.perf_counter()
    asr = load_asr(DEMO_MODEL)
    loaded = time.perf_counter()
    references, hypotheses = [], []
    for language in dict.fromkeys(clip.language for clip in clips):
        asr.load_adapter(language)
        print(f"\n{language_name(language)} ({language})")
        chosen = [clip for clip in clips if clip.language == language]
        for clip, result in zip(chosen, asr.transcribe([clip.path for clip in chosen]), strict=True):
            print(f"  {clip.path.name}  CER {jiwer.cer(clip.reference, result.text):.1%}")
            print(f"    said   {clip.reference}\n    heard  {result.text}")
            references.append(clip.reference)
            hypotheses.append(result.text)
    print(
        f"\n{len(clips)} clips, CER {jiwer.cer(references, hypotheses):.1%}; model loaded in {loaded - start:.1f} s, "
        f"transcribed in {time.perf_counter() - loaded:.1f} s, compilation included."
    )
    print("This small model understands one speech synthesiser (espeak-ng); it shows the machinery, not a product.")
    return 0

"""An hour of speech: how much memory, how long, and whether the text is that of transformers' windows.

    .venv/bin/python -m experiments.benchmarks.long_audio --minutes 60
    .venv/bin/python -m experiments.benchmarks.long_audio --minutes 60 --reference

The file (16-bit FLAC, kept in .work) is made of the bundled Spanish clips with pauses. Without --reference only this
library runs and the peak of the process is its own; with it, transformers' pipeline reads the same samples in the same
windows (30 s, 5 s of context on both sides) and the texts are compared. Results: README.md, "Speed".
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import soundfile

import mms_jax
from mms_jax.audio import SAMPLING_RATE, load_audio
from mms_jax.pipelines.demo import demo_clips

LANGUAGE = "spa"


def main() -> None:
    """Transcribe the file, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--model", default=str(mms_jax.DEMO_MODEL))
    parser.add_argument("--reference", action="store_true", help="compare with transformers' pipeline")
    options = parser.parse_args()
    path = Path(".work") / f"long-{options.minutes:g}.flac"
    if not path.exists():
        write_long(path, seconds=options.minutes * 60)
    asr = mms_jax.load_asr(options.model, language=LANGUAGE)
    asr.transcribe(np.tile(load_audio(path, max_duration=1e9)[: SAMPLING_RATE * 31], 5))  # compiles what is needed
    loaded = peak()
    start = time.perf_counter()
    result = asr.transcribe(path, timestamps="word")
    seconds = time.perf_counter() - start
    print(
        f"{result.duration / 60:.0f} min in {seconds:.1f} s ({result.duration / seconds:.0f} times real time), "
        f"{len(result.words)} words, {len(result.segments)} subtitles"
    )
    print(f"peak memory {loaded:.0f} MB with a minute or two transcribed, {peak():.0f} MB after all")
    times = [time for word in result.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= result.duration
    if options.reference:
        compare(path, options.model, result.text)


def write_long(path: Path, *, seconds: float) -> None:
    """Clips one after another, each followed by 0.2 to 1.5 s of faint noise, written as they come."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    clips = [load_audio(clip.path) for clip in demo_clips() if clip.language == LANGUAGE]
    written = 0
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1, format="FLAC") as file:
        while written < seconds * SAMPLING_RATE:
            pause = rng.standard_normal(int(rng.uniform(0.2, 1.5) * SAMPLING_RATE)) * 1e-3
            for part in (clips[rng.integers(len(clips))], pause):
                part = part[: int(seconds * SAMPLING_RATE) - written]
                file.write(part)
                written += len(part)


def compare(path: Path, model: str, text: str) -> None:
    """Assert that transformers' pipeline says the same."""
    import transformers

    processor = transformers.Wav2Vec2Processor.from_pretrained(model)
    processor.tokenizer.set_target_lang(LANGUAGE)
    reference = transformers.Wav2Vec2ForCTC.from_pretrained(model).eval()
    reference.load_adapter(LANGUAGE)
    pipeline = transformers.pipeline(
        "automatic-speech-recognition",
        model=reference,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        chunk_length_s=30,
    )
    start = time.perf_counter()
    theirs = pipeline({"raw": load_audio(path, max_duration=1e9), "sampling_rate": SAMPLING_RATE})["text"]
    seconds = time.perf_counter() - start
    print(f"transformers' pipeline: {seconds:.1f} s; texts equal: {theirs == text}, {len(text)} letters")
    assert theirs == text


def peak() -> float:
    """The process's, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

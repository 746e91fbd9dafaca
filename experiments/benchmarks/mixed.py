"""Sixteen languages in one batch: beside one language in it, and beside transformers changing adapters for each file.

    python -m experiments.benchmarks mixed --size demo --rounds 10 --output mixed.json
    python -m experiments.benchmarks mixed --size 1b --seconds 3 --rounds 3
    python -m experiments.benchmarks mixed --device gpu --size 1b --seconds 10 --dtype bfloat16

Builds a checkpoint in MMS's layout with sixteen random adapters (kept in .work), compares the texts of all rows with
transformers', then times in turn, everything compiled before:

    transformers loop    for each file set_target_lang, load_adapter, a forward pass: ratios are to this
    mms_jax shared       the batch in one language, adapter and head part of one ordinary batched model: no gathering
    mms_jax single       the batch through `transcribe`, all rows in one language
    mms_jax mixed        the same, every row in a language of its own

Results: README.md, "Speed".
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import jiwer
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mms_jax
from experiments.benchmarks.asr_forward import SIZES, VOCAB, build
from experiments.benchmarks.device import add_arguments, environment, limits, prepare, torch_device
from experiments.benchmarks.flops import RATE, forward_gflops
from experiments.benchmarks.report import Contender, DifferenceError, Report
from mms_jax.config import Wav2Vec2Config

LANGUAGES = (
    "eng",
    "fra",
    "deu",
    "spa",
    "ita",
    "por",
    "nld",
    "pol",
    "ron",
    "swe",
    "dan",
    "fin",
    "ces",
    "hun",
    "tur",
    "vie",
)
ROWS = 16
LOOP, SHARED, SINGLE, MIXED = "transformers loop", "mms_jax shared", "mms_jax single", "mms_jax mixed"
TOLERANCE = {"float32": 0.0, "bfloat16": 0.2}  # letters that differ: random weights decide by a hair, rounding by more
SIGMA = 0.02  # of what is added to the base's adapter: enough to change texts, too little to overflow


def main() -> None:
    """Run the benchmark and print its table."""
    options = arguments().parse_args()
    prepare(options)
    directory = Path(".work") / f"bench-mixed-{options.size}"
    if not (directory / "vocab.json").exists():
        build_mixed(directory, options.size)
    report = Report("mixed", environment(options), limits([options.dtype], options.device))
    report.start()
    rng = np.random.default_rng(0)
    clips = [(rng.normal(size=int(options.seconds * RATE)) * 0.1).astype(np.float32) for _ in range(ROWS)]
    audio = options.seconds * ROWS
    gflops = forward_gflops(Wav2Vec2Config.from_file(directory / "config.json"), seconds=options.seconds) * audio
    rows = report.time(
        f"{ROWS} x {options.seconds:g} s",
        checked(options, directory, clips),
        rounds=options.rounds,
        audio_seconds=audio,
        gflops=gflops,
    )
    report.save(options.output)
    times = {row.name: row.times for row in rows}
    for one, other in ((MIXED, SINGLE), (MIXED, SHARED), (LOOP, MIXED)):
        ratios = [a / b for a, b in zip(times[one], times[other], strict=True)]
        print(f"  {one} / {other}: {statistics.median(ratios):.3f} (median of the rounds' ratios)")


def arguments() -> argparse.ArgumentParser:
    """What can be told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--size", choices=("demo", *SIZES), default="demo")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the clips")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def checked(options: argparse.Namespace, directory: Path, clips: list[np.ndarray]) -> list[Contender]:
    """All ways to do it, whose texts are equal: in bfloat16, as far as rounding lets them."""
    asr = mms_jax.load_asr(directory, dtype=options.dtype)
    functions = {
        LOOP: loop(directory, clips, options.dtype, torch_device(options)),
        SHARED: shared(asr, clips),
        SINGLE: lambda: texts(asr, clips, [LANGUAGES[0]] * ROWS),
        MIXED: lambda: texts(asr, clips, LANGUAGES),
    }
    expected, found = functions[LOOP](), functions[MIXED]()
    difference = jiwer.cer(expected, found)
    if difference > TOLERANCE[options.dtype] or len(set(found)) < 2:
        raise DifferenceError(f"texts of {MIXED} differ from those of {LOOP}: {difference:.1%} of the letters")
    return [
        Contender(name, "", options.dtype, run, difference if name == MIXED else 0.0) for name, run in functions.items()
    ]


def texts(asr: mms_jax.SpeechRecognizer, clips: list[np.ndarray], languages) -> list[str]:
    """What is said in every clip, in one batch."""
    return [result.text for result in asr.transcribe(clips, language=list(languages), batch_size=ROWS)]


def shared(asr: mms_jax.SpeechRecognizer, clips: list[np.ndarray]):
    """The same batch through an ordinary model, up to its best tokens."""
    asr.load_adapter(LANGUAGES[0])
    module: Any = asr.module
    params = asr.params
    forward = jax.jit(lambda params, values, mask: module.apply({"params": params}, values, mask).logits.argmax(-1))
    vocabulary = asr.tokenizer.vocabulary(LANGUAGES[0])

    def run() -> list[str]:
        features = asr.feature_extractor(clips)
        return [vocabulary.decode(ids) for ids in np.asarray(forward(params, *features))]

    return run


def loop(directory: Path, clips: list[np.ndarray], dtype: str, device: torch.device):
    """transformers as its documentation says: the adapter and the vocabulary change for every file."""
    processor: Any = transformers.Wav2Vec2Processor.from_pretrained(directory)
    model: Any = transformers.Wav2Vec2ForCTC.from_pretrained(directory, dtype=getattr(torch, dtype))
    model = model.eval().to(device)

    def run() -> list[str]:
        found = []
        for clip, language in zip(clips, LANGUAGES, strict=True):
            processor.tokenizer.set_target_lang(language)
            model.load_adapter(language)
            inputs = processor(clip, sampling_rate=16_000, return_tensors="pt")
            with torch.inference_mode():
                values, mask = inputs.input_values.to(device, model.dtype), inputs.attention_mask.to(device)
                logits = model(values, attention_mask=mask).logits
            found.append(processor.batch_decode(logits.argmax(-1))[0])
        return found

    return run


def build_mixed(directory: Path, size: str) -> None:
    """The base of a size, sixteen vocabularies, and an adapter file for each."""
    base = mms_jax.DEMO_MODEL if size == "demo" else Path(".work") / f"bench-{size}"
    if not (base / "model.safetensors").exists():
        build(base, SIZES[size])
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json"):
        if (base / name).exists() and not (directory / name).exists():
            (directory / name).symlink_to((base / name).resolve())
    tensors = load_file(base / "model.safetensors")
    adapter = {name: value for name, value in tensors.items() if "adapter_layer" in name or name.startswith("lm_head")}
    vocabularies = {}
    for number, language in enumerate(LANGUAGES):
        rng = np.random.default_rng(number)
        tokens = dict(VOCAB) | {chr(0x400 + i): len(VOCAB) + i for i in range(number)}  # each of its own size
        vocabularies[language] = tokens
        own = {name: value + rng.normal(size=value.shape).astype(np.float32) * SIGMA for name, value in adapter.items()}
        head = rng.normal(size=(len(tokens), own["lm_head.weight"].shape[1])).astype(np.float32)
        own["lm_head.weight"] = head * head.shape[1] ** -0.5
        own["lm_head.bias"] = np.zeros(len(tokens), np.float32)
        save_file(own, directory / f"adapter.{language}.safetensors", {"format": "pt"})
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer", "target_lang": LANGUAGES[0]})
    )
    (directory / "vocab.json").write_text(json.dumps(vocabularies))


if __name__ == "__main__":
    main()

"""Sixteen languages in one batch: beside one language in it, and beside transformers changing adapters for each file.

    .venv/bin/python -m experiments.benchmarks.mixed --size demo --rounds 10
    .venv/bin/python -m experiments.benchmarks.mixed --size 1b --seconds 3 --rounds 3

Builds a checkpoint in MMS's layout with sixteen random adapters (kept in .work), compares the texts of all rows with
transformers', then times in turn, everything compiled before:

    shared    the batch in one language, adapter and head part of one ordinary batched model: no gathering at all
    single    the batch through `transcribe`, all rows in one language
    mixed     the same, every row in a language of its own
    loop      transformers: for each file set_target_lang, load_adapter, a forward pass

and prints medians and ratios. Results: README.md, "Speed".
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mms_jax
from experiments.benchmarks.asr_forward import SIZES, VOCAB, build, measure

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
SIGMA = 0.02  # of what is added to the base's adapter: enough to change texts, too little to overflow


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("demo", *SIZES), default="demo")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    mms_jax.reuse_freed_memory()  # both sides are faster for it
    directory = Path(".work") / f"bench-mixed-{options.size}"
    if not (directory / "vocab.json").exists():
        build_mixed(directory, options.size)
    rng = np.random.default_rng(0)
    clips = [(rng.normal(size=int(options.seconds * 16_000)) * 0.1).astype(np.float32) for _ in range(ROWS)]
    asr = mms_jax.load_asr(directory, dtype=options.dtype)
    functions = {
        "shared": shared(asr, clips),
        "single": lambda: texts(asr, clips, [LANGUAGES[0]] * ROWS),
        "mixed": lambda: texts(asr, clips, LANGUAGES),
        "loop": loop(directory, clips, options.dtype),
    }
    if options.dtype == "float32":
        assert functions["mixed"]() == functions["loop"](), "texts differ: no timing is worth anything"
        assert len(set(functions["mixed"]())) > 1
    times = dict(zip(functions, measure(list(functions.values()), options.rounds), strict=True))
    medians = {name: statistics.median(one) for name, one in times.items()}
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}")
    print(f"{options.size}, {options.dtype}, {ROWS} clips of {options.seconds:g} s, {options.rounds} rounds, medians")
    for name, seconds in medians.items():
        print(f"  {name:<7} {seconds:8.3f} s  (fastest {min(times[name]):.3f})")
    for one, other in (("mixed", "single"), ("mixed", "shared"), ("loop", "mixed")):
        ratios = [a / b for a, b in zip(times[one], times[other], strict=True)]
        print(f"  {one} / {other}: {statistics.median(ratios):.3f} (median of the rounds' ratios)")


def texts(asr: mms_jax.SpeechRecognizer, clips: list[np.ndarray], languages) -> list[str]:
    """What is said in every clip, in one batch."""
    return [result.text for result in asr.transcribe(clips, language=list(languages), batch_size=ROWS)]


def shared(asr: mms_jax.SpeechRecognizer, clips: list[np.ndarray]):
    """The same batch through an ordinary model, up to its best tokens."""
    asr.load_adapter(LANGUAGES[0])
    module, params = asr.module, asr.params
    forward = jax.jit(lambda params, values, mask: module.apply({"params": params}, values, mask).logits.argmax(-1))
    vocabulary = asr.tokenizer.vocabulary(LANGUAGES[0])

    def run() -> list[str]:
        features = asr.feature_extractor(clips)
        return [vocabulary.decode(ids) for ids in np.asarray(forward(params, *features))]

    return run


def loop(directory: Path, clips: list[np.ndarray], dtype: str):
    """transformers as its documentation says: the adapter and the vocabulary change for every file."""
    processor = transformers.Wav2Vec2Processor.from_pretrained(directory)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()

    def run() -> list[str]:
        found = []
        for clip, language in zip(clips, LANGUAGES, strict=True):
            processor.tokenizer.set_target_lang(language)
            model.load_adapter(language)
            inputs = processor(clip, sampling_rate=16_000, return_tensors="pt")
            with torch.inference_mode():
                logits = model(inputs.input_values.to(model.dtype), attention_mask=inputs.attention_mask).logits
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

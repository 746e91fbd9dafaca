"""``mms-jax demo-train``: the demo model learns a language that it has never heard, from bundled clips."""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import time
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import jiwer

from mms_jax.pipelines.asr import load_asr
from mms_jax.pipelines.demo import DEMO_MODEL, demo_clips

LANGUAGE, NEAREST = "ita", "spa"
CLIPS = DEMO_MODEL.parent / LANGUAGE
STEPS = 120
SHOWN = 4  # texts
# What a job leaves, by patterns of names; all else is what a model needs.
LEFT = {
    f"adapter.{LANGUAGE}.safetensors": "what was trained",
    "README.md training_results.json": "the model card, and the facts that it is made of",
    "training_base.json": "which base the adapters belong to",
    "metrics.jsonl training_curve.png runs": "the log, its picture, and the same for TensorBoard",
    "metrics-*.jsonl training_curve-*.png": "those of earlier jobs",
    "checkpoints": "the job's state, to go on from; not needed to use the adapter",
}


def add_demo_train(commands: Any) -> None:
    """The command and its arguments."""
    demo = commands.add_parser(
        "demo-train", help="train an adapter of the demo model for Italian, which it has never heard, and try it"
    )
    demo.add_argument("--output-dir", default="demo-italian", metavar="DIR", help="what is trained (demo-italian)")
    demo.set_defaults(run=_demo_train)


def train_flags(output: Path) -> list[str]:
    """The arguments of ``mms-jax train``."""
    flags = {
        "model_name_or_path": DEMO_MODEL,
        "dataset_name": CLIPS,
        "train_split_name": "train",
        "eval_split_name": "test",
        "target_language": LANGUAGE,
        "output_dir": output,
        "max_steps": STEPS,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "warmup_steps": 10,
        "mask_time_prob": 0,
        "eval_strategy": "steps",
        "eval_steps": STEPS // 2,
    }
    switches = [
        "--eval_metrics",
        "wer",
        "cer",
        "--eval_on_start",
        "--group_by_length",
        "--overwrite_output_dir",
        "--do_train",
        "--do_eval",
    ]
    return [f"--{name}={value}" for name, value in flags.items()] + switches


def _demo_train(options: argparse.Namespace) -> int:
    from mms_jax.cli.train import run_train

    output, start = Path(options.output_dir), time.perf_counter()
    flags = train_flags(output)
    print("The demo model knows four languages. From six minutes of speech it now learns Italian; the same as\n")
    print(f"  mms-jax train {shlex.join(flags)}\n", flush=True)
    code = run_train(flags)
    if code:
        return code
    minutes = (time.perf_counter() - start) / 60
    before, after = _evaluations(output)
    print(f"\nItalian, {before['num_clips']} clips of words that no training clip holds, {minutes:.1f} minutes later:")
    for name, result in (("a fresh adapter", before), ("the trained one", after)):
        print(f"  {name}         CER {result['cer']:6.1%}  WER {result['wer']:6.1%}")
    _try(output)
    print("\n".join(["", f"In {output}:", *_contents(output)]))
    return 0


def _contents(output: Path) -> list[str]:
    """A line for each kind of file in a directory, with the names that are there."""
    there = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    found = {
        what: sorted(name for name in there if any(map(partial(fnmatch, name), patterns.split())))
        for patterns, what in LEFT.items()
    }
    rest = sorted(there - {name for names in found.values() for name in names})
    found["the base and the vocabularies, with which load_asr and transformers load the adapter"] = rest
    return [f"  {', '.join(names)}: {what}" for what, names in found.items() if names]


def _evaluations(output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [record for record in map(json.loads, lines) if record["type"] == "eval"]
    return found[0], found[-1]


def _try(output: Path) -> None:
    """Italian heard as Spanish and as Italian; and both languages in one batch, in which Spanish is as it was."""
    asr = load_asr(DEMO_MODEL)
    asr.load_adapter(output / f"adapter.{LANGUAGE}.safetensors", language=LANGUAGE)
    with (CLIPS / "test" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = [(CLIPS / "test" / row["file_name"], row["text"]) for row in csv.DictReader(file)]
    texts = [text for _, text in rows]
    heard = [result.text for result in asr.transcribe([path for path, _ in rows], language=NEAREST)]
    print(f"  the Spanish adapter     CER {jiwer.cer(texts, heard):6.1%}  WER {jiwer.wer(texts, heard):6.1%}")
    known = next(clip for clip in demo_clips() if clip.language == NEAREST)
    clips = [(path, LANGUAGE, text) for path, text in rows[:SHOWN]] + [(known.path, NEAREST, known.reference)]
    results = asr.transcribe([path for path, _, _ in clips], language=[language for _, language, _ in clips])
    print("\nThe new adapter beside the Spanish one, in one batch:")
    for (_, language, said), result in zip(clips, results, strict=True):
        print(f"  {language}  said   {said}\n       heard  {result.text}  (CER {jiwer.cer(said, result.text):.1%})")

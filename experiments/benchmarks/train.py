"""Adapter training, this library beside transformers' Trainer: same weights, same clips, same machine, in turn.

    .venv/bin/python -m experiments.benchmarks.train --size demo --rounds 15
    .venv/bin/python -m experiments.benchmarks.train --size 100m --rounds 5
    python -m experiments.benchmarks.train --size 1b --device gpu --seconds 15 --shortest 1 --batch 32 64 96 --steps 10

On two idle cores of an AMD EPYC (AVX-512, no AMX), no GPU at hand so far:

    jax 0.10.2, torch 2.13.0+cpu, transformers 5.23.0; demo, clips of 2.4 to 4 s
    step only, 8 clips, float32; losses differ by 1e-06
      transformers     124.8 audio-s/s  (fastest 137.6)
      mms_jax          242.0 audio-s/s  (fastest 296.8)
      ratio 1.91 (median of the rounds', 1.69 to 2.38)
      first round, with compilation: 3.8 s; peak 0.9 GB and 0.8 GB
    end to end, 64 Opus files in batches of 8, float32
      transformers     108.7 audio-s/s  (fastest 116.6)
      mms_jax          300.4 audio-s/s  (fastest 310.0)
      ratio 2.71 (median of the rounds', 2.22 to 2.93)
      before the first step: 0.6 s (decoded to disk) and 1.4 s; compilation 7.4 s
    8 adapters in one job, 8 clips in all: 0.922 of one's speed (median of the rounds')
    CTC loss with gradient: 1.80 ms, 1.63% of the step; optax 2.04 ms, 1.1 times that

Later, norms' gradients being products and with ``reuse_freed_memory`` on both sides (--rounds 9 --parts step adapters):

    step only, 8 clips, float32; losses differ by 7e-07
      transformers     136.8 audio-s/s  (fastest 144.1)
      mms_jax          269.7 audio-s/s  (fastest 288.6)
      ratio 1.98 (median of the rounds', 1.62 to 2.38)
    8 adapters in one job, 8 clips in all: 0.974 of one's speed (median of the rounds')

    jax 0.10.2, torch 2.13.0+cpu, transformers 5.23.0; 100m, clips of 2.4 to 4 s
    step only, 8 clips, float32; losses differ by 2e-06
      transformers       3.2 audio-s/s  (fastest 3.7)
      mms_jax            8.7 audio-s/s  (fastest 9.4)
      ratio 2.76 (median of the rounds', 2.36 to 3.39)
      first round, with compilation: 23.9 s; peak 4.6 GB and 2.4 GB
    end to end, 64 Opus files in batches of 8, float32
      transformers       3.6 audio-s/s  (fastest 3.6)
      mms_jax           10.6 audio-s/s  (fastest 10.7)
      ratio 2.97 (median of the rounds', 2.72 to 3.16)
      before the first step: 0.6 s (decoded to disk) and 2.2 s; compilation 17.2 s
    8 adapters in one job, 8 clips in all: 0.982 of one's speed (median of the rounds')
    CTC loss with gradient: 1.30 ms, 0.05% of the step; optax 1.68 ms, 1.3 times that
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from experiments.benchmarks.flops import step_gflops
from experiments.benchmarks.train_setup import (
    SIZES,
    Settings,
    audio_seconds,
    make_batches,
    write_adapter,
    write_data_set,
)
from experiments.benchmarks.train_worker import WorkerError, take_turns
from mms_jax.memory import reuse_freed_memory

CHECKED_STEPS = 4  # whose losses are compared
# Largest difference of a loss, relative. float32: order of summation, and Adam's division by small gradients after the
# first step. Others: operands of 8 and 11 bits; transformers rounds results, too.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.05}
PEER_BATCH = 32  # of the README of transformers' example
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError")

Answers = list[dict[str, Any]]  # of one worker's rounds, the unmeasured one first


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=("demo", *SIZES), default="demo")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=4.0, help="of the longest clip")
    parser.add_argument("--shortest", type=float, default=0.6, help="of that; lengths are uniform between the two")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="several, on a GPU: the fastest counts")
    parser.add_argument("--clips", type=int, default=64, help="of the data set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--dtype", choices=TOLERANCE, default=None, help="default: float32; on a GPU bfloat16")
    parser.add_argument("--dropout", type=float, default=0.0, help="inside the model; losses are not compared then")
    parser.add_argument("--threads", type=int, default=2, help="of either side, on a CPU")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that is not idle, with --threads 1")
    options = parser.parse_args()
    if options.worker:
        return work(options.worker[0], Settings(**json.loads(options.worker[1])))
    parts, batches = options.parts, options.batch
    given = {name: value for name, value in vars(options).items() if name not in ("worker", "parts", "batch")}
    given["dtype"] = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    prepare(Settings(**given))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    print(f"{versions}; {options.size}, clips of {options.shortest * options.seconds:g} to {options.seconds:g} s")
    for part in parts:
        for line in PARTS[part]([Settings(**given, batch=batch) for batch in batches]):
            print(line, flush=True)


def work(what: str, settings: Settings) -> None:
    """Be a worker."""
    reuse_freed_memory()  # either side is faster for it
    if what.startswith("peer"):
        from experiments.benchmarks import train_peer as side
    else:
        from experiments.benchmarks import train_ours as side
    side.work(what, settings)


def prepare(settings: Settings) -> None:
    """Make the checkpoint, if it is not there, and what training begins with."""
    if settings.size != "demo" and not (settings.directory / "model.safetensors").exists():
        from experiments.benchmarks.asr_forward import build

        build(settings.directory, SIZES[settings.size])
    settings.scratch.mkdir(parents=True, exist_ok=True)
    write_adapter(settings)


def step(several: Sequence[Settings]) -> Iterable[str]:
    """Batches that are ready, to updated parameters."""
    settings = several[0]
    if settings.device == "gpu":
        yield from step_on_gpu(several)
        return
    peer, ours = take_turns(["peer", "ours"], [settings, settings], rounds=settings.rounds)
    error = check_losses(peer, ours, settings)
    yield f"step only, {settings.batch} clips, {settings.dtype}; losses differ by {error:.0e}"
    batches = [audio_seconds(clips) for clips in make_batches(settings)]
    steps = range(settings.total_steps)
    audio = [sum(batches[i % len(batches)] for i in steps[r : r + settings.steps]) for r in steps[:: settings.steps]]
    yield from compare(peer, ours, audio)
    yield f"  first round, with compilation: {ours[0]['seconds']:.1f} s; peak {memory(peer)} and {memory(ours)}"


def check_losses(peer: Answers, ours: Answers, settings: Settings) -> float:
    """The largest relative difference of the first losses."""
    theirs, own = ([loss for answer in one for loss in answer["losses"]][:CHECKED_STEPS] for one in (peer, ours))
    worst = max(abs(a - b) / abs(a) for a, b in zip(theirs, own, strict=True))
    assert worst <= TOLERANCE[settings.dtype] or settings.dropout, f"losses differ by {worst:.0e}: {theirs}, {own}"
    return worst


def compare(peer: Answers, ours: Answers, audio: Sequence[float]) -> Iterable[str]:
    """Speeds of two sides' measured rounds, and the median of their ratios."""
    for name, answers in (("transformers", peer), ("mms_jax", ours)):
        speeds = [seconds / answer["seconds"] for answer, seconds in zip(answers[1:], audio[1:], strict=True)]
        yield f"  {name:<13} {statistics.median(speeds):8.1f} audio-s/s  (fastest {max(speeds):.1f})"
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(peer[1:], ours[1:], strict=True)]
    yield f"  ratio {statistics.median(ratios):.2f} (median of the rounds', {min(ratios):.2f} to {max(ratios):.2f})"


def memory(answers: Answers) -> str:
    """The most a worker took."""
    return f"{answers[-1]['peak'] / 1e9:.1f} GB"


def step_on_gpu(several: Sequence[Settings]) -> Iterable[str]:
    """The same against transformers as its README runs it and as it is fastest; and the share of the card's speed."""
    settings = several[0]
    peak = take_turns(["peak"], [settings], rounds=1)[0][-1]["teraflops"]
    readme = replace(settings, dtype="float16", remat=True, batch=PEER_BATCH)
    plan = {
        "transformers, as its README: float16, checkpointing": ("peer", [readme]),
        "transformers at its best: bfloat16, SDPA, no checkpointing": ("peer", several),
        f"mms_jax, {settings.dtype}": ("ours", several),
    }
    best = {}
    for title, (what, tried) in plan.items():
        yield f"{title}"
        speeds = [0.0]
        for own in tried:
            speed, line = speed_on_gpu(what, own, peak)
            speeds.append(speed)
            yield f"  batch {own.batch:>4}: {line}"
        best[title] = max(speeds)
    *others, mine = best
    for title in others:
        yield (
            f"mms_jax / {title.partition(':')[0]}: {best[mine] / best[title]:.2f}"
            if best[title]
            else f"{title}: never fitted"
        )


def speed_on_gpu(what: str, settings: Settings, peak: float) -> tuple[float, str]:
    """Audio-seconds per second of the median round, and the line to print; 0 where the batch does not fit."""
    try:
        answers = take_turns([what], [settings], rounds=settings.rounds)[0]
    except WorkerError as error:
        if not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        return 0.0, "does not fit"
    audio = statistics.mean(map(audio_seconds, make_batches(settings))) * settings.steps
    speed = audio / statistics.median(answer["seconds"] for answer in answers[1:])
    share = speed * step_gflops(settings.config, seconds=settings.seconds) / 1e3 / peak
    return speed, (
        f"{speed:8.1f} audio-s/s, {share:.1%} of the {peak:.0f} TFLOP/s that bfloat16 products reach, "
        f"{memory(answers)}, first loss {answers[0]['losses'][0]:.3f}"
    )


def end_to_end(several: Sequence[Settings]) -> Iterable[str]:
    """Files to updated parameters: an epoch in batches of one length."""
    settings = several[0]
    write_data_set(settings)
    peer, ours = take_turns(["peer_files", "ours_files"], [settings, settings], rounds=settings.rounds)
    yield f"end to end, {settings.clips} Opus files in batches of {settings.batch}, {settings.dtype}"
    yield from compare(peer, ours, [answer["audio"] for answer in ours])
    usual = statistics.median(answer["seconds"] for answer in ours[1:])
    yield (
        f"  before the first step: {peer[0]['prepared']:.1f} s (decoded to disk) and {ours[0]['prepared']:.1f} s; "
        f"compilation {ours[0]['seconds'] - usual:.1f} s"
    )


def adapters(several: Sequence[Settings]) -> Iterable[str]:
    """One adapter's rows shared out among eight."""
    settings = several[0]
    answers = take_turns(["adapters"], [settings], rounds=settings.rounds)[0][1:]
    ratio = statistics.median(answer["one"] / answer["many"] for answer in answers)
    yield f"8 adapters in one job, {settings.batch} clips in all: {ratio:.3f} of one's speed (median of the rounds')"


def ctc(several: Sequence[Settings]) -> Iterable[str]:
    """The loss's share of the step."""
    settings = several[0]
    answers = take_turns(["ctc"], [settings], rounds=settings.rounds)[0][1:]
    times = {name: statistics.median(answer[name] for answer in answers) for name in ("step", "own", "optax")}
    yield (
        f"CTC loss with gradient: {1e3 * times['own']:.2f} ms, {times['own'] / times['step']:.2%} of the step; "
        f"optax {1e3 * times['optax']:.2f} ms, {times['optax'] / times['own']:.1f} times that"
    )


PARTS = {"step": step, "end_to_end": end_to_end, "adapters": adapters, "ctc": ctc}

if __name__ == "__main__":
    main()

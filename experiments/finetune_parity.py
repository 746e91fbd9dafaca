"""The same adapter trained by transformers' Trainer and by this library: how well do both read, after how long?

    .venv/bin/python -m experiments.demo.new_language  # Italian as espeak-ng speaks it, new to the demo model
    .venv/bin/python -m experiments.finetune_parity --seeds 0 1 2

Base, clips, number of steps, batch size, learning rate, schedule and grouping by length are the same; what a seed makes
of them is each framework's own. One program, transformers' model clip by clip, evaluates both results on words that no
training clip holds. Prints the table of the README, and fails if the means differ by more than a point.

On two cores of an AMD EPYC that other programs were using too (so minutes are not to be compared), transformers 5.23:

    400 steps of 16 clips, learning rate 0.005
    | seed | transformers: CER | minutes | mms_jax: CER | minutes |
    |---|---|---|---|---|
    | 0 | 2.0% | 5.8 | 2.3% | 2.1 |
    | 1 | 2.2% | 13.9 | 2.2% | 2.5 |
    | 2 | 2.5% | 3.5 | 2.8% | 1.0 |
    | mean | 2.2% | 7.7 | 2.4% | 1.9 |
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mms_jax
from experiments.benchmarks.train_result import character_error_rate
from experiments.demo.new_language import CODE
from experiments.demo.synthesize import WORK

MOST_APART = 0.01  # of two means: 1 point
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class Budget:
    """What both sides are given."""

    data: Path
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    mask_time_prob: float


def ours(budget: Budget, output: Path, *, seed: int) -> list[str]:
    """The command that trains with this library."""
    b = budget
    flags = {
        "model_name_or_path": mms_jax.DEMO_MODEL,
        "dataset_name": b.data,
        "train_split_name": "train",
        "eval_split_name": "test",
        "target_language": CODE,
        "output_dir": output,
        "max_steps": b.steps,
        "per_device_train_batch_size": b.batch,
        "learning_rate": b.learning_rate,
        "warmup_steps": b.warmup,
        "mask_time_prob": b.mask_time_prob,
        "save_strategy": "no",
        "seed": seed,
    }
    switches = ["--group_by_length", "--overwrite_output_dir", "--do_train", "--do_eval", "--disable_tqdm"]
    return ["experiments.finetune_ctc", *(f"--{name}={value}" for name, value in flags.items()), *switches]


def theirs(budget: Budget, output: Path, *, seed: int) -> list[str]:
    """The command that trains with transformers."""
    b = budget
    flags = {
        "base": mms_jax.DEMO_MODEL,
        "data": b.data,
        "language": CODE,
        "output": output,
        "steps": b.steps,
        "batch": b.batch,
        "learning-rate": b.learning_rate,
        "warmup": b.warmup,
        "mask-time-prob": b.mask_time_prob,
        "seed": seed,
    }
    return ["experiments.benchmarks.train_result", *(f"--{name}={value}" for name, value in flags.items())]


def run(command: list[str], output: Path, data: Path) -> tuple[float, float]:
    """Train in a process of its own: character error rate, minutes from the command to the adapter's file."""
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *command], env=os.environ | QUIET, capture_output=True, text=True, check=False
    )
    minutes = (time.perf_counter() - start) / 60
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr}")
    return character_error_rate(output, data / "test", language=CODE), minutes


def main() -> None:
    """Train both with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=WORK / CODE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--mask-time-prob", type=float, default=0.0)
    options = vars(parser.parse_args())
    seeds: list[int] = options.pop("seeds")
    budget, output = Budget(**options), WORK / "parity"
    print(f"{budget.steps} steps of {budget.batch} clips, learning rate {budget.learning_rate:g}")
    print("| seed | transformers: CER | minutes | mms_jax: CER | minutes |\n|---|---|---|---|---|")
    rows = []
    for seed in seeds:
        peer = run(theirs(budget, output / "theirs", seed=seed), output / "theirs", budget.data)
        own = run(ours(budget, output / "ours", seed=seed), output / "ours", budget.data)
        rows.append((*peer, *own))
        print(row(str(seed), rows[-1]), flush=True)
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    print(row("mean", means))
    if abs(means[0] - means[2]) > MOST_APART:
        raise SystemExit(f"the means are {100 * abs(means[0] - means[2]):.1f} points apart")


def row(title: str, values: tuple[float, ...] | list[float]) -> str:
    """A line of the table."""
    peer, peer_minutes, own, own_minutes = values
    return f"| {title} | {peer:.1%} | {peer_minutes:.1f} | {own:.1%} | {own_minutes:.1f} |"


if __name__ == "__main__":
    main()

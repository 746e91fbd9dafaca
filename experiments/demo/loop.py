"""What both trainings share: optimiser, learning rate, log, files, and the loop that ends by steps or by the clock."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from safetensors.numpy import save_file

from experiments.demo.synthesize import SAMPLE_RATE, WORK

LOG_EVERY = 50  # steps

Params = dict[str, jax.Array]  # flat, by path
Trees = tuple[Params, Params]
# (trees, optimiser state, batch, learning rate) -> (trees, optimiser state, loss, gradient norm before the clip)
Step = Callable[[Trees, Any, Any, float], tuple[Trees, Any, jax.Array, jax.Array]]


def make_optimizer() -> optax.GradientTransformationExtraArgs:
    """AdamW under a norm clip; the learning rate is set from outside before each step."""
    adamw = functools.partial(optax.adamw, b1=0.9, b2=0.98, weight_decay=0.01)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(adamw)(learning_rate=0.0))


def apply_gradients(params: Any, state: Any, grads: Any, *, rate: Any) -> tuple[Any, Any]:
    """Parameters and optimiser state after one update at a learning rate."""
    state[1].hyperparams["learning_rate"] = rate
    updates, state = make_optimizer().update(grads, state, params)
    return optax.apply_updates(params, updates), state


def learning_rate(progress: float, *, step: int, peak: float) -> float:
    """Linear warm-up over 200 steps, flat until 40 % of the run, then a half cosine to zero."""
    decay = 0.5 * (1 + np.cos(np.pi * np.clip((progress - 0.4) / 0.6, 0, 1)))
    return peak * min(1.0, (step + 1) / 200) * float(decay)


def save(trees: Trees, path: Path) -> None:
    """Write both trees as one safetensors file; names are paths, language leaves keep their leading axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: np.asarray(value) for tree in trees for name, value in tree.items()}, partial)
    partial.replace(path)


class Log:
    """Prints mean loss and speed every LOG_EVERY steps."""

    def __init__(self):
        self.began = self.since = time.monotonic()
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def minutes(self) -> float:
        """Since the start, less what was left out."""
        return (time.monotonic() - self.began) / 60

    def leave_out(self, seconds: float) -> None:
        """Do not count the time just spent on something else."""
        self.began, self.since = self.began + seconds, self.since + seconds

    def add(self, step: int, *, loss: float, norm: float, rate: float, seconds: float) -> None:
        """Count one step of `seconds` of audio."""
        self.losses.append(loss)
        self.seconds += seconds
        if step % LOG_EVERY == 0:
            now = time.monotonic()
            speed = self.seconds / (now - self.since)
            print(
                f"step {step} loss {np.mean(self.losses):.3f} norm {norm:.2f} lr {rate:.1e} audio-s/s {speed:.0f} "
                f"minute {self.minutes:.1f}",
                flush=True,
            )
            self.losses, self.seconds, self.since = [], 0.0, now


def add_options(parser: argparse.ArgumentParser, *, peak: float, output: Path) -> None:
    """The options that `fit` reads."""
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so much training, if earlier")
    parser.add_argument("--evaluate-every", type=float, default=7.0, help="minutes")
    parser.add_argument("--learning-rate", type=float, default=peak, help="at its peak")
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and of the order of the batches")
    parser.add_argument("--output", type=Path, default=output)


def cache_compilations() -> None:
    """Keep compiled programs from run to run."""
    jax.config.update("jax_compilation_cache_dir", str((WORK / "xla").resolve()))


def fit(
    trees: Trees,
    *,
    state: Any,
    stream: Iterator[Any],
    train_step: Step,
    evaluate: Callable[[Trees, bool], float],
    options: argparse.Namespace,
) -> None:
    """Train, evaluating and saving `last.safetensors` and `best.safetensors` every few minutes.

    `evaluate` gets the parameters and whether this is the last time, and returns what should be small.
    """
    log, best, step, progress, evaluations = Log(), float("inf"), 0, 0.0, 0
    while progress < 1.0:
        progress = max(step / options.steps, log.minutes / options.minutes)
        batch, rate = next(stream), learning_rate(progress, step=step, peak=options.learning_rate)
        trees, state, loss, norm = train_step(trees, state, batch, rate)
        step += 1
        log.add(step, loss=float(loss), norm=float(norm), rate=rate, seconds=batch.input_values.size / SAMPLE_RATE)
        if log.minutes > options.evaluate_every * (evaluations + 1) or progress >= 1.0:
            evaluations, began = evaluations + 1, time.monotonic()
            score = evaluate(trees, progress >= 1.0)
            print(f"step {step} dev {score:.4f}", flush=True)
            save(trees, options.output / "last.safetensors")
            if score < best:
                best = score
                save(trees, options.output / "best.safetensors")
            log.leave_out(time.monotonic() - began)

"""The processes of train.py: each side has one of its own, and the two take turns.

Neither's memory, threads or allocator settings are then the other's, and on a GPU each has the whole card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from experiments.benchmarks.train_setup import Settings

MARK = "train-worker: "  # before answers, among whatever else a library prints
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
GPU_SHARE = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}


class WorkerError(Exception):
    """A worker ended before it was told to; the message is the end of what it said."""


class Worker:
    """A process that times rounds of one thing on demand."""

    def __init__(self, what: str, settings: Settings):
        self.what, self.settings = what, settings
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmarks.train", "--worker", what, json.dumps(asdict(settings))],
            env=os.environ | QUIET | GPU_SHARE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def round(self) -> dict[str, Any]:
        """Have it do a round; its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said before it ended is more telling
        said = []
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            said.append(line)
        raise WorkerError(f"{self.what}, {self.settings}:\n{''.join(said[-30:])}")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.read()
        self._process.wait()


def take_turns(what: list[str], settings: list[Settings], *, rounds: int) -> list[list[dict[str, Any]]]:
    """Answers of workers to one unmeasured round and ``rounds`` more, in turn; on a GPU one worker after the other."""
    if settings[0].device == "gpu":
        return [_alone(one, own, rounds) for one, own in zip(what, settings, strict=True)]
    workers = [Worker(one, own) for one, own in zip(what, settings, strict=True)]
    try:
        answers = [[worker.round() for worker in workers] for _ in range(rounds + 1)]
    finally:
        for worker in workers:
            worker.close()
    return [list(own) for own in zip(*answers, strict=True)]


def _alone(what: str, settings: Settings, rounds: int) -> list[dict[str, Any]]:
    worker = Worker(what, settings)
    try:
        return [worker.round() for _ in range(rounds + 1)]
    finally:
        worker.close()


@dataclass
class Parent:
    """The other end, in the worker."""

    def wait(self) -> None:
        """Until the next round is wanted; ends the process if none is."""
        if not sys.stdin.readline():
            sys.stdout.flush()
            os._exit(0)  # from wherever in a training loop this is

    def answer(self, **values: Any) -> None:
        """Say what a round found."""
        print(f"\n{MARK}{json.dumps(values)}", flush=True)


def limit_threads(device: str, threads: int) -> None:
    """Keep to so many cores, on a CPU: JAX takes all there are. To be called before it starts."""
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

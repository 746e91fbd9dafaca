"""Kills a job with SIGKILL while it saves checkpoints, again and again: does every restart find the newest whole one?

    .venv/bin/python -m experiments.reliability.kill_during_save --kills 300

Each job opens the directory, checks what it finds, and then saves one step after another, as training does, until it is
killed: every other one at a random time, from its first instant on; the rest at a random one of the file operations
that Python makes for writing, naming and removing checkpoints (an audit hook counts them), so that the microseconds
between a rename and the fsync after it are hit too. What the next job must find:

- the newest step whose save the killed job had waited for, or a later one, every bit of it as it was saved;
- as good a best step as the best of these;
- after its first save, nothing half-written or half-removed.

On two shared cores, orbax-checkpoint 0.12.8, seed 0, in 2 minutes 21 seconds:

    300 jobs killed (215 saving, 76 restoring, 7 opening, 2 kept); 279 steps kept; 374 file operations a job
    0 faults
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp

from mms_jax.training.files.checkpoints import Checkpoints

SAVES = 4  # of a job that is left alone
LIMIT = 2
MAX_SECONDS = 60.0  # of a job; none takes two
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.listdir", "os.scandir"}
REMOVALS = {"os.remove", "os.rmdir"}
PRELOADED = (jax, ocp)  # before the fork: a job starts in a tenth of a second instead of two


def state_of(step: int) -> dict[str, Any]:
    """The state of a step: 1 MB in four dtypes, NaN and -0 included."""
    rng = np.random.default_rng(step)
    params = {name: rng.standard_normal((1, 48, 512)).astype(np.float32) for name in ("down", "up")}
    params["down"][0, 0, :2] = np.nan, -0.0
    half = rng.standard_normal(4096).astype(ml_dtypes.bfloat16)
    state = {"params": params, "half": half, "counts": rng.integers(0, 9, 8).astype(np.int32), "flag": np.array([True])}
    return jax.tree.map(jnp.asarray, state | {"opt_state": optax.adam(1e-3).init(params)})


def metric_of(step: int) -> float:
    """What decides which step is the best."""
    return float(np.random.default_rng((1, step)).random())


@dataclass
class Found:
    """What all jobs so far told before they were killed."""

    kept: list[int] = field(default_factory=list)  # steps whose save was waited for
    faults: list[str] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)  # what was going on when a job was killed


def job(directory: Path, kept: list[int], tell: Callable[[str], None]) -> None:
    """Open, check, and save ``SAVES`` times, telling what happens."""
    with Checkpoints(directory, save_total_limit=LIMIT) as checkpoints:
        newest, best = checkpoints.latest(), checkpoints.best()
        if kept and (newest is None or newest < max(kept)):
            tell(f"fault the newest is {newest}, but {max(kept)} was kept")
        if kept and (best is None or metric_of(best) > min(map(metric_of, kept))):
            tell(f"fault the best is {best}, not {min(kept, key=metric_of)}")
        if newest is not None:
            tell(f"restoring {newest}")
            check(checkpoints, newest, tell)
        start = 0 if newest is None else newest + 1
        for step in range(start, start + SAVES):
            tell(f"saving {step}")
            checkpoints.save(step, state_of(step), info={"step": step}, metric=metric_of(step))
            checkpoints.wait()
            tell(f"kept {step}")
            steps, names = checkpoints.steps(), os.listdir(directory)
            if len(steps) > LIMIT + 1 or sorted(names) != sorted(map(str, steps)):
                tell(f"fault left over: {names}, of which {steps} are whole")
    tell("ended")


def check(checkpoints: Checkpoints, step: int, tell: Callable[[str], None]) -> None:
    """Whether the newest checkpoint is what was saved."""
    expected = state_of(step)
    restored = checkpoints.restore(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), expected))
    same = [
        (a.dtype, a.shape, np.asarray(a).tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())
        for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(expected), strict=True)
    ]
    if restored.step != step or restored.info != {"step": step} or not all(same):
        tell(f"fault step {step} came back as {restored.step}, {restored.info}, {same}")


def start_job(directory: Path, kept: list[int], kill_at: int | None) -> tuple[int, int]:
    """Fork a job; returns its process id and the pipe it tells on. It kills itself at file operation ``kill_at``."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that forks and threads do not mix: there are no threads yet
        process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    count = count_events(directory, kill_at)
    try:
        job(directory, kept, lambda line: void(os.write(writing, f"{line}\n".encode())))
        os.write(writing, f"events {count()}\n".encode())
    except BaseException as error:
        os.write(writing, f"fault {type(error).__name__}: {error}\n".encode())
    os._exit(0)


def void(_: int) -> None:
    """Nothing."""


def count_events(directory: Path, kill_at: int | None) -> Callable[[], int]:
    """Count this process's file operations in the directory, and die just before number ``kill_at``."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        # what is removed with its folder is named without a path
        if event in REMOVALS or (event in FILE_EVENTS and any(str(directory) in str(arg) for arg in args)):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen


def lines_of(pipe: int) -> Iterator[str]:
    """What a job tells, until it ends."""
    with os.fdopen(pipe) as file:
        yield from (line.rstrip("\n") for line in file)


def run_job(directory: Path, found: Found, *, kill_after: float = MAX_SECONDS, kill_at: int | None = None) -> int:
    """Run one job to its end, or to its killing; returns how many file operations it counted."""
    process, pipe = start_job(directory, found.kept, kill_at)
    timer = threading.Timer(kill_after, os.kill, (process, signal.SIGKILL))
    timer.start()
    events, doing = 0, "opening"
    for line in lines_of(pipe):
        doing, _, rest = line.partition(" ")
        if doing == "fault":
            found.faults.append(rest)
        elif doing == "kept":
            found.kept.append(int(rest))
        elif doing == "events":
            events = int(rest)
    hung = kill_after == MAX_SECONDS and not timer.is_alive()
    timer.cancel()
    timer.join()  # the next fork must find one thread
    _, status = os.waitpid(process, 0)
    if hung:
        found.faults.append(f"a job hung while {doing}")
    elif os.WIFSIGNALED(status):
        found.hits[doing] += 1
    return events


def main(arguments: list[str] | None = None) -> None:
    """Kill jobs, and print what the next ones found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng, found = random.Random(options.seed), Found()
    directory = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        run_job(directory, found)
        begun = time.perf_counter()
        events = run_job(directory, found)
        seconds = time.perf_counter() - begun
        while (killed := sum(found.hits.values())) < options.kills and not found.faults:
            if killed % 2:
                run_job(directory, found, kill_at=rng.randint(1, events))
            else:
                run_job(directory, found, kill_after=rng.uniform(0, seconds))
        run_job(directory, found)
    finally:
        shutil.rmtree(directory)
    hits = ", ".join(f"{count} {doing}" for doing, count in found.hits.most_common())
    print(
        f"{sum(found.hits.values())} jobs killed ({hits}); {len(found.kept)} steps kept; {events} file operations a job"
    )
    print("\n".join([f"{len(found.faults)} faults", *found.faults]))
    sys.exit(bool(found.faults))


if __name__ == "__main__":
    main()

"""Kills training jobs with SIGKILL, again and again: does the same command always go on, and come to the same?

    .venv/bin/python -m experiments.reliability.kill_while_training --kills 20 --terms 5

A job is ``mms-jax train``: adapters of two languages, 44 updates of one and 29 of the other, with dropout, SpecAugment,
layerdrop, dither, batches by length, accumulation and evaluations, saved every 5 updates. It is killed at a random
time, from its first instant until after its end; every other one soon after a random update. Some get SIGTERM instead.
Each time the same command is given again, until a job ends; then another one begins. What must hold:

- a job that is started again goes on from the newest checkpoint there is: the last one whose writing had ended, which
  goes on behind the next updates, or a later one;
- SIGTERM: the state after the last update is saved, and the exit code is 0;
- the results of a job that ended at last: adapters, vocabulary, model card, log (less its speeds), and the last
  checkpoint with the optimiser's state are bit for bit those of a job that nobody stopped.

On two shared cores, jax 0.10.2, orbax-checkpoint 0.12.8, seed 0:

    jobs: 7 ended, 20 killed, 5 stopped by SIGTERM; updates that a kill cost: 10 at most, 5.1 on average (saved every 5)
    0 faults
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
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
from typing import Any, NamedTuple

import jax
import matplotlib.figure
import numpy as np
import orbax.checkpoint as ocp
import soundfile

from mms_jax import cli
from mms_jax.checkpoint import save_ctc, save_processor
from mms_jax.config import Wav2Vec2Config
from mms_jax.features import FeatureExtractor
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.training import job
from mms_jax.training.files import logs
from mms_jax.training.files.checkpoints import Checkpoints
from mms_jax.training.resume import FINISHED

PRELOADED = (jax, job, matplotlib.figure, ocp)  # before the fork: a job starts in a tenth of a second, not in five
SAVE_STEPS, UPDATES = 5, 44
MAX_SECONDS = 300.0  # of a job; none takes a twentieth of it
LANGUAGES = {"tur": ("ağ iş", "çok iyi", "bir iki", "dün gün"), "swe": ("å nej", "här är", "två öl", "kör så")}
COUNTS = {"tur": 22, "swe": 15}  # clips
JOB = "-".join(LANGUAGES)
SIZES = (8000, 7700)  # samples of clips: of one padded length, so that little is compiled
SPEED = "audio_seconds_per_second"
Tell = Callable[[str], None]


def write_inputs(folder: Path, tell: Tell) -> None:
    """A small random checkpoint with a vocabulary, and the clips of two languages."""
    config = Wav2Vec2Config(
        vocab_size=8,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=37,
        conv_dim=(12, 12),
        conv_kernel=(10, 64),
        conv_stride=(5, 64),
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        adapter_attn_dim=5,
    )
    params = Wav2Vec2ForCTC(config).init(jax.random.key(0), np.zeros((1, 8000), np.float32))["params"]
    save_ctc(folder / "base", config=config, params=jax.tree.map(np.asarray, params))
    tokens = {token: id_ for id_, token in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|", "a", "b", "c"))}
    save_processor(folder / "base", FeatureExtractor(), CTCTokenizer({"eng": tokens}, {"target_lang": "eng"}))
    rng = np.random.default_rng(0)
    for language, texts in LANGUAGES.items():
        (folder / language).mkdir()
        for split, count in (("train", COUNTS[language]), ("test", 2)):
            with (folder / language / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(["audio", "text"])
                for index in range(count):
                    samples = 0.1 * rng.standard_normal(rng.choice(SIZES))
                    soundfile.write(folder / language / f"{split}{index}.wav", samples, 16_000)
                    table.writerow([f"{split}{index}.wav", texts[index % len(texts)]])
    tell("written")


def train(folder: Path, output: Path, tell: Tell) -> int:
    """The job, telling every update that it has done and every checkpoint that is written; returns its exit code."""
    advance, finish = logs.RunLog.advance, Checkpoints._finish

    def telling(self: logs.RunLog, step: int) -> None:
        tell(f"step {step}")
        advance(self, step)

    def telling_too(self: Checkpoints, step: int) -> None:
        finish(self, step)
        tell(f"kept {step}")

    logs.RunLog.advance, Checkpoints._finish = telling, telling_too
    flags: dict[str, Any] = {
        "model_name_or_path": folder / "base",
        "dataset_name": [folder / language for language in LANGUAGES],
        "target_language": list(LANGUAGES),
        "train_split_name": "train",
        "output_dir": output,
        "num_train_epochs": 7.25,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "hidden_dropout": 0.1,
        "layerdrop": 0.2,
        "mask_time_prob": 0.3,
        "mask_time_length": 2,
        "dither": 1.0,
        "save_steps": SAVE_STEPS,
        "save_total_limit": 2,
        "logging_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 20,
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", *_listed(value))]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        return cli.main(["train", *words, "--group_by_length", "--do_train", "--do_eval"])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def newest(output: Path) -> int:
    """The newest whole checkpoint's step, 0 where there is none; as its folder's name says, without orbax."""
    found = (output / "checkpoints" / JOB).glob("*/info/info.json")
    return max((int(path.parts[-3]) for path in found if path.parts[-3].isdecimal()), default=0)


def compare(output: Path, expected: Path, tell: Tell) -> None:
    """Tell every difference between what two jobs left."""
    names = [path.name for path in expected.glob("*.safetensors")]
    for name in (*names, "vocab.json", "config.json", "training_results.json", "README.md"):
        if not (output / name).is_file() or (output / name).read_bytes() != (expected / name).read_bytes():
            tell(f"fault {name} is another")
    if _metrics(output) != _metrics(expected):
        tell("fault metrics.jsonl is another")
    ours, theirs = (_leaves(place / "checkpoints" / JOB) for place in (output, expected))
    for path in sorted(theirs.keys() | ours.keys()):
        if not all(path in each for each in (ours, theirs)) or ours[path].tobytes() != theirs[path].tobytes():
            tell(f"fault the last checkpoint's {path} is another")
    tell("compared")


def _metrics(output: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key != SPEED} for record in records]


def _leaves(directory: Path) -> dict[str, np.ndarray]:
    with Checkpoints(directory) as checkpoints:
        step, entry = checkpoints._entry(None)
        return checkpoints._load(step, {path: np.zeros(shape, kind) for path, (kind, shape) in entry.leaves.items()})


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A process that runs a function and tells what happens; ``code`` and ``seconds`` are there when it has ended."""

    process: int
    pipe: int
    begun: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    code: int = 0  # minus the signal that ended it

    def lines(self, *, kill_after: float = MAX_SECONDS) -> Iterator[str]:
        """What it tells, until it ends."""
        timer = threading.Timer(kill_after, self.send, (signal.SIGKILL,))
        timer.start()
        with os.fdopen(self.pipe) as file:
            yield from (line.rstrip("\n") for line in file)
        timer.cancel()
        timer.join()  # the next fork must find one thread; and from here on the number may be another process's
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        self.seconds = time.perf_counter() - self.begun

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process, number)


def start(function: Callable[[Tell], int | None]) -> Child:
    """Run a function in a process of its own."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that forks and threads do not mix: there are no threads yet
        process = os.fork()
    if process:
        os.close(writing)
        return Child(process, reading)
    code = 70
    try:
        code = function(lambda line: void(os.write(writing, f"{line}\n".encode()))) or 0
    except BaseException as error:
        os.write(writing, f"fault {type(error).__name__}: {error}\n".encode())
    os._exit(code)


def void(_: int) -> None:
    """Nothing."""


class Plan(NamedTuple):
    """When a job is to be sent which signal."""

    signal: int
    seconds: float  # after its start, or after the update
    updates: int | None = None  # that it must have done first


@dataclass
class Trial:
    """What came of all jobs so far."""

    folder: Path
    faults: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)  # updates of each job that was killed

    def watch(self, child: Child, **options: float) -> Iterator[str]:
        """What a child tells but its faults, which are noted."""
        for line in child.lines(**options):
            if line.startswith("fault "):
                self.faults.append(line.removeprefix("fault "))
            else:
                yield line

    def check(self, function: Callable[[Tell], int | None]) -> None:
        """Run what must end well."""
        child = start(function)
        told = list(self.watch(child))
        if child.code or not told:
            self.faults.append(f"{told} and exit code {child.code}")

    def run(self, output: Path, plan: Plan | None = None) -> Child:
        """Run the job to its end, or to the one that is planned, and check what it says and leaves."""
        before = done = written = newest(output)
        child = start(lambda tell: train(self.folder, output, tell))
        asked = plan is None or plan.updates is None
        for line in self.watch(child, kill_after=plan.seconds if plan and asked else MAX_SECONDS):
            what, number = line.split()
            if what == "kept":
                written = int(number)
                continue
            step = int(number)
            if step != done + 1:
                self.faults.append(f"update {step} came after {done}; the newest checkpoint was {before}")
            done = step
            if plan is not None and not asked and step >= before + (plan.updates or 0):
                asked = True
                time.sleep(plan.seconds)
                child.send(plan.signal)
        self._judge(child, plan, written=written, done=done, kept=newest(output))
        return child

    def _judge(self, child: Child, plan: Plan | None, *, written: int, done: int, kept: int) -> None:
        """Whether a job ended as it should, having kept what it should."""
        ended = {-signal.SIGKILL: "killed", -signal.SIGTERM: "killed", 0: "ended"}.get(child.code, "failed")
        if plan is not None and plan.signal == signal.SIGTERM and child.code == 0 and done < UPDATES:
            ended = "stopped by SIGTERM"
        self.ends[ended] += 1
        if ended == "killed":
            self.lost.append(done - kept)
        # Of all saves but the last one that was begun it is waited for.
        least = {"killed": max(written, ((done - 1) // SAVE_STEPS - 1) * SAVE_STEPS)}.get(ended, done)
        if ended == "failed" or kept < least or (plan is None and ended != "ended"):
            self.faults.append(f"exit code {child.code} at {plan}: {done} updates, of which {kept} were kept")


def plan_of(rng: random.Random, *, left: int, seconds: float, term: bool) -> Plan:
    """A random end for a job that has so many updates left and takes so long."""
    updates = rng.randint(1, max(1, left))
    if term:
        return Plan(signal.SIGTERM, 0.0, updates)
    if rng.random() < 0.5:
        return Plan(signal.SIGKILL, rng.uniform(0.0, 1.1 * seconds))
    return Plan(signal.SIGKILL, rng.uniform(0.0, 0.1), updates)


def kill_jobs(trial: Trial, rng: random.Random, *, kills: int, terms: int) -> None:
    """Run jobs until so many were killed and so many stopped, and compare what they come to."""
    folder = trial.folder
    expected, number = folder / "expected" / "out", 0
    seconds = trial.run(expected).seconds / 2  # what it takes when all programs are compiled, for a beginning
    while not trial.faults:
        output = folder / str(number) / "out"
        left = kills - trial.ends["killed"], terms - trial.ends["stopped by SIGTERM"]
        if max(left) <= 0 and not output.exists():
            return
        plan = None
        if max(left) > 0:
            term = rng.random() < left[1] / (max(0, left[0]) + left[1])
            plan = plan_of(rng, left=UPDATES - newest(output), seconds=seconds, term=term)
        child = trial.run(output, plan)
        seconds = child.seconds if child.code == 0 else seconds
        if (output / "checkpoints" / JOB / FINISHED).exists():
            trial.check(lambda tell, output=output: compare(output, expected, tell))
            number += 1


def main(arguments: list[str] | None = None) -> None:
    """Kill jobs, and print what the next ones found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    jax.config.update("jax_disable_most_optimizations", True)  # it is compiled more often than run
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    trial = Trial(folder)
    os.environ["MMS_JAX_CACHE_DIR"] = str(folder / "cache")  # killed while it is written, too
    try:
        trial.check(lambda tell: write_inputs(folder, tell))
        kill_jobs(trial, random.Random(options.seed), kills=options.kills, terms=options.terms)
    finally:
        shutil.rmtree(folder)
    ends = ", ".join(f"{count} {end}" for end, count in trial.ends.items())
    lost = f"updates that a kill cost: {max(trial.lost)} at most, {np.mean(trial.lost):.1f} on average"
    print(f"jobs: {ends}; {lost if trial.lost else 'none was killed'} (saved every {SAVE_STEPS})")
    print("\n".join([f"{len(trial.faults)} faults", *trial.faults]))
    sys.exit(bool(trial.faults))


if __name__ == "__main__":
    main()

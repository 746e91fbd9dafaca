"""Spoils the files of checkpoints in thousands of ways: is every one refused with a typed error, or rightly read?

    .venv/bin/python -m experiments.reliability.checkpoint_mutants --count 20000

Three small checkpoints are made: a CTC model with an adapter file and vocabularies of two languages, an identifier, a
voice. A mutant is one of them with one file spoilt: of safetensors the length, the header's bytes and values (names,
dtypes, shapes, offsets), the order of its tensors, their numbers, the end; of config.json, vocab.json,
tokenizer_config.json and preprocessor_config.json a value (other types, huge numbers, NaN, deep nesting), a key (gone,
renamed, twice, unknown), bytes, the end. Each is loaded with ``load_asr`` (and its adapter), ``load_lid`` or
``load_tts`` in one of two processes that may take 10 s per mutant and 2 GB more address space than they begin with.

What must hold: no process crashes or hangs; no error but ``MMSError``, which names the checkpoint in no more than 4,000
characters; and what is accepted is *rightly* accepted, which is, whatever file was spoilt:

- The file is one at all. Safetensors: the format's own library reads it too, and no name stands in it twice. JSON: it
  is an object, no object in it has a key twice, and config.json has no key that nobody ever heard of.
- Every element of every parameter is, bit for bit, the element of the file that it is in the sound checkpoint: its
  tensor under the same name, at the same place, as the library reads it, converted to float32. (Which one that is was
  found by loading the checkpoint with the numbers 0, 1, 2, ... in its tensors.) So two tensors that change places are
  loaded as the file says, a change of what nobody reads (metadata) changes nothing, and all else is found.
- All of these are finite, and no tensor of the file is left unread.
- Every setting of configuration, feature extractor, vocabulary and tokenizer is of the type it must be of, and what the
  file says, or where the file does not say it, the default.

On two shared cores, seed 0, in 7 minutes:

    20000 mutants: 3958 rightly accepted, 16042 refused; the slowest 5.36 s; 81 MB grown
    0 crash, 0 hang, 0 untyped, 0 wrong
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.reliability.checkpoint_files import TARGETS, write_checkpoints
from experiments.reliability.checkpoint_judge import Judge
from experiments.reliability.checkpoint_spoilers import spoil
from experiments.reliability.workers import MB, Outcome, outcomes

MAX_SECONDS = 10.0
MEMORY = 2048 * MB
KINDS_SHOWN = 12
FAULTS = ("crash", "hang", "untyped", "wrong")


def main(arguments: list[str] | None = None) -> None:
    """Spoil checkpoints, load them, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("checkpoint_mutants"), help="where faulty ones are kept")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    try:
        sys.exit(run(folder, options.count, options.seed, options.output))
    finally:
        shutil.rmtree(folder)


def run(folder: Path, count: int, seed: int, output: Path) -> bool:
    """All mutants of a seed; whether there was a fault."""
    begun = time.perf_counter()
    _in_process_of_its_own(folder)
    contents = {target: (folder / target).read_bytes() for target in TARGETS}
    judge = Judge(folder)
    found: list[Outcome] = []
    for outcome in outcomes(
        lambda index: judge.check(*spoil(contents, seed, index)),
        count,
        prepare=judge.prepare,
        seconds=MAX_SECONDS,
        memory=MEMORY,
    ):
        found.append(outcome)
        if outcome.what.startswith(FAULTS):
            target, mutant = spoil(contents, seed, outcome.number)
            output.mkdir(parents=True, exist_ok=True)
            path = output / f"{seed}-{outcome.number}-{target.replace('/', '-')}"
            path.write_bytes(mutant)
            print(f"{path}: {outcome.what}", flush=True)
    return report(found, time.perf_counter() - begun)


def _in_process_of_its_own(folder: Path) -> None:
    """Write the checkpoints; what JAX starts here, no fork may see."""
    writer = multiprocessing.get_context("fork").Process(target=write_checkpoints, args=(folder,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer.start()
    writer.join()
    if writer.exitcode:
        raise RuntimeError("the checkpoints were not written, for the reason above")


def report(found: Sequence[Outcome], seconds: float) -> bool:
    """Print the figures; whether there was a fault."""
    firsts = Counter(outcome.what.split()[0].strip(":") for outcome in found)
    faults = {kind: firsts.pop(kind, 0) for kind in FAULTS}
    kinds = Counter(outcome.what for outcome in found if not outcome.what.startswith((*FAULTS, "accepted")))
    print(f"{len(found)} mutants: {firsts['accepted']} rightly accepted", end=", ")
    print(f"{sum(kinds.values())} refused for {len(kinds)} kinds of reasons", end="; ")
    slowest, grown = max(outcome.seconds for outcome in found), max(outcome.grown for outcome in found)
    print(f"{seconds:.0f} s; the slowest {slowest:.2f} s; {grown / MB:.0f} MB grown")
    print("\n".join(f"{count:8} {kind}" for kind, count in kinds.most_common(KINDS_SHOWN)))
    print(", ".join(f"{count} {kind}" for kind, count in faults.items()))
    return any(faults.values())


if __name__ == "__main__":
    main()

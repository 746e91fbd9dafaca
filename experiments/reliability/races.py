"""Two processes load the same model at once, while it is fetched or copied: is either ever given half of one?

    nice -n 10 .venv/bin/python -m experiments.reliability.races --races 100

Every other model comes from a hub on this machine (the one of the tests, slow enough that the two meet): both processes
fetch it into one cache at the same time, and every third time a transfer breaks off. The others are local directories
whose weights somebody is copying: the file grows under its final name while the two load it. Every race has other
weights. What must hold of each process:

- a model of the hub is loaded, bit for bit as it was published;
- a local one is loaded so, or refused with an error that names it; once it is complete, it is loaded.

On two shared cores, seed 0:

    100 races in 61 s: 50 fetched, 50 copied, where at first 88 processes were refused and 12 loaded the whole
    0 corrupt loads or other faults
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from experiments.reliability.checkpoint_files import LID, WEIGHTS, write_checkpoints
from experiments.reliability.checkpoint_spoilers import joined, parts
from tests.hub_server import HubServer

PIECES = 20  # of a file that is copied
MAX_PAUSE = 0.004  # seconds, between them
LOADER = """
import sys
import numpy as np
import mms_jax
from mms_jax.errors import MMSError
mms_jax.load_lid(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    try:
        head = mms_jax.load_lid(line.strip()).params["classifier"]["bias"]
    except MMSError as error:
        print("refused" if line.strip() in str(error) else f"refused without its name: {error}", flush=True)
    else:
        print("loaded", np.asarray(head).tobytes().hex(), flush=True)
"""


def start_loader(sound: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that loads what it is told to, and says what it got."""
    command = [sys.executable, "-c", LOADER, str(sound)]
    process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert answer(process) == "ready"
    return process


def ask(process: subprocess.Popen[str], model: str) -> None:
    """Let it load a model."""
    assert process.stdin is not None
    process.stdin.write(f"{model}\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    """What it says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def weights_of(content: bytes, number: int) -> tuple[bytes, str]:
    """A file of weights that no other race has, and what a process that loads it says."""
    header, data = parts(content)
    begin, end = header["classifier.bias"]["data_offsets"]
    bias = np.random.default_rng(number).standard_normal((end - begin) // 4, np.float32).tobytes()
    return joined(header, data[:begin] + bias + data[end:]), f"loaded {bias.hex()}"


def fetched(hub: HubServer, files: dict[str, bytes], number: int, loaders: list[subprocess.Popen[str]]) -> list[str]:
    """What both say of a model that they fetch at once."""
    name = f"org/race{number}"
    hub.add(name, files)
    hub.faults.clear()
    if number % 3 == 0:
        hub.fault(WEIGHTS, cut_after=len(files[WEIGHTS]) // 2)
    hub.fault(WEIGHTS, delay=0.02, times=2)
    for loader in loaders:
        ask(loader, name)
    return [answer(loader) for loader in loaders]


def copied(
    folder: Path, files: dict[str, bytes], rng: random.Random, loaders: list[subprocess.Popen[str]]
) -> tuple[list[str], list[str]]:
    """What both say of a model that is being copied, and then of the whole."""
    folder.mkdir()
    for name, content in files.items():
        if name != WEIGHTS:
            (folder / name).write_bytes(content)
    whole = files[WEIGHTS]
    with (folder / WEIGHTS).open("wb", buffering=0) as file:
        begins = {loader: rng.randrange(PIECES) for loader in loaders}  # with which piece
        for piece in range(PIECES):
            for loader in loaders:
                if begins[loader] == piece:
                    ask(loader, str(folder))
            file.write(whole[len(whole) * piece // PIECES : len(whole) * (piece + 1) // PIECES])
            time.sleep(rng.uniform(0, MAX_PAUSE))
    first = [answer(loader) for loader in loaders]
    for loader in loaders:
        ask(loader, str(folder))
    return first, [answer(loader) for loader in loaders]


def main(arguments: list[str] | None = None) -> None:
    """Race, and print who got what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="races-"))
    writer = multiprocessing.get_context("spawn").Process(target=write_checkpoints, args=(folder,))
    writer.start()
    writer.join()
    with HubServer() as hub:
        environment = os.environ | hub.environment(folder / "home") | {"HF_HUB_DISABLE_TELEMETRY": "1"}
        loaders = [start_loader(folder / LID, environment) for _ in range(2)]
        try:
            faults = race(folder, hub, loaders, options)
        finally:
            for loader in loaders:
                loader.communicate()
            shutil.rmtree(folder)
    sys.exit(bool(faults))


def race(folder: Path, hub: HubServer, loaders: list[subprocess.Popen[str]], options: argparse.Namespace) -> int:
    """All races; prints what came of them, and returns the number of faults."""
    files = {path.name: path.read_bytes() for path in (folder / LID).iterdir()}
    rng, counts, faults = random.Random(options.seed), Counter[str](), []
    begun = time.perf_counter()
    for number in range(options.races):
        weights, right = weights_of(files[WEIGHTS], number)
        spoken = files | {WEIGHTS: weights}
        if number % 2:
            final, early = fetched(hub, spoken, number, loaders), []
        else:
            early, final = copied(folder / f"copy{number}", spoken, rng, loaders)
        counts.update(["fetched" if number % 2 else "copied"])
        counts.update(f"copied {said.split()[0]}" for said in early)
        faults += [f"race {number}: {said}" for said in early if said not in (right, "refused")]
        faults += [f"race {number}, whole: {said}" for said in final if said != right]
    print(f"{options.races} races in {time.perf_counter() - begun:.0f} s: {counts['fetched']} fetched, ", end="")
    print(f"{counts['copied']} copied, where at first {counts['copied refused']} processes were refused and ", end="")
    print(f"{counts['copied loaded']} loaded the whole")
    print("\n".join([f"{len(faults)} corrupt loads or other faults", *faults]))
    return len(faults)


if __name__ == "__main__":
    main()

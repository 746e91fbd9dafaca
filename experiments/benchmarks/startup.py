"""How long until there is something to see: import, loading a checkpoint, and the first transcript of a process.

    .venv/bin/python -m experiments.benchmarks startup --rounds 2

Every figure is of new processes, in turn, medians. Loading is compared with reading the file's bytes, both with the
file in the page cache, and with memory that the machine really has: a virtual machine's host takes back what has been
free for two seconds, and giving it again takes 1.3 to 2.6 s a GB (seen here), up to 10 s of a load in float32 and none
of a read. So a process first touches what it may need and frees it, whatever it is to run; --as-is leaves that out. The
first transcript is the program's, from its start to its end, with the demo model, once with
an empty compilation cache and then with a filled one.

On two idle cores of an AMD EPYC, jax 0.10.2, torch 2.13, transformers 5.23, --rounds 3:

    import jax                                   0.63 s
    import mms_jax                               0.63 s
    from transformers import Wav2Vec2ForCTC      4.44 s
    loading 1b, 3.86 GB of float32
    plain read                                   0.46 s  1.00 x the read; peak 0.02 x the file
    mms_jax, float32                             2.05 s  4.44 x the read; peak 1.06 x the file
    mms_jax, bfloat16                            2.22 s  4.81 x the read; peak 0.56 x the file
    mms_jax, int8                                1.92 s  4.16 x the read; peak 0.32 x the file
    transformers, float32                        0.81 s  1.76 x the read; peak 0.14 x the file
    transformers, bfloat16                       2.06 s  4.46 x the read; peak 1.61 x the file
    mms-jax transcribe, demo: nothing compiled   4.29 s
    the same again                               2.22 s

Before blocks were read into buffers that stay in the cache and into large pages, and --as-is: float32 7.83 s, bfloat16
2.75 s, int8 5.27 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mms_jax
from experiments.benchmarks.asr_forward import SIZES, build

CLIP = mms_jax.DEMO_MODEL.parent / "clips" / "eng-1.flac"
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}

IMPORTS = {
    "import jax": "import jax",
    "import mms_jax": "import mms_jax",
    "from transformers import Wav2Vec2ForCTC": "from transformers import Wav2Vec2ForCTC",
}
READ = """
with open(sys.argv[1], "rb", buffering=0) as file:
    memory = memoryview(bytearray(64 << 20))
    while file.readinto(memory):
        pass
"""
LOADER = "import mms_jax, jax; from mms_jax.checkpoint import load_ctc, open_source"
LOAD = """
jax.block_until_ready(load_ctc(open_source(sys.argv[1]), dtype=sys.argv[2]).params)
"""
PEER_LOAD = """
transformers.Wav2Vec2ForCTC.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
"""
# A process says how long its work took, imports aside, and the most memory it ever had.
TIMED = """
import json, mmap, pathlib, sys, time
{imports}
if {backed}:
    with mmap.mmap(-1, {backed}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, {backed}, 4096):
            memory[page] = 1
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the most memory it ever had begins anew
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
# Not getrusage's peak: that is the parent's where the parent had more.
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps([seconds, int(status["VmHWM"].split()[0]) * 1024]))
"""


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--as-is", action="store_true", help="with memory that the host may yet have to give")
    options = parser.parse_args()
    for lines in (
        imports(options.rounds),
        loading(options.size, options.rounds, as_is=options.as_is),
        transcripts(options.rounds),
    ):
        for line in lines:
            print(line, flush=True)


def imports(rounds: int):
    """Wall time of processes that do nothing else, less that of one which does nothing."""
    programs = {"": "pass"} | IMPORTS
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(seconds_of([sys.executable, "-c", program]))
    nothing = statistics.median(times.pop(""))
    for name, own in times.items():
        yield f"{name:<42} {statistics.median(own) - nothing:6.2f} s"


def loading(size: str, rounds: int, *, as_is: bool):
    """Loading beside reading the same bytes."""
    directory = Path(".work") / f"bench-{size}"
    file = directory / "model.safetensors"
    if not file.exists():
        build(directory, SIZES[size])
    bytes_of_file = file.stat().st_size
    backed = 0 if as_is else int(1.2 * bytes_of_file)
    programs = {
        "plain read": ("", READ, [str(file)]),
        **{f"mms_jax, {dtype}": (LOADER, LOAD, [str(directory), dtype]) for dtype in DTYPES},
        **{
            f"transformers, {dtype}": (
                "import torch, transformers; transformers.Wav2Vec2ForCTC",
                PEER_LOAD,
                [str(directory), dtype],
            )
            for dtype in DTYPES[:2]
        },
    }
    answers: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, (first, work, arguments) in programs.items():
            answer = timed(first, work, arguments, backed=backed)
            if turn:  # the first fills the page cache
                answers[name].append(answer)
    plain = statistics.median(seconds for seconds, _ in answers["plain read"])
    yield f"loading {size}, {bytes_of_file / 1e9:.2f} GB of float32"
    for name, own in answers.items():
        seconds, peak = (statistics.median(values) for values in zip(*own, strict=True))
        ratios = f"{seconds / plain:5.2f} x the read; peak {peak / bytes_of_file:.2f} x the file"
        yield f"{name:<42} {seconds:6.2f} s {ratios}"


DTYPES = ("float32", "bfloat16", "int8")


def timed(imports: str, work: str, arguments: list[str], *, backed: int) -> tuple[float, float]:
    """Seconds and peak bytes, as the process says, which touches and frees ``backed`` bytes first."""
    program = TIMED.format(imports=imports, work=work, backed=backed)
    said = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=os.environ | QUIET, capture_output=True, text=True, check=True
    )
    seconds, peak = json.loads(said.stdout.splitlines()[-1])
    return seconds, peak


def transcripts(rounds: int):
    """The program's first transcript."""
    command = [sys.executable, "-m", "mms_jax.cli", "transcribe", str(CLIP), "--language", "eng"]
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds_of(command, MMS_JAX_CACHE_DIR=cache))
            warm.append(seconds_of(command, MMS_JAX_CACHE_DIR=cache))
    yield f"{'mms-jax transcribe, demo: nothing compiled':<42} {statistics.median(cold):6.2f} s"
    yield f"{'the same again':<42} {statistics.median(warm):6.2f} s"


def seconds_of(command: list[str], **environment: str) -> float:
    """Wall time of a process."""
    start = time.perf_counter()
    subprocess.run(command, env=os.environ | QUIET | environment, capture_output=True, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

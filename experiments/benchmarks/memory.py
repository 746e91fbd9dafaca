"""What a process holds that has loaded a recognition model and used it, this library and transformers.

    .venv/bin/python -m experiments.benchmarks memory --size 1b --seconds 10

A process for each; resident is after the second transcript, released after ``release_freed_memory`` besides.

On two idle cores of an AMD EPYC, jax 0.10.2, torch 2.13, transformers 5.23:

    1b, one clip of 10 s; GB
                  dtype      resident  of which anonymous   peak  released
    mms_jax       float32        4.47                4.32   4.67      4.44
    mms_jax       bfloat16       2.55                2.40   2.87      2.50
    mms_jax       int8           1.63                1.48   1.92      1.60
    transformers  float32        4.36                0.37   4.56      4.30
    transformers  bfloat16       2.43                2.30   6.20      2.37
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from experiments.benchmarks.asr_forward import SIZES, build
from experiments.benchmarks.startup import QUIET

OURS = """
import mms_jax
asr = mms_jax.load_asr(directory, dtype=dtype)
run = lambda: asr.transcribe(audio)
release = mms_jax.release_freed_memory
"""
THEIRS = """
import torch, transformers
processor = transformers.Wav2Vec2Processor.from_pretrained(directory)
model = transformers.Wav2Vec2ForCTC.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
def run():
    inputs = processor(audio, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        logits = model(inputs.input_values.to(model.dtype), attention_mask=inputs.attention_mask).logits
    return processor.batch_decode(logits.argmax(-1))
import ctypes
release = lambda: ctypes.CDLL(None).malloc_trim(0)
"""
PROGRAM = """
import gc, json, os, pathlib, sys
import numpy as np
directory, dtype, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
audio = np.random.default_rng(0).normal(size=int(seconds * 16_000)).astype(np.float32) * 0.1
{load}
run(), run()
gc.collect()
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
# Not getrusage's peak: that is the parent's where the parent had more.
figures = [int(status[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "VmHWM")]
release()
statm = pathlib.Path("/proc/self/statm").read_text().split()
print(json.dumps([*figures, int(statm[1]) * os.sysconf("SC_PAGE_SIZE")]))
"""
SIDES = {
    "mms_jax": (OURS, ("float32", "bfloat16", "int8")),
    "transformers": (THEIRS, ("float32", "bfloat16")),
}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the clip")
    options = parser.parse_args()
    directory = Path(".work") / f"bench-{options.size}"
    if not (directory / "model.safetensors").exists():
        build(directory, SIZES[options.size])
    print(f"{options.size}, one clip of {options.seconds:g} s; GB")
    print(f"{'':<13} {'dtype':<9} {'resident':>9} {'of which anonymous':>19} {'peak':>6} {'released':>9}")
    for side, (load, dtypes) in SIDES.items():
        for dtype in dtypes:
            figures = measured(load, directory, dtype, options.seconds)
            resident, private, peak, released = (f"{figure / 1e9:.2f}" for figure in figures)
            print(f"{side:<13} {dtype:<9} {resident:>9} {private:>19} {peak:>6} {released:>9}", flush=True)


def measured(load: str, directory: Path, dtype: str, seconds: float) -> list[int]:
    """Bytes: resident, anonymous (not a file's pages), the most there ever were, resident after giving back."""
    command = [sys.executable, "-c", PROGRAM.format(load=load), str(directory), dtype, str(seconds)]
    said = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=True)
    return json.loads(said.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

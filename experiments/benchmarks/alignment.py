"""The search of forced alignment beside its peers: same emissions, same machine, in turn.

    .venv/bin/python -m experiments.benchmarks align --minutes 60 --peer align.so --frames 2000

An hour with 10,000 words of 6 letters. The peer is the kernel of ctc-forced-aligner 1.0.2 (C++), built with
    g++ -O3 -std=c++17 -shared -fPIC ctc_forced_aligner/main.cpp -o align.so
where two of its numbers must be made of 64 bits, `(size_t)(S + 1) * (T - L)` and `long long backPtr_idx`: published as
it is it crashes here, and at about 23 minutes of such speech and more. torchaudio has no CPU wheel for torch 2.13. On
two cores of an AMD EPYC that others were using too; what a search may be slower for is memory, so its peak is shown:

    60 min, plausible: 180,000 frames, 60,000 letters
                            median  ratio  score, and frames as ours
    mms_jax                 4.43 s   1.00  -73035.6905 100.0000%    + 13 MB
    mms_jax, all states    17.16 s   3.87  -73035.6905 100.0000%    +144 MB
    peer                   73.93 s  16.70  -73044.3766  99.9983%    +3.3 GB
    XLA loop in float32, all states: 8.71 s for as many frames

    60 min, random (--emissions random): 180,000 frames, 60,000 letters
    mms_jax                19.34 s   1.00  -717428.1344 100.0000%    +154 MB
    peer                  126.93 s   6.56  -717522.9948  98.5572%    +3.3 GB

The peer's path is worse than the best: float32 sums of 180,000 terms have lost the digits that decide, and of the two
ways into a state it takes neither where they tie. The XLA loop only goes forward, compiles for every number of labels
and keeps no way back: leaving out hopeless states is worth more than its speed, so the search stays in numpy. Where
nothing fits (random), no state is hopeless, and the time of "all states" is what it takes. Of that half is the gather
of the letters' gains, 0.65 ns each; maxima and sums move 240 KB of float64 at the speed of the second cache.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.ctc import align_search
from mms_jax.ctc.align import TokenSpans, align_tokens

FRAMES_A_SECOND = 50
LETTERS_A_SECOND = 50 / 3  # 10,000 words of 6 letters an hour
WIDTH = 31  # columns, as the published multilingual aligner has
WRONG = 0.1  # of the letters are heard as others


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of audio")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer", help="ctc-forced-aligner's kernel as a shared library")
    parser.add_argument("--frames", type=int, default=0, help="of them for an XLA loop over all states, as if for all")
    parser.add_argument("--emissions", choices=("plausible", "random"), default="plausible")
    options = parser.parse_args()
    log_probs, tokens = emissions(options.minutes, options.emissions)
    print(f"{options.minutes:g} min, {options.emissions}: {len(log_probs):,} frames, {len(tokens):,} letters")
    runs: dict[str, Callable[[], tuple[float, Any]]] = {"mms_jax": partial(ours, log_probs, tokens)}
    if options.emissions == "plausible":
        runs["mms_jax, all states"] = partial(all_states, log_probs, tokens)
    if options.peer:
        runs["peer"] = partial(peer, ctypes.CDLL(options.peer), log_probs, tokens)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, Any] = {}
    for _ in range(options.rounds):
        for name, run in runs.items():
            before, start = peak(), time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - start)
            print(f"  {name:<20} {seconds[name][-1]:>7.2f} s  peak +{peak() - before:.0f} MB", flush=True)
    best_path = found["mms_jax"][1]
    print(f"{'':<20} {'median':>9} {'ratio':>6}  score, and frames as ours")
    for name, times in seconds.items():
        score, path = found[name]
        ratio = statistics.median(times) / statistics.median(seconds["mms_jax"])
        same = float(np.mean(path == best_path))
        print(f"{name:<20} {statistics.median(times):>7.2f} s {ratio:>6.2f}  {score:.4f} {same:>9.4%}")
    if options.frames:
        print(f"XLA loop in float32, all states: {xla(log_probs, tokens, options.frames):.2f} s for as many frames")


def emissions(minutes: float, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [T, V] log probabilities and int64 [U] tokens: peaks, some of them wrong; or noise."""
    rng = np.random.default_rng(0)
    num_frames = int(minutes * 60 * FRAMES_A_SECOND)
    num_tokens = int(minutes * 60 * LETTERS_A_SECOND)
    tokens = rng.integers(1, WIDTH, num_tokens)
    logits = rng.normal(0, 1.5 if kind == "plausible" else 3, (num_frames, WIDTH)).astype(np.float32)
    if kind == "plausible":
        logits[:, 0] += 8
        peaks = np.sort(rng.choice(num_frames, num_tokens, replace=False))
        heard = np.where(rng.random(num_tokens) < WRONG, rng.integers(1, WIDTH, num_tokens), tokens)
        logits[peaks, 0] -= 8
        logits[peaks, heard] += rng.normal(8, 2, num_tokens).astype(np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), tokens


def ours(log_probs: np.ndarray, tokens: np.ndarray) -> tuple[float, np.ndarray]:
    """Score and path."""
    found: TokenSpans = align_tokens(log_probs, tokens, blank_id=0)
    return found.score, found.path(tokens, blank_id=0)


def all_states(log_probs: np.ndarray, tokens: np.ndarray) -> tuple[float, np.ndarray]:
    """As if no state were hopeless."""
    narrow = align_search._narrow
    align_search._narrow = lambda lattice: -np.inf
    try:
        return ours(log_probs, tokens)
    finally:
        align_search._narrow = narrow


def peer(library: ctypes.CDLL, log_probs: np.ndarray, tokens: np.ndarray) -> tuple[float, np.ndarray]:
    """The kernel of ctc-forced-aligner 1.0.2, as its Python calls it."""
    num_frames, width = log_probs.shape
    targets = tokens.astype(np.int64)
    paths, scores = np.zeros(num_frames, np.int64), np.zeros(num_frames, np.float32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (log_probs, targets, paths, scores)]
    library.align_sequences(*pointers, 1, num_frames, width, len(tokens), ctypes.c_int64(0))
    return float(scores.astype(np.float64).sum()), paths


def xla(log_probs: np.ndarray, tokens: np.ndarray, num_frames: int) -> float:
    """Seconds that a jitted loop over all states, without any way back, would take for all frames."""

    def step(state: tuple[jax.Array, jax.Array], gain: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        blanks, labels = state
        behind = jnp.maximum(blanks, jnp.pad(labels, (1, 0), constant_values=-jnp.inf))
        return (behind, jnp.maximum(labels, behind[:-1]) + gain[jnp.asarray(tokens)]), None

    start = (jnp.full(len(tokens) + 1, -jnp.inf).at[0].set(0), jnp.full(len(tokens), -jnp.inf))
    run = jax.jit(lambda gains: jax.lax.scan(step, start, gains)[0])
    gains = jnp.asarray(log_probs[:num_frames] - log_probs[:num_frames, :1])
    jax.block_until_ready(run(gains))
    began = time.perf_counter()
    jax.block_until_ready(run(gains))
    return (time.perf_counter() - began) * len(log_probs) / num_frames


def peak() -> float:
    """MB that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

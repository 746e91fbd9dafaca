"""Whether the right numbers come out: the bundled models hear a bundled clip, and products are what numpy says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.pipelines.compilation import VARIABLE, program_cache
from mms_jax.pipelines.doctor.findings import Finding, ok, problem

CLIP = "spa-1.flac"  # that the demo models hear without a mistake
SIZE = 512  # rows and columns of the matrices: 0.3 GFLOP
REPEATS = 3  # of which the fastest counts
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}  # of a product, relative to its largest value: 2^-24 and 2^-8 summed
AGREEMENT = 1e-3  # of logits between backends, relative to the largest: float32 throughout, five layers, other orders
REMEDY = (
    f"{VARIABLE}= env -u XLA_FLAGS mms-jax doctor  # is it the cache or a flag? if not: "
    "pip install --force-reinstall mms-jax jax jaxlib"
)


def check_demo() -> Iterator[Finding]:
    """Identify and transcribe one clip, whose language and text must be exactly those that are known."""
    from mms_jax.pipelines.asr import load_asr  # here, because without soundfile the other checks still run
    from mms_jax.pipelines.demo import DEMO_LID, DEMO_MODEL, demo_clips

    clip = next(clip for clip in demo_clips() if clip.path.name == CLIP)
    start = time.perf_counter()
    with program_cache(lambda line: None):  # whose own check tells what is wrong with it
        result = load_asr(DEMO_MODEL, lid=DEMO_LID).transcribe(clip.path, language="auto", progress=False)
    seconds = time.perf_counter() - start
    if (result.language, result.text) == (clip.language, clip.reference):
        yield ok(f"the demo models hear {result.text!r} ({result.language}), {seconds:.1f} s; a first run compiles too")
    else:
        heard, said = f"{result.text!a} ({result.language})", f"{clip.reference!a} ({clip.language})"
        yield problem(f"the demo models hear {heard} where {said} is said", REMEDY)


def check_products() -> Iterator[Finding]:
    """Products of matrices in each dtype against numpy's in float64, and their time."""
    x, kernel = np.random.default_rng(0).standard_normal((2, SIZE, SIZE)).astype(np.float32)
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    with program_cache(lambda line: None):
        for dtype, tolerance in TOLERANCES.items():
            result, seconds = _product(jnp.asarray(x), jnp.asarray(kernel), dtype)
            error = float(np.abs(result - exact).max() / np.abs(exact).max())
            speed = f"{2 * SIZE**3 / seconds / 1e9:.0f} GFLOP/s"
            if error <= tolerance:  # not so for NaN
                yield ok(f"{dtype} products are right to {error:.0e}, {speed}")
            else:
                yield problem(f"{dtype} products are wrong by {error:.0e}, over {tolerance:.0e}", REMEDY)


def _product(x: jax.Array, kernel: jax.Array, dtype: str) -> tuple[np.ndarray, float]:
    from mms_jax.models.products import matmul

    multiply = jax.jit(lambda x, kernel: matmul(x, kernel, dtype=dtype))
    result = np.asarray(multiply(x, kernel))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        multiply(x, kernel).block_until_ready()
        times.append(time.perf_counter() - start)
    return result, min(times)


def check_accelerator() -> Iterator[Finding]:
    """Whether a GPU or TPU gives the logits that the CPU gives."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return
    try:
        reference = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # of jax
        yield ok("not compared with the CPU, which JAX_PLATFORMS leaves out")
        return
    yield compare(device, reference)


def compare(device: Any, reference: Any) -> Finding:
    """The demo's logits on two devices."""
    with program_cache(lambda line: None):
        ours, theirs = _logits(device), _logits(reference)
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if error <= AGREEMENT:
        return ok(f"{device.platform} and {reference.platform} agree on the demo's logits to {error:.0e}")
    return problem(f"{device.platform} and {reference.platform} differ by {error:.0e} in the demo's logits", REMEDY)


def _logits(device: Any) -> np.ndarray:
    from mms_jax.pipelines.asr import load_asr
    from mms_jax.pipelines.demo import DEMO_MODEL, demo_clips

    clip = next(clip for clip in demo_clips() if clip.path.name == CLIP)
    with jax.default_device(device):
        return np.asarray(load_asr(DEMO_MODEL).logits(clip.path, language=clip.language))

"""This library alone on an accelerator: is what it computes there right, and how near does it come to the limit?

    python -m experiments.benchmarks accelerator --device gpu --output accelerator.json
    python -m experiments.benchmarks accelerator --size tiny --rounds 2        # a CPU does the same, slowly

First models on the device are compared with float32 on the CPU. Only then are compiled programs timed, from samples on
the device to packed token ids on it, with random weights that are made there: whole batches (throughput), single
clips (latency), many languages in one batch, attention and positional convolution in the ways there are, synthesis.
The limit is what a large matrix product reaches in the same run; audio is not padded.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerator_works import (
    RATE,
    SIZES,
    VOCAB_SIZE,
    attention_ways,
    first_batch,
    languages,
    latency,
    model_config,
    random_params,
    speech,
    throughput,
    training,
)
from experiments.benchmarks.device import add_arguments, environment, limits, prepare
from experiments.benchmarks.report import DifferenceError, Report
from mms_jax.config import VitsConfig, Wav2Vec2Config
from mms_jax.ctc import ctc_loss
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import merge_trees, split_adapter
from mms_jax.models.vits.decoder import Decoder

# Largest difference to float32 on the CPU, relative to the largest value. float32: order of summation through 4 layers.
# bfloat16: operands rounded to 8 bits.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
PARTS = {
    "throughput": throughput,
    "latency": latency,
    "languages": languages,
    "attention": attention_ways,
    "speech": speech,
    "training": training,  # the last, as it needs the most memory and time
    "first": first_batch,
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=10)
    parser.add_argument("--size", choices=("1b", "tiny"), default="1b")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part != "first"])
    parser.add_argument("--no-check", dest="check", action="store_false", help="time without comparing: for settings")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no further part is begun")
    options = parser.parse_args()
    prepare(options)
    began = time.monotonic()
    report = Report("accelerator", environment(options), limits(["float32", "bfloat16"], options.device))
    report.start()
    if options.check:
        check(options.size)
    for part in options.parts:
        if time.monotonic() - began > options.limit:
            report.note(f"{part}: --limit {options.limit:g} was reached")
            continue
        try:
            time_part(report, part, options)
        except jax.errors.JaxRuntimeError as error:  # out of memory, above all: the others are worth timing still
            report.note(f"{part}: {str(error).strip().splitlines()[0]}")
    report.save(options.output)


def time_part(report: Report, part: str, options: argparse.Namespace) -> None:
    """Time whatever is in a part, and keep it as it comes."""
    for work in PARTS[part](options.size):
        report.time(
            work.name,
            [contender() for contender in work.contenders],
            rounds=options.rounds,
            audio_seconds=work.seconds,
            gflops=work.gflops,
        )
        report.save(options.output)


def check(size: str) -> None:
    """Compare with the CPU's float32.

    Raises:
        DifferenceError: the device computes something else.
    """
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    expected, valid = _logits(size, "float32", cpu)
    for dtype in ("float32", "bfloat16"):
        _agree(f"logits, {dtype}", _logits(size, dtype, device)[0][valid], expected[valid], TOLERANCE[dtype])
    (mixed, _), (others, _) = (_logits(size, "float32", where, sets=2) for where in (cpu, device))
    _agree("logits of two languages in a batch, float32", others[valid], mixed[valid], TOLERANCE["float32"])
    _agree("gradient of an adapter, float32", _gradient(size, device), _gradient(size, cpu), TOLERANCE["float32"])
    loss, gradient = _loss(expected, valid, cpu)
    own_loss, own_gradient = _loss(expected, valid, device)
    _agree("CTC loss", own_loss, loss, TOLERANCE["float32"])
    _agree("its gradient", own_gradient, gradient, TOLERANCE["float32"])
    _agree("samples of VITS' decoder, float32", _speech(device), _speech(cpu), TOLERANCE["float32"])


def _few_layers(size: str) -> Wav2Vec2Config:
    return model_config(size, num_hidden_layers=min(4, SIZES[size]["num_hidden_layers"]))


def _samples() -> tuple[np.ndarray, np.ndarray]:
    """Two rows, long enough for cuDNN, and which of their samples are valid."""
    samples = np.random.default_rng(1).normal(size=(2, 12 * RATE)).astype(np.float32)
    return samples, np.arange(samples.shape[1]) < np.array([[12 * RATE], [7 * RATE]])


def _gradient(size: str, device: Any) -> np.ndarray:
    """Of the sum of squared logits, for all leaves of an adapter, through frozen layers as training has them."""
    config = _few_layers(size)
    base, adapter = split_adapter(jax.device_get(random_params(config, "float32", scan=False)))
    module = Wav2Vec2ForCTC(config)

    def loss(adapter: Any, base: Any, samples: jax.Array, mask: jax.Array) -> jax.Array:
        output: Any = module.apply({"params": merge_trees(base, adapter)}, samples, mask)
        return jnp.where(output.frame_mask[..., None], output.logits**2, 0).sum()

    gradient = jax.jit(jax.grad(loss))(*jax.device_put((adapter, base, *_samples()), device))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(gradient))])


def _logits(size: str, dtype: str, device: Any, *, sets: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of two rows through four layers, with ``sets`` of adapters if they are languages; which frames are valid."""
    config = _few_layers(size)
    samples, mask = _samples()
    tree = jax.device_get(random_params(config, "float32", scan=False, sets=sets))
    module = Wav2Vec2ForCTC(config, jnp.dtype(dtype), num_adapters=sets)

    def apply(tree: Any, samples: jax.Array, mask: jax.Array) -> Any:
        output: Any = module.apply({"params": tree}, samples, mask)
        return output.logits, output.frame_mask

    return jax.device_get(jax.jit(apply)(*jax.device_put((tree, samples, mask), device)))


def _loss(logits: np.ndarray, valid: np.ndarray, device: Any) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(2).integers(1, VOCAB_SIZE, (len(logits), 50)).astype(np.int32)
    counts = valid.sum(axis=1, dtype=np.int32), np.full(len(labels), labels.shape[1], np.int32)
    arguments = jax.device_put((logits, labels, *counts), device)

    def total(logits: Any, labels: Any, num_frames: Any, num_labels: Any) -> Any:
        return ctc_loss(logits, labels=labels, num_frames=num_frames, num_labels=num_labels)

    return jax.device_get(jax.jit(jax.value_and_grad(total))(*arguments))


def _speech(device: Any) -> np.ndarray:
    config, frames = VitsConfig(vocab_size=40), 20
    module = Decoder(config, windowed=False)
    latents = np.random.default_rng(3).normal(size=(1, frames, config.flow_size)).astype(np.float32)
    mask = np.ones((1, frames), bool)
    tree = jax.jit(module.init)(jax.random.key(0), latents, mask, None)["params"]
    arguments = jax.device_put((tree, latents, mask), device)

    def decode(params: Any, latents: Any, mask: Any) -> Any:
        return module.apply({"params": params}, latents, mask, None)

    return jax.device_get(jax.jit(decode)(*arguments))


def _agree(what: str, ours: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    difference = float(np.abs(ours - expected).max() / np.abs(expected).max())
    if not difference <= tolerance:  # NaN, too
        raise DifferenceError(f"{what}: differs from the CPU's float32 by {difference:.1e}, allowed are {tolerance:g}")
    print(f"check: {what}, against float32 on the CPU: {difference:.1e} (allowed {tolerance:g})", flush=True)


if __name__ == "__main__":
    main()

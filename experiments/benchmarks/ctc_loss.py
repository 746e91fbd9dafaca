"""The CTC loss with its gradient, this library beside optax and PyTorch: same logits, same machine, in turn.

    .venv/bin/python -m experiments.benchmarks.ctc_loss --rounds 101

Losses and gradient of a batch from float32 logits: the median of the rounds in milliseconds, its speed relative to
optax's (> 1: faster), the best round, and temporary memory as the compiler plans it. Compared before anything is timed,
with PyTorch in float64: the largest relative error of a loss, and the largest of the gradient, whose largest element
is 1. On two cores of an AMD EPYC (Zen 5) that four other processes were using too, hence medians so far from the best:

    jax 0.10.2, optax 0.2.8, torch 2.13.0+cpu; 101 rounds
    batch                  loss     median  ratio   best     MB    Δ loss  Δ gradient
    B=8 T=500 U=100 V=154  mms_jax    16.4   1.78    7.3   13.6   2.8e-08     2.2e-06
    B=8 T=500 U=100 V=154  optax      29.2   1.00   13.1   20.0   7.8e-07     1.9e-03
    B=8 T=500 U=100 V=154  torch     132.0   0.22   57.1          5.6e-07     2.6e-03
    B=32 T=150 U=40 V=32   mms_jax     3.4   1.34    2.5    6.8   5.0e-08     1.2e-06
    B=32 T=150 U=40 V=32   optax       4.5   1.00    4.1    9.4   6.5e-07     3.0e-04
    B=32 T=150 U=40 V=32   torch      65.4   0.07   14.9          5.7e-07     4.4e-04
    B=4 T=1500 U=300 V=154 mms_jax    89.2   1.44   59.8   58.6   3.3e-08     3.0e-06
    B=4 T=1500 U=300 V=154 optax     128.4   1.00   85.0   83.8   1.5e-06     1.2e-02
    B=4 T=1500 U=300 V=154 torch     168.6   0.76   89.9          1.7e-06     1.8e-02
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from experiments.benchmarks.asr_forward import measure
from mms_jax.ctc import ctc_loss

SHAPES = [(8, 500, 100, 154), (32, 150, 40, 32), (4, 1500, 300, 154)]  # rows, frames, labels, vocabulary
LOGIT_SCALE = 3.0
TOLERANCE = 1e-5  # largest difference of a loss allowed, relative to PyTorch's in float64

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # logits, labels, num_frames, num_labels
Result = tuple[np.ndarray, np.ndarray]  # losses, gradient


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--threads", type=int, default=2, help="of torch; JAX takes all there are")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"jax {jax.__version__}, optax {optax.__version__}, torch {torch.__version__}; {options.rounds} rounds")
    print(
        f"{'batch':<22} {'loss':<8} {'median':>6} {'ratio':>6} {'best':>6} {'MB':>6} {'Δ loss':>9} {'Δ gradient':>11}"
    )
    for shape in SHAPES:
        for row in compare(random_batch(*shape), options.rounds):
            print(f"{'B={} T={} U={} V={}'.format(*shape):<22} {row}", flush=True)


def compare(batch: Batch, rounds: int) -> Iterator[str]:
    """Yield a printed row for each implementation."""
    exact = torch_loss(batch, torch.float64)()
    programs = {"mms_jax": compiled(ours, batch), "optax": compiled(optax_loss, batch)}
    arrays = tuple(map(jnp.asarray, batch))
    functions: dict[str, Callable[[], Result]] = {
        name: lambda program=program: jax.block_until_ready(program(*arrays)) for name, program in programs.items()
    }
    functions["torch"] = torch_loss(batch, torch.float32)
    errors = {name: difference(function(), exact) for name, function in functions.items()}
    for name, (loss, _) in errors.items():
        assert loss <= TOLERANCE, f"losses of {name} differ by {loss:.1e}; no timing is worth anything"
    # In turn, but PyTorch apart: for a while its threads spin for more work, at the cost of whatever runs next.
    rounds_of = measure([functions[name] for name in programs], rounds) + measure([functions["torch"]], rounds)
    times = {name: (statistics.median(one), min(one)) for name, one in zip(functions, rounds_of, strict=True)}
    for name, (median, best) in times.items():
        memory = f"{temporary_memory(programs[name]):.1f}" if name in programs else ""
        loss, gradient = errors[name]
        figures = f"{1e3 * median:>6.1f} {times['optax'][0] / median:>6.2f} {1e3 * best:>6.1f} {memory:>6}"
        yield f"{name:<8} {figures} {loss:>9.1e} {gradient:>11.1e}"


def difference(result: Result, exact: Result) -> tuple[float, float]:
    """Largest relative error of a loss, and largest error of an element of the gradient."""
    losses, gradients = (np.abs(np.asarray(x) - y) for x, y in zip(result, exact, strict=True))
    return float((losses / exact[0]).max()), float(gradients.max())


def random_batch(num_rows: int, frames: int, width: int, vocabulary: int) -> Batch:
    """Rows of 80 to 100 % of the frames and 50 to 100 % of the labels; the first is full."""
    rng = np.random.default_rng(0)
    num_frames = rng.integers(frames * 4 // 5, frames + 1, num_rows).astype(np.int32)
    num_labels = rng.integers(width // 2, width + 1, num_rows).astype(np.int32)
    num_frames[0], num_labels[0] = frames, width
    labels = rng.integers(1, vocabulary, (num_rows, width)).astype(np.int32)
    logits = rng.normal(size=(num_rows, frames, vocabulary)) * LOGIT_SCALE
    return logits.astype(np.float32), labels, num_frames, num_labels


def ours(logits, labels, num_frames, num_labels) -> jax.Array:
    """This library's losses of the rows."""
    return ctc_loss(logits, labels=labels, num_frames=num_frames, num_labels=num_labels, reduction="none")


def optax_loss(logits, labels, num_frames, num_labels) -> jax.Array:
    """The losses of the rows as optax computes them."""
    padding = (
        jnp.arange(n) >= lengths[:, None]
        for n, lengths in zip((logits.shape[1], labels.shape[1]), (num_frames, num_labels), strict=True)
    )
    logit_paddings, label_paddings = (x.astype(jnp.float32) for x in padding)
    return optax.ctc_loss(logits, logit_paddings, labels, label_paddings)


def compiled(losses_of: Callable[..., jax.Array], batch: Batch) -> jax.stages.Compiled:
    """Losses and gradient of their sum, compiled for the batch."""

    @jax.jit
    def losses_and_gradient(logits, *others):
        losses, pull_back = jax.vjp(lambda x: losses_of(x, *others), logits)
        return losses, pull_back(jnp.ones_like(losses))[0]

    return losses_and_gradient.lower(*map(jnp.asarray, batch)).compile()


def temporary_memory(program: jax.stages.Compiled) -> float:
    """MB besides arguments and results."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 1e6


def torch_loss(batch: Batch, dtype: torch.dtype) -> Callable[[], Result]:
    """PyTorch's losses and gradient of their sum, ready to run."""
    logits = torch.tensor(batch[0], dtype=dtype, requires_grad=True)
    labels, num_frames, num_labels = (torch.from_numpy(x).long() for x in batch[1:])

    def run() -> Result:
        logits.grad = None
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        losses = torch.nn.functional.ctc_loss(log_probs, labels, num_frames, num_labels, reduction="none")
        losses.sum().backward()
        assert logits.grad is not None
        return losses.detach().numpy(), logits.grad.numpy()

    return run


if __name__ == "__main__":
    main()

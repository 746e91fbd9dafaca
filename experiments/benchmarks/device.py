"""Where a benchmark runs, how fast that machine can be at most, and how functions are timed in turn."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import mms_jax
from experiments.benchmarks.train_worker import limit_threads

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "onnxruntime", "sherpa-onnx", "numpy")
PAUSE = 0.2  # seconds before a turn: for so long threads of ONNX Runtime and OpenMP look for more work, on others' time
LIMIT_ROUNDS = 7
LIMIT_SIZE = {"cpu": 2048, "gpu": 8192}  # rows and columns of the product that tells the device's limit


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """What every benchmark of this kind can be told."""
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of every side, on a CPU")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--output", type=Path, help="JSON file for the results: see `table` and `chart`")


def prepare(options: argparse.Namespace) -> None:
    """Choose the device and the threads for both libraries; to be called before either computes anything."""
    if options.output and not options.output.parent.is_dir():
        sys.exit(f"--output {options.output}: there is no folder {options.output.parent}")
    if options.device == "gpu" and not torch.cuda.is_available():
        sys.exit("--device gpu: PyTorch finds no GPU here")
    limit_threads(options.device, options.threads)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the card, too
    jax.config.update("jax_platforms", "cuda,cpu" if options.device == "gpu" else "cpu")
    try:
        jax.devices()
    except RuntimeError as error:
        sys.exit(f"--device {options.device}: JAX says: {error}")
    mms_jax.reuse_freed_memory()  # all sides are faster for it
    torch.set_num_threads(options.threads)


def torch_device(options: argparse.Namespace) -> torch.device:
    """PyTorch's name for the device."""
    return torch.device("cuda" if options.device == "gpu" else "cpu")


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    own = {"XLA_FLAGS", "OMP_NUM_THREADS", "LD_PRELOAD", "GLIBC_TUNABLES", "JAX_PLATFORMS"}
    return {
        "device": torch.cuda.get_device_name() if options.device == "gpu" else _processor(),
        "kind": options.device,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        "variables": {name: value for name, value in os.environ.items() if name in own},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }


def _processor() -> str:
    """A processor's name, with what decides the speed of its products."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    values = dict(line.split("\t", 1) for line in lines if "\t" in line)
    flags = values.get("flags", "").split()
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if name in flags]
    return " ".join([values.get("model name", platform.processor()).lstrip("\t: "), *known])


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def missing(*modules: str) -> str | None:
    """A note on what has to be installed for these; None if nothing has to be."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed: pip install -e '.[bench]'" if absent else None


def measure(functions: Sequence[Callable[[], Any]], rounds: int, *, pause: float = 0.0) -> list[list[float]]:
    """Time functions in turn, after one unmeasured round, so that whatever else the machine does meets all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, record in zip(functions, times, strict=True):
            time.sleep(pause)
            start = time.perf_counter()
            function()
            if turn:
                record.append(time.perf_counter() - start)
    return times


def limits(dtypes: Iterable[str], device: str) -> dict[str, float]:
    """FLOP/s that a large matrix product of each dtype reaches, by XLA or PyTorch, whichever is faster."""
    return {dtype: max(_product_speeds(dtype, device)) for dtype in dtypes}


def _product_speeds(dtype: str, device: str) -> list[float]:
    size = LIMIT_SIZE[device]
    rng = np.random.default_rng(0)
    if dtype == "int8":
        a, b = (rng.integers(-127, 128, (size, size), np.int8) for _ in range(2))
    else:
        a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    functions = [_xla_product(a, b, dtype), _torch_product(a, b, dtype, device)]
    return [2 * size**3 / min(times) for times in measure(functions, LIMIT_ROUNDS, pause=PAUSE)]


def _xla_product(a: np.ndarray, b: np.ndarray, dtype: str) -> Callable[[], Any]:
    result = jnp.int32 if dtype == "int8" else jnp.float32
    left, right = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision="highest", preferred_element_type=result))
    return lambda: product(left, right).block_until_ready()


def _torch_product(a: np.ndarray, b: np.ndarray, dtype: str, device: str) -> Callable[[], Any]:
    where = torch.device("cuda" if device == "gpu" else "cpu")
    left, right = (torch.tensor(one, dtype=getattr(torch, dtype), device=where) for one in (a, b))
    product: Any = torch._int_mm if dtype == "int8" else torch.matmul  # pyright: ignore[reportPrivateImportUsage]

    def run() -> None:
        product(left, right)
        if device == "gpu":
            torch.cuda.synchronize()

    return run

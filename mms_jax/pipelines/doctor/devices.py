"""The devices that jax sees, and a GPU that it does not see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from mms_jax.pipelines.doctor.findings import Finding, ok, problem, size, warning

DRIVER = Path("/proc/driver/nvidia/gpus")
PLUGIN = re.compile(r"jax-cuda\d+-plugin")
SECONDS = 5.0  # for nvidia-smi, which waits for a driver that hangs
INSTALL = "pip install --upgrade 'mms-jax[cuda]'"


def check_devices() -> Iterator[Finding]:
    """Every device of the default backend, with its memory."""
    if (fault := _fault()) is not None:
        yield fault
        return
    devices = jax.devices()
    names = [f"{device.platform}:{device.id} {device.device_kind}{_memory(device)}" for device in devices]
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    yield ok(f"jax computes on {', '.join(names)}{processes}")


def with_device(check: Callable[[], Iterable[Finding]]) -> Callable[[], Iterator[Finding]]:
    """The check, which is not made where jax has no device: then it could only say so in other words."""

    def run() -> Iterator[Finding]:
        if _fault() is None:
            yield from check()
        else:  # one cause is one problem
            yield warning("not made, as jax has no device", "mend that first")

    return run


def _fault() -> Finding | None:
    """What is wrong if jax has no device."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # of jax 0.10: a platform without its plugin, or without a device
        chosen = os.environ.get("JAX_PLATFORMS")
        if not chosen:
            return problem(f"jax has no device ({_why(error)})", INSTALL)
        for_gpus = f"{INSTALL}; or, for the CPU, " if "cuda" in chosen and not _plugins() else ""
        return problem(
            f"jax has no device with JAX_PLATFORMS={chosen} ({_why(error)})", f"{for_gpus}unset JAX_PLATFORMS"
        )
    return None


def _why(error: Exception) -> str:
    return str(error) or "its part for that is not installed"


def _memory(device: Any) -> str:
    statistics = device.memory_stats() or {}  # CPUs have none
    limit, used = statistics.get("bytes_limit"), statistics.get("bytes_in_use", 0)
    return f" ({size(limit - used)} of {size(limit)} free)" if limit else ""


def check_unused_gpu() -> Iterator[Finding]:
    """Whether the machine has a GPU while jax computes on the CPU."""
    gpus = nvidia_gpus()
    if not gpus or jax.default_backend() != "cpu":
        return
    text = f"this machine has {', '.join(gpus)}, but jax computes on the CPU"
    chosen = os.environ.get("JAX_PLATFORMS")
    if chosen:
        yield warning(f"{text}, as JAX_PLATFORMS={chosen} says", "unset JAX_PLATFORMS")
    elif plugins := _plugins():
        yield problem(f"{text}, though {', '.join(plugins)} is installed: its driver or version does not fit", INSTALL)
    else:
        yield warning(f"{text}: the part of jax for GPUs is not installed", INSTALL)


def nvidia_gpus() -> list[str]:
    """The names of the machine's NVIDIA GPUs, by the driver or else by nvidia-smi."""
    if DRIVER.is_dir():
        files = sorted(DRIVER.glob("*/information"))
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        return [found[1].strip() for text in texts if (found := re.search(r"^Model:(.*)$", text, re.MULTILINE))]
    program = shutil.which("nvidia-smi")  # without such a folder: Windows and its Linux (WSL)
    if program is None:
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):  # a driver that does not answer: there is no GPU to be used
        return []
    return listing.stdout.split("\n")[:-1] if listing.returncode == 0 else []


def _plugins() -> list[str]:
    """The installed parts of jax for GPUs."""
    named = [(item.metadata["Name"], item.version) for item in metadata.distributions()]
    return [f"{name} {version}" for name, version in named if name and PLUGIN.fullmatch(name)]

"""The machine: system, processor, memory, and the environment variables that change what is computed, or where."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mms_jax.pipelines.doctor.findings import Finding, is_secret, ok, size, warning

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
X86 = ("x86_64", "AMD64")
LOW_MEMORY = 3e9  # bytes: a 1B model in bfloat16 (1.9 GB) and what a batch of eight windows takes beside it
UNLIMITED = 2**60  # version 1 has no word for no limit, but 2^63 less a page
VARIABLES = re.compile(
    r"(?:JAX|XLA|HF|HUGGING_FACE|MMS_JAX|OMP|CUDA|NVIDIA|LIBTPU)_\w+"
    r"|(?:HTTPS?|ALL|NO)_PROXY|XDG_CACHE_HOME|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONPATH",
    re.IGNORECASE,
)
VALUE_SHOWN = 100  # characters


def check_system() -> Iterator[Finding]:
    """Python and what it runs on."""
    libc = " ".join(platform.libc_ver()).strip() or "libc unknown"
    yield ok(f"Python {platform.python_version()} in {sys.prefix}")
    yield ok(f"{platform.system()} {platform.release()}, {libc}, {platform.machine()}")


def check_processor() -> Iterator[Finding]:
    """Its name, the instructions that decide the speed of products, and how many cores this process may use."""
    text = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.is_file() else ""
    fields = dict(re.findall(r"^([\w ]+?)\s*: *(.*)$", text, re.MULTILINE))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    found = [name for name in FEATURES if name in flags]
    name = fields.get("model name") or platform.processor() or platform.machine()
    yield ok(f"{name}: {' '.join(found) or 'no vector instructions known'}; {_cores()}")
    if flags and platform.machine() in X86 and "avx2" not in flags:
        yield warning(
            "this processor has no avx2, so all is several times slower", "run on a machine that has it, or on a GPU"
        )


def _cores() -> str:
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total  # not on macOS
    quota = cpu_quota()
    limit = f", a quota of {quota:g}" if quota is not None and quota < usable else ""
    return f"{usable} of {total} cores usable{limit}"


def check_memory() -> Iterator[Finding]:
    """The machine's memory, the container's limit, and whether a 1B model fits in what is left."""
    if not MEMORY_INFO.is_file():
        yield ok("memory unknown: no /proc/meminfo on this system")
        return
    kilobytes = dict(re.findall(r"^(\w+):\s*(\d+) kB", MEMORY_INFO.read_text(encoding="utf-8"), re.MULTILINE))
    total, available = (1024 * int(kilobytes.get(name, 0)) for name in ("MemTotal", "MemAvailable"))
    limit = memory_limit()
    bound = ""
    if limit is not None and limit < total:
        bound, available = f", this container's limit is {size(limit)}", min(available, limit)
    text = f"{size(available)} of {size(total)} memory available{bound}"
    if available < LOW_MEMORY:
        yield warning(
            f"{text}; a 1B model needs {size(LOW_MEMORY)} or more", "close other programs, or use --dtype int8"
        )
    else:
        yield ok(text)


def cpu_quota() -> float | None:
    """How many cores the container may use at a time, on average; None without a limit."""
    limits = [int(quota) / int(period) for quota, period in map(str.split, _limits("cpu.max", "")) if quota != "max"]
    quotas, periods = (list(map(int, _limits("", name))) for name in ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
    limits += [quota / period for quota, period in zip(quotas, periods, strict=True) if quota > 0]
    return min(limits, default=None)


def memory_limit() -> int | None:
    """How many bytes the container may use; None without a limit."""
    found = _limits("memory.max", "memory/memory.limit_in_bytes")
    return min((int(text) for text in found if text != "max" and int(text) < UNLIMITED), default=None)


def _limits(name: str, old_name: str) -> list[str]:
    """What the files of that name say, for this process's control group and those around it.

    ``name`` is the file in version 2 of control groups, ``old_name`` in version 1: controller/file. Either may be "".
    """
    lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.is_file() else []
    controller, _, old_file = old_name.partition("/")
    files = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        base, file = (GROUPS, name) if controllers == "" else (GROUPS / controller, old_file)
        if file and (controllers == "" or controller in controllers.split(",")):
            group = Path(path)
            files += [base.joinpath(*part.parts[1:], file) for part in (group, *group.parents)]
    return [file.read_text(encoding="utf-8").strip() for file in dict.fromkeys(files) if file.is_file()]


def check_environment() -> Iterator[Finding]:
    """The variables that are set; of what may be a secret only that it is."""
    found = sorted((name, value) for name, value in os.environ.items() if VARIABLES.fullmatch(name))
    for name, value in found:
        shown = value if len(value) <= VALUE_SHOWN else f"{value[:VALUE_SHOWN]}... ({len(value)} characters)"
        yield ok(f"{name} is set" if is_secret(name) else f"{name}={shown}")
    if not found:
        yield ok("no variable is set that jax, the hub or mms_jax read")

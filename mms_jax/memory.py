"""What the C library does with memory that is freed: on CPUs it decides a fifth of the speed."""

from __future__ import annotations

import ctypes

# Of mallopt, from glibc's malloc.h: never give free memory back; map no block apart from the heap; one heap for all
# threads, as what one of XLA's threads frees is what another asks for.
_OPTIONS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}


def reuse_freed_memory() -> bool:
    """Keep memory that is freed for the next call, instead of getting it from the kernel anew; returns whether it can.

    XLA allocates what a compiled function needs at every call. glibc maps such large blocks one by one and unmaps them
    again, and the kernel clears every page once more: 20 % of a training step's time on CPUs. From here on the process
    keeps what it once held until its end. Call it first, as the ``mms-jax`` program does; other C libraries than glibc
    do without, and False is returned.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    return all(mallopt(option, value) == 1 for option, value in _OPTIONS.values())


def release_freed_memory() -> bool:
    """Give memory that is freed back to the system, now; returns whether it can.

    After warming up or a last batch, where a process stays and others need the memory; the next call gets it anew. Long
    compilations end with it. It goes together with ``reuse_freed_memory``, which keeps what is freed from then on.
    Other C libraries than glibc do without, and False is returned.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(0)
    return True

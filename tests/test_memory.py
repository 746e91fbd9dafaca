"""Memory that is kept for the next call."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

import mms_jax

PROGRAM = """
import resource, statistics, sys
import mms_jax
if sys.argv[1] == "kept":
    assert mms_jax.reuse_freed_memory()
import jax, jax.numpy as jnp
function = jax.jit(lambda x: jnp.sort(jnp.sin(x)).sum())
x = jnp.arange(4_000_000.0)
for _ in range(5):
    function(x).block_until_ready()
counts = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(15):
    function(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(statistics.median(after - before for before, after in zip(counts, counts[1:])))
"""
PAGES = 16_000_000 // 4096  # of one such array; the call needs one at least


def faults(how: str) -> float:
    """Page faults of the usual call."""
    command = [sys.executable, "-c", PROGRAM, how]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_calls_get_the_memory_that_earlier_ones_freed():
    assert faults("as ever") > PAGES
    assert faults("kept") < PAGES / 20


RESIDENT = """
import os, sys, time
import mms_jax, jax, jax.numpy as jnp
from mms_jax.pipelines import compilation
if "kept" in sys.argv:
    assert mms_jax.reuse_freed_memory()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
blocks = [b"x" * 60_000 for _ in range(3000)]
last = bytearray(60_000)  # above them on the heap, so that freeing them alone does not shorten it
filled = resident()
del blocks
freed = resident()
if "compile" in sys.argv:
    compilation.LONG = float(sys.argv[-1])
    jax.jit(lambda x: jnp.sort(x) + 1).lower(jnp.ones(3)).compile()
else:
    assert mms_jax.release_freed_memory()
print((filled - freed) / 180e6, (filled - resident()) / 180e6)
"""


def given_back(*how: str) -> tuple[float, float]:
    """The share of 180 MB that a process gave back by freeing them, and after what it does then."""
    command = [sys.executable, "-c", RESIDENT, *how]
    first, then = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(first), float(then)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such function")
@pytest.mark.parametrize("how", [[], ["kept"]], ids=["as ever", "kept"])
def test_freed_memory_is_given_back_when_asked_also_where_it_is_kept(how):
    before, after = given_back(*how)
    assert before < 0.1
    assert after > 0.9


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such function")
def test_a_long_compilation_gives_freed_memory_back_and_a_short_one_does_not():
    assert given_back("compile", "0")[1] > 0.7  # less what compiling itself needs
    assert given_back("compile", "1000")[1] < 0.1


def test_a_library_without_such_a_function_is_told(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not mms_jax.release_freed_memory()
    assert not mms_jax.reuse_freed_memory()

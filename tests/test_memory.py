"""Memory that is kept for the next call."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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

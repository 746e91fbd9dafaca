"""One parallel path: many devices and many processes come to what one device comes to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mms_jax.errors import SettingError
from mms_jax.parallel import initialize

ROOT = Path(__file__).parents[1]
# Sums over rows in another order, six steps on: 6e-7 is seen.
SAME = 1e-5


def start(*arguments: str, devices: int = 1) -> subprocess.Popen[str]:
    """A job of ``tests.parallel_job`` on so many simulated devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.parallel_job", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process: subprocess.Popen[str]) -> dict:
    """What it printed, once it ended well."""
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    printed = [line for line in out.splitlines() if line.startswith("{")]  # Gloo greets on stdout, too
    return json.loads(printed[0]) if printed else {}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def single() -> dict:
    return result(start("1"))


def assert_same(actual: dict, expected: dict) -> None:
    np.testing.assert_allclose(actual["losses"], expected["losses"], rtol=SAME)
    np.testing.assert_allclose(actual["trained"], expected["trained"], rtol=SAME, atol=SAME)
    assert np.mean(expected["losses"][-1]) < np.mean(expected["losses"][0])


@pytest.mark.slow
def test_eight_devices_train_as_one(single):
    eight = result(start("8", devices=8))
    assert eight["devices"] == 8
    assert_same(eight, single)


@pytest.mark.slow
def test_two_processes_train_as_one_each_with_its_own_rows(single):
    address = f"127.0.0.1:{free_port()}"
    processes = [start("2", address, "2", str(number)) for number in range(2)]
    first, second = (result(process) for process in processes)
    assert first["devices"] == 2
    assert second == {}
    assert_same(first, single)


def test_a_job_named_by_half_is_refused():
    with pytest.raises(SettingError, match="go together"):
        initialize(coordinator_address="127.0.0.1:1", num_processes=2)

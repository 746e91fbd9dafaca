"""The program itself in two processes on loopback: the adapters of one process, and one line where it cannot begin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import ROOT
from tests.test_parallel import free_port
from tests.training_jobs import mms, write_data

# Sums over devices in another order, over 4 updates in which Adam magnifies what is near zero.
SAME = 1e-5

FLAGS = (
    "--do_train --do_eval --max_steps 4 --per_device_train_batch_size 2 --learning_rate 0.01 --logging_steps 2 "
    "--save_steps 2 --eval_strategy steps --eval_steps 2 --mask_time_prob 0 --text_column_name sentence"
)


def start(output: Path, data: list[Path], *more: str, devices: int) -> subprocess.Popen[str]:
    """``mms-jax train`` on so many simulated devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    named = [f"--model_name_or_path={mms()}", f"--output_dir={output}", "--dataset_name", *map(str, data)]
    languages = ["--target_language", *(folder.name for folder in data)]
    command = [sys.executable, "-m", "mms_jax.cli", "train", *named, *languages, *FLAGS.split(), *more]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def two_processes(output: Path, data: list[Path]) -> list[tuple[int, str]]:
    """Exit codes, and what was said."""
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    jobs = [
        start(output, data, address, "--num_processes=2", f"--process_id={number}", devices=1) for number in range(2)
    ]
    said = [job.communicate(timeout=500)[1] for job in jobs]
    return [(job.returncode, text) for job, text in zip(jobs, said, strict=True)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    sizes = (8000, 7000, 9000)
    return [write_data(folder / language, language, count=6, sizes=sizes) for language in ("tur", "fin")]


@pytest.mark.slow
def test_two_processes_train_the_adapters_of_one(data, tmp_path):
    one = start(tmp_path / "one", data, devices=2)
    said = one.communicate(timeout=500)[1]
    assert one.returncode == 0, said
    for code, said in two_processes(tmp_path / "two", data):
        assert code == 0, said
    for language in ("tur", "fin"):
        ours, theirs = (load_file(tmp_path / name / f"adapter.{language}.safetensors") for name in ("two", "one"))
        assert ours.keys() == theirs.keys()
        for name, leaf in theirs.items():
            assert np.abs(ours[name] - leaf).max() <= SAME * np.abs(leaf).max(), name


@pytest.mark.slow
def test_what_one_process_cannot_do_ends_both_with_a_line(data, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("of somebody else")
    for number, (code, said) in enumerate(two_processes(output, data)):
        assert code == 1, said
        assert "Traceback" not in said
        assert ("thesis.txt" if number == 0 else "process 0 failed") in said or "holds other things" in said
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]

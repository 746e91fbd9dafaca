"""What ``mms-jax doctor`` says of devices, the machine and the caches."""

import os
import subprocess
from importlib import metadata
from types import SimpleNamespace

import jax
import pytest
from huggingface_hub import constants

import mms_jax
from mms_jax.pipelines.doctor import caches, devices, machine
from mms_jax.pipelines.doctor.findings import Status
from mms_jax.pipelines.doctor.report import CHECKS
from tests.doctor_findings import bad, found, only

SOMEONE_ELSE = 12_345  # a user id


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A driver with a GPU, and a jax that does not use it."""
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 1\n")
    monkeypatch.setattr(devices, "DRIVER", tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_used_is_found():
    finding = only(devices.check_unused_gpu)
    assert finding.status == Status.WARNING
    assert "NVIDIA H100" in finding.text
    assert "'mms-jax[cuda]'" in finding.remedy


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_used_though_its_plugin_is_installed_is_a_problem(monkeypatch):
    plugin = SimpleNamespace(metadata={"Name": "jax-cuda12-plugin"}, version="0.4.30")
    monkeypatch.setattr(metadata, "distributions", lambda: [plugin])
    finding = only(devices.check_unused_gpu)
    assert finding.status == Status.PROBLEM
    assert "jax-cuda12-plugin 0.4.30" in finding.text


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_used_by_choice_is_said_so(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert only(devices.check_unused_gpu).remedy == "unset JAX_PLATFORMS"


def test_a_gpu_is_found_by_nvidia_smi_where_the_driver_has_no_folder(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA A100\n")
    program.chmod(0o755)
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert devices.nvidia_gpus() == ["NVIDIA A100"]
    program.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert devices.nvidia_gpus() == []


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda'"), AssertionError()])
def test_a_platform_that_cannot_be_had_is_one_problem_and_keeps_checks_that_need_a_device_from_being_made(
    monkeypatch, error
):
    def none():
        raise error

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    finding = only(devices.check_devices)
    assert finding.status == Status.PROBLEM
    assert "jax has no device with JAX_PLATFORMS=cuda (" in finding.text
    assert "AssertionError" not in finding.text
    assert finding.remedy == "pip install --upgrade 'mms-jax[cuda]'; or, for the CPU, unset JAX_PLATFORMS"
    for check in (check.run for check in CHECKS if check.section == "Self-test"):
        finding = only(check)
        assert (finding.status, finding.text) == (Status.WARNING, "not made, as jax has no device")


# --- the machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "files", "quota", "memory"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n", "memory.max": "max\n"}, 1.5, None),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1000\n", "a/cpu.max": "max 100000\n"}, None, 1000),
        (
            "4:memory:/x\n3:cpu,cpuacct:/\n0::/\n",
            {
                "memory/x/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.limit_in_bytes": "2000\n",
                "cpu/cpu.cfs_quota_us": "50000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            2000,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, None),
        ("", {}, None, None),
    ],
)
def test_the_limits_of_a_container_are_those_of_its_groups(monkeypatch, tmp_path, lines, files, quota, memory):
    (tmp_path / "own").write_text(lines)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    assert machine.cpu_quota() == quota
    assert machine.memory_limit() == memory


def test_too_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 10**9)
    finding = only(machine.check_memory)
    assert finding.status == Status.WARNING
    assert "this container's limit is 1.0 GB" in finding.text


@pytest.mark.parametrize(("flags", "number"), [("sse4_2 avx", 1), ("sse4_2 avx avx2", 0)])
def test_a_processor_without_avx2_is_a_warning(monkeypatch, tmp_path, flags, number):
    (tmp_path / "cpuinfo").write_text(f"model name\t: Old\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert [finding.status for finding in found(machine.check_processor)].count(Status.WARNING) == number


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_PASSWORD"])
def test_of_a_secret_only_is_told_that_it_is_set(monkeypatch, name):
    monkeypatch.setenv(name, "short")
    assert f"{name} is set" in [finding.text for finding in found(machine.check_environment)]


# --- caches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """A folder for compiled programs."""
    folder = tmp_path / "programs"
    monkeypatch.setenv("MMS_JAX_CACHE_DIR", str(folder))
    assert {finding.status for finding in found(caches.check_compilation_cache)} == {Status.OK}
    return folder


def test_a_cache_that_others_can_write_is_found(programs):
    programs.chmod(0o777)
    finding = bad(caches.check_compilation_cache)
    assert finding.status == Status.PROBLEM
    assert finding.remedy == f"chmod go-w {programs}"
    programs.chmod(0o700)
    (folder,) = programs.iterdir()
    folder.chmod(0o777)
    assert bad(caches.check_compilation_cache).remedy == f"rm -r {folder}"


def test_the_remedy_mends_a_cache_that_others_can_write(programs):
    programs.chmod(0o777)
    subprocess.run(bad(caches.check_compilation_cache).remedy, shell=True, check=True)
    assert {finding.status for finding in found(caches.check_compilation_cache)} == {Status.OK}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_someone_else_is_found(programs):
    os.chown(programs, SOMEONE_ELSE, -1)
    finding = bad(caches.check_compilation_cache)
    assert finding.status == Status.PROBLEM
    assert finding.remedy.startswith("export MMS_JAX_CACHE_DIR=")


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMS_JAX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    finding = only(caches.check_compilation_cache)
    assert finding.status == Status.WARNING
    assert finding.remedy.startswith("export MMS_JAX_CACHE_DIR=")


def test_a_disk_that_takes_nothing_or_is_full_is_a_warning(programs, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(caches.tempfile, "TemporaryFile", refuse)
    assert "Read-only file system" in bad(caches.check_compilation_cache).text
    monkeypatch.undo()
    monkeypatch.setenv("MMS_JAX_CACHE_DIR", str(programs))
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    assert "100 MB free" in bad(caches.check_compilation_cache).text


def test_a_cache_that_jax_was_given_is_looked_at_too(monkeypatch, tmp_path):
    monkeypatch.setattr(caches, "enable_compilation_cache", lambda: tmp_path)
    assert {finding.status for finding in found(caches.check_compilation_cache)} == {Status.OK}
    tmp_path.chmod(0o777)
    assert bad(caches.check_compilation_cache).remedy == "unset JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setattr(caches, "enable_compilation_cache", lambda: tmp_path / "absent")
    assert only(caches.check_compilation_cache).status == Status.OK


def test_no_cache_by_choice_is_a_warning(monkeypatch):
    monkeypatch.setenv("MMS_JAX_CACHE_DIR", "")
    assert only(caches.check_compilation_cache).remedy == "unset MMS_JAX_CACHE_DIR"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A cache of the hub with one checkpoint that is whole, one without weights, and what is not of MMS."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    demo = mms_jax.DEMO_MODEL
    for repo, files in (
        ("a--mms-whole", ("config.json", "model.safetensors")),
        ("b--mms-half", ("config.json",)),
        ("c--x", ()),
    ):
        snapshot = folder / f"models--{repo}" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
        for file in files:
            (snapshot / file).write_bytes((demo / file).read_bytes())
    return folder


def test_checkpoints_of_mms_in_the_cache_are_told_and_which_are_whole(hub):
    findings = found(caches.check_hub_cache)
    assert any("2 MMS checkpoints" in finding.text for finding in findings)
    assert any(finding.text == "a/mms-whole (6 MB): complete" for finding in findings)
    (half,) = [finding for finding in findings if finding.status != Status.OK]
    assert half.text.startswith("b/mms-half (0 MB): not complete")
    assert half.remedy.startswith("mms-jax info b/mms-half")


def test_a_checkpoint_whose_weights_are_cut_off_is_told(hub):
    (weights,) = hub.glob("*whole/snapshots/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert any(finding.text.startswith("a/mms-whole (6 MB): not complete") for finding in found(caches.check_hub_cache))


def test_a_damaged_folder_of_mms_is_told_and_others_are_not(hub):
    (hub / "models--d--mms-damaged").mkdir()
    (hub / "models--e--other").mkdir()
    (hub / "version.txt").touch()
    remedies = [finding.remedy for finding in found(caches.check_hub_cache) if finding.status != Status.OK]
    assert f"rm -r {hub / 'models--d--mms-damaged'}" in remedies
    assert len(remedies) == 2  # the other is of what is not complete


def test_a_cache_of_the_hub_that_cannot_be_made_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    finding = bad(caches.check_hub_cache)
    assert finding.status == Status.WARNING
    assert finding.remedy.startswith("export HF_HOME=")

"""No fault leaves half a checkpoint that is taken for one, or goes unsaid: killed jobs, full disks, damaged files."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import pytest

from mms_jax.errors import TrainingError
from mms_jax.training.files import checkpoints as checkpoints_module
from mms_jax.training.files.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]


def saved(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, {"leaf": jnp.full(3, step)})
    checkpoints.wait()


def in_another_process(code: str, *arguments: object) -> str:
    """What a Python program of its own prints; any warning ends it, and nothing that orbax logs is shown."""
    program = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "absl" not in run.stderr
    return run.stdout


def test_parts_of_checkpoints_are_not_taken_for_any_and_leftovers_are_removed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        saved(checkpoints, 1)
    for name in ("3.orbax-checkpoint-tmp", ".discarded-0-0a1b2c3d", "7", "8/state", "notes"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "part").write_bytes(b"half")
    (tmp_path / "9" / "info").mkdir(parents=True)
    (tmp_path / "9" / "info" / "info.json").write_text('{"step": 9, "metr')
    with Checkpoints(tmp_path, save_total_limit=1) as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest()) == ([1], 1)
        saved(checkpoints, 7)
        assert checkpoints.steps() == [7]
    # What looks like a checkpoint may be one that is still being copied here, and what looks like none is the user's.
    assert sorted(os.listdir(tmp_path)) == ["7", "8", "9", "notes"]


def test_a_checkpoint_that_is_being_removed_is_never_seen_in_part(tmp_path, monkeypatch):
    def killed(path):
        (Path(path) / "state" / "manifest.ocdbt").unlink(missing_ok=True)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Checkpoints(tmp_path, save_total_limit=1) as checkpoints:
        saved(checkpoints, 1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints_module.shutil, "rmtree", killed)
            checkpoints.save(2, {"leaf": jnp.zeros(3)})
            with pytest.raises(TrainingError, match="older ones could not be removed"):
                checkpoints.wait()
        assert checkpoints.steps() == [2]
        saved(checkpoints, 3)
    assert os.listdir(tmp_path) == ["3"]


def test_a_damaged_checkpoint_is_an_error_that_names_the_one_before(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        saved(checkpoints, 1, 2)
        for path in (tmp_path / "2" / "state").rglob("d/*"):
            path.write_bytes(b"")
        with pytest.raises(TrainingError, match=r"/2: cannot be read .* remove it to resume from step 1"):
            checkpoints.restore({"leaf": jnp.zeros(3, jnp.int32)})
        shutil.rmtree(tmp_path / "2")
        assert checkpoints.restore({"leaf": jnp.zeros(3, jnp.int32)}).step == 1


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/checkpoints: .*output_dir"):
        Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(TrainingError, match="local"):
        Checkpoints("gs://bucket/checkpoints")


def test_a_fault_after_the_writing_is_raised_once_and_says_what_is_there(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with Checkpoints(tmp_path) as checkpoints:
        saved(checkpoints, 1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints_module, "_sync", fail)
            checkpoints.save(2, {"leaf": jnp.zeros(3)})
            with pytest.raises(TrainingError, match=r"step 2 may not last, .*\(Input/output error\)"):
                checkpoints.save(3, {"leaf": jnp.zeros(3)})
        checkpoints.wait()
        saved(checkpoints, 4)
        assert checkpoints.steps() == [1, 2, 4]


@pytest.mark.parametrize("ends_with", [None, KeyError("of the caller")])
def test_a_failed_save_is_not_lost_when_the_block_ends(tmp_path, monkeypatch, ends_with):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(checkpoints_module, "_sync", fail)

    def run():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(0, {"leaf": jnp.zeros(3)})
            if ends_with is not None:
                raise ends_with

    with pytest.raises((TrainingError, KeyError)) as raised:
        run()
    assert isinstance(raised.value, TrainingError if ends_with is None else KeyError)
    assert "Input/output error" in str(raised.value) + "".join(getattr(raised.value, "__notes__", []))


FULL_DISK = """
import os, resource, signal, sys
import jax
from mms_jax.errors import TrainingError
from mms_jax.training.files.checkpoints import Checkpoints

state = {str(i): jax.random.normal(jax.random.key(i), (100, 1000)) for i in range(3)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(0, state)
    for step, limit in enumerate(map(int, sys.argv[2:]), start=1):
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            checkpoints.save(step, state)
            checkpoints.save(step + 1, state)
        except TrainingError as error:
            print(error)
        print(checkpoints.steps())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        checkpoints.save(step, state)
    checkpoints.wait()
    restored = [checkpoints.restore(state, step=step).state for step in checkpoints.steps()]
    print(all((one[name] == leaf).all() for one in restored for name, leaf in state.items()))
"""


def test_a_full_disk_is_said_and_spares_the_checkpoints_before(tmp_path):
    """Writes fail at once, in the JSON, in what describes the arrays, and in the arrays; then there is room again."""
    limits = (0, 100, 3000, 100_000)
    *failures, end = in_another_process(FULL_DISK, tmp_path, *limits).splitlines()
    for step, (message, left) in enumerate(zip(failures[::2], failures[1::2], strict=True), start=1):
        what = f"the checkpoint of step {step} could not be written (File too large); that of step {step - 1} and"
        assert message.startswith(f"{tmp_path}: {what}")
        assert left == str(list(range(step)))
    assert end == "True"
    assert sorted(os.listdir(tmp_path)) == [str(step) for step in range(len(limits) + 1)]


READ_ONLY = """
import os, sys
import jax.numpy as jnp
from mms_jax.errors import TrainingError
from mms_jax.training.files.checkpoints import Checkpoints

state = {"leaf": jnp.ones(3)}
with Checkpoints(sys.argv[2]) as elsewhere:
    elsewhere.save(0, state)  # imports what nobody may not read
    elsewhere.restore(state)
if os.getuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)  # nobody: permissions do not hold for the superuser
with Checkpoints(sys.argv[1]) as checkpoints:
    print(checkpoints.restore(state).step)
    try:
        checkpoints.save(5, state)
    except TrainingError as error:
        print(error)
"""


def test_a_read_only_directory_restores_and_refuses_to_save():
    with tempfile.TemporaryDirectory() as place:  # pytest's own is closed to nobody, and to who comes after its end
        Path(place).chmod(0o755)
        directory = Path(place) / "checkpoints"
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(4, {"leaf": jnp.ones(3)})
        directory.chmod(0o555)
        restored, refused = in_another_process(READ_ONLY, directory, Path(place) / "elsewhere").splitlines()
        directory.chmod(0o755)
    assert restored == "4"
    assert refused.startswith(f"{directory}: the checkpoint of step 5 could not be written (Permission denied); that")


SILENT = """
import logging, sys
import jax.numpy as jnp, numpy as np
import mms_jax
assert not {"orbax", "tensorstore"} & set(sys.modules)
from mms_jax.training.files.checkpoints import Checkpoints

state = {"a": jnp.ones((3, 4)), "b": np.ones(2), "c": {"d": jnp.zeros((), jnp.bfloat16)}}
with Checkpoints(sys.argv[1], save_total_limit=1) as checkpoints:
    for step in range(3):
        checkpoints.save(step, state, metric=float("nan"))
    checkpoints.restore(state)
assert not logging.getLogger("absl").filters, "what orbax logs for others is theirs again"
"""


def test_saving_and_restoring_say_nothing_and_import_orbax_only_when_used(tmp_path):
    program = [sys.executable, "-W", "error", "-c", SILENT, str(tmp_path)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


TWO_PROCESSES = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from mms_jax.training.files.checkpoints import Checkpoints

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
values = np.arange(32, dtype=np.float32).reshape(8, 4)
def shared(spec, values):
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, spec), lambda index: values[index])
def state(step):
    return {"all": shared(P(), values * step), "part": shared(P("data"), values + step), "own": jnp.arange(3) + step}
with Checkpoints(sys.argv[1], save_total_limit=1) as checkpoints:
    for step in range(3):
        checkpoints.save(step, state(step), info={"step": step}, metric=float(step))
    restored = checkpoints.restore(state(0))
    for name, expected in state(2).items():
        assert restored.state[name].sharding == expected.sharding
        for ours, theirs in zip(restored.state[name].addressable_shards, expected.addressable_shards, strict=True):
            assert np.array_equal(ours.data, theirs.data), name
    print(restored.step, restored.info, checkpoints.best())
"""


def test_two_processes_save_and_restore_together(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path), address, str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    results = [run.communicate(timeout=120) for run in runs]
    for run, (printed, errors) in zip(runs, results, strict=True):
        assert run.returncode == 0, errors
        assert printed.splitlines()[-1] == "2 {'step': 2} 0"
    assert sorted(os.listdir(tmp_path)) == ["0", "2"]


@pytest.mark.slow
def test_jobs_killed_at_any_moment_lose_nothing_that_was_saved():
    """20 of the 300 of experiments/reliability/kill_during_save.py, which says what is checked."""
    program = [sys.executable, "-m", "experiments.reliability.kill_during_save", "--kills", "20", "--seed", "1"]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    killed, faults = run.stdout.splitlines()
    assert killed.startswith("20 jobs killed")
    assert faults == "0 faults"

"""A job that was stopped and started again comes to the same as one that never was, bit for bit; none is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from mms_jax.training import job as job_module
from mms_jax.training.files.checkpoints import Checkpoints
from mms_jax.training.files.logs import RunLog
from tests.training_jobs import done, metrics, pretrained, quick_jobs, run, saved_leaves, settings, write_data
from tests.training_outputs import contents

ROOT = Path(__file__).parents[1]
SIZES = (8000, 7700)  # samples: of one padded length, so that little is compiled


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with quick_jobs():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Of two languages: 2 and 3 updates make an epoch."""
    folder = tmp_path_factory.mktemp("data")
    counts = {"tur": 8, "fin": 10}
    return {
        language: write_data(folder / language, language, count=count, sizes=SIZES, seed=count)
        for language, count in counts.items()
    }


def two(data: dict[str, Path], output: Path, **flags: Any) -> dict[str, Any]:
    """A job with all that is random: 7 updates of the one language and 11 of the other, over epochs' borders."""
    return (
        settings(
            list(data.values()),
            output,
            target_language=list(data),
            max_steps=None,
            num_train_epochs=3.5,
            gradient_accumulation_steps=2,
            group_by_length=True,
            hidden_dropout=0.2,
            layerdrop=0.3,
            mask_time_prob=0.3,
            mask_time_length=2,
            mask_feature_prob=0.2,
            mask_feature_length=3,
            dither=1.0,
            warmup_steps=2,
            weight_decay=0.01,
            do_eval=True,
            eval_strategy="steps",
            eval_steps=4,
            logging_steps=2,
            save_steps=3,
            load_best_model_at_end=True,
        )
        | flags
    )


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """What the job of two languages leaves that nobody stopped."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done(**two(data, output))
    return output


def stopped(monkeypatch, *, after: int, told: str = "advance", **flags: Any) -> str:
    """Run a job that gets SIGTERM when so many updates are done and the log was told so; returns what it said."""
    tell = getattr(RunLog, told)

    def tell_and_end(self, step, *rest):
        tell(self, step, *rest)
        if step == after:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, told, tell_and_end)
        return done(**flags)


def assert_same(output: Path, expected: Path, job: str) -> None:
    """Results, log, and the state at the end are bit for bit the same."""
    names = [path.name for path in expected.glob("*.safetensors")]
    names += ["vocab.json", "config.json", "README.md", "training_results.json"]
    assert [name for name in names if (output / name).read_bytes() != (expected / name).read_bytes()] == []
    assert metrics(output) == metrics(expected)
    ours, theirs = (saved_leaves(place / "checkpoints" / job) for place in (output, expected))
    assert ours.keys() == theirs.keys()
    assert [path for path, leaf in theirs.items() if ours[path].tobytes() != leaf.tobytes()] == []


def newest(checkpoints: Path) -> int | None:
    with Checkpoints(checkpoints) as there:
        return there.latest()


@pytest.mark.parametrize(("told", "after", "saved"), [("advance", 4, 4), ("evaluation", 4, 5), ("evaluation", 7, 8)])
def test_a_job_of_two_languages_goes_on_exactly_after_sigterm(told, after, saved, data, whole, tmp_path, monkeypatch):
    """Before an evaluation, which is left for later, and after one, where the step that is prepared is made: the fifth,
    where nothing is logged or saved, and the eighth, where one language is done already and the other is evaluated.
    """
    output = tmp_path / "out"
    said = stopped(monkeypatch, after=after, told=told, **two(data, output))
    assert f"SIGTERM: saved after step {saved}; the same command goes on from there" in said
    assert newest(output / "checkpoints" / "tur-fin") == saved
    assert not list(output.glob("adapter.*"))
    assert f"{saved} steps were done before; goes on from there" in done(**two(data, output))
    assert_same(output, whole, "tur-fin")


def test_a_job_that_was_to_begin_anew_says_how_to_go_on(data, tmp_path, monkeypatch):
    said = stopped(monkeypatch, after=1, **settings(data["tur"], tmp_path / "out", overwrite_output_dir=True))
    assert "the same command without --overwrite_output_dir goes on from there" in said


def test_a_job_that_is_done_has_nothing_left_to_do(data, whole):
    before = contents(whole), {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert "nothing is left to do" in done(**two(data, whole))
    assert (contents(whole), {path: path.stat().st_mtime_ns for path in whole.rglob("*")}) == before


def test_results_that_were_not_written_any_more_are_made_of_the_last_checkpoint(data, whole, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    (output / "adapter.fin.safetensors").unlink()
    (output / "README.md").unlink()
    (output / "training_results.json").unlink()
    assert "11 steps were done before; nothing is left to do" in done(**two(data, output))
    assert_same(output, whole, "tur-fin")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("learning_rate", 0.5, "--learning_rate 0.01, not 0.5"),
        ("seed", 1, "--seed 42, not 1"),
        ("per_device_train_batch_size", 3, "--per_device_train_batch_size 2, not 3"),
        ("num_train_epochs", 4, "--num_train_epochs 3.5, not 4.0"),
        ("layerdrop", None, "--layerdrop 0.3, not 0.0"),
        ("bf16", True, "--bf16 False, not True"),
        ("text_column_name", "audio", "--text_column_name sentence, not audio"),
        ("model_name_or_path", pretrained, "another base"),
    ],
)
def test_a_job_goes_on_with_the_settings_it_was_begun_with_only(flag, value, message, data, whole):
    before = contents(whole)
    code, said = run(**two(data, whole, **{flag: value() if callable(value) else value}))
    assert (code, message in said, "--overwrite_output_dir" in said) == (1, True, True), said
    assert len(said.splitlines()) == 1
    assert contents(whole) == before


def test_a_job_goes_on_with_as_many_devices_only(data, whole, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    code, said = run(**two(data, whole))
    assert (code, "was begun on 1 devices, here are 4" in said) == (1, True)


def test_the_same_language_again_is_an_error_unless_it_may_be_replaced(data, whole, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    flags = settings(data["fin"], output, target_language="fin", max_steps=1)
    code, said = run(**flags)
    assert (code, len(said.splitlines())) == (1, 1)
    assert "fin was trained there already" in said
    assert "--overwrite_output_dir" in said
    assert contents(output) == contents(whole)
    done(**flags, overwrite_output_dir=True)
    assert (output / "adapter.fin.safetensors").read_bytes() != (whole / "adapter.fin.safetensors").read_bytes()
    assert (output / "adapter.tur.safetensors").read_bytes() == (whole / "adapter.tur.safetensors").read_bytes()


def test_what_cannot_begin_anew_leaves_the_checkpoints_there(data, whole, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    for changes in ({"model_name_or_path": pretrained()}, {"text_column_name": "transcript"}):
        assert run(**two(data, output, overwrite_output_dir=True, **changes)).code == 1
        assert contents(output) == contents(whole)


def test_languages_that_had_no_data_at_first_stay_out_and_those_that_had_must_keep_it(data, tmp_path, monkeypatch):
    folders = {"tur": tmp_path / "tur", "swe": data["fin"], "fin": tmp_path / "late"}
    shutil.copytree(data["tur"], folders["tur"])
    job = settings(list(folders.values()), tmp_path / "out", target_language=list(folders))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module.Job, "_tell_failures", lambda self, failures: 0)
        said = stopped(monkeypatch, after=1, **job)
    assert "fin is left out: data set" in said
    shutil.copytree(data["fin"], tmp_path / "late")
    shutil.move(folders["tur"], tmp_path / "away")
    code, said = run(**job)
    assert (code, "this job began with tur, too" in said) == (1, True)
    shutil.move(tmp_path / "away", folders["tur"])
    code, said = run(**job)
    assert (code, "error: fin: was left out when this job began" in said) == (1, True)
    assert sorted(path.name for path in (tmp_path / "out").glob("adapter.*")) == [
        "adapter.swe.safetensors",
        "adapter.tur.safetensors",
    ]


def test_a_stream_goes_on_with_the_next_row(data, tmp_path, monkeypatch):
    """Two epochs of a shuffled stream and a part of a third."""
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    flags = {"target_language": "eng", "init_language": "eng", "streaming": True, "shuffle_buffer_size": 3}
    flags |= {"max_steps": 9, "save_steps": 4, "mask_time_prob": 0.3, "mask_time_length": 2, "logging_steps": 1}
    done(**settings(data["tur"], whole, **flags))
    stopped(monkeypatch, after=5, **settings(data["tur"], out, **flags))
    done(**settings(data["tur"], out, **flags))
    assert_same(out, whole, "eng")


def test_a_whole_model_goes_on_exactly_even_if_nothing_had_been_saved(data, tmp_path, monkeypatch):
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    flags = {"model_name_or_path": pretrained(), "target_language": None, "max_steps": 4, "logging_steps": 1}
    flags |= {"mask_time_prob": 0.3, "mask_time_length": 2, "save_steps": 3}
    done(**settings(data["tur"], whole, **flags))

    def fail(self, step):
        raise KeyboardInterrupt  # as good as any other way to die before the first checkpoint

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "advance", fail)
        assert run(**settings(data["tur"], out, **flags)).code == 130
    stopped(monkeypatch, after=1, **settings(data["tur"], out, **flags))
    done(**settings(data["tur"], out, **flags))
    assert_same(out, whole, "model")


def test_jobs_that_take_turns_in_a_directory_keep_their_logs_apart(data, tmp_path, monkeypatch):
    output = tmp_path / "out"
    first = settings(data["tur"], output, logging_steps=1, max_steps=4)
    second = settings(data["fin"], output, logging_steps=1, target_language="fin", max_steps=5)
    stopped(monkeypatch, after=1, **first)
    done(**second)
    log = metrics(output)
    assert [record["step"] for record in log] == [1, 2, 3, 4, 5]
    done(**first)
    assert [record["step"] for record in metrics(output)] == [1, 2, 3, 4]
    assert [json.loads(line)["loss"] for line in (output / "metrics-2.jsonl").read_text().splitlines()] == [
        record["loss"] for record in log
    ]
    assert sorted(path.name for path in (output / "runs").iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_jobs_that_are_killed_at_any_time_come_to_the_same():
    """3 of the 20 of experiments/reliability/kill_while_training.py, which says what is checked."""
    program = [sys.executable, "-m", "experiments.reliability.kill_while_training", "--kills", "3", "--terms", "1"]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^0 faults", result.stdout, re.MULTILINE)
    assert "3 killed" in result.stdout

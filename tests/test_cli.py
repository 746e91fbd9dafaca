"""The mms-jax program: what goes to stdout, what to stderr, and the exit code."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import mms_jax
from mms_jax import cli
from tests.checkpoints import LETTERS, many_languages


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return many_languages(tmp_path_factory.mktemp("mms"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = [str(folder / name) for name in ("a.wav", "b.flac")]
    for seed, path in enumerate(paths):
        soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(9000), 16_000)
    return paths


@pytest.fixture(scope="module")
def texts(directory, clips):
    return [result.text for result in mms_jax.load_asr(directory).transcribe(clips, language="fra")]


def test_one_file_prints_its_text_and_nothing_else(capsys, directory, clips, texts):
    assert cli.main(["transcribe", clips[0], "--model", str(directory), "--language", "French"]) == 0
    assert capsys.readouterr() == (texts[0] + "\n", "")


def test_several_files_are_told_apart(capsys, directory, clips, texts):
    assert cli.main(["transcribe", *clips, "--model", str(directory), "--language", "fra"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{c}\t{t}" for c, t in zip(clips, texts, strict=True)]


def test_json_is_one_object_a_line(capsys, directory, clips, texts):
    assert cli.main(["transcribe", *clips, "--model", str(directory), "--language", "fra", "--format", "json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["text"] for record in records] == texts
    assert records[0] == {"file": clips[0], "language": "fra", "duration": 0.562, "text": texts[0]}


def test_a_bad_file_fails_the_run_after_the_good_ones(capsys, directory, clips, texts):
    files = [clips[0], "absent.wav", clips[1]]
    assert cli.main(["transcribe", *files, "--model", str(directory), "--language", "fra"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{clips[0]}\t{texts[0]}", f"{clips[1]}\t{texts[1]}"]
    assert "absent.wav" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--language", "deu"], "deu"),
        (["--language", "nonsense"], "fra (French)"),
        ([], "--language is needed"),
        (["--language", "fra", "--model", "no/such/place"], "no/such/place"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(capsys, directory, clips, arguments, reason):
    model = [] if "--model" in arguments else ["--model", str(directory)]
    assert cli.main(["transcribe", clips[0], *model, *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert len(err.splitlines()) == 1


def test_info_describes_a_checkpoint(capsys, directory):
    assert cli.main(["info", str(directory)]) == 0
    out = capsys.readouterr().out
    for fact in ("2 layers of width 24", "3: azj-script_latin, eng, fra", "one per 20 ms", "5 wide in every layer"):
        assert fact in out


def test_languages_of_a_checkpoint_are_its_own(capsys, directory):
    assert cli.main(["languages", "--model", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("\t")[0] for line in lines} == set(LETTERS)
    assert "fra\tFrench" in lines


def test_languages_of_a_task_are_the_published_ones(capsys):
    assert cli.main(["languages", "--task", "asr"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1198  # shared/data/README.md: tags of mms-1b-all


def run(*arguments, **environment):
    """The program in a process of its own: (exit code, stdout, stderr)."""
    command = [sys.executable, "-m", "mms_jax.cli", *arguments]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def test_text_is_utf_8_whatever_the_locale(directory, clips, texts):
    code, out, err = run(
        "transcribe", clips[0], "--model", str(directory), "--language", "fra", PYTHONIOENCODING="ascii"
    )
    assert (code, out.decode().rstrip("\n"), err) == (0, texts[0], "")


def test_a_full_disk_is_one_line_and_exit_code_1():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "mms_jax.cli", "languages"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert len(done.stderr.decode().splitlines()) == 1
    assert b"No space left" in done.stderr


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in ("transcribe", "info", "languages", "demo"))

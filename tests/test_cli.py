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
from mms_jax.pipelines.demo import demo_clips
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


# ------------------------------------------------------------------------------ times, subtitles, languages by itself


CLIPS = {clip.language: clip for clip in demo_clips() if clip.path.stem.endswith("-1")}


def lines(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("asked", "found"), [("word", {"words"}), ("char", {"words", "chars"})])
def test_times_are_in_the_json_where_they_are_asked_for(capsys, asked, found):
    clip = CLIPS["spa"]
    command = ["transcribe", str(clip.path), "--language", "spa", "--format", "json"]
    assert cli.main([*command, "--timestamps", asked]) == 0
    record = json.loads(capsys.readouterr().out)
    assert found == record.keys() & {"words", "chars"}
    assert " ".join(word["text"] for word in record["words"]) == record["text"]
    assert record["words"][0].keys() == {"text", "start", "end", "score"}
    assert cli.main(["transcribe", str(clip.path), "--language", "spa", "--timestamps", asked]) == 0
    first = record["words" if asked == "word" else "chars"][0]
    assert lines(capsys)[0] == f"{first['start']:.2f}\t{first['end']:.2f}\t{first['text']}"
    assert cli.main([*command]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"file", "language", "duration", "text"}


@pytest.mark.parametrize(("form", "start"), [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:00:0")])
def test_subtitles_of_one_file_go_to_stdout_and_of_several_into_files(capsys, tmp_path, form, start):
    files = [str(CLIPS[language].path) for language in ("spa", "deu")]
    assert cli.main(["transcribe", files[0], "--language", "spa", "--format", form]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(start)
    command = ["transcribe", *files, "--language", "spa", "--format", form]
    assert cli.main([*command, "--output-dir", str(tmp_path / "new")]) == 0
    written = [tmp_path / "new" / f"{language}-1.{form}" for language in ("spa", "deu")]
    assert lines(capsys) == [str(path) for path in written]
    assert written[0].read_text(encoding="utf-8") == printed


def test_no_option_goes_by_its_beginning(capsys):
    with pytest.raises(SystemExit):
        cli.main(["identify", str(CLIPS["spa"].path), "--language", "eng"])  # which is not --languages
    assert "--language" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_crash_and_no_message_in_the_results(closed):
    command = f"{sys.executable} -m mms_jax.cli transcribe {CLIPS['spa'].path} --language spa {closed}"
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert "Traceback" not in run.stderr
    assert "bundled" not in run.stdout


def test_files_of_a_mixed_list_are_identified_and_say_so(capsys):
    files = [str(clip.path) for clip in CLIPS.values()]
    assert cli.main(["transcribe", *files, "--language", "auto"]) == 0
    assert [line.split("\t")[:2] for line in lines(capsys)] == [
        [str(clip.path), language] for language, clip in CLIPS.items()
    ]
    assert cli.main(["transcribe", files[0], "--language", "auto", "--candidates", "deu,spa", "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["language"] in {"deu", "spa"}
    assert 0.5 < record["language_probability"] <= 1


def test_identify_without_a_model_uses_the_bundled_one_and_says_so(capsys):
    assert cli.main(["identify", str(CLIPS["fra"].path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("fra\t")
    assert "bundled demo model" in err


def test_text_goes_into_files_where_a_folder_is_named(capsys, tmp_path):
    clip = CLIPS["eng"]
    command = ["transcribe", str(clip.path), "absent.wav", "--language", "eng", "--output-dir", str(tmp_path)]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "eng-1.txt")]
    assert "absent.wav" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eng-1.txt"]
    assert len((tmp_path / "eng-1.txt").read_text(encoding="utf-8").split()) > 2


def test_a_file_name_that_is_no_text_gives_valid_json_and_loses_no_other_file(capfd, tmp_path):
    odd = tmp_path / os.fsdecode(b"bad\xff.flac")
    odd.write_bytes(CLIPS["eng"].path.read_bytes())
    command = ["transcribe", str(odd), str(CLIPS["eng"].path), "--language", "eng", "--format", "json"]
    assert cli.main([*command, "--output-dir", str(tmp_path)]) == 0
    record, other = (
        json.loads((tmp_path / os.fsdecode(name)).read_bytes().decode("utf-8"))
        for name in (b"bad\xff.json", b"eng-1.json")
    )
    assert record["file"] == str(odd)
    assert record["text"] == other["text"]
    assert "eng-1.json" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a.wav", "--language", "eng", "--output-dir", ""], "--output-dir is empty"),
        (["a.wav", "b.wav", "--language", "eng", "--format", "srt"], "--output-dir"),
        (["a.wav", "x/a.wav", "--language", "eng", "--output-dir", "."], "written twice"),
        (["a.wav", "b.wav", "--language", "eng", "--timestamps", "word"], "--format json"),
        (["a.wav", "--language", "eng", "--candidates", "fra"], "--language auto"),
        (["a.wav", "--language", "eng", "--lid-model", "m"], "--language auto"),
        (["a.wav", "--language", "auto", "--model", "m"], "--lid-model"),
        (["a.wav", "--language", "auto", "--candidates", "klingon"], "klingon"),
        (["a.wav", "--language", "eng", "--chunk-length-s", "1000"], "chunk_length_s"),
    ],
)
def test_arguments_that_do_not_go_together_are_one_line(capsys, arguments, reason):
    assert cli.main(["transcribe", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err.splitlines()[-1]
    assert len([line for line in err.splitlines() if "bundled demo" not in line]) == 1

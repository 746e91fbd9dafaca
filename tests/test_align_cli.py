"""mms-jax align: what goes to stdout, into files and to stderr, and the exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from mms_jax import cli
from mms_jax.pipelines.demo import DEMO_MODEL, demo_clips

CLIP = next(clip for clip in demo_clips() if clip.language == "eng")
WORDS = CLIP.reference.split()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(f"\n{' '.join(WORDS[:2])}\n\n {' '.join(WORDS[2:])}, (12)\n", encoding="utf-8-sig")
    return path


def align(text, *options: str, language: str | None = "eng") -> int:
    chosen = [] if language is None else ["--language", language]
    return cli.main(["align", str(CLIP.path), str(text), "--model", str(DEMO_MODEL), *chosen, *options])


def test_json_goes_to_stdout_and_nothing_else_anywhere(capsys, text):
    assert align(text) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == ""
    assert record["file"] == str(CLIP.path)
    assert [one["text"] for one in record["segments"]] == [" ".join(WORDS[:2]), f"{' '.join(WORDS[2:])}, (12)"]
    assert [one["text"] for one in record["words"]] == [*WORDS[:3], f"{WORDS[3]},", "(12)"]


@pytest.mark.parametrize(
    ("form", "options", "lines"),
    [
        ("srt", [], 2 * 4 - 1),
        ("srt", ["--level", "words"], 4 * 4 - 1),
        ("ctm", [], 4),
        ("ctm", ["--level", "chars"], 28),
    ],
)
def test_each_level_has_its_lines(capsys, text, form, options, lines):
    assert align(text, "--format", form, *options) == 0
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_file_is_written_and_named(capsys, text, tmp_path):
    output = tmp_path / "clip.TextGrid"
    assert align(text, "--format", "textgrid", "--output", str(output)) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert output.read_text(encoding="utf-8").startswith('File type = "ooTextFile"')
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.TextGrid", "text.txt"]


def test_a_dash_reads_stdin(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CLIP.reference.encode())))
    assert align("-", "--format", "ctm") == 0
    assert [line.split()[4] for line in capsys.readouterr().out.splitlines()] == WORDS


def test_doubtful_words_are_named_on_stderr_and_many_are_counted(capsys, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("be a " * 12)
    assert align(path) == 0
    out, err = capsys.readouterr()
    warnings = json.loads(out)["warnings"]
    lines = err.splitlines()
    assert lines[0].startswith("mms-jax: warning: the text does not fit the audio")
    assert lines[1].startswith("mms-jax: warning: word 1, 'be' (")
    assert len(lines) == 21
    assert f"{len(warnings) - 20} more" in lines[-1]


def test_stars_and_romanisation_reach_the_aligner(capsys, tmp_path):
    path = tmp_path / "part.txt"
    path.write_text(" ".join(WORDS[2:]).replace("loafer", "лоафер"))
    assert align(path, "--star", "start", "--romanize", "--format", "ctm") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[4] for row in rows] == ["лоафер", "underwear"]
    assert float(rows[0][2]) > 0.7  # behind two words that the text lacks


def test_a_closed_stdin_is_told_of(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert align("-") == 1
    assert "there is no stdin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ("", [], "the text is empty"),
        ("Привет мир", [], "CYRILLIC"),
        (CLIP.reference * 9, [], "need 288 frames, but there are 101"),
        (b"caf\xe9", [], "not UTF-8 at byte 3"),
        ("a", ["--level", "words"], "JSON has all levels"),
        ("a", ["--format", "textgrid", "--level", "words"], "TextGrid"),
        ("a", ["--output", "/absent/x.json"], "there is no such folder"),
        ("a", ["--output", ""], "--output '': name a file"),
        ("a", ["--output", "/"], "--output '/': name a file"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(capsys, tmp_path, content, options, reason):
    path = tmp_path / "text.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert align(path, *options) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert len(err.splitlines()) == 1


def test_files_that_are_not_there_are_named(capsys, text):
    assert align("absent.txt") == 1
    assert "absent.txt" in capsys.readouterr().err
    assert cli.main(["align", "absent.wav", str(text), "--model", str(DEMO_MODEL), "--language", "eng"]) == 1
    assert "absent.wav" in capsys.readouterr().err


def test_a_language_is_asked_for(capsys, text):
    assert align(text, language=None) == 1
    assert "--language is needed" in capsys.readouterr().err


def test_without_a_model_it_is_the_demo_s_which_is_said(text):
    command = [sys.executable, "-m", "mms_jax.cli", "align", str(CLIP.path), str(text), "--language", "eng"]
    done = subprocess.run([*command, "--format", "srt"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("1\n00:00:0")
    assert "bundled demo model" in done.stderr

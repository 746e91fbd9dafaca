"""mms-jax synthesize and info on synthesis checkpoints: files, stdout, stderr, and the exit code."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from mms_jax import cli, load_tts
from mms_jax.cli.synthesize import _LINES_AT_A_TIME
from tests.tts_checkpoints import FOX, SHORT, directory, hurried, synthesizer

# 16 bits: half a step in rounding, and full scale is 32,767 of 32,768 steps.
QUANTISED = 1.5 / 32_768


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr("mms_jax.cli.synthesize.load_tts", lambda model, **options: hurried(load_tts(model, **options)))


def synthesize(*arguments, model="english"):
    """The program in this process; its exit code."""
    return cli.main(["synthesize", *map(str, arguments), "--model", str(directory(model))])


def expected(text, name="english", **settings):
    return synthesizer(name).synthesize(text, **settings)


def check_file(path, text, *, name="english", tolerance=QUANTISED, **settings):
    samples, rate = soundfile.read(path, dtype="float32")
    waveform = expected(text, name, **settings).waveform
    assert (rate, samples.shape) == (synthesizer(name).sampling_rate, waveform.shape)
    assert np.abs(samples - waveform).max() <= tolerance


def give_stdin(monkeypatch, data: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


# What goes well


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "A.WAV"])
def test_a_text_becomes_a_file_and_one_line_says_so(capfd, tmp_path, name):
    assert synthesize(SHORT, "--output", tmp_path / name) == 0
    check_file(tmp_path / name, SHORT)
    assert capfd.readouterr() == (f"{tmp_path / name}\t{expected(SHORT).duration:.2f} s\t{SHORT}\n", "")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_every_option_reaches_the_model(tmp_path):
    output = tmp_path / "a.wav"
    settings = {"seed": 3, "speaking_rate": 0.9, "noise_scale": 0.3, "noise_scale_duration": 0.2, "speaker": 2}
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert synthesize(FOX, "--output", output, *options, model="speakers") == 0
    check_file(output, FOX, name="speakers", **settings)
    others = {name: value * 2 for name, value in settings.items() if name != "speaker"} | {"speaker": 1}
    for name, value in others.items():  # and none of them is without effect
        other = expected(FOX, "speakers", **settings | {name: value}).waveform
        assert not np.array_equal(other, expected(FOX, "speakers", **settings).waveform)


def test_the_dtype_is_that_of_the_model(tmp_path):
    assert synthesize(FOX, "--output", tmp_path / "a.wav", "--dtype", "bfloat16") == 0
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    half = synthesizer("english", "bfloat16").synthesize(FOX).waveform
    assert np.abs(samples - half).max() <= QUANTISED < np.abs(half - expected(FOX).waveform).max()


def test_a_file_is_read_as_utf_8_with_or_without_a_mark_and_line_breaks_part_words(tmp_path):
    for data in (b"hello world", b"\xef\xbb\xbfhello\r\nworld\r\n", "Hello\nWörld\n".encode()):
        (tmp_path / "text.txt").write_bytes(data)
        assert synthesize("--text-file", tmp_path / "text.txt", "--output", tmp_path / "a.wav") == 0
        check_file(tmp_path / "a.wav", "hello wrld" if b"rld" in data and b"\xc3" in data else SHORT)


def test_a_dash_reads_stdin_whatever_the_locale(monkeypatch, tmp_path):
    give_stdin(monkeypatch, "hello – world\n".encode())
    assert synthesize("-", "--output", tmp_path / "a.wav") == 0
    check_file(tmp_path / "a.wav", "hello – world")


def test_each_line_becomes_a_file_and_blank_lines_none(capfd, monkeypatch, tmp_path):
    give_stdin(monkeypatch, b"hello world\n\n  \nthe quick brown fox\r\nhello world")
    assert synthesize("-", "--lines", "--seed", 3, "--output", tmp_path / "talk.wav") == 0
    names = ["talk-0001.wav", "talk-0002.wav", "talk-0003.wav"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, text in zip(names, (SHORT, FOX, SHORT), strict=True):
        check_file(tmp_path / name, text, seed=3)
    out, err = capfd.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(tmp_path / name) for name in names]
    assert err == ""


def test_a_dash_writes_wav_to_stdout_and_nothing_else(capfdbinary):
    assert synthesize("Hello, world", "--output", "-") == 0
    out, err = capfdbinary.readouterr()
    check_file(io.BytesIO(out), SHORT)
    assert err == b"mms-jax: -: no symbol for ','; left out\n"


def test_characters_that_are_left_out_are_told_in_one_line(capfd, tmp_path):
    output = tmp_path / "a.wav"
    assert synthesize("Hello,\u202e world!\ud800 日本,日", "--output", output) == 0
    check_file(output, SHORT)
    out, err = capfd.readouterr()
    assert out.endswith(f"\t{SHORT}\n")
    assert err == f"mms-jax: {output}: no symbol for ',', '\\u202e', '!', '\\ud800', '日', '本'; left out\n"
    assert synthesize("hello " + "".join(map(chr, range(0x4E00, 0x4F00))), "--output", output) == 0
    assert "and 248 more; left out" in capfd.readouterr().err


def test_without_normalisation_nothing_is_left_out(capfd, tmp_path):
    assert synthesize("hello", "--no-normalize", "--output", tmp_path / "a.wav") == 0
    assert synthesize("hello!", "--no-normalize", "--output", tmp_path / "b.wav") == 1
    assert "'!'" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_names_of_any_bytes_are_written_and_told(capfdbinary, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    assert synthesize("i", "--output", name) == 0
    assert capfdbinary.readouterr().out.startswith(os.fsencode(name) + b"\t")
    check_file(io.BytesIO(Path(name).read_bytes()), "i")


# What does not


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["hello", "--model", "no/such/place"], "no/such/place"),
        (["hello", "--speaker", "1"], "speaker is 1; this checkpoint has 1: 0 … 0"),
        (["hello", "--speaking-rate", "0"], "speaking_rate is 0.0; it must be a number in 0.1 … 10"),
        (["hello", "--speaking-rate", "nan"], "speaking_rate is nan"),
        (["hello", "--noise-scale", "-1"], "noise_scale is -1.0"),
        (["hello", "--noise-scale-duration", "inf"], "noise_scale_duration is inf"),
        (["hello", "--seed", "-1"], "seed is -1"),
        ([""], "the text is empty: nothing to say"),
        (["  "], "the text is empty: nothing to say"),
        (["日本"], "'日', '本' dropped"),
        (["a" * 2_001], "2,001 symbols"),
    ],
)
def test_failures_are_one_line_and_exit_code_1_and_no_file(capfd, tmp_path, arguments, reason):
    model = [] if "--model" in arguments else ["--model", str(directory("english"))]
    assert cli.main(["synthesize", *arguments, *model, "--output", str(tmp_path / "a.wav")]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("mms-jax: error: ")
    assert reason in err
    assert len(err.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


def test_speakers_must_be_chosen_where_there_are_several(capfd, tmp_path):
    assert synthesize(FOX, "--output", tmp_path / "a.wav", model="speakers") == 1
    assert "choose one: speaker=0 … 2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["hello", "--output", "a.mp3"], "--output a.mp3: speech is written as .wav, .flac, .ogg"),
        (["hello", "--output", "a"], "--output a: speech"),
        (["hello", "--output", ".wav"], "--output .wav: speech"),
        (["hello", "--lines", "--output", "-"], "several files do not go to stdout"),
        (["", "--lines", "--output", "a.wav"], "the text is empty"),
    ],
)
def test_what_is_wrong_with_the_command_is_told_before_a_model_is_loaded(capfd, arguments, reason):
    assert cli.main(["synthesize", *arguments, "--model", "no/such/place"]) == 1
    err = capfd.readouterr().err
    assert reason in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("lines", [[], ["--lines"]])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty: nothing to say"),
        (b"\n \n", "is empty: nothing to say"),
        (b"hello \xff\xfe", "not UTF-8 text (invalid start byte at byte 6)"),
        ("hello".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_files_and_stdin_without_text_are_refused_by_name(capfd, monkeypatch, tmp_path, data, reason, lines):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    give_stdin(monkeypatch, data)
    for source, name in ((["-"], "stdin" if b"h" in data else "the text"), (["--text-file", str(path)], str(path))):
        command = ["synthesize", *source, *lines, "--output", str(tmp_path / "a.wav"), "--model", "no/such/place"]
        assert cli.main(command) == 1
        err = capfd.readouterr().err
        assert f"error: {name}" in err
        assert reason in err
        assert len(err.splitlines()) == 1
    assert [*tmp_path.iterdir()] == [path]


def test_a_bad_line_fails_the_run_and_no_other_line(capfd, monkeypatch, tmp_path):
    give_stdin(monkeypatch, "hello world\n日本\nthe quick brown fox\n".encode())
    assert synthesize("-", "--lines", "--output", tmp_path / "a.wav") == 1
    check_file(tmp_path / "a-0001.wav", SHORT)
    check_file(tmp_path / "a-0003.wav", FOX)
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    assert f"error: {tmp_path / 'a-0002.wav'}: " in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "a-0002.wav").exists()


def test_errors_name_the_line_of_the_whole_file_and_its_output(capfd, tmp_path):
    lines = ["i"] * (2 * _LINES_AT_A_TIME) + ["", "日本", "i", "日本"]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    assert synthesize("--text-file", tmp_path / "text.txt", "--lines", "--output", tmp_path / "a.wav") == 1
    places = [line.split(": nothing to say")[0] for line in capfd.readouterr().err.splitlines()]
    first = 2 * _LINES_AT_A_TIME + 1  # the blank line, of which no file is made
    failed = [(first + 1, first), (first + 3, first + 2)]
    assert places == [f"mms-jax: error: {tmp_path / f'a-{file:04d}.wav'}: line {line}" for line, file in failed]


@pytest.mark.parametrize("wanted", ["output", "text"])
def test_a_path_that_is_not_there_is_one_line_and_exit_code_1(capfd, monkeypatch, tmp_path, wanted):
    path = tmp_path / "absent" / "a.wav"
    text = ["i"] if wanted == "output" else ["--text-file", path]
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup2", lambda *_: None)  # the program gives up its stdout, which here is the test's
        assert synthesize(*text, "--output", path if wanted == "output" else tmp_path / "a.wav") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert str(path) in err
    assert len(err.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["hello"],
        ["hello", "--text-file", "a.txt", "--output", "a.wav"],
        ["hello", "--output", "a.wav", "--seed", "x"],
    ],
)
def test_wrong_usage_is_exit_code_2(capfd, arguments):
    with pytest.raises(SystemExit, match="2"):
        synthesize(*arguments)
    assert "usage: mms-jax synthesize" in capfd.readouterr().err


# What it tells


def test_help_names_synthesis_and_its_options(capfd):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert "synthesize" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        cli.main(["synthesize", "--help"])
    out = capfd.readouterr().out
    assert all(
        option in out for option in ("--text-file", "--lines", "--speaking-rate", "--speaker", "--seed", "stdin")
    )


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "english",
            ["stochastic durations", "16,000 Hz, one frame per 0.5 ms", "language    eng\n", "symbols     38\n"],
        ),
        ("speakers", ["22,050 Hz", "speakers    3"]),
        ("deterministic", ["deterministic durations", "speakers    1"]),
        ("korean", ["kor, romanised with uroman"]),
    ],
)
def test_info_describes_a_voice(capfd, name, facts):
    assert cli.main(["info", str(directory(name))]) == 0
    out = capfd.readouterr().out
    config = json.loads((directory(name) / "config.json").read_text())
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(synthesizer(name).params))
    facts = [
        *facts,
        "speech synthesis (VITS)",
        f"{num_parameters:,} in",
        f"{config['num_hidden_layers']} layers of width",
    ]
    assert [fact for fact in facts if fact not in out] == []

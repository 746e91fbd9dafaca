"""mms-jax identify: what goes to stdout, what to stderr, and the exit code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

import mms_jax
from mms_jax import cli
from tests.test_lid_parity import LABELS, SHORT, compiling_quickly, lid_model, save_lid


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with compiling_quickly():
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_lid(tmp_path_factory.mktemp("lid"), **SHORT)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = [str(folder / name) for name in ("a.wav", "b.flac")]
    for seed, path in enumerate(paths):
        soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(400), 16_000)
    return paths


@pytest.fixture(scope="module")
def results(directory, clips):
    return mms_jax.load_lid(directory).identify(clips, top_k=2)


def identify(*arguments, model):
    return cli.main(["identify", *arguments, "--model", str(model)])


def shown(result, count=1):
    return "\t".join(f"{language}\t{probability:.4f}" for language, probability in result.top[:count])


def test_one_file_prints_its_language_and_probability_and_nothing_else(capsys, directory, clips, results):
    assert identify(clips[0], model=directory) == 0
    assert capsys.readouterr() == (shown(results[0]) + "\n", "")


def test_several_files_are_told_apart_one_a_line(capsys, directory, clips, results):
    assert identify(*clips, "--top-k", "2", model=directory) == 0
    expected = [f"{clip}\t{shown(result, 2)}" for clip, result in zip(clips, results, strict=True)]
    assert capsys.readouterr().out.splitlines() == expected


def test_a_restriction_is_a_list_of_codes_or_names(capsys, directory, clips):
    assert identify(clips[0], "--languages", "fr, German", "--top-k", "9", model=directory) == 0
    first, probability, second, other = capsys.readouterr().out.split()
    assert {first, second} == {"fra", "deu"}
    assert float(probability) + float(other) == pytest.approx(1, abs=1e-4)  # four digits are shown


def test_json_is_one_object_a_line_errors_included(capsys, directory, clips, results):
    assert identify(clips[0], "absent.wav", "--format", "json", "--top-k", "2", model=directory) == 1
    out, err = capsys.readouterr()
    good, bad = [json.loads(line) for line in out.splitlines()]
    top = [[language, round(probability, 6)] for language, probability in results[0].top]
    assert good == {
        "file": clips[0],
        "duration": 0.025,
        "language": top[0][0],
        "probability": top[0][1],
        "top": top,
    }
    assert bad.keys() == {"file", "duration", "error"}
    assert "absent.wav" in err


def test_a_bad_file_fails_the_run_after_the_good_ones(capsys, directory, clips, results):
    assert identify(clips[0], "absent.wav", clips[1], model=directory) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{clip}\t{shown(result)}" for clip, result in zip(clips, results, strict=True)]
    assert "absent.wav" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--languages", "eng,nld"], "nld"),
        (["--languages", ","], "languages is empty"),
        (["--model", "no/such/place"], "no/such/place"),
        (["--model", str(mms_jax.DEMO_MODEL)], "use load_asr"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(capsys, directory, clips, arguments, reason):
    model = arguments.pop() if arguments[0] == "--model" else directory
    assert identify(clips[0], *(arguments if "--model" not in arguments else []), model=model) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--top-k", "0"], ["--top-k", "x"], ["--format", "srt"]])
def test_wrong_usage_is_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["identify", "a.wav", *arguments])
    assert "--model" in capsys.readouterr().err


def test_info_and_languages_describe_a_classifier_and_an_encoder(capsys, directory, tmp_path):
    assert cli.main(["info", str(directory)]) == 0
    out = capsys.readouterr().out
    for fact in ("language identification", "1 layers of width 24", f"5: {', '.join(LABELS)}", "mean of 13 features"):
        assert fact in out
    assert cli.main(["languages", "--model", str(directory)]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == list(LABELS)
    lid_model().wav2vec2.save_pretrained(tmp_path)
    assert cli.main(["info", str(tmp_path)]) == 0
    assert "speech encoding" in capsys.readouterr().out

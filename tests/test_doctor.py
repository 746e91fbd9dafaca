"""``mms-jax doctor``: a healthy machine is called healthy, and what is broken is found, with what to do about it."""

import functools
import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile

import mms_jax
from mms_jax import cli
from mms_jax.models import products
from mms_jax.pipelines.doctor import packages, report, selftest, sound
from mms_jax.pipelines.doctor.findings import HIDDEN, Status, discreet, ok, warning
from mms_jax.pipelines.doctor.report import CHECKS, Check, Report, examine
from tests.doctor_findings import bad, found, only

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"
# Without soundfile, which the program's other commands need to start.
WITHOUT_SOUNDFILE = """
import sys
sys.modules["soundfile"] = None
from mms_jax.pipelines.doctor import examine
from mms_jax.pipelines.doctor.report import CHECKS
report = examine([check for check in CHECKS if check.section == "Audio" or check.name in ("versions", "demo")])
print(report.text(plain=True))
"""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Exit code and what was printed by a whole run, with secrets in the environment."""
    cache = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setenv("MMS_JAX_CACHE_DIR", str(cache))
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("HF_ENDPOINT", "https://someone:password1@mirror.example")
        code = cli.main(["doctor", "--format", "json"])
    return code, out.getvalue(), cache


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_a_healthy_machine_has_no_problem_and_exit_code_0(healthy):
    code, out, _ = healthy
    results = json.loads(out)
    assert [finding for finding in results["findings"] if finding["status"] == "problem"] == []
    assert code == 0
    assert results["status"] in ("ok", "warning")
    assert results["mms_jax"] == mms_jax.__version__
    assert results["seconds"] > 0


def test_every_section_says_something_and_what_is_not_ok_has_a_remedy(healthy):
    findings = json.loads(healthy[1])["findings"]
    assert list(dict.fromkeys(f["section"] for f in findings)) == list(dict.fromkeys(c.section for c in CHECKS))
    assert all(set(finding) == {"section", "status", "text", "remedy"} for finding in findings)
    assert all(finding["remedy"] for finding in findings if finding["status"] != "ok")
    texts = "\n".join(finding["text"] for finding in findings)
    for fact in (f"jax {jax.__version__}", soundfile.__libsndfile_version__, "pesquerir mareante", "MP3", "privet"):
        assert fact in texts


def test_json_holds_no_token_no_password_and_not_the_home_directory(healthy):
    out = healthy[1]
    assert TOKEN not in out
    assert "password1" not in out
    assert "HF_TOKEN is set" in out
    assert f"https://{HIDDEN}@mirror.example" in out
    assert f'"{Path.home()}/' not in out


def test_what_the_self_test_compiles_is_kept_for_the_next_run(healthy):
    assert list(healthy[2].glob("jax-*/*-cache"))


def test_jax_is_left_set_as_it_was(healthy):
    assert jax.config.jax_compilation_cache_dir is None


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_check_that_raises_is_a_problem_with_a_remedy_and_leaves_the_others_running(check):
    def broken():
        raise ZeroDivisionError("of all things")

    others = [Check("Others", f"other {n}", lambda n=n: [ok(f"finding {n}")], "") for n in range(2)]
    result = examine([others[0], check._replace(run=broken), others[1]])
    first, problem, last = result.findings
    assert (first.text, last.text) == ("finding 0", "finding 1")
    assert problem.status == result.status == Status.PROBLEM
    assert problem.section == check.section
    assert problem.text == f"{check.name} failed: ZeroDivisionError: of all things"
    assert problem.remedy


def test_what_a_check_found_before_it_raises_is_told():
    def half():
        yield ok("found")
        raise OSError("then lost")

    assert [finding.text for finding in found(half)] == ["found", "check failed: OSError: then lost"]


def test_an_interruption_is_not_caught():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found(interrupted)


@pytest.mark.parametrize(
    ("findings", "code", "summary"),
    [
        ([ok("a")], 0, "nothing is wrong"),
        ([ok("a"), warning("b", "do c")], 0, "1 warning"),
        (
            [packages.problem("d", "do e"), packages.problem("f", "do g"), warning("b", "do c")],
            1,
            "2 problems and 1 warn",
        ),
    ],
)
def test_the_exit_code_is_1_for_a_problem_only(monkeypatch, capsys, findings, code, summary):
    checks = [Check("Section", "check", lambda: findings, "")]
    monkeypatch.setattr(report, "examine", functools.partial(examine, checks))
    assert cli.main(["doctor"]) == code
    out = capsys.readouterr().out
    assert summary in out
    assert [line.strip() for line in out.splitlines() if "-> do" in line] == [
        f"-> {f.remedy}" for f in findings if f.remedy
    ]
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  [")] == [
        f"[{f.status}]" for f in findings
    ]


def test_text_is_ascii_where_there_is_no_terminal():
    result = Report((ok("Grüße")._replace(section="S"),), 1.0)
    assert result.text(plain=True).isascii()
    assert "✓ Grüße" in result.text(plain=False)


def test_a_remedy_stays_in_one_line_to_be_copied():
    remedy = "pip install " + "a-long-name " * 30
    text = Report((warning("word " * 100, remedy)._replace(section="S"),), 1.0).text(plain=True)
    assert any(line.endswith(f"-> {remedy}") for line in text.splitlines())
    assert max(len(line) for line in text.splitlines() if "->" not in line) <= report.WIDTH


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("in /home/someone/models", "in ~/models"),
        ("'/home/someone'", "'~'"),
        ("/home/someone-else/x and /mnt/home/someone", "/home/someone-else/x and /mnt/home/someone"),
        ("by https://me:secret@mirror.example/x", f"by https://{HIDDEN}@mirror.example/x"),
        (f"got {TOKEN}", f"got {HIDDEN}"),
        ("key is abcdef123", f"key is {HIDDEN}"),
        ("two\nlines", "two lines"),
    ],
)
def test_nothing_private_is_told(monkeypatch, text, shown):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("MY_API_KEY", "abcdef123")
    monkeypatch.setenv("HF_TOKEN", "1")  # no secret, and in many a line
    assert discreet(text) == shown
    assert discreet("jax 0.10.1") == "jax 0.10.1"


def test_it_starts_where_soundfile_does_not():
    run = subprocess.run([sys.executable, "-c", WITHOUT_SOUNDFILE], capture_output=True, text=True, check=True)
    problems = [line for line in run.stdout.splitlines() if "[problem]" in line]
    assert len(problems) == 1 + len(sound.CODECS) + 1
    assert "pip install --force-reinstall --no-deps soundfile" in run.stdout
    assert f"[ok] mms-jax {mms_jax.__version__}" in run.stdout


# --- packages --------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Versions other than those that are installed."""

    def change(**versions):
        real = metadata.version

        def version(name):
            chosen = versions.get(name.replace("-", "_"), real)
            if chosen is None:
                raise metadata.PackageNotFoundError(name)
            return real(name) if chosen is real else chosen

        monkeypatch.setattr(metadata, "version", version)

    return change


@pytest.mark.parametrize(
    ("versions", "text", "remedy"),
    [
        ({"jax": "0.4.30"}, "jax 0.4.30 is installed, but", "pip install 'jax<0.12,>=0.10'"),
        ({"soxr": None}, "soxr is not installed", "pip install 'soxr>=0.5'"),
    ],
)
def test_a_version_out_of_range_is_found_with_the_command_that_mends_it(installed, versions, text, remedy):
    installed(**versions)
    finding = bad(packages.check_requirements)
    assert finding.status == Status.PROBLEM
    assert text in finding.text
    assert finding.remedy == remedy


def test_a_jaxlib_that_is_not_of_this_jax_is_found(installed):
    installed(jaxlib="0.4.30")
    first, second = [f for f in found(packages.check_jaxlib) if f.status == Status.PROBLEM]
    assert f"by jax {jax.__version__}" in first.text
    assert first.remedy == f"pip install --upgrade jax=={jax.__version__}"
    assert "there are two of it" in second.text


def test_a_plugin_for_gpus_that_is_not_of_this_jax_is_found(installed):
    installed(jax_cuda12_plugin="0.4.30")
    assert "jax-cuda12-plugin 0.4.30 is installed" in bad(packages.check_jaxlib).text


def test_a_source_folder_that_is_not_installed_is_found(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", absent)
    assert "pip install -e ." in only(packages.check_requirements).remedy


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("print('pryvit')", "as pryvit, not salaame"),
        ("import not_there", "No module named 'not_there'"),
        ("import os; os.abort()", "exit code -6"),
    ],
)
def test_a_uroman_that_spells_otherwise_or_fails_is_found(monkeypatch, program, text):
    monkeypatch.setattr(packages, "ROMANIZE", program)
    finding = bad(packages.check_uroman)
    assert finding.status == Status.PROBLEM
    assert text in finding.text
    assert finding.remedy.startswith("pip install --force-reinstall")


# --- audio -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", sound.CODECS, ids=lambda codec: codec.name)
def test_a_missing_codec_is_found_and_the_others_are_read(monkeypatch, codec):
    write = soundfile.write

    def without(file, data, samplerate, *, format, subtype):
        if (format, subtype) == (codec.format, codec.subtype):
            raise soundfile.LibsndfileError(26)
        write(file, data, samplerate, format=format, subtype=subtype)

    monkeypatch.setattr(soundfile, "write", without)
    result = examine([check for check in CHECKS if check.section == "Audio"])
    (problem,) = [finding for finding in result.findings if finding.status != Status.OK]
    assert problem.status == Status.PROBLEM
    assert problem.text.startswith(f"{codec.name} failed: LibsndfileError")
    assert "pip install --force-reinstall --no-deps soundfile" in problem.remedy
    assert len(result.findings) == 1 + len(sound.CODECS)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda samples: samples[::2], "0.25 s in place of 0.50"),
        (lambda samples: np.tile(samples[::2], 2), "880 Hz in place of 440"),
        (lambda samples: 0.5 * samples, "amplitude 0.2"),
        (lambda samples: np.full_like(samples, np.nan), ""),
    ],
)
def test_audio_that_is_read_wrong_is_found(monkeypatch, change, text):
    load = mms_jax.audio.load_audio
    monkeypatch.setattr(mms_jax.audio, "load_audio", lambda audio: change(load(audio)))
    finding = only(sound.codec_check(sound.CODECS[0]))
    assert finding.status == Status.PROBLEM
    assert text in finding.text


# --- the self-test ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language"), [("pesquerir mareante", "spa"), ("pesquerir mareante prenunciar", "fra")]
)
def test_a_wrong_text_or_language_is_found(monkeypatch, text, language):
    heard = SimpleNamespace(text=text, language=language)
    asr = SimpleNamespace(transcribe=lambda *_, **__: heard)
    monkeypatch.setattr("mms_jax.pipelines.asr.load_asr", lambda *_, **__: asr)
    finding = only(selftest.check_demo)
    assert finding.status == Status.PROBLEM
    assert f"{text!r} ({language})" in finding.text
    assert "mms-jax doctor" in finding.remedy


@pytest.mark.parametrize(
    ("dtype", "change"),
    [("float32", lambda x: x * np.nan), ("bfloat16", lambda x: x * np.nan), ("float32", lambda x: x * 1.01)],
)
def test_products_that_are_nan_or_wrong_are_found(monkeypatch, dtype, change):
    def wrong(x, kernel, *, dtype, matmul=products.matmul, broken=dtype):
        return change(matmul(x, kernel, dtype=dtype)) if dtype == broken else matmul(x, kernel, dtype=dtype)

    monkeypatch.setattr(products, "matmul", wrong)
    finding = bad(selftest.check_products)
    assert finding.status == Status.PROBLEM
    assert finding.text.startswith(f"{dtype} products are wrong")
    assert finding.remedy


@pytest.mark.parametrize(("error", "status"), [(0.0, Status.OK), (0.01, Status.PROBLEM), (np.nan, Status.PROBLEM)])
def test_a_device_that_differs_from_the_cpu_is_found(monkeypatch, error, status):
    logits = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    both = iter([logits * (1 + error), logits])
    monkeypatch.setattr(selftest, "_logits", lambda device: next(both))
    gpu = SimpleNamespace(platform="gpu")
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    finding = only(selftest.check_accelerator)
    assert finding.status == status
    assert "gpu and cpu" in finding.text

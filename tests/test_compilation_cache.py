"""The compilation cache: nobody else's code is run, nothing is compiled twice, and damage costs time only."""

import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest
import soundfile
from sounds import RATE, noise

import mms_jax
from mms_jax.errors import CacheError, MMSError
from mms_jax.pipelines import compilation
from mms_jax.pipelines.compilation import DIRECTORY, SETTINGS, VARIABLE, enable_compilation_cache, program_cache

SOMEONE_ELSE = 12_345  # a user id

# Compiles four programs; prints their results, and how many were compiled and how many read from the cache.
PROGRAM = """
import sys, jax, numpy as np
from mms_jax.pipelines.compilation import program_cache
counts = {"misses": 0, "hits": 0}
def count(event, **_):
    name = event.rpartition("/cache_")[2]
    if name in counts:
        counts[name] += 1
jax.monitoring.register_event_listener(count)
x = np.arange(6, dtype=np.float32)
with program_cache(lambda line: print(line, file=sys.stderr)):
    for index in range(4):
        def double(x):
            return 2 * x + index
        double.__name__ = f"double{index}"
        print(jax.jit(double)(x).tolist())
print(counts["misses"], counts["hits"])
"""
RESULTS = [str([2.0 * x + index for x in range(6)]) for index in range(4)]


def run(folder: Path | str, **environment: str) -> tuple[int, int, str]:
    """Run the program, whose results must be right; returns how much it compiled and read, and its stderr."""
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, VARIABLE: str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    *results, counts = program.stdout.splitlines()
    assert results == RESULTS
    compiled, read = map(int, counts.split())
    return compiled, read, program.stderr


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*-cache"))


def setting(name: str):
    return getattr(jax.config, name)


@pytest.fixture
def settings(monkeypatch):
    """An environment that says nothing of caches, and jax's settings, which are put back."""
    for name in (VARIABLE, "XDG_CACHE_HOME", DIRECTORY.upper(), *map(str.upper, SETTINGS)):
        monkeypatch.delenv(name, raising=False)
    before = {name: setting(name) for name in (DIRECTORY, *SETTINGS)}
    jax.config.update(DIRECTORY, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A cache that holds the four programs."""
    folder = tmp_path_factory.mktemp("cache")
    assert run(folder) == (4, 0, "")
    return folder


def test_what_one_process_compiled_the_next_one_reads(filled):
    assert run(filled) == (0, 4, "")


def test_damaged_entries_are_compiled_anew_with_one_line_of_warning_and_replaced(filled):
    damage = (
        lambda entry: b"",
        lambda entry: entry[: len(entry) // 2],
        lambda entry: bytes(len(entry)),
        lambda entry: entry[: len(entry) // 2] + bytes([entry[len(entry) // 2] ^ 1]) + entry[len(entry) // 2 + 1 :],
    )
    for entry, damaged in zip(entries(filled), damage, strict=True):
        entry.write_bytes(damaged(entry.read_bytes()))
    compiled, read, warning = run(filled)
    assert (compiled, read) == (4, 0)
    assert len(warning.splitlines()) == 1
    assert "damaged entries are compiled anew" in warning
    assert str(filled) in warning
    assert run(filled) == (0, 4, "")


def test_what_an_interrupted_process_left_half_written_does_no_harm(filled):
    first = entries(filled)[0]
    first.write_bytes(first.read_bytes()[:100])
    first.with_name(first.name.removesuffix("-cache") + "-atime").unlink()
    assert run(filled) == (1, 3, "")
    assert run(filled) == (0, 4, "")


def test_the_cache_is_bounded_and_the_environment_may_say_how(tmp_path):
    run(tmp_path)
    size = sum(entry.stat().st_size for entry in entries(tmp_path))
    for entry in entries(tmp_path):
        entry.unlink()
    limit = size * 3 // 5  # room for two of four
    assert run(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE=str(limit))[:2] == (4, 0)
    assert 0 < sum(entry.stat().st_size for entry in entries(tmp_path)) <= limit


def test_entries_without_limit_have_no_time_of_use_and_are_kept_all_the_same(tmp_path):
    assert run(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE="-1") == (4, 0, "")
    assert run(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE="-1") == (0, 4, "")


def transcribe(folder: Path | str, clip: Path) -> tuple[str, list[str]]:
    """The program's stdout and its warnings."""
    program = subprocess.run(
        [sys.executable, "-m", "mms_jax.cli", "transcribe", str(clip), "--language", "eng"],
        env={**os.environ, VARIABLE: str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return program.stdout, [line for line in program.stderr.splitlines() if "demo model" not in line]


@pytest.fixture
def clip(tmp_path) -> Path:
    soundfile.write(tmp_path / "clip.wav", noise(RATE), RATE)
    return tmp_path / "clip.wav"


def test_the_program_keeps_what_it_compiles_where_it_is_told_and_says_in_one_line_when_it_cannot(tmp_path, clip):
    text, told = transcribe(tmp_path / "new" / "cache", clip)
    assert told == []
    assert entries(tmp_path / "new" / "cache")
    reason = "/dev/null/cache: cannot hold the compilation cache (Not a directory)"
    remedy = "set MMS_JAX_CACHE_DIR to a folder of your own, or to nothing to do without a cache"
    warning = f"mms-jax: no compilation cache, so every run compiles anew: {reason}; {remedy}"
    assert transcribe("/dev/null/cache", clip) == (text, [warning])


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({VARIABLE: "{0}/mine", "XDG_CACHE_HOME": "{0}/shared", "HOME": "{0}"}, "mine"),
        ({"XDG_CACHE_HOME": "{0}/shared", "HOME": "{0}"}, "shared/mms_jax"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "{0}"}, ".cache/mms_jax"),
        ({"HOME": "{0}"}, ".cache/mms_jax"),
    ],
)
def test_the_cache_is_made_where_the_environment_says(environment, where, tmp_path, monkeypatch, settings):
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    folder = enable_compilation_cache()
    assert folder is not None
    assert folder.parent == tmp_path / where
    assert setting(DIRECTORY) == str(folder)
    assert enable_compilation_cache() == folder


def test_the_folders_made_are_the_users_alone(tmp_path, settings):
    before = os.umask(0)
    try:
        folder = enable_compilation_cache(tmp_path / "cache")
    finally:
        os.umask(before)
    assert folder is not None
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700, 0o700]


def test_a_cache_that_is_set_in_jax_stays_unless_another_is_asked_for(tmp_path, settings):
    jax.config.update(DIRECTORY, str(tmp_path / "theirs"))
    before = {name: setting(name) for name in SETTINGS}
    assert mms_jax.enable_compilation_cache() == tmp_path / "theirs"
    assert {name: setting(name) for name in SETTINGS} == before
    assert not (tmp_path / "theirs").exists()
    folder = enable_compilation_cache(tmp_path / "mine")
    assert folder is not None
    assert folder.parent == tmp_path / "mine"
    assert setting(DIRECTORY) == str(folder)


def test_a_variable_set_to_nothing_means_no_cache(monkeypatch, settings):
    monkeypatch.setenv(VARIABLE, "")
    assert enable_compilation_cache() is None
    assert setting(DIRECTORY) is None


@pytest.mark.parametrize("other", ["jax", "jaxlib", "processor"])
def test_another_jax_or_processor_has_another_folder(other, tmp_path, monkeypatch, settings):
    folder = enable_compilation_cache(tmp_path)
    if other == "processor":
        flags = tmp_path / "cpuinfo"
        flags.write_text("processor : 0\nflags : fpu avx512f\n")
        monkeypatch.setattr(compilation, "CPU_INFO", flags)
    else:
        module = jax if other == "jax" else compilation.jaxlib.version
        monkeypatch.setattr(module, "__version__", "99.0")
    assert enable_compilation_cache(tmp_path) != folder


def test_clocks_and_the_number_of_cores_are_not_the_processor(tmp_path, monkeypatch, settings):
    core = "processor : {0}\ncpu MHz : {1}\nmodel : 6\nmodel name : X at {1} MHz\nflags : fpu avx2\n\n"
    monkeypatch.setattr(compilation, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(core.format(0, 2000))
    folder = enable_compilation_cache(tmp_path)
    (tmp_path / "cpuinfo").write_text(core.format(0, 3000) + core.format(1, 800))
    assert enable_compilation_cache(tmp_path) == folder


def test_a_machine_without_cpuinfo_has_a_folder_too(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(compilation, "CPU_INFO", tmp_path / "absent")
    assert enable_compilation_cache(tmp_path) is not None


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_place_that_others_can_write_is_refused(mode, tmp_path, settings):
    tmp_path.chmod(mode)
    with pytest.raises(CacheError, match=r"others can write it.*chmod go-w") as raised:
        enable_compilation_cache(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}: ")
    assert setting(DIRECTORY) is None


def test_a_place_where_others_can_replace_only_what_is_theirs_will_do(tmp_path, settings):
    tmp_path.chmod(0o1777)  # as /tmp is
    assert enable_compilation_cache(tmp_path) is not None


def make_writable(folder: Path) -> None:
    folder.chmod(0o770)


def make_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def make_a_file(folder: Path) -> None:
    folder.rmdir()
    folder.touch()


@pytest.mark.parametrize("change", [make_writable, make_a_link, make_a_file])
def test_a_folder_that_others_may_have_filled_is_refused(change, tmp_path, settings):
    folder = enable_compilation_cache(tmp_path)
    assert folder is not None
    change(folder)
    with pytest.raises(CacheError, match=r"remove it, or set MMS_JAX_CACHE_DIR") as raised:
        enable_compilation_cache(tmp_path)
    assert str(raised.value).startswith(f"{folder}: ")


def test_a_place_of_somebody_else_is_refused(tmp_path, monkeypatch, settings):
    os.chown(tmp_path, SOMEONE_ELSE, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(CacheError, match=r"belongs to user \d+"):
        enable_compilation_cache(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")
@pytest.mark.parametrize("what", ["folder", "link to a folder"])
def test_a_folder_or_link_that_somebody_else_made_is_refused(what, tmp_path, settings):
    folder = enable_compilation_cache(tmp_path)
    assert folder is not None
    if what == "folder":
        os.chown(folder, SOMEONE_ELSE, -1)
        place = tmp_path
    else:
        place = tmp_path / "link"
        place.symlink_to(tmp_path)
        assert enable_compilation_cache(place) == folder  # one's own
        os.chown(place, SOMEONE_ELSE, -1, follow_symlinks=False)
    with pytest.raises(CacheError, match=r"belongs to user 12345|is not a folder of this user"):
        enable_compilation_cache(place)


def test_a_home_that_cannot_be_written_or_is_not_known_is_an_error_of_ours(tmp_path, monkeypatch, settings):
    folder = enable_compilation_cache(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root could write it, whatever its mode
    with pytest.raises(CacheError, match="cannot be written") as raised:
        enable_compilation_cache(tmp_path)
    assert str(folder) in str(raised.value)
    assert isinstance(raised.value, MMSError)
    assert isinstance(raised.value, OSError)

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    jax.config.update(DIRECTORY, None)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(CacheError, match="home directory is not known"):
        enable_compilation_cache()


def test_a_program_leaves_jax_as_it_was(tmp_path, monkeypatch, settings):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    before = {name: setting(name) for name in (DIRECTORY, *SETTINGS)}
    told: list[str] = []

    def fail() -> None:
        assert {name: setting(name) for name in SETTINGS} == SETTINGS
        assert setting(DIRECTORY).startswith(str(tmp_path))
        raise KeyError

    with pytest.raises(KeyError), program_cache(told.append):
        fail()
    assert {name: setting(name) for name in before} == before
    assert told == []


def test_a_program_shows_other_warnings_as_python_does(settings, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    told: list[str] = []
    with pytest.warns(UserWarning, match="something else"), program_cache(told.append):
        warnings.warn("something else", stacklevel=1)
    assert told == []

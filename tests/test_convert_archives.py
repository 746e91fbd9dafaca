"""Archives unpacked under limits: the files that went in come out, and what is hostile leaves nothing behind."""

from __future__ import annotations

import gzip
import os
import random
import resource
import stat
import subprocess
import time
from pathlib import Path

import pytest

from convert import archives
from convert.archives import unpack
from convert.conversion import ConversionError, UnsafeFileError
from tests import archive_attacks
from tests.archive_attacks import GOOD, good_tar, member, tar, zip_of

NUM_MUTANTS = 300  # of each kind of archive; a mutant takes about a millisecond
NUM_ATTACKS = 200
MAX_SECONDS = 3  # for one attack; the slowest, whose regular expression is quadratic in some Pythons, takes 0.3 s
MAX_GROWTH = 100 << 20  # bytes of memory over all attacks; the largest unpacks 64 MB
OVER_DECLARED = 64 << 20  # bytes; the limit that the table of faults sets

KINDS = {"x.tar": good_tar(), "x.tar.gz": gzip.compress(good_tar(), mtime=0), "x.zip": zip_of(GOOD)}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_files_come_out_as_they_went_in(name, tmp_path):
    files = unpack(write(tmp_path / name, KINDS[name]), tmp_path / "to" / "here")
    assert contents(tmp_path / "to" / "here") == GOOD
    assert files == [tmp_path / "to" / "here" / name for name in GOOD]


@pytest.mark.parametrize("arguments", ["-cf", "-czf", "--format=pax -czf", "--format=ustar -cf", "--format=gnu -cf"])
@pytest.mark.parametrize("what", ["eng", "./eng", "."])
def test_what_tar_packed_is_unpacked(arguments, what, tmp_path):
    long = "x" * 60
    source = tmp_path / "from"
    (source / "eng" / long / long).mkdir(parents=True)
    (source / "eng" / "nothing").mkdir()
    for name in ("config.json", "é 語", f"{long}/{long}/deep"):
        (source / "eng" / name).write_bytes(name.encode() * 1000)
    subprocess.run(["tar", *arguments.split(), tmp_path / "x", what], cwd=source, check=True)
    unpack(tmp_path / "x", tmp_path / "to")
    assert contents(tmp_path / "to") == contents(source)
    assert (tmp_path / "to/eng/nothing").is_dir()


@pytest.mark.parametrize("method", [0, 8])
def test_stored_and_deflated_members_and_folders_of_a_zip_are_unpacked(method, tmp_path):
    content = os.urandom(3 << 20) + b"a" * (3 << 20)
    unpack(write(tmp_path / "x.zip", zip_of({"a/": b"", "a/b": content, "c": b""}, method=method)), tmp_path / "to")
    assert contents(tmp_path / "to") == {"a/b": content, "c": b""}


def test_files_are_plain_whatever_their_headers_say(tmp_path):
    content = tar([member("a", b"1", mode=0o6777, uid=0, mtime=0), member("d/b", b"2", mode=0)])
    for path in unpack(write(tmp_path / "x.tar", content), tmp_path / "to"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def attacks() -> dict[str, bytes]:
    files = {f"tar: {name}": data for name, data in archive_attacks.tars().items()}
    files |= {f"tar.gz: {name}": gzip.compress(data, 1, mtime=0) for name, data in archive_attacks.tars().items()}
    files |= {f"gzip: {name}": data for name, data in archive_attacks.gzips().items()}
    return files | {f"zip: {name}": data for name, data in archive_attacks.zips().items()}


def test_every_attack_is_refused_and_leaves_nothing_behind(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path, directory = inner / "x.archive", inner / "to"
    files = attacks()
    assert len(files) >= NUM_ATTACKS
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in files.items():
        path.write_bytes(data)
        begin = time.process_time()
        with pytest.raises(ConversionError) as caught:
            print(name, unpack(path, directory))
        assert str(caught.value).startswith(f"{path}: "), name
        assert time.process_time() - begin < MAX_SECONDS, name
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", inner, path], name
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < MAX_GROWTH


@pytest.mark.parametrize("kind", ["symbolic link outside", "hard link inside", "block device", "pipe", "sparse file"])
def test_a_member_that_is_no_file_is_named_with_what_it_is(kind, tmp_path):
    path = write(tmp_path / "x.tar", archive_attacks.tars()[kind])
    what = " ".join(kind.split()[-2:]).removesuffix(" outside").removesuffix(" inside").split()[-1]
    with pytest.raises(UnsafeFileError, match=rf"x\.tar: 'eng/x' is a .*{what}; only files and folders"):
        unpack(path, tmp_path / "to")


def test_a_bomb_is_stopped_64_mb_over_what_it_declares(tmp_path, monkeypatch):
    unpacked = 0

    class Counting(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal unpacked
            content = super().read(size)
            unpacked += len(content)
            return content

    monkeypatch.setattr(archives.gzip, "GzipFile", Counting)
    path = write(tmp_path / "x.tar.gz", archive_attacks.gzips()["80 MB behind the end"])
    with pytest.raises(UnsafeFileError, match=r"x\.tar\.gz: unpacks to over 64 MB more than its members declare"):
        unpack(path, tmp_path / "to")
    assert unpacked <= OVER_DECLARED + 10 + archives._BLOCK


@pytest.mark.parametrize("name", KINDS)
def test_the_caps_on_bytes_and_members_are_the_callers(name, tmp_path):
    path, total = write(tmp_path / name, KINDS[name]), sum(map(len, GOOD.values()))
    with pytest.raises(UnsafeFileError, match=rf"{name}: eng/G_100000.pth: .* over {total - 1:,}"):
        unpack(path, tmp_path / "to", max_bytes=total - 1)
    with pytest.raises(UnsafeFileError, match=f"{name}: over 2 members"):
        unpack(path, tmp_path / "to", max_members=2)
    assert not (tmp_path / "to").exists()
    assert len(unpack(path, tmp_path / "to", max_bytes=total, max_members=3)) == 3


@pytest.mark.parametrize("name", KINDS)
def test_what_is_there_already_stays_as_it_is(name, tmp_path):
    target = tmp_path / "to" / "eng" / "G_100000.pth"
    target.parent.mkdir(parents=True)
    write(target, b"mine")
    with pytest.raises(ConversionError, match=rf"{name}: eng/G_100000.pth: .* is there already"):
        unpack(write(tmp_path / name, KINDS[name]), tmp_path / "to")
    assert contents(tmp_path / "to") == {"eng/G_100000.pth": b"mine"}


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_written_through_links_that_are_there(name, tmp_path):
    path = write(tmp_path / name, KINDS[name])
    for link, message in (("to/eng", "is a link to elsewhere"), ("to2/eng/config.json", "is there already")):
        (tmp_path / link).parent.mkdir(parents=True)
        (tmp_path / "outside").mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / "outside" / ("" if link == "to/eng" else "x"))
        with pytest.raises(ConversionError, match=message):
            unpack(path, tmp_path / link.split("/")[0])
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_a_disk_that_fills_up_leaves_nothing_behind_but_what_was_there(name, tmp_path, monkeypatch):
    write(tmp_path / "mine", b"mine")
    written = 0

    def copy(blocks, file, entry):
        nonlocal written
        written += 1
        if written == 2:
            raise OSError(28, "No space left on device")
        original(blocks, file, entry)

    original = archives._copy
    monkeypatch.setattr(archives, "_copy", copy)
    with pytest.raises(ConversionError, match=rf"{name}: cannot be unpacked \(No space left"):
        unpack(write(tmp_path / name, KINDS[name]), tmp_path)
    assert set(contents(tmp_path)) == {"mine", name}
    assert not (tmp_path / "eng").exists()


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_that_changes_between_looking_and_unpacking_is_refused(name, tmp_path, monkeypatch):
    path, original = write(tmp_path / name, KINDS[name]), archives._check_targets

    def check(entries, directory):
        original(entries, directory)
        files = {"eng/config.json": b"1", "../x": b"2"}
        write(path, zip_of(files) if name == "x.zip" else tar(member(*item) for item in files.items()))

    monkeypatch.setattr(archives, "_check_targets", check)
    with pytest.raises(ConversionError, match=name):
        unpack(path, tmp_path / "to")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"x", b"<html>404</html>" * 100, b"BZh9" * 200], ids=repr)
def test_a_file_that_is_no_archive_is_an_error_that_names_it(content, tmp_path):
    with pytest.raises(ConversionError, match=r"x\.tar: no \.tar, \.tar\.gz or \.zip archive"):
        unpack(write(tmp_path / "x.tar", content), tmp_path / "to")


@pytest.mark.parametrize("name", ["nothing_here", "."])
def test_a_path_that_is_no_file_is_an_error_that_names_it(name, tmp_path):
    with pytest.raises(ConversionError, match="cannot be unpacked"):
        unpack(tmp_path / name, tmp_path / "to")


def outcome_of(path: Path, directory: Path) -> str:
    """What unpacking comes to: "files", or the typed error's message."""
    try:
        unpack(path, directory)
    except ConversionError as error:
        return str(error)
    return "files"


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_with_random_damage_gives_files_or_the_typed_error_and_nothing_else(name, tmp_path):
    generator, path, good = random.Random(0), tmp_path / name, KINDS[name]
    outcomes = []
    for number in range(NUM_MUTANTS):
        mutant = bytearray(good[: generator.choice([len(good), len(good), generator.randrange(1, len(good))])])
        for _ in range(generator.randint(0, 3)):
            at = generator.choice([generator.randrange(len(mutant)), generator.randrange(min(600, len(mutant)))])
            mutant[at] = generator.choice([0, 1, 0x2E, 0x2F, 0x35, 0x80, 0xFF, generator.randrange(256)])
        path.write_bytes(mutant)
        outcome = outcome_of(path, tmp_path / str(number))
        assert outcome == "files" or outcome.startswith(f"{path}: ")
        assert (tmp_path / str(number)).exists() is (outcome == "files")
        outcomes.append(outcome == "files")
    assert {entry.name for entry in tmp_path.iterdir()} <= {name, *map(str, range(NUM_MUTANTS))}
    assert 0 < sum(outcomes) < NUM_MUTANTS  # both ends are met

"""What is kept on disk: compiled programs, and the checkpoints that came from the hub."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from mms_jax.errors import CacheError, CheckpointError
from mms_jax.pipelines.compilation import DIRECTORY, VARIABLE, enable_compilation_cache, program_cache
from mms_jax.pipelines.doctor.findings import Finding, ok, problem, quoted, size, warning

LOW_DISK = 5e9  # bytes: mms-1b-all with some adapters is 4 GB
OURS = re.compile(
    r"models--[\w.-]*mms[\w.-]*", re.IGNORECASE
)  # a folder in the cache; other models are not our business
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ELSEWHERE = f"export {VARIABLE}=/tmp/mms_jax_$(id -u)  # or another folder of your own that can be written"
HUB_ELSEWHERE = "export HF_HOME=DIR  # a folder that can be written"


def check_compilation_cache() -> Iterator[Finding]:
    """Whether compiled programs can be kept, and where; jax is left set as it was."""
    with program_cache(lambda line: None):  # which puts jax's settings back; what it would tell is told here
        try:
            folder = enable_compilation_cache()
        except CacheError as error:
            yield _refused(error)
            return
        limit = jax.config.values["jax_compilation_cache_max_size"]
    if folder is None:
        yield warning(f"no programs are kept, as {VARIABLE} is set to nothing", f"unset {VARIABLE}")
        return
    yield from _kept(folder, limit)


def _refused(error: CacheError) -> Finding:
    """What others can write is a problem; a folder that cannot be had only costs time."""
    reason = str(error).partition("; ")[0]  # after which it says what helps, in words
    text = f"no programs are kept, so every run compiles anew: {reason}"
    path = Path(str(error).partition(": ")[0])
    try:
        info = path.lstat()
    except OSError:
        return warning(text, ELSEWHERE)
    mine = os.name == "posix" and info.st_uid == os.geteuid()
    if not info.st_mode & OTHERS_WRITE:
        return warning(text, ELSEWHERE) if mine else problem(text, ELSEWHERE)
    # The folder that mms_jax made may hold programs of others by now; the one around it may hold the user's files.
    command = "rm -r" if path.name.startswith("jax-") else "chmod go-w"
    return problem(text, f"{command} {quoted(path)}" if mine else ELSEWHERE)


def _kept(folder: Path, limit: int) -> Iterator[Finding]:
    if not os.path.isdir(folder):  # one that jax was given: it makes it, or it is a bucket
        yield ok(f"{folder}: jax's own setting, and not a folder that is there")
        return
    info = folder.stat()
    entries = list(folder.glob("*-cache"))
    total = sum(_size(entry) for entry in entries)
    bound = f"of at most {size(limit)}" if limit >= 0 else "without a limit"
    yield ok(f"{folder} (mode {stat.S_IMODE(info.st_mode):04o}): {len(entries)} programs, {size(total)} {bound}")
    if os.name == "posix" and (info.st_mode & OTHERS_WRITE or info.st_uid != os.geteuid()):  # jax's own setting
        yield problem(f"{folder}: others could put code into it, which is then run", f"unset {DIRECTORY.upper()}")
    if (why := _unwritable(folder)) is not None:
        yield warning(f"{folder}: cannot be written ({why}), so every run compiles anew", ELSEWHERE)
    yield from _disk(folder, ELSEWHERE)


def check_hub_cache() -> Iterator[Finding]:
    """Where checkpoints from the hub are kept, whether more can be, and which of MMS are there."""
    from huggingface_hub import constants  # here, because importing it takes a tenth of a second

    folder = Path(constants.HF_HUB_CACHE)
    # By os.path: pathlib raises where the way to a folder is closed.
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if (why := _unwritable(there)) is not None:
        yield warning(f"{folder}: cannot be written ({why}), so no checkpoint can be fetched", HUB_ELSEWHERE)
    else:
        yield from _disk(there, HUB_ELSEWHERE)
    if not os.path.isdir(folder):
        yield ok(f"{folder}: no checkpoint was fetched yet")
        return
    yield from _checkpoints(folder)


def _checkpoints(folder: Path) -> Iterator[Finding]:
    from huggingface_hub import scan_cache_dir

    scan = scan_cache_dir(folder)
    repositories = [repo for repo in scan.repos if repo.repo_type == "model" and "mms" in repo.repo_id.lower()]
    total = sum(repo.size_on_disk for repo in repositories)
    yield ok(f"{folder}: {len(repositories)} MMS checkpoints, {size(total)}")
    for repo in sorted(repositories, key=lambda repo: repo.repo_id):
        what = f"{repo.repo_id} ({size(repo.size_on_disk)})"
        why = _incomplete(repo.repo_id, folder)
        yield (
            ok(f"{what}: complete")
            if why is None
            else warning(f"{what}: {why}", f"mms-jax info {repo.repo_id}  # while online: it fetches what is missing")
        )
    for damage in map(str, scan.warnings):
        if (named := OURS.search(damage)) is not None:
            yield warning(f"damaged: {damage}", f"rm -r {quoted(folder / named[0])}")


def _incomplete(repo_id: str, folder: Path) -> str | None:
    """Why a checkpoint cannot be loaded from the cache alone, as far as headers tell; None if it can."""
    from mms_jax.checkpoint import open_source, open_weights, require  # here, as it reads audio's settings too

    source = open_source(repo_id, cache_dir=folder, local_files_only=True)
    try:
        require(source, "config.json")
        open_weights(source)
    except CheckpointError as error:
        return f"not complete ({error})"
    return None


def _disk(folder: Path, remedy: str) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    if free < LOW_DISK:
        yield warning(f"{folder}: {size(free)} free on its disk", remedy)


def _unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, by making one; None if it can."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".mms_jax_doctor_") as file:
            file.write(b"\0")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process removes the least recently used
        return 0

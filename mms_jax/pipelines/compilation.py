"""Compiled programs on disk, so that the next process need not compile them again.

What is kept is machine code: whoever can write it decides what its readers run. So it lies in a folder that is the
user's alone, whose name tells the versions of jax and the processor, because code made for others can crash this one.
Which program an entry holds, for which backend and under which XLA flags, jax puts into the entry's own name.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
from jax.experimental.compilation_cache import compilation_cache

from mms_jax.errors import CacheError
from mms_jax.memory import release_freed_memory

__all__ = ["VARIABLE", "enable_compilation_cache", "program_cache"]

VARIABLE = "MMS_JAX_CACHE_DIR"  # where the cache is kept; set to nothing, there is none
MAX_BYTES = 2 * 2**30  # then the least recently used go: 24 lengths of a 1B model take some 100 MB
DIRECTORY = "jax_compilation_cache_dir"
SETTINGS = {  # of jax, each of which the environment variable of its name overrides
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # by default what compiles in a second is not kept: half of ours
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_compilation_cache_max_size": MAX_BYTES,
}
REMEDY = f"set {VARIABLE} to a folder of your own, or to nothing to do without a cache"
CPU_INFO = Path("/proc/cpuinfo")
CPU_FIELDS = re.compile(  # what the compiler chooses instructions by; clocks and counters change from boot to boot
    r"^(?:flags|Features|vendor_id|cpu family|model|CPU implementer|CPU variant|CPU part|isa)\s*:.*$", re.MULTILINE
)
COMPILED = "/jax/core/compile/backend_compile_duration"  # jax's event
LONG = 0.5  # seconds of compiling: then a compiler has freed enough to give back, and a few milliseconds do not count
FAILED = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)': ([^\n]*)")


def _release_compiler_memory(event: str, duration_secs: float, **_: Any) -> None:
    """Give back what a compiler leaves behind: for the 1B model a third of a GB, which only a compiler would use."""
    if event == COMPILED and duration_secs >= LONG:
        release_freed_memory()


jax.monitoring.register_event_duration_secs_listener(_release_compiler_memory)


def enable_compilation_cache(directory: str | PathLike[str] | None = None) -> Path | None:
    """Keep what jax compiles from here on in a folder, and take from it what was compiled before.

    The folder is made in ``directory``; without one, a cache that is already set in jax stays, or else it is made in
    $MMS_JAX_CACHE_DIR, $XDG_CACHE_HOME/mms_jax or ~/.cache/mms_jax, the first that is set. Up to 2 GiB are kept.

    Returns the folder; None, and changes nothing, where $MMS_JAX_CACHE_DIR is set to nothing.

    Raises ``CacheError`` for a folder that cannot be made or written, or that others own or can write.
    """
    if directory is None:
        if chosen := _setting(DIRECTORY):
            return Path(chosen)
        if os.environ.get(VARIABLE) == "":
            return None
    folder = _private_folder(_default() if directory is None else Path(directory))
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if _setting("jax_compilation_cache_max_size") >= 0:  # without a limit, no entry has a time of last use
        _remove_half_written(folder)
    _set_directory(str(folder))
    return folder


@contextmanager
def program_cache(warn: Callable[[str], None]) -> Iterator[None]:
    """The cache for as long as a program runs, which goes on without it where it fails: ``warn`` gets a line on why.

    Damaged entries are removed. Afterwards jax is set as it was before.
    """
    before = {name: _setting(name) for name in (DIRECTORY, *SETTINGS)}
    try:
        folder = enable_compilation_cache()
    except CacheError as error:
        folder = None
        warn(f"no compilation cache, so every run compiles anew: {error}")
    try:
        with warnings.catch_warnings(), _failures_told(folder, warn):
            yield
    finally:
        for name in SETTINGS:
            jax.config.update(name, before[name])
        _set_directory(before[DIRECTORY])


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _set_directory(directory: str | None) -> None:
    if _setting(DIRECTORY) != directory:
        jax.config.update(DIRECTORY, directory)
        compilation_cache.reset_cache()  # jax reads the setting once


def _default() -> Path:
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # its specification: a relative one is to be ignored
        return Path(shared, "mms_jax")
    try:
        return Path.home() / ".cache" / "mms_jax"
    except RuntimeError as error:
        raise CacheError(f"the home directory is not known, so there is no place for a cache; {REMEDY}") from error


def _private_folder(base: Path) -> Path:
    """The folder for this jax and this processor in ``base``, made if need be; refused unless it is private."""
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = base.resolve(strict=True) / _version()
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if os.name == "posix":  # elsewhere a user's folders are protected by other means than owner and mode
            _refuse_others(base, folder)
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"{base}: cannot hold the compilation cache ({error.strerror or error}); {REMEDY}") from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise CacheError(f"{folder}: cannot be written, so there is no compilation cache; {REMEDY}")
    return folder


def _refuse_others(base: Path, folder: Path) -> None:
    """Refuse what others could replace (a folder in a folder that they can write), or have made."""
    mine = os.geteuid()
    for path, info in ((base, base.lstat()), (base, base.stat())):
        if info.st_uid not in (mine, 0):
            raise CacheError(f"{path}: belongs to user {info.st_uid}, who could put code into the cache; {REMEDY}")
    above = base.stat().st_mode
    if (
        _others_write(above) and not above & stat.S_ISVTX
    ):  # sticky, as /tmp is: only the owner can replace what is inside
        raise CacheError(f"{base}: others can write it, so put code into the cache; chmod go-w it, or {REMEDY}")
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != mine:
        raise CacheError(
            f"{folder}: is not a folder of this user but could hold code of others; remove it, or {REMEDY}"
        )
    if _others_write(info.st_mode):
        raise CacheError(f"{folder}: others can write it, so put code into the cache; remove it, or {REMEDY}")


def _others_write(mode: int) -> bool:
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def _version() -> str:
    """A name that another jax or another processor does not have."""
    try:
        processor = "\n".join(sorted(set(CPU_FIELDS.findall(CPU_INFO.read_text(encoding="utf-8", errors="replace")))))
    except OSError:  # not Linux
        processor = platform.processor()
    features = hashlib.sha256(f"{platform.machine()}\n{processor}".encode()).hexdigest()[:12]
    return f"jax-{jax.__version__}-jaxlib-{jaxlib.version.__version__}-{platform.machine()}-{features}"


def _remove_half_written(folder: Path) -> None:
    """Remove entries without a time of last use, which is written last: one of them makes every later write fail."""
    used = {path.name.removesuffix("-atime") for path in folder.glob("*-atime")}
    for entry in folder.glob("*-cache"):
        if entry.name.removesuffix("-cache") not in used:
            entry.unlink(missing_ok=True)  # another process may have the same idea


@contextmanager
def _failures_told(folder: Path | None, warn: Callable[[str], None]) -> Iterator[None]:
    """Tell of entries that cannot be read or written in one line each, not in jax's two for every entry."""
    show, told = warnings.showwarning, set()

    def tell(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        failed = FAILED.match(str(message))
        if folder is None or failed is None:
            show(message, category, filename, lineno, file, line)
            return
        action, module, reason = failed.groups()
        if action == "reading":  # jax never replaces an entry: without this, it would fail in every run
            for path in folder.glob(f"{glob.escape(module)}-*"):
                path.unlink(missing_ok=True)
        if action not in told:
            told.add(action)
            what = "damaged entries are compiled anew" if action == "reading" else "entries cannot be written"
            warn(f"compilation cache {folder}: {what} ({reason})")

    warnings.showwarning = tell
    yield

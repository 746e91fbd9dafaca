"""Whether a file that huggingface_hub fetched is what the hub holds: it compares sizes, here checksums are compared.

A file is hashed once, when it comes (1.5-2 GB/s), not when it is found in the cache. A note among the cache's locks
says from before the download until the comparison that a file is yet to be compared, so that a process killed in
between leaves nothing that a later one would trust.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mms_jax.errors import CheckpointError

_LOCKS, _NOTE = ".locks", ".unverified"  # huggingface_hub's own folder, which its tools pass over; a suffix of ours
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")  # what the hub calls large and small files
_READ_AT_ONCE = 1 << 20  # bytes


class Place(NamedTuple):
    """Where a repository's file is kept: the cache, its folder there, the commit if that is known, and its name."""

    cache: Path
    folder: str
    commit: str | None
    filename: str


def fetch_checked(
    download: Callable[[], str], place: Place, *, etag: Callable[[Path], str | None], name: str, online: bool
) -> Path:
    """The path that ``download`` gives, if it was there before or has the hub's checksum.

    Args:
        download: fetches the file into ``place``, or finds it there.
        etag: the hub's checksum of a file at that path, or None if it tells none.
        name: the repository, for messages.
        online: whether anything can come.

    Raises:
        CheckpointError: another checksum; the file was removed from the cache. Whatever ``download`` raises.
    """
    snapshots = place.cache / place.folder / "snapshots"
    before = {path for path in snapshots.glob(f"*/{place.filename}") if path.exists()}  # not links to nothing
    note = place.cache / _LOCKS / place.folder / (place.filename + _NOTE)
    noted = note.exists()
    if not noted and (not online or (place.commit and snapshots / place.commit / place.filename in before)):
        return Path(download())  # which asks nobody
    with suppress(OSError):  # a cache that cannot be written gets no new files either
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    try:
        path = Path(download())
    except Exception:  # raised again, whatever it is: nothing came, so there is nothing to compare later
        if not noted:
            _remove(note)
        raise
    if noted or path not in before:
        _compare(path, etag(path), what=f"{name}: {place.filename}")
    _remove(note)
    return path


def cached_etag(path: Path) -> str | None:
    """The checksum that a file in the cache is named by; None where the cache has no links (Windows, some disks)."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def _compare(path: Path, etag: str | None, *, what: str) -> None:
    blob = path.resolve()
    with blob.open("rb") as file:
        opened = os.fstat(file.fileno())
        if etag is None or _matches(file, etag, size=opened.st_size):
            return
    with suppress(FileNotFoundError):
        if os.path.samestat(opened, blob.stat()):  # not what another process fetched meanwhile
            blob.unlink()
            _remove(path)
    raise CheckpointError(
        f"{what} came damaged (its checksum is not {etag[:12]}…, the hub's) and was removed from the cache; load "
        f"again, which fetches it again; if it is damaged every time, a proxy or the disk ({path.parent}) is at fault"
    )


def _matches(file, etag: str, *, size: int) -> bool:
    """Whether a file has a checksum; what is no checksum known here (a mirror's own) says nothing against it."""
    if _SHA256.fullmatch(etag):
        return _digest(file, hashlib.sha256()) == etag
    if not _SHA1.fullmatch(etag):
        return True
    as_git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if _digest(file, as_git) == etag:
        return True
    file.seek(0)
    return _digest(file, hashlib.sha1(usedforsecurity=False)) == etag  # as some mirrors name all their files


def _digest(file, digest) -> str:
    while chunk := file.read(_READ_AT_ONCE):
        digest.update(chunk)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone already, or in a cache that cannot be written
        path.unlink()

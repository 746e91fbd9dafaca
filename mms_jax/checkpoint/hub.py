"""Where a checkpoint's files come from: a local directory, or a hub repository through huggingface_hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Protocol

from mms_jax.errors import CheckpointError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Source(Protocol):
    """A place that holds a checkpoint's files."""

    @property
    def name(self) -> str:
        """The place, for messages."""
        ...

    def find(self, filename: str) -> Path | None:
        """The local path of a file, or None if the checkpoint has none of that name."""
        ...

    def filenames(self) -> list[str]:
        """The files the checkpoint is known to hold."""
        ...


@dataclass(frozen=True)
class Directory:
    """A checkpoint in a local directory."""

    path: Path

    @property
    def name(self) -> str:
        """The directory, for messages."""
        return str(self.path)

    def find(self, filename: str) -> Path | None:
        """The file's path, or None."""
        path = self.path / check_filename(filename)
        return path if path.is_file() else None

    def filenames(self) -> list[str]:
        """The directory's files."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_file())


@dataclass(frozen=True)
class Repository:
    """A checkpoint on the hub; only the files asked for are fetched, into huggingface_hub's own cache."""

    repo_id: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | PathLike[str] | None = None
    local_files_only: bool = False
    _found: dict[str, Path | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The repository's id, for messages."""
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"

    def find(self, filename: str) -> Path | None:
        """Fetch the file, or take it from the cache; None if the repository has none of that name.

        Raises:
            CheckpointError: no such repository or revision, no access, or no connection and nothing in the cache.
        """
        if filename not in self._found:
            self._found[filename] = self._download(check_filename(filename))
        return self._found[filename]

    def _download(self, filename: str) -> Path | None:
        import huggingface_hub  # here, because importing it takes longer than a local load
        from huggingface_hub import errors

        try:
            path = huggingface_hub.hf_hub_download(
                self.repo_id,
                filename,
                revision=self.revision,
                token=self.token,
                cache_dir=None if self.cache_dir is None else str(self.cache_dir),
                local_files_only=self.local_files_only,
            )
        except errors.LocalEntryNotFoundError as error:
            cause = "local_files_only is set" if self.local_files_only else "the hub cannot be reached"
            raise CheckpointError(f"{self.name}: {filename} is not in the local cache and {cause}") from error
        except errors.EntryNotFoundError:
            return None
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{self.name}: neither a local directory nor a hub repository that can be read; "
                "check the spelling, or log in (hf auth login) if it is private"
            ) from error
        except errors.HfHubHTTPError as error:  # revision, gating, server
            raise CheckpointError(f"{self.name}: {filename} cannot be fetched ({error})") from error
        return Path(path)

    def filenames(self) -> list[str]:
        """The files fetched so far; the rest of the repository is not listed."""
        return sorted(name for name, path in self._found.items() if path is not None)


def open_source(
    model: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Source:
    """The source for a local directory or a hub name (``facebook/mms-1b-all``); a directory wins.

    Raises:
        CheckpointError: it is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return Directory(path)
    if path.exists():
        raise CheckpointError(f"{model}: is a file; a checkpoint is a directory with config.json and model.safetensors")
    if not isinstance(model, str) or not _REPO_ID.fullmatch(model) or ".." in model:
        raise CheckpointError(f"{model}: no such directory, and not a hub name (such as facebook/mms-1b-all)")
    return Repository(model, revision, token, cache_dir, local_files_only)


def require(source: Source, filename: str) -> Path:
    """The path of a file that the checkpoint must have.

    Raises:
        CheckpointError: it is not there; the message lists what is.
    """
    path = source.find(filename)
    if path is None:
        there = ", ".join(source.filenames()[:12]) or "nothing"
        raise CheckpointError(f"{source.name}: no {filename} there (found: {there})")
    return path


def check_filename(filename: str) -> str:
    """Refuse names that could leave the checkpoint: a language or an index must not choose where we read."""
    if not _FILE_NAME.fullmatch(filename) or filename.startswith("."):
        raise CheckpointError(f"{filename!r} is not the name of a checkpoint's file")
    return filename

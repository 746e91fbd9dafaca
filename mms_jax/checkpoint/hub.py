"""Where a checkpoint's files come from: a local directory, or a hub repository through huggingface_hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Protocol

from mms_jax.errors import CheckpointError
from mms_jax.languages import elsewhere

_FILES_SHOWN = 12
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # a bare word is a mistyped directory
_VOICE = re.compile(r"facebook/mms-tts-(.+)")
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


@dataclass
class Repository:
    """A checkpoint on the hub; only the files asked for are fetched, into huggingface_hub's own cache.

    All of them come from one commit: that of the first file found, wherever the branch moves meanwhile.
    """

    repo_id: str
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: Path | None = None
    local_files_only: bool = False
    _commit: str | None = field(default=None, init=False, repr=False)
    _offline: bool = field(default=False, init=False, repr=False)
    _found: dict[str, Path | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """The repository's id, for messages."""
        name = self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"
        return f"{name} (offline: only cached files)" if self._offline else name

    def find(self, filename: str) -> Path | None:
        """Fetch the file, or take it from the cache; None if the repository has none of that name.

        Offline by choice (``local_files_only``, or HF_HUB_OFFLINE=1) the cached files are all the repository has. If
        the hub fails to answer, a file that is neither cached nor known to be absent is an error.

        Raises:
            CheckpointError: no such repository or revision, no access, or no answer and nothing in the cache.
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
                revision=self._commit or self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
            )
        except errors.LocalEntryNotFoundError as error:
            return self._absent_from_cache(filename, error)
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{self.name}: gated; accept its terms on its page on the hub, then log in (hf auth login)"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{self.name}: neither a local directory nor a hub repository that can be read; "
                f"{self._published_instead() or 'check the spelling, or log in (hf auth login) if it is private'}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(f"{self.name}: the repository has no revision {self.revision!r}") from error
        except errors.HFValidationError as error:
            raise CheckpointError(f"{self.name}: no such directory, and not a hub name ({_one_line(error)})") from error
        # The server, the connection or the disk. HTTPError is the base class of whichever HTTP library the hub's uses.
        except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
            raise CheckpointError(f"{self.name}: {filename} cannot be fetched ({_one_line(error)})") from error
        self._pin(Path(path))
        return Path(path)

    def _pin(self, path: Path) -> None:
        commit = path.parent.name  # …/snapshots/<commit>/<file>
        if self._commit is None and _COMMIT.fullmatch(commit):
            self._commit = commit

    def _published_instead(self) -> str:
        """What MMS has for the language of a synthesis checkpoint of which there is none: mms-tts-cmn, mms-tts-fr."""
        named = _VOICE.fullmatch(self.repo_id)
        return elsewhere(named[1], task="tts", source=self.repo_id) if named else ""

    def _absent_from_cache(self, filename: str, error: Exception) -> None:
        """None if the file is known to be absent, or if the cache is all there is."""
        from huggingface_hub import errors

        if self._cached(filename) is not None:  # an earlier session was told that there is no such file
            return
        chosen = self.local_files_only or isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        if chosen and isinstance(self._cached("config.json"), str):
            self._offline = True
            return
        choice = "this is offline by choice (local_files_only, or HF_HUB_OFFLINE=1)"
        cause = choice if chosen else f"the hub did not give it ({_one_line(error.__cause__ or error)})"
        raise CheckpointError(
            f"{self.name}: no local directory of that name, {filename} is not in the local cache, and {cause}"
        ) from error

    def _cached(self, filename: str) -> object:
        """The path of a cached file, another object if it is cached that there is none, or None."""
        import huggingface_hub

        return huggingface_hub.try_to_load_from_cache(
            self.repo_id, filename, cache_dir=self.cache_dir, revision=self._commit or self.revision
        )

    def filenames(self) -> list[str]:
        """The files fetched so far; the rest of the repository is not listed."""
        return sorted(name for name, path in self._found.items() if path is not None)


def _one_line(error: BaseException) -> str:
    """An error's message; the hub's have paragraphs."""
    return " ".join(str(error).split()) or type(error).__name__


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
    is_hub_name = isinstance(model, str) and _REPO_ID.fullmatch(model) and ".." not in model and "--" not in model
    try:
        path = Path(model).expanduser()
        is_directory, exists = path.is_dir() and model != "", path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user's home, a NUL inside
        raise CheckpointError(f"{model!r}: not a directory ({error}), and not a hub name") from error
    if is_directory:
        return Directory(path)
    if exists and model != "":
        raise CheckpointError(f"{model}: is a file; a checkpoint is a directory with config.json and model.safetensors")
    if not is_hub_name:
        raise CheckpointError(f"{str(model)!r}: neither a local directory nor a hub name (such as facebook/mms-1b-all)")
    cache = None if cache_dir is None else Path(cache_dir).expanduser()
    return Repository(str(model), revision, token, cache, local_files_only)


def require(source: Source, filename: str) -> Path:
    """The path of a file that the checkpoint must have.

    Raises:
        CheckpointError: it is not there; the message lists what is.
    """
    path = source.find(filename)
    if path is None:
        raise CheckpointError(f"{source.name}: no {filename} there (found: {list_files(source)})")
    return path


def list_files(source: Source) -> str:
    """The files a source is known to hold, for messages."""
    names = source.filenames()
    return ", ".join(names[:_FILES_SHOWN]) + (" …" if len(names) > _FILES_SHOWN else "") or "nothing"


def check_filename(filename: str) -> str:
    """Refuse names that could leave the checkpoint: a language or an index must not choose where we read."""
    if not is_filename(filename):
        raise CheckpointError(f"{filename!r} is not the name of a checkpoint's file")
    return filename


def is_filename(name: str) -> bool:
    """Whether a name is that of a file in a checkpoint: no path, nothing hidden."""
    return _FILE_NAME.fullmatch(name) is not None and not name.startswith(".")

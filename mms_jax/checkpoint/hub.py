"""Where a checkpoint's files come from: a local directory, or a hub repository through huggingface_hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Protocol

from mms_jax.checkpoint.integrity import Place, cached_etag, fetch_checked
from mms_jax.errors import CheckpointError
from mms_jax.files import shorten
from mms_jax.languages import elsewhere

_FILES_SHOWN = 12
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # a bare word is a mistyped directory
_VOICE = re.compile(r"facebook/mms-tts-(.+)")
_CHARS_SHOWN = 300  # of an error of the client
REFUSED, TOO_MANY, SERVER_FAULT = (401, 403), 429, 500  # HTTP
_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_VISIBLE = re.compile(r"[!-~]+")  # ASCII, which is what a header may hold
_TOKEN = re.compile(r"\bhf_(?:[a-z]+_)?[A-Za-z0-9._-]{20,}")  # as the hub writes them, so that messages have none
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST_TOKEN = 8  # characters: a shorter text stands in messages by chance


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

    def __post_init__(self):
        self.token = check_token(self.token, repo_id=self.repo_id)
        check_revision(self.revision, repo_id=self.repo_id)

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
            CheckpointError: no such repository or revision, no access, no answer and nothing in the cache, or what came
                has not the hub's checksum.
        """
        if filename not in self._found:
            self._found[filename] = self._download(check_filename(filename))
        return self._found[filename]

    def _download(self, filename: str) -> Path | None:
        import huggingface_hub  # here, because importing it takes longer than a local load
        from huggingface_hub import errors

        download = partial(
            huggingface_hub.hf_hub_download,
            self.repo_id,
            filename,
            revision=self._commit or self.revision,
            token=self.token,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
        )
        try:
            if self._online:
                check_login(self.token, repo_id=self.repo_id)
            path = fetch_checked(download, self._place(filename), etag=self._etag, name=self.name, online=self._online)
        except errors.LocalEntryNotFoundError as error:
            return self._absent_from_cache(filename, error)
        except errors.EntryNotFoundError:
            return None
        except CheckpointError:
            raise
        # The server, the connection, the disk, or (ValueError) the name or a cache in which something stands that the
        # client did not write. HTTPError is the base class of whichever HTTP library the hub's uses.
        except (OSError, ValueError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
            raise CheckpointError(f"{self.name}: {self._why_not(filename, error)}") from error
        self._pin(path)
        return path

    def _why_not(self, filename: str, error: Exception) -> str:
        """Why a file did not come, and what helps."""
        from huggingface_hub import errors

        match error:
            case errors.GatedRepoError():
                allowed = "then log in (hf auth login) or give token="
                return f"gated; accept its terms on its page on the hub, {allowed}, to fetch {filename}"
            case errors.RepositoryNotFoundError():
                instead = self._published_instead()
                otherwise = "check the spelling, or log in (hf auth login) or give token= if it is private"
                return f"neither a local directory nor a hub repository that can be read; {instead or otherwise}"
            case errors.RevisionNotFoundError():
                there = "name a branch, a tag or a whole commit that it has"
                return f"the repository has no revision {self.revision!r}, so no {filename} of it; {there}"
            case errors.HFValidationError():
                return f"no such directory, and not a hub name ({self._told(error)})"
            case ValueError() if (ref := self._damaged_ref()) is not None:
                again = f"delete {ref.parent.parent}, then load online, which fetches it again"
                return f"its copy in the hub's cache is damaged ({ref} names no commit); {again}"
        return f"{filename} cannot be fetched ({self._told(error)}); {remedy(error)}"

    def _told(self, error: BaseException) -> str:
        return one_line(error, token=self.token)

    def _place(self, filename: str) -> Place:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        cache = Path(constants.HF_HUB_CACHE if self.cache_dir is None else self.cache_dir)
        asked = self._commit or self.revision
        commit = asked if asked and _COMMIT.fullmatch(asked) else None
        return Place(cache, repo_folder_name(repo_id=self.repo_id, repo_type="model"), commit, filename)

    def _damaged_ref(self) -> Path | None:
        """The cache's note of where the branch is, if what stands there can be no commit's name."""
        place = self._place("")
        ref = place.cache / place.folder / "refs" / (self.revision or "main")
        if not ref.is_file() or re.fullmatch(rb"[0-9A-Za-z_-]*", ref.read_bytes()):
            return None
        return ref

    @property
    def _online(self) -> bool:
        from huggingface_hub import constants

        return not (self.local_files_only or constants.is_offline_mode())

    def _etag(self, path: Path) -> str | None:
        """The hub's checksum of a file that was fetched; asked for where the cache does not know it."""
        import huggingface_hub

        known = cached_etag(path)
        if known is not None or not self._online:
            return known
        url = huggingface_hub.hf_hub_url(self.repo_id, path.name, revision=path.parent.name)
        return huggingface_hub.get_hf_file_metadata(url, token=self.token).etag

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
        choice = "this is offline by choice (local_files_only, or HF_HUB_OFFLINE=1); load it online once"
        why = error.__cause__ or error
        cause = choice if chosen else f"the hub did not give it ({self._told(why)}); {remedy(why)}"
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


def one_line(error: BaseException, *, token: str | bool | None = None) -> str:
    """An error's message, without a token; the hub's have paragraphs, and may repeat what they were sent."""
    text = " ".join(str(error).split())
    for secret in (token, *map(os.environ.get, _TOKEN_VARIABLES)):
        if isinstance(secret, str) and len(secret.strip()) >= _SHORTEST_TOKEN:
            text = text.replace(secret.strip(), "***")
    return _TOKEN.sub("***", text)[:_CHARS_SHOWN] or type(error).__name__


def check_token(token: str | bool | None, *, repo_id: str) -> str | bool | None:
    """A token as it is to be sent: one that was read from a file ends with its line end, which goes.

    Raises:
        CheckpointError: it is no text that can be sent; the message does not hold it.
    """
    if token is None or isinstance(token, bool):
        return token
    stripped = token.strip() if isinstance(token, str) else ""
    if _VISIBLE.fullmatch(stripped) is None:
        raise CheckpointError(
            f"{repo_id}: token= is empty, or not one word of visible ASCII characters; give the token as the hub shows "
            "it, True for the one of this machine (hf auth login), or False for none"
        )
    return stripped


def check_revision(revision: str | None, *, repo_id: str) -> None:
    """Refuse what git would not have as a name: the client makes an address and a path in its cache of it.

    Raises:
        CheckpointError: it is no revision's name.
    """
    if revision is None:
        return
    printable = isinstance(revision, str) and revision.isprintable() and not {" ", "\\"} & set(revision)
    if not printable or not revision or ".." in revision or revision.startswith("/"):
        raise CheckpointError(
            f"{repo_id}: revision={shorten(revision)} is no revision; give the name of a branch or a tag, or a whole "
            "commit (40 hexadecimal digits), or leave it out for the newest on main"
        )


def check_login(token: str | bool | None, *, repo_id: str) -> None:
    """Check the token that the client would take from this machine, before its HTTP library shows it in an error.

    Raises:
        CheckpointError: it cannot be sent; the message does not hold it. OSError: there is none, and ``token`` is True.
    """
    from huggingface_hub.utils import build_hf_headers

    try:
        found = build_hf_headers(token=token).get("authorization", "Bearer -").removeprefix("Bearer ")
    except UnicodeDecodeError:  # a file of the token that is no text
        found = ""
    if _VISIBLE.fullmatch(found) is None:
        raise CheckpointError(
            f"{repo_id}: the token of this machine (HF_TOKEN, or that of hf auth login) is not one word of visible "
            "ASCII characters; set it again, or give token= (False for none)"
        )


def remedy(error: BaseException) -> str:
    """What helps against an error of the hub's client: of the server, the connection or the disk."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "log in (hf auth login), or give the token itself as token="
    if status == TOO_MANY:
        return "wait some minutes, or log in (hf auth login), which raises the limit"
    if status >= SERVER_FAULT:
        return "the hub is at fault: try again later"
    if status in REFUSED:
        return "log in (hf auth login) or give token=, of an account that may do this"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return "look at the disk that holds the cache (HF_HOME, cache_dir=): its space, and who may write there"
    return "check the connection (and HF_ENDPOINT, if it is set), then try again"


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

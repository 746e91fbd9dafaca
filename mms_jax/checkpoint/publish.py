"""The one way from a directory to a hub repository: one commit, on top of what was seen there, or an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_jax.checkpoint.card import CARD, is_ours
from mms_jax.checkpoint.hub import (
    REFUSED,
    Repository,
    check_login,
    check_revision,
    check_token,
    one_line,
    remedy,
)
from mms_jax.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_CONFLICT = (409, 412)  # HTTP: the branch is no longer where it was


@dataclass(frozen=True)
class Target:
    """A branch of a hub repository at the commit that was seen: what is pushed there rests on ``files``."""

    repo_id: str
    revision: str | None
    head: str
    files: tuple[str, ...]
    url: str
    create_pr: bool = False
    token: str | bool | None = field(default=None, repr=False)

    @property
    def source(self) -> Repository:
        """What is there, at that commit."""
        return Repository(self.repo_id, self.head, self.token)

    def read(self, filename: str) -> Path | None:
        """A file of what is there, or None; nothing is asked for that is not listed.

        Raises:
            CheckpointError: it cannot be fetched.
        """
        return self.source.find(filename) if filename in self.files else None

    @property
    def card(self) -> str | None:
        """README.md as it is there; None if it is not ours and must stay as it is."""
        path = self.read(CARD)
        text = "" if path is None else path.read_text(encoding="utf-8", errors="replace")
        return text if path is None or is_ours(text) else None

    def commit(
        self, directory: str | PathLike[str], *, message: str, ignore: Sequence[str] = (), lost: str = ""
    ) -> CommitInfo:
        """Upload a directory's files, but hidden ones and those that match ``ignore``, in one commit.

        A README.md that is there and not ours stays. ``lost`` ends an error's message: where the files are now.

        Raises:
            CheckpointError: it cannot be, or the branch has moved since; nothing of it is there then.
        """
        import huggingface_hub

        paths = list(_files(Path(directory), ignore=ignore))
        with _explained(self.repo_id, lost, self.token):
            return huggingface_hub.HfApi(token=self.token).create_commit(  # upload_folder may make several commits
                self.repo_id,
                [
                    huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
                    for name, path in paths
                    if name != CARD or self.card is not None
                ],
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=self.head,
            )


def open_target(
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    lost: str = "",
) -> Target:
    """The repository that is to be pushed to, made if there is none, and its branch too; the rest as huggingface_hub.

    Raises:
        CheckpointError: it cannot be, or may not be written; the message names it and the remedy.
    """
    import huggingface_hub

    with _explained(repo_id, lost, token):
        token = check_token(token, repo_id=repo_id)
        check_revision(revision, repo_id=repo_id)
        check_login(token, repo_id=repo_id)
        api: Any = huggingface_hub.HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        repo_id = made.repo_id
        if revision is not None and not revision.startswith("refs/pr/") and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.repo_info(repo_id, revision=revision)
    names = tuple(sorted(file.rfilename for file in info.siblings or ()))
    return Target(repo_id, revision, info.sha, names, str(made), create_pr, token)


def _files(directory: Path, *, ignore: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and not any(fnmatch(name.as_posix(), pattern) for pattern in ignore):
            yield name.as_posix(), path


@contextmanager
def _explained(repo_id: str, lost: str, token: str | bool | None) -> Iterator[None]:
    """Errors of the client as ours: what was not pushed, why, and what helps."""
    from huggingface_hub import errors

    def not_pushed(error: Exception, helps: str) -> CheckpointError:
        why = f"{repo_id}: not pushed ({one_line(error, token=token)})"
        return CheckpointError("; ".join(filter(None, (why, helps, lost))))

    try:
        yield
    except CheckpointError as error:  # ours, with its own remedy
        if not lost:
            raise
        raise CheckpointError(f"{error}; {lost}") from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is not the name of a hub repository (user/name)") from error
    except errors.OfflineModeIsEnabled as error:
        raise not_pushed(error, "HF_HUB_OFFLINE is set: push again without it") from error
    except errors.HfHubHTTPError as error:
        raise not_pushed(error, _status_remedy(error)) from error
    # Of the connection, or a file.
    except (OSError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise not_pushed(error, remedy(error)) from error
    except ValueError as error:  # a README.md that the hub refuses
        raise not_pushed(error, "mend the file that it names, then push again") from error
    except RuntimeError as error:  # so the client wraps what happens to a large file
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise not_pushed(cause, _status_remedy(cause)) from error


def _status_remedy(error: Any) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in REFUSED or isinstance(error, errors.RepositoryNotFoundError):
        return "log in (hf auth login) or give token=, with a token that may write there"
    if status in _CONFLICT:
        return "somebody else pushed meanwhile, and nothing of this was: push again, onto what is there now"
    if isinstance(error, errors.RevisionNotFoundError):
        return "name a branch that it has"
    return remedy(error)

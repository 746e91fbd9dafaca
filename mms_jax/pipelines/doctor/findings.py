"""What a check finds, and how findings are written: in words that are safe to paste into a public issue."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY$")  # of environment variables
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b")  # what tokens of the hub look like
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")  # of a URL, as mirrors and proxies have
_SHORTEST_SECRET = 6  # characters: HF_TOKEN=1 is no secret, and "1" is in every other line
HIDDEN = "<hidden>"


class Status(StrEnum):
    """How bad it is: a warning is what still works, a problem is what is broken."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """What a check found, and what to do about it."""

    status: Status
    text: str
    remedy: str = ""  # a command, where one helps; what is ok needs none
    section: str = ""  # that of the check


def ok(text: str) -> Finding:
    """A fact, or something that works."""
    return Finding(Status.OK, text)


def warning(text: str, remedy: str) -> Finding:
    """Something that works, but not as well as it could."""
    return Finding(Status.WARNING, text, remedy)


def problem(text: str, remedy: str) -> Finding:
    """Something that is broken."""
    return Finding(Status.PROBLEM, text, remedy)


def size(num_bytes: float) -> str:
    """Bytes for people: ``12 MB``, ``3.4 GB``."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def quoted(path: Path) -> str:
    """A path as a shell takes it, also once ``discreet`` has made ``~`` of the home directory."""
    home = _home()
    if home is None or home not in path.parents:
        return shlex.quote(str(path))
    return f"~/{shlex.quote(str(path.relative_to(home)))}"


def is_secret(variable: str) -> bool:
    """Whether an environment variable's value is nobody else's business."""
    return _SECRET_NAME.search(variable.upper()) is not None


def discreet(text: str) -> str:
    """A line of text without tokens, passwords in URLs and the home directory's name."""
    for value in _secrets():
        text = text.replace(value, HIDDEN)
    text = _LOGIN.sub(f"{HIDDEN}@", _TOKEN.sub(HIDDEN, text))
    if (home := _home()) is not None:
        text = re.sub(rf"(?<![\w.~-]){re.escape(str(home))}(?![\w.-])", "~", text)
    return " ".join(text.split())


def _secrets() -> Iterator[str]:
    """The longest first: one may be a part of another."""
    values = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= _SHORTEST_SECRET}
    yield from sorted(values, key=len, reverse=True)


def _home() -> Path | None:
    try:
        home = Path.home()
    except RuntimeError:  # a user id without a name, as in some containers
        return None
    return home if home.is_absolute() and len(home.parts) > 1 else None  # "/" is in every path

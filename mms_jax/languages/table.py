"""The tables in mms_jax/data: which published checkpoint covers which tag, and the part of ISO 639 that names need."""

import csv
import gzip
import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from mms_jax.errors import LanguageError

TASKS = {
    "asr": ("asr_1b_all", "asr_1b_l1107", "asr_fl102"),
    "tts": ("tts",),
    "lid": ("lid_126", "lid_256", "lid_512", "lid_1024", "lid_2048", "lid_4017"),
}
COLUMNS = tuple(column for columns in TASKS.values() for column in columns)
_NAMES = {column: f"mms-{column.removeprefix('asr_').replace('_', '-')}" for column in COLUMNS}
_NAMES["asr_fl102"] = "mms-1b-fl102"
CHECKPOINTS = {name: column for column, name in _NAMES.items()}

MAX_CHARS = 100  # of a request, in messages and comparisons


class Language(NamedTuple):
    """A published tag: ISO 639-3 code with or without script or dialect, and which checkpoints cover it.

    Coverage is True, False or None: not known. ``iso639_1`` is None where only the macrolanguage has a two-letter code.
    Identification labels carry no script or dialect.
    """

    code: str
    name: str
    iso639_1: str | None
    asr_1b_all: bool | None
    asr_1b_l1107: bool | None
    asr_fl102: bool | None
    tts: bool | None
    lid_126: bool | None
    lid_256: bool | None
    lid_512: bool | None
    lid_1024: bool | None
    lid_2048: bool | None
    lid_4017: bool | None

    def supports(self, task: str) -> bool:
        """Whether some published checkpoint of ``task`` ("asr", "tts", "lid") is known to cover it."""
        return any(getattr(self, column) for column in TASKS[task])

    def checkpoints(self, task: str | None = None) -> tuple[str, ...]:
        """The checkpoints, of all tasks or one, that are known to cover it: ("mms-1b-all", "mms-tts", "mms-lid-126").

        "mms-tts" stands for the language's own, facebook/mms-tts-CODE.
        """
        return tuple(_NAMES[column] for column in (COLUMNS if task is None else TASKS[task]) if getattr(self, column))


class Codes(NamedTuple):
    """Maps between the codes and names of ISO 639."""

    two_letter: dict[str, str]  # fr -> fra
    bibliographic: dict[str, str]  # fre -> fra
    macro_of: dict[str, str]  # cmn -> zho
    name_of: dict[str, str]  # fra -> French
    named: dict[tuple[str, ...], frozenset[str]]  # words of a name -> codes


def languages(*, task: str | None = None, checkpoint: str | None = None) -> list[Language]:
    """Return the published tags, of all or of those a task ("asr", "tts", "lid") or checkpoint is known to cover.

    ``checkpoint`` is e.g. "facebook/mms-1b-all", "mms-lid-126", "mms-tts". What mms-lid-512, -1024 and -2048 cover is
    unknown for nearly every language. Raises LanguageError for another task or checkpoint.
    """
    found = list(published().values())
    if task is not None:
        require(task, TASKS, what="task")
        found = [language for language in found if language.supports(task)]
    if checkpoint is not None:
        name = checkpoint.removeprefix("facebook/")
        require(name, CHECKPOINTS, what="checkpoint")
        found = [language for language in found if getattr(language, CHECKPOINTS[name])]
    return found


def require(value: str, known: Collection[str], *, what: str) -> None:
    """Raise LanguageError, which lists what is known, if ``value`` is not among it."""
    if value not in known:
        raise LanguageError(f"there is no {what} {quoted(value)}; known are {', '.join(known)}")


def quoted(value: object) -> str:
    """``value`` for a message: on one line, and no longer than that."""
    text = repr(value) if isinstance(value, str | None) else type(value).__name__
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…"


@lru_cache(maxsize=1 << 14)
def plain(tag: str) -> str:
    """``tag`` without case, accents (six synthesis tags are spelled with them on the hub) and "_" against "-"."""
    letters = unicodedata.normalize("NFKD", tag.casefold())
    return "".join(char for char in letters if not unicodedata.combining(char)).replace("_", "-")


def words(name: str) -> tuple[str, ...]:
    """The words of a name in alphabetical order, so that "Chinese, Mandarin" is "Mandarin Chinese"."""
    return tuple(sorted(re.findall(r"\w+", re.sub("['’ʼʻ‘`]", "", plain(name)))))


@lru_cache(maxsize=1)
def published() -> dict[str, Language]:
    """The published tags and what covers them."""
    cells = {"1": True, "0": False, "": None}
    return {
        row["code"]: Language(
            row["code"], row["name"], row["iso639_1"] or None, *(cells[row[column]] for column in COLUMNS)
        )
        for row in _read("mms_languages.tsv.gz")
    }


@lru_cache(maxsize=1)
def codes() -> Codes:
    """The codes and names of ISO 639, with MMS's names beside them."""
    rows = _read("iso639.tsv.gz")
    names = {row["code"]: row["names"].split(";") for row in rows}
    for tag, language in published().items():
        if language.name:  # xdn has none
            names.setdefault(tag.split("-")[0], []).insert(0, language.name)
    named: dict[tuple[str, ...], set[str]] = {}
    for code, known in names.items():
        for name in known:
            named.setdefault(words(name), set()).add(code)
    return Codes(
        two_letter={row["iso639_1"]: row["code"] for row in rows if row["iso639_1"]},
        bibliographic={row["iso639_2b"]: row["code"] for row in rows if row["iso639_2b"]},
        macro_of={row["code"]: row["macrolanguage"] for row in rows if row["macrolanguage"]},
        name_of={code: known[0] for code, known in names.items()},
        named={words: frozenset(codes) for words, codes in named.items()},
    )


def _read(name: str) -> list[dict[str, str]]:
    text = gzip.decompress((files("mms_jax") / "data" / name).read_bytes()).decode("utf-8")
    return list(csv.DictReader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE))

"""Languages: what MMS covers, and any usual way to name a language -> a checkpoint's own tag.

Two tables in mms_jax/data, read on first use: mms_languages.tsv has a row per published tag with its coverage;
iso639.tsv is the part of the ISO 639 tables (SIL International, by way of python-iso639 2026.7.23, and three everyday
names) that two-letter and bibliographic codes, macrolanguages and names need.
Nothing here answers with another language than the one asked for.
"""

import csv
import re
import unicodedata
from collections.abc import Collection, Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from mms_jax.errors import LanguageError

TASKS = {
    "asr": ("asr_1b_all", "asr_1b_l1107", "asr_fl102"),
    "tts": ("tts",),
    "lid": ("lid_126", "lid_256", "lid_512", "lid_1024", "lid_2048", "lid_4017"),
}
PARTS = {"asr": "adapter", "tts": "voice", "lid": "label"}  # what a checkpoint has for a language
COLUMNS = tuple(column for columns in TASKS.values() for column in columns)
CHECKPOINTS = {f"mms-{column.removeprefix('asr_').replace('_', '-')}": column for column in COLUMNS}
CHECKPOINTS["mms-1b-fl102"] = CHECKPOINTS.pop("mms-fl102")

# ISO 15924 codes of the scripts in the tags of MMS ("azj-script_latin")
SCRIPTS = {
    "arab": "arabic",
    "cans": "syllabics",
    "cyrl": "cyrillic",
    "deva": "devanagari",
    "ethi": "ethiopic",
    "hans": "simplified",
    "hant": "traditional",
    "khmr": "khmer",
    "latn": "latin",
    "telu": "telugu",
    "tfng": "tifinagh",
}
# Withdrawn two-letter codes that are still written (Java, Android, Whisper).
WITHDRAWN = {"in": "id", "iw": "he", "ji": "yi", "jw": "jv", "mo": "ro"}
# The language that CLDR and RFC 5646 take a macrolanguage's code to mean, for those that have tags with a script.
PREDOMINANT = {"aze": "azj", "bal": "bcc", "kur": "kmr", "rom": "rmy", "zho": "cmn"}

MIN_SIMILARITY = 0.6  # below this a name has little in common with what was asked for
RELATED = 2.0  # the likeness of a macrolanguage and its members
SHOWN = 12  # candidates in one message
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


class _Tag(NamedTuple):
    """What a tag says: the ISO 639-3 code, script and dialect in MMS's words, and whether it came as two letters."""

    code: str
    script: str | None
    dialect: str | None
    two_letters: bool


class _Codes(NamedTuple):
    two_letter: dict[str, str]  # fr -> fra
    bibliographic: dict[str, str]  # fre -> fra
    macro_of: dict[str, str]  # cmn -> zho
    name_of: dict[str, str]  # fra -> French
    named: dict[tuple[str, ...], frozenset[str]]  # words of a name -> codes


def resolve_language(
    language: str, available: Collection[str], *, source: str = "this checkpoint", task: str | None = None
) -> str:
    """Return the tag in ``available`` for ``language``: an ISO 639 code, a BCP 47 tag, an English name or a full tag.

    ``task`` ("asr", "tts", "lid") chooses an error's words. Raises LanguageError, naming ``source`` and the nearest
    tags, if it is unknown, not available, or means several of the available ones (scripts or dialects of one language,
    members of a macrolanguage).
    """
    if not isinstance(language, str) or not language.strip():
        raise LanguageError(f"a language must be a code, tag or name, got {_quoted(language)}")
    if language in available:
        return language
    asked = language.strip()
    if len(asked) > MAX_CHARS:
        raise LanguageError(_absent(asked, available, source=source, task=task))
    if len(meant := _meant(asked)) > 1:  # even if only one of them is available, the other may be meant
        raise LanguageError(
            f"{_quoted(asked)} is several languages: {_listed(sorted(meant))}; pass a code in lower case"
        )
    plain = _plain(asked)
    candidates = [tag for tag in available if _plain(tag) == plain]
    for code in meant if not candidates else ():
        candidates = _candidates(asked, code, available)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise LanguageError(f"{_quoted(language)} is ambiguous in {source}: pass one of {_listed(sorted(candidates))}")
    raise LanguageError(_absent(asked, available, source=source, task=task))


def languages(*, task: str | None = None, checkpoint: str | None = None) -> list[Language]:
    """Return the published tags, of all or of those a task ("asr", "tts", "lid") or checkpoint is known to cover.

    ``checkpoint`` is e.g. "facebook/mms-1b-all", "mms-lid-126", "mms-tts". What mms-lid-512, -1024 and -2048 cover is
    unknown for nearly every language. Raises LanguageError for another task or checkpoint.
    """
    found = list(_published().values())
    if task is not None:
        _require(task, TASKS, what="task")
        found = [language for language in found if language.supports(task)]
    if checkpoint is not None:
        name = checkpoint.removeprefix("facebook/")
        _require(name, CHECKPOINTS, what="checkpoint")
        found = [language for language in found if getattr(language, CHECKPOINTS[name])]
    return found


def language_name(tag: str) -> str | None:
    """Return the English name of a tag or code, None if it is unknown: "fra" and "fr-FR" are "French"."""
    if tag in _published():
        return _published()[tag].name
    parsed = _parse(tag)
    return _codes().name_of.get(parsed.code) if parsed else None


def nearest(language: str, available: Collection[str], *, limit: int = 5) -> list[str]:
    """Return up to ``limit`` available tags most like ``language``, best first; none where nothing is alike.

    The same language in another script comes first, then its macrolanguage and that one's other members; only where
    there are none of these, languages with a similar name or, for an unknown code or tag, a similar code.
    """
    wanted = language.strip()[:MAX_CHARS]
    meant = _meant(wanted) or frozenset(filter(None, [_canonical(_subtags(wanted)[0])]))
    known = [_codes().name_of[code] for code in meant if code in _codes().name_of]
    names = [_words(name) for name in known] or [_words(wanted)]
    typed = "" if known else _plain(wanted)
    scored = [(_likeness(tag, meant=meant, names=names, typed=typed), tag) for tag in available]
    least = RELATED if any(score >= RELATED for score, _ in scored) else MIN_SIMILARITY
    best = sorted((-score, not _is_major(tag), tag) for score, tag in scored if score >= least)
    return [tag for _, _, tag in best[:limit]]


def _candidates(asked: str, code: str, available: Collection[str]) -> list[str]:
    """Return the available tags that ``asked``, a way to say ``code``, may mean: one if it is clear, none if absent."""
    parsed = _parse(asked) or _Tag(code, None, None, two_letters=True)  # a name is as loose as two letters
    own = [tag for tag in available if _code(tag) == code]
    if own or not parsed.two_letters:
        return _fitting(own, parsed)
    members = [tag for tag in available if _codes().macro_of.get(_code(tag)) == code]
    if parsed.script and len({_code(tag) for tag in members}) > 1:
        # zh-Hans is Mandarin; zh-Hant is not Cantonese because that alone has a tag in traditional characters
        return [tag for tag in members if _is_usual(tag, code, parsed.script)] or members
    return _fitting(members, parsed)


def _is_usual(tag: str, macrolanguage: str, script: str) -> bool:
    parsed = _parse(tag)
    return parsed is not None and parsed.code == PREDOMINANT.get(macrolanguage) and parsed.script == script


def _fitting(tags: Iterable[str], asked: _Tag) -> list[str]:
    """Return the tags in the script and dialect asked for; one that states neither may be in any script."""
    parsed = [(tag, _parse(tag)) for tag in tags]
    same = [(tag, said) for tag, said in parsed if said and asked.dialect in (None, said.dialect)]
    if asked.script is None:
        return [tag for tag, _ in same]
    exact = [tag for tag, said in same if said.script == asked.script]
    return exact or [tag for tag, said in same if said.script is None and said.dialect is None]


def _meant(asked: str) -> frozenset[str]:
    """Return the ISO 639-3 codes that ``asked`` stands for; unknown codes stand for themselves."""
    parsed = _parse(asked)
    codes = frozenset([parsed.code]) if parsed else frozenset()
    if re.fullmatch("[a-z]{2,3}|[A-Z]{2,3}", asked):
        return codes  # "dan" is Danish; "Dan" may be the language of that name
    named = _codes().named.get(_words(asked), frozenset())
    macrolanguages = {_codes().macro_of.get(code) for code in named}
    return codes | (named - macrolanguages)  # "Nepali" is npi, and the macrolanguage nep too


@lru_cache(maxsize=1 << 14)
def _parse(tag: str) -> _Tag | None:
    """Read a tag; None if some part of it is none of language, script, dialect, region."""
    first, *rest = _subtags(tag)
    code = _canonical(first)
    script = dialect = None
    while rest and code is not None:
        part = rest.pop(0)
        if part == "script" and rest and script is None:
            script = SCRIPTS.get(rest[0], rest.pop(0))
        elif part == "dialect" and rest:
            dialect, rest = _plain("".join(rest)), []
        elif script is None and (part in SCRIPTS or part in SCRIPTS.values()):
            script = SCRIPTS.get(part, part)
        elif len(part) == 3 and _codes().macro_of.get(part) == code:  # zh-yue
            code = part
        elif not re.fullmatch("[a-z]{2}|[0-9]{3}", part):  # a region changes nothing
            return None
    return None if code is None else _Tag(code, script, dialect, len(first) == 2 and code == _canonical(first))


def _subtags(tag: str) -> list[str]:
    return re.split("[-_.@]", unicodedata.normalize("NFKC", tag.strip()).casefold())


def _canonical(code: str) -> str | None:
    """Return the ISO 639-3 code of a two- or three-letter code; None if it has another form or two unknown letters."""
    if re.fullmatch("[a-z]{2}", code):
        return _codes().two_letter.get(WITHDRAWN.get(code, code))
    return _codes().bibliographic.get(code, code) if re.fullmatch("[a-z]{3}", code) else None


def _code(tag: str) -> str:
    """Return the ISO 639-3 code in an available tag; the tag itself if it is one of a user's own making."""
    parsed = _parse(tag)
    return parsed.code if parsed else tag


@lru_cache(maxsize=1 << 14)
def _plain(tag: str) -> str:
    """``tag`` without case, accents (six synthesis tags are spelled with them on the hub) and "_" against "-"."""
    letters = unicodedata.normalize("NFKD", tag.casefold())
    return "".join(char for char in letters if not unicodedata.combining(char)).replace("_", "-")


def _words(name: str) -> tuple[str, ...]:
    """The words of a name in alphabetical order, so that "Chinese, Mandarin" is "Mandarin Chinese"."""
    return tuple(sorted(re.findall(r"\w+", re.sub("['’ʼʻ‘`]", "", _plain(name)))))


def _likeness(tag: str, *, meant: Collection[str], names: Iterable[tuple[str, ...]], typed: str) -> float:
    """Return 3 for the same language, RELATED or more in its macrolanguage, else how alike names or codes are, to 1."""
    code, macro_of = _code(tag), _codes().macro_of
    if code in meant:
        return 3.0
    families = {macro_of.get(wanted, wanted) for wanted in meant}
    if macro_of.get(code, code) in families:
        return RELATED + 0.5 * (code in PREDOMINANT.values())
    own = _words(language_name(tag) or "")
    alike = [_similarity(" ".join(own), " ".join(wanted)) for wanted in names if own]
    contained = [0.9 for wanted in names if wanted and set(wanted) <= set(own)]
    return max([*alike, *contained, _similarity(_plain(tag), typed)])


def _similarity(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other)
    return matcher.ratio() if one and other and matcher.quick_ratio() >= MIN_SIMILARITY else 0.0


def _is_major(tag: str) -> bool:
    """Whether the language has a two-letter code: of two equally alike ones it is likelier to be meant."""
    return tag in _published() and _published()[tag].iso639_1 is not None


def _absent(language: str, available: Collection[str], *, source: str, task: str | None) -> str:
    name = language_name(language) if len(language) <= MAX_CHARS else None
    meaning = "" if name is None or _words(name) == _words(language) else f" ({name})"
    lacking = "is not available" if task is None else f"has no {PARTS[task]}"
    alike = nearest(language, available)
    suggestion = f"; nearest: {_listed(alike)}" if alike else ""
    if not alike and 0 < len(available) <= SHOWN:
        return f"{_quoted(language)}{meaning} {lacking} in {source}; available: {_listed(sorted(available))}"
    count = f"{len(available):,} language{'s' * (len(available) != 1)} available: mms-jax languages"
    return f"{_quoted(language)}{meaning} {lacking} in {source}{suggestion}; {count}"


def _listed(tags: Collection[str]) -> str:
    shown = [f"{tag} ({name})" if (name := language_name(tag)) else tag for tag in [*tags][:SHOWN]]
    return ", ".join(shown) + (f" and {len(tags) - SHOWN} more" if len(tags) > SHOWN else "")


def _quoted(language: object) -> str:
    text = repr(language) if isinstance(language, str | None) else type(language).__name__
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…"


def _require(value: str, known: Collection[str], *, what: str) -> None:
    if value not in known:
        raise LanguageError(f"there is no {what} {_quoted(value)}; known are {', '.join(known)}")


def _read_table(name: str) -> list[dict[str, str]]:
    text = (files("mms_jax") / "data" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE))


@lru_cache(maxsize=1)
def _published() -> dict[str, Language]:
    cells = {"1": True, "0": False, "": None}
    return {
        row["code"]: Language(
            row["code"], row["name"], row["iso639_1"] or None, *(cells[row[column]] for column in COLUMNS)
        )
        for row in _read_table("mms_languages.tsv")
    }


@lru_cache(maxsize=1)
def _codes() -> _Codes:
    rows = _read_table("iso639.tsv")
    names = {row["code"]: row["names"].split(";") for row in rows}
    for tag, language in _published().items():
        names.setdefault(tag.split("-")[0], []).insert(0, language.name)
    named: dict[tuple[str, ...], set[str]] = {}
    for code, known in names.items():
        for name in known:
            named.setdefault(_words(name), set()).add(code)
    return _Codes(
        two_letter={row["iso639_1"]: row["code"] for row in rows if row["iso639_1"]},
        bibliographic={row["iso639_2b"]: row["code"] for row in rows if row["iso639_2b"]},
        macro_of={row["code"]: row["macrolanguage"] for row in rows if row["macrolanguage"]},
        name_of={code: known[0] for code, known in names.items()},
        named={words: frozenset(codes) for words, codes in named.items()},
    )

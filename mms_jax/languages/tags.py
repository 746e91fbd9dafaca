"""What a tag, code or name says, and which of some tags it may mean."""

import re
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import NamedTuple

from mms_jax.languages.table import codes, plain, published, words

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
# Of these, the one whose code and name mean it in any script: everybody's "zh" is Mandarin, as "ku" is not Kurmanji.
ALWAYS = {"zho"}
# Where Chinese may be Cantonese, or is not written in the characters of MMS: the code alone is not clear there.
UNCLEAR = {("zho", "hk"), ("zho", "mo"), ("zho", "tw")}


class Tag(NamedTuple):
    """What a tag says: the ISO 639-3 code, script and dialect in MMS's words, and whether it came as two letters."""

    code: str
    script: str | None
    dialect: str | None
    two_letters: bool


def language_name(tag: str) -> str | None:
    """Return the English name of a tag or code, None if it is unknown: "fra" and "fr-FR" are "French"."""
    if tag in published():
        return published()[tag].name or None
    parsed = parse(tag)
    return codes().name_of.get(parsed.code) if parsed else None


def candidates(asked: str, code: str, available: Iterable[str]) -> list[str]:
    """Return the available tags that ``asked``, a way to say ``code``, may mean: one if it is clear, none if absent."""
    parsed = parse(asked) or Tag(code, None, None, two_letters=True)  # a name is as loose as two letters
    family = [(tag, code_of(tag)) for tag in available]
    own = [tag for tag, its in family if its == code]
    if own or not parsed.two_letters:
        return fitting(own, parsed)
    members = [(tag, its) for tag, its in family if codes().macro_of.get(its) == code]
    if code in ALWAYS:
        return fitting([tag for tag, its in members if its == PREDOMINANT[code]], parsed)
    tags = [tag for tag, _ in members]
    if parsed.script and len({its for _, its in members}) > 1:
        # az-Latn is the northern language; az-Arab is not the southern one because that alone has no tag in Latin
        return [tag for tag in tags if _is_usual(tag, code, parsed.script)] or tags
    return fitting(tags, parsed)


def _is_usual(tag: str, macrolanguage: str, script: str) -> bool:
    parsed = parse(tag)
    return parsed is not None and parsed.code == PREDOMINANT.get(macrolanguage) and parsed.script == script


def fitting(tags: Iterable[str], asked: Tag) -> list[str]:
    """Return the tags in the script and dialect asked for; one that states neither may be in any script."""
    parsed = [(tag, parse(tag)) for tag in tags]
    same = [(tag, said) for tag, said in parsed if said and asked.dialect in (None, said.dialect)]
    if asked.script is None:
        return [tag for tag, _ in same]
    exact = [tag for tag, said in same if said.script == asked.script]
    return exact or [tag for tag, said in same if said.script is None and said.dialect is None]


def meant(asked: str) -> frozenset[str]:
    """Return the ISO 639-3 codes that ``asked`` stands for; unknown codes stand for themselves."""
    parsed = parse(asked)
    own = frozenset([parsed.code]) if parsed else frozenset()
    if re.fullmatch("[a-z]{2,3}|[A-Z]{2,3}", asked):
        return own  # "dan" is Danish; "Dan" may be the language of that name
    named = codes().named.get(words(asked), frozenset())
    macrolanguages = {codes().macro_of.get(code) for code in named}
    return own | (named - macrolanguages)  # "Nepali" is npi, and the macrolanguage nep too


@lru_cache(maxsize=1 << 14)
def parse(tag: str) -> Tag | None:
    """Read a tag; None if some part of it is none of language, script, dialect, region."""
    first, *rest = subtags(tag)
    code = canonical(first)
    script = dialect = None
    while rest and code is not None:
        part = rest.pop(0)
        if part == "script" and rest and script is None:
            script = SCRIPTS.get(rest[0], rest.pop(0))
        elif part == "dialect" and rest:
            dialect, rest = plain("".join(rest)), []
        elif script is None and (part in SCRIPTS or part in SCRIPTS.values()):
            script = SCRIPTS.get(part, part)
        elif len(part) == 3 and codes().macro_of.get(part) == code:  # zh-yue
            code = part
        elif (code, part) in UNCLEAR or not re.fullmatch("[a-z]{2}|[0-9]{3}", part):  # other regions change nothing
            return None
    return None if code is None else Tag(code, script, dialect, len(first) == 2 and code == canonical(first))


def subtags(tag: str) -> list[str]:
    """The parts of a tag, in lower case."""
    return re.split("[-_.@]", unicodedata.normalize("NFKC", tag.strip()).casefold())


def canonical(code: str) -> str | None:
    """Return the ISO 639-3 code of a two- or three-letter code; None if it has another form or two unknown letters."""
    if re.fullmatch("[a-z]{2}", code):
        return codes().two_letter.get(WITHDRAWN.get(code, code))
    return codes().bibliographic.get(code, code) if re.fullmatch("[a-z]{3}", code) else None


def code_of(tag: str) -> str:
    """Return the ISO 639-3 code in an available tag; the tag itself if it is one of a user's own making."""
    parsed = parse(tag)
    return parsed.code if parsed else tag


def is_member(tag: str, wanted: Collection[str]) -> bool:
    """Whether a tag's language, or the macrolanguage that it belongs to, is one of the codes."""
    code = code_of(tag)
    return code in wanted or codes().macro_of.get(code) in wanted


def labelled(label: str, available: Iterable[str]) -> list[str]:
    """Return the available tags of what identification calls ``label``: its own, or members of a macrolanguage."""
    tags = list(available)
    return [tag for tag in tags if code_of(tag) == label] or [tag for tag in tags if is_member(tag, {label})]

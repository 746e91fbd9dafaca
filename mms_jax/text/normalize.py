"""Text as MMS's data preparation normalises it before alignment, with the way back to the words as they were written.

The result equals that of ``text_normalize`` of fairseq's examples/mms/data_prep, accidents included, because published
aligners and transcripts were made with it. The accidents worth knowing:

- Of several curly apostrophes within one word only the last becomes a straight one: "l’ami’s" is "l ami's".
- "ٱ" becomes "ا" in every language, not in Arabic alone.
- A number goes where it is a whole word: "2nd" and "1-2" stay, "½" (which is spelt 1⁄2, hence "1 2") goes. But a text
  that is one number and nothing else stays unless white space or punctuation is around it: "123", but not "123.".
- Hyphens and dashes but "―" (U+2015) are no punctuation; nor are straight apostrophes.

One difference is deliberate: for Javanese the reference spells all letters in ASCII with the package Unidecode (GPL);
here letters lose their accents and no more, so "é" is "e" for both, but "ø" stays, which there is "o".
"""

import functools
import re
import unicodedata
from typing import NamedTuple

from mms_jax.errors import TextError
from mms_jax.text.romanize import romanize

__all__ = ["STAR", "SpokenWord", "normalize", "spoken_words"]

STAR = "<star>"  # stands for speech that the text does not have

# What becomes a space. MMS's list was collected from its texts, so it follows no Unicode property. These are those of
# its 252 characters that are left by NFKC, which comes first.
_PUNCTUATION = (
    '!"#$%&()*+,./:;<=>?@[]^_{|}~¡£©«¬°¶·»¿×ˇ€→−≪≫⋯⌊⌋⌞⌟─'
    "\u2015\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f†‡•‧‰‸‹›※⁄\u2060\u206f\ufffd"
    "՚՛՜՝՞՟։\u05be،؛؞؟\u0640۔।॥৷ๆໆ༄༅།༎၊။၌၍၎၏႟፡።፣፤፥፦᙭᙮។៕៖ៗ៚⵰"
    "、。々〈〉《》「」『』【】〔〕・ー꓾꓿꤮꤯﴾﴿"
    "\b\x1a\x81\x8d\x8f\x90\x92\x93\x94\x9d"
)
_PRIVATE_PUNCTUATION = (  # private-use code points, punctuation in the fonts of some of the texts
    "e003 e013 e01d e040 e041 e043 e06b e06d e070 e203 e231 e232 e233 e234 e236 e290 e291 e292 e293 e294 e295 e296 "
    "e2d9 e2db e2de e2f9 e2fa e2fb e2fc e2fe e313 e328 e329 e32a e32b e32c e32d e32e e492 e493 e514 e516 e517 e518 "
    "ea01 ea7b f171 f172 f173 f218 f21d f50e f50f f511 f513 f518 f519 f521 f522 f523 f529 f52d f62d f7d0 f7e8"
)
_PUNCTUATION_OF = {"tha": "\u200d"}
# What vanishes: marks of direction and joining, and Arabic vowel signs.
_DELETED = frozenset("\u200b\u200c\u200e\u200f\u202a\u202c\u0656\u0657") | frozenset(map(chr, range(0x64B, 0x653)))
_DELETED_OF = {"mon": "\u00ad", "khk": "\u00ad", "heb": "".join(map(chr, range(0x5B0, 0x5D0)))}
_WITHOUT_ACCENTS = frozenset({"jav"})
_ZEROS = "0০០०୦۰꤀൦၀"  # the digits of these scripts make a number; those of others do not
_ESCAPES = ("&lt;", "&gt;", "&nbsp")  # of HTML, as far as MMS's texts have them; a ";" that is left is punctuation
_CURLY = "\u2018\u2019\u201b"

_DIGIT = re.compile(r"\d")
_RUN = re.compile(r"\S+")
_ACCENT = re.compile("[\u0300-\u036f]+")
_DIGITS = "[" + "".join(f"{zero}-{chr(ord(zero) + 9)}" for zero in _ZEROS) + "]"
_NUMBER = re.compile(rf"(?<=\s){_DIGITS}++(?!\S)|^{_DIGITS}++(?=\s)")
_NOT_ROMAN = re.compile("[^a-z']+")

# Languages whose code the reference gives to uroman; for others it romanises without one.
_UROMAN_LANGUAGES = (
    "ara bel bul deu ell eng fas grc heb kaz kir lav lit mkd mkd2 oss pnt pus rus srp srp2 tur uig ukr yid"
)
# Romanised words remembered, at most 20 MB; one takes uroman 0.2 ms. Longer ones, where nothing separates words, rarely
# come again.
_WORDS_KEPT, _LONGEST_KEPT = 1 << 16, 32


class SpokenWord(NamedTuple):
    """A word of a text: ``original`` as it is written, ``spoken`` what of it is aligned ("" where nothing is)."""

    original: str
    spoken: str


def normalize(
    text: str,
    *,
    language: str | None = None,
    lower_case: bool = True,
    remove_numbers: bool = True,
    remove_brackets: bool = False,
) -> str:
    """Return ``text`` without punctuation, in lower case, its words separated by one space.

    ``language``: ISO 639-3, or a tag that starts with one; Arabic, Hebrew, Javanese, Mongolian and Thai have rules of
    their own. ``lower_case`` False keeps capitals. ``remove_numbers`` False keeps words of digits only. Brackets that
    hold a digit, "(Sam 23:17)", go with all that is in them, and with ``remove_brackets`` all round brackets do.
    Takes time in proportion to the text (1 MB: 0.5 s).
    Raises TextError if ``text`` is not a str or has a NUL or half of a surrogate pair in it.
    """
    _check(text)
    cleaned = _cleaned(
        text,
        code=_code(language),
        lower_case=lower_case,
        remove_numbers=remove_numbers,
        remove_brackets=remove_brackets,
    )
    return " ".join(cleaned.split())


def spoken_words(text: str, *, language: str | None, romanized: bool) -> list[SpokenWord]:
    """Return each word of ``text`` (what white space separates) once, in order, with what of it is aligned.

    Unless ``romanized``, the non-empty ``spoken`` joined by spaces are ``normalize(text)``. A word of several parts has
    them joined by one space. ``romanized``: in the letters a to z and the apostrophe, as uroman spells each normalised
    word by itself; "mother-in-law" is then "mother in law", and numerals written in Chinese, which uroman turns into
    digits, are "". A word ``<star>`` stays as it is.
    Raises TextError as ``normalize`` does, or if uroman fails.
    """
    _check(text)
    words = text.split()
    code = _code(language)
    # Line ends hold the words apart: no word has one, and no step makes or takes one. The white space at the ends is
    # kept because that of a text of one number decides whether it is kept.
    edges = text[:1].isspace() * " ", text[-1:].isspace() * " "
    cleaned = _cleaned(edges[0] + "\n".join(words) + edges[1], code=code).split("\n")
    return [
        SpokenWord(word, STAR if word == STAR else _spoken(parts.split(), code, romanized))
        for word, parts in zip(words, cleaned if words else (), strict=True)
    ]


def _spoken(parts: list[str], code: str | None, romanized: bool) -> str:
    if not romanized:
        return " ".join(parts)
    lcode = code if code in _UROMAN_LANGUAGES.split() else None
    romanized_parts = ((_remembered if len(part) <= _LONGEST_KEPT else _romanized)(part, lcode) for part in parts)
    return " ".join(filter(None, romanized_parts))


@functools.lru_cache(maxsize=_WORDS_KEPT)
def _remembered(word: str, lcode: str | None) -> str:
    return _romanized(word, lcode)


def _romanized(word: str, lcode: str | None) -> str:
    return " ".join(_NOT_ROMAN.sub(" ", romanize(word, language=lcode).lower()).split())


def _check(text: str) -> None:
    if not isinstance(text, str):
        raise TextError(f"a text to normalise must be a str, got {type(text).__name__}")
    if (place := text.find("\0")) >= 0:
        raise TextError(f"the text has a NUL at character {place}; if it is from a file, that is no UTF-8 text")
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise TextError(
            f"the text has half of a surrogate pair ({text[cause.start]!r}) at character {cause.start}; "
            "read it as UTF-8 without errors='surrogateescape'"
        ) from cause


def _code(language: str | None) -> str | None:
    return None if language is None else language.split("-")[0]


def _cleaned(
    text: str,
    *,
    code: str | None,
    lower_case: bool = True,
    remove_numbers: bool = True,
    remove_brackets: bool = False,
) -> str:
    """Return the normalised text with its white space as it comes; line ends are all kept, and none is added."""
    text = unicodedata.normalize("NFKC", text)
    if lower_case:
        text = text.lower()
    text = _without_brackets(text, numbered=True)
    if remove_brackets:
        text = _without_brackets(text, numbered=False)
    for escape in _ESCAPES:
        text = text.replace(escape, "")
    text = _RUN.sub(_straight_apostrophe, text).translate(_table(code))
    if remove_numbers:
        text = _NUMBER.sub(" ", text)
    if code in _WITHOUT_ACCENTS:
        text = unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", text)))
    return text


def _without_brackets(text: str, *, numbered: bool) -> str:
    """Replace round brackets by a space, up to the next closing one; with ``numbered`` only those that hold a digit."""
    *pieces, rest = text.split(")")
    kept: list[str] = []
    for piece in pieces:
        before, bracket, inside = piece.partition("(")
        if bracket and (not numbered or _DIGIT.search(inside)):
            kept += before, " ", "\n" * inside.count("\n")
        else:
            kept += piece, ")"
    return "".join(kept) + rest


def _straight_apostrophe(match: re.Match[str]) -> str:
    """Return the run of characters with the last curly apostrophe that has one on either side made straight."""
    run = match[0]
    place = max(run.rfind(curly, 1, -1) for curly in _CURLY)
    return run if place < 0 else f"{run[:place]}'{run[place + 1 :]}"


@functools.cache
def _table(code: str | None) -> dict[int, str | None]:
    """Return what each character becomes; ``code`` counts only where a language has characters of its own."""
    if code not in _PUNCTUATION_OF and code not in _DELETED_OF and code is not None:
        return _table(None)
    table: dict[int, str | None] = {int(point, 16): " " for point in _PRIVATE_PUNCTUATION.split()}
    deleted = _DELETED | frozenset(_DELETED_OF.get(code or "", ""))
    table |= dict.fromkeys(map(ord, deleted), None) | {ord("ٱ"): "ا"}
    return table | dict.fromkeys(map(ord, _PUNCTUATION + _PUNCTUATION_OF.get(code or "", "")), " ")

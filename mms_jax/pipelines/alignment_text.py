"""A transcript as the tokens that are aligned, and which of them spell which of its words."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mms_jax.ctc.align import STAR
from mms_jax.errors import AlignmentError, LanguageError, SettingError
from mms_jax.languages import languages, resolve_language
from mms_jax.text.ctc import CTCVocabulary
from mms_jax.text.normalize import STAR as STAR_WORD
from mms_jax.text.normalize import SpokenWord, spoken_words
from mms_jax.text.vocabulary import shown

# Where to allow for speech that the text does not have, beside each <star> that is written in it.
Stars = Literal["start", "segments"]

# Of the letters of a text: with more of them outside the vocabulary it is a text of another script or language.
MOST_UNKNOWN = 1 / 3
ROMAN_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz'")
_LETTERS_SHOWN = 12


class Spelling(NamedTuple):
    """A word of the text, and what of it is aligned."""

    text: str  # as it was written
    segment: int
    tokens: tuple[int, ...]  # (STAR,) for any sound; () where nothing is spoken
    letters: tuple[str, ...]  # of the vocabulary, one for each token; " " for the delimiter between parts of a word
    dropped: str  # letters that the vocabulary lacks


@dataclass(frozen=True)
class Plan:
    """What is aligned: tokens in order, and where those of each word are among them."""

    segments: tuple[str, ...]
    words: tuple[Spelling, ...]
    tokens: np.ndarray  # int64 [U]
    places: tuple[slice, ...]  # of each word: empty where nothing of it is spoken

    @property
    def dropped(self) -> dict[str, int]:
        """Letters that the vocabulary lacks, and how many of each there are."""
        return dict(Counter(letter for word in self.words for letter in word.dropped))


def is_roman(vocabulary: CTCVocabulary) -> bool:
    """Whether its letters are those of romanised text and no others.

    The published aligner's vocabulary has ``<pad>`` beside ``<blank>``: what is in angle brackets is no letter.
    """
    return {token.lower() for token in vocabulary.letters if not token.startswith("<")} <= ROMAN_LETTERS


def segments_of(text: Any) -> tuple[str, ...]:
    """The lines of a text that are not empty, or the strings of a sequence of them, without space around.

    Raises:
        AlignmentError: nothing is left, or it is no text.
    """
    lines = text.splitlines() if isinstance(text, str) else text
    if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
        raise AlignmentError(f"a transcript is a str, or a list of str, one for each segment; got {shown(text)}")
    segments = tuple(line.strip() for line in lines if line.strip())
    if not segments:
        raise AlignmentError("the text is empty; give the words that are spoken")
    return segments


def texts_of(text: Any, num_items: int, *, many: bool) -> list[Any]:
    """The text of each item.

    Raises:
        AlignmentError: there are not as many.
    """
    if not many:
        return [text]
    texts = [text] if isinstance(text, str) or not isinstance(text, Iterable) else list(text)
    if len(texts) != num_items:
        raise AlignmentError(f"{num_items} recording(s), but {len(texts)} text(s); give a list of one text for each")
    return texts


def text_languages(language: Any, num_items: int) -> list[str | None]:
    """The ISO 639-3 code of each item's text, for a checkpoint that names no languages itself.

    Raises:
        LanguageError: one that MMS does not know, or not one for each.
    """
    given = [language] * num_items if language is None or isinstance(language, str) else list(language)
    if len(given) != num_items:
        raise LanguageError(f"{num_items} item(s), but {len(given)} language(s); give one for all or one each")
    known = sorted({one.code.split("-")[0] for one in languages()})
    source = "the published checkpoints"
    return [None if one is None else resolve_language(one, known, source=source) for one in given]


def make_plan(
    segments: Sequence[str],
    vocabulary: CTCVocabulary,
    *,
    language: str | None,
    romanize: bool,
    star: Stars | None,
) -> Plan:
    """Spell a text with a vocabulary's tokens; where it has a word delimiter, that stands between words.

    Args:
        segments: parts of the text, such as its lines.
        vocabulary: of the model's head.
        language: of the text; for its normalisation.
        romanize: whether the vocabulary's letters are those of romanised text.
        star: "start" allows for any speech before the text, "segments" before, between and behind its segments too.

    Raises:
        AlignmentError: over ``MOST_UNKNOWN`` of its letters are outside the vocabulary, or nothing of it is spoken.
        TextError: it cannot be normalised or romanised.
    """
    if star is not None and star not in ("start", "segments"):
        raise SettingError(f"star is {star!r}; it must be 'start', 'segments' or None")
    speller = _Speller(vocabulary)
    words = tuple(
        speller.spell(word, number)
        for number, segment in enumerate(segments)
        for word in spoken_words(segment, language=language, romanized=romanize)
    )
    _check_letters(words, vocabulary, romanize=romanize)
    tokens, places = _laid_out(words, star=star, delimiter=vocabulary.delimiter_id)
    return Plan(tuple(segments), words, np.array(tokens, np.int64), places)


class _Speller:
    def __init__(self, vocabulary: CTCVocabulary):
        self._letters = vocabulary.letters
        self._longest = max(map(len, self._letters), default=1)
        self._ids = (
            self._letters if vocabulary.delimiter_id is None else {**self._letters, " ": vocabulary.delimiter_id}
        )

    def spell(self, word: SpokenWord, segment: int) -> Spelling:
        """Its letters by the longest tokens that fit; a word all of whose letters are unknown can be any sound."""
        if word.spoken == STAR_WORD:
            return Spelling(word.original, segment, (STAR,), (STAR_WORD,), "")
        letters: list[str] = []
        dropped = ""
        rest = word.spoken
        while rest:
            letter = self._first(rest)
            if letter is None:
                dropped += rest[0] if _is_letter(rest[0]) else ""
                rest = rest[1:]
            else:
                letters.append(letter)
                rest = rest[len(letter) :]
        if dropped and not letters:
            return Spelling(word.original, segment, (STAR,), (STAR_WORD,), dropped)
        return Spelling(word.original, segment, tuple(self._ids[one] for one in letters), tuple(letters), dropped)

    def _first(self, text: str) -> str | None:
        """The longest token that ``text`` starts with, in whichever case the vocabulary has."""
        for length in range(min(self._longest, len(text)), 0, -1):
            start = text[:length]
            for form in (start, start.upper(), start.lower()):
                if form in self._ids and len(form) == length:
                    return form
        return None


def _is_letter(char: str) -> bool:
    """Whether it is spoken: a letter, a mark or a number, not a dash."""
    return unicodedata.category(char)[0] in "LMN"


def _laid_out(
    words: Iterable[Spelling], *, star: Stars | None, delimiter: int | None
) -> tuple[list[int], tuple[slice, ...]]:
    """The tokens, and the place of each word among them; no star that nobody wrote stands beside another one."""
    tokens: list[int] = []
    places: list[slice] = []
    segment, allowed = 0, star is not None  # other speech, before the next word
    for word in words:
        if word.segment != segment:
            segment, allowed = word.segment, allowed or star == "segments"
        if word.tokens:
            between = STAR not in (*tokens[-1:], word.tokens[0])
            if allowed and between:
                tokens.append(STAR)
            elif delimiter is not None and tokens and between:
                tokens.append(delimiter)
            allowed = False
        places.append(slice(len(tokens), len(tokens) + len(word.tokens)))
        tokens += word.tokens
    if star == "segments" and tokens[-1] != STAR:
        tokens.append(STAR)
    return tokens, tuple(places)


def _check_letters(words: Sequence[Spelling], vocabulary: CTCVocabulary, *, romanize: bool) -> None:
    known = sum(len(word.tokens) for word in words if word.tokens != (STAR,))
    unknown = Counter(letter for word in words for letter in word.dropped)
    if not known and not unknown:
        raise AlignmentError(
            f"the text has no word to align ({shown(words[0].text)}): numbers and punctuation are left out, and <star> "
            "stands for anything; write numbers in words"
        )
    if unknown.total() > MOST_UNKNOWN * (known + unknown.total()):
        some = " ".join(letter for letter, _ in unknown.most_common(_LETTERS_SHOWN))
        script = unicodedata.name(unknown.most_common(1)[0][0], "UNNAMED").split()[0]
        remedy = "choose the text's own language" + (
            ", or romanize=True, which spells any script in Latin letters"
            if is_roman(vocabulary) and vocabulary.delimiter_id is None and not romanize
            else ", or an aligner of romanised text, which takes any"
        )
        raise AlignmentError(
            f"{unknown.total()} of the text's {known + unknown.total()} letters are not in the vocabulary "
            f"({vocabulary.source}), most of them {script}: {some}; {remedy}"
        )

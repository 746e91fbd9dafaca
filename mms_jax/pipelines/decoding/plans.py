"""What one language is searched with: its vocabulary, language model, lexicon and hotwords, held against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mms_jax.errors import LanguageModelError
from mms_jax.pipelines.decoding.files import LanguageModel, Lexicon
from mms_jax.text.ctc import CTCVocabulary
from mms_jax.text.vocabulary import listed

UNKNOWN = "<unk>"
SPACES = ("|", "<space>")  # how a language model of letters may write the word delimiter
MOST = 0.5  # of an alphabet, or of a list of words: with less in common it is that of another language


class Difference(NamedTuple):
    """How the alphabets of a vocabulary and of a language model or lexicon differ."""

    missing: tuple[str, ...]  # letters that the model can hear and the language model never has; scored as <unk>
    foreign: tuple[str, ...]  # letters of the language model that the model cannot hear
    unspeakable: tuple[str, ...]  # words that have such letters, and so cannot be found

    def __str__(self) -> str:
        parts = [
            f"letters that only the vocabulary has: {listed(self.missing)}" if self.missing else "",
            f"letters that only the language model has: {listed(self.foreign)}" if self.foreign else "",
            f"words that cannot be spelt: {listed(self.unspeakable)}" if self.unspeakable else "",
        ]
        return "; ".join(part for part in parts if part)

    def __bool__(self) -> bool:
        return any(self)


@dataclass(frozen=True)
class Plan:
    """A decoder to be made: ``worker.load`` reads all but the last two. The word 0 is the unknown one."""

    lm: str | None
    tokens: tuple[str, ...]  # for every id, how the language model writes it
    words: tuple[str, ...]  # by index; those of the lexicon from 1 on
    spellings: tuple[tuple[int, tuple[int, ...]], ...] | None  # (word, token ids); None: any
    blank_id: int
    delimiter_id: int  # -1: none
    is_token_lm: bool
    hotwords: tuple[tuple[int, ...], ...]
    vocabulary: CTCVocabulary
    difference: Difference

    @property
    def name(self) -> str:
        """What errors and warnings are about."""
        return "lexicon" if self.lm is None else self.lm


def make_plan(
    vocabulary: CTCVocabulary,
    *,
    vocab_size: int,
    lm: LanguageModel | None,
    lexicon: Lexicon | None,
    hotwords: Sequence[str],
) -> Plan:
    """Hold a language model, a lexicon and hotwords against a vocabulary.

    A language model of letters needs no lexicon; with one of words and none given, its own words are the lexicon.

    Args:
        vocabulary: of the language.
        vocab_size: columns of the logits.
        lm: which; None: only what is heard counts.
        lexicon: the only words that can be found.
        hotwords: phrases.

    Raises:
        LanguageModelError: of another alphabet; shows the difference.
    """
    name = "lexicon" if lm is None else str(lm.path)
    if lm is not None:
        _check_labels(lm, vocabulary)
    is_token_lm = lm is None or _is_of_letters(lm.words, vocabulary)
    if not is_token_lm and lexicon is None:
        assert lm is not None
        lexicon = dict.fromkeys(lm.words, ())
    tokens, difference = _token_names(vocabulary, lm.words if lm and is_token_lm else None, vocab_size, name=name)
    delimiter = vocabulary.delimiter_id
    words: list[str] = []
    spellings = None
    if lexicon is not None:
        if delimiter is None:
            raise LanguageModelError(
                f"{name}: words need a delimiter between them, and {vocabulary.source} has none; "
                "take a language model of letters, without a lexicon"
            )
        words, spellings, unspeakable = _spelt(vocabulary, lexicon, delimiter=delimiter, name=name)
        difference = difference._replace(unspeakable=unspeakable)
        if lm is not None and not is_token_lm:
            _check_known(words, set(lm.words), name=name)
    phrases = [_phrase(phrase, vocabulary) for phrase in hotwords]
    own, spellings = _hotwords(phrases, words, spellings, vocabulary, is_token_lm=is_token_lm)
    return Plan(
        None if lm is None else str(lm.path),
        tokens,
        (UNKNOWN, *words),
        spellings,
        vocabulary.blank_id,
        -1 if delimiter is None else delimiter,
        is_token_lm,
        own,
        vocabulary,
        difference,
    )


def _check_labels(lm: LanguageModel, vocabulary: CTCVocabulary) -> None:
    """The alphabet that a decoder was stored with must be the vocabulary's."""
    if lm.labels is None:
        return
    stored = dict(enumerate(lm.labels))
    letters = vocabulary.letters.items()
    wrong = [f"{id_}: {letter!r}, there {stored.get(id_)!r}" for letter, id_ in letters if stored.get(id_) != letter]
    if wrong:
        raise LanguageModelError(
            f"{lm.path}: stored for another vocabulary than {vocabulary.source}; {len(wrong)} letters have other ids "
            f"({listed(wrong)}); name the language model's file itself to use it all the same"
        )


def _is_of_letters(words: Sequence[str], vocabulary: CTCVocabulary) -> bool:
    """Whether a language model scores letters, not words."""
    short = sum(len(word) == 1 or word in vocabulary.letters or word in SPACES for word in words)
    return short > MOST * len(words)


def _token_names(
    vocabulary: CTCVocabulary, known: Sequence[str] | None, vocab_size: int, *, name: str
) -> tuple[tuple[str, ...], Difference]:
    """For every id, what a language model of letters (which knows ``known``) calls it; and how the alphabets differ."""
    names = [f"\0{id_}" for id_ in range(max(vocab_size, vocabulary.size))]  # no language model has such words
    letters = vocabulary.letters
    for letter, id_ in letters.items():
        names[id_] = letter
    delimiter = vocabulary.delimiter_id
    if delimiter is not None:
        names[delimiter] = SPACES[0]
    if known is None:
        return tuple(names[:vocab_size]), Difference((), (), ())
    has = set(known)
    if vocabulary.do_lower_case:  # the vocabulary is in capitals, texts are not
        for letter, id_ in letters.items():
            names[id_] = letter if letter in has else letter.lower()
    if delimiter is not None:
        names[delimiter] = next((space for space in SPACES if space in has), SPACES[0])
    missing = [letter for letter, id_ in letters.items() if names[id_] not in has]
    if delimiter is not None and names[delimiter] not in has:
        missing.append(vocabulary.word_delimiter_token)
    foreign = sorted(has - set(names))
    difference = Difference(tuple(missing), tuple(foreign), ())
    if len(missing) > MOST * len(letters):
        raise LanguageModelError(
            f"{name}: a language model of another alphabet than {vocabulary.source}: {difference}; "
            "take one that was trained on text of this language, letters parted by spaces"
        )
    if vocabulary.word_delimiter_token in missing:
        raise LanguageModelError(
            f"{name}: a language model of letters without a sign for the space; train it on text where spaces are "
            f"written as {SPACES[0]!r}, such as 't h e | c a t'"
        )
    return tuple(names[:vocab_size]), difference


def _spelt(
    vocabulary: CTCVocabulary, lexicon: Lexicon, *, delimiter: int, name: str
) -> tuple[list[str], tuple[tuple[int, tuple[int, ...]], ...], tuple[str, ...]]:
    """The words of a lexicon that can be spelt, (index, token ids) for each of their spellings, and the others.

    Indices count from 1: 0 is the unknown word.
    """
    words: list[str] = []
    spellings: list[tuple[int, tuple[int, ...]]] = []
    unspeakable: list[str] = []
    for word, given in lexicon.items():
        ids = [_ids(tokens, vocabulary) for tokens in given] if given else [_letters(word, vocabulary)]
        found = [spelling for spelling in ids if spelling]
        if not found:
            unspeakable.append(word)
            continue
        words.append(word)
        for spelling in found:
            end = () if spelling[-1] == delimiter else (delimiter,)
            spellings.append((len(words), (*spelling, *end)))
    if len(unspeakable) > MOST * len(lexicon):
        used = {token for word in unspeakable for tokens in (lexicon[word] or [list(word)]) for token in tokens}
        letters = sorted(used - set(vocabulary.letters))
        raise LanguageModelError(
            f"{name}: words of another alphabet than {vocabulary.source}: {len(unspeakable)} of {len(lexicon)} cannot "
            f"be spelt ({listed(unspeakable)}), for want of the letters {listed(letters)}"
        )
    return words, tuple(spellings), tuple(unspeakable)


def _letters(word: str, vocabulary: CTCVocabulary) -> tuple[int, ...] | None:
    """The ids of a word's letters; without its capitals, where the vocabulary has none."""
    return vocabulary.spell(word) or vocabulary.spell(word.lower())


def _ids(tokens: Sequence[str], vocabulary: CTCVocabulary) -> tuple[int, ...] | None:
    """The ids of a spelling's tokens; None if the vocabulary lacks one."""
    known: Mapping[str, int] = vocabulary.letters
    if tokens and tokens[-1] == vocabulary.word_delimiter_token:
        tokens = tokens[:-1]
    return tuple(known[token] for token in tokens) if tokens and all(token in known for token in tokens) else None


def _check_known(words: Sequence[str], known: set[str], *, name: str) -> None:
    """A lexicon must share words with the language model that scores them."""
    strange = [word for word in words if word not in known]
    if len(strange) > MOST * len(words):
        raise LanguageModelError(
            f"{name}: a language model of other words than the lexicon: it lacks {len(strange)} of {len(words)} "
            f"({listed(strange)}); is one of them in capitals, or normalised in another way?"
        )


def _phrase(phrase: Any, vocabulary: CTCVocabulary) -> tuple[str, list[tuple[int, ...]]]:
    """A hotword, and the spelling of each of its words."""
    words = phrase.split() if isinstance(phrase, str) else []
    if not words:
        raise LanguageModelError(f"hotwords: {phrase!r} is no phrase")
    spellings = [_letters(word, vocabulary) for word in words]
    for word, spelling in zip(words, spellings, strict=True):
        if spelling is None:
            strange = [char for char in dict.fromkeys(word) if _letters(char, vocabulary) is None]
            raise LanguageModelError(
                f"hotwords: {word!r} cannot be heard: {vocabulary.source} has no {listed(strange)}; spell it otherwise"
            )
    return phrase, [spelling for spelling in spellings if spelling is not None]


def _hotwords(
    phrases: Sequence[tuple[str, list[tuple[int, ...]]]],
    words: list[str],
    spellings: tuple[tuple[int, tuple[int, ...]], ...] | None,
    vocabulary: CTCVocabulary,
    *,
    is_token_lm: bool,
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, tuple[int, ...]], ...] | None]:
    """Phrases as the language model scores them, and the spellings with the words that they add to a lexicon."""
    delimiter = vocabulary.delimiter_id
    index = {word: number for number, word in enumerate(words, start=1)}
    added: list[tuple[int, tuple[int, ...]]] = []
    for phrase, parts in phrases if spellings is not None else ():
        for word, spelling in zip(phrase.split(), parts, strict=True):
            if word not in index:
                words.append(word)
                index[word] = len(words)
                assert delimiter is not None  # or there could be no lexicon
                added.append((index[word], (*spelling, delimiter)))
    own = tuple(
        _joined(parts, delimiter) if is_token_lm else tuple(index[word] for word in phrase.split())
        for phrase, parts in phrases
    )
    return own, None if spellings is None else (*spellings, *added)


def _joined(parts: Sequence[tuple[int, ...]], delimiter: int | None) -> tuple[int, ...]:
    """The token ids of a phrase, the word delimiter between its words."""
    tokens: list[int] = []
    for part in parts:
        tokens += [delimiter] if tokens and delimiter is not None else []
        tokens += part
    return tuple(tokens)

"""Transcripts to labels: cleaned as the examples of transformers clean them, encoded, and what could not be."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mms_jax.errors import DatasetError, VocabularyError
from mms_jax.text.vocabulary import CTCVocabulary

__all__ = ["TranscriptEncoder", "clean_text", "clean_texts", "num_repeats", "show_characters"]

MAX_SHOWN = 30  # characters named in a message


def clean_text(text: str, *, chars_to_ignore: Sequence[str] = (), do_lower_case: bool = True) -> str:
    """Remove characters, lower-case, and leave single spaces between words and none around them.

    Every character in ``chars_to_ignore`` stands for itself. The examples' scripts make a regular expression of them,
    so that in the list of their README (", ? . ! - ; :") "!-;" is a range, which takes out digits and apostrophes too.

    The Unicode form stays as it is: a vocabulary may hold either, and nothing here could tell which is meant. Where
    text and vocabulary differ in it, the report counts the combining marks among the unknown characters.
    """
    text = text.translate(dict.fromkeys(map(ord, "".join(chars_to_ignore))))
    return " ".join((text.lower() if do_lower_case else text).split())


def clean_texts(
    texts: Iterable[Any], *, chars_to_ignore: Sequence[str] = (), do_lower_case: bool = True
) -> Iterator[str]:
    """The transcripts that are text and not empty, cleaned: what a vocabulary is made of."""
    for text in texts:
        if isinstance(text, str) and (
            cleaned := clean_text(text, chars_to_ignore=chars_to_ignore, do_lower_case=do_lower_case)
        ):
            yield cleaned


def num_repeats(labels: np.ndarray) -> int:
    """How many labels equal the one before: CTC needs a blank, and so a frame, between the two."""
    return int(np.count_nonzero(labels[1:] == labels[:-1]))


class TranscriptEncoder:
    """Labels of cleaned transcripts in one vocabulary; ``unknown`` counts the characters that are not in it."""

    def __init__(self, vocabulary: CTCVocabulary, *, head_size: int | None = None, unknown: Counter[str] | None = None):
        """``head_size``: the rows of the CTC head, where it is there already (default: the vocabulary's size)."""
        self.vocabulary = vocabulary
        self.unknown = Counter[str]() if unknown is None else unknown
        self._head_size = vocabulary.size if head_size is None else head_size
        self._known: dict[str, bool] = {}
        self._long = sorted((token for token in vocabulary.labels if len(token) > 1), key=len, reverse=True)

    def encode(self, text: str) -> np.ndarray | None:
        """The labels int32 [U] of a cleaned transcript; unknown characters are counted and become the unknown token.

        As in the examples, a space is appended: every transcript ends with the word delimiter. None where characters
        are unknown and the vocabulary has no token for them; ``check`` raises once all are counted.
        Raises ``DatasetError`` for a label that the head has no row for.
        """
        unknown = self._unknown_in(text)
        self.unknown.update(unknown)
        if unknown and self.vocabulary.unk_id is None:
            return None
        labels = np.array(self.vocabulary.encode(f"{text} "), np.int32)
        if labels.max() >= self._head_size:
            token = self.vocabulary.labels[labels.max()]
            raise DatasetError(
                f"{self.vocabulary.source}: {token!r} has the id {labels.max()}, but the model's head has "
                f"{self._head_size} rows; the vocabulary is of another model, or lacks {token!r}"
            )
        return labels

    def check(self) -> None:
        """Raise ``DatasetError``, naming all of them, if characters are unknown and no token stands for such."""
        if self.unknown and self.vocabulary.unk_id is None:
            raise DatasetError(
                f"{self.vocabulary.source}: has no {self.vocabulary.unk_token!r}, and the transcripts hold characters "
                f"that it has not: {show_characters(self.unknown)}; remove them with --chars_to_ignore, or make a new "
                "vocabulary (--overwrite_lang_vocab)"
            )

    def _unknown_in(self, text: str) -> Counter[str]:
        chars = set(text)
        for char in chars - self._known.keys():
            self._known[char] = self._knows(char)
        strange = {char for char in chars if not self._known[char]}
        if not strange:
            return Counter()
        for token in self._long:  # "ʈʰ" may be one token where "ʰ" alone is none
            text = text.replace(token, " ")
        return Counter(char for char in text if char in strange)

    def _knows(self, char: str) -> bool:
        try:
            return self.vocabulary.unk_id not in self.vocabulary.encode(char)
        except VocabularyError:  # how a vocabulary without an unknown token says no
            return False


def show_characters(counts: Counter[str]) -> str:
    """Characters and how often each occurs, the most frequent first."""
    shown = [f"{_shown(char)} x {count:,}" for char, count in counts.most_common(MAX_SHOWN)]
    return ", ".join(shown) + (f" and {len(counts) - MAX_SHOWN} more" if len(counts) > MAX_SHOWN else "")


def _shown(char: str) -> str:
    code = f"U+{ord(char):04X}"
    return f"'{char}' ({code})" if char.isprintable() and not unicodedata.combining(char) else code

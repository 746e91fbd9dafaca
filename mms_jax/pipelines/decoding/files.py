"""Language models and lexicons as files: what they are, and the words that they know."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mms_jax.ctc.arpa import read_counts, read_unigrams
from mms_jax.errors import LanguageModelError
from mms_jax.files import read_json

# A KenLM binary: a sanity block of 88 bytes that begins with the first of these, 20 bytes of parameters, whose first is
# the order and whose thirteenth says whether the words are at the end of the file, then the number of n-grams of each
# order (lm/binary_format.cc).
_MAGIC = b"mmap lm http://kheafield.com/code"
_PARAMETERS, _COUNTS = 88, 108
_HAS_WORDS = 12
_MAX_ORDER = 20
_FIRST_WORD = b"<unk>\0"

# A decoder as transformers' processors with a language model store it (pyctcdecode's layout).
FOLDER = "language_model"
_ALPHABET, _ATTRIBUTES, _UNIGRAMS = "alphabet.json", "attrs.json", "unigrams.txt"
_MODEL_SUFFIXES = (".arpa", ".bin", ".binary", ".klm", ".gz")


class LanguageModel(NamedTuple):
    """A language model's file, and what stands beside it."""

    path: Path
    words: Sequence[str]  # all that it scores, markers such as <s> left out
    order: int  # of its longest n-grams
    lm_weight: float | None = None  # of what was stored with it, for scores to the base of 10
    word_score: float | None = None
    labels: Sequence[str] | None = None  # the vocabulary that it was stored for, in order of id


def open_language_model(where: str | os.PathLike[str]) -> LanguageModel:
    """A language model: an ARPA file, a KenLM binary, or a directory that transformers' processors wrote.

    Raises:
        LanguageModelError: not there, damaged, or none of these; names the file.
    """
    if not isinstance(where, str | os.PathLike) or where == "":
        raise LanguageModelError(f"lm is {where!r}; give an ARPA file, a KenLM binary or a decoder's directory")
    path = Path(where)
    if path.is_dir():
        return _from_directory(path)
    if not path.is_file():
        raise LanguageModelError(f"{path}: no such file; give an ARPA file, a KenLM binary or a decoder's directory")
    return LanguageModel(path, _words(path), _order(path))


def _words(path: Path) -> list[str]:
    words = binary_words(path) if is_binary(path) else read_unigrams(path)
    return [word for word in words if word.lower() not in ("<s>", "</s>", "<unk>")]


def _order(path: Path) -> int:
    if not is_binary(path):
        return len(read_counts(path))
    with path.open("rb") as stream:
        stream.seek(_PARAMETERS)
        return stream.read(1)[0]  # there, or its words could not have been read


def _from_directory(path: Path) -> LanguageModel:
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    found = sorted(file for file in folder.iterdir() if file.suffix in _MODEL_SUFFIXES)
    if len(found) != 1:
        raise LanguageModelError(
            f"{folder}: expected one language model (.arpa, .bin), found {[file.name for file in found]}; name the file"
        )
    attributes = _object(folder / _ATTRIBUTES)
    alpha, beta = _number(attributes, "alpha", folder), _number(attributes, "beta", folder)
    labels = _object(path / _ALPHABET).get("labels") if (path / _ALPHABET).exists() else None
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise LanguageModelError(f"{path / _ALPHABET}: labels must be a list of tokens")
    unigrams = folder / _UNIGRAMS
    words = read_lines(unigrams) if unigrams.exists() else _words(found[0])
    return LanguageModel(
        found[0],
        words,
        _order(found[0]),
        lm_weight=None if alpha is None else alpha * math.log(10),  # alpha weighs natural logarithms
        word_score=beta,
        labels=labels,
    )


def _object(path: Path) -> dict[str, Any]:
    return read_json(path, error=LanguageModelError) if path.exists() else {}


def _number(attributes: Mapping[str, Any], key: str, folder: Path) -> float | None:
    value = attributes.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise LanguageModelError(f"{folder / _ATTRIBUTES}: {key} must be a number, got {value!r}")
    return None if value is None else float(value)


def is_binary(path: Path) -> bool:
    """Whether a file is KenLM's own, not an ARPA."""
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def binary_words(path: Path) -> list[str]:
    """The words of a KenLM binary, which stand behind everything else.

    Raises:
        LanguageModelError: cut short, or built without them.
    """
    data = path.read_bytes()
    if len(data) < _COUNTS or not 1 <= data[_PARAMETERS] <= _MAX_ORDER:
        raise LanguageModelError(f"{path}: a damaged KenLM binary: its header is cut short or makes no sense")
    if not data[_PARAMETERS + _HAS_WORDS]:
        raise LanguageModelError(f"{path}: a KenLM binary without its words; build it with them, or give the ARPA file")
    if len(data) < _COUNTS + 8:
        raise LanguageModelError(f"{path}: a damaged KenLM binary: cut short")
    (count,) = struct.unpack_from("<Q", data, _COUNTS)
    start = data.rfind(b"\0" + _FIRST_WORD)
    start = data.rfind(_FIRST_WORD) if start < 0 else start + 1
    words = data[start:].split(b"\0") if start >= 0 else []
    if len(words) != count + 1 or words[-1]:
        raise LanguageModelError(f"{path}: a damaged KenLM binary: it announces {count} words, {len(words)} are there")
    try:
        return [word.decode() for word in words[:-1]]
    except UnicodeDecodeError as cause:
        raise LanguageModelError(f"{path}: words that are not UTF-8 ({cause})") from cause


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise LanguageModelError(f"{path}: not UTF-8 text ({cause})") from cause
    except OSError as cause:
        raise LanguageModelError(f"{path}: {cause.strerror or cause}") from cause
    return [line.strip() for line in text.splitlines() if line.strip()]


Lexicon = Mapping[str, Sequence[Sequence[str]]]  # a word's spellings, each a list of tokens; none: its letters


def read_lexicon(given: str | os.PathLike[str] | Iterable[str] | Mapping[str, Any]) -> Lexicon:
    """A lexicon as {word: spellings}.

    Args:
        given: a file with a word on every line, and behind it, if it is not spelt by its letters, its tokens, with
            spaces between them (the format of fairseq and torchaudio); or a list of words; or {word: tokens}.

    Raises:
        LanguageModelError: not readable, or empty.
    """
    if isinstance(given, Mapping):
        entries = [(word, _tokens(word, tokens)) for word, tokens in given.items()]
        name = "lexicon"
    elif isinstance(given, str | os.PathLike):
        entries = [(line.split()[0], line.split()[1:]) for line in read_lines(Path(given))]
        name = str(given)
    elif isinstance(given, Iterable):
        entries, name = [(word, []) for word in given], "lexicon"
    else:
        raise LanguageModelError(f"lexicon is {given!r}; give a file, a list of words, or {{word: tokens}}")
    lexicon: dict[str, list[list[str]]] = {}
    for word, tokens in entries:
        if not isinstance(word, str) or not word.strip() or len(word.split()) > 1:
            raise LanguageModelError(f"{name}: {word!r} is not a word")
        spellings = lexicon.setdefault(word, [])
        if tokens and tokens not in spellings:
            spellings.append(tokens)
    if not lexicon:
        raise LanguageModelError(f"{name}: has no words")
    return lexicon


def _tokens(word: Any, given: Any) -> list[str]:
    """A word's spelling."""
    tokens = given.split() if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(token, str) for token in tokens):
        raise LanguageModelError(f"lexicon: the spelling of {word!r} is {given!r}; give its tokens, such as 't h e'")
    return tokens

"""ARPA n-gram language models, read strictly: what KenLM refuses is refused here, with the line, reason and remedy.

A file is a header with the number of n-grams of each order, then a section per order: log10 probability, tab, words,
and for all but the highest order, if it is not 0, a tab and the log10 back-off weight. Of white space alone more is
taken than by KenLM: spaces for tabs, and any at the ends of headings. Sections are read in blocks of lines, each split
at once: the 5.4 million n-grams of a 4-gram (248 MB) take 8 s and 0.5 GB of memory. Only a block with a fault is looked
at line by line.
"""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import IO, NamedTuple, NoReturn

import numpy as np

from mms_jax.errors import LanguageModelError

SENTENCE_MARKS = ("<s>", "</s>")
_KENLM_BINARY = b"mmap lm http://kheafield.com/code"
_GZIP = b"\x1f\x8b"
_BLOCK_BYTES = 8 << 20  # a block's fields as objects take some 15 times as much
_MAX_LINE_BYTES = 1 << 20  # a longer line is no n-gram, and need not come into memory to be told so
_CHARS_SHOWN = 60  # of a faulty line, in messages
_COUNT = re.compile(rb"ngram +(\d{1,4}) *= *(\d{1,18})")


Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # words, log-probabilities and back-off weights of n-grams


class NGrams(NamedTuple):
    """All n-grams of one order n, as the file has them in order."""

    words: np.ndarray  # int32 [N, n], indices into Arpa.words
    log_probs: np.ndarray  # float32 [N], log10, at most 0
    backoffs: np.ndarray  # float32 [N], log10; 0 where the file has none
    contexts: np.ndarray  # int32 [N], the index among the (n-1)-grams of all words but the last; -1 for 1-grams
    keys: np.ndarray  # int64 [N], sorted: a context's index times the number of words, plus the last word
    by_key: np.ndarray  # int32 [N], the index of the n-gram with each of the keys


class Arpa(NamedTuple):
    """A language model as its file has it; ``ngrams[n - 1]`` holds the n-grams of order n."""

    path: str
    words: tuple[str, ...]  # of the 1-grams, in order
    ngrams: tuple[NGrams, ...]

    @property
    def order(self) -> int:
        """The highest order."""
        return len(self.ngrams)


def read_counts(path: str | PathLike[str]) -> tuple[int, ...]:
    """How many n-grams of each order the header of an ARPA file (plain or gzip) promises; nothing more is read.

    Raises LanguageModelError as ``read_arpa`` does.
    """
    with _opened(path) as lines:
        return _counts(lines)


def read_unigrams(path: str | PathLike[str]) -> list[str]:
    """The words of an ARPA file (plain or gzip), in order, the marks <s>, </s> and <unk> included; no more is read.

    Raises LanguageModelError as ``read_arpa`` does.
    """
    with _opened(path) as lines:
        counts = _counts(lines)
        ids: dict[bytes, int] = {}
        _section(lines, ids, order=1, counts=counts)
        return _decoded(ids)


def read_arpa(path: str | PathLike[str]) -> Arpa:
    """Read a whole ARPA file, plain or gzip.

    Raises:
        LanguageModelError: the file cannot be read, is binary or damaged, is not UTF-8, or is not a consistent model:
            other counts than promised, no number or not a finite one, a positive log-probability (KenLM takes none
            either, so such a file would work with one decoder only), a word that is no 1-gram, an n-gram twice or
            without its context among the (n-1)-grams, a back-off weight of the highest order, no <s> or </s>. The
            message names the file, the line and the remedy.
    """
    with _opened(path) as lines:
        counts = _counts(lines)
        ids: dict[bytes, int] = {}
        ngrams: list[NGrams] = []
        for order in range(1, len(counts) + 1):
            first_line, columns = _section(lines, ids, order=order, counts=counts)
            ngrams.append(_linked(lines, columns, ngrams, first_line=first_line))
        _end(lines)
        missing = [mark for mark in SENTENCE_MARKS if mark.encode() not in ids]
        if missing:
            raise LanguageModelError(
                f"{path}: {missing[0]} is not among the 1-grams; make the model with sentence marks"
            )
        return Arpa(str(path), tuple(_decoded(ids)), tuple(ngrams))


class _Lines:
    """A file's lines, one or many at once, counted from 1, without their ends ("\\n" or "\\r\\n")."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, path: str | PathLike[str]) -> None:
        self.path = path
        self.number = 0  # of the line read last
        self._file = file
        self._rest = b""
        self._ended = False

    def fail(self, reason: str, *, line: int | None = None) -> NoReturn:
        """Raise the error for this line, by default the last."""
        raise LanguageModelError(f"{self.path}: line {self.number if line is None else line}: {reason}")

    def next(self) -> bytes | None:
        """The next line, or None after the last."""
        block = self.block(1)
        return block[0] if block else None

    def block(self, most: int) -> list[bytes]:
        """The next lines, 1 to ``most`` of them as they come; none after the last."""
        while b"\n" not in self._rest and not self._ended:
            self._read()
        if not self._rest:
            return []
        end = self._rest.rfind(b"\n") + 1 or len(self._rest)
        if most == 1:  # of a large block, without splitting all of it
            end = self._rest.find(b"\n") + 1 or end
        block, rest = self._rest[:end], self._rest[end:]
        lines = block.removesuffix(b"\n").split(b"\n")
        if len(lines) > most:
            end = sum(map(len, lines[:most])) + most
            lines, rest = lines[:most], block[end:] + rest
        self._rest = rest
        self.number += len(lines)
        return [line.removesuffix(b"\r") for line in lines] if b"\r" in block else lines

    def _read(self) -> None:
        if len(self._rest) > _MAX_LINE_BYTES:
            self.fail("longer than any n-gram; this is no ARPA file, or a damaged one", line=self.number + 1)
        data = self._file.read(_BLOCK_BYTES)
        self._rest += data
        self._ended = not data


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[_Lines]:
    """The lines of a plain or gzip file; whatever reading it raises becomes a LanguageModelError."""
    try:
        with open(path, "rb") as raw:
            beginning = raw.read(len(_KENLM_BINARY))
            raw.seek(0)
            if not beginning:
                raise LanguageModelError(f"{path}: empty; an ARPA file begins with \\data\\")
            if beginning.startswith(_KENLM_BINARY):
                raise LanguageModelError(f"{path}: a binary KenLM file; give the ARPA file that it was built from")
            if beginning.startswith(_GZIP):
                with gzip.GzipFile(fileobj=raw) as file:
                    yield _Lines(file, path)
            else:
                yield _Lines(raw, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise LanguageModelError(f"{path}: a damaged or cut gzip file ({cause}); fetch or compress it again") from cause
    except OSError as cause:
        raise LanguageModelError(f"{path}: cannot be read ({cause.strerror or cause})") from cause


def _counts(lines: _Lines) -> tuple[int, ...]:
    """The number of n-grams of each order, from the header."""
    line = lines.next()
    while line is not None and (not line.strip() or line.startswith(b"#")):
        line = lines.next()
    if line is None or line.rstrip() != b"\\data\\":
        binary = " (it is binary)" if line is not None and b"\0" in line else ""
        lines.fail(
            f"{_shown(line)} where \\data\\ should be: this is no ARPA file{binary}, or has text before it; "
            "delete the text or put # before each line of it"
        )
    counts: list[int] = []
    while (line := lines.next()) is not None and line.strip():
        match = _COUNT.fullmatch(line.strip())
        if match is None or int(match[1]) != len(counts) + 1:
            lines.fail(f"{_shown(line)} where 'ngram {len(counts) + 1}=' and a number, or an empty line, should be")
        counts.append(int(match[2]))
    if not counts or not counts[0]:
        lines.fail("\\data\\ promises no 1-grams; a language model has some")
    return tuple(counts)


def _section(lines: _Lines, ids: dict[bytes, int], *, order: int, counts: tuple[int, ...]) -> tuple[int, Columns]:
    """The number of the section's first line, and its words, log-probabilities and back-off weights.

    The words of the 1-grams are put into ``ids``.
    """
    header, line = b"\\%d-grams:" % order, _next_filled(lines)
    if line != header:
        more = f", or \\data\\ promises too few {order - 1}-grams" if order > 1 else ""
        lines.fail(f"{_shown(line)} where the section {header.decode()} should begin{more}")
    first_line, remaining = lines.number + 1, counts[order - 1]
    parts = [(np.empty((0, order), np.int32), np.empty(0, np.float32), np.empty(0, np.float32))]
    while remaining:
        block = lines.block(remaining)
        if not block:
            lines.fail(f"the file ends {remaining:,} {order}-grams too early: it is cut short; fetch or make it again")
        remaining -= len(block)
        num_known = len(ids)
        try:
            parts.append(_parsed(block, ids, order=order, is_last=order == len(counts)))
        except (ValueError, KeyError):
            known = set(itertools.islice(ids, num_known))
            _fail_at_fault(lines, block, known, order=order, is_last=order == len(counts))
    words, log_probs, backoffs = zip(*parts, strict=True)
    return first_line, (np.concatenate(words), np.concatenate(log_probs), np.concatenate(backoffs))


def _parsed(block: list[bytes], ids: dict[bytes, int], *, order: int, is_last: bool) -> Columns:
    """Words, log-probabilities and back-off weights of a block of lines; ValueError or KeyError if any is faulty."""
    separators = [line.count(b"\t") + line.count(b" ") for line in block]
    kinds = set(separators)
    if not kinds <= {order, order + 1}:
        raise ValueError("a line of another number of fields")
    if len(kinds) == 2:
        block = [line if n > order else line + b"\t0" for line, n in zip(block, separators, strict=True)]
    fields = b"\t".join(block).replace(b" ", b"\t").split(b"\t")
    width = max(kinds) + 1
    log_probs = _numbers(fields[::width])
    backoffs = _numbers(fields[order + 1 :: width]) if width > order + 1 else np.zeros_like(log_probs)
    if np.any(log_probs > 0) or (is_last and np.any(backoffs)):
        raise ValueError("a number out of its range")
    if order == 1:
        _learn(fields[1::width], ids)
    words = [np.fromiter(map(ids.__getitem__, fields[i::width]), np.int32, len(block)) for i in range(1, order + 1)]
    return np.stack(words, axis=1), log_probs, backoffs


def _numbers(fields: list[bytes]) -> np.ndarray:
    """Finite float32 numbers; ValueError if any is not."""
    if b"_" in b" ".join(fields):
        raise ValueError("Python's own spelling of a number")
    with np.errstate(over="ignore"):
        numbers = np.fromiter(map(float, fields), np.float64, len(fields)).astype(np.float32)
    if not np.all(np.isfinite(numbers)):
        raise ValueError("not finite")
    return numbers


def _learn(words: list[bytes], ids: dict[bytes, int]) -> None:
    """Give each word its number; ValueError if any is empty, not UTF-8 or there before."""
    b"\n".join(words).decode("utf-8")
    end = len(ids) + len(words)
    ids.update(zip(words, range(len(ids), end), strict=True))
    if len(ids) != end or b"" in ids:
        raise ValueError("a word twice, or an empty one")


def _fail_at_fault(lines: _Lines, block: list[bytes], known: set[bytes], *, order: int, is_last: bool) -> NoReturn:
    """Name the first faulty line of a block; of a block of 1-grams ``known`` are the words before it."""
    first_line = lines.number - len(block) + 1
    for number, line in enumerate(block, first_line):
        reason = _fault(line, known, order=order, is_last=is_last)
        if reason:
            lines.fail(reason, line=number)
    raise AssertionError(f"{lines.path}: lines {first_line} to {lines.number} are faulty, but none of them is")


def _fault(line: bytes, known: set[bytes], *, order: int, is_last: bool) -> str | None:
    """What is wrong with one n-gram's line, if anything."""
    if not line.strip() or line.startswith(b"\\"):
        return f"{_shown(line)} where \\data\\ promises another {order}-gram: its count is wrong, or lines are missing"
    fields = line.replace(b" ", b"\t").split(b"\t")
    if len(fields) not in (order + 1, order + 2) or b"" in fields:
        words = "a word" if order == 1 else f"{order} words"
        return f"{_shown(line)} must be a log-probability, {words} and at most a back-off weight, with one tab between"
    log_prob, *words, backoff = fields if len(fields) == order + 2 else [*fields, b"0"]
    for name, field in (("log-probability", log_prob), ("back-off weight", backoff)):
        try:
            number = float(_numbers([field])[0])
        except ValueError:
            return f"the {name} {_shown(field)} is not a finite number"
        if name == "log-probability" and number > 0:
            return f"the log-probability {_shown(field)} is positive, so the probability is above 1"
        if name == "back-off weight" and is_last and number:
            return f"a back-off weight, {_shown(field)}, at the highest order, which has none"
    return _fault_of_word(words[0], known) if order == 1 else _fault_of_words(words, known)


def _fault_of_word(word: bytes, known: set[bytes]) -> str | None:
    """Likewise of a word of the 1-grams, which is then ``known``."""
    try:
        word.decode("utf-8")
    except UnicodeDecodeError:
        return f"the word {_shown(word)} is not UTF-8; convert the file to it"
    if word in known:
        return f"the word {_shown(word)} is there twice"
    known.add(word)
    return None


def _fault_of_words(words: list[bytes], known: set[bytes]) -> str | None:
    unknown = [word for word in words if word not in known]
    return f"the word {_shown(unknown[0])} is not among the 1-grams, which must have all words" if unknown else None


def _linked(lines: _Lines, columns: Columns, shorter: list[NGrams], *, first_line: int) -> NGrams:
    """The n-grams with the indices of their contexts; fails at the first whose context is missing or that is a copy."""
    words, log_probs, backoffs = columns
    order, num_words = words.shape[1], len(shorter[0].words) if shorter else 0
    contexts = find(shorter, words[:, :-1]) if shorter else np.full(len(words), -1, np.int64)
    missing = np.flatnonzero(contexts < 0) if shorter else np.empty(0, np.int64)
    if len(missing):
        reason = f"the first {order - 1} words of this {order}-gram are not among the {order - 1}-grams"
        lines.fail(f"{reason}; KenLM needs them too: make the model again", line=first_line + int(missing[0]))
    keys = _keys(contexts, words[:, -1], num_words=num_words)
    by_key = np.argsort(keys, kind="stable").astype(np.int32)
    keys = keys[by_key]
    copies = by_key[1:][keys[1:] == keys[:-1]]
    if len(copies):
        lines.fail(f"this {order}-gram is there twice", line=first_line + int(copies.min()))
    return NGrams(words, log_probs, backoffs, contexts.astype(np.int32), keys, by_key)


def find(ngrams: Sequence[NGrams], words: np.ndarray) -> np.ndarray:
    """The index of each row of words, [M, n], among the n-grams of order n: int64 [M], -1 where there is none."""
    indices = words[:, 0].astype(np.int64)
    for k in range(1, words.shape[1]):
        _, _, _, _, keys, by_key = ngrams[k]
        if not len(keys):
            return np.full(len(words), -1, np.int64)
        wanted = _keys(indices, words[:, k], num_words=len(ngrams[0].words))  # negative without a context: no key is
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        indices = np.where(keys[places] == wanted, by_key[places], -1)
    return indices


def _keys(contexts: np.ndarray, last_words: np.ndarray, *, num_words: int) -> np.ndarray:
    return contexts * np.int64(num_words) + last_words


def _end(lines: _Lines) -> None:
    """Check that nothing but \\end\\ follows."""
    line = _next_filled(lines)
    if line != b"\\end\\":
        lines.fail(
            f"{_shown(line)} where \\end\\ should be: the file is cut short, or \\data\\ promises too few n-grams"
        )
    line = _next_filled(lines)
    if line is not None:
        lines.fail(f"{_shown(line)} after \\end\\; one model ends there: is this two files in one?")


def _next_filled(lines: _Lines) -> bytes | None:
    """The next line with anything on it, without white space at its end; None if there is none."""
    line = lines.next()
    while line is not None and not line.strip():
        line = lines.next()
    return None if line is None else line.rstrip()


def _decoded(ids: dict[bytes, int]) -> list[str]:
    return b"\n".join(ids).decode("utf-8").split("\n")


def _shown(line: bytes | None) -> str:
    """A line for messages."""
    if line is None:
        return "the file ends"
    text = line[: 4 * _CHARS_SHOWN].decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= _CHARS_SHOWN else f"{text[:_CHARS_SHOWN]}…")

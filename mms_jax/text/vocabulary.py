"""One CTC vocabulary: text to label ids and frame ids to text, as transformers' ``Wav2Vec2CTCTokenizer`` has it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mms_jax.errors import VocabularyError
from mms_jax.text.added_tokens import AddedToken, AddedTokenSplitter

MAX_TOKEN_CHARS = 256  # the longest token of a published vocabulary is "<unk>"; anything near this is a corrupt file

_LISTED = 12  # letters or words in a message

# What `clean_up_tokenization_spaces` (long true by default in transformers, so in many checkpoints) rewrites, in order.
CLEAN_UP = {f" {end}": end for end in (".", "?", "!", ",")} | {" ' ": "'"}
CLEAN_UP |= {f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")}


class Span(NamedTuple):
    """A character or word and the frames [start, end) it was emitted in."""

    text: str
    start: int
    end: int


class Offsets(NamedTuple):
    """A decoded text with the frames of its characters (word delimiters included) and of its words."""

    text: str
    chars: tuple[Span, ...]
    words: tuple[Span, ...]


@dataclass(frozen=True, eq=False)
class CTCVocabulary:
    """The tokens of one language and how text becomes labels and frames become text.

    ``tokens`` maps each token of vocab.json to its id; its ids and those of ``added_tokens`` are 0..n-1 without holes.
    ``special_tokens`` lists all special tokens in the order in which those without an id get one, after the last id
    (transformers does the same on load); empty means bos, eos, unk, pad, word delimiter.
    ``source`` names the vocabulary in errors. Raises VocabularyError if the ids are malformed or the blank has none.
    """

    tokens: Mapping[str, int]
    _: KW_ONLY
    pad_token: str = "<pad>"
    unk_token: str = "<unk>"
    bos_token: str | None = "<s>"
    eos_token: str | None = "</s>"
    word_delimiter_token: str = "|"
    replace_word_delimiter_char: str = " "
    do_lower_case: bool = False
    clean_up_tokenization_spaces: bool = False
    special_tokens: tuple[str, ...] = ()
    added_tokens: tuple[AddedToken, ...] = ()
    source: str = "vocabulary"

    def __post_init__(self):
        check_ids(self.tokens, source=self.source, added=self.added_tokens)
        if self.pad_token not in self.tokens and all(token.content != self.pad_token for token in self.added_tokens):
            raise VocabularyError(
                f"{self.source}: the pad_token {self.pad_token!r}, which is the CTC blank, has no id; "
                "add it to vocab.json or correct pad_token in tokenizer_config.json"
            )

    @property
    def blank_id(self) -> int:
        """The id of the CTC blank, which is the padding token's."""
        return self._ids[self.pad_token]

    @property
    def size(self) -> int:
        """The highest id + 1, special tokens that were appended to the vocabulary included."""
        return len(self._names)

    @property
    def outside_id(self) -> int:
        """What ids without a token are read as: the unknown token's id, or ``size`` where it has none."""
        return self._ids.get(self.unk_token, self.size)

    @property
    def unk_id(self) -> int | None:
        """The id given to characters outside the vocabulary; None where vocab.json has no unknown token."""
        return self.tokens.get(self.unk_token)

    @property
    def delimiter_id(self) -> int | None:
        """The id of the word delimiter; None where words are not parted."""
        return self.tokens.get(self.word_delimiter_token)

    @cached_property
    def letters(self) -> dict[str, int]:
        """Every token that is part of a word, and its id: neither special tokens nor the word delimiter."""
        outside = {*self._special, self.word_delimiter_token}
        return {name: id_ for name, id_ in self._ids.items() if name not in outside}

    @property
    def labels(self) -> tuple[str, ...]:
        """The token of every id, in order of id."""
        return self._names

    def encode(self, text: str) -> list[int]:
        """Return the label ids of ``text``; repeated letters stay, characters outside the vocabulary become ``unk_id``.

        Raises VocabularyError for a character outside a vocabulary that has no unknown token.
        """
        if not isinstance(text, str):
            raise VocabularyError(f"{self.source}: a transcript must be a str, got {type(text).__name__}")
        ids: list[int] = []
        for piece in self._splitter.split(text):
            whole = self._added.get(piece)
            ids.extend(self._characters(piece) if whole is None else (whole.id,))
        return ids

    def spell(self, word: str) -> tuple[int, ...] | None:
        """The label ids of a word, if it has any letters and all of them are in the vocabulary."""
        try:
            ids = self.encode(word)
        except VocabularyError:  # no unknown token to write a letter as that is outside
            return None
        return tuple(ids) if ids and self._letter_ids.issuperset(ids) else None

    def decode(self, ids: ArrayLike, *, group_tokens: bool = True, skip_special_tokens: bool = False) -> str:
        """Return the text of ``ids`` ([T] integers): repeats merged, then blanks dropped.

        ``group_tokens=False`` is for label ids, whose repeated letters are real. An id without a token is unk_token.
        ``skip_special_tokens`` drops special tokens, blanks among them, *before* repeats are merged, as transformers
        does: a letter doubled across a blank comes out single.
        """
        rows = self._rows(ids)
        if skip_special_tokens:
            rows = rows[~self._is_special[rows]]
        if group_tokens:
            rows = rows[_run_starts(rows)]
        rows = rows[rows != self.blank_id]
        return self._finish("".join(map(self._pieces.__getitem__, rows.tolist())))

    def decode_offsets(self, ids: ArrayLike) -> Offsets:
        """Return the text of the frame ids ([T] integers) with the frames each character and each word covers."""
        rows = self._rows(ids)
        starts = _run_starts(rows)
        ends = np.append(starts[1:], len(rows))
        spoken = rows[starts] != self.blank_id
        found = zip(rows[starts][spoken].tolist(), starts[spoken].tolist(), ends[spoken].tolist(), strict=True)
        chars = tuple(Span(self._pieces[row], start, end) for row, start, end in found)
        words = tuple(_words(chars, delimiter=self.replace_word_delimiter_char))
        return Offsets(self._finish("".join(char.text for char in chars)), chars, words)

    def check_model(self, vocab_size: int, *, pad_token_id: int | None, source: str) -> None:
        """Raise VocabularyError unless a CTC head of ``vocab_size`` rows and blank ``pad_token_id`` fits.

        More rows than tokens are fine: their ids decode to unk_token. So are appended special tokens beyond the head
        (fine-tuned checkpoints often have <s> and </s> there): it cannot emit them. A token of vocab.json, or the
        blank, is not.
        """
        if pad_token_id != self.blank_id:
            raise VocabularyError(
                f"{source}: pad_token_id is {pad_token_id}, but {self.source} gives the blank {self.pad_token!r} "
                f"the id {self.blank_id}; correct pad_token_id in config.json or the vocabulary, or every text is wrong"
            )
        token, highest = max(self.tokens.items(), key=lambda item: item[1])
        if max(highest, self.blank_id) >= vocab_size:
            raise VocabularyError(
                f"{source}: vocab_size is {vocab_size}, but {self.source} gives {token!r} the id {highest} "
                f"and the blank {self.blank_id}; vocabulary and model weights are of different checkpoints or languages"
            )

    @cached_property
    def _letter_ids(self) -> frozenset[int]:
        return frozenset(self.letters.values())

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Every token's id. Special tokens without one are appended, in order."""
        ids = dict(self.tokens)
        ids.update((token.content, token.id) for token in self.added_tokens)
        for token in self._special:
            ids.setdefault(token, len(ids))
        return ids

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(sorted(self._ids, key=self._ids.__getitem__))

    @cached_property
    def _added(self) -> dict[str, AddedToken]:
        """The tokens matched as a whole: declared ones, special ones, and those of several characters."""
        added = {token.content: token for token in self.added_tokens}
        for token in self._special:
            added.setdefault(token, AddedToken(token, self._ids[token]))
        for token, id_ in self.tokens.items():
            if len(token) > 1:
                added[token] = AddedToken(token, id_, lstrip=True, rstrip=True)
        return added

    @cached_property
    def _special(self) -> tuple[str, ...]:
        usual = (self.bos_token, self.eos_token, self.unk_token, self.pad_token, self.word_delimiter_token)
        return tuple(token for token in self.special_tokens or usual if token)

    @cached_property
    def _splitter(self) -> AddedTokenSplitter:
        return AddedTokenSplitter(self._added)

    def _characters(self, piece: str) -> Iterable[int]:
        if self.do_lower_case:  # such vocabularies are upper-case
            piece = piece.upper()
        for char in piece.replace(" ", self.word_delimiter_token):
            id_ = self._ids.get(char, self.unk_id)
            if id_ is None:
                raise VocabularyError(
                    f"{self.source}: {char!r} is not in the vocabulary and the unk_token {self.unk_token!r} is not in "
                    "vocab.json; remove the character from the text"
                )
            yield id_

    @cached_property
    def _pieces(self) -> tuple[str, ...]:
        """What each row of the decoding table reads as: one row per id, and a last one for ids without a token."""
        names = (*self._names, self.unk_token)
        return tuple(self.replace_word_delimiter_char if name == self.word_delimiter_token else name for name in names)

    @cached_property
    def _is_special(self) -> np.ndarray:
        """[rows] bool. The word delimiter counts as text even where it is registered as special."""
        dropped = set(self._special) - {self.word_delimiter_token}
        return np.array([name in dropped for name in (*self._names, self.unk_token)])

    def _rows(self, ids: ArrayLike) -> np.ndarray:
        """Return [T] rows of the decoding table; equal rows are equal tokens."""
        array = np.asarray(ids)
        if array.size == 0 and array.ndim == 1:
            return np.zeros(0, np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise VocabularyError(f"{self.source}: ids must be [T] integers, got {array.dtype}{list(array.shape)}")
        return np.where((array >= 0) & (array < self.size), array, self.outside_id)

    def _finish(self, text: str) -> str:
        text = text.strip()
        if self.do_lower_case:
            text = text.lower()
        for spaced, closed in CLEAN_UP.items() if self.clean_up_tokenization_spaces else ():
            text = text.replace(spaced, closed)
        return text


def check_ids(tokens: Any, *, source: str, added: Sequence[AddedToken] = ()) -> None:
    """Raise VocabularyError, naming ``source`` and the token, unless the ids of all tokens are 0..n-1, each once."""
    if not isinstance(tokens, Mapping) or not tokens:
        raise VocabularyError(f"{source}: expected a JSON object of token: id, got {shown(tokens)}")
    owners: dict[int, str] = {}
    for token, id_ in [*tokens.items(), *((token.content, token.id) for token in added if token.content not in tokens)]:
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARS:
            raise VocabularyError(f"{source}: {shown(token)} is no token (a str of up to {MAX_TOKEN_CHARS} characters)")
        if isinstance(id_, bool) or not isinstance(id_, int) or id_ < 0:
            raise VocabularyError(f"{source}: the id of {token!r} must be an integer >= 0, got {shown(id_)}")
        if id_ in owners:
            raise VocabularyError(f"{source}: {owners[id_]!r} and {token!r} have the same id {id_}")
        owners[id_] = token
    if len({token.content for token in added}) < len(added):
        raise VocabularyError(f"{source}: an added token is listed twice in {[token.content for token in added]}")
    if max(owners) >= len(owners):
        missing = next(id_ for id_ in range(len(owners)) if id_ not in owners)
        raise VocabularyError(f"{source}: no token has the id {missing}, but {owners[max(owners)]!r} has {max(owners)}")
    for token in added:
        if tokens.get(token.content, token.id) != token.id:
            raise VocabularyError(
                f"{source}: {token.content!r} has the id {tokens[token.content]} there and {token.id} as an added token"
            )


def shown(value: Any) -> str:
    """``value`` as it may appear in a message: a corrupt file's 10 MB key must not."""
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 80 else text[:80] + "…"


def listed(items: Sequence[str]) -> str:
    """The first few as they may appear in a message, and how many more there are."""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(map(shown, items[:_LISTED])) + more


def _run_starts(rows: np.ndarray) -> np.ndarray:
    """Return the indices at which a run of equal values starts."""
    return np.flatnonzero(np.append(True, rows[1:] != rows[:-1])[: len(rows)])


def _words(chars: Iterable[Span], *, delimiter: str) -> Iterable[Span]:
    """Join neighbouring characters; any number of delimiters, leading and trailing ones too, only separate."""
    letters: list[Span] = []
    for char in (*chars, Span(delimiter, 0, 0)):
        if char.text != delimiter:
            letters.append(char)
        elif letters:
            yield Span("".join(letter.text for letter in letters), letters[0].start, letters[-1].end)
            letters = []

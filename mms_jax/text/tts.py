"""Text to the symbol ids of a VITS (MMS-TTS) checkpoint, as transformers' ``VitsTokenizer`` has it, to the last id.

That includes its special tokens: they are cut out of a text before it is split into characters, and only the stretches
between them get blanks. Many MMS checkpoints name symbol 0, a letter, as the padding token. English "kat" is then k and
"blank a blank t blank"; Meta's own code, which puts a blank before and after every letter, has one more.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mms_jax.errors import TextError, VocabularyError
from mms_jax.files import atomic_write, read_json, write_json
from mms_jax.text.added_tokens import AddedToken, AddedTokenSplitter
from mms_jax.text.ctc import CONFIG_FILE, EXTRA_KEYS, VOCAB_FILE
from mms_jax.text.romanize import ROMANIZED_LANGUAGES, romanize
from mms_jax.text.vocabulary import MAX_TOKEN_CHARS, check_ids, shown

__all__ = ["EncodedText", "VitsTokenizer"]

BLANK_ID = 0
TOKENIZER_CLASS = "VitsTokenizer"
FLAGS = {"add_blank": True, "normalize": True, "phonemize": True, "is_uroman": False}  # where the key is absent
# In the order in which transformers gives ids to special tokens that have none; other *_token keys follow.
NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
STANDARD_TOKENS = {f"{name}_token": {"unk": "<unk>", "pad": "<pad>"}.get(name) for name in NAMES}
MAX_SHOWN = 20  # symbols in one message


@dataclass(frozen=True)
class EncodedText:
    """A text as a VITS model reads it.

    ``ids``: symbol ids, blanks included. ``normalized_text``: what is really spoken. ``dropped``: the characters that
    were left out because the checkpoint has no symbol for them, in order, as they are after normalisation and
    romanisation; white space at the ends of the text does not count. ``romanized``: whether uroman rewrote the text.
    """

    ids: tuple[int, ...]
    normalized_text: str
    dropped: str = ""
    romanized: bool = False


@dataclass(frozen=True, eq=False)
class VitsTokenizer:
    """The symbols of a VITS checkpoint and how text becomes their ids; the fields are keys of tokenizer_config.json.

    ``vocab`` maps each symbol to its id; its ids and those of ``added_tokens`` are 0..n-1 without holes, and id 0 is
    the blank, whatever symbol it is. ``special_tokens`` lists all special tokens (empty: ``unk_token``, ``pad_token``);
    one that is not in ``vocab`` has no embedding and cannot be spoken. ``source`` names the vocabulary in errors.
    Raises VocabularyError if the vocabulary is malformed.
    """

    vocab: Mapping[str, int]
    _: KW_ONLY
    language: str | None = None
    add_blank: bool = True
    normalize: bool = True
    phonemize: bool = True
    is_uroman: bool = False
    pad_token: str | None = "<pad>"
    unk_token: str | None = "<unk>"
    special_tokens: tuple[str, ...] = ()
    added_tokens: tuple[AddedToken, ...] = ()
    source: str = "vocabulary"

    def __post_init__(self):
        check_ids(self.vocab, source=self.source, added=self.added_tokens)
        if "" in self.vocab:
            raise VocabularyError(f"{self.source}: the symbol with the id {self.vocab['']} is empty")

    @classmethod
    def from_files(
        cls,
        vocab_path: str | os.PathLike[str],
        *,
        tokenizer_config: Mapping[str, Any] | None,
        special_tokens_map: Mapping[str, Any] | None = None,
        added_tokens: Mapping[str, Any] | None = None,
    ) -> "VitsTokenizer":
        """Read vocab.json (at most 64 MB); the other arguments are the contents of the JSON files of these names.

        As in transformers, the legacy files (special_tokens_map, added_tokens) count only where tokenizer_config has no
        ``added_tokens_decoder``; ``phonemize`` is on where the key is absent, and ``is_uroman`` off. But with a
        language of ``ROMANIZED_LANGUAGES`` it must be there: off by mistake would drop all letters that are not Latin.
        Raises VocabularyError, naming file and key, for malformed files and for settings not reproduced here.
        """
        config = dict(tokenizer_config or {})
        if "added_tokens_decoder" not in config:
            config |= special_tokens_map or {}
            config["added_tokens_decoder"] = {str(id_): {"content": key} for key, id_ in (added_tokens or {}).items()}
        settings = _Settings(config, str(vocab_path))
        named = settings.named_tokens()
        return cls(
            read_json(vocab_path, error=VocabularyError),
            language=settings.language(),
            **{key: settings.flag(key) for key in FLAGS},
            pad_token=named["pad_token"],
            unk_token=named["unk_token"],
            special_tokens=settings.special_tokens(),
            added_tokens=settings.added_tokens(),
            source=settings.source,
        )

    @property
    def unk_id(self) -> int | None:
        """The id of characters outside the vocabulary; None if vocab.json has no ``unk_token``, so none is embedded."""
        return None if self.unk_token is None else self.vocab.get(self.unk_token)

    @property
    def pad_id(self) -> int:
        """The id to pad a batch with: ``pad_token``'s, or 0 if that has no embedding (padding is masked anyway)."""
        return BLANK_ID if self.pad_token is None else self.vocab.get(self.pad_token, BLANK_ID)

    @property
    def size(self) -> int:
        """The highest id that ``encode`` can give + 1."""
        return max(self._spoken.values()) + 1

    def check_model(self, vocab_size: int, *, source: str) -> None:
        """Raise VocabularyError unless the embedding of ``source``, which has ``vocab_size`` rows, has every id.

        More rows than ids are fine, as in transformers, which does not compare them: no text leads to the others.
        """
        if self.size > vocab_size:
            token = max(self._spoken, key=self._spoken.__getitem__)
            raise VocabularyError(
                f"{source}: vocab_size is {vocab_size}, but {self.source} gives {token!r} the id {self.size - 1}; "
                "vocabulary and model weights are of different checkpoints"
            )

    def encode(self, text: str, *, normalize: bool | None = None) -> EncodedText:
        """Return the ids of ``text``, and what of it they say.

        The text is put in lower case, except where an entry of the vocabulary matches as it is; in Romanian ț becomes
        ţ, the letter of the training texts; if ``is_uroman`` and not all is ASCII, it is romanised; then what has no
        symbol is dropped and white space at the ends removed. ``normalize`` (default: the checkpoint's own setting)
        False leaves out the first and the last step: every character must have a symbol, unless ``unk_token`` is one.
        Where the checkpoint reads phonemes, ``text`` must be phonemes, which ``normalize=False`` confirms.
        Raises TextError, naming the characters, if nothing is left to say or something cannot be said.
        """
        if not isinstance(text, str):
            raise TextError(f"a text to speak must be a str, got {type(text).__name__}")
        if self.phonemize and normalize is not False:
            raise TextError(
                "this checkpoint reads phonemes, which mms_jax does not make: pass espeak's as text with "
                f"normalize=False; if it reads letters, though, set phonemize to false in {CONFIG_FILE} ({self.source})"
            )
        normalize = self.normalize if normalize is None else normalize
        prepared, romanized = self._prepare(text, lower=normalize)
        prepared, dropped = self._filter(prepared) if normalize else (prepared, "")
        pieces = self._splitter.split(prepared)
        spoken = "".join(pieces)
        if not spoken.strip():
            raise TextError(f"nothing to say: {self._why_nothing(text, dropped)}")
        return EncodedText(tuple(self._piece_ids(pieces)), spoken, dropped, romanized)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text whose ids, as ``encode`` gives them, are ``ids`` ([T] integers, without padding).

        The blank is an id, not a character: the letter that shares its id 0 ("k" in English) is kept where it is
        spoken. transformers' ``decode`` loses or doubles that letter.
        Raises TextError if an id has no symbol or the blanks are not where ``encode`` puts them.
        """
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise TextError(f"ids must be [T] integers, got {array.dtype}{list(array.shape)}")
        names = {id_: token for token, id_ in self._ids.items()}
        rows: list[int] = array.tolist()
        if unknown := [row for row in rows if row not in names]:
            raise TextError(f"no symbol has the id {unknown[0]}; ids go from 0 to {len(names) - 1} in {self.source}")
        return "".join(names[row] for row in (self._without_blanks(rows) if self.add_blank else rows))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write vocab.json and tokenizer_config.json as transformers 4 and 5 read them; each file is replaced at once.

        The order of the vocabulary is kept: of two entries that begin alike, the first keeps its case.
        """
        config: dict[str, Any] = {key: getattr(self, key) for key in (*FLAGS, "language", "pad_token", "unk_token")}
        others = [token for token in self._special if token not in (self.pad_token, self.unk_token)]
        config |= {
            "tokenizer_class": TOKENIZER_CLASS,
            "additional_special_tokens": others,  # the name both versions take a list under
            # present even if empty: stale legacy files in the directory are then ignored
            "added_tokens_decoder": {str(token.id): self._declaration(token) for token in self.added_tokens},
        }
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / VOCAB_FILE) as file:
            file.write((json.dumps(dict(self.vocab), indent=2, ensure_ascii=False) + "\n").encode())
        write_json(folder / CONFIG_FILE, config)

    def _declaration(self, token: AddedToken) -> dict[str, Any]:
        flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
        return {"content": token.content, "normalized": False, "special": token.content in self._special, **flags}

    def _prepare(self, text: str, *, lower: bool) -> tuple[str, bool]:
        """Return the text in the letters of the checkpoint, and whether it was romanised for that."""
        prepared = self._lower(text) if lower else text
        if self.language == "ron":
            prepared = prepared.replace("ț", "ţ")
        if not self.is_uroman or prepared.isascii():
            return prepared, False
        return romanize(prepared, language=self.language), True

    def _lower(self, text: str) -> str:
        """Lower-case ``text`` character by character, stepping over the entries of the vocabulary."""
        pieces: list[str] = []
        place = 0
        while place < len(text):
            char = text[place]
            entry = next((entry for entry in self._cased.get(char, ()) if text.startswith(entry, place)), None)
            pieces.append(char.lower() if entry is None else entry)
            place += len(entry or char)
        return "".join(pieces)

    def _filter(self, text: str) -> tuple[str, str]:
        """Return what of ``text`` has a symbol, and what has none."""
        text = text.strip()
        dropped = "".join(char for char in text if char not in self.vocab)
        return "".join(char for char in text if char in self.vocab).strip(), dropped

    def _piece_ids(self, pieces: Iterable[str]) -> Iterable[int]:
        missing: dict[str, None] = {}
        for piece in pieces:
            whole = piece in self._whole
            ids = [self._id(token, missing) for token in ([piece] if whole else piece)]
            if whole or not self.add_blank:
                yield from ids
            else:
                yield BLANK_ID
                yield from (either for id_ in ids for either in (id_, BLANK_ID))
        if missing:
            raise TextError(f"no symbol for {_listed(missing)}; remove it, or pass normalize=True ({self.source})")

    def _id(self, token: str, missing: dict[str, None]) -> int:
        id_ = self._spoken.get(token, None if token in self._whole else self.unk_id)
        if id_ is None:
            missing[token] = None
        return BLANK_ID if id_ is None else id_

    def _without_blanks(self, rows: list[int]) -> Iterable[int]:
        """Take whole tokens and stretches of "blank, (symbol, blank) once or more" apart.

        If symbol 0 is a whole token, both may begin with 0, which then is a blank only before another symbol.
        """
        unknown = self.unk_id or -1  # a whole token too, but it mostly stands for a character within a stretch
        whole = {self._ids[token] for token in self._whole} - {unknown}

        def is_over(place: int) -> bool:
            return place >= len(rows) or rows[place] in whole

        place = 0
        while place < len(rows):
            row = rows[place]
            if row == unknown or (row in whole and (row != BLANK_ID or is_over(place + 1))):
                yield row
                place += 1
                continue
            self._require_blank(rows, place)
            place += 1
            while not is_over(place):
                yield rows[place]
                place += 1
                if rows[place - 1] == unknown and rows[place : place + 1] != [BLANK_ID]:
                    break  # the text itself had the token there
                self._require_blank(rows, place)
                place += 1

    def _require_blank(self, rows: list[int], place: int) -> None:
        if place >= len(rows) or rows[place] != BLANK_ID:
            raise TextError(f"the ids have no blank at {place}; pass them as encode gives them")

    def _why_nothing(self, text: str, dropped: str) -> str:
        if not dropped:
            return f"{shown(text)} is empty" + " after romanisation" * bool(text.strip())
        language = "" if self.language is None else f" for {self.language!r}"
        symbols = f"{_listed(symbol for symbol in self.vocab if symbol.strip())} ({self.source})"
        return f"{_listed(dict.fromkeys(dropped))} dropped; the symbols of this checkpoint{language} are {symbols}"

    @cached_property
    def _special(self) -> tuple[str, ...]:
        return tuple(token for token in self.special_tokens or (self.unk_token, self.pad_token) if token)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Every token's id. Special tokens without one are appended, in order."""
        ids = {**self.vocab, **{token.content: token.id for token in self.added_tokens}}
        for token in self._special:
            ids.setdefault(token, len(ids))
        return ids

    @cached_property
    def _spoken(self) -> dict[str, int]:
        """The ids with an embedding: transformers appends special tokens to the vocabulary, but not to the model."""
        special = set(self._special)
        return {token: id_ for token, id_ in self._ids.items() if token in self.vocab or token not in special}

    @cached_property
    def _whole(self) -> dict[str, AddedToken]:
        """The tokens that are cut out of a text before it is split into characters, in order of id."""
        whole = {token: AddedToken(token, self._ids[token]) for token in self._special}
        whole |= {token.content: token for token in self.added_tokens}
        return dict(sorted(whole.items(), key=lambda item: item[1].id))

    @cached_property
    def _splitter(self) -> AddedTokenSplitter:
        return AddedTokenSplitter(self._whole)

    @cached_property
    def _cased(self) -> dict[str, list[str]]:
        """Per first character the entries to step over, in the order in which they are tried."""
        cased: dict[str, list[str]] = {}
        for token in (*self.vocab, *self._whole):
            entries = cased.setdefault(token[0], [])
            if not entries or entries[-1] != token[0]:  # the bare character always matches: nothing after it is tried
                entries.append(token)
        return cased


class _Settings:
    """tokenizer_config.json with the legacy files merged in; ``source`` names the vocabulary beside it."""

    def __init__(self, config: dict[str, Any], source: str):
        self.config, self.source = config, source
        self.require(config.get("tokenizer_class") in (TOKENIZER_CLASS, None), "tokenizer_class", TOKENIZER_CLASS)
        self.require(not config.get("split_special_tokens"), "split_special_tokens", "false; true is not supported")

    def require(self, fulfilled: bool, key: str, wanted: str, **found: Any) -> None:
        if not fulfilled:
            value = found.get("value", self.config.get(key))
            raise VocabularyError(f"{self.source}: {key} in {CONFIG_FILE} must be {wanted}, got {shown(value)}")

    def language(self) -> str | None:
        language = self.config.get("language")
        self.require(language is None or isinstance(language, str), "language", "a language code or null")
        return language

    def flag(self, key: str) -> bool:
        if key == "is_uroman" and key not in self.config:
            language = self.config.get("language")
            wanted = f"given for {language!r}: true if, like Meta's checkpoint, this one reads romanised text, or false"
            self.require(language not in ROMANIZED_LANGUAGES, key, wanted)
        value = self.config.get(key, FLAGS[key])
        self.require(isinstance(value, bool), key, "true or false")
        return value

    def named_tokens(self) -> dict[str, str | None]:
        """Return the special tokens by their keys, in order."""
        named = {key: self.config.get(key, default) for key, default in STANDARD_TOKENS.items()}
        named |= {key: value for key, value in self.config.items() if key.endswith("_token") and isinstance(value, str)}
        return {key: None if value is None else self.content(value, key) for key, value in named.items()}

    def special_tokens(self) -> tuple[str, ...]:
        extra = next((self.config[key] for key in EXTRA_KEYS if self.config.get(key)), [])
        self.require(isinstance(extra, Mapping | list), EXTRA_KEYS[0], "a list", value=extra)
        values = [*(extra.values() if isinstance(extra, Mapping) else extra)]
        values += [entry for entry in self.declared().values() if entry.get("special")]
        tokens = [*self.named_tokens().values(), *(self.content(value, EXTRA_KEYS[0]) for value in values)]
        return tuple(dict.fromkeys(token for token in tokens if token))

    def added_tokens(self) -> tuple[AddedToken, ...]:
        flags = ("lstrip", "rstrip", "single_word")
        return tuple(
            AddedToken(entry["content"], int(id_), **{flag: bool(entry.get(flag)) for flag in flags})
            for id_, entry in self.declared().items()
        )

    def declared(self) -> dict[str, Mapping[str, Any]]:
        """Return the added tokens as the file has them, by id."""
        key = "added_tokens_decoder"
        entries = self.config[key]
        self.require(isinstance(entries, Mapping), key, "an object")
        for id_, entry in entries.items():
            self.require(str(id_).isdecimal() and len(str(id_)) < 10, key, "tokens by their ids", value=id_)
            self.require(isinstance(entry, Mapping), key, "tokens by their ids", value=entry)
            self.content(entry, key)
        return {id_: entry for id_, entry in entries.items() if entry["content"]}

    def content(self, value: Any, key: str) -> str:
        """Return the text of a token, which is a str or the JSON of an added token."""
        content = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(content, str) or len(content) > MAX_TOKEN_CHARS:
            raise VocabularyError(f"{self.source}: {key} in {CONFIG_FILE} must be a token, got {shown(value)}")
        return content


def _listed(tokens: Iterable[str]) -> str:
    several = [*tokens]
    more = [f"{len(several) - MAX_SHOWN} more"] * (len(several) > MAX_SHOWN)
    return ", ".join([*map(shown, several[:MAX_SHOWN]), *more])

"""The vocabulary files of a CTC checkpoint, as transformers' ``Wav2Vec2CTCTokenizer`` reads and writes them.

``CTCTokenizer`` is all of a checkpoint's vocabularies, ``CTCVocabulary`` (see vocabulary.py) the one of a language.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mms_jax.errors import VocabularyError
from mms_jax.files import read_json, write_json
from mms_jax.text.added_tokens import AddedToken
from mms_jax.text.vocabulary import MAX_TOKEN_CHARS, CTCVocabulary, Offsets, Span, shown

__all__ = ["CTCTokenizer", "CTCVocabulary", "Offsets", "Span"]

VOCAB_FILE = "vocab.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
TOKENIZER_CLASSES = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer", None)
EXTRA_KEYS = ("extra_special_tokens", "additional_special_tokens")
# keys of a saved config that are the state of one load
RUNTIME_KEYS = ("backend", "is_local", "local_files_only", "model_specific_special_tokens", "name_or_path")
# In transformers' order, by which special tokens without an id get theirs; other *_token keys and extra ones follow.
STANDARD_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": None,
    "pad_token": "<pad>",
    "cls_token": None,
    "mask_token": None,
    "word_delimiter_token": "|",
}


@dataclass(frozen=True, eq=False)
class CTCTokenizer:
    """All vocabularies of a checkpoint: ``vocab`` is vocab.json, ``config`` tokenizer_config.json.

    ``vocab`` is flat ({token: id}) or nested ({language: {token: id}}). Raises VocabularyError for anything else and
    for settings whose effect this library does not reproduce; one language's ids are checked when it is asked for.
    """

    vocab: Mapping[str, Any]
    config: Mapping[str, Any]
    source: str = "vocabulary"

    def __post_init__(self):
        if not isinstance(self.vocab, Mapping) or not self.vocab:
            raise VocabularyError(f"{self.source}: expected a non-empty JSON object, got {shown(self.vocab)}")
        for key, value in self.vocab.items():
            if not isinstance(key, str) or len(key) > MAX_TOKEN_CHARS or (self.is_nested and not key):
                raise VocabularyError(f"{self.source}: the key {shown(key)} is neither a token nor a language")
            if isinstance(value, Mapping) != self.is_nested:
                raise VocabularyError(f"{self.source}: {key!r} makes it neither flat nor nested by language")
        if self.config.get("tokenizer_class") not in TOKENIZER_CLASSES:
            raise VocabularyError(
                f"{self.source}: tokenizer_class is {shown(self.config['tokenizer_class'])}; "
                "only Wav2Vec2CTCTokenizer's way of reading text is reproduced here"
            )
        if self.config.get("split_special_tokens"):
            raise VocabularyError(f"{self.source}: split_special_tokens in {CONFIG_FILE} is not supported; remove it")
        if not self.is_nested:
            self.vocabulary()

    @classmethod
    def from_files(
        cls,
        vocab: Path,
        *,
        tokenizer_config: Mapping[str, Any] | None = None,
        special_tokens_map: Mapping[str, Any] | None = None,
        added_tokens: Mapping[str, Any] | None = None,
    ) -> "CTCTokenizer":
        """Read ``vocab`` (at most 64 MB); the other arguments are the contents of the JSON files of these names.

        As in transformers, the legacy files (special_tokens_map, added_tokens) count only where tokenizer_config has no
        ``added_tokens_decoder``.
        """
        config = dict(tokenizer_config or {})
        if "added_tokens_decoder" not in config:
            config |= special_tokens_map or {}
            declared = (added_tokens or {}).items()
            config["added_tokens_decoder"] = {
                str(id_): {"content": token, "normalized": False} for token, id_ in declared
            }
        return cls(read_json(vocab, error=VocabularyError), config, source=str(vocab))

    @classmethod
    def from_directory(cls, directory: str | os.PathLike[str]) -> "CTCTokenizer":
        """Read a checkpoint directory's vocab.json and those tokenizer files that exist beside it."""
        folder = Path(directory)
        beside = (CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE)
        config, special, added = (
            read_json(folder / name, error=VocabularyError) if (folder / name).exists() else None for name in beside
        )
        return cls.from_files(
            folder / VOCAB_FILE, tokenizer_config=config, special_tokens_map=special, added_tokens=added
        )

    @property
    def is_nested(self) -> bool:
        """Whether there is one vocabulary per language."""
        return isinstance(next(iter(self.vocab.values())), Mapping)

    @property
    def languages(self) -> tuple[str, ...]:
        """The tags of a nested vocabulary, in its order; empty for a flat one."""
        return tuple(self.vocab) if self.is_nested else ()

    @property
    def target_lang(self) -> str | None:
        """The language tokenizer_config.json selects."""
        return self._setting("target_lang", str, None)

    def vocabulary(self, language: str | None = None) -> CTCVocabulary:
        """Return the vocabulary of ``language`` (a tag of ``languages``; None: ``target_lang``, or the flat one).

        Raises VocabularyError, naming file and key, if there is none or it is malformed.
        """
        chosen = self.target_lang if language is None else language
        if not self.is_nested and chosen is not None:
            raise VocabularyError(f"{self.source}: a flat vocabulary, so none for the language {chosen!r}")
        if not self.is_nested:
            return self._build(self.vocab, self._declared(), source=self.source)
        if chosen is None:
            raise VocabularyError(f"{self.source}: holds {len(self.vocab)} languages and no target_lang; name one")
        if chosen not in self.vocab:
            raise VocabularyError(f"{self.source}: no language {chosen!r} among its {len(self.vocab)}")
        tokens = self.vocab[chosen]
        return self._build(tokens, self._declared_for(chosen), source=f"{self.source}, language {chosen!r}")

    def with_language(self, language: str, vocab: Mapping[str, int], *, overwrite: bool = False) -> "CTCTokenizer":
        """Return a tokenizer that has ``vocab`` ({token: id}) under ``language`` too (target_lang, if none was set).

        Raises VocabularyError if this one is flat, if ``vocab`` is malformed, or if the language is there already and
        ``overwrite`` is not set.
        """
        if not self.is_nested:
            raise VocabularyError(f"{self.source}: a flat vocabulary; {language!r} cannot be added to it")
        if language in self.vocab and not overwrite:
            raise VocabularyError(f"{self.source}: has {language!r} already; overwrite=True replaces it")
        config = {**self.config, "target_lang": self.target_lang or language}
        added = CTCTokenizer({**self.vocab, language: vocab}, config, source=self.source)
        added.vocabulary(language)
        return added

    def save(self, directory: str | os.PathLike[str], *, target_lang: str | None = None) -> None:
        """Write vocab.json and tokenizer_config.json as transformers 4 and 5 read them; each file is replaced at once.

        ``target_lang``, for a nested vocabulary: what transformers selects on load (default: this tokenizer's own).
        """
        chosen = self.vocabulary(target_lang)
        config = {key: value for key, value in self.config.items() if key not in EXTRA_KEYS + RUNTIME_KEYS}
        config |= {key: self._token(key) for key in STANDARD_TOKENS}
        if extra := self._extra_tokens():
            config["additional_special_tokens"] = extra  # the name both versions take a list under
        config |= {
            "tokenizer_class": TOKENIZER_CLASSES[0],
            "do_lower_case": chosen.do_lower_case,
            "replace_word_delimiter_char": chosen.replace_word_delimiter_char,
            "clean_up_tokenization_spaces": chosen.clean_up_tokenization_spaces,
            "target_lang": target_lang or self.target_lang,
            # present even if empty: stale legacy files in the directory are then ignored
            "added_tokens_decoder": self._declared_to_save(),
        }
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        nested = {language: dict(self.vocab[language]) for language in self.languages}
        write_json(folder / VOCAB_FILE, nested or dict(self.vocab))
        write_json(folder / CONFIG_FILE, config)

    def _build(self, tokens: Any, added: list[AddedToken], *, source: str) -> CTCVocabulary:
        return CTCVocabulary(
            tokens,
            pad_token=self._needed_token("pad_token"),
            unk_token=self._needed_token("unk_token"),
            bos_token=self._token("bos_token"),
            eos_token=self._token("eos_token"),
            word_delimiter_token=self._needed_token("word_delimiter_token"),
            replace_word_delimiter_char=self._setting("replace_word_delimiter_char", str, " "),
            do_lower_case=self._setting("do_lower_case", bool, False),
            clean_up_tokenization_spaces=self._setting("clean_up_tokenization_spaces", bool, False),
            special_tokens=self._special_tokens(),
            added_tokens=tuple(added),
            source=source,
        )

    def _setting(self, key: str, kind: type, default: Any) -> Any:
        value = self.config.get(key)
        if value is not None and not isinstance(value, kind):
            raise VocabularyError(f"{self.source}: {key} in {CONFIG_FILE} is no {kind.__name__}: {shown(value)}")
        return default if value is None else value

    def _token(self, key: str) -> str | None:
        value = self.config.get(key, STANDARD_TOKENS.get(key))
        return None if value is None else self._content(value, key)

    def _needed_token(self, key: str) -> str:
        token = self._token(key)
        if not token:
            raise VocabularyError(f"{self.source}: {key} in {CONFIG_FILE} is {token!r}; a CTC vocabulary needs one")
        return token

    def _content(self, value: Any, key: str) -> str:
        """Return the text of a token, which is a str or the JSON of an added token."""
        content = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(content, str) or len(content) > MAX_TOKEN_CHARS:
            raise VocabularyError(f"{self.source}: {key} in {CONFIG_FILE} must be a token, got {shown(value)}")
        return content

    def _special_tokens(self) -> tuple[str, ...]:
        named = [self._token(key) for key in STANDARD_TOKENS]
        others = [key for key in self.config if key.endswith("_token") and key not in STANDARD_TOKENS]
        named += [self._token(key) for key in others if isinstance(self.config[key], str)]
        return tuple(dict.fromkeys(token for token in [*named, *self._extra_tokens()] if token))

    def _extra_tokens(self) -> list[str]:
        extra = self.config.get("extra_special_tokens") or self.config.get("additional_special_tokens") or []
        if not isinstance(extra, Mapping | list):
            raise VocabularyError(f"{self.source}: extra_special_tokens must be a list, got {shown(extra)}")
        values = extra.values() if isinstance(extra, Mapping) else extra
        return list(dict.fromkeys(self._content(value, "extra_special_tokens") for value in values))

    def _declared(self) -> list[AddedToken]:
        """Return the added tokens of tokenizer_config.json (or the legacy added_tokens.json)."""
        entries = self._setting("added_tokens_decoder", Mapping, {})
        tokens = []
        for id_, entry in entries.items():
            if not isinstance(entry, Mapping) or not str(id_).isdecimal() or len(str(id_)) > 9:
                raise VocabularyError(f"{self.source}: added_tokens_decoder has {shown(id_)}: {shown(entry)}")
            flags = {key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word")}
            tokens.append(AddedToken(self._content(entry, "added_tokens_decoder"), int(id_), **flags))
        return [token for token in tokens if token.content]

    def _declared_for(self, language: str) -> list[AddedToken]:
        """Return the added tokens that hold for ``language`` of a nested vocabulary.

        Their ids belong to the language they were saved with, target_lang; elsewhere they would be other tokens' ids.
        Even there, those of another language may be left over (transformers 4 kept them on a change of language).
        """
        declared = self._declared()
        if language != self.target_lang or not declared:
            return []
        own = self.vocab[language]
        others = {token for tag, tokens in self.vocab.items() if tag != language for token in tokens}
        return [
            token
            for token in declared
            if own.get(token.content) == token.id
            or not (token.content in own or token.content in others or token.id in own.values())
        ]

    def _declared_to_save(self) -> dict[str, Any]:
        """Return the ``added_tokens_decoder`` to write: none for many languages, where ids would be other letters."""
        entries = self._setting("added_tokens_decoder", Mapping, {})
        if not self.is_nested:
            return dict(entries)
        saved = self.target_lang
        if saved is None or saved not in self.vocab:
            return {}
        holding = {token.id: token.content for token in self._declared_for(saved)}
        if len(self.languages) == 1:
            return {id_: entry for id_, entry in entries.items() if int(id_) in holding}
        known = (*self.vocab[saved], *self._special_tokens())
        lost = [content for content in holding.values() if content not in known]
        if lost:
            raise VocabularyError(
                f"{self.source}: {lost[0]!r} is an added token of {saved!r} alone, which a file of many languages "
                "cannot say; put it into that language's vocabulary"
            )
        return {}

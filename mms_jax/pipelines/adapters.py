"""The languages of a loaded recognition checkpoint: which there are, and how the adapter of each is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from mms_jax.checkpoint import Directory, Source, adapter_filename, find_adapter, load_adapter
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import LanguageError, VocabularyError
from mms_jax.files import read_json
from mms_jax.languages import resolve_language
from mms_jax.models.trees import Params
from mms_jax.text.ctc import CTCTokenizer, CTCVocabulary

Tag = str | None  # a checkpoint's name for a language; None: the one of a checkpoint that names none


def available_languages(source: Source, config: Wav2Vec2Config, tokenizer: CTCTokenizer) -> list[str]:
    """Tags of a checkpoint that have a vocabulary and, as far as the files at hand tell, an adapter."""
    tags = list(tokenizer.languages)
    if not config.has_adapters and len(tags) > 1:
        return [tag for tag in tags if tag == tokenizer.target_lang]  # one head: it can be of one language only
    if len(tags) < 2 or not isinstance(source, Directory):
        return tags  # a hub repository is not listed: its vocabulary says what it was published with
    files = set(source.filenames())
    return [tag for tag in tags if f"adapter.{tag}.safetensors" in files]


@dataclass(frozen=True)
class LanguageAdapter:
    """One language as its files hold it."""

    language: Tag
    leaves: Params  # adapter blocks, layers stacked on a leading axis, and lm_head
    vocabulary: CTCVocabulary

    @property
    def vocab_size(self) -> int:
        """Columns of the head; a vocabulary may have fewer tokens."""
        return self.leaves["lm_head"]["kernel"].shape[1]


@dataclass
class AdapterStore:
    """Finds and reads adapters; reading one never touches the base."""

    source: Source
    config: Wav2Vec2Config
    tokenizer: CTCTokenizer
    base_leaves: Params  # the adapter and head inside the base weights, layers stacked
    dtype: Any
    _pinned: dict[str, LanguageAdapter] = field(default_factory=dict)  # added by hand: nowhere to read them again

    @property
    def languages(self) -> list[str]:
        """Tags that can be asked for: the checkpoint's and those added by hand."""
        return [*self._published, *(tag for tag in self._pinned if tag not in self._published)]

    @cached_property
    def _published(self) -> list[str]:
        return available_languages(self.source, self.config, self.tokenizer)

    def resolve(self, language: str | None) -> Tag:
        """The tag for what a user wrote; None stays None where the checkpoint has one vocabulary only.

        Raises:
            LanguageError: unknown here, or none given although there are several.
        """
        available = self.languages
        if not available and self.tokenizer.is_nested:
            raise LanguageError(
                f"{self.source.name}: vocab.json names {len(self.tokenizer.languages)} languages, but there is no "
                "adapter.<language>.safetensors for any of them"
            )
        if language is not None:
            if not available:
                raise LanguageError(f"{self.source.name} has a single vocabulary and no languages; leave language out")
            return resolve_language(language, available, source=self.source.name, task="asr")
        if len(available) > 1:
            raise LanguageError(
                f"{self.source.name} recognises {len(available)} languages; say which, for example "
                f"language={available[0]!r} (asr.languages lists them)"
            )
        return available[0] if available else None

    def read(self, tag: Tag) -> LanguageAdapter:
        """Read the adapter of a tag from ``resolve``; nothing is kept.

        Raises:
            CheckpointError, VocabularyError: its file does not fit this model; names the file and the tensor or key.
        """
        if tag in self._pinned:
            return self._pinned[tag]
        vocabulary = self.tokenizer.vocabulary(tag)
        if self.config.has_adapters and tag is not None and self._has_own_file(tag):
            return self._read_file(find_adapter(self.source, tag), tag, vocabulary)
        return self._checked(LanguageAdapter(tag, self.base_leaves, vocabulary), where=self.source.name)

    def add(
        self, path: str | PathLike[str], *, language: str, vocab: str | PathLike[str] | Mapping[str, int] | None = None
    ) -> LanguageAdapter:
        """Read an adapter file from anywhere under a tag of the user's choice.

        Its vocabulary is ``vocab`` (a mapping or a vocab.json), or else the vocab.json beside the file, or else the
        checkpoint's own for that tag. A nested one is asked for the tag in the file's name, then for ``language``.
        """
        adapter_filename(language)  # refuses a tag that could not be saved again
        vocabulary = self._vocabulary_for(Path(path), language, vocab)
        self._pinned[language] = self._read_file(Path(path), language, vocabulary)
        return self._pinned[language]

    def _read_file(self, path: Path, tag: Tag, vocabulary: CTCVocabulary) -> LanguageAdapter:
        leaves = load_adapter(path, self.config, dtype=self.dtype, stack_layers=True)
        return self._checked(LanguageAdapter(tag, leaves, vocabulary), where=str(path))

    def _checked(self, adapter: LanguageAdapter, *, where: str) -> LanguageAdapter:
        pad_token_id = self.config.pad_token_id
        adapter.vocabulary.check_model(adapter.vocab_size, pad_token_id=pad_token_id, source=where)
        return adapter

    def _has_own_file(self, tag: str) -> bool:
        """Whether the adapter must come from a file: only a sole language can be the one in the base weights."""
        return len(self.tokenizer.languages) > 1 or self.source.find(adapter_filename(tag)) is not None

    def _vocabulary_for(self, path: Path, language: str, vocab: Any) -> CTCVocabulary:
        beside = path.parent / "vocab.json"
        if vocab is None and beside.is_file():
            vocab = beside
        if vocab is None and language in self.tokenizer.languages:
            return self.tokenizer.vocabulary(language)
        if vocab is None:
            raise VocabularyError(
                f"{path}: no vocab.json beside it and no {language!r} in the checkpoint's; pass vocab="
            )
        tokens = vocab if isinstance(vocab, Mapping) else read_json(vocab)
        if any(isinstance(value, Mapping) for value in tokens.values()):
            own_tag = path.name.removeprefix("adapter.").removesuffix(".safetensors")
            nested = tokens.get(own_tag, tokens.get(language))
            if not isinstance(nested, Mapping):
                raise VocabularyError(f"{vocab}: holds several languages, but neither {own_tag!r} nor {language!r}")
            tokens = nested
        return _nested({language: tokens}, self.tokenizer, language, f"vocabulary of {path}").vocabulary(language)


def language_tokenizer(adapter: LanguageAdapter, tokenizer: CTCTokenizer) -> CTCTokenizer:
    """A tokenizer of this adapter's vocabulary alone, with the settings of ``tokenizer``."""
    if adapter.language is None:
        return tokenizer
    return _nested({adapter.language: dict(adapter.vocabulary.tokens)}, tokenizer, adapter.language, "vocab.json")


def merged_tokenizer(
    directory: Path, adapter: LanguageAdapter, tokenizer: CTCTokenizer, *, overwrite: bool
) -> CTCTokenizer:
    """The vocabularies in ``directory``, or none yet, with this adapter's added."""
    assert adapter.language is not None
    if not (directory / "vocab.json").is_file():
        return language_tokenizer(adapter, tokenizer)
    there = CTCTokenizer.from_directory(directory)
    tokens = dict(adapter.vocabulary.tokens)
    if there.is_nested and there.vocab.get(adapter.language) == tokens:
        return there
    return there.with_language(adapter.language, tokens, overwrite=overwrite)


def _nested(vocab: Mapping[str, Any], tokenizer: CTCTokenizer, language: str, source: str) -> CTCTokenizer:
    """Added tokens stay behind: their ids are those of another vocabulary."""
    config = {key: value for key, value in tokenizer.config.items() if key != "added_tokens_decoder"}
    return CTCTokenizer(vocab, {**config, "target_lang": language}, source=source)

"""A loaded recognition model: one base, an adapter for every language; its trees, and its files written again."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from mms_jax.checkpoint import adapter_filename, save_adapter, save_ctc, save_processor
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, LanguageError
from mms_jax.features import FeatureExtractor
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import Params, merge_trees, unstack_layers
from mms_jax.pipelines.adapters import AdapterStore, LanguageAdapter, Tag, language_tokenizer, merged_tokenizer
from mms_jax.pipelines.bank import AdapterBank
from mms_jax.pipelines.hub import Pushable, push_adapter
from mms_jax.pipelines.lid import LanguageIdentifier, load_lid
from mms_jax.pipelines.routing import AUTO
from mms_jax.text.ctc import CTCTokenizer

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class AdaptedModel(Pushable):
    """What ``SpeechRecognizer`` is apart from recognising."""

    _task = "automatic-speech-recognition"

    def __init__(
        self,
        config: Wav2Vec2Config,
        feature_extractor: FeatureExtractor,
        store: AdapterStore,
        bank: AdapterBank,
        base: Params,
        dtype: Any,
        scan_layers: bool,
        lid: str | PathLike[str] | LanguageIdentifier | None,
    ):
        self.feature_extractor = feature_extractor
        self._config = config
        self._store = store
        self._bank = bank
        self._base = base
        self._dtype = dtype
        self._scan_layers = scan_layers
        self._lid = lid
        self._source = store.source
        self._current: LanguageAdapter | None = None  # chosen by load_adapter
        self._auto = False  # chosen instead: identify the language of every item

    def __repr__(self) -> str:
        chosen = f"{self.language!r} chosen" if self.language else "none chosen"
        name, count = self._store.source.name, len(self.languages)
        return f"{type(self).__name__}({name!r}, {count} languages, {chosen}, {jnp.dtype(self._dtype)})"

    @property
    def languages(self) -> list[str]:
        """Tags of the languages this model recognises; empty for a checkpoint of one nameless language."""
        return self._store.languages

    @property
    def language(self) -> str | None:
        """The language recognised where a call names none; None until one is chosen."""
        return AUTO if self._auto else self._current.language if self._current else None

    @property
    def lid(self) -> LanguageIdentifier:
        """The identification model that ``language="auto"`` asks; loaded when it is first needed.

        Raises:
            LanguageError: none was given to ``load_asr``. CheckpointError: it cannot be loaded.
        """
        if self._lid is None:
            raise LanguageError(
                "language='auto' needs an identification model: load_asr(…, lid='facebook/mms-lid-126')"
            )
        if not isinstance(self._lid, LanguageIdentifier):
            self._lid = load_lid(self._lid, dtype=self._dtype, scan_layers=self._scan_layers)
        return self._lid

    @property
    def tokenizer(self) -> CTCTokenizer:
        """The checkpoint's vocabularies."""
        return self._store.tokenizer

    @property
    def config(self) -> Wav2Vec2Config:
        """The architecture, with the current language's vocabulary size."""
        return self._config if self._current is None else self._config.replace(vocab_size=self._current.vocab_size)

    @property
    def module(self) -> Wav2Vec2ForCTC:
        """The Flax module of ``params``."""
        return Wav2Vec2ForCTC(self.config, self._dtype, self._scan_layers)

    @property
    def params(self) -> Params:
        """The parameter tree with the current language's adapter and head (before one is chosen, those in the base)."""
        leaves = self._store.base_leaves if self._current is None else self._current.leaves
        return merge_trees(self._base, self._as_module(leaves))

    def _as_module(self, leaves: Params) -> Params:
        """Leaves of an adapter, whose layers are stacked, as ``module`` has them."""
        return leaves if self._scan_layers else unstack_layers(leaves)

    def load_adapter(
        self,
        adapter: str | PathLike[str],
        *,
        language: str | None = None,
        vocab: str | PathLike[str] | Mapping[str, int] | None = None,
    ) -> None:
        """Choose the language to recognise from now on; the base stays, and so does what is compiled of it.

        Only a wider vocabulary than any before has the model compiled anew.

        Args:
            adapter: a language of this checkpoint, or the path of an adapter file; or "auto".
            language: with a path: the tag to keep it under.
            vocab: with a path: its vocabulary, a mapping or a vocab.json; default the one beside the file.

        Raises:
            LanguageError: no such language here. CheckpointError: the file does not fit this model.
        """
        is_file = isinstance(adapter, PathLike) or str(adapter).endswith((".safetensors", ".bin"))
        if is_file and language is None:
            raise LanguageError(f"{adapter}: say which language it is, language='xyz'")
        if is_file and not Path(adapter).is_file():
            raise CheckpointError(f"{adapter}: no such file")
        if not is_file and (language is not None or vocab is not None):
            raise LanguageError(f"{adapter!r} is no adapter file (*.safetensors), so language= and vocab= do not apply")
        if language == AUTO:
            raise LanguageError(f"{adapter}: language='auto' asks for identification; keep it under another tag")
        if adapter == AUTO:
            _ = self.lid  # not later, in the middle of a list
            chosen = None
        elif is_file:
            assert language is not None
            chosen = self._store.add(adapter, language=language, vocab=vocab)
            self._bank.forget(language)
        else:
            chosen = self._store.read(self._store.resolve(str(adapter)))
        self._current, self._auto = chosen, adapter == AUTO  # last: what fails changes nothing

    def save_adapter(
        self, directory: str | PathLike[str], *, language: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write ``adapter.<language>.safetensors`` and add its vocabulary to the directory's nested vocab.json.

        The directory's other languages stay. transformers loads the result where the base's files are.

        Raises:
            LanguageError: no language chosen. FileExistsError, VocabularyError: it is there already, no ``overwrite``.
        """
        chosen = self._adapter(language)
        if chosen.language is None:
            raise LanguageError("this checkpoint's language has no tag; load its adapter under one first")
        directory = Path(directory)
        path = directory / adapter_filename(chosen.language)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; overwrite=True replaces it")
        tokenizer = merged_tokenizer(directory, chosen, self.tokenizer, overwrite=overwrite)
        save_adapter(path, config=self._config, params=unstack_layers(chosen.leaves))
        tokenizer.save(directory)
        return path

    def save_pretrained(self, directory: str | PathLike[str], *, params: Params | None = None) -> None:
        """Write a whole checkpoint, processor included, that this library and transformers load.

        Its base weights hold the current language's adapter and head, and its vocabulary is that language's.

        Args:
            directory: made if it is not there; files of the same names are replaced.
            params: trained parameters, a tree like ``params``; default those.
        """
        chosen = self._adapter(None)
        tree = merge_trees(self._base, self._as_module(chosen.leaves)) if params is None else params
        tree = unstack_layers(tree) if self._scan_layers else tree
        save_ctc(directory, config=self._config.replace(vocab_size=chosen.vocab_size), params=tree)
        save_processor(directory, self.feature_extractor, language_tokenizer(chosen, self.tokenizer))

    def push_adapter_to_hub(
        self,
        repo_id: str,
        *,
        language: str | None = None,
        overwrite: bool = False,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Add to a hub repository what ``save_adapter`` writes, in one commit; its other languages stay.

        Args:
            repo_id: ``user/name``; made if it is not there.
            language: default the current one.
            overwrite: the language may be there, and is replaced.
            private, token, commit_message, revision, create_pr: as ``push_to_hub``.

        Raises:
            LanguageError: no language chosen. VocabularyError: it is there already, no ``overwrite``.
            CheckpointError: not pushed, or the repository holds another base; names it and the remedy.
        """
        return push_adapter(
            self._store.source,
            lambda directory: self.save_adapter(directory, language=language, overwrite=overwrite),
            language=self._adapter(language).language,
            repo_id=repo_id,
            overwrite=overwrite,
            message=commit_message,
            to={"private": private, "token": token, "revision": revision, "create_pr": create_pr},
        )

    @property
    def _spoken(self) -> list[str]:
        language = self._adapter(None).language
        return [] if language is None else [language]

    @property
    def _widest(self) -> str | None:
        """The language with the most tokens."""
        vocabularies = self._store.tokenizer.vocab if self._store.tokenizer.is_nested else {}
        return max(self.languages, key=lambda tag: len(vocabularies.get(tag, ())), default=None)

    def _tag(self, language: str | None) -> Tag:
        if language is None and self._current is not None:
            return self._current.language
        return self._store.resolve(language)

    def _adapter(self, language: str | None) -> LanguageAdapter:
        if language is None and self._current is not None:
            return self._current
        return self._store.read(self._store.resolve(language))

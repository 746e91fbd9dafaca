"""Models and adapters pushed to the hub: what saving writes and a model card, in one commit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mms_jax.checkpoint import Directory, Source, adapter_filename, find_licence, load_adapter
from mms_jax.checkpoint.card import CARD, Card
from mms_jax.checkpoint.hub import Repository
from mms_jax.checkpoint.publish import Target, open_target
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, LanguageError, VocabularyError
from mms_jax.models.trees import Params
from mms_jax.text.ctc import CTCTokenizer

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_ASR = "automatic-speech-recognition"
_KINDS = {
    _ASR: "Speech recognition",
    "audio-classification": "Identification of the language that is spoken",
    "text-to-speech": "Speech synthesis",
}
_USAGE = {
    _ASR: 'asr = mms_jax.load_asr("{repo_id}"{language})\nprint(asr.transcribe("clip.wav").text)',
    "audio-classification": 'lid = mms_jax.load_lid("{repo_id}")\nprint(lid.identify("clip.wav").language)',
    "text-to-speech": 'tts = mms_jax.load_tts("{repo_id}")\ntts.synthesize("…").save("speech.wav")',
}
_ADAPTER_USAGE = """import huggingface_hub

folder = huggingface_hub.snapshot_download("{repo_id}", allow_patterns=["adapter.{language}.safetensors", "vocab.json"])
asr = mms_jax.load_asr("{base}")
asr.load_adapter(f"{{folder}}/adapter.{language}.safetensors", language="{language}")
print(asr.transcribe("clip.wav").text)"""
# What an adapter's vocabulary is added to; special_tokens_map.json and added_tokens.json are older releases' parts.
_TOKENIZER_FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class Pushable:
    """A model with ``save_pretrained``, which is what it pushes."""

    _task: str
    _source: Source | None = None  # what it was loaded from

    def _from(self, source: Source) -> Self:
        self._source = source
        return self

    @property
    def _spoken(self) -> Iterable[str]:
        """The languages that the card of the whole model names."""
        language = getattr(self, "language", None)
        return [] if language is None else [language]

    def save_pretrained(self, directory: str | PathLike[str], *, params: Params | None = None) -> None:
        """Write the whole checkpoint."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        params: Params | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Push what ``save_pretrained`` writes, and a model card, to a hub repository, in one commit.

        A README.md that is there and not ours stays as it is; in one of ours, what was added by hand stays.

        Args:
            repo_id: ``user/name``; made if it is not there.
            params: trained parameters, a tree like ``params``; default those.
            private, token, commit_message, revision, create_pr: as in huggingface_hub; ``revision`` is a branch, made
                if it is not there.

        Returns:
            ``huggingface_hub.CommitInfo``: ``commit_url``, ``oid``, ``pr_url``.

        Raises:
            CheckpointError: not pushed, or it would break what is there; names the repository and the remedy.
        """
        target = open_target(repo_id, private=private, token=token, revision=revision, create_pr=create_pr)
        if adapters := [name for name in target.files if name.startswith("adapter.")]:
            raise CheckpointError(
                f"{repo_id}: holds {adapters[0]} and so the base of adapters, which another model would break; "
                "push_adapter_to_hub adds a language to it, for the whole model choose another repository"
            )
        languages = list(self._spoken)
        language = f', language="{languages[0]}"' if self._task == _ASR and languages else ""
        usage = "import mms_jax\n\n" + _USAGE[self._task].format(repo_id=target.repo_id, language=language)
        card = _card(self._source, self._task, languages, usage)
        message = commit_message or "Model pushed with mms_jax"
        return _push(target, lambda directory: self.save_pretrained(directory, params=params), card, message)


def push_adapter(
    source: Source,
    save: Callable[[Path], Path],
    *,
    language: str | None,
    repo_id: str,
    overwrite: bool,
    message: str | None,
    to: Mapping[str, Any],
) -> CommitInfo:
    """Push the adapter that ``save`` writes into a directory of the tokenizer's files that are there now.

    Args:
        source: the base.
        save: writes the adapter, adds its vocabulary to those in the directory, and returns the adapter's path.
        language: the adapter's tag.
        repo_id: the repository, made if it is not there.
        overwrite: it may hold that language.
        message: of the commit.
        to: the other arguments of ``open_target``.

    Raises:
        LanguageError: no tag. CheckpointError: not pushed, there already, or another base's repository.
    """
    if language is None:
        raise LanguageError("this checkpoint's language has no tag; load its adapter under one first")
    target, name = open_target(repo_id, **to), adapter_filename(language)
    if name in target.files and not overwrite:
        raise CheckpointError(f"{repo_id}: {name} is there already; overwrite=True replaces it")

    def write(directory: Path) -> None:
        there = {file: path for file in _TOKENIZER_FILES if (path := target.read(file)) is not None}
        for file, path in there.items():
            (directory / file).write_bytes(path.read_bytes())
        try:
            adapter = save(directory)
        except VocabularyError as error:
            instead = "; push to another repository, or the whole model with push_to_hub" if there else ""
            raise VocabularyError(f"{error}{instead}") from error
        if (config := target.read("config.json")) is not None:
            _check_base(target, adapter, config)
        languages.update(CTCTokenizer.from_directory(directory).languages)

    languages = {language}
    whole = "config.json" in target.files
    usage = _USAGE[_ASR] if whole else _ADAPTER_USAGE
    base = _base_name(source)
    given = f', language="{language}"' if whole else language
    usage = "import mms_jax\n\n" + usage.format(repo_id=target.repo_id, language=given, base=base)
    card = _card(source, _ASR, languages, usage, tags=["adapter"])
    return _push(target, write, card, message or f"Adapter for {language} pushed with mms_jax")


def _check_base(target: Target, adapter: Path, config: Path) -> None:
    try:
        load_adapter(adapter, Wav2Vec2Config.from_file(config))
    except CheckpointError as error:
        raise CheckpointError(
            f"{target.repo_id}: its config.json is not this adapter's base's, or damaged ({error}); "
            "push to another repository"
        ) from error


def _push(target: Target, write: Callable[[Path], None], card: Card, message: str) -> CommitInfo:
    with tempfile.TemporaryDirectory(prefix="mms_jax_push_") as name:
        directory = Path(name)
        try:
            write(directory)
        except CheckpointError as error:  # which names a file that will be gone
            of_it = str(error).replace(f"{directory}{os.sep}", f"{target.repo_id}: ")
            raise type(error)(of_it.replace(name, target.repo_id)) from error
        existing = target.card
        if existing is not None:
            (directory / CARD).write_text(card.text(target.repo_id, existing=existing), encoding="utf-8")
        return target.commit(directory, message=message)


def _card(source: Source | None, task: str, languages: Iterable[str], usage: str, *, tags: Iterable[str] = ()) -> Card:
    return Card(
        task=task,
        languages=languages,
        kind=_KINDS[task],
        usage=usage,
        base=_base_name(source),
        base_on_hub=isinstance(source, Repository),
        licence=None if source is None else find_licence(source),
        tags=tags,
    )


def _base_name(source: Source | None) -> str | None:
    """What it was loaded from; of a directory only the name, for the way to it is nobody else's business."""
    match source:
        case Repository(repo_id=repo_id):
            return repo_id
        case Directory(path=path):
            return path.resolve().name
    return None

"""The directory that training leaves behind, which this library and transformers load.

Adapter training leaves a base with any number of languages: the base's own files, byte for byte, and for each language
an adapter file and a vocabulary. Full fine-tuning leaves one model. With several processes only the first writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mms_jax.checkpoint import (
    FINGERPRINT_SHOWN,
    Directory,
    Source,
    adapter_filename,
    base_fingerprint,
    holds_adapters,
    load_adapter,
    load_feature_extractor,
    load_wav2vec2,
    require,
    save_adapter,
    save_ctc,
    save_feature_extractor,
    save_processor,
    weight_files,
)
from mms_jax.checkpoint.publish import open_target
from mms_jax.checkpoint.weights import INDEX, WEIGHTS
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, TrainingError, VocabularyError
from mms_jax.features import FeatureExtractor
from mms_jax.files import atomic_write, read_json, write_json
from mms_jax.models.trees import Params, merge_trees, split_adapter, unstack_layers
from mms_jax.text.ctc import CTCTokenizer

RECORD = "training_base.json"
CHECKPOINTS = "checkpoints"  # what only this machine needs: never pushed

_ADAPTERS, _MODEL = "adapters", "model"  # kinds of directories
# What a directory that is overwritten may hold, is not replaced by what is written, and would be read instead of it.
_IN_THE_WAY = (WEIGHTS, INDEX, "vocab.json", "tokenizer_config.json", "processor_config.json")
# Settings of a tokenizer that all languages of a directory share, and that decide what a text's labels are.
_SHARED = ("pad_token", "unk_token", "word_delimiter_token", "replace_word_delimiter_char", "do_lower_case")
_COPIED_AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True)
class OutputDirectory:
    """The output directory of an adapter job: ``prepare`` it before training, then write adapters as often as needed.

    Args:
        path: made if it is not there.
        base: what the adapters are trained on; its files are copied, never linked.
        languages: those of this job.
        tokenizer: nested, with a vocabulary for each of ``languages``.
        feature_extractor: how audio is normalised.
        config: of the model that is trained, so with adapters.
        fingerprint: ``base_fingerprint(base)``.
    """

    path: Path
    base: Source
    languages: Sequence[str]
    tokenizer: CTCTokenizer
    feature_extractor: FeatureExtractor
    config: Wav2Vec2Config
    fingerprint: str

    def prepare(self, *, overwrite: bool = False, resume: bool = False) -> None:
        """Put the base's and the processor's files there; languages that were trained there before stay as they are.

        Nothing is written unless everything fits. Weights without adapter layers or a CTC head cannot carry other
        adapters; they are written with the first adapter inside.

        Args:
            overwrite: other things may be there, and adapters of ``languages``, which will be replaced.
            resume: adapters of ``languages`` may be there; they are from the same job.

        Raises:
            TrainingError: the directory is another base's, a fully fine-tuned model's or nobody's; a language is there
                already; the model has no place for adapters. LanguageError: one is no tag. VocabularyError: one does
                not go with the others or with the model. OSError: it cannot be written; ``filename`` says what.
        """
        record = self._check_owner(overwrite=overwrite)
        self._check_adapters()
        for language in self.languages:
            self._check_language(language, may_be_there=overwrite or resume)
            self._check_vocabulary(language)
        self.path.mkdir(parents=True, exist_ok=True)
        if record is None:
            _clear(self.path)
        _write_record(self.path, self.base, kind=_ADAPTERS, fingerprint=self.fingerprint, known=record or {})
        self._copy_base()
        self._write_feature_extractor()

    def write_adapter(self, language: str, leaves: Params) -> Path:
        """Write one language's adapter, and add its vocabulary to those that are there.

        Args:
            language: one of ``languages``.
            leaves: its adapter blocks, layers stacked or not, and its head.

        Raises:
            CheckpointError: they are not an adapter of this model, or hold NaN. OSError: it cannot be written.
        """
        assert language in self.languages
        leaves, path = unstack_layers(leaves), self.path / adapter_filename(language)
        self.tokenizer.vocabulary(language).check_model(
            leaves["lm_head"]["kernel"].shape[-1], pad_token_id=self.config.pad_token_id, source=str(path)
        )
        if not _holds_weights(self.path):
            self._write_whole(language, leaves)
        elif self._record.get("inside") == language:
            write_json(self.path / RECORD, self._record | {"outdated": True})
        save_adapter(path, config=self.config, params=leaves, metadata={"base_fingerprint": self.fingerprint})
        # After the adapter: a vocabulary alone would be taken for that of the head inside the base.
        self._with_language(language).save(self.path)
        return path

    def finish(self) -> None:
        """Bring weights that were written whole up to date with the adapter of the language inside them.

        Raises:
            OSError: they cannot be written.
        """
        if self._record.get("outdated"):
            inside = self._record["inside"]
            self._write_whole(inside, load_adapter(self.path / adapter_filename(inside), self.config))

    @property
    def _record(self) -> dict[str, Any]:
        """What is known of the directory; ``inside``, the language inside weights that were written whole, too."""
        return _read_record(self.path) or {}

    def _check_owner(self, *, overwrite: bool) -> dict[str, Any] | None:
        """The record of a directory that belongs to this base; None if it is nobody's and may be used."""
        used, record = _is_used(self.path), _read_record(self.path)
        if record is not None and record.get("kind") != _ADAPTERS:
            raise TrainingError(f"{self.path}: holds a fully fine-tuned model; choose another output_dir for adapters")
        if record is None and _is_at(self.base, self.path):
            return {}
        if record is None and used and _holds_weights(self.path):
            record = {"fingerprint": base_fingerprint(Directory(self.path)), "base": "another base"}
        if record is not None:
            self._check_same_base(record)
            return record
        if adapters := _adapters(self.path):
            raise TrainingError(
                f"{self.path}: holds {adapters[0]}, but not the base that it was trained on; choose another output_dir"
            )
        if used and not overwrite:
            raise _not_free(self.path, "other things")
        return None

    def _check_same_base(self, record: Mapping[str, Any]) -> None:
        there = str(record.get("fingerprint"))
        if there != self.fingerprint:
            raise TrainingError(
                f"{self.path}: its adapters rest on {record.get('base')} (fingerprint {there[:FINGERPRINT_SHOWN]}), "
                f"not on {self.base.name} ({self.fingerprint[:FINGERPRINT_SHOWN]}); choose another output_dir"
            )

    def _check_language(self, language: str, *, may_be_there: bool) -> None:
        if (self.path / adapter_filename(language)).exists() and not may_be_there:
            raise TrainingError(
                f"{self.path}: {language} was trained there already; resume, choose another output_dir, or give "
                f"--overwrite_output_dir, which replaces {adapter_filename(language)} and its vocabulary, and leaves "
                "other languages and all other files alone"
            )

    def _check_adapters(self) -> None:
        if not self.config.has_adapters:
            raise TrainingError(
                f"{self.base.name}: has no place for adapters (adapter_attn_dim is null, or the encoder is post-norm); "
                "leave --target_language out to fine-tune all of it"
            )
        copied = holds_adapters(self.base)
        if not copied and _is_at(self.base, self.path):
            raise TrainingError(f"{self.path}: is the base, which has no adapters and is to stay; choose another one")
        if copied or _holds_weights(self.path):
            place = self.base if copied else Directory(self.path)
            there = Wav2Vec2Config.from_file(require(place, "config.json")).adapter_attn_dim
            if there != self.config.adapter_attn_dim:
                raise TrainingError(f"{place.name}: has adapter_attn_dim {there}, not {self.config.adapter_attn_dim}")

    def _check_vocabulary(self, language: str) -> None:
        """Whether a vocabulary goes with the model's blank, and with the settings of the directory's others."""
        ours = self.tokenizer.vocabulary(language)
        num_tokens = max(ours.tokens.values()) + 1
        ours.check_model(num_tokens, pad_token_id=self.config.pad_token_id, source=self.base.name)
        merged = self._with_language(language).vocabulary(language)
        for name in _SHARED:
            if getattr(ours, name) != getattr(merged, name):
                raise VocabularyError(
                    f"{self.path}: the tokenizer there has {name} {getattr(merged, name)!r}, that of {language} "
                    f"{getattr(ours, name)!r}, and a directory has one tokenizer; choose another output_dir"
                )

    def _copy_base(self) -> None:
        """The base's weights and its config.json, with all that it says and that is not read here."""
        if _holds_weights(self.path) or not holds_adapters(self.base):
            return
        for path in (*weight_files(self.base), require(self.base, "config.json")):
            with path.open("rb") as content, atomic_write(self.path / path.name) as copy:
                shutil.copyfileobj(content, copy, _COPIED_AT_ONCE)

    def _write_feature_extractor(self) -> None:
        there = Directory(self.path)
        files = ("processor_config.json", "preprocessor_config.json")
        if not any(there.find(name) for name in files) or load_feature_extractor(there) != self.feature_extractor:
            save_feature_extractor(self.path, self.feature_extractor)

    def _write_whole(self, language: str, leaves: Params) -> None:
        """The weights of a base that cannot carry other adapters, with this one inside."""
        encoder, _ = split_adapter({"wav2vec2": load_wav2vec2(self.base).params})
        config = self.config.replace(vocab_size=leaves["lm_head"]["kernel"].shape[-1])
        record = self._record | {"inside": language}
        write_json(self.path / RECORD, record | {"outdated": True})
        save_ctc(self.path, config=config, params=merge_trees(encoder, leaves))
        write_json(self.path / RECORD, {key: value for key, value in record.items() if key != "outdated"})

    def _with_language(self, language: str) -> CTCTokenizer:
        """The vocabularies that are there, if they are this base's, and this language's."""
        tokens = dict(self.tokenizer.vocab[language])
        belongs = _read_record(self.path) is not None or _holds_weights(self.path)
        if belongs and (self.path / "vocab.json").is_file():
            return CTCTokenizer.from_directory(self.path).with_language(language, tokens, overwrite=True)
        # Added tokens stay behind: their ids are those of another vocabulary.
        config = {key: value for key, value in self.tokenizer.config.items() if key != "added_tokens_decoder"}
        return CTCTokenizer({language: tokens}, {**config, "target_lang": language}, source=str(self.path))


def prepare_model_directory(
    path: Path, base: Source, *, fingerprint: str, overwrite: bool = False, resume: bool = False
) -> None:
    """Make it the directory of one fully fine-tuned model, for ``save_model``.

    Args:
        path: made if it is not there.
        base: what training starts from.
        fingerprint: ``base_fingerprint(base)``.
        overwrite: whatever is there will be replaced, but adapters.
        resume: a model may be there; it is from the same job.

    Raises:
        TrainingError: the directory is not free for it. OSError: it cannot be written; ``filename`` says what.
    """
    used, record = _is_used(path), _read_record(path)
    if _is_at(base, path):
        raise TrainingError(f"{path}: holds the model that training starts from; choose another output_dir")
    if _adapters(path) or (record is not None and record.get("kind") == _ADAPTERS):
        raise TrainingError(f"{path}: holds adapters, which new weights would break; choose another output_dir")
    same = record is not None and record.get("fingerprint") == fingerprint
    if used and not (overwrite or (same and (resume or not _holds_weights(path)))):
        raise _not_free(path, "other things" if record is None else f"a model fine-tuned from {record.get('base')}")
    path.mkdir(parents=True, exist_ok=True)
    if not (same and resume):
        _clear(path)
    _write_record(path, base, kind=_MODEL, fingerprint=fingerprint, known={})


def save_model(
    path: Path,
    params: Params,
    *,
    config: Wav2Vec2Config,
    tokenizer: CTCTokenizer,
    feature_extractor: FeatureExtractor,
) -> None:
    """Write a fully fine-tuned model, its layers stacked or not, and its processor.

    Raises:
        CheckpointError: ``params`` are not a whole tree of that config, or hold NaN. OSError: it cannot be written.
    """
    save_ctc(path, config=config, params=unstack_layers(params))
    save_processor(path, feature_extractor, tokenizer)


def _read_record(path: Path) -> dict[str, Any] | None:
    record = path / RECORD
    return read_json(record, error=CheckpointError) if record.is_file() else None


def _write_record(path: Path, base: Source, *, kind: str, fingerprint: str, known: Mapping[str, Any]) -> None:
    # The way to a local base is nobody else's business.
    name = base.path.resolve().name if isinstance(base, Directory) else base.name
    write_json(path / RECORD, {**known, "kind": kind, "base": name, "fingerprint": fingerprint})


def _is_used(path: Path) -> bool:
    """Whether anything is there; what the hub's or the system's tools hide there does not count."""
    if path.exists() and not path.is_dir():
        raise TrainingError(f"{path}: is a file; choose another output_dir")
    return path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())


def _is_at(base: Source, path: Path) -> bool:
    return isinstance(base, Directory) and path.is_dir() and path.samefile(base.path)


def _holds_weights(path: Path) -> bool:
    there = Directory(path)
    has_weights = there.find(WEIGHTS) is not None or there.find(INDEX) is not None
    return has_weights and there.find("config.json") is not None


def _adapters(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("adapter.*.safetensors"))


def _not_free(path: Path, what: str) -> TrainingError:
    return TrainingError(
        f"{path}: holds {what}; choose another output_dir, or give --overwrite_output_dir, which replaces the files of "
        f"a model (config.json, {', '.join(_IN_THE_WAY)}) and leaves all others alone"
    )


def _clear(path: Path) -> None:
    for name in _IN_THE_WAY:
        (path / name).unlink(missing_ok=True)


def push_to_hub(
    directory: str | PathLike[str],
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "Training with mms_jax",
) -> str:
    """Upload an output directory, without its checkpoints, to a hub repository, made if there is none; returns its URL.

    A README.md that is there and that no training or push of ours wrote stays as it is.

    Raises:
        TrainingError: it cannot be; the message names the repository and the remedy, and the directory stays as it is.
    """
    lost = f"everything is in {directory}: hf upload {repo_id} {directory} --exclude '{CHECKPOINTS}/**'"
    try:
        target = open_target(repo_id, token=token, private=private, lost=lost)
        target.commit(directory, message=commit_message, ignore=[f"{CHECKPOINTS}/*"], lost=lost)
    except CheckpointError as error:
        raise TrainingError(str(error)) from error
    return target.url

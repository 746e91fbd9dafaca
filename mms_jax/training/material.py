"""The data of a job: for each language its tokenizer, the clips it trains on and those it is evaluated on."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub import errors

from mms_jax.checkpoint import open_source
from mms_jax.checkpoint.processor import load_tokenizer
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import DatasetError, SettingError, TrainingError
from mms_jax.languages import language_name, languages
from mms_jax.languages.tags import candidates, meant
from mms_jax.text.ctc import CTCTokenizer, CTCVocabulary
from mms_jax.training.arguments import TrainingArguments
from mms_jax.training.data.clips import ClipRules, stream_clips
from mms_jax.training.data.corpus import Corpus, scan
from mms_jax.training.data.dataset import load_rows, rows_by_language
from mms_jax.training.data.folders import TABLES
from mms_jax.training.data.report import Report
from mms_jax.training.data.rows import Rows
from mms_jax.training.data.splits import FLAGS
from mms_jax.training.data.streams import RowStream, stream_rows
from mms_jax.training.data.transcripts import clean_texts
from mms_jax.training.data.vocabulary import make_language_tokenizer, make_tokenizer
from mms_jax.training.evaluation import EvalSet
from mms_jax.training.feeds import clip_items, corpus_items

HUB_SECONDS = 10.0  # for the hub to answer whether it has a data set
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

MODEL = "model"  # the name of the one slot of full fine-tuning


@dataclass(frozen=True)
class DataNames:
    """What the data set of one language is called."""

    language: str | None  # None: full fine-tuning
    dataset: str
    config: str | None

    @property
    def title(self) -> str:
        """For messages."""
        return self.language or self.dataset


def data_names(arguments: TrainingArguments) -> list[DataNames]:
    """One for each language; a single data set or configuration is that of all."""

    def own(values: Sequence[str], index: int) -> str | None:
        return None if not values else values[0] if len(values) == 1 else values[index]

    languages: Sequence[str | None] = arguments.target_language or (None,)
    return [
        DataNames(language, str(own(arguments.dataset_name, index)), own(arguments.dataset_config_name, index))
        for index, language in enumerate(languages)
    ]


def tag_note(tag: str) -> str | None:
    """What to say of a new language's tag, which may be any, where MMS or ISO 639-3 has another for that language."""
    published = [language.code for language in languages(task="asr")]
    if tag in published:
        return None
    codes = meant(tag)
    filed = sorted({found for code in codes for found in candidates(tag, code, published)})
    name, kept = language_name(tag) or tag, f"{tag!r} is kept as it is"
    if filed:
        return f"{kept}; MMS files {name} under {' or '.join(map(repr, filed))}"
    known = sorted(code for code in codes - {tag} if language_name(code) is not None)
    return f"{kept}; the code of {name} is {' or '.join(map(repr, known))}" if known else None


@dataclass
class Material:
    """One language's data."""

    names: DataNames
    vocabulary: CTCVocabulary
    train: Corpus | RowStream | None
    rules: ClipRules
    report: Report  # of the training data; of a stream it grows while training
    evaluation: EvalSet | None
    eval_report: Report | None

    @property
    def name(self) -> str:
        """Of its slot."""
        return self.names.language or MODEL

    @property
    def identity(self) -> dict[str, str]:
        """Digests of what a job that is resumed must find again, by what they are of; of a stream, no clips."""
        parts = {"vocabulary": [json.dumps(dict(self.vocabulary.tokens), sort_keys=True).encode()]}
        if isinstance(self.train, Corpus):
            parts["clips"] = [self.train.num_samples.tobytes(), *(labels.tobytes() for labels in self.train.labels)]
        return {what: hashlib.blake2b(b"\0".join(chunks), digest_size=16).hexdigest() for what, chunks in parts.items()}


def check_hub(name: str, *, token: str | None, cache_dir: str | None) -> None:
    """Ask once whether a data set that can only be the hub's can be had: the libraries try for half a minute.

    Raises:
        DatasetError: the hub cannot be reached, and the data set is not in a cache either.
    """
    local = Path(name).expanduser().exists() or Path(name).suffix.lower() in TABLES
    if local or not _HUB_NAME.fullmatch(name) or _is_cached(name, cache_dir):
        return
    try:
        huggingface_hub.HfApi(token=token).dataset_info(name, timeout=HUB_SECONDS)
    except (errors.HfHubHTTPError, errors.HFValidationError):
        return  # it was reached; what it says the libraries tell
    except (errors.HTTPError, ConnectionError) as error:  # pyright: ignore[reportPrivateImportUsage]
        offline = isinstance(error, errors.OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else " ".join(str(error).split())
        raise DatasetError(
            f"data set {name!r}: there is no such folder or file here, and the hub cannot be reached "
            f"({reason}); correct the name, or connect, or download the data and name its folder"
        ) from error


def _is_cached(name: str, cache_dir: str | None) -> bool:
    """Whether one of the libraries has some of a hub's data set on this machine."""
    tables = Path(cache_dir or HF_DATASETS_CACHE) / name.lower().replace("/", "___")
    files = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return any(path.is_dir() for path in (tables, tables.with_name(tables.name.replace("-", "_")), files))


class Loader:
    """Reads what the arguments name; ``tell`` takes reports and what else the user should see."""

    def __init__(self, arguments: TrainingArguments, config: Wav2Vec2Config, *, tell: Callable[[str], None]):
        self._arguments = arguments
        self._config = config
        self._tell = tell
        self._split: dict[tuple[str, str | None, str], dict[str, Rows]] = {}

    def rows(self, names: DataNames, flag: str, limit: int | None) -> Rows:
        """The rows of one language in the split that a flag ("train_split_name") names, not decoded.

        Raises:
            DatasetError: they cannot be had; names data set, flag and remedy.
        """
        with self._reading(names, flag):
            return self._rows(names, getattr(self._arguments, flag), limit)

    def _rows(self, names: DataNames, split: str, limit: int | None) -> Rows:
        a = self._arguments
        if a.language_column_name is None:
            rows = load_rows(names.dataset, split=split, config=names.config, **self._columns())
        else:
            key = (names.dataset, names.config, split)
            if key not in self._split:
                every = load_rows(names.dataset, split=split, config=names.config, **self._columns())
                self._split[key] = rows_by_language(every)
            by_language = self._split[key]
            if names.language not in by_language:
                raise DatasetError(
                    f"data set {names.dataset!r}: no row of {split!r} has {names.language!r} in the column "
                    f"{a.language_column_name!r}; there are {', '.join(sorted(by_language)[:20])}"
                )
            rows = by_language[names.language]
        return rows if limit is None else rows.select(range(min(limit, len(rows))))

    def stream(self, names: DataNames, flag: str, limit: int | None) -> RowStream:
        """The same as a stream."""
        split = getattr(self._arguments, flag)
        options: dict[str, Any] = self._columns()
        del options["length_column"]
        language = names.language if self._arguments.language_column_name else None
        with self._reading(names, flag):
            stream = stream_rows(names.dataset, split=split, config=names.config, language=language, **options)
        return stream if limit is None else stream.take(limit)

    @contextmanager
    def _reading(self, names: DataNames, flag: str) -> Iterator[None]:
        """What is wrong with a split names the flag that said it; a hub that cannot be reached is not waited for."""
        a = self._arguments
        check_hub(names.dataset, token=a.token, cache_dir=a.cache_dir)
        retries = logging.getLogger("huggingface_hub.utils._http")
        level = retries.level
        retries.setLevel(logging.ERROR)  # two lines for each; what comes of them is told in one
        try:
            yield
        except DatasetError as error:
            value, default = getattr(a, flag), TrainingArguments.__dataclass_fields__[flag].default
            said = f"--{flag} is {value}" + (", the default" if value == default else "")
            raise DatasetError(str(error).replace(f"({FLAGS})", f"({said})")) from error
        finally:
            retries.setLevel(level)

    def texts(self, names: DataNames) -> Iterator[str]:
        """Cleaned transcripts of both splits, for a vocabulary."""
        a = self._arguments
        if a.streaming:
            raise SettingError(
                f"--tokenizer_name_or_path {a.tokenizer_name_or_path} has no vocabulary for {names.title}, and with "
                "--streaming none can be made: the data was not read yet"
            )
        for flag, wanted in (("train_split_name", a.do_train), ("eval_split_name", a.do_eval)):
            if wanted:
                raw = self.rows(names, flag, None).texts()
                yield from clean_texts(raw, chars_to_ignore=a.chars_to_ignore, do_lower_case=a.do_lower_case)

    def load(self, names: DataNames, vocabulary: CTCVocabulary) -> Material:
        """Check all clips of a language and say what was found.

        Raises:
            DatasetError: none can be used, or the data cannot be had.
        """
        a = self._arguments
        rules = ClipRules(
            vocabulary=vocabulary,
            num_frames=self._config.num_frames,
            min_samples=self._config.min_samples,
            chars_to_ignore=a.chars_to_ignore,
            do_lower_case=a.do_lower_case,
            min_duration_in_seconds=a.min_duration_in_seconds,
            max_duration_in_seconds=a.max_duration_in_seconds,
        )
        material = Material(names, vocabulary, None, rules, Report(f"{names.title}, training"), None, None)
        if a.do_train:
            self._load_training(material)
        if a.do_eval:
            self._load_evaluation(material)
        return material

    def _load_training(self, material: Material) -> None:
        a, names = self._arguments, material.names
        if a.streaming:
            material.train = self.stream(names, "train_split_name", a.max_train_samples)
            return
        rows = self.rows(names, "train_split_name", a.max_train_samples)
        if a.do_eval and not rows.has_splits and "[" not in a.train_split_name + a.eval_split_name:
            raise DatasetError(
                f"data set {names.dataset!r} has no splits, so its training clips would be evaluated; give "
                "--dataset_name train=a.csv,test=b.csv, or slices: --train_split_name train[:90%] --eval_split_name "
                "train[90%:]"
            )
        material.train = self._scan(rows, material.rules, material.report.title)
        material.report = material.train.report
        self._tell(str(material.report))

    def _load_evaluation(self, material: Material) -> None:
        a, names = self._arguments, material.names
        title = f"{names.title}, evaluation"
        if a.streaming:  # held in memory: every evaluation takes the same clips
            material.eval_report = Report(title)
            stream = self.stream(names, "eval_split_name", a.max_eval_samples)
            clips = list(
                stream_clips(
                    stream,
                    rules=material.rules,
                    report=material.eval_report,
                    num_workers=a.preprocessing_num_workers,
                )
            )
            items, texts = clip_items(clips), [clip.text for clip in clips]
        else:
            corpus = self._scan(self.rows(names, "eval_split_name", a.max_eval_samples), material.rules, title)
            material.eval_report = corpus.report
            items, texts = corpus_items(corpus, range(len(corpus))), corpus.texts
        self._tell(str(material.eval_report))
        material.evaluation = EvalSet(items, texts, material.vocabulary)

    def _scan(self, rows: Rows, rules: ClipRules, title: str) -> Corpus:
        a = self._arguments
        progress = False if a.disable_tqdm else None
        return scan(rows, rules=rules, title=title, num_workers=a.preprocessing_num_workers, progress=progress)

    def _columns(self) -> dict[str, Any]:
        a = self._arguments
        return {
            "audio_column": a.audio_column_name,
            "text_column": a.text_column_name,
            "language_column": a.language_column_name,
            "length_column": a.length_column_name,
            "token": a.token,
            "cache_dir": a.cache_dir,
        }


def make_tokenizer_of_job(
    arguments: TrainingArguments,
    config: Wav2Vec2Config,
    loader: Loader,
    names: Sequence[DataNames],
    *,
    base: CTCTokenizer | None,
    existing: CTCTokenizer | None,
    alone: Callable[[DataNames], AbstractContextManager[None]],
) -> CTCTokenizer:
    """The tokenizer of the job: made of its transcripts, or extended by them, or the one that was asked for.

    Args:
        arguments: of the job; where nothing is trained, the checkpoint's own vocabulary is used as it is.
        config: of the model.
        loader: of the transcripts.
        names: of the data.
        base: the checkpoint's own tokenizer.
        existing: that of the output directory, where there is one.
        alone: takes care of what goes wrong with one language only.

    Raises:
        TrainingError: no language has a vocabulary.
    """
    a = arguments
    given = None if a.tokenizer_name_or_path is None else _load_tokenizer(a)
    if not a.do_train:
        return _check_chosen(a, given or base)
    tokens = {"pad_token": a.pad_token, "unk_token": a.unk_token, "word_delimiter_token": a.word_delimiter_token}
    if not a.target_language:
        return given if given is not None else make_tokenizer(loader.texts(names[0]), **tokens)
    for one in names:
        assert one.language is not None
        with alone(one):
            goes_on = base is not None and a.init_language == one.language  # with the vocabulary that it has
            existing = make_language_tokenizer(
                one.language,
                _Lazy(loader, one),
                pad_token_id=config.pad_token_id,
                base=base,
                existing=existing,
                given=base if goes_on and given is None else given,
                overwrite=a.overwrite_lang_vocab,
                **tokens,
            )
    if existing is None:
        raise TrainingError("no language has data to make a vocabulary of")
    return existing


def _check_chosen(a: TrainingArguments, tokenizer: CTCTokenizer | None) -> CTCTokenizer:
    """What a checkpoint is evaluated with."""
    if tokenizer is None:
        raise TrainingError(
            f"{a.model_name_or_path}: has no vocabulary, so there is nothing to evaluate; train it first"
        )
    if tokenizer.is_nested and not a.target_language:
        raise SettingError(
            f"{a.model_name_or_path}: has a vocabulary for each language; say which one with --target_language"
        )
    return tokenizer


@dataclass(frozen=True)
class _Lazy:
    """Transcripts that are read only if a vocabulary has to be made of them."""

    loader: Loader
    names: DataNames

    def __iter__(self) -> Iterator[str]:
        return self.loader.texts(self.names)


def _load_tokenizer(a: TrainingArguments) -> CTCTokenizer:
    tokenizer = load_tokenizer(open_source(str(a.tokenizer_name_or_path), token=a.token, cache_dir=a.cache_dir))
    if tokenizer.is_nested and not a.target_language:
        raise SettingError(
            f"--tokenizer_name_or_path {a.tokenizer_name_or_path} has a vocabulary for each language; "
            "say which one with --target_language"
        )
    return tokenizer


def longest_shapes(materials: Sequence[Material]) -> tuple[np.ndarray, np.ndarray]:
    """Samples and labels of all clips of the job, int64 [n] each."""
    items = [item for one in materials if one.evaluation is not None for item in one.evaluation.items]
    corpora = [one.train for one in materials if isinstance(one.train, Corpus)]
    samples = [np.array([item.num_samples for item in items], np.int64), *(corpus.num_samples for corpus in corpora)]
    labels = [np.array([len(item.labels) for item in items], np.int64), *(corpus.num_labels for corpus in corpora)]
    return np.concatenate(samples), np.concatenate(labels)

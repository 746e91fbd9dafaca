"""The settings of a training job, under the names that transformers' example scripts give them.

``TrainingArguments`` holds them; the command line is made of its fields, in ``cli/train.py``. What those scripts know
and this one does not is no option here: an option that does nothing would promise something.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import typing
from collections.abc import Callable
from typing import Any

from mms_jax.errors import SettingError
from mms_jax.training.schedules import Schedule, make_schedule


def _option(default: Any, help: str, **metadata: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


_MODEL, _DATA, _TRAINING, _OUTPUT, _MACHINE = "model", "data", "training", "output", "machine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """All settings of a job; defaults are those of transformers unless the help says otherwise.

    Raises:
        SettingError: settings that contradict each other.
    """

    # model
    model_name_or_path: str = _option(
        "", "the checkpoint to start from: directory or hub name", group=_MODEL, required=True
    )
    tokenizer_name_or_path: str | None = _option(
        None, "take the vocabulary from there instead of making one", group=_MODEL
    )
    target_language: tuple[str, ...] = _option(
        (),
        "tags of the languages whose adapters to train, taken literally; none: train the whole model",
        group=_MODEL,
    )
    init_language: str | None = _option(
        None, "start new adapters from this language's of the checkpoint instead of afresh", group=_MODEL
    )
    adapter_attn_dim: int | None = _option(
        None, "width of adapters; default: the checkpoint's, 16 where it has none", group=_MODEL
    )
    freeze_feature_encoder: bool = _option(True, "do not train the convolutions (whole models only)", group=_MODEL)
    attention_dropout: float | None = _option(
        None, "of attention weights; default here and below: the checkpoint's for adapters, else 0", group=_MODEL
    )
    activation_dropout: float | None = _option(None, "within feed-forward blocks", group=_MODEL)
    hidden_dropout: float | None = _option(None, "behind attention and feed-forward blocks", group=_MODEL)
    feat_proj_dropout: float | None = _option(None, "behind the projection of features", group=_MODEL)
    final_dropout: float = _option(0.0, "before the head", group=_MODEL)
    layerdrop: float = _option(0.0, "chance of each layer to be left out", group=_MODEL)
    mask_time_prob: float = _option(0.05, "SpecAugment: share of frames that spans are started for", group=_MODEL)
    mask_time_length: int = _option(10, "frames of a span", group=_MODEL)
    mask_feature_prob: float = _option(0.0, "SpecAugment: the same of channels", group=_MODEL)
    mask_feature_length: int = _option(10, "channels of a span", group=_MODEL)
    dither: float = _option(0.0, "noise on the waveform, in steps of 16-bit audio (ours)", group=_MODEL)
    ctc_loss_reduction: str = _option(
        "mean", "mean (per label, then over rows) or sum", choices=("mean", "sum"), group=_MODEL
    )
    cache_dir: str | None = _option(None, "of huggingface_hub and datasets", group=_MODEL)
    token: str | None = _option(None, "for the hub", group=_MODEL)
    model_revision: str | None = _option(None, "branch, tag or commit of the checkpoint", group=_MODEL)

    # data
    dataset_name: tuple[str, ...] = _option(
        (),
        "hub data set, folder or file; one each, or one for all with a configuration each or --language_column_name",
        group=_DATA,
        required=True,
    )
    dataset_config_name: tuple[str, ...] = _option((), "its configuration; one for all or one each", group=_DATA)
    train_split_name: str = _option("train+validation", "such as train, train+validation, train[:1000]", group=_DATA)
    eval_split_name: str = _option("test", "split to evaluate on", group=_DATA)
    audio_column_name: str = _option("audio", "column of the recordings", group=_DATA)
    text_column_name: str = _option("text", "column of what is said", group=_DATA)
    language_column_name: str | None = _option(
        None, "column that says which row is of which --target_language (ours)", group=_DATA
    )
    length_column_name: str | None = _option(
        None,
        "column of lengths in samples at 16 kHz: with it, clips are not decoded before step 0 (input_length, which the "
        "scripts make themselves, may be missing)",
        group=_DATA,
    )
    max_train_samples: int | None = _option(None, "use only so many clips", group=_DATA)
    max_eval_samples: int | None = _option(None, "evaluate on only so many", group=_DATA)
    chars_to_ignore: tuple[str, ...] = _option((), "characters to remove from transcripts", group=_DATA)
    do_lower_case: bool = _option(True, "lower-case transcripts (ours; the scripts always do)", group=_DATA)
    max_duration_in_seconds: float = _option(20.0, "leave out longer clips", group=_DATA)
    min_duration_in_seconds: float = _option(0.0, "leave out shorter clips", group=_DATA)
    unk_token: str | None = _option(
        None, "of a new vocabulary; default: the checkpoint's, [UNK] where it has none", group=_DATA
    )
    pad_token: str | None = _option(None, "the blank; default: the checkpoint's, [PAD] where it has none", group=_DATA)
    word_delimiter_token: str | None = _option(None, "default: the checkpoint's, | where it has none", group=_DATA)
    overwrite_lang_vocab: bool = _option(False, "replace a language's vocabulary in --output_dir", group=_DATA)
    streaming: bool = _option(
        False, "read the data as it comes, for more than fits a disk; needs --max_steps", group=_DATA
    )
    shuffle_buffer_size: int = _option(500, "clips to shuffle a stream among; says --streaming, too", group=_DATA)
    preprocessing_num_workers: int | None = _option(None, "threads that decode audio", group=_DATA)

    # training
    do_train: bool = _option(False, "train", group=_TRAINING)
    do_eval: bool = _option(False, "evaluate, while training and at its end", group=_TRAINING)
    num_train_epochs: float = _option(3.0, "times through the data", group=_TRAINING)
    max_steps: int = _option(-1, "updates; overrides --num_train_epochs", group=_TRAINING)
    per_device_train_batch_size: int = _option(8, "clips of each language on a device in one pass", group=_TRAINING)
    per_device_eval_batch_size: int = _option(8, "the same when evaluating", group=_TRAINING)
    gradient_accumulation_steps: int = _option(1, "passes of an update", group=_TRAINING)
    languages_per_pass: int = _option(8, "languages that train in one pass; more take turns (ours)", group=_TRAINING)
    learning_rate: float = _option(5e-5, "at its peak", group=_TRAINING)
    lr_scheduler_type: str = _option(
        "linear", "linear, cosine, constant, constant_with_warmup or tri_stage", group=_TRAINING
    )
    warmup_steps: float = _option(0, "updates until the peak; below 1: a share of all", group=_TRAINING)
    warmup_ratio: float = _option(0.0, "the same, always a share", group=_TRAINING)
    weight_decay: float = _option(0.0, "not of biases and norms", group=_TRAINING)
    adam_beta1: float = _option(0.9, "of AdamW", group=_TRAINING)
    adam_beta2: float = _option(0.999, "of AdamW", group=_TRAINING)
    adam_epsilon: float = _option(1e-8, "of AdamW", group=_TRAINING)
    max_grad_norm: float = _option(1.0, "clip of each language's gradient; 0: none", group=_TRAINING)
    group_by_length: bool = _option(False, "batches of clips of about one length", group=_TRAINING)
    gradient_checkpointing: bool = _option(
        False, "compute layers twice instead of keeping what is within them", group=_TRAINING
    )
    fp16: bool = _option(False, "float16 products, with loss scaling", group=_TRAINING)
    bf16: bool = _option(False, "bfloat16 products", group=_TRAINING)
    seed: int = _option(42, "of batches, new parameters, masks and dropout", group=_TRAINING)
    eval_strategy: str = _option(
        "no", "when to evaluate, beside the end", choices=("no", "steps", "epoch"), group=_TRAINING
    )
    eval_on_start: bool = _option(False, "evaluate before the first update, too", group=_TRAINING)
    eval_steps: int | None = _option(None, "updates between evaluations (default: --logging_steps)", group=_TRAINING)
    eval_metrics: tuple[str, ...] = _option(
        ("wer",), "what to report: wer, cer", choices=("wer", "cer"), group=_TRAINING
    )
    load_best_model_at_end: bool = _option(
        False, "the result is the best evaluated model, not the last", group=_TRAINING
    )
    metric_for_best_model: str = _option(
        "loss", "of the evaluation, the lower the better", choices=("loss", "wer", "cer"), group=_TRAINING
    )

    # output
    output_dir: str = _option("", "where everything is written", group=_OUTPUT, required=True)
    overwrite_output_dir: bool = _option(
        False,
        "start anew: replaces this job's checkpoints and the adapters of its languages (or the model); stays away from "
        "other languages' adapters and all other files, and keeps earlier logs under a number",
        group=_OUTPUT,
    )
    logging_steps: int = _option(10, "updates between lines of the log (the scripts: 500)", group=_OUTPUT)
    save_strategy: str = _option(
        "steps", "when to keep the state, beside the end", choices=("no", "steps", "epoch"), group=_OUTPUT
    )
    save_steps: int = _option(500, "updates between checkpoints", group=_OUTPUT)
    save_total_limit: int | None = _option(None, "checkpoints to keep, beside the best", group=_OUTPUT)
    disable_tqdm: bool = _option(False, "no progress bar", group=_OUTPUT)
    push_to_hub: bool = _option(False, "upload the result", group=_OUTPUT)
    hub_model_id: str | None = _option(None, "where to; default: the name of --output_dir", group=_OUTPUT)
    hub_private_repo: bool = _option(False, "make it private", group=_OUTPUT)

    # machine
    scan_layers: bool | None = _option(None, "compile one layer for all; default: not on CPUs (ours)", group=_MACHINE)
    distributed: bool = _option(False, "join the processes of a SLURM, MPI or TPU job (ours)", group=_MACHINE)
    coordinator_address: str | None = _option(
        None, "host:port of process 0, where there is no such job (ours)", group=_MACHINE
    )
    num_processes: int | None = _option(None, "how many there are (ours)", group=_MACHINE)
    process_id: int | None = _option(None, "which one this is, from 0 (ours)", group=_MACHINE)

    def __post_init__(self):
        for name, fault in self._faults():
            raise SettingError(f"--{name} {fault}")
        if self.do_train:
            self.schedule(max(1, self.max_steps))  # what is wrong with its settings shows here

    def schedule(self, total_steps: int) -> Schedule:
        """The learning rate of every step of so many."""
        return make_schedule(
            self.lr_scheduler_type,
            learning_rate=self.learning_rate,
            total_steps=total_steps,
            warmup_steps=self.warmup_steps,
            warmup_ratio=self.warmup_ratio,
        )

    def _faults(self) -> typing.Iterator[tuple[str, str]]:
        """What is wrong, as (setting, rest of the message)."""
        positive = (
            "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps languages_per_pass "
            "logging_steps eval_steps save_steps save_total_limit shuffle_buffer_size adapter_attn_dim "
            "max_train_samples max_eval_samples preprocessing_num_workers"
        )
        for name in positive.split():
            value = getattr(self, name)
            if value is not None and value < 1:
                yield name, f"is {value}; it must be at least 1"
        for name, low, high, what in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value < high:  # which NaN is not either
                yield name, f"is {value}; it must be {what}"
        if self.max_steps <= 0 and not 0 < self.num_train_epochs < math.inf:
            yield "num_train_epochs", f"is {self.num_train_epochs}; it must be over 0"
        if self.max_steps != -1 and self.max_steps < 1:
            yield "max_steps", f"is {self.max_steps}; it must be at least 1, or -1 to train --num_train_epochs"
        yield from self._contradictions()
        languages = max(1, len(self.target_language))
        for name, numbers in (("dataset_name", {1, languages}), ("dataset_config_name", {0, 1, languages})):
            count = len(getattr(self, name))
            if count not in numbers:
                yield name, f"has {count} values for {languages} language(s); give one, or one for each"
        apart = self.language_column_name or len(self.dataset_name) > 1 or len(self.dataset_config_name) > 1
        if languages > 1 and not apart:
            yield (
                "dataset_name",
                f"{' '.join(self.dataset_name)} is given for {languages} languages, each of which would train on "
                "all of its clips: say with --language_column_name which row is of which, or give one "
                "--dataset_name (or --dataset_config_name) for each language",
            )

    def _contradictions(self) -> typing.Iterator[tuple[str, str]]:
        """Settings that do not go together."""
        if not (self.do_train or self.do_eval):
            yield "do_train", "is not given, nor is --do_eval: there is nothing to do"
        if self.fp16 and self.bf16:
            yield "fp16", "and --bf16 exclude each other"
        if self.streaming and self.max_steps <= 0 and self.do_train:
            yield "streaming", "needs --max_steps: how long an epoch is shows only at its end"
        keeps_vocabulary = not self.do_train or self.target_language == (self.init_language,)
        if self.streaming and not self.tokenizer_name_or_path and not keeps_vocabulary:
            yield "streaming", "needs --tokenizer_name_or_path: no vocabulary can be made of data that was not read yet"
        if self.streaming and self.group_by_length:
            yield "group_by_length", "needs all lengths, which --streaming does not know"
        if len(set(self.target_language)) < len(self.target_language):
            yield "target_language", f"names a language twice: {' '.join(self.target_language)}"
        if self.target_language and not self.freeze_feature_encoder:
            yield "freeze_feature_encoder", "is false, but beside adapters (--target_language) everything is frozen"
        if not self.max_duration_in_seconds > self.min_duration_in_seconds:
            yield "max_duration_in_seconds", f"is {self.max_duration_in_seconds}; it must be over the least duration"
        if self.eval_strategy != "no" and not self.do_eval:
            yield "eval_strategy", f"is {self.eval_strategy}, but --do_eval is not given"
        if self.do_train and self.do_eval and (shared := _shared_splits(self.train_split_name, self.eval_split_name)):
            rest = [part for part in _parts(self.train_split_name) if part not in shared]
            remedy = f"--train_split_name {'+'.join(rest)}" if rest else "slices, such as train[:90%] and train[90%:]"
            yield "eval_split_name", f"{'+'.join(shared)} is evaluated and trained on: give {remedy}"
        if self.load_best_model_at_end and self.eval_strategy == "no":
            yield "load_best_model_at_end", "needs --eval_strategy (steps or epoch): else there is only the last"

    @property
    def dtype(self) -> str:
        """Of matrix products."""
        return "float16" if self.fp16 else "bfloat16" if self.bf16 else "float32"


def _parts(splits: str) -> list[str]:
    return [part.strip() for part in splits.split("+")]


def _shared_splits(train: str, evaluated: str) -> list[str]:
    """Parts of the training splits that are evaluated, too; what two slices have in common their names do not say."""
    others = _parts(evaluated)
    return [
        one
        for one in _parts(train)
        if one in others
        or any("all" in (one, other) for other in others)
        or any(
            one.partition("[")[0] == other.partition("[")[0] and not ("[" in one and "[" in other) for other in others
        )
    ]


# Half-open ranges of numbers, and what they are in words; what schedule and augmentation take is checked there.
_RANGES: tuple[tuple[str, float, float, str], ...] = (
    ("seed", 0, 2**32, "in 0 … 2^32 - 1"),
    ("adam_beta1", 0.0, 1.0, "in 0 … below 1"),
    ("adam_beta2", 0.0, 1.0, "in 0 … below 1"),
    ("adam_epsilon", sys.float_info.min, math.inf, "over 0"),
    ("weight_decay", 0.0, math.inf, "at least 0"),
    ("max_grad_norm", 0.0, math.inf, "at least 0"),
    ("min_duration_in_seconds", 0.0, math.inf, "at least 0"),
    *(
        (f"{place}_dropout", 0.0, 1.0, "in 0 … below 1")
        for place in ("attention", "activation", "hidden", "feat_proj", "final")
    ),
)

# Settings that do nothing unless others are as they must be: given all the same they are an error, not ignored.
_NEEDS: tuple[tuple[str, str, Callable[[TrainingArguments], bool]], ...] = (
    (
        "init_language adapter_attn_dim freeze_feature_encoder attention_dropout activation_dropout hidden_dropout "
        "feat_proj_dropout final_dropout layerdrop mask_time_prob mask_time_length mask_feature_prob "
        "mask_feature_length dither ctc_loss_reduction train_split_name max_train_samples unk_token pad_token "
        "word_delimiter_token overwrite_lang_vocab shuffle_buffer_size num_train_epochs max_steps "
        "per_device_train_batch_size gradient_accumulation_steps languages_per_pass learning_rate lr_scheduler_type "
        "warmup_steps warmup_ratio weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm group_by_length "
        "gradient_checkpointing eval_strategy eval_steps eval_on_start load_best_model_at_end metric_for_best_model "
        "overwrite_output_dir logging_steps save_strategy save_steps save_total_limit push_to_hub",
        "without --do_train",
        lambda a: a.do_train,
    ),
    (
        "init_language adapter_attn_dim languages_per_pass language_column_name overwrite_lang_vocab",
        "without --target_language",
        lambda a: bool(a.target_language),
    ),
    ("num_train_epochs", "with --max_steps", lambda a: a.max_steps <= 0),
    ("mask_time_length", "without --mask_time_prob over 0", lambda a: a.mask_time_prob > 0),
    ("mask_feature_length", "without --mask_feature_prob over 0", lambda a: a.mask_feature_prob > 0),
    ("shuffle_buffer_size", "without --streaming", lambda a: a.streaming),
    ("length_column_name", "with --streaming", lambda a: not a.streaming),
    (
        "unk_token pad_token word_delimiter_token",
        "with --tokenizer_name_or_path, where a whole model is trained",
        lambda a: bool(a.target_language) or a.tokenizer_name_or_path is None,
    ),
    ("eval_steps", "without --eval_strategy steps", lambda a: a.eval_strategy == "steps"),
    ("save_steps", "without --save_strategy steps", lambda a: a.save_strategy == "steps"),
    (
        "eval_metrics eval_split_name max_eval_samples per_device_eval_batch_size metric_for_best_model eval_on_start",
        "without --do_eval",
        lambda a: a.do_eval,
    ),
    ("hub_model_id hub_private_repo", "without --push_to_hub", lambda a: a.push_to_hub),
)


def read_arguments(options: argparse.Namespace) -> TrainingArguments:
    """The settings that a command line of ``cli/train.py`` gives.

    Raises:
        SettingError: they contradict each other.
    """
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(options).items()
    }
    given = {name: value for name, value in given.items() if name in names}
    if "shuffle_buffer_size" in given:  # as with the scripts, of which only the one for streams has this flag
        given.setdefault("streaming", True)
    arguments = TrainingArguments(**given)
    for dependent, condition, holds in _NEEDS:
        # A switch that is said to be off asks for nothing.
        useless = [name for name in dependent.split() if given.get(name, False) is not False]
        if useless and not holds(arguments):
            raise SettingError(f"--{useless[0]} does nothing {condition}")
    return arguments

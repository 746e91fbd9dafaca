"""What a job's checkpoints hold beside its arrays, and whether a job may go on from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mms_jax.errors import TrainingError
from mms_jax.files import read_json, write_json
from mms_jax.training.arguments import TrainingArguments
from mms_jax.training.files.checkpoints import Checkpoints
from mms_jax.training.loop import Trainer
from mms_jax.training.material import Material

# Settings that decide what a step does: a job resumes with the same ones or not at all.
_FIXED = (
    "model_name_or_path model_revision tokenizer_name_or_path target_language init_language adapter_attn_dim "
    "dataset_name dataset_config_name train_split_name audio_column_name text_column_name language_column_name "
    "streaming max_train_samples shuffle_buffer_size chars_to_ignore do_lower_case max_duration_in_seconds seed "
    "unk_token pad_token word_delimiter_token overwrite_lang_vocab fp16 bf16 "
    "min_duration_in_seconds per_device_train_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type "
    "warmup_steps warmup_ratio weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm group_by_length max_steps "
    "num_train_epochs mask_time_prob mask_time_length mask_feature_prob mask_feature_length layerdrop dither "
    "attention_dropout activation_dropout hidden_dropout feat_proj_dropout final_dropout ctc_loss_reduction "
    "freeze_feature_encoder metric_for_best_model load_best_model_at_end"
)
FINISHED = "finished.json"  # beside the checkpoints of a job whose results are written


def find_resumed(directory: Path, arguments: TrainingArguments, *, fingerprint: str) -> dict[str, Any] | None:
    """What was saved beside the newest checkpoint of a job, if there is one to go on from.

    Args:
        directory: of the job's checkpoints.
        arguments: of the job; with ``overwrite_output_dir`` it begins anew.
        fingerprint: of the base.

    Raises:
        TrainingError: the checkpoints are of another base, or of a job with other settings; names the setting.
    """
    if arguments.overwrite_output_dir or not directory.is_dir():
        return None
    with Checkpoints(directory) as checkpoints:
        if checkpoints.latest() is None:
            return None
        info = checkpoints.info()
    if info["fingerprint"] != fingerprint:
        raise TrainingError(
            f"{directory}: its checkpoints are of another base than {arguments.model_name_or_path}; choose another "
            "--output_dir, or start anew with --overwrite_output_dir"
        )
    for name, value in fixed_settings(arguments).items():
        if info["settings"].get(name) != value:
            raise TrainingError(
                f"{directory}: was begun with --{name} {info['settings'].get(name)}, not {value}; go on with the same "
                "settings, or start anew with --overwrite_output_dir"
            )
    if info["num_devices"] != jax.device_count():
        raise TrainingError(
            f"{directory}: was begun on {info['num_devices']} devices, here are {jax.device_count()}, with which an "
            "update would have other clips; go on with as many, or start anew with --overwrite_output_dir"
        )
    return info


def discard_checkpoints(directory: Path) -> None:
    """Remove those of an earlier job that is not gone on with."""
    if jax.process_index() == 0 and directory.exists():
        shutil.rmtree(directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the checkpoints of an earlier job are gone")


def mark_finished(directory: Path, *, written: Sequence[Path], failures: Sequence[str]) -> None:
    """Note that a job's results are written, and what had failed."""
    write_json(directory / FINISHED, {"written": [path.name for path in written], "failures": list(failures)})


def read_finished(directory: Path, output: Path) -> list[str] | None:
    """The failures of a job with nothing left to do, or None if there is: results are missing in ``output``."""
    if not (directory / FINISHED).is_file():
        return None
    finished = read_json(directory / FINISHED)
    return finished["failures"] if all((output / name).is_file() for name in finished["written"]) else None


def check_data(directory: Path, resumed: Mapping[str, Any], materials: Iterable[Material]) -> None:
    """Raise ``TrainingError`` where a language's vocabulary or clips are not those that the job was begun with.

    The head's rows would be other letters, or the rest of an epoch other clips.
    """
    for one in materials:
        saved = resumed["data"].get(one.name, {})
        changed = [what for what, digest in one.identity.items() if saved.get(what) != digest]
        if changed:
            raise TrainingError(
                f"{directory}: the {' and '.join(changed)} of {one.names.title} changed since this job was begun; go "
                "on with the same data, or start anew with --overwrite_output_dir"
            )


def save_checkpoint(
    checkpoints: Checkpoints,
    trainer: Trainer,
    arguments: TrainingArguments,
    materials: Iterable[Material],
    *,
    fingerprint: str,
    run: int | None,
) -> None:
    """Keep the trainer's state and what ``find_resumed`` returns, unless that step is kept already.

    ``run`` is the number of the run's log.
    """
    if checkpoints.latest() == trainer.step:
        return
    now = [slot for slot in trainer.slots if slot.evaluated == trainer.step]  # others' scores are of earlier states
    scores = [getattr(slot.last, trainer.metric) for slot in now if slot.last is not None]
    info = trainer.record() | {
        "step": trainer.step,
        "fingerprint": fingerprint,
        "settings": fixed_settings(arguments),
        "num_devices": trainer.mesh.size,
        "data": {one.name: one.identity for one in materials},
        "run": run,
    }
    score = float(np.mean(scores)) if len(scores) == len(trainer.slots) else None
    checkpoints.save(trainer.step, trainer.state, info=info, metric=score)


def fixed_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """The settings that a job must be resumed with, as JSON has them."""
    values = asdict(arguments)
    return {name: list(value) if isinstance(value := values[name], tuple) else value for name in _FIXED.split()}

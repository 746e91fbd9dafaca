"""What a job's checkpoints hold beside its arrays, and whether a job may go on from them."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mms_jax.errors import TrainingError
from mms_jax.training.arguments import TrainingArguments
from mms_jax.training.checkpoints import Checkpoints
from mms_jax.training.loop import Trainer

# Settings that decide what a step does: a job resumes with the same ones or not at all.
_FIXED = (
    "model_name_or_path target_language init_language dataset_name dataset_config_name train_split_name streaming "
    "max_train_samples shuffle_buffer_size chars_to_ignore do_lower_case max_duration_in_seconds seed fp16 bf16 "
    "min_duration_in_seconds per_device_train_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type "
    "warmup_steps warmup_ratio weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm group_by_length max_steps "
    "num_train_epochs mask_time_prob mask_time_length mask_feature_prob mask_feature_length layerdrop dither "
    "attention_dropout activation_dropout hidden_dropout feat_proj_dropout final_dropout ctc_loss_reduction "
    "freeze_feature_encoder"
)


def find_resumed(directory: Path, arguments: TrainingArguments, *, fingerprint: str) -> dict[str, Any] | None:
    """What was saved beside the newest checkpoint of a job, if there is one to go on from.

    Args:
        directory: of the job's checkpoints.
        arguments: of the job; with ``overwrite_output_dir`` the checkpoints are removed.
        fingerprint: of the base.

    Raises:
        TrainingError: the checkpoints are of another base, or of a job with other settings; names the setting.
    """
    if arguments.overwrite_output_dir:
        if jax.process_index() == 0:
            shutil.rmtree(directory, ignore_errors=not directory.exists())
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the checkpoints of an earlier job are gone")
        return None
    if not directory.is_dir():
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
    return info


def save_checkpoint(
    checkpoints: Checkpoints, trainer: Trainer, arguments: TrainingArguments, *, fingerprint: str
) -> None:
    """Keep the trainer's state and what ``find_resumed`` returns, unless that step is kept already."""
    if checkpoints.latest() == trainer.step:
        return
    scores = [getattr(slot.last, trainer.metric) for slot in trainer.slots if slot.last is not None]
    info = {
        "step": trainer.step,
        "fingerprint": fingerprint,
        "settings": fixed_settings(arguments),
        "slots": {slot.name: slot.record(trainer.step) for slot in trainer.slots},
    }
    score = float(np.mean(scores)) if len(scores) == len(trainer.slots) else None
    checkpoints.save(trainer.step, trainer.state, info=info, metric=score)


def fixed_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """The settings that a job must be resumed with, as JSON has them."""
    values = asdict(arguments)
    return {name: list(value) if isinstance(value := values[name], tuple) else value for name in _FIXED.split()}

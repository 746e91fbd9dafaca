"""What a job leaves in its output directory: adapters or a model, the best of them, the model card, the hub's copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save

from mms_jax.audio import SAMPLING_RATE
from mms_jax.checkpoint import Directory, Source, find_licence
from mms_jax.config import Wav2Vec2Config
from mms_jax.features import FeatureExtractor
from mms_jax.files import atomic_write, write_json
from mms_jax.models.trees import Params, flatten, merge_trees, unflatten
from mms_jax.parallel import local_copy
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.training.arguments import TrainingArguments
from mms_jax.training.feeds import StreamFeed
from mms_jax.training.files.card import BaseReport, LanguageReport, write_card
from mms_jax.training.files.logs import METRICS, best_evaluation
from mms_jax.training.files.output import CHECKPOINTS, OutputDirectory, prepare_model_directory, push_to_hub, save_model
from mms_jax.training.loop import Trainer
from mms_jax.training.material import MODEL, Material
from mms_jax.training.state import take_slot

EVALUATION = "eval_results.json"
# What a model card says of how a language was trained.
_TOLD = (
    "learning_rate lr_scheduler_type warmup_steps warmup_ratio num_train_epochs max_steps per_device_train_batch_size "
    "gradient_accumulation_steps weight_decay max_grad_norm mask_time_prob mask_feature_prob layerdrop seed"
)


def job_directory(output: Path, languages: Sequence[str]) -> Path:
    """Where a job's state is kept: a second language in the same output directory is another job."""
    name = "-".join(languages) or MODEL
    name = name if len(name) <= 80 else f"{len(languages)}-languages-{languages[0]}-{languages[-1]}"
    return output / CHECKPOINTS / name


@dataclass
class Results:
    """Writes what training came to; with several processes, in one of them."""

    arguments: TrainingArguments
    source: Source
    tokenizer: CTCTokenizer
    feature_extractor: FeatureExtractor
    config: Wav2Vec2Config
    fingerprint: str
    languages: Sequence[str]  # with a vocabulary in ``tokenizer``; none: a whole model is trained

    @property
    def output(self) -> Path:
        """The output directory."""
        return Path(self.arguments.output_dir)

    def prepare(self, *, resume: bool) -> None:
        """Make the output directory ready, before step 0.

        Raises:
            TrainingError: it is another base's, or nobody's; see ``OutputDirectory.prepare``.
        """
        overwrite = self.arguments.overwrite_output_dir
        if self.languages:
            self._directory().prepare(overwrite=overwrite, resume=resume)
        else:
            prepare_model_directory(
                self.output, self.source, fingerprint=self.fingerprint, overwrite=overwrite, resume=resume
            )

    def _directory(self) -> OutputDirectory:
        parts = self.tokenizer, self.feature_extractor, self.config
        return OutputDirectory(self.output, self.source, self.languages, *parts, self.fingerprint)

    def keep_best(self, trainer: Trainer, index: int) -> None:
        """Keep a slot's parameters as the best so far; those of a whole model only where they will be asked for."""
        if not (self.arguments.target_language or self.arguments.load_best_model_at_end):
            return
        params = flatten(take_slot(trainer.state.params, index))
        path = self._best(trainer.slots[index].name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(save({name: np.ascontiguousarray(leaf) for name, leaf in params.items()}))

    def _best(self, name: str) -> Path:
        return job_directory(self.output, self.arguments.target_language) / "best" / f"{name}.safetensors"

    def write(self, trainer: Trainer, materials: Sequence[Material], *, tell: Callable[[str], None]) -> list[Path]:
        """Write every language that was trained to its end, and the model card; push them if that was asked for.

        Returns the adapters or the model.
        """
        a, written = self.arguments, []
        trained = [index for index, slot in enumerate(trainer.slots) if slot.stopped is None]
        for index in trained:
            params = self._final(trainer, index)
            if a.target_language:
                written.append(self._directory().write_adapter(trainer.slots[index].name, params))
            else:
                self._write_model(trainer, params)
                written.append(self.output / "model.safetensors")
            tell(f"wrote {written[-1]}")
        if a.target_language:
            self._directory().finish()
        reports = [self._report(trainer, index, materials[index]) for index in trained]
        write_card(self.output, base=self._base(), reports=reports, repo_id=a.hub_model_id)
        if a.push_to_hub:
            name = a.hub_model_id or self.output.resolve().name
            tell(f"pushed to {push_to_hub(self.output, name, token=a.token, private=a.hub_private_repo or None)}")
        return written

    def write_evaluation(self, trainer: Trainer) -> None:
        """Write what was found where nothing was trained."""
        self.output.mkdir(parents=True, exist_ok=True)
        found = {slot.name: asdict(slot.last) for slot in trainer.slots if slot.last is not None}
        write_json(self.output / EVALUATION, json.loads(json.dumps(found)))

    def _final(self, trainer: Trainer, index: int) -> Params:
        """A slot's last parameters, or the best, where these were asked for."""
        slot = trainer.slots[index]
        path = self._best(slot.name)
        params = take_slot(trainer.state.params, index)
        if self.arguments.load_best_model_at_end and path.is_file():
            best = load_file(path)
            params = unflatten({name: best[name] for name in flatten(params)})
        return take_slot(
            jax.tree.map(lambda leaf: leaf[None], params),
            0,
            vocab_size=slot.vocab_size if self.arguments.target_language else None,
        )

    def _write_model(self, trainer: Trainer, params: Params) -> None:
        whole = merge_trees(jax.tree.map(np.asarray, local_copy(trainer.base)), params)
        config = trainer.objective.config
        parts: dict[str, Any] = {"tokenizer": self.tokenizer, "feature_extractor": self.feature_extractor}
        save_model(self.output, whole, config=config, **parts)

    def _base(self) -> BaseReport:
        local = isinstance(self.source, Directory)
        name = self.source.path.resolve().name if isinstance(self.source, Directory) else self.source.name
        licence = find_licence(self.source)
        return BaseReport(name=name, on_hub=not local, fingerprint=self.fingerprint, licence=licence)

    def _report(self, trainer: Trainer, index: int, material: Material) -> LanguageReport:
        a, slot = self.arguments, trainer.slots[index]
        clips, hours = material.report.clips, material.report.hours
        if isinstance(slot.feed, StreamFeed):  # what was read is more than what was trained on
            position = slot.feed.position(trainer.step)
            clips, hours = position["clips"], position["samples"] / SAMPLING_RATE / 3600
        local = Path(material.names.dataset.split(",")[0].partition("=")[2] or material.names.dataset).exists()
        # Where the last evaluation failed, an earlier one says nothing of what is written.
        result = slot.best_result if a.load_best_model_at_end else slot.last if slot.unheard is None else None
        metrics = {} if result is None else {name: getattr(result, name) for name in ("loss", *a.eval_metrics)}
        return LanguageReport(
            language=material.names.language,
            dataset=Path(material.names.dataset).name if local else material.names.dataset,
            dataset_config=material.names.config,
            dataset_on_hub=not local,
            train_split=a.train_split_name,
            eval_split=a.eval_split_name if a.do_eval else None,
            clips=clips,
            hours=hours,
            dropped=material.report.num_dropped_by_reason,
            eval_clips=0 if result is None else result.num_clips,
            steps=slot.total_steps,
            hyperparameters=self._told(),
            metrics=metrics,
            best_step=self._best_step(trainer, slot.name) if a.load_best_model_at_end else None,
        )

    def _best_step(self, trainer: Trainer, name: str) -> int | None:
        best = best_evaluation(self.output / METRICS, name, metric=trainer.metric)
        return None if best is None else best[0]

    def _told(self) -> dict[str, Any]:
        told = {name: getattr(self.arguments, name) for name in _TOLD.split()}
        del told["num_train_epochs" if self.arguments.max_steps > 0 else "max_steps"]
        return told

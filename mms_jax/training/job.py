"""A whole training job: from settings to the files that come out; ``mms-jax train`` calls ``run_job``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from mms_jax.checkpoint import (
    Directory,
    Source,
    base_fingerprint,
    check_sampling_rate,
    load_feature_extractor,
    open_source,
    require,
)
from mms_jax.checkpoint.processor import load_tokenizer
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import MMSError, TrainingError
from mms_jax.parallel import initialize
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.training.arguments import TrainingArguments
from mms_jax.training.assemble import make_trainer, vocabulary_size
from mms_jax.training.checkpoints import Checkpoints
from mms_jax.training.curve import draw_curve
from mms_jax.training.logs import METRICS, RunLog
from mms_jax.training.loop import Hooks, Interrupted, Trainer
from mms_jax.training.material import Loader, Material, data_names, make_tokenizers
from mms_jax.training.model import Start, has_head, load_adapters, load_whole, training_config
from mms_jax.training.results import Results, job_directory
from mms_jax.training.resume import find_resumed, save_checkpoint


def run_job(arguments: TrainingArguments) -> int:
    """Train or evaluate as the arguments say; returns the exit code: 1 if a language failed and others did not.

    Raises:
        MMSError: what is wrong, before anything is written where it can be told by then. OSError: a file.
    """
    a = arguments
    if a.distributed or a.coordinator_address or a.num_processes is not None or a.process_id is not None:
        initialize(coordinator_address=a.coordinator_address, num_processes=a.num_processes, process_id=a.process_id)
    job = Job(arguments)
    try:
        return job.run()
    except Interrupted as interrupted:
        job.tell(f"SIGTERM: saved after step {interrupted.step}; the same command goes on from there")
        return 0


@dataclass
class Job:
    """What ``run_job`` does, in parts."""

    arguments: TrainingArguments

    @cached_property
    def source(self) -> Source:
        """The checkpoint to start from."""
        a = self.arguments
        return open_source(a.model_name_or_path, revision=a.model_revision, token=a.token, cache_dir=a.cache_dir)

    @cached_property
    def base_config(self) -> Wav2Vec2Config:
        """As the checkpoint has it, with the rates of training."""
        return training_config(Wav2Vec2Config.from_file(require(self.source, "config.json")), self.arguments)

    @property
    def output(self) -> Path:
        """The output directory."""
        return Path(self.arguments.output_dir)

    @property
    def main(self) -> bool:
        """Whether this process is the one that tells and writes."""
        return jax.process_index() == 0

    def tell(self, message: str) -> None:
        """Show it on stderr."""
        if self.main:
            print(message, file=sys.stderr, flush=True)

    def run(self) -> int:
        """Load, train, write."""
        a, extractor = self.arguments, load_feature_extractor(self.source)
        check_sampling_rate(extractor, self.source.name)
        fingerprint, directory = base_fingerprint(self.source), job_directory(self.output, a.target_language)
        resumed = find_resumed(directory, a, fingerprint=fingerprint) if a.do_train else None
        loader = Loader(a, self.base_config, tell=self.tell)
        base, existing = self._base_tokenizer(), self._existing_tokenizer()
        tokenizer = make_tokenizers(a, self.base_config, loader, base=base, existing=existing)
        results = Results(a, self.source, tokenizer, extractor, self.base_config, fingerprint)
        if a.do_train and self.main:
            results.prepare(resume=resumed is not None)
        materials, failures = self._materials(loader, tokenizer)
        config, start = self._start(materials, tokenizer)
        scan = self._scan_layers
        options: dict[str, Any] = {"config": config, "extractor": extractor, "scan_layers": scan, "resumed": resumed}
        trainer = make_trainer(a, materials, start, **options)
        if a.do_train:
            self._train(trainer, directory, results, resumed)
        else:
            self._evaluate(trainer, results)
        if a.do_train and self.main:
            results.write(trainer, materials, tell=self.tell)
        failures += [f"{slot.name}: {slot.stopped}" for slot in trainer.slots if slot.stopped]
        for failure in failures:
            self.tell(f"error: {failure}")
        return 1 if failures else 0

    def _train(self, trainer: Trainer, directory: Path, results: Results, resumed: dict[str, Any] | None) -> None:
        a = self.arguments
        with ExitStack() as stack:
            checkpoints = stack.enter_context(Checkpoints(directory, save_total_limit=a.save_total_limit))
            if resumed is not None:
                restored = checkpoints.restore(trainer.state)
                trainer.state, trainer.step = restored.state, restored.step
            log = stack.enter_context(self._open_log(trainer))
            self._tell_start(trainer, resumed)

            def save() -> None:
                save_checkpoint(checkpoints, trainer, a, fingerprint=results.fingerprint)

            def improved(index: int) -> None:
                if self.main:
                    results.keep_best(trainer, index)

            trainer.run(Hooks(log, save, improved, self._draw))
        self._draw()

    def _evaluate(self, trainer: Trainer, results: Results) -> None:
        with self._open_log(trainer) as log:
            trainer.evaluate(Hooks(log, lambda: None, lambda _: None, lambda: None))
        if self.main:
            results.write_evaluation(trainer)

    def _draw(self) -> None:
        if self.main:
            draw_curve(self.output / METRICS)

    def _open_log(self, trainer: Trainer) -> RunLog:
        return RunLog(
            self.output,
            total_steps=trainer.total_steps,
            languages=[slot.name for slot in trainer.slots],
            progress=False if self.arguments.disable_tqdm else None,
            resume_step=trainer.step,
            write=self.main,
        )

    def _base_tokenizer(self) -> CTCTokenizer | None:
        return None if self.source.find("vocab.json") is None else load_tokenizer(self.source)

    def _existing_tokenizer(self) -> CTCTokenizer | None:
        if not self.arguments.target_language or not (self.output / "vocab.json").is_file():
            return None
        return load_tokenizer(Directory(self.output))

    def _materials(self, loader: Loader, tokenizer: CTCTokenizer) -> tuple[list[Material], list[str]]:
        """The data of every language that has some, and what is wrong with the others."""
        materials, failures = [], []
        for names in data_names(self.arguments):
            try:
                materials.append(loader.load(names, tokenizer.vocabulary(names.language)))
            except MMSError as error:
                if len(self.arguments.target_language) < 2:
                    raise
                failures.append(f"{names.language}: {error}")
                self.tell(f"{names.language} is left out: {error}")
        if not materials:
            raise TrainingError("no language has data: " + "; ".join(failures))
        return materials, failures

    def _start(self, materials: Sequence[Material], tokenizer: CTCTokenizer) -> tuple[Wav2Vec2Config, Start]:
        """The model: its config with the widest head, and its parameters."""
        a, config = self.arguments, self.base_config
        sizes = [vocabulary_size(one) for one in materials]
        config = config.replace(vocab_size=max(sizes), pad_token_id=materials[0].vocabulary.blank_id)
        if a.target_language:
            init = [a.init_language if a.do_train else one.names.language for one in materials]
            start = load_adapters(
                self.source, config, sizes, init=init, dtype=a.dtype, scan_layers=self._scan_layers, seed=a.seed
            )
            return config, start
        base = self._base_tokenizer()
        same = base is not None and not base.is_nested and dict(base.vocab) == dict(tokenizer.vocab)
        keep_head = same and has_head(self.source)
        if not (keep_head or a.do_train):
            raise TrainingError(f"{self.source.name}: has no head for this vocabulary, so there is nothing to evaluate")
        return config, load_whole(
            self.source,
            config,
            keep_head=keep_head,
            freeze_features=a.freeze_feature_encoder,
            scan_layers=self._scan_layers,
            seed=a.seed,
        )

    @property
    def _scan_layers(self) -> bool:
        chosen = self.arguments.scan_layers
        return jax.default_backend() != "cpu" if chosen is None else chosen

    def _tell_start(self, trainer: Trainer, resumed: dict[str, Any] | None) -> None:
        trained = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params)) / 1e6
        frozen = sum(leaf.size for leaf in jax.tree.leaves(trainer.base)) / 1e6
        device = trainer.mesh.devices.flat[0]
        self.tell(
            f"{trained:.2f} M parameters trained, {frozen:.2f} M frozen; {trainer.mesh.size} x {device.device_kind}, "
            f"{self.arguments.dtype} products; {trainer.total_steps} steps"
        )
        if resumed is not None:
            done = "goes on from there" if trainer.active(trainer.step) else "nothing is left to do"
            self.tell(f"{self.output}: {trainer.step} steps were done before; {done}")

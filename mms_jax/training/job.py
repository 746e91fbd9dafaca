"""A whole training job: from settings to the files that come out; ``mms-jax train`` calls ``run_job``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from mms_jax.checkpoint import (
    Directory,
    Source,
    base_fingerprint,
    check_sampling_rate,
    find_adapter,
    load_feature_extractor,
    open_source,
    require,
)
from mms_jax.checkpoint.processor import load_tokenizer
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import MMSError, TrainingError
from mms_jax.parallel import in_main_process, initialize
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.training.arguments import TrainingArguments
from mms_jax.training.assemble import make_trainer, vocabulary_size
from mms_jax.training.files.checkpoints import Checkpoints
from mms_jax.training.files.curve import draw_curve
from mms_jax.training.files.logs import METRICS, RunLog, best_evaluation
from mms_jax.training.loop import Hooks, Interrupted, Trainer
from mms_jax.training.material import DataNames, Loader, Material, data_names, make_tokenizer_of_job, tag_note
from mms_jax.training.model import Start, has_head, load_adapters, load_whole, training_config
from mms_jax.training.results import EVALUATION, Results, job_directory
from mms_jax.training.resume import (
    check_data,
    discard_checkpoints,
    find_resumed,
    mark_finished,
    read_finished,
    save_checkpoint,
)

_NOTHING_LEFT = "nothing is left to do; --overwrite_output_dir trains anew"


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
        job.tell(f"SIGTERM: saved after step {interrupted.step}; {job.command} goes on from there")
        return 0


@dataclass
class Job:
    """What ``run_job`` does, in parts."""

    arguments: TrainingArguments
    failures: list[str] = field(default_factory=list)  # of languages, where others can go on
    left_out: list[DataNames] = field(default_factory=list)
    saved: int | None = None  # step of the newest checkpoint

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
    def command(self) -> str:
        """How a job that is interrupted goes on."""
        again = "the same command"
        return f"{again} without --overwrite_output_dir" if self.arguments.overwrite_output_dir else again

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
        if resumed is not None and (failures := read_finished(directory, self.output)) is not None:
            self.tell(f"{self.output}: all {resumed['step']} steps were done before; {_NOTHING_LEFT}")
            return self._tell_failures(failures)
        loader = Loader(a, self.base_config, tell=self.tell)
        names = self._names(resumed)
        for note in [tag_note(one.language) for one in names if a.do_train and one.language is not None]:
            if note is not None:
                self.tell(note)
        tokenizer = self._tokenizer(loader, names)
        names = [one for one in names if one not in self.left_out]
        languages = [one.language for one in names if one.language is not None]
        results = Results(a, self.source, tokenizer, extractor, self.base_config, fingerprint, languages)
        if a.do_train:
            in_main_process(lambda: results.prepare(resume=resumed is not None))
        materials = self._materials(loader, names, tokenizer)
        config, start = self._start(materials, tokenizer)
        scan = self._scan_layers
        options: dict[str, Any] = {"config": config, "extractor": extractor, "scan_layers": scan, "resumed": resumed}
        trainer = make_trainer(a, materials, start, **options)
        if a.do_train:
            with self._interruptible(trainer):
                self._train(trainer, materials, directory, results, resumed)
        else:
            self._evaluate(trainer, results)
        for slot in trainer.slots:
            self.failures += [f"{slot.name}: {reason}" for reason in (slot.stopped, slot.unheard) if reason is not None]
        if a.do_train and self.main:
            self._tell_best(trainer)
            written = results.write(trainer, materials, tell=self.tell)
            mark_finished(directory, written=written, failures=self.failures)
        return self._tell_failures(self.failures)

    def _tell_failures(self, failures: Sequence[str]) -> int:
        """The last that is said; returns the exit code."""
        for failure in failures:
            self.tell(f"error: {failure}")
        return 1 if failures else 0

    @contextmanager
    def _alone(self, names: DataNames) -> Iterator[None]:
        """What is wrong with one language of several is its own affair: it is left out."""
        try:
            yield
        except MMSError as error:
            if len(self.arguments.target_language) < 2:
                raise
            self.left_out.append(names)
            self.failures.append(f"{names.title}: {error}")
            self.tell(f"{names.title} is left out: {error}")

    def _names(self, resumed: dict[str, Any] | None) -> list[DataNames]:
        """Of the data of all languages, but those that were left out when a job that is resumed began, and those that
        lack the adapter that is to be evaluated.
        """
        a, names = self.arguments, data_names(self.arguments)
        if a.init_language is not None:
            find_adapter(self.source, a.init_language)
        for one in names:
            if not a.do_train and one.language is not None:
                with self._alone(one):
                    self._check_adapter(one.language)
            if resumed is not None and one.language is not None and one.language not in resumed["slots"]:
                with self._alone(one):
                    raise TrainingError("was left out when this job began; train it afterwards, in a job of its own")
        return [one for one in names if one not in self.left_out]

    def _check_adapter(self, language: str) -> None:
        """Raise ``TrainingError`` if there is none to evaluate."""
        try:
            find_adapter(self.source, language)
        except MMSError as error:
            raise TrainingError(
                f"{error}; --model_name_or_path must be the directory that holds the language's adapter, such as the "
                "--output_dir it was trained in"
            ) from error

    def _tokenizer(self, loader: Loader, names: Sequence[DataNames]) -> CTCTokenizer:
        options = {"base": self._base_tokenizer(), "existing": self._existing_tokenizer()}
        return make_tokenizer_of_job(self.arguments, self.base_config, loader, names, alone=self._alone, **options)

    def _train(
        self,
        trainer: Trainer,
        materials: Sequence[Material],
        directory: Path,
        results: Results,
        resumed: dict[str, Any] | None,
    ) -> None:
        a = self.arguments
        if resumed is None:
            discard_checkpoints(directory)  # only now: all else that could go wrong before the first step did not
        with ExitStack() as stack:
            checkpoints = stack.enter_context(Checkpoints(directory, save_total_limit=a.save_total_limit))
            if resumed is not None:
                self._check_languages(trainer, resumed)
                check_data(directory, resumed, materials)
                restored = checkpoints.restore(trainer.state)
                trainer.resume(restored.state, restored.step, restored.info)
                self.saved = restored.step
            log = stack.enter_context(self._open_log(trainer, resumed))
            self._tell_start(trainer, resumed, log.say)

            def save() -> None:
                save_checkpoint(checkpoints, trainer, a, materials, fingerprint=results.fingerprint, run=log.number)
                self.saved = trainer.step

            def improved(index: int) -> None:
                if self.main:
                    results.keep_best(trainer, index)

            trainer.run(Hooks(log, save, improved, self._draw))
        self._draw()

    @contextmanager
    def _interruptible(self, trainer: Trainer) -> Iterator[None]:
        """Ctrl-C ends the program with a word of what it costs."""
        try:
            yield
        except KeyboardInterrupt:
            self._tell_unsaved(trainer.step)
            raise

    def _tell_unsaved(self, step: int) -> None:
        a = self.arguments
        how = f"--save_steps ({a.save_steps})" if a.save_strategy == "steps" else f"--save_strategy ({a.save_strategy})"
        if self.saved is None:
            left = "nothing is saved yet, and the same command begins anew"
        else:
            lost = f"not saved since step {self.saved}" if self.saved < step else f"saved after step {self.saved}"
            left = f"{lost}; {self.command} goes on from there"
        self.tell(f"interrupted after step {step}: {left}; {how} says how often it is saved")

    def _tell_best(self, trainer: Trainer) -> None:
        """Which step's evaluation was the best of each language, and which step is what is written."""
        keeps_best = self.arguments.load_best_model_at_end
        for slot in trainer.slots:
            best = best_evaluation(self.output / METRICS, slot.name, metric=trainer.metric)
            if best is None or slot.stopped is not None or (not keeps_best and best[0] == slot.total_steps):
                continue
            value = f"{best[1]:.4g}" if trainer.metric == "loss" else f"{best[1]:.1%}"
            found = f"step {best[0]} of {slot.total_steps} was the best, by {trainer.metric} ({value})"
            kept = "and is kept" if keeps_best else "the last is kept; --load_best_model_at_end would keep the best"
            self.tell(f"{slot.name}: {found}, {kept}")

    def _check_languages(self, trainer: Trainer, resumed: dict[str, Any]) -> None:
        """Raise ``TrainingError`` if a language that the job began with has no data any more."""
        missing = sorted(resumed["slots"].keys() - {slot.name for slot in trainer.slots})
        if missing:
            reasons = [failure for failure in self.failures if failure.partition(":")[0] in missing]
            raise TrainingError(f"this job began with {', '.join(missing)}, too; {'; '.join(reasons)}")

    def _evaluate(self, trainer: Trainer, results: Results) -> None:
        with self._open_log(trainer) as log:
            trainer.evaluate(Hooks(log, lambda: None, lambda _: None, lambda: None))
        if self.main:
            results.write_evaluation(trainer)
            self.tell(f"wrote {self.output / EVALUATION}")

    def _draw(self) -> None:
        if self.main:
            draw_curve(self.output / METRICS)

    def _open_log(self, trainer: Trainer, resumed: dict[str, Any] | None = None) -> RunLog:
        return RunLog(
            self.output,
            total_steps=trainer.total_steps,
            languages=[slot.name for slot in trainer.slots],
            progress=False if self.arguments.disable_tqdm else None,
            resume_step=trainer.step,
            resume_run=None if resumed is None else resumed["run"],
            resume_due=[slot.name for slot in trainer.slots if slot.evaluates_after(trainer.step)],
            write=self.main,
        )

    def _base_tokenizer(self) -> CTCTokenizer | None:
        return None if self.source.find("vocab.json") is None else load_tokenizer(self.source)

    def _existing_tokenizer(self) -> CTCTokenizer | None:
        if not self.arguments.target_language or not (self.output / "vocab.json").is_file():
            return None
        return load_tokenizer(Directory(self.output))

    def _materials(self, loader: Loader, names: Sequence[DataNames], tokenizer: CTCTokenizer) -> list[Material]:
        """The data of every language that has some."""
        materials = []
        for one in names:
            with self._alone(one):
                materials.append(loader.load(one, tokenizer.vocabulary(one.language)))
        if not materials:
            raise TrainingError("no language has data: " + "; ".join(self.failures))
        return materials

    def _start(self, materials: Sequence[Material], tokenizer: CTCTokenizer) -> tuple[Wav2Vec2Config, Start]:
        """The model: its config with the widest head, and its parameters."""
        a, config = self.arguments, self.base_config
        sizes = [vocabulary_size(one) for one in materials]
        config = config.replace(vocab_size=max(sizes), pad_token_id=materials[0].vocabulary.blank_id)
        if a.target_language:
            init = [a.init_language if a.do_train else one.names.language for one in materials]
            options: dict[str, Any] = {"dtype": a.dtype, "scan_layers": self._scan_layers, "seed": a.seed}
            keep_heads = [self._keeps_head(one, tokenizer) for one in materials]
            return config, load_adapters(self.source, config, sizes, init=init, keep_heads=keep_heads, **options)
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

    def _keeps_head(self, material: Material, tokenizer: CTCTokenizer) -> bool:
        """Whether the adapter that a language starts from has a head for its vocabulary; evaluated ones must."""
        a, base = self.arguments, self._base_tokenizer()
        if not a.do_train:
            return True
        if a.init_language is None or base is None or not base.is_nested or material.names.language is None:
            return False
        there = base.vocab.get(a.init_language)
        return there is not None and dict(there) == dict(tokenizer.vocab[material.names.language])

    @property
    def _scan_layers(self) -> bool:
        chosen = self.arguments.scan_layers
        return jax.default_backend() != "cpu" if chosen is None else chosen

    def _tell_start(self, trainer: Trainer, resumed: dict[str, Any] | None, tell: Callable[[str], None]) -> None:
        """With ``tell``, that of the log: the bar is there already."""
        trained = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params)) / 1e6
        frozen = sum(leaf.size for leaf in jax.tree.leaves(trainer.base)) / 1e6
        device = trainer.mesh.devices.flat[0]
        tell(
            f"{trained:.2f} M parameters trained, {frozen:.2f} M frozen; {trainer.mesh.size} x {device.device_kind}, "
            f"{self.arguments.dtype} products; {trainer.total_steps} steps"
        )
        for slot in trainer.slots:
            if self.arguments.warmup_steps > slot.total_steps:
                tell(
                    f"{slot.name}: --warmup_steps {self.arguments.warmup_steps:g} is more than its {slot.total_steps} "
                    "steps: the learning rate never reaches --learning_rate; train longer, or warm up for less"
                )
        if resumed is not None:
            done = "goes on from there" if trainer.active(trainer.step) else _NOTHING_LEFT
            tell(f"{self.output}: {trainer.step} steps were done before; {done}")

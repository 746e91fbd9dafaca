"""This library's side of train.py."""

from __future__ import annotations

import functools
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.train_setup import (
    LANGUAGE,
    LEARNING_RATE,
    Clip,
    Settings,
    audio_seconds,
    make_batches,
    make_clips,
)
from experiments.benchmarks.train_worker import Parent, limit_threads
from mms_jax.checkpoint import load_adapter, load_wav2vec2, open_source
from mms_jax.features import FeatureExtractor
from mms_jax.models.trees import split_adapter
from mms_jax.parallel import local_shards, make_mesh, replicate, shard_rows
from mms_jax.training.batches import BatchMaker, Item
from mms_jax.training.loop import Hooks, Trainer
from mms_jax.training.schedules import make_schedule
from mms_jax.training.state import Optimizer, init_state, stack_slots
from mms_jax.training.step import Batch, Objective, make_step

OPTIMIZER = Optimizer()
PEAK_SIZE, PEAK_PRODUCTS = 8192, 50  # of the card's own speed
LOSSES = 10  # in a row


@dataclass
class Steps:
    """Adapters of a checkpoint trained on batches that are ready, round and round in the same order."""

    settings: Settings
    batches: Sequence[Sequence[Clip]]
    slots: int = 1  # among which a batch's rows are shared out
    step: int = 0
    losses: list[Any] = field(default_factory=list)  # [slots], of every step

    def __post_init__(self):
        s, self.mesh = self.settings, make_mesh()
        scan = s.device != "cpu"
        source = open_source(str(s.directory))
        base, _ = split_adapter({"wav2vec2": load_wav2vec2(source, dtype=s.dtype, stack_layers=scan).params})
        own = load_adapter(s.adapter, s.config, stack_layers=True)
        params, columns = stack_slots([own] * self.slots)
        self.objective = Objective(s.config, columns, adapters=True, dtype=s.dtype, scan_layers=scan, remat=s.remat)
        self.base = replicate(base, self.mesh)
        self.update = make_step(self.objective, OPTIMIZER, self.mesh)
        self.state = replicate(init_state(params, optimizer=OPTIMIZER), self.mesh)
        self.schedule = make_schedule("linear", learning_rate=LEARNING_RATE, total_steps=s.total_steps)
        self.prepared = self._prepare()

    def _prepare(self) -> list[Batch]:
        """The batches' arrays."""
        rows = self.settings.batch // self.slots
        maker = BatchMaker(
            self.objective.config,
            FeatureExtractor(),
            rows=rows,
            passes=1,
            num_shards=self.mesh.size,
            shards=local_shards(self.mesh),
            pad_samples=lambda num_samples: num_samples,
            pad_labels=lambda *_: max(len(clip.text) for batch in self.batches for clip in batch),
            seed=0,
            augment=False,
        )
        return [
            maker.make(
                number, [[_item(clip) for clip in batch[i : i + rows]] for i in range(0, len(batch), rows)]
            ).batch
            for number, batch in enumerate(self.batches)
        ]

    def run(self) -> None:
        """One step; does not wait for its end."""
        batch = shard_rows(self.prepared[self.step % len(self.prepared)], self.mesh, axis=1)
        rates = np.full(self.slots, self.schedule(self.step), np.float32)
        key = jax.random.key(self.step)
        self.state, metrics = self.update(self.state, self.base, None, batch, None, rates, key)
        self.losses.append(metrics.loss)
        self.step += 1

    def timed_round(self) -> float:
        """Seconds of a round's steps."""
        self.losses.clear()
        return seconds_of(self.settings, self.run, self.settings.steps, lambda: self.state)


def _item(clip: Clip) -> Item:
    return Item(len(clip.waveform), clip.labels, lambda: clip.waveform, "a clip")


def seconds_of(settings: Settings, function: Callable[[], Any], count: int, result: Callable[[], Any]) -> float:
    """Seconds of so many calls, until the last one's result is there."""
    jax.block_until_ready(result())
    start = settings.now()
    for _ in range(count):
        function()
    jax.block_until_ready(result())
    return settings.now() - start


def peak_memory() -> int:
    """Bytes, of the card or of the process."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(what: str, settings: Settings) -> None:
    """A worker's whole life."""
    limit_threads(settings.device, settings.threads)
    {"ours": _step, "ours_files": _files, "adapters": _adapters, "ctc": _ctc, "peak": _peak}[what](settings)


def _step(settings: Settings) -> None:
    steps = Steps(settings, make_batches(settings))
    while True:
        Parent().wait()
        seconds = steps.timed_round()
        losses = [float(loss[0]) for loss in steps.losses]
        Parent().answer(seconds=seconds, losses=losses, peak=peak_memory(), kind=jax.devices()[0].device_kind)


def _adapters(settings: Settings) -> None:
    """As many adapters as a batch has eighths, beside one, for the same rows."""
    batches = make_batches(settings)
    one, many = Steps(settings, batches), Steps(settings, batches, slots=8)
    while True:
        Parent().wait()
        Parent().answer(one=one.timed_round(), many=many.timed_round())


def _ctc(settings: Settings) -> None:
    """The step beside its loss alone, with gradient, ours and optax's."""
    from experiments.benchmarks.ctc_loss import compiled, optax_loss, ours

    steps = Steps(settings, make_batches(settings))
    rows = jax.tree.map(lambda leaf: leaf[0], steps.prepared[0])
    num_frames = np.asarray(settings.config.num_frames(rows.num_samples), np.int32)
    frames = int(settings.config.num_frames(rows.input_values.shape[1]))
    shape = (settings.batch, frames, settings.config.vocab_size)
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    batch = logits, rows.labels, num_frames, rows.num_labels
    programs = {"own": compiled(ours, batch), "optax": compiled(optax_loss, batch)}
    found: list[Any] = []
    while True:
        Parent().wait()
        times = {"step": steps.timed_round() / settings.steps}
        for name, program in programs.items():
            call = functools.partial(lambda program: found.append(program(*batch)), program)
            times[name] = seconds_of(settings, call, LOSSES, found.copy) / LOSSES
            found.clear()
        Parent().answer(**times)


def _peak(settings: Settings) -> None:
    """The card's bfloat16 products, as fast as they are alone."""
    x = jax.random.normal(jax.random.key(0), (PEAK_SIZE, PEAK_SIZE), jnp.bfloat16)
    found = [x]
    product = jax.jit(lambda x, y: (x @ y) * jnp.bfloat16(PEAK_SIZE**-0.5))
    while True:
        Parent().wait()
        seconds = seconds_of(settings, lambda: found.append(product(found.pop(), x)), PEAK_PRODUCTS, found.copy)
        Parent().answer(teraflops=2e-12 * PEAK_SIZE**3 * PEAK_PRODUCTS / seconds)


class Silence:
    """A log that nobody reads."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Whatever is to be told."""
        return lambda *_, **__: None


def _files(settings: Settings) -> None:
    """A round is a whole run of a job's trainer, which decodes as it goes; the first one compiles."""
    from mms_jax.training.job import run_job  # it imports what no step needs

    run, audio = Trainer.run, audio_seconds(make_clips(settings, settings.clips, seed=4))

    def rounds(trainer: Trainer, hooks: Hooks) -> None:
        hooks = replace(hooks, log=Silence(), save=lambda: None)
        prepared = settings.now() - start
        while True:
            trainer.step = 0
            begun = settings.now()
            run(trainer, hooks)
            jax.block_until_ready(trainer.state)
            seconds = settings.now() - begun
            Parent().answer(seconds=seconds, audio=audio, prepared=prepared, peak=peak_memory())
            Parent().wait()

    Parent().wait()
    start = settings.now()
    with patch.object(Trainer, "run", rounds):
        run_job(_arguments(settings))


def _arguments(settings: Settings) -> Any:
    from mms_jax.training.arguments import TrainingArguments

    s = settings
    return TrainingArguments(
        model_name_or_path=str(s.directory),
        dataset_name=(str(s.scratch / "data"),),
        train_split_name="train",
        target_language=(LANGUAGE,),
        output_dir=str(s.scratch / "ours"),
        overwrite_output_dir=True,
        do_train=True,
        num_train_epochs=1,
        per_device_train_batch_size=s.batch,
        learning_rate=LEARNING_RATE,
        group_by_length=True,
        gradient_checkpointing=s.remat,
        bf16=s.dtype == "bfloat16",
        fp16=s.dtype == "float16",
        preprocessing_num_workers=s.threads,
        disable_tqdm=True,
        **{name: value for name, value in s.rates.items() if name != "ctc_loss_reduction"},
    )

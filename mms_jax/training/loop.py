"""The training loop: who trains at which step, on what, at what rate; logs, evaluations, checkpoints, and its end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mms_jax.audio import SAMPLING_RATE
from mms_jax.errors import MMSError, TrainingError
from mms_jax.models.trees import Params
from mms_jax.parallel import shard_rows
from mms_jax.training.batches import BatchMaker, Prepared
from mms_jax.training.evaluation import evaluate, of_any_process
from mms_jax.training.feeds import AskedToEnd, StreamFeed, take_all
from mms_jax.training.metrics import Averages, EvalResult
from mms_jax.training.prefetch import prefetched
from mms_jax.training.slot import Slot
from mms_jax.training.state import Optimizer, TrainState
from mms_jax.training.step import Objective, StepMetrics, make_listener, make_step

MAX_BAD_STEPS = 8  # updates in a row whose gradients are not finite, after which a language stops
NAMES_SHOWN = 4


class Log(Protocol):
    """What the loop tells; see logs.py."""

    def step(self, step: int, values: Mapping[str, float]) -> None: ...  # noqa: D102
    def evaluation(self, step: int, language: str, result: EvalResult) -> None: ...  # noqa: D102
    def event(self, message: str) -> None: ...  # noqa: D102
    def advance(self, step: int) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Hooks:
    """What the loop calls."""

    log: Log
    save: Callable[[], None]  # keep the state
    improved: Callable[[int], None]  # a slot's last evaluation is its best so far
    evaluated: Callable[[], None]  # evaluations of a step are done


class Pass(NamedTuple):
    """Slots that train together in one call, and their data; numbers beyond the last slot only fill."""

    step: int
    slots: tuple[int, ...]
    prepared: Prepared


class Interrupted(Exception):  # noqa: N818 - no error: the job was asked to end, and did
    """SIGTERM came and the state was saved; ``step`` updates are done."""

    def __init__(self, step: int):
        super().__init__(f"interrupted after step {step}")
        self.step = step


@dataclass
class Trainer:
    """Everything one training job needs; ``run`` does it."""

    objective: Objective
    optimizer: Optimizer
    mesh: Mesh
    base: Params
    state: TrainState
    slots: Sequence[Slot]
    maker: BatchMaker
    eval_maker: BatchMaker
    logging_steps: int = 10
    metric: str = "wer"  # of the best: an attribute of EvalResult, the lower the better
    slots_per_pass: int = 8
    eval_on_start: bool = False
    step: int = 0  # updates done
    _hooks: Hooks = field(init=False)
    _averages: Averages = field(init=False)
    _waiting: list[tuple[Pass, StepMetrics]] = field(default_factory=list)
    _since: float = 0.0  # when the steps of the next line of the log began
    _carried: float = 0.0  # seconds that they took before the job was interrupted
    _asked: Callable[[], bool] = bool  # whether this process was asked to end; bool() is False

    def __post_init__(self):
        self._averages = Averages([slot.name for slot in self.slots])
        self._update = make_step(self.objective, self.optimizer, self.mesh)
        self._listen = make_listener(self.objective, self.mesh)
        self._key = jax.random.key(self.maker.seed)
        self._frames = np.zeros((3, len(self.slots)), np.int64)  # blank ones, all; and rows without an alignment

    @property
    def total_steps(self) -> int:
        """Steps until the last language is done."""
        return max((slot.total_steps for slot in self.slots), default=0)

    def active(self, step: int) -> list[int]:
        """Slots that take part in the step after ``step`` updates."""
        return [i for i, slot in enumerate(self.slots) if slot.stopped is None and step < slot.total_steps]

    def record(self) -> dict[str, Any]:
        """What is saved beside the arrays, as JSON has it."""
        return {
            "slots": {slot.name: slot.record(self.step) for slot in self.slots},
            "averages": self._averages.state,
            "frames": self._frames.tolist(),
            "seconds": time.perf_counter() - self._since,
        }

    def resume(self, state: TrainState, step: int, record: Mapping[str, Any]) -> None:
        """Go on from a saved state and ``record``."""
        self.state, self.step, self._carried = state, step, record["seconds"]
        for slot in self.slots:
            slot.resume(record["slots"][slot.name])
        self._averages.restore(record["averages"])
        self._frames[:] = record["frames"]

    def evaluate(self, hooks: Hooks) -> None:
        """Evaluate every slot as it is."""
        self._hooks = hooks
        for index in self._evaluated():
            self._evaluate([index])

    def _evaluated_after(self, step: int) -> list[int]:
        return [index for index, slot in enumerate(self.slots) if slot.evaluates_after(step)]

    def _evaluated(self) -> list[int]:
        return [index for index, slot in enumerate(self.slots) if slot.evaluation is not None]

    def run(self, hooks: Hooks) -> None:
        """Train until every language is done or stopped, from the step the state is at.

        Raises:
            TrainingError: no language could go on. Interrupted: SIGTERM came; the state is saved.
        """
        self._hooks = hooks
        with _sigterm() as self._asked:
            for slot in self.slots:
                # With several processes a step is what all of them take, or none: only there they agree to end.
                if isinstance(slot.feed, StreamFeed) and jax.process_count() == 1:
                    slot.feed.asked = self._asked
            # What was given up when the job was asked to end comes before all else, as if it never had been.
            due = self._evaluated_after(self.step) if self.step else self._evaluated() if self.eval_on_start else []
            if due and self._evaluate(due):
                self._leave()
            while self.active(self.step):
                self._run_until_someone_stops()
        reasons = [f"{slot.name}: {slot.stopped}" for slot in self.slots if slot.stopped is not None]
        if len(reasons) == len(self.slots):
            raise TrainingError("; ".join(reasons))

    def _run_until_someone_stops(self) -> None:
        """Steps with one set of languages, whose data is prepared in the background."""
        self._since, self._carried = time.perf_counter() - self._carried, 0.0
        stopped = [slot.stopped for slot in self.slots]
        with prefetched(self._steps(self.step)) as steps:
            for passes in steps:
                interrupted = self._agree(passes)
                if any(slot.stopped != before for slot, before in zip(self.slots, stopped, strict=True)):
                    return
                self._train(passes)
                self.step += 1
                self._hooks.log.advance(self.step)
                self._after_step(interrupted)
                if any(slot.stopped != before for slot, before in zip(self.slots, stopped, strict=True)):
                    return
        self._settle()
        if self.active(self.step):  # it was asked to end while it waited for its data
            self._leave()

    def _leave(self) -> NoReturn:
        self._hooks.save()
        raise Interrupted(self.step)

    def _steps(self, start: int) -> Iterator[list[Pass]]:
        """The data of every step from ``start`` on, until a stream is left."""
        for step in range(start, self.total_steps):
            try:
                passes = [self._pass(step, group) for group in self._groups(self.active(step))]
            except AskedToEnd:
                return
            if not passes:
                return
            yield passes

    def _groups(self, active: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Active slots in groups of 1, 2, 4 … ``slots_per_pass``: every size is compiled for every length."""
        for start in range(0, len(active), self.slots_per_pass):
            group = active[start : start + self.slots_per_pass]
            size = min(self.slots_per_pass, 1 << (len(group) - 1).bit_length())
            yield (*group, *range(len(self.slots), len(self.slots) + size - len(group)))

    def _pass(self, step: int, group: tuple[int, ...]) -> Pass:
        feeds = [self.slots[index].feed if index < len(self.slots) else None for index in group]
        items, failed = take_all(feeds, step=step)
        prepared = self.maker.make(step, items)
        return Pass(step, group, prepared._replace(failed=prepared.failed | failed))

    def _agree(self, passes: Sequence[Pass]) -> bool:
        """Stop languages whose clips some process cannot read; returns whether any process was asked to end."""
        failed = {one.slots[place]: error for one in passes for place, error in one.prepared.failed.items()}
        flags = np.zeros(len(self.slots) + 1, np.int32)
        flags[list(failed)] = 1
        flags[-1] = self._asked()
        flags = of_any_process(flags)
        if flags[:-1].any() and self.step:  # a clip can be mended, and its language then go on from here
            self._settle()
            self._hooks.save()
        for index in np.flatnonzero(flags[:-1]).tolist():
            self._stop(self.slots[index], str(failed.get(index, "another process cannot read its clips")))
        return bool(flags[-1])

    def _train(self, passes: Sequence[Pass]) -> None:
        for one in passes:
            rates = [self.slots[i].schedule(one.step) if i < len(self.slots) else 0.0 for i in one.slots]
            whole = one.slots == tuple(range(len(self.slots)))
            self.state, metrics = self._update(
                self.state,
                self.base,
                None if whole else np.array(one.slots, np.int32),
                shard_rows(one.prepared.batch, self.mesh, axis=1),
                one.prepared.layer_keep,
                np.array(rates, np.float32),
                jax.random.fold_in(self._key, one.step),
            )
            self._waiting.append((one, metrics))
        # What the step before measured is there by now: to look at it does not keep the device waiting.
        self._settle(keep=len(passes))

    def _settle(self, *, keep: int = 0) -> None:
        """Take note of what finished steps measured, all but the last ``keep`` passes."""
        while len(self._waiting) > keep:
            one, metrics = self._waiting.pop(0)
            self._note(one, jax.tree.map(np.asarray, metrics))

    def _note(self, one: Pass, metrics: StepMetrics) -> None:
        loss, norm = np.full((2, len(self.slots)), np.nan)
        took_part = np.zeros(len(self.slots), bool)
        for place, (index, names) in enumerate(zip(one.slots, one.prepared.names, strict=True)):
            if not names:
                continue
            loss[index], norm[index], took_part[index] = metrics.loss[place], metrics.grad_norm[place], True
            self._frames[:, index] += metrics.blank_frames[place], metrics.num_frames[place], metrics.infeasible[place]
            clips = ", ".join(names[:NAMES_SHOWN]) + (" …" if len(names) > NAMES_SHOWN else "")
            if metrics.bad_steps[place] == 1:  # the first in a row
                self._hooks.log.event(
                    f"{self.slots[index].name}: step {one.step + 1} is left out, its gradient is not finite ({clips})"
                )
            if metrics.bad_steps[place] >= MAX_BAD_STEPS:
                self._stop(
                    self.slots[index],
                    f"{MAX_BAD_STEPS} updates in a row had gradients that are not finite and were left out, the last "
                    f"at step {one.step + 1} on {clips}. Lower --learning_rate, or look at these clips",
                )
        seconds = one.prepared.num_samples / SAMPLING_RATE
        self._averages.add(loss=loss, grad_norm=norm, audio_seconds=seconds, took_part=took_part)

    def _stop(self, slot: Slot, reason: str) -> None:
        if slot.stopped is None:
            slot.stopped = reason
            self._hooks.log.event(f"{slot.name} stops: {reason}")

    def _after_step(self, interrupted: bool) -> None:
        saves = any(slot.save_steps and self.step % slot.save_steps == 0 for slot in self.slots)
        logs = saves or self.step % self.logging_steps == 0 or self._evaluated_after(self.step)
        if logs or interrupted or not self.active(self.step):
            self._settle()  # someone may have to stop
        evaluated, last = self._evaluated_after(self.step), not self.active(self.step)
        if logs or last:  # not where it is interrupted: the log is to be that of a run that never was
            self._write_log()
        if evaluated and not interrupted:
            interrupted = self._evaluate(evaluated)
            self._since = time.perf_counter()
        if (saves or interrupted or last) and any(slot.stopped is None for slot in self.slots):
            self._hooks.save()  # where all stopped, what was saved before is worth more
        if interrupted and (not last or self._evaluated_after(self.step)):
            raise Interrupted(self.step)
        self._since = time.perf_counter() if evaluated or saves else self._since  # speed is that of training

    def _write_log(self) -> None:
        now = time.perf_counter()
        values = self._averages.take(seconds=now - self._since)
        self._since = now
        values["learning_rate"] = max(slot.schedule(self.step - 1) for slot in self.slots)
        blank, frames, infeasible = self._frames
        values |= {"blank_ratio": blank.sum() / max(1, frames.sum())}
        values |= {"infeasible": int(infeasible.sum())} if infeasible.any() else {}
        self._hooks.log.step(self.step, values)
        for slot, own, total in zip(self.slots, blank, frames, strict=True):
            advice = slot.monitor.update(self.step, ratio=own / total) if slot.monitor and total else None
            if advice is not None:
                self._hooks.log.event(advice)
        self._frames[:] = 0

    def _evaluate(self, indices: Sequence[int]) -> bool:
        """Evaluate slots and take note of all or, where it is given up, of none; returns whether it was given up."""
        found: list[tuple[int, EvalResult | MMSError]] = []
        for index in indices:
            clips = self.slots[index].evaluation
            assert clips is not None
            parts = self.state.params, self.base, index, clips, self.eval_maker, self.mesh
            try:
                result = evaluate(self._listen, *parts, asked=self._asked_anywhere)
            except MMSError as error:  # a clip that cannot be read any more is no reason to lose what was trained
                if jax.process_count() > 1:  # the others wait for this process
                    raise
                result = error
            if result is None:
                return True
            found.append((index, result))
        for index, result in found:
            self._note_evaluation(index, result)
        self._hooks.evaluated()
        return False

    def _note_evaluation(self, index: int, result: EvalResult | MMSError) -> None:
        slot = self.slots[index]
        slot.evaluated, slot.unheard = self.step, None
        if isinstance(result, MMSError):
            slot.unheard = f"could not be evaluated after step {self.step}: {result}"
            self._hooks.log.advance(self.step)  # the event is of this step, even where the job goes on with it
            self._hooks.log.event(f"{slot.name} {slot.unheard}")
            return
        slot.last = result
        self._hooks.log.evaluation(self.step, slot.name, slot.last)
        score = getattr(slot.last, self.metric)
        if score < slot.best:
            slot.best, slot.best_result = score, slot.last
            self._hooks.improved(index)

    def _asked_anywhere(self) -> bool:
        return bool(of_any_process(np.array([self._asked()], np.int32)).any())


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came since; it ends the process no more. In another thread than the main one: never."""
    came = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)

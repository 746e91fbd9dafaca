"""One language of a job: what it trains on, for how long, and how it fared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mms_jax.training.batches import Feed
from mms_jax.training.evaluation import EvalSet, result_of_record
from mms_jax.training.metrics import BlankMonitor, EvalResult


@dataclass
class Slot:
    """One language of the job, or the one model of full fine-tuning."""

    name: str  # the language's tag; "model" for full fine-tuning
    feed: Feed | None  # None: it is only evaluated
    schedule: Callable[[int], float]  # step -> learning rate
    total_steps: int
    vocab_size: int
    evaluation: EvalSet | None = None
    eval_steps: int | None = None  # between evaluations; None: only after its last step
    save_steps: int | None = None  # between checkpoints; None: only after the last step
    monitor: BlankMonitor | None = None
    stopped: str | None = None  # why it trains no more
    last: EvalResult | None = None
    evaluated: int | None = None  # the step of its last evaluation
    best: float = math.inf  # of the metric, the lower the better
    best_result: EvalResult | None = None
    unheard: str | None = None  # why its last evaluation failed

    def evaluates_after(self, step: int) -> bool:
        """Whether it is still to be evaluated when ``step`` updates are done."""
        if self.evaluation is None or self.stopped is not None or step > self.total_steps or step == self.evaluated:
            return False
        return step == self.total_steps or (self.eval_steps is not None and step % self.eval_steps == 0)

    def record(self, step: int) -> dict[str, Any]:
        """What is saved of it beside the arrays when ``step`` updates are done."""
        return {
            "stopped": self.stopped,
            "evaluated": self.evaluated,
            "best": None if math.isinf(self.best) else self.best,
            "last": None if self.last is None else asdict(self.last),
            "best_result": None if self.best_result is None else asdict(self.best_result),
            "position": {} if self.feed is None else self.feed.position(step),
            "monitor": None if self.monitor is None else self.monitor.state,
        }

    def resume(self, record: Mapping[str, Any]) -> None:
        """Go on from a ``record``; the feed was made to."""
        self.stopped, self.evaluated = record["stopped"], record["evaluated"]
        self.best = math.inf if record["best"] is None else record["best"]
        self.last, self.best_result = (
            None if record[name] is None else result_of_record(record[name]) for name in ("last", "best_result")
        )
        if self.monitor is not None and record["monitor"] is not None:
            self.monitor.restore(record["monitor"])

"""Learning rates as functions of the step, in float64: transformers' schedules, and fairseq's three stages.

Step s is the number of updates made so far: the first update uses the rate of step 0, which is 0 with a warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mms_jax.errors import SettingError

Schedule = Callable[[int], float]

TRI_STAGE = "tri_stage"
PHASE_RATIO = (0.1, 0.4, 0.5)  # of the steps: warm-up, hold, decay (fairseq's recipes for wav2vec 2.0 with CTC)
INIT_LR_SCALE = 0.01  # of the learning rate, at step 0 of the three stages
FINAL_LR_SCALE = 0.05  # of the learning rate, at their end
_RATIO_SLACK = 1e-6  # 0.1 + 0.4 + 0.5 need not be 1 in floating point

_TYPES = ("linear", "cosine", "constant", "constant_with_warmup", TRI_STAGE)
_WITHOUT_WARMUP = {"constant": "choose constant_with_warmup", TRI_STAGE: "its warm-up is the first of its phase ratios"}


def linear(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Share of the learning rate at ``step``: up from 0 in a line, then down to 0 at ``total_steps``, and 0 beyond."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def cosine(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Share of the learning rate at ``step``: up from 0 in a line, then half a cosine to 0 at ``total_steps``."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def constant_with_warmup(step: int, *, warmup_steps: int) -> float:
    """Share of the learning rate at ``step``: up from 0 in a line, then all of it."""
    return step / warmup_steps if step < warmup_steps else 1.0


def tri_stage(step: int, *, total_steps: int, phase_ratio: Sequence[float] = PHASE_RATIO) -> float:
    """Share of the learning rate at ``step``: up in a line, held, then down exponentially (Park et al. 2019).

    It starts at 0.01 and ends at 0.05, where it stays; each stage has ``int(total_steps * its ratio)`` steps, as in
    fairseq's tri_stage_lr_scheduler.py.
    """
    warmup, hold, decay = (int(total_steps * ratio) for ratio in phase_ratio)
    if step < warmup:
        return INIT_LR_SCALE + (1.0 - INIT_LR_SCALE) / warmup * step
    since_hold = step - warmup - hold
    if since_hold < 0:
        return 1.0
    if since_hold > decay:
        return FINAL_LR_SCALE
    # No decay at all: the end is reached at once. fairseq divides by zero there.
    return math.exp(math.log(FINAL_LR_SCALE) / decay * since_hold) if decay else FINAL_LR_SCALE


def make_schedule(
    lr_scheduler_type: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: float = 0,
    warmup_ratio: float = 0.0,
    phase_ratio: Sequence[float] | None = None,
) -> Schedule:
    """The learning rate of every step, as a function of the step.

    Args:
        lr_scheduler_type: "linear", "cosine", "constant" or "constant_with_warmup", as transformers computes them, or
            "tri_stage".
        learning_rate: the highest.
        total_steps: updates of the whole training.
        warmup_steps: from 1 on a number of steps, without its fraction; below 1 a share of ``total_steps``, rounded up
            (both as in transformers 5).
        warmup_ratio: the same share under its name in transformers 4; only one of the two may be given.
        phase_ratio: the three stages' shares, for "tri_stage" only; together 1.

    Raises:
        SettingError: a setting is out of its range, or would do nothing with this schedule; the message names it.
    """
    if lr_scheduler_type not in _TYPES:
        raise SettingError(f"--lr_scheduler_type is {lr_scheduler_type!r}; it must be one of {', '.join(_TYPES)}")
    rate = _check_number("learning_rate", learning_rate)
    if rate <= 0:
        raise SettingError(f"--learning_rate is {learning_rate!r}; it must be above 0")
    if not isinstance(total_steps, int) or isinstance(total_steps, bool) or total_steps < 1:
        raise SettingError(f"the number of steps is {total_steps!r}; it must be an integer from 1 on")
    warmup = _warmup(lr_scheduler_type, total_steps=total_steps, steps=warmup_steps, ratio=warmup_ratio)
    phases = _check_phases(lr_scheduler_type, phase_ratio)
    share = _share(lr_scheduler_type, total_steps=total_steps, warmup_steps=warmup, phase_ratio=phases)
    return lambda step: rate * share(step)


def _share(lr_scheduler_type: str, *, total_steps: int, warmup_steps: int, phase_ratio: Sequence[float]) -> Schedule:
    shares: dict[str, Schedule] = {
        "linear": partial(linear, total_steps=total_steps, warmup_steps=warmup_steps),
        "cosine": partial(cosine, total_steps=total_steps, warmup_steps=warmup_steps),
        "constant": lambda step: 1.0,
        "constant_with_warmup": partial(constant_with_warmup, warmup_steps=warmup_steps),
        TRI_STAGE: partial(tri_stage, total_steps=total_steps, phase_ratio=phase_ratio),
    }
    return shares[lr_scheduler_type]


def _warmup(lr_scheduler_type: str, *, total_steps: int, steps: Any, ratio: Any) -> int:
    """The number of warm-up steps, from either of the two settings."""
    number, share = _check_number("warmup_steps", steps), _check_number("warmup_ratio", ratio)
    if number < 0:
        raise SettingError(f"--warmup_steps is {steps!r}; it must not be negative")
    if not 0 <= share <= 1:
        raise SettingError(f"--warmup_ratio is {ratio!r}; it must be a number in 0 … 1")
    if number and share:
        raise SettingError(f"--warmup_steps is {steps!r} and --warmup_ratio {ratio!r}; give one of them")
    flag, given = ("warmup_steps", steps) if number else ("warmup_ratio", ratio)
    if (number or share) and lr_scheduler_type in _WITHOUT_WARMUP:
        remedy = _WITHOUT_WARMUP[lr_scheduler_type]
        raise SettingError(f"--{flag} is {given!r}, but {lr_scheduler_type} does not use it; {remedy}")
    warmup = int(number) if number >= 1 else math.ceil(total_steps * (number or share))
    return warmup  # which may be longer than the run, as in transformers: the learning rate is then never reached


def _check_phases(lr_scheduler_type: str, phase_ratio: Sequence[float] | None) -> tuple[float, ...]:
    if phase_ratio is None:
        return PHASE_RATIO
    if lr_scheduler_type != TRI_STAGE:
        raise SettingError(f"--phase_ratio is for --lr_scheduler_type {TRI_STAGE}, not for {lr_scheduler_type}")
    ratios = tuple(_check_number("phase_ratio", ratio) for ratio in phase_ratio)
    if len(ratios) != len(PHASE_RATIO) or min(ratios) < 0 or abs(sum(ratios) - 1) > _RATIO_SLACK:
        raise SettingError(f"--phase_ratio is {list(phase_ratio)!r}; it must be three shares that add up to 1")
    return ratios


def _check_number(flag: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise SettingError(f"--{flag} is {value!r}; it must be a number")
    return float(value)

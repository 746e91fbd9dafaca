"""Learning rates at every step against transformers' schedulers, and fairseq's three stages as they are defined."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments, get_scheduler

from mms_jax.errors import SettingError
from mms_jax.training.schedules import make_schedule

EXACT = 1e-12  # relative: both sides compute in float64, in the same order
RATE = 3e-4
BEYOND = 4  # steps after the last one


def rates(lr_scheduler_type: str, *, total_steps: int, **settings) -> list[float]:
    schedule = make_schedule(lr_scheduler_type, learning_rate=RATE, total_steps=total_steps, **settings)
    return [schedule(step) for step in range(total_steps + BEYOND)]


def transformers_rates(lr_scheduler_type: str, *, total_steps: int, warmup_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = get_scheduler(
        lr_scheduler_type, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps
    )
    found = []
    for _ in range(total_steps + BEYOND):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("total_steps", [1, 7, 100])
@pytest.mark.parametrize("warmup", ["none", "one", "some", "all", "more"])
@pytest.mark.parametrize("lr_scheduler_type", ["linear", "cosine", "constant_with_warmup"])
def test_every_step_has_transformers_rate(lr_scheduler_type, warmup, total_steps):
    warmup_steps = {"none": 0, "one": 1, "some": total_steps // 3, "all": total_steps, "more": total_steps + 5}[warmup]
    ours = rates(lr_scheduler_type, total_steps=total_steps, warmup_steps=warmup_steps)
    expected = transformers_rates(lr_scheduler_type, total_steps=total_steps, warmup_steps=warmup_steps)
    np.testing.assert_allclose(ours, expected, rtol=EXACT, atol=0)


def test_a_constant_rate_is_transformers_constant():
    np.testing.assert_allclose(
        rates("constant", total_steps=20), transformers_rates("constant", total_steps=20, warmup_steps=0), rtol=EXACT
    )


@given(total_steps=st.integers(1, 5000), share=st.floats(0, 0.999) | st.sampled_from([0.1, 0.29, 0.5]))
def test_a_warm_up_below_one_is_a_share_of_the_steps_as_in_transformers(total_steps, share):
    warmup_steps = TrainingArguments.get_warmup_steps(SimpleNamespace(warmup_steps=share), total_steps)
    expected = make_schedule("linear", learning_rate=RATE, total_steps=total_steps, warmup_steps=warmup_steps)
    for name in ("warmup_steps", "warmup_ratio"):  # the latter is how transformers 4 called it
        ours = make_schedule("linear", learning_rate=RATE, total_steps=total_steps, **{name: share})
        assert [ours(step) for step in (0, max(0, warmup_steps - 1), warmup_steps)] == [
            expected(step) for step in (0, max(0, warmup_steps - 1), warmup_steps)
        ]


def test_a_warm_up_from_one_on_loses_its_fraction_as_in_transformers():
    assert TrainingArguments.get_warmup_steps(SimpleNamespace(warmup_steps=5.9), 10) == 5
    assert rates("linear", total_steps=10, warmup_steps=5.9) == rates("linear", total_steps=10, warmup_steps=5)


def test_three_stages_are_warm_up_hold_and_exponential_decay():
    up = [0.01 + 0.99 * step / 10 for step in range(10)]
    down = [0.05 ** (step / 50) for step in range(51)]
    expected = np.array([*up, *[1.0] * 40, *down, *[0.05] * (BEYOND - 1)]) * RATE
    np.testing.assert_allclose(rates("tri_stage", total_steps=100), expected, rtol=EXACT)


def test_each_stage_has_a_whole_number_of_steps_and_what_remains_is_the_end():
    # int(0.1 * 19), int(0.4 * 19), int(0.5 * 19) = 1, 7, 9 of 19 steps
    expected = [0.01, *[1.0] * 7, *[0.05 ** (step / 9) for step in range(10)], *[0.05] * (BEYOND + 1)]
    np.testing.assert_allclose(rates("tri_stage", total_steps=19), np.array(expected) * RATE, rtol=EXACT)


@pytest.mark.parametrize(
    ("phase_ratio", "expected"),
    [
        ((0.0, 0.0, 1.0), [1.0, 0.05**0.25, 0.05**0.5, 0.05**0.75, *[0.05] * BEYOND]),
        ((0.0, 1.0, 0.0), [*[1.0] * 4, *[0.05] * BEYOND]),
        ((1.0, 0.0, 0.0), [0.01, 0.2575, 0.505, 0.7525, *[0.05] * BEYOND]),
    ],
)
def test_a_stage_may_be_missing(phase_ratio, expected):
    ours = rates("tri_stage", total_steps=4, phase_ratio=phase_ratio)
    np.testing.assert_allclose(ours, np.array(expected) * RATE, rtol=EXACT)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 1_000_000])
@pytest.mark.parametrize("lr_scheduler_type", ["linear", "cosine", "constant", "constant_with_warmup", "tri_stage"])
def test_a_rate_lies_between_nothing_and_the_highest(lr_scheduler_type, total_steps):
    schedule = make_schedule(lr_scheduler_type, learning_rate=RATE, total_steps=total_steps)
    found = [schedule(step) for step in {0, 1, total_steps // 2, total_steps - 1, total_steps}]
    assert all(isinstance(rate, float) and 0 <= rate <= RATE for rate in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler_type": "polynomial"}, "--lr_scheduler_type is 'polynomial'; it must be one of linear, cosine"),
        ({"learning_rate": 0.0}, "--learning_rate is 0.0"),
        ({"learning_rate": -1e-3}, "--learning_rate is -0.001"),
        ({"learning_rate": math.nan}, "--learning_rate is nan"),
        ({"learning_rate": "1e-3"}, "--learning_rate is '1e-3'"),
        ({"total_steps": 0}, "number of steps is 0"),
        ({"total_steps": 1.5}, "number of steps is 1.5"),
        ({"warmup_steps": -1}, "--warmup_steps is -1"),
        ({"warmup_steps": math.inf}, "--warmup_steps is inf"),
        ({"warmup_ratio": 1.1}, "--warmup_ratio is 1.1"),
        ({"warmup_ratio": -0.1}, "--warmup_ratio is -0.1"),
        ({"warmup_ratio": 0.1, "warmup_steps": 10}, "--warmup_steps is 10 and --warmup_ratio 0.1; give one"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "--warmup_steps is 5, but constant does not use it"),
        ({"lr_scheduler_type": "tri_stage", "warmup_ratio": 0.5}, "--warmup_ratio is 0.5, but tri_stage does not"),
        ({"phase_ratio": (0.1, 0.4, 0.5)}, "--phase_ratio is for --lr_scheduler_type tri_stage"),
        ({"lr_scheduler_type": "tri_stage", "phase_ratio": (0.5, 0.5)}, r"--phase_ratio is \[0.5, 0.5\]"),
        ({"lr_scheduler_type": "tri_stage", "phase_ratio": (0.5, 0.5, 0.5)}, "--phase_ratio is .* add up to 1"),
        ({"lr_scheduler_type": "tri_stage", "phase_ratio": (-0.5, 1, 0.5)}, "--phase_ratio is .* add up to 1"),
    ],
)
def test_a_setting_out_of_its_range_or_without_effect_is_named(settings, message):
    with pytest.raises(SettingError, match=message):
        make_schedule(**{"lr_scheduler_type": "linear", "learning_rate": RATE, "total_steps": 100} | settings)

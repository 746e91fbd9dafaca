"""The benchmark for accelerators times the library's own program, and stops where a device computes something else."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import accelerator
from experiments.benchmarks.accelerator_works import model_config, recogniser, step
from experiments.benchmarks.report import DifferenceError

CONFIG = model_config("tiny", **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), 0.0))


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_a_wrong_result_is_an_error(wrong):
    values = np.linspace(-1, 1, 9, dtype=np.float32)
    accelerator._agree("logits", values, values, 1e-4)
    with pytest.raises(DifferenceError, match="logits: differs"):
        accelerator._agree("logits", values * np.float32(wrong), values, 1e-4)


def test_scanned_and_unrolled_programs_read_the_same_tokens():
    ids = [recogniser(CONFIG, rows=2, seconds=1.0, scan=scan, dtype="float32")() for scan in (True, False)]
    for scanned, unrolled in zip(jax.tree.leaves(ids[0]), jax.tree.leaves(ids[1]), strict=True):
        np.testing.assert_array_equal(scanned, unrolled)
    assert (ids[0].ids[:, 0] >= 0).all()


def test_a_step_can_be_repeated():
    """The state is donated: what is timed must go on with the one it gave back."""
    run = step(CONFIG, rows=1, seconds=1.0, scan=True)
    run()
    run()

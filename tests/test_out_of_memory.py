"""A device without memory for a batch computes it in halves: the same results, and nothing stays behind."""

from __future__ import annotations

import gc

import jax
import numpy as np
import pytest

import mms_jax
from mms_jax.errors import DeviceMemoryError
from mms_jax.pipelines import recognition
from tests.checkpoints import many_languages
from tests.sounds import noise
from tests.test_lid_parity import compiling_quickly

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1234567890 bytes."
# Rows of a batch go through the same operations in other shapes: only the order of float32 summation differs.
BATCH = 1e-5
CLIPS = [noise(6_000, seed=seed) for seed in range(8)]
LANGUAGES = ["eng", "fra", "azj-script_latin", "fra"] * 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return many_languages(tmp_path_factory.mktemp("mms"))


class Crowded:
    """A device that has memory for so many rows, and says no when it is asked or when its results are."""

    def __init__(self, monkeypatch, *, rows: int, late: bool):
        self.refused: list[int] = []
        made, fetched = recognition.Recognition._executable, recognition.np.asarray

        def executable(model, adapters, num_rows, num_samples):
            program = made(model, adapters, num_rows, num_samples)
            if num_rows <= rows:
                return program
            return (
                (
                    lambda *arguments: {
                        name: _Later(self, num_rows) for name in recognition.FETCHED["logits"] + ("tokens", "edges")
                    }
                )
                if late
                else self.refuse(num_rows)
            )

        def asarray(value, *others, **options):
            return value.fetch() if isinstance(value, _Later) else fetched(value, *others, **options)

        monkeypatch.setattr(recognition.Recognition, "_executable", executable)
        monkeypatch.setattr(recognition.np, "asarray", asarray)

    def refuse(self, num_rows):
        self.refused.append(num_rows)
        raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)


class _Later:
    """Results that cannot be computed, which is found out when they are waited for."""

    def __init__(self, device: Crowded, num_rows: int):
        self.device, self.num_rows = device, num_rows

    def copy_to_host_async(self) -> None:
        """As jax.Array has it."""

    def fetch(self):
        self.device.refuse(self.num_rows)


@pytest.fixture
def heard(directory):
    with compiling_quickly():
        asr = mms_jax.load_asr(directory, language="eng")
        return asr.logits(CLIPS[:4]), [result.text for result in asr.transcribe(CLIPS, language=LANGUAGES)]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_halves_give_what_the_whole_gives(directory, monkeypatch, heard, rows, late):
    crowded = Crowded(monkeypatch, rows=rows, late=late)
    with compiling_quickly():
        asr = mms_jax.load_asr(directory, language="eng")
        texts = [result.text for result in asr.transcribe(CLIPS, language=LANGUAGES)]
        logits = asr.logits(CLIPS[:4])
    assert texts == heard[1]
    for ours, expected in zip(logits, heard[0], strict=True):
        np.testing.assert_allclose(ours, expected, atol=BATCH)
    assert crowded.refused
    assert max(crowded.refused) == 8


@pytest.mark.parametrize("late", [False, True])
def test_a_shape_that_was_too_large_is_not_tried_again(directory, monkeypatch, late):
    crowded = Crowded(monkeypatch, rows=4, late=late)
    with compiling_quickly():
        asr = mms_jax.load_asr(directory, language="eng")
        for _ in range(3):
            asr.transcribe(CLIPS)
    assert crowded.refused == [8]


def test_one_row_without_memory_is_an_error_that_says_what_helps(directory, monkeypatch):
    Crowded(monkeypatch, rows=0, late=False)
    asr = mms_jax.load_asr(directory, language="eng")
    with pytest.raises(DeviceMemoryError, match=r"single row of 0\.\d+ s; take a smaller chunk_length_s"):
        asr.transcribe(CLIPS[:2])


def test_other_errors_of_a_device_come_through(directory, monkeypatch):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is on fire")

    monkeypatch.setattr(recognition.Recognition, "_executable", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="on fire"):
        mms_jax.load_asr(directory, language="eng").transcribe(CLIPS[:2])


def test_a_hundred_times_without_memory_leave_nothing_on_the_device(directory, monkeypatch):
    crowded = Crowded(monkeypatch, rows=2, late=True)
    with compiling_quickly():
        asr = mms_jax.load_asr(directory, language="eng")
        asr.transcribe(CLIPS)
        gc.collect()
        before = sum(array.nbytes for array in jax.live_arrays())
        for _ in range(50):
            asr._recognition._too_large.clear()  # as if it had never been tried
            asr.transcribe(CLIPS)
        gc.collect()
    assert len(crowded.refused) > 100
    assert sum(array.nbytes for array in jax.live_arrays()) <= before * 1.01

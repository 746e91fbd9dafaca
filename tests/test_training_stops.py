"""What a job does when its data gives out or it is asked to end: it ends, says why, and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mms_jax.training.data.rows import Row
from mms_jax.training.data.streams import RowStream
from mms_jax.training.files.logs import RunLog
from tests.test_training_resume import SIZES, assert_same, stopped
from tests.training_jobs import done, quick_jobs, run, settings, write_data

STREAM = {"target_language": "eng", "init_language": "eng", "streaming": True, "shuffle_buffer_size": 3}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with quick_jobs():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    counts = {"tur": 8, "fin": 10}
    return {
        language: write_data(folder / language, language, count=count, sizes=SIZES, seed=count)
        for language, count in counts.items()
    }


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_whose_clips_vanish_ends_the_job_and_says_of_which_data_set(tmp_path, monkeypatch):
    folder = write_data(tmp_path / "data", count=6)

    def advance(self, step):
        for clip in folder.rglob("*.wav"):
            clip.write_bytes(b"RIFF, but no more of it")

    monkeypatch.setattr(RunLog, "advance", advance)
    code, said = run(**settings(folder, tmp_path / "out", **STREAM, max_steps=40))
    assert code == 1
    assert f"data set {folder} train+validation: no clip can be used\n" in said
    assert ", pass " in said
    assert ": 0 of 6 clips, 0 h\n" in said
    assert "6  undecodable" in said


def test_a_job_that_waits_for_its_stream_ends_at_sigterm_and_goes_on_exactly(data, tmp_path, monkeypatch):
    """What comes behind the first epoch's clips is damaged, for ever: without SIGTERM the job would never end."""
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    flags = STREAM | {"max_steps": 7, "mask_time_prob": 0.3, "mask_time_length": 2, "logging_steps": 1}
    done(**settings(data["tur"], whole, **flags))
    shuffled = RowStream._shuffled

    def endless(self) -> Iterator[Row]:
        yield from shuffled(self)
        while True:
            yield from (row._replace(audio=b"damaged", name=f"damaged {row.name}") for row in shuffled(self))

    with monkeypatch.context() as patch:
        patch.setattr(RowStream, "_shuffled", endless)
        said = stopped(patch, after=4, **settings(data["tur"], out, **flags))
    assert "SIGTERM: saved after step 4; the same command goes on from there" in said
    done(**settings(data["tur"], out, **flags))
    assert_same(out, whole, "eng")

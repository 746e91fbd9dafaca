"""What a job does when its data gives out or it is asked to end: it ends, says why, and loses nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mms_jax.checkpoint import Directory
from mms_jax.checkpoint.processor import load_tokenizer
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import DatasetError
from mms_jax.training import evaluation, loop
from mms_jax.training.assemble import StreamShapes
from mms_jax.training.batches import BatchMaker
from mms_jax.training.data.clips import ClipRules
from mms_jax.training.data.report import Report
from mms_jax.training.data.rows import Row
from mms_jax.training.data.streams import RowStream, stream_rows
from mms_jax.training.feeds import StreamFeed
from mms_jax.training.files.logs import RunLog
from tests.sounds import RATE
from tests.test_training_resume import SIZES, assert_same, newest, stopped, two
from tests.training_jobs import difference, done, evaluations, mms, quick_jobs, run, settings, write_data

STREAM = {"target_language": "eng", "init_language": "eng", "streaming": True, "shuffle_buffer_size": 3}
# Updates of a language come to the same beside another one: see test_training_slots.py.
SAME = 1e-5


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
    folder, output = write_data(tmp_path / "data", count=6), tmp_path / "out"

    def advance(self, step):
        for clip in folder.rglob("*.wav"):
            clip.write_bytes(b"RIFF, but no more of it")

    monkeypatch.setattr(RunLog, "advance", advance)
    code, said = run(**settings(folder, output, **STREAM, max_steps=40))
    assert code == 1
    assert f"eng: data set {folder} train+validation: no clip can be used\n" in said
    assert ", pass " in said
    assert ": 0 of 6 clips, 0 h\n" in said
    assert "6  undecodable" in said
    assert newest(output / "checkpoints" / "eng") in range(1, 40)


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


@pytest.mark.parametrize("per_pass", [1, 8])
def test_a_stream_without_a_usable_clip_stops_its_language_alone(per_pass, data, tmp_path):
    long = write_data(tmp_path / "long", "swe", sizes=[40_000])
    flags = {"target_language": ["eng", "fra"], "tokenizer_name_or_path": mms(), "streaming": True}
    flags |= {"max_duration_in_seconds": 2, "languages_per_pass": per_pass, "max_steps": 4}
    output = tmp_path / "both"
    code, said = run(**settings([data["tur"], long], output, **flags))
    assert code == 1
    assert f"fra stops: data set {long} train+validation: no clip can be used\n" in said
    assert "6  too long" in said
    assert [path.name for path in output.glob("adapter.*")] == ["adapter.eng.safetensors"]
    done(**settings(data["tur"], tmp_path / "alone", **flags | {"target_language": "eng"}))
    assert difference(output / "adapter.eng.safetensors", tmp_path / "alone" / "adapter.eng.safetensors") <= SAME


def test_a_clip_that_a_stream_drops_is_counted_once_whether_the_job_was_stopped_or_not(tmp_path, monkeypatch):
    """With 5 usable clips of 6 and 2 in an update, 10 updates are 4 epochs."""
    folder, out, whole = write_data(tmp_path / "data", count=6), tmp_path / "a" / "out", tmp_path / "b" / "out"
    (folder / "train" / "2.wav").write_bytes(b"damaged")
    flags = STREAM | {"max_steps": 10, "logging_steps": 1}
    done(**settings(folder, whole, **flags))
    assert json.loads((whole / "training_results.json").read_text())["languages"]["eng"]["dropped"] == {
        "undecodable": 1
    }
    for after in (1, 7):
        stopped(monkeypatch, after=after, **settings(folder, out, **flags))
    done(**settings(folder, out, **flags))
    assert_same(out, whole, "eng")


def clips_of(folder: Path) -> StreamFeed:
    """The feed of a folder, 2 clips at a step."""
    config = Wav2Vec2Config.from_file(mms() / "config.json")
    vocabulary = load_tokenizer(Directory(mms())).vocabulary("eng")
    rules = ClipRules(vocabulary=vocabulary, num_frames=config.num_frames, min_samples=config.min_samples)
    stream = stream_rows(str(folder), split="train", text_column="sentence")
    return StreamFeed(stream, rules=rules, report=Report(), batch_size=2, buffer_size=3, seed=0)


def test_the_position_of_a_stream_that_is_read_no_more_stays_where_it_was(data, monkeypatch):
    feed = clips_of(data["tur"])
    for step in range(3):
        assert len(feed.take(step)) == 2
    before = feed.position(3)
    monkeypatch.setattr(feed, "_read", lambda: pytest.fail("the stream is read on"))
    assert feed.position(40) == before
    assert before["clips"] == 6
    assert feed.position(2)["clips"] == 4


def test_a_stream_that_failed_says_so_again(data, tmp_path):
    feed = clips_of(write_data(tmp_path, sizes=[400_000]))
    for step in (0, 1):
        with pytest.raises(DatasetError, match="no clip can be used"):
            feed.take(step)
    assert feed.position(1)["clips"] == 0


@pytest.mark.parametrize("most", [20 * RATE, 3600 * RATE, math.inf])
def test_a_clip_of_a_stream_is_padded_alike_however_long_others_may_be(most):
    shapes = StreamShapes(sys.maxsize if math.isinf(most) else most)
    sizes = np.arange(400, 14 * RATE, 111)
    lengths = [shapes.pad_samples(int(size)) for size in sizes]
    assert lengths == [StreamShapes(60 * RATE).pad_samples(int(size)) for size in sizes]
    assert all(length >= size for length, size in zip(lengths, sizes, strict=True))
    assert shapes.pad_samples(RATE // 2) <= 1.5 * RATE
    assert max(length / size for length, size in zip(lengths, sizes, strict=True) if size >= RATE) <= 1.6
    assert len(set(lengths)) <= 9  # each compiles a step


@pytest.mark.parametrize("most", [400, 401, RATE // 2, 2 * RATE + 1, 20 * RATE])
def test_no_clip_of_a_stream_is_padded_by_more_than_a_frame_beyond_the_longest_that_may_be(most):
    shapes = StreamShapes(most)
    assert {shapes.pad_samples(size) >= size for size in range(1, most + 1, max(1, most // 997))} == {True}
    assert most <= shapes.pad_samples(most) < most + 320


def test_a_stream_of_clips_of_any_length_is_trained_on(tmp_path, monkeypatch):
    padded = []
    make = BatchMaker.make
    monkeypatch.setattr(BatchMaker, "make", lambda *args: padded.append(make(*args)) or padded[-1])
    folder = write_data(tmp_path / "data", sizes=[8000])
    done(**settings(folder, tmp_path / "out", **STREAM, max_steps=1, max_duration_in_seconds="inf"))
    assert {one.batch.input_values.shape[-1] for one in padded} == {StreamShapes(sys.maxsize).pad_samples(8000)}


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """What the job of two languages leaves that nobody stopped."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done(**two(data, output, eval_on_start=True))
    return output


@pytest.mark.parametrize(("number", "step"), [(1, 0), (2, 0), (3, 4), (4, 4), (5, 7), (6, 8), (7, 11)])
def test_an_evaluation_is_given_up_at_sigterm_and_made_first_when_the_job_goes_on(
    number, step, data, whole, tmp_path, monkeypatch
):
    """Of two languages at steps 0 and 4, of one at 7, 8 and 11, which is the last."""
    output, evaluate = tmp_path / "out", loop.evaluate
    for last in (number, 1):  # the evaluation that is to be made up for may be given up, too
        count = itertools.count(1)

        def told_to_end(*args, last=last, count=count, **options):
            if next(count) == last:
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "evaluate", told_to_end)
            said = done(**two(data, output, eval_on_start=True))
        assert f"SIGTERM: saved after step {step}; the same command goes on from there" in said
        assert next(count) == last + 1
        assert newest(output / "checkpoints" / "tur-fin") == step
    assert not list(output.glob("adapter.*"))
    done(**two(data, output, eval_on_start=True))
    assert_same(output, whole, "tur-fin")


def test_a_job_that_is_told_to_end_before_an_evaluation_does_not_begin_it(data, whole, tmp_path, monkeypatch):
    """SIGTERM comes in the step before the one after which two languages are evaluated."""
    output, evaluated = tmp_path / "out", []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *args, **_: evaluated.append(args) or pytest.fail("it begins"))
        said = stopped(patch, after=3, **two(data, output))
    assert "SIGTERM: saved after step 4" in said
    assert evaluated == []
    done(**two(data, output))
    assert evaluations(output) == [record for record in evaluations(whole) if record["step"]]


def test_an_evaluation_is_given_up_after_the_batch_that_is_on_its_way(data, tmp_path, monkeypatch):
    heard, everywhere = [], evaluation._everywhere

    def told_to_end(batch):
        heard.append(batch)
        os.kill(os.getpid(), signal.SIGTERM)
        return everywhere(batch)

    monkeypatch.setattr(evaluation, "_everywhere", told_to_end)
    flags = {"do_eval": True, "eval_split_name": "train", "train_split_name": "test", "max_steps": 2}
    flags |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 1}
    said = done(**settings(data["tur"], tmp_path / "out", **flags))
    assert "SIGTERM: saved after step 1" in said
    assert len(heard) == 1
    assert evaluations(tmp_path / "out") == []

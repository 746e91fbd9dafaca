"""What a run leaves behind and shows: metrics.jsonl, TensorBoard's events, progress; also when it was killed."""

import io
import json
import math
import os
import re
import resource
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from mms_jax.errors import TrainingError
from mms_jax.training.files.logs import RunLog, best_evaluation, read_metrics
from mms_jax.training.metrics import EvalResult

TOTAL_STEPS = 50
RESULT = EvalResult(
    loss=0.5, wer=0.25, cer=0.125, blank_ratio=0.75, num_clips=10, seconds=90.0, samples=(("bir iki", "bir ki"),)
)


def open_log(folder: Path, **settings) -> RunLog:
    return RunLog(folder, **{"total_steps": TOTAL_STEPS, "languages": ["tur"], "progress": False} | settings)


def run(folder: Path, *, resume_step: int = 0, last_step: int = TOTAL_STEPS) -> None:
    """A run as the loop logs it: a message, then a log every 5 steps and an evaluation every 10."""
    with open_log(folder, resume_step=resume_step) as log:
        log.event("8 clips")
        for step in range(resume_step + 1, last_step + 1):
            log.advance(step)
            if step % 5 == 0:
                log.step(step, {"loss": 1 / step, "learning_rate": 1e-3})
            if step % 10 == 0:
                log.evaluation(step, "tur", RESULT)
            if step == 23:
                log.event("tur: a batch was skipped")


def lines(path: Path) -> list[dict]:
    def refuse(token: str):
        raise AssertionError(f"{token} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().split(b"\n")[:-1]]


def events(path: Path) -> list[Event]:
    data, found = path.read_bytes(), []
    while data:
        length, of_length = struct.unpack("<QI", data[:12])
        message, of_message = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])[0]
        assert (of_length, of_message) == (masked_crc32c(data[:8]), masked_crc32c(message))
        found.append(Event.FromString(message))
        data = data[16 + length :]
    return found


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs/*/events.out.tfevents.*"))


def scalars(path: Path) -> dict[tuple[int, str], float]:
    return {(event.step, value.tag): value.simple_value for event in events(path) for value in event.summary.value}


def test_metrics_are_one_json_object_a_line(tmp_path):
    with open_log(tmp_path / "new" / "folder") as log:
        log.event("8 clips\nof 2 h")
        log.step(5, {"loss": 0.5, "steps": 3})
        log.evaluation(10, "tur", RESULT)
        found = lines(tmp_path / "new" / "folder" / "metrics.jsonl")  # while the run goes on
    assert found == [
        {"type": "event", "step": 0, "message": "8 clips\nof 2 h"},
        {"type": "train", "step": 5, "loss": 0.5, "steps": 3},
        {
            "type": "eval", "step": 10, "language": "tur", "loss": 0.5, "wer": 0.25, "cer": 0.125, "blank_ratio": 0.75,
            "num_clips": 10, "seconds": 90.0, "samples": [["bir iki", "bir ki"]],
        },
    ]  # fmt: skip
    assert read_metrics(tmp_path / "new" / "folder" / "metrics.jsonl") == (found, 0)


def test_what_is_no_number_is_null(tmp_path):
    import jax.numpy as jnp
    import numpy as np

    with open_log(tmp_path) as log:
        log.step(1, {"a": math.nan, "b": -math.inf, "c": jnp.float32(jnp.nan), "d": np.float64(2), "e": jnp.int32(3)})
        log.evaluation(1, "tur", EvalResult(math.nan, math.inf, 0.5, math.nan, 0, 0.0))
    train, evaluation = lines(tmp_path / "metrics.jsonl")
    assert train == {"type": "train", "step": 1, "a": None, "b": None, "c": None, "d": 2, "e": 3}
    assert (evaluation["loss"], evaluation["wer"], evaluation["cer"], evaluation["blank_ratio"]) == (
        None,
        None,
        0.5,
        None,
    )
    assert scalars(event_files(tmp_path)[0]) == {(1, "train/d"): 2, (1, "train/e"): 3, (1, "eval/tur/cer"): 0.5}


def test_any_text_can_be_logged(tmp_path):
    texts = ["line\u2028separator", "猫 ğ", "half a pair \udcff", "nul \0"]
    with open_log(tmp_path) as log:
        for text in texts:
            log.event(text)
    assert [record["message"] for record in lines(tmp_path / "metrics.jsonl")] == texts
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == 0


@pytest.mark.parametrize("killed_at", [12, 25, 50])
@pytest.mark.parametrize("saved_at", [5, 10, 12])
@pytest.mark.parametrize("torn", [b"", b'{"type": "train", "st', b"\0\0\0\n\0\0", b'{"type": "train", "step": 5}'])
def test_a_resumed_run_leaves_the_metrics_of_an_uninterrupted_one(tmp_path, saved_at, killed_at, torn):
    run(tmp_path / "whole")
    run(tmp_path / "killed", last_step=killed_at)
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    run(tmp_path / "killed", resume_step=saved_at)
    whole, killed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed"))
    assert killed == whole
    assert [path.name for path in (tmp_path / "killed").iterdir() if path.suffix == ".jsonl"] == ["metrics.jsonl"]


def test_a_resumed_run_says_so_when_it_drops_damaged_lines(tmp_path, capsys):
    run(tmp_path, last_step=10)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"garbage\n" + path.read_bytes() + b"[1]\n{}\n")
    capsys.readouterr()
    run(tmp_path, resume_step=10)
    assert capsys.readouterr().err.startswith(f"{path}: 3 damaged line(s) left out")


def test_a_resumed_run_without_its_metrics_starts_the_file(tmp_path):
    run(tmp_path, resume_step=40)
    assert [record["step"] for record in lines(tmp_path / "metrics.jsonl")] == [45, 50, 50]


def test_a_new_run_keeps_the_logs_of_earlier_ones(tmp_path):
    for last_step in (10, 20, 30):
        run(tmp_path, last_step=last_step)
    names = ("metrics-1.jsonl", "metrics-2.jsonl", "metrics.jsonl")
    assert [lines(tmp_path / name)[-1]["step"] for name in names] == [10, 20, 30]
    assert [path.parent.name for path in event_files(tmp_path)] == ["1", "2", "3"]
    run(tmp_path, resume_step=30)
    assert [path.parent.name for path in event_files(tmp_path)] == ["1", "2", "3", "3"]


def test_a_curve_is_kept_and_taken_up_again_with_its_metrics(tmp_path):
    picture = tmp_path / "training_curve.png"
    for name in (b"first", b"second"):
        run(tmp_path, last_step=10)
        picture.write_bytes(name)
    assert (tmp_path / "training_curve-1.png").read_bytes() == b"first"
    with open_log(tmp_path, resume_step=10, resume_run=1):
        assert (picture.read_bytes(), (tmp_path / "training_curve-2.png").read_bytes()) == (b"first", b"second")


def test_events_hold_the_scalars_under_their_names(tmp_path):
    with open_log(tmp_path, languages=["tur", "cmn-script_simplified"]) as log:
        log.step(300, {"loss": 0.5, "learning_rate": 1e-3, "loss/tur": 0.25, "huge": 1e300})
        log.evaluation(300, "cmn-script_simplified", RESULT)
    [path] = event_files(tmp_path)
    first = events(path)[0]
    assert (first.file_version, first.step) == ("brain.Event:2", 1)
    assert all(event.wall_time > 1.6e9 for event in events(path))  # seconds since 1970
    found = scalars(path)
    largest = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
    assert found == {
        (300, "train/loss"): 0.5,
        (300, "train/learning_rate"): struct.unpack("<f", struct.pack("<f", 1e-3))[0],
        (300, "train/loss/tur"): 0.25,
        (300, "train/huge"): largest,
        (300, "eval/cmn-script_simplified/loss"): 0.5,
        (300, "eval/cmn-script_simplified/wer"): 0.25,
        (300, "eval/cmn-script_simplified/cer"): 0.125,
        (300, "eval/cmn-script_simplified/blank_ratio"): 0.75,
    }


def test_a_resumed_run_hides_the_events_beyond_its_step(tmp_path):
    run(tmp_path, last_step=20)
    run(tmp_path, resume_step=10)
    starts = [
        [event.step for event in events(path) if event.session_log.status == SessionLog.START]
        for path in event_files(tmp_path)
    ]
    assert starts == [[1], [11]]


def test_other_processes_write_and_show_nothing(tmp_path, capsys):
    with open_log(tmp_path / "out", write=False, progress=True) as log:
        log.advance(1)
        log.step(1, {"loss": 1.0})
        log.evaluation(1, "tur", RESULT)
        log.event("x")
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_each_log_is_a_line(tmp_path, capsys):
    with open_log(tmp_path, progress=None) as log:
        log.event("8 clips")
        log.advance(3)
        log.step(5, {"loss": 0.51234, "learning_rate": 1e-3, "audio_seconds_per_second": 312.3})
        log.evaluation(10, "tur", RESULT)
        log.step(50, {"loss": math.nan})
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second, *rest = shown.err.splitlines()
    assert first == "8 clips"
    assert second.startswith("step 5/50: loss 0.5123, learning rate 0.001, 312 audio-s/s, ETA ")
    assert rest == [
        "step 10, tur: loss 0.5, WER 25.0%, CER 12.5%, blanks 75% (10 clips, 1.5 min)",
        "  reference:  bir iki",
        "  hypothesis: bir ki",
        "step 50/50: WER 25.0% (step 10), ETA 00:00",
    ]


def test_error_rates_that_were_measured_at_several_steps_say_which(tmp_path, capsys):
    with open_log(tmp_path, languages=["tur", "swe"]) as log:
        log.evaluation(10, "tur", RESULT)
        log.evaluation(20, "swe", RESULT)
        log.step(25, {})
    assert "step 25/50: mean WER 25.0% (steps 10 to 20), ETA" in capsys.readouterr().err


def test_what_is_only_said_is_shown_above_the_bar_and_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with open_log(tmp_path) as log:
        log.say("0.03 M parameters")
    assert re.search(r"(^|[\r\n])0\.03 M parameters\n", shown.getvalue())
    assert lines(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(("metric", "best"), [("loss", (20, 0.25)), ("wer", (10, 0.5)), ("cer", None)])
def test_the_best_evaluation_is_the_first_with_the_lowest_number(tmp_path, metric, best):
    with open_log(tmp_path, languages=["tur", "swe"]) as log:
        for step, loss, wer in ((10, 0.5, 0.5), (20, 0.25, 0.5), (30, math.nan, 0.75), (40, 0.25, 0.5)):
            log.evaluation(step, "tur", EvalResult(loss, wer, math.nan, 1, 1, 1))
        log.evaluation(40, "swe", EvalResult(0, 0, 0, 1, 1, 1))
    assert best_evaluation(tmp_path / "metrics.jsonl", "tur", metric=metric) == best
    assert best_evaluation(tmp_path / "none.jsonl", "tur", metric=metric) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "progress"), [(Terminal, None), (io.StringIO, True)])
def test_a_bar_shows_step_loss_rate_and_time_left(tmp_path, monkeypatch, stream, progress):
    monkeypatch.setattr("sys.stderr", shown := stream())
    with open_log(tmp_path, progress=progress, languages=["tur", "swe"], resume_step=10) as log:
        log.advance(15)
        log.evaluation(20, "tur", RESULT)
        log.step(25, {"loss": 0.5, "audio_seconds_per_second": 312.3})
        text = shown.getvalue()
    last = text.split("\r")[-1]
    assert "| 25/50 [" in last
    assert "loss 0.5, mean WER 25.0% (step 20), 312 audio-s/s" in last
    assert "<" in last  # the time left follows
    assert "step 20, tur: loss 0.5, WER 25.0%" in text
    assert "reference" not in text  # of many languages, samples would bury the rest


def test_lines_are_shown_on_a_terminal_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with open_log(tmp_path, progress=False) as log:
        log.step(5, {"loss": 0.5})
    assert shown.getvalue().startswith("step 5/50: loss 0.5")


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("progress", [True, False, None])
@pytest.mark.parametrize("stream", [lambda: None, closed, Gone])
def test_a_run_outlives_its_terminal(tmp_path, monkeypatch, stream, progress):
    monkeypatch.setattr("sys.stderr", stream())
    with open_log(tmp_path, progress=progress) as log:
        log.event("8 clips")
        log.step(5, {"loss": 0.5})
    assert len(lines(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("progress", [True, False])
def test_a_run_outlives_a_stream_that_is_closed_meanwhile(tmp_path, monkeypatch, progress):
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    with open_log(tmp_path, progress=progress) as log:
        stream.close()
        log.event("8 clips")
        log.step(5, {"loss": 0.5})
    assert len(lines(tmp_path / "metrics.jsonl")) == 2


def test_transcripts_send_no_control_characters_to_the_terminal(tmp_path, capsys):
    samples = (("bir\x1b[31m\niki", "x" * 300),)
    with open_log(tmp_path) as log:
        log.evaluation(5, "tur", EvalResult(1, 1, 1, 1, 1, 1, samples=samples))
        log.event("a\x07b")
    reference, hypothesis, event = capsys.readouterr().err.splitlines()[1:]
    assert (reference, event) == ("  reference:  bir [31m iki", "a b")
    assert hypothesis == f"  hypothesis: {'x' * 100}…"


def test_an_evaluation_of_another_language_is_an_error(tmp_path):
    with open_log(tmp_path) as log, pytest.raises(TrainingError, match=r"'swe' is evaluated at step 5, but .* tur"):
        log.evaluation(5, "swe", RESULT)


@contextmanager
def files_up_to(num_bytes: int):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fill(log: RunLog, *, with_scalars: bool) -> None:
    """Log until the disk is full: the event file, in which short tags take more room than in JSON, or the metrics."""
    for step in range(10_000):
        if with_scalars:
            log.step(step, {f"a{number}": 1 for number in range(30)})
        else:
            log.event("x" * 99)


@pytest.mark.parametrize(("full", "with_scalars"), [("metrics.jsonl", False), ("events.out.tfevents", True)])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_whole_pieces(tmp_path, full, with_scalars):
    with open_log(tmp_path) as log:
        with files_up_to(20_000), pytest.raises(OSError, match=f"{tmp_path}.*{full}") as caught:
            fill(log, with_scalars=with_scalars)
        assert full in str(caught.value.filename)
        log.event("there is room again")
    assert lines(tmp_path / "metrics.jsonl")[-1]["message"] == "there is room again"
    assert len(events(event_files(tmp_path)[0])) >= 2


@pytest.mark.parametrize("obstacle", ["metrics.jsonl", "runs/1"])
def test_a_log_that_cannot_be_opened_is_named(tmp_path, obstacle):
    path = tmp_path / obstacle
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if obstacle == "metrics.jsonl" else path.write_bytes(b"")
    with pytest.raises(OSError, match=obstacle) as caught:
        open_log(tmp_path)
    assert str(caught.value.filename) == str(path)


def test_nothing_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    log = open_log(tmp_path / "good")
    log.close()
    log.close()
    (tmp_path / "obstructed" / "runs").mkdir(parents=True)
    (tmp_path / "obstructed" / "runs" / "1").write_bytes(b"")
    with pytest.raises(FileExistsError) as obstructed:
        open_log(tmp_path / "obstructed")
    with files_up_to(0), pytest.raises(OSError, match=r"events\.out\.tfevents") as full:
        open_log(tmp_path / "full")
    assert len(os.listdir("/proc/self/fd")) == before, (obstructed, full)  # which keep the tracebacks' objects alive


def test_an_evaluation_that_is_made_once_more_stands_there_once(tmp_path):
    """Killed after an evaluation, before the state that knows of it was saved."""
    for due in ((), ("tur",)):
        with RunLog(
            tmp_path, total_steps=9, languages=["tur", "fin"], resume_step=4 if due else 0, resume_due=due
        ) as log:
            for language in due or ("fin", "tur"):
                log.evaluation(4, language, RESULT)
    found = [(line["type"], line["language"]) for line in lines(tmp_path / "metrics.jsonl")]
    assert found == [("eval", "fin"), ("eval", "tur")]

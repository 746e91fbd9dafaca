"""A long recording with its text becomes a data set: right texts, right times, bad parts left out and accounted for."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

import mms_jax
from mms_jax.audio import load_audio, load_samples
from mms_jax.cli import main
from mms_jax.errors import AudioError, DatasetError, SettingError
from mms_jax.pipelines import corpus
from mms_jax.pipelines.alignment import Alignment
from mms_jax.pipelines.corpus import make_corpus
from mms_jax.pipelines.demo import DEMO_MODEL
from mms_jax.pipelines.segmenting import Limits
from mms_jax.text.normalize import normalize
from mms_jax.training.data.dataset import load_rows
from tests.alignments import aligned
from tests.training_jobs import done, quick_jobs

RATE = 16_000
SILENCE = 1.0  # seconds between the clips of the recording
# Seconds that a cut may take off a clip, whose ends are silent, or that it may miss of the silence to its neighbour.
TOLERANCE = 0.15
PADDING = 0.5  # seconds of silence that a cut leaves at most
WRONG = "Mongoose wibble (Sam 23:1) forty nine hats!"
DEMO = Path(DEMO_MODEL).parent
CLIPS = [
    row
    for row in map(json.loads, (DEMO / "clips.jsonl").read_text(encoding="utf-8").splitlines())
    if row["language"] == "eng"
]


class Recording(NamedTuple):
    """Clips with silence around each, and their text, of which a line is wrong."""

    path: Path
    text: str
    lines: list[str]
    times: list[tuple[float, float]]  # of each clip, seconds


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    """Six clips of the demo; what is said in the fifth is not its text."""
    pause = np.zeros(round(SILENCE * RATE), np.int16)
    parts, times, lines, now = [pause], [], [], SILENCE
    for number, clip in enumerate([*CLIPS, *CLIPS]):
        samples = load_samples(DEMO / clip["file"])
        assert samples.dtype == np.int16
        parts += [samples, pause]
        times.append((now, now + len(samples) / RATE))
        now += len(samples) / RATE + SILENCE
        lines.append(WRONG if number == 4 else f"“{clip['text'].capitalize()}.”")
    path = tmp_path_factory.mktemp("recording") / "a talk.flac"
    soundfile.write(path, np.concatenate(parts), RATE, subtype="PCM_16")
    return Recording(path, "\n\n".join(lines) + "\n", lines, times)


@pytest.fixture(scope="module")
def asr():
    return mms_jax.load_asr(DEMO_MODEL, language="eng")


@pytest.fixture(scope="module")
def alignment(asr, recording) -> Alignment:
    return asr.align(recording.path, recording.text)


@pytest.fixture(scope="module")
def made(recording, alignment, tmp_path_factory) -> Path:
    """The data set."""
    out = tmp_path_factory.mktemp("made") / "corpus"
    make_corpus(recording.path, alignment, out)
    return out


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_line_becomes_a_clip_with_its_text_and_its_times(recording, made):
    rows = rows_of(made)
    right = [number for number, line in enumerate(recording.lines) if line != WRONG]
    assert [row["text"] for row in rows] == [recording.lines[number] for number in right]
    assert [row["normalized_text"] for row in rows] == [normalize(recording.lines[number]) for number in right]
    for row, (start, end) in zip(rows, [recording.times[number] for number in right], strict=True):
        assert start - PADDING - TOLERANCE <= row["start"] <= start + TOLERANCE
        assert end - TOLERANCE <= row["end"] <= end + PADDING + TOLERANCE
        assert row["duration"] == pytest.approx(row["end"] - row["start"], abs=2e-3)
        assert -0.2 <= row["score"] <= 0
        assert (row["language"], row["source"]) == ("eng", str(recording.path))


def test_the_clips_are_the_very_samples_of_the_recording(recording, made):
    whole = load_samples(recording.path)
    rows = rows_of(made)
    assert sorted(path.name for path in (made / "clips").iterdir()) == [Path(row["file_name"]).name for row in rows]
    for row in rows:
        clip, rate = soundfile.read(made / row["file_name"], dtype="int16")
        assert rate == RATE
        first = round(row["start"] * RATE)
        assert (clip == whole[first : first + len(clip)]).all()
        assert len(clip) == round(row["duration"] * RATE)


def test_a_wrong_line_has_a_low_score_and_is_left_out_with_the_reason(made):
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    (dropped,) = report["dropped_utterances"]
    assert (dropped["text"], dropped["normalized_text"]) == (WRONG, "mongoose wibble forty nine hats")
    assert dropped["score"] < -1
    assert dropped["reason"] == "its score is less than -0.2"
    rows = rows_of(made)
    seconds = round(sum(row["duration"] for row in rows), 3)
    assert report["kept"] == {"utterances": len(rows), "seconds": pytest.approx(seconds, abs=0.01)}
    assert report["dropped"] == {"utterances": 1, "seconds": dropped["duration"]}


def test_the_training_program_reads_it_and_trains_on_it(made, tmp_path):
    rows = load_rows(str(made), split="train", text_column="normalized_text")
    expected = rows_of(made)
    assert [row.text for row in rows] == [row["normalized_text"] for row in expected]
    assert [len(load_audio(row.audio)) for row in rows] == [round(row["duration"] * RATE) for row in expected]
    flags = {"dataset_name": made, "train_split_name": "train", "text_column_name": "normalized_text"}
    flags |= {"model_name_or_path": DEMO_MODEL, "target_language": "eng", "output_dir": tmp_path / "trained"}
    with quick_jobs():
        said = done(**flags, do_train=True, max_steps=2, per_device_train_batch_size=2)
    assert f"{len(expected)} of {len(expected)} clips" in said
    assert (tmp_path / "trained" / "adapter.eng.safetensors").is_file()


def test_one_paragraph_is_cut_between_its_sentences(asr, recording, tmp_path):
    lines = [f"{clip['text'].capitalize()}." for clip in [*CLIPS, *CLIPS]]
    alignment = asr.align(recording.path, " ".join(lines))
    made = make_corpus(recording.path, alignment, tmp_path / "out", limits=Limits(max_seconds=5.0))
    assert [one.text for one in made.kept] == lines
    assert not made.dropped


def test_another_rate_and_more_channels_are_heard_at_16_khz(recording, alignment, made, tmp_path):
    """A recording at 48 kHz whose channels differ is cut where the same one at 16 kHz is."""
    whole = load_audio(recording.path)
    upsampled = np.repeat(whole, 3)
    soundfile.write(tmp_path / "a talk.wav", np.stack([upsampled * 1.5, upsampled * 0.5], axis=1), 3 * RATE)
    make_corpus(tmp_path / "a talk.wav", alignment, tmp_path / "out")
    for ours, theirs in zip(rows_of(tmp_path / "out"), rows_of(made), strict=True):
        one, other = load_audio(tmp_path / "out" / ours["file_name"]), load_audio(made / theirs["file_name"])
        assert len(one) == len(other)
        assert np.corrcoef(one, other)[0, 1] > 0.9  # repeating samples is a poor filter; another place would give 0


def test_loud_float_samples_are_limited_and_not_wrapped_round(alignment, recording, tmp_path):
    whole = load_audio(recording.path)
    make_corpus(whole / np.abs(whole).max() * 3, alignment, tmp_path / "out")
    for row in rows_of(tmp_path / "out"):
        first = round(row["start"] * RATE)
        clip = load_audio(tmp_path / "out" / row["file_name"])
        part = whole[first : first + len(clip)]
        assert (np.sign(clip) * np.sign(part) >= 0).all()


def test_memory_does_not_grow_with_the_recording(monkeypatch, tmp_path):
    """Two hours, of which a clip a minute is kept: 230 MB of samples."""
    minutes, minute = 120, 60 * RATE
    monkeypatch.setattr(corpus, "stream_samples", lambda _: (np.zeros(minute, np.int16) for _ in range(minutes)))
    words = [(f"word{number}", 60 * number + 59.0, 60 * number + 61.0, number) for number in range(minutes - 1)]
    alignment = aligned(words, segments=len(words))
    tracemalloc.start()
    try:
        made = make_corpus("two hours.wav", alignment, tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(made.kept) == minutes - 1
    assert peak < 5 * minute * 2  # bytes: a few blocks


# ------------------------------------------------------------------------------------------------- what goes wrong


class StopError(Exception):
    """What no code here expects."""


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [StopError(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_interrupted_leaves_nothing(recording, alignment, tmp_path, monkeypatch, there, error):
    count = itertools.count()
    flac = corpus._flac

    def failing(samples):
        if next(count) == 2:
            raise error
        return flac(samples)

    monkeypatch.setattr(corpus, "_flac", failing)
    out = tmp_path / "out"
    if there:
        out.mkdir()
    expected = DatasetError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        make_corpus(recording.path, alignment, out)
    assert out.exists() == there
    assert not there or not list(out.iterdir())


def test_killed_while_it_is_put_in_place_it_does_not_look_whole(recording, alignment, tmp_path, monkeypatch):
    """As if the process ended there: what it did before stays, and nothing after it happens."""
    replace = corpus.os.replace

    def dying(source, target):
        if Path(target).name == "metadata.jsonl" and Path(target).parent == tmp_path / "out":
            raise StopError
        replace(source, target)

    monkeypatch.setattr(corpus.os, "replace", dying)
    monkeypatch.setattr(corpus.shutil, "rmtree", lambda path: None)
    with pytest.raises(StopError):
        make_corpus(recording.path, alignment, tmp_path / "out")
    assert (tmp_path / "out" / "clips").is_dir()
    with pytest.raises(DatasetError):
        load_rows(str(tmp_path / "out"), split="train", text_column="normalized_text")
    with pytest.raises(SettingError, match="an interrupted run left it"):
        make_corpus(recording.path, alignment, tmp_path / "out")


def test_a_recording_that_is_shorter_on_the_second_reading_is_an_error(recording, alignment, tmp_path):
    with pytest.raises(AudioError, match="on the second reading"):
        make_corpus(load_audio(recording.path)[: 10 * RATE], alignment, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_data_set_is_made_of_nothing(recording, alignment, tmp_path):
    with pytest.raises(DatasetError, match=r"no utterance is left.*6 utterances, .* s: shorter than 10 s"):
        make_corpus(recording.path, alignment, tmp_path / "out", limits=Limits(min_seconds=10.0))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command_does_it_all(recording, made, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(recording.text, encoding="utf-8")
    words = ["align", str(recording.path), str(tmp_path / "text.txt"), "--language", "eng"]
    assert main([*words, "--segment", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}\n"
    assert "kept 5 utterances" in said.err
    assert "left out 1 utterance" in said.err
    assert "--text_column_name normalized_text" in said.err
    assert [row["text"] for row in rows_of(tmp_path / "out")] == [row["text"] for row in rows_of(made)]
    assert main([*words, "--segment", str(tmp_path / "out")]) == 1
    assert "holds clips already" in capsys.readouterr().err
    result = tmp_path / "times.json"
    all_of_it = ["--segment", str(tmp_path / "all"), "--min-score", "none", "--output", str(result)]
    assert main([*words, *all_of_it]) == 0
    assert len(rows_of(tmp_path / "all")) == len(recording.lines)
    assert result.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-score", "-1"], "--min-score is for --segment"),
        (["--segment", ""], "--segment is empty"),
        (["--segment", "new", "--max-seconds", "0.5"], "utterances of 1.0 to 0.5 s"),
        (["--segment", "new", "--min-score", "nan"], "min_score is nan"),
        (["--segment", __file__], "is a file"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_computed(options, message, tmp_path, capsys):
    assert main(["align", "no such audio.wav", str(tmp_path / "no such text"), *options]) == 1
    assert message in capsys.readouterr().err

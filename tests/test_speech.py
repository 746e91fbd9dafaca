"""Synthesised speech as a value: samples or an error, files that other programs read, a player in notebooks."""

from __future__ import annotations

import base64
import errno
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from mms_jax import Speech
from mms_jax.errors import AudioError, NumericsError, TextError

RATE = 16_000
# 16 bits: half a step in rounding, and full scale is 32,767 of 32,768 steps.
QUANTISED = 1.5 / 32_768
LOSSY = 0.05  # Vorbis at its standard quality, on a tone: 0.03 is seen
FORMATS = {".wav": ("WAV", QUANTISED), ".flac": ("FLAC", QUANTISED), ".ogg": ("OGG", LOSSY)}


def tone(num_samples: int = 3 * RATE + 1) -> np.ndarray:
    """From -1 to 1, both included."""
    return np.sin(np.arange(num_samples) * (2 * np.pi / 64)).astype(np.float32)


def speech(samples: np.ndarray | None = None, **values) -> Speech:
    return Speech(
        **{"text": "hello", "sampling_rate": RATE, "samples": tone() if samples is None else samples} | values
    )


FAILED = Speech(text="日本", sampling_rate=RATE, error=TextError("nothing to say"))


def test_a_tone_reaches_both_ends_of_the_range():
    assert (tone().min(), tone().max()) == (-1, 1)


@pytest.mark.parametrize("rate", [16_000, 22_050])
@pytest.mark.parametrize("extension", [*FORMATS, ".WAV", ".Ogg"])
def test_files_have_the_format_of_their_name_and_every_sample(tmp_path, extension, rate):
    path = tmp_path / f"a.b{extension}"
    speech(sampling_rate=rate).save(str(path))
    kind, tolerance = FORMATS[extension.lower()]
    info = soundfile.info(path)
    assert (info.format, info.samplerate, info.channels, info.frames) == (kind, rate, 1, len(tone()))
    samples, _ = soundfile.read(path, dtype="float32")
    assert np.abs(samples - tone()).max() <= tolerance
    assert [*tmp_path.iterdir()] == [path]


def test_one_sample_is_a_file_too(tmp_path):
    for extension in FORMATS:
        speech(tone(1)).save(tmp_path / f"a{extension}")
        assert soundfile.info(tmp_path / f"a{extension}").frames == 1


def test_ten_minutes_are_a_file_in_every_format():
    """In a process of its own: libsndfile's Vorbis encoder, given all at once, ends it by a signal."""
    program = (
        "import io, numpy, soundfile; from mms_jax import Speech\n"
        "noise = numpy.random.default_rng(0).uniform(-1, 1, 600 * 8000).astype(numpy.float32)\n"
        "speech = Speech(text='', sampling_rate=8000, samples=noise)\n"
        "print([soundfile.info(io.BytesIO(speech.encode(kind))).frames for kind in ('.wav', '.flac', '.ogg')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{[600 * 8000] * 3}\n", "")


@pytest.mark.parametrize("name", ["a.mp3", "a", ".wav", "a.wav.txt"])
def test_other_extensions_are_refused_by_name_and_leave_nothing(tmp_path, name):
    with pytest.raises(AudioError, match=rf"{re.escape(name)}: speech is written as \.wav, \.flac, \.ogg"):
        speech().save(tmp_path / name)
    assert [*tmp_path.iterdir()] == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent" / "a.wav", tmp_path / "file" / "a.wav"):
        with pytest.raises(OSError, match=rf"{re.escape(repr(str(path)))}$") as caught:
            speech().save(path)
        assert caught.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_fails_half_way_leaves_no_file_and_an_old_one_as_it_was(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "old.wav").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    for name in ("old.wav", "new.wav"):
        with pytest.raises(OSError, match="No space left") as caught:
            speech().save(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.wav"]
    assert (tmp_path / "old.wav").read_bytes() == b"old"


@pytest.mark.parametrize("error", [TextError("nothing to say"), NumericsError("not finite")])
def test_a_failure_never_passes_for_silence(tmp_path, error):
    failed = Speech(text="日本", sampling_rate=RATE, error=error)
    for use in (
        lambda: failed.waveform,
        lambda: failed.duration,
        lambda: failed.save(tmp_path / "a.wav"),
        failed.encode,
    ):
        with pytest.raises(type(error)) as caught:
            use()
        assert caught.value is error
    assert [*tmp_path.iterdir()] == []
    assert failed._repr_html_() is None


def test_a_notebook_gets_a_player_with_the_samples_inside():
    html = speech()._repr_html_()
    assert html is not None
    found = re.fullmatch(r'<audio controls src="data:audio/wav;base64,([\w+/]+=*)"></audio>', html)
    assert found
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(found[1], validate=True)), dtype="float32")
    assert rate == RATE
    assert np.abs(samples - tone()).max() <= QUANTISED


def test_it_is_printed_in_one_short_line():
    assert repr(speech()) == "Speech('hello', duration=3.00, sampling_rate=16000)"
    assert repr(FAILED) == "Speech('日本', error=TextError('nothing to say'), sampling_rate=16000)"
    assert len(repr(speech(text="a\n" * 1000))) < 120


def test_the_duration_is_in_seconds():
    assert speech().duration == pytest.approx(3 + 1 / RATE)
    assert speech(sampling_rate=22_050).duration == pytest.approx(len(tone()) / 22_050)

"""Short runs of the scripts under experiments/reliability, which say what is checked, and faults that they found."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mms_jax
from experiments.reliability.workers import MB, outcomes
from mms_jax.config import MAX_LAYERS, VitsConfig, Wav2Vec2Config
from mms_jax.errors import AudioError, ConfigError
from mms_jax.files import MAX_SIZE, MAX_STRING_CHARS, read_json
from tests.checkpoints import many_languages
from tests.sounds import encode, noise

ROOT = Path(__file__).resolve().parent.parent
MAX_MESSAGE = 500  # characters, of an error about one value
AT_ONCE = 2.0  # seconds: a fault in a config.json is found without tracing a model of a million layers


def run(name: str, *arguments: str) -> str:
    """What a script printed; it found no fault."""
    command = [sys.executable, "-m", f"experiments.reliability.{name}", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    return ended.stdout


# ------------------------------------------------------------------------------------------------ odd audio

KINDS = [("WAV", codec) for codec in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW", "ALAW", "IMA_ADPCM")]
KINDS += [
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
]
SHORT = (1, 399, 400)  # samples: 400 are the first frame
VALUES = {
    "zeros": np.zeros(3_000, np.float32),
    "a constant": np.full(3_000, 0.3, np.float32),
    "clipped": np.clip(100 * noise(3_000), -1, 1),
    "denormal": np.full(3_000, 1e-40, np.float32),
    "far beyond full scale": 1e6 * noise(3_000),
    "one sample": noise(1),
    "nothing": noise(0),
}
UNUSABLE = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "beyond every scale": 1e30}


def odd_items() -> tuple[list, list]:
    """What is heard as something, and what is an error."""
    usable = [encode(noise(size), container=kind, codec=codec) for kind, codec in KINDS for size in SHORT]
    usable += [*VALUES.values(), encode(np.zeros((60, 255)), rate=384_000, codec="FLOAT")]
    usable += [encode(noise(900), rate=1_000), (noise(3_000), 1_000_000), (noise(3_000), 1_000)]
    bad = [np.where(np.arange(900) == 500, value, 0.1).astype(np.float32) for value in UNUSABLE.values()]
    bad += [encode(values, codec="FLOAT") for values in bad[:3]]
    bad += [encode(noise(0)), encode(noise(0), container="FLAC"), encode(noise(900))[:-1], b"", b"RIFF", None]
    return usable, bad


@pytest.fixture(scope="module")
def asr(tmp_path_factory):
    return mms_jax.load_asr(many_languages(tmp_path_factory.mktemp("mms")), language="eng")


def test_odd_audio_is_heard_or_refused_and_its_neighbours_are_what_they_are_without_it(asr):
    usable, bad = odd_items()
    assert len(usable) + len(bad) > 60
    neighbour = noise(5_000)
    alone = asr.transcribe([neighbour], language="eng")[0].text
    assert alone
    items = [item for odd in (*usable, *bad) for item in (odd, neighbour)]
    results = asr.transcribe(items, language="eng", batch_size=16)
    assert {result.text for result in results[1::2]} == {alone}
    assert [result.error for result in results[0 : 2 * len(usable) : 2]] == [None] * len(usable)
    assert {type(result.error) for result in results[2 * len(usable) :: 2]} == {AudioError}


def test_one_bad_file_in_a_batch_of_64_leaves_the_other_63_as_they_are(asr):
    clips = [noise(5_000, seed=seed) for seed in range(64)]
    clean = [result.text for result in asr.transcribe(clips, language="eng", batch_size=64)]
    assert len(set(clean)) > 30
    clips[17] = encode(clips[17])[:-100]
    results = asr.transcribe(clips, language="eng", batch_size=64)
    assert isinstance(results[17].error, AudioError)
    others = [number for number in range(64) if number != 17]
    assert [results[number].text for number in others] == [clean[number] for number in others]


# ------------------------------------------------------------------------------------------------ config.json


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (Wav2Vec2Config, {"num_hidden_layers": MAX_LAYERS}, "layers"),
        (Wav2Vec2Config, {name: [1] * 10_000 for name in ("conv_dim", "conv_stride", "conv_kernel")}, "10007|10012"),
        (Wav2Vec2Config, {"conv_dim": [2**63, 7]}, "conv_dim is 9223372036854775808"),
        (Wav2Vec2Config, {"hidden_size": MAX_SIZE + 1}, "hidden_size is 1048577; no model has more than 1,048,576"),
        (Wav2Vec2Config, {"layer_norm_eps": 2**64}, "layer_norm_eps"),
        (VitsConfig, {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers"),
        (VitsConfig, {"prior_encoder_num_flows": 100}, "406|470 layers"),
        (VitsConfig, {"resblock_kernel_sizes": [3] * 99, "resblock_dilation_sizes": [[1]] * 99}, "layers"),
        (VitsConfig, {"depth_separable_num_layers": 13}, "depth_separable_num_layers"),
        (VitsConfig, {"wavenet_dilation_rate": 4}, "wavenet_dilation_rate"),
        (VitsConfig, {"duration_predictor_tail_bound": 2**32 - 2}, "duration_predictor_tail_bound"),
    ],
)
def test_a_config_of_a_model_that_nobody_has_is_refused_at_once_by_name(config, changes, named):
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match=named) as raised:
        config.from_dict(changes)
    assert time.perf_counter() - begun < AT_ONCE
    assert len(str(raised.value)) < MAX_MESSAGE


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "x" * 9_000},
        {"hidden_size": "x" * 9_000},
        {"hidden_size": list(range(9_000))},
        {"model_type": "x" * 9_000},
        {"add_adapter": "x" * 9_000},
        {"x" * 9_000: 1},
    ],
)
def test_a_message_shows_the_beginning_of_a_long_value(changes):
    with pytest.raises(ConfigError) as raised:
        Wav2Vec2Config.from_dict(changes)
    assert len(str(raised.value)) < MAX_MESSAGE


def test_a_message_names_the_first_of_ten_thousand_unknown_attributes():
    with pytest.raises(ConfigError, match=r"unknown.*x0, x1, x10, x100,") as raised:
        Wav2Vec2Config.from_dict({f"x{number}": 1 for number in range(10_000)})
    assert len(str(raised.value)) < MAX_MESSAGE


@pytest.mark.parametrize("value", ["x" * 10_000_000, ["x" * 10_000_000], [["x" * 10_000_000]], {"a": "x" * 10_000_000}])
def test_a_text_too_long_for_any_message_is_refused_when_it_is_read(value, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"key": value}))
    with pytest.raises(
        ConfigError, match=re.escape(str(path)) + ".*over 10,000 characters at the key '(key|a)'"
    ) as raised:
        read_json(path)
    assert len(str(raised.value)) < MAX_MESSAGE
    path.write_text(json.dumps({"key": "x" * MAX_STRING_CHARS}))
    assert len(read_json(path)["key"]) == MAX_STRING_CHARS


# ------------------------------------------------------------------------------------------------ short runs


def misbehave(number: int) -> str:
    """A check of which every tenth goes wrong in one of four ways."""
    match number:
        case 10:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 20:
            time.sleep(600)
        case 30:
            return str(len(bytearray(4096 * MB)))
        case 40:
            raise ValueError("unforeseen")
    return "fine"


def workers_of_misbehaviour() -> None:
    for outcome in outcomes(misbehave, 50, seconds=1.0, memory=512 * MB):
        print(outcome.number, outcome.what)


def test_a_check_that_crashes_hangs_or_fills_memory_is_told_by_its_number_and_the_others_go_on():
    command = [sys.executable, "-c", "from tests import test_reliability as t; t.workers_of_misbehaviour()"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert {number: what for number, what in found.items() if what != "fine"} == {
        "10": f"crash ({-signal.SIGSEGV})",
        "20": "hang",
        "30": "untyped MemoryError: ",
        "40": "untyped ValueError: unforeseen",
    }
    assert len(found) == 50


def test_spoilt_audio_is_audio_or_an_audio_error(tmp_path):
    """400 of the 50,000 of experiments/reliability/audio_mutants.py, which says what is checked."""
    printed = run("audio_mutants", "--count", "400", "--seed", "2", "--output", str(tmp_path))
    assert re.search(r"^400 mutants: [1-9]\d+ audio, [1-9]\d+ AudioError", printed)
    assert printed.endswith("0 crash, 0 hang, 0 untyped, 0 wrong\n")


def test_a_spoilt_checkpoint_is_refused_or_rightly_accepted(tmp_path):
    """100 of the 20,000 of experiments/reliability/checkpoint_mutants.py, which says what is checked."""
    printed = run("checkpoint_mutants", "--count", "100", "--seed", "2", "--output", str(tmp_path))
    assert re.search(r"^100 mutants: [1-9]\d* rightly accepted, [1-9]\d+ refused", printed)
    assert printed.endswith("0 crash, 0 hang, 0 untyped, 0 wrong\n")

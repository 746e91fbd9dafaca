"""Short runs of the scripts under experiments/reliability, which say what is checked, and faults that they found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mms_jax.config import MAX_LAYERS, MAX_SIZE, VitsConfig, Wav2Vec2Config
from mms_jax.errors import ConfigError
from mms_jax.files import MAX_STRING_CHARS, read_json

ROOT = Path(__file__).resolve().parent.parent
MAX_MESSAGE = 500  # characters, of an error about one value
AT_ONCE = 2.0  # seconds: a fault in a config.json is found without tracing a model of a million layers


def run(name: str, *arguments: str) -> str:
    """What a script printed; it found no fault."""
    command = [sys.executable, "-m", f"experiments.reliability.{name}", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    return ended.stdout


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

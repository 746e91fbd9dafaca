"""VITS configurations: read as transformers writes them, refused where the model would be another."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
import transformers

from mms_jax.config import VitsConfig, Wav2Vec2Config
from mms_jax.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(VitsConfig)]

# config.json as facebook/mms-tts-eng holds it.
PUBLISHED: dict[str, Any] = {
    "activation_dropout": 0.1,
    "architectures": ["VitsModel"],
    "attention_dropout": 0.1,
    "depth_separable_channels": 2,
    "depth_separable_num_layers": 3,
    "duration_predictor_dropout": 0.5,
    "duration_predictor_filter_channels": 256,
    "duration_predictor_flow_bins": 10,
    "duration_predictor_kernel_size": 3,
    "duration_predictor_num_flows": 4,
    "duration_predictor_tail_bound": 5.0,
    "ffn_dim": 768,
    "ffn_kernel_size": 3,
    "flow_size": 192,
    "hidden_act": "relu",
    "hidden_dropout": 0.1,
    "hidden_size": 192,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "layerdrop": 0.1,
    "leaky_relu_slope": 0.1,
    "model_type": "vits",
    "noise_scale": 0.667,
    "noise_scale_duration": 0.8,
    "num_attention_heads": 2,
    "num_hidden_layers": 6,
    "num_speakers": 1,
    "posterior_encoder_num_wavenet_layers": 16,
    "prior_encoder_num_flows": 4,
    "prior_encoder_num_wavenet_layers": 4,
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "resblock_kernel_sizes": [3, 7, 11],
    "sampling_rate": 16000,
    "speaker_embedding_size": 0,
    "speaking_rate": 1.0,
    "spectrogram_bins": 513,
    "torch_dtype": "float32",
    "transformers_version": "4.33.0.dev0",
    "upsample_initial_channel": 512,
    "upsample_kernel_sizes": [16, 16, 4, 4],
    "upsample_rates": [8, 8, 2, 2],
    "use_bias": True,
    "use_stochastic_duration_prediction": True,
    "vocab_size": 38,
    "wavenet_dilation_rate": 1,
    "wavenet_dropout": 0.0,
    "wavenet_kernel_size": 5,
    "window_size": 4,
}
# What finetune-hf-vits adds, for its losses and its discriminators.
FINE_TUNED: dict[str, Any] = {
    "discriminator_kernel_size": 5,
    "discriminator_period_channels": [1, 32, 128, 512, 1024],
    "discriminator_periods": [2, 3, 5, 7, 11],
    "discriminator_scale_channels": [1, 16, 64, 256, 1024],
    "discriminator_stride": 3,
    "hop_length": 256,
    "segment_size": 8192,
    "pad_token_id": 0,
}
OTHER: dict[str, Any] = {  # every attribute at another value than its default
    "vocab_size": 154,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "window_size": 3,
    "use_bias": False,
    "ffn_dim": 7,
    "layerdrop": 0.0,
    "ffn_kernel_size": 2,
    "flow_size": 8,
    "spectrogram_bins": 9,
    "hidden_act": "gelu",
    "hidden_dropout": 0.2,
    "attention_dropout": 0.3,
    "activation_dropout": 0.4,
    "layer_norm_eps": 1e-6,
    "use_stochastic_duration_prediction": False,
    "num_speakers": 109,
    "speaker_embedding_size": 5,
    "upsample_initial_channel": 24,
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [3, 6],
    "resblock_kernel_sizes": [5, 3],
    "resblock_dilation_sizes": [[1, 2], [4]],
    "leaky_relu_slope": 0.2,
    "depth_separable_num_layers": 1,
    "duration_predictor_flow_bins": 4,
    "duration_predictor_tail_bound": 2.0,
    "duration_predictor_kernel_size": 5,
    "duration_predictor_dropout": 0.1,
    "duration_predictor_num_flows": 2,
    "duration_predictor_filter_channels": 6,
    "prior_encoder_num_flows": 3,
    "prior_encoder_num_wavenet_layers": 2,
    "posterior_encoder_num_wavenet_layers": 4,
    "wavenet_kernel_size": 3,
    "wavenet_dilation_rate": 2,
    "wavenet_dropout": 0.05,
    "speaking_rate": 0.5,
    "noise_scale": 0.0,
    "noise_scale_duration": 0.1,
    "sampling_rate": 22_050,
}


def valid(**changes: Any) -> dict[str, Any]:
    """A config.json's content that is right but for ``changes``."""
    return transformers.VitsConfig().to_dict() | changes


# Read


def test_defaults_are_those_of_transformers_and_of_the_published_checkpoints():
    assert VitsConfig.from_dict(transformers.VitsConfig().to_dict()) == VitsConfig()
    assert VitsConfig.from_dict(PUBLISHED) == VitsConfig()
    theirs = transformers.VitsConfig().to_dict()
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in theirs.items()}
    values["resblock_dilation_sizes"] = [list(sizes) for sizes in theirs["resblock_dilation_sizes"]]
    written = [*FIELDS, "model_type", "depth_separable_channels"]
    assert VitsConfig().to_dict() == {name: values[name] for name in written}


def test_what_a_fine_tuning_adds_is_read_without_effect():
    assert VitsConfig.from_dict(PUBLISHED | FINE_TUNED) == VitsConfig()


def test_every_value_that_transformers_writes_is_read(tmp_path):
    assert OTHER.keys() == set(FIELDS)
    assert not [name for name, value in VitsConfig().to_dict().items() if OTHER.get(name) == value]
    transformers.VitsConfig(**OTHER).save_pretrained(tmp_path)
    ours = VitsConfig.from_file(tmp_path / "config.json")
    assert ours.to_dict() == OTHER | {"model_type": "vits", "depth_separable_channels": 2}


def test_every_value_that_is_written_is_read_by_transformers(tmp_path):
    ours = VitsConfig.from_dict(OTHER)
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.VitsConfig)
    assert {name: theirs.to_dict()[name] for name in ours.to_dict()} == ours.to_dict()
    assert VitsConfig.from_dict(theirs.to_dict()) == ours


def test_a_config_is_immutable_and_can_be_a_key():
    config = VitsConfig.from_dict(PUBLISHED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 8  # pyright: ignore[reportAttributeAccessIssue]
    assert {config: 1}[VitsConfig()] == 1
    changed = config.replace(vocab_size=99)
    assert (changed.vocab_size, config.vocab_size) == (99, 38)


def test_mms_voices_speak_62_and_a_half_frames_a_second():
    assert (VitsConfig().hop_length, VitsConfig().head_dim) == (256, 96)
    assert VitsConfig().sampling_rate / VitsConfig().hop_length == 62.5


# Refused


@pytest.mark.parametrize("name", ["rotary_dim", "Hidden_size", "quantization_config", "conv_dim", ""])
def test_an_unknown_attribute_is_an_error_that_names_it_and_the_file(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED | {name: None}))
    with pytest.raises(ConfigError, match=rf"^{path}: unknown attribute\(s\) {name};.* Remove"):
        VitsConfig.from_file(path)


@pytest.mark.parametrize("channels", [1, 4, 2.5, None, "2"])
def test_duration_flows_of_more_or_fewer_channels_are_refused_and_silence_means_two(channels):
    with pytest.raises(ConfigError, match=r"depth_separable_channels is .*; only 2 is supported: .*two channels"):
        VitsConfig.from_dict(valid(depth_separable_channels=channels))
    values = valid()
    del values["depth_separable_channels"]
    assert VitsConfig.from_dict(values) == VitsConfig()


@pytest.mark.parametrize("model_type", ["wav2vec2", "speecht5", None, ["vits"]])
def test_another_model_is_refused(model_type):
    with pytest.raises(ConfigError, match="model_type is "):
        VitsConfig.from_dict(valid(model_type=model_type))


def test_a_voice_is_no_recogniser():
    with pytest.raises(ConfigError, match="model_type is 'vits'"):
        Wav2Vec2Config.from_dict(PUBLISHED)


BAD_VALUES: dict[type, list[Any]] = {
    int: [True, 0, -1, 1.0, math.nan, "12", [12], {}, None],
    float: [True, -0.1, math.nan, math.inf, -math.inf, "0.1", [0.1], None],
    bool: [0, 1, 1.0, "true", None, []],
    str: ["", "RELU", "tanh", 1, True, None, ["relu"]],
    tuple: [[], [2, 0], [2, -1], [2, True], [2, 3.0], [2, "3"], "22", 2, None, {"0": 2}],
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_the_wrong_kind_is_an_error_that_names_it(name):
    default = getattr(VitsConfig(), name)
    values = [*BAD_VALUES[type(default)], *([[[1, 3], [0], [1]], [[1], 3, [1]]] if "dilation_sizes" in name else [])]
    for value in values:
        if (name, value) == ("speaker_embedding_size", 0) and value is not False:
            continue  # no speakers
        with pytest.raises(ConfigError, match=rf"^config\.json: .*{name}"):
            VitsConfig.from_dict(valid(**{name: value}), source="config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 192 is not divisible by num_attention_heads 5"),
        ({"upsample_rates": [], "upsample_kernel_sizes": []}, "upsample_rates must not be empty"),
        ({"upsample_rates": [8, 8, 2]}, "upsample_kernel_sizes and upsample_rates differ in length"),
        ({"upsample_kernel_sizes": [16, 16, 4]}, "upsample_kernel_sizes and upsample_rates differ in length"),
        ({"upsample_kernel_sizes": [16, 6, 4, 4]}, "each upsample kernel must be its rate, or exceed it by an even"),
        ({"upsample_kernel_sizes": [16, 15, 4, 4]}, "each upsample kernel must be its rate, or exceed it by an even"),
        ({"upsample_initial_channel": 24}, r"upsample_initial_channel must be divisible by 2\^4"),
        ({"resblock_kernel_sizes": [3, 7]}, "resblock_kernel_sizes and resblock_dilation_sizes must have the same len"),
        ({"resblock_kernel_sizes": [], "resblock_dilation_sizes": []}, "the same length, at least 1"),
        ({"resblock_kernel_sizes": [3, 7, 10]}, "resblock_kernel_sizes and wavenet_kernel_size must be odd"),
        ({"wavenet_kernel_size": 4}, "resblock_kernel_sizes and wavenet_kernel_size must be odd"),
        ({"duration_predictor_kernel_size": 2}, "duration_predictor_kernel_size must be odd"),
        ({"flow_size": 191}, "flow_size must be even"),
        *(
            ({"speaking_rate": rate}, rf"speaking_rate is {rate}; it must be in 0\.1 … 10")
            for rate in (0, 0.099, 10.01, 1e9)
        ),
        ({"duration_predictor_tail_bound": 0}, "duration_predictor_tail_bound must be over 0"),
        ({"duration_predictor_flow_bins": 1_001}, "duration_predictor_flow_bins must be at most 1,000"),
        ({"num_speakers": 2}, "several speakers need a speaker_embedding_size"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ConfigError, match=rf"^config\.json: .*{message}"):
        VitsConfig.from_dict(PUBLISHED | changes, source="config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [8, 10, 2, 6]},
        {"num_speakers": 2, "speaker_embedding_size": 1},
        {"speaker_embedding_size": 256},
        {"ffn_kernel_size": 2},
        {"speaking_rate": 0.1},
        {"speaking_rate": 10},
        {"duration_predictor_flow_bins": 1, "duration_predictor_tail_bound": 1e-3},
        {"duration_predictor_flow_bins": 1_000},
        {"noise_scale": 0, "noise_scale_duration": 0, "hidden_dropout": 0},
    ],
)
def test_sizes_that_are_only_unusual_are_read(changes):
    assert VitsConfig.from_dict(PUBLISHED | changes) != VitsConfig()


def test_what_the_rules_about_kernels_refuse_transformers_cannot_compute_or_computes_at_another_length():
    odd = torch.nn.ConvTranspose1d(1, 1, kernel_size=15, stride=8, padding=(15 - 8) // 2)
    assert odd(torch.zeros(1, 1, 5)).shape[-1] != 5 * 8
    even = torch.nn.Conv1d(1, 1, kernel_size=4, padding=(4 - 1) // 2)
    assert even(torch.zeros(1, 1, 5)).shape[-1] != 5

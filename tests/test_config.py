"""Configurations: read as transformers writes them, refused where the model would be another, frames counted alike."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, ConfigError
from mms_jax.files import read_json

FIELDS = [field.name for field in dataclasses.fields(Wav2Vec2Config)]

# What transformers 4 wrote for facebook/mms-1b-all's relatives: the architecture, the objectives, and everything that
# a text generator might be told.
TRANSFORMERS_4: dict[str, Any] = {
    "_name_or_path": "facebook/mms-1b-all",
    "_attn_implementation_autoset": True,
    "activation_dropout": 0.05,
    "adapter_attn_dim": 16,
    "adapter_kernel_size": 3,
    "adapter_stride": 2,
    "add_adapter": False,
    "add_cross_attention": False,
    "apply_spec_augment": True,
    "architectures": ["Wav2Vec2ForCTC"],
    "attention_dropout": 0.05,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "bos_token_id": 1,
    "chunk_size_feed_forward": 0,
    "classifier_proj_size": 256,
    "codevector_dim": 1024,
    "contrastive_logits_temperature": 0.1,
    "conv_bias": True,
    "conv_dim": [512, 512, 512, 512, 512, 512, 512],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "cross_attention_hidden_size": None,
    "ctc_loss_reduction": "mean",
    "ctc_zero_infinity": False,
    "decoder_start_token_id": None,
    "diversity_loss_weight": 0.1,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "do_stable_layer_norm": True,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": 2,
    "exponential_decay_length_penalty": None,
    "feat_extract_activation": "gelu",
    "feat_extract_dropout": 0.0,
    "feat_extract_norm": "layer",
    "feat_proj_dropout": 0.05,
    "feat_quantizer_dropout": 0.0,
    "final_dropout": 0.05,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout": 0.05,
    "hidden_size": 1280,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "layer_norm_eps": 1e-05,
    "layerdrop": 0.05,
    "length_penalty": 1.0,
    "mask_feature_length": 10,
    "mask_feature_min_masks": 0,
    "mask_feature_prob": 0.0,
    "mask_time_length": 10,
    "mask_time_min_masks": 2,
    "mask_time_prob": 0.05,
    "max_length": 20,
    "min_length": 0,
    "model_type": "wav2vec2",
    "no_repeat_ngram_size": 0,
    "num_adapter_layers": 3,
    "num_attention_heads": 16,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_codevector_groups": 2,
    "num_codevectors_per_group": 320,
    "num_conv_pos_embedding_groups": 16,
    "num_conv_pos_embeddings": 128,
    "num_feat_extract_layers": 7,
    "num_hidden_layers": 48,
    "num_negatives": 100,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_size": 1280,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": 0,
    "prefix": None,
    "problem_type": None,
    "proj_codevector_dim": 1024,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "tdnn_dilation": [1, 2, 3, 1, 1],
    "tdnn_dim": [512, 512, 512, 512, 1500],
    "tdnn_kernel": [5, 3, 3, 1, 1],
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": "float32",
    "torchscript": False,
    "transformers_version": "4.48.0",
    "typical_p": 1.0,
    "use_bfloat16": False,
    "use_cache": True,
    "use_weighted_layer_sum": False,
    "vocab_size": 154,
    "xvector_output_dim": 512,
}
# Leftovers of fairseq and of the first transformers releases in wav2vec2 checkpoints of 2021.
TRANSFORMERS_4_7: dict[str, Any] = {
    "hidden_dropout_prob": 0.1,
    "mask_channel_length": 10,
    "mask_channel_min_space": 1,
    "mask_channel_other": 0.0,
    "mask_channel_prob": 0.0,
    "mask_channel_selection": "static",
    "mask_time_min_space": 1,
    "mask_time_other": 0.0,
    "mask_time_selection": "static",
    "no_mask_channel_overlap": False,
    "no_mask_time_overlap": False,
    "transformers_version": "4.7.0.dev0",
}


def valid(**changes: Any) -> dict[str, Any]:
    """A config.json's content that is right but for ``changes``."""
    return transformers.Wav2Vec2Config().to_dict() | changes


# Read


@pytest.mark.parametrize("extra", [{}, TRANSFORMERS_4_7], ids=["4.48", "4.7"])
def test_what_transformers_4_wrote_is_read(extra):
    config = Wav2Vec2Config.from_dict(TRANSFORMERS_4 | extra)
    written = {name: TRANSFORMERS_4[name] for name in FIELDS}
    assert config.to_dict() == written | {"model_type": "wav2vec2"}
    assert config.has_adapters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_labels": 7, "problem_type": "single_label_classification"},
        {"dtype": "bfloat16", "attn_implementation": "eager"},
        {"adapter_attn_dim": 16, "do_stable_layer_norm": True, "eos_token_id": None, "bos_token_id": None},
        {"hidden_dropout": 0, "layerdrop": 1, "conv_dim": (8, 8), "conv_kernel": (3, 3), "conv_stride": (2, 2)},
    ],
    ids=["defaults", "classifier", "dtype", "adapters", "ints for floats and tuples for lists"],
)
def test_what_transformers_5_writes_is_read_with_every_value(changes, tmp_path):
    theirs = transformers.Wav2Vec2Config(**changes)
    assert Wav2Vec2Config.from_dict(theirs.to_dict()).has_adapters == ("adapter_attn_dim" in changes)
    theirs.save_pretrained(tmp_path)
    ours = Wav2Vec2Config.from_file(tmp_path / "config.json")
    expected = {name: getattr(theirs, name) for name in FIELDS}
    as_lists = {name: list(value) if isinstance(value, tuple) else value for name, value in expected.items()}
    assert ours.to_dict() == as_lists | {"model_type": "wav2vec2"}


def test_defaults_are_those_of_transformers():
    theirs = transformers.Wav2Vec2Config().to_dict()
    assert Wav2Vec2Config().to_dict() == {name: theirs[name] for name in [*FIELDS, "model_type"]}


def test_what_is_written_is_read_by_transformers_with_every_value(tmp_path):
    ours = Wav2Vec2Config(
        vocab_size=154,
        hidden_size=48,
        num_attention_heads=6,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        adapter_attn_dim=4,
        pad_token_id=45,
        eos_token_id=None,
        layer_norm_eps=1e-6,
        ctc_loss_reduction="mean",
    )
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.Wav2Vec2Config)
    assert {name: theirs.to_dict()[name] for name in ours.to_dict()} == ours.to_dict()
    assert Wav2Vec2Config.from_dict(theirs.to_dict()) == ours


def test_a_config_is_immutable_and_can_be_a_key():
    config = Wav2Vec2Config.from_dict(valid())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 8  # pyright: ignore[reportAttributeAccessIssue]
    assert {config: 1}[Wav2Vec2Config()] == 1
    changed = config.replace(vocab_size=99)
    assert (changed.vocab_size, config.vocab_size) == (99, 32)
    assert changed.replace(vocab_size=32) == config


def test_only_pre_norm_encoders_have_adapters():
    assert Wav2Vec2Config(adapter_attn_dim=16, do_stable_layer_norm=True).has_adapters
    assert not Wav2Vec2Config(adapter_attn_dim=16, do_stable_layer_norm=False).has_adapters
    assert not Wav2Vec2Config(adapter_attn_dim=None, do_stable_layer_norm=True).has_adapters


@pytest.mark.parametrize(("time", "feature"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.1)])
def test_the_mask_embedding_exists_when_it_does_in_transformers(time, feature):
    theirs = transformers.Wav2Vec2Config(mask_time_prob=time, mask_feature_prob=feature, num_hidden_layers=1)
    with torch.device("meta"):
        names = dict(transformers.Wav2Vec2Model(theirs).named_parameters())
    assert Wav2Vec2Config.from_dict(theirs.to_dict()).has_spec_embed == ("masked_spec_embed" in names)


# Refused


@pytest.mark.parametrize("name", ["rotary_dim", "position_embeddings_type", "Hidden_size", "quantization_config", ""])
def test_an_unknown_attribute_is_an_error_that_names_it_and_the_file(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(valid(**{name: None})))
    with pytest.raises(ConfigError, match=rf"^{path}: unknown attribute\(s\) {name};.* Remove"):
        Wav2Vec2Config.from_file(path)


def test_every_unknown_attribute_is_named_at_once():
    with pytest.raises(ConfigError, match="alpha, beta"):
        Wav2Vec2Config.from_dict(valid(beta=1, alpha=2))


@pytest.mark.parametrize("name", ["add_adapter", "use_weighted_layer_sum"])
def test_other_maths_is_refused_and_its_absence_is_not(name):
    with pytest.raises(ConfigError, match=f"{name} is True; only False is supported: .* not implemented"):
        Wav2Vec2Config.from_dict(valid(**{name: True}))
    values = valid()
    del values[name]
    assert Wav2Vec2Config.from_dict(values) == Wav2Vec2Config()


@pytest.mark.parametrize("model_type", ["wav2vec2-conformer", "hubert", "vits", None, ["wav2vec2"]])
def test_another_model_is_refused(model_type):
    with pytest.raises(ConfigError, match="model_type is "):
        Wav2Vec2Config.from_dict(valid(model_type=model_type))


BAD_VALUES = {
    int: [True, 0, -1, 1.0, math.nan, "12", [12], {}, None],
    float: [True, -0.1, math.nan, math.inf, -math.inf, "0.1", [0.1], None],
    bool: [0, 1, 1.0, "true", None, []],
    str: ["", "GELU", "tanh", 1, True, None, ["gelu"]],
    tuple: [[], [512, 0], [512, -1], [512, True], [512, 3.0], [512, "3"], "512", 512, None, [[512]], {"0": 512}],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (field.name, value)
        for field in dataclasses.fields(Wav2Vec2Config)
        for value in BAD_VALUES[type(field.default) if field.default is not None else int]
        if (value is not None or field.default is not None)
        and not (value == 0 and ("_id" in field.name or "min_masks" in field.name))
        and not (value is None and field.name in ("bos_token_id", "eos_token_id"))
    ],
    ids=repr,
)
def test_a_value_of_the_wrong_kind_is_an_error_that_names_it(name, value):
    with pytest.raises(ConfigError, match=rf"^config\.json: .*{name}"):
        Wav2Vec2Config.from_dict(valid(**{name: value}), source="config.json")
    with pytest.raises(ConfigError, match=name):
        Wav2Vec2Config(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_token_id": 32}, r"pad_token_id 32 \(the CTC blank\) is outside vocab_size 32"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"num_attention_heads": 5}, "hidden_size 768 is not divisible by num_attention_heads 5"),
        ({"num_conv_pos_embedding_groups": 7}, "hidden_size 768 is not divisible by num_conv_pos_embedding_groups 7"),
        ({"conv_dim": [8, 8]}, "conv_dim, conv_stride and conv_kernel must have the same length"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Wav2Vec2Config.from_dict(valid(**changes))


def test_the_last_token_may_be_the_blank():
    assert Wav2Vec2Config(vocab_size=46, pad_token_id=45).pad_token_id == 45


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1, 2]", "holds a list, expected an object"),
        (b"null", "holds a NoneType, expected an object"),
        (b'{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_no_json_object_is_an_error_that_names_it(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{path}: {message}"):
        read_json(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(No such file"):
        Wav2Vec2Config.from_file(tmp_path / "config.json")


# Frames

CONVS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=8)
MMS = Wav2Vec2Config()


def config_of(convs: list[tuple[int, int]]) -> Wav2Vec2Config:
    kernels, strides = zip(*convs, strict=True)
    return MMS.replace(conv_dim=(8,) * len(convs), conv_kernel=kernels, conv_stride=strides)


@given(convs=CONVS, lengths=st.lists(st.integers(0, 2**24), min_size=8, max_size=8))
def test_frames_are_counted_as_transformers_counts_them(convs, lengths):
    config = config_of(convs)
    model = SimpleNamespace(config=SimpleNamespace(add_adapter=False, **dataclasses.asdict(config)))
    count: Any = transformers.Wav2Vec2PreTrainedModel._get_feat_extract_output_lengths
    expected = count(model, torch.tensor(lengths)).clamp(min=0).tolist()  # the reference's can be negative
    assert [config.num_frames(length) for length in lengths] == expected
    assert config.num_frames(np.array(lengths)).tolist() == expected
    assert config.num_frames(jnp.array(lengths, jnp.int32)).tolist() == expected


@given(convs=CONVS)
def test_min_samples_are_the_fewest_that_give_a_frame(convs):
    config = config_of(convs)
    assert config.num_frames(config.min_samples) == 1
    assert config.num_frames(config.min_samples - 1) == 0


@given(convs=CONVS, num_frames=st.integers(1, 10_000))
def test_a_frame_more_takes_a_hop_more(convs, num_frames):
    config = config_of(convs)
    num_samples = config.min_samples + (num_frames - 1) * config.samples_per_frame
    assert config.num_frames(num_samples) == num_frames
    assert config.num_frames(num_samples - 1) == num_frames - 1


def test_mms_frames_are_20_ms_apart_and_25_ms_wide():
    assert (MMS.samples_per_frame, MMS.min_samples) == (320, 400)
    assert [MMS.num_frames(n) for n in (0, 1, 399, 400, 719, 720, 16_000, 480_000)] == [0, 0, 0, 1, 1, 2, 49, 1499]

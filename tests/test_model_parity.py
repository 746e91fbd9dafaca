"""Every hidden state and the logits equal transformers' on the same checkpoint, and the comparison notices mistakes."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import numpy as np
import pytest

import mms_jax.checkpoint.wav2vec2 as checkpoint_io
from mms_jax.checkpoint.wav2vec2_rules import ctc_rules
from mms_jax.config import Wav2Vec2Config
from mms_jax.models import attention, layers, wav2vec2
from mms_jax.models.trees import flatten, unflatten
from tests.parity import (
    BASE,
    MMS_CONVS,
    exceeding,
    load,
    output_errors,
    random_model,
    run_jax,
    run_torch,
    small_config,
    valid_frames,
    waveforms,
)

# float32 resolves 6e-8; sums of up to 400 terms taken in another order, layer after layer, cost some 20 of these steps:
# the largest error measured here is 1.3e-6.
PARITY = 2e-5
# What a mistake must cost to count as noticed. The smallest below, tanh for erf in GELU, costs 6e-4.
NOTICED = 10 * PARITY

CONFIGS = {
    "mms": {"vocab_size": 154, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16} | MMS_CONVS,
    "no adapters": {"adapter_attn_dim": None, "num_attention_heads": 1, "num_conv_pos_embedding_groups": 1},
    "base": BASE | {"conv_dim": (16,) * 7, "hidden_size": 32, "num_attention_heads": 4} | MMS_CONVS,
    "base with conv bias": BASE | {"conv_bias": True, "num_conv_pos_embeddings": 7, "num_attention_heads": 2},
    "layer-norm features, post-norm encoder": {"do_stable_layer_norm": False},  # and so no adapters, despite their size
    "group-norm features, pre-norm encoder": {"feat_extract_norm": "group", "conv_bias": False},
    "odd sizes": {
        "hidden_size": 21,
        "num_attention_heads": 7,
        "intermediate_size": 13,
        "conv_dim": (5, 3, 1),
        "num_conv_pos_embeddings": 9,
        "num_conv_pos_embedding_groups": 3,
        "vocab_size": 5,
        "adapter_attn_dim": 1,
    },
    "blank last": {"pad_token_id": 22, "conv_bias": False},
    "large epsilon": {"layer_norm_eps": 1e-2},  # the adapters' and the features' norms keep torch's 1e-5
    "large epsilon, base": BASE | {"layer_norm_eps": 3e-2},
    "relu": {"hidden_act": "relu", "feat_extract_activation": "relu"},
    "silu and tanh-gelu": {"hidden_act": "silu", "feat_extract_activation": "gelu_pytorch_tanh"},
    "gelu_new, base": BASE | {"hidden_act": "gelu_new", "feat_extract_activation": "silu"},
    "position kernel wider than the audio": {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 24},
    "position kernel of one": {"num_conv_pos_embeddings": 1, "num_conv_pos_embedding_groups": 2},
    "position kernel of two": {"num_conv_pos_embeddings": 2, "num_attention_heads": 24, "num_hidden_layers": 1},
}


# These two have the shape of the real models.
AS_FOR_USERS = {"mms", "base"}


def batch(config) -> tuple[np.ndarray, np.ndarray]:
    """Three rows: whole, about half, and the fewest samples that give a frame."""
    first = 400 if len(config.conv_dim) == 7 else 10
    longest = first + 27 * config.inputs_to_logits_ratio + 3
    return waveforms([longest, longest * 5 // 9, first])


@functools.cache
def reference(name: str):
    """A model and what transformers computes with it: (model, samples, mask, valid frames, output)."""
    model = random_model(small_config(**CONFIGS[name]), seed=len(name))
    samples, mask = batch(model.config)
    return model, samples, mask, valid_frames(model, mask), run_torch(model, samples, mask)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_logits_equal_those_of_transformers(name, scan_layers, tmp_path):
    model, samples, mask, valid, expected = reference(name)
    config, params = load(model, tmp_path, stack_layers=scan_layers)
    ours = run_jax(config, params, samples, mask, scan_layers=scan_layers, optimize=name in AS_FOR_USERS)
    np.testing.assert_array_equal(ours.frame_mask, valid)
    assert exceeding(output_errors(ours, expected, valid), PARITY) == {}


@pytest.mark.parametrize("name", ["odd sizes", "base with conv bias"])
def test_parity_holds_without_a_mask_where_padding_counts_as_audio(name, tmp_path):
    model, samples, _, valid, masked = reference(name)
    config, params = load(model, tmp_path)
    expected, ours = run_torch(model, samples), run_jax(config, params, samples)
    assert ours.frame_mask.all()
    assert exceeding(output_errors(ours, expected, np.ones_like(valid)), PARITY) == {}
    assert exceeding(output_errors(ours, masked, valid), PARITY)  # so the mask is not without effect


def swap_names(first: str, second: str):
    """Exchange two groups of tensors in the rule table."""

    def rules(config):
        for rule in ctc_rules(config):
            old, new = (first, second) if first in rule.torch else (second, first)
            yield rule._replace(torch=rule.torch.replace(old, new))

    return lambda patch: patch.setattr(checkpoint_io, "ctc_rules", lambda config: tuple(rules(config)))


def change_tensor(path: str, change):
    """Change one tensor after it was read."""

    def load_changed(*args, **kwargs):
        flat = flatten(to_jax(*args, **kwargs))
        return unflatten(flat | {path: change(flat[path])})

    to_jax = checkpoint_io.to_jax
    return lambda patch: patch.setattr(checkpoint_io, "to_jax", load_changed)


def change_epsilon(norm: str, name: str, eps: float):
    """Give the norms of one kind whose names match another epsilon."""
    original, axis = getattr(wav2vec2, norm), {"LayerNorm": -1, "ChannelNorm": -2}[norm]

    def make(**arguments):
        if re.fullmatch(name, arguments["name"]):
            return layers.Norm(axis=axis, eps=eps, name=arguments["name"])
        return original(**arguments)

    return lambda patch: patch.setattr(wav2vec2, norm, make)


def flip_encoder_norm(patch):
    """Normalise on the other side of the layer stack, layers unchanged."""
    for name in ("Encoder", "Layer"):  # the encoder is told the wrong family, its layers the right one again
        patch.setattr(wav2vec2, name, _with_other_family(getattr(wav2vec2, name)))


def _with_other_family(module):
    def make(config, *args, **kwargs):
        return module(config.replace(do_stable_layer_norm=not config.do_stable_layer_norm), *args, **kwargs)

    return make


def drop_first_frame(patch):
    patch.setattr(wav2vec2, "conv", lambda x, kernel, **options: layers.conv(x, kernel, **options)[:, 1:])


def one_frame_more(patch):
    patch.setattr(Wav2Vec2Config, "num_frames", lambda self, n, count=Wav2Vec2Config.num_frames: count(self, n) + 1)


ADAPTED, POST_NORM = "large epsilon", "large epsilon, base"
IN_READING = {
    "query and key swapped": (ADAPTED, swap_names("q_proj", "k_proj")),
    "value and output swapped": (ADAPTED, swap_names("v_proj", "out_proj")),
    "a layer's norms swapped": (
        ADAPTED,
        swap_names("encoder.layers.1.layer_norm.", "encoder.layers.1.final_layer_norm."),
    ),
    "two layers swapped": (ADAPTED, swap_names("layers.0.attention", "layers.1.attention")),
    "a square matrix not transposed": (
        ADAPTED,
        change_tensor("wav2vec2/encoder/layers_1/attention/out/kernel", lambda kernel: kernel.T),
    ),
    "taps of the position kernel reversed": (
        ADAPTED,
        change_tensor("wav2vec2/encoder/pos_conv/kernel_v", lambda kernel: kernel[::-1]),
    ),
    "gains of the position kernel reversed": (
        ADAPTED,
        change_tensor("wav2vec2/encoder/pos_conv/kernel_g", lambda gain: gain[::-1]),
    ),
    "another channel order of the features": (
        ADAPTED,
        change_tensor("wav2vec2/feature_projection/projection/kernel", lambda kernel: kernel[::-1]),
    ),
}
IN_COMPUTING = {
    "config's epsilon in the adapters": (ADAPTED, change_epsilon("LayerNorm", "norm", 1e-2)),
    "config's epsilon in the features": (ADAPTED, change_epsilon("LayerNorm", r"norm_\d", 1e-2)),
    "torch's epsilon in the layers": (ADAPTED, change_epsilon("LayerNorm", "final_norm", 1e-5)),
    "config's epsilon in the group norm": (POST_NORM, change_epsilon("ChannelNorm", r"norm_\d", 3e-2)),
    "encoder norm before the stack": (ADAPTED, flip_encoder_norm),
    "encoder norm after the stack": (POST_NORM, flip_encoder_norm),
    "first instead of last frame dropped": (ADAPTED, drop_first_frame),
    "one frame too many valid": (ADAPTED, one_frame_more),
    "padded frames attended to": (ADAPTED, lambda patch: patch.setattr(attention, "MASKED_SCORE", 0.0)),
    "tanh approximation of GELU": (
        ADAPTED,
        lambda patch: patch.setitem(layers.ACTIVATIONS, "gelu", layers.ACTIVATIONS["gelu_new"]),
    ),
    "adapter without ReLU": (ADAPTED, lambda patch: patch.setattr(nn, "relu", lambda x: x)),
}


@pytest.mark.parametrize("mutation", IN_READING | IN_COMPUTING)
def test_a_mistake_in_the_rules_or_in_the_model_breaks_parity(mutation, tmp_path, monkeypatch):
    name, mutate = (IN_READING | IN_COMPUTING)[mutation]
    model, samples, mask, valid, expected = reference(name)
    if mutation in IN_READING:
        mutate(monkeypatch)
    config, params = load(model, tmp_path)
    if mutation in IN_COMPUTING:
        mutate(monkeypatch)
    errors = output_errors(run_jax(config, params, samples, mask, fresh=True), expected, valid)
    assert errors["logits"] > NOTICED

"""Checkpoints as fairseq and fairseq2 write them, from transformers' models: a mapping of its own, the other way round.

Written from fairseq's module definitions (models/wav2vec/wav2vec2.py, wav2vec2_asr.py, wav2vec2_classification.py) and
fairseq2's, on purpose without convert/'s tables: what both agree on is tested by neither being the other.
"""

from __future__ import annotations

import contextlib
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


@contextlib.contextmanager
def fairseq_dictionary() -> Iterator[type]:
    """A class that pickles as ``fairseq.data.dictionary.Dictionary``, for as long as something is written."""
    module = types.ModuleType("fairseq.data.dictionary")

    class Dictionary:
        def __init__(self, symbols: Sequence[str]):
            self.bos_word, self.unk_word, self.pad_word, self.eos_word = "<s>", "<unk>", "<pad>", "</s>"
            self.symbols, self.count = list(symbols), [1] * len(symbols)
            self.indices = {symbol: index for index, symbol in enumerate(symbols)}
            self.bos_index, self.pad_index, self.eos_index, self.unk_index, self.nspecial = 0, 1, 2, 3, 4

    Dictionary.__module__, Dictionary.__qualname__ = module.__name__, "Dictionary"
    module.Dictionary = Dictionary  # type: ignore[attr-defined] - a module made here
    names = ("fairseq", "fairseq.data", "fairseq.data.dictionary")
    sys.modules |= {name: types.ModuleType(name) for name in names[:2]} | {names[2]: module}
    try:
        yield Dictionary
    finally:
        for name in names:
            del sys.modules[name]


_ENDS = {
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.out_proj": "self_attn.out_proj",
    "layer_norm": "self_attn_layer_norm",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "final_layer_norm": "final_layer_norm",
}
_ADAPTER = {
    "norm.weight": "ln_W",
    "norm.bias": "ln_b",
    "linear_1.weight": "W_a",
    "linear_1.bias": "b_a",
    "linear_2.weight": "W_b",
    "linear_2.bias": "b_b",
}
_HEADS = {
    "lm_head": "w2v_encoder.proj",
    "projector": "pooling_layer.linear",
    "classifier": "pooling_layer.projection",
    "quantizer.weight_proj": "quantizer.weight_proj",
    "project_q": "project_q",
    "project_hid": "final_proj",
}


def fairseq_name(name: str, *, group_norm: bool, pretrained: bool) -> str:
    """fairseq's name of one of transformers' parameters."""
    if name == "quantizer.codevectors":
        return "quantizer.vars"
    for head, original in _HEADS.items():
        if name.startswith(f"{head}."):
            return original + name[len(head) :]
    prefix = "" if pretrained else "w2v_encoder.w2v_model."
    return prefix + _encoder_name(name.removeprefix("wav2vec2."), group_norm=group_norm)


def _encoder_name(name: str, *, group_norm: bool) -> str:
    if name == "masked_spec_embed":
        return "mask_emb"
    if match := re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.(conv|layer_norm)\.(\w+)", name):
        place = "0" if match[2] == "conv" else ("2" if group_norm else "2.1")
        return f"feature_extractor.conv_layers.{match[1]}.{place}.{match[3]}"
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.adapter_layer\.(.+)", name):
        return f"encoder.layers.{match[1]}.adapter_layer.{_ADAPTER[match[2]]}"
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        return f"encoder.layers.{match[1]}.{_ENDS[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"encoder\.pos_conv_embed\.conv\.(.+)", name):
        ends = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        return f"encoder.pos_conv.0.{ends.get(match[1], match[1])}"
    for start, original in (("feature_projection.projection", "post_extract_proj"), ("feature_projection.", "")):
        if name.startswith(start):
            return original + name[len(start) :]
    return name  # encoder.layer_norm


def fairseq_state(model: Any) -> dict[str, torch.Tensor]:
    """A model's parameters as fairseq has them; adapters on a leading axis of one."""
    config = model.config
    pretrained = type(model).__name__ == "Wav2Vec2ForPreTraining"
    state = {}
    for name, tensor in model.state_dict().items():
        original = fairseq_name(name, group_norm=config.feat_extract_norm == "group", pretrained=pretrained)
        state[original] = tensor[None].clone() if ".adapter_layer." in name else tensor.clone()
    assert len(state) == len(model.state_dict())
    return state


def encoder_settings(config: Any) -> dict[str, Any]:
    """What fairseq keeps of an encoder's hyperparameters."""
    convs = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    adapters = {"layer_type": "trf_adp", "adp_num": 1, "adp_dim": config.adapter_attn_dim, "adp_act_fn": "relu"}
    return {
        "_name": "wav2vec2",
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
        "layer_norm_first": config.do_stable_layer_norm,
        "conv_feature_layers": " + ".join(f"[({out}, {taps}, {stride})]" for out, taps, stride in convs),
        "conv_bias": config.conv_bias,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "latent_groups": getattr(config, "num_codevector_groups", 2),
        "quantize_targets": True,
        "final_dim": 256,
        **(adapters if config.adapter_attn_dim else {}),
    }


def settings(config: Any, *, head: Mapping[str, Any] | None, normalize: bool = True) -> dict[str, Any]:
    """``cfg`` of a checkpoint; ``head``: what is its model's own, None for a pretrained encoder."""
    task = {"_name": "audio_pretraining", "normalize": normalize, "sample_rate": 16_000, "labels": "ltr"}
    encoder = encoder_settings(config)
    common = {"_name": None, "common": {"seed": 1, "fp16": True}, "dataset": {"max_tokens": 2_880_000}, "task": task}
    if head is None:
        return {**common, "model": encoder}
    nested = {**common, "model": encoder}
    return {**common, "model": {"apply_mask": True, "mask_prob": 0.5, "final_dropout": 0.0, **head, "w2v_args": nested}}


def checkpoint(model: Any, cfg: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    """What fairseq's trainer saves."""
    state = fairseq_state(model)
    return {
        "args": None,
        "cfg": cfg,
        "model": state,
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "CtcCriterion", "lr_scheduler_state": {"best": None}, "num_updates": 7}
        ],
        "task_state": {},
        "extra_state": {"metrics": [], "previous_training_time": 1.5, "train_iterator": {"epoch": 2}},
        "last_optimizer_state": {"state": {0: {"step": 7, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
        **more,
    }


def save(path: Path, value: Any) -> Path:
    """As ``torch.save`` does; dictionaries may be in it if ``fairseq_dictionary`` is open."""
    torch.save(value, path)
    return path


# ------------------------------------------------------------------------------------------------------------ fairseq2

_FAIRSEQ2 = (
    (r"wav2vec2\.masked_spec_embed", "masker.temporal_mask_embed"),
    (r"wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.conv\.", r"encoder_frontend.feature_extractor.layers.\1.conv."),
    (
        r"wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.layer_norm\.",
        r"encoder_frontend.feature_extractor.layers.\1.layer_norm.",
    ),
    (r"wav2vec2\.feature_projection\.layer_norm\.", "encoder_frontend.post_extract_layer_norm."),
    (r"wav2vec2\.feature_projection\.projection\.", "encoder_frontend.model_dim_proj."),
    (
        r"wav2vec2\.encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0",
        "encoder_frontend.pos_encoder.conv.weight_g",
    ),
    (
        r"wav2vec2\.encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1",
        "encoder_frontend.pos_encoder.conv.weight_v",
    ),
    (r"wav2vec2\.encoder\.pos_conv_embed\.conv\.bias", "encoder_frontend.pos_encoder.conv.bias"),
    (r"wav2vec2\.encoder\.layer_norm\.", "encoder.layer_norm."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.attention\.out_proj\.", r"encoder.layers.\1.self_attn.output_proj."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.attention\.", r"encoder.layers.\1.self_attn."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.final_layer_norm\.", r"encoder.layers.\1.ffn_layer_norm."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"encoder.layers.\1.ffn.inner_proj."),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.feed_forward\.output_dense\.", r"encoder.layers.\1.ffn.output_proj."),
    (r"lm_head\.", "final_proj."),
)


def fairseq2_state(model: Any) -> dict[str, torch.Tensor]:
    """A pre-norm model's parameters as fairseq2 has them."""
    state = {}
    for name, tensor in model.state_dict().items():
        pattern, target = next(one for one in _FAIRSEQ2 if re.match(one[0], name))
        state[re.sub(pattern, target, name)] = tensor.clone()
    assert len(state) == len(model.state_dict())
    return state


def sentencepiece_model(pieces: Sequence[str]) -> bytes:
    """A SentencePiece model file: messages of pieces, with scores and kinds, and a trainer's settings after them."""

    def field(number: int, data: bytes) -> bytes:
        assert len(data) < 1 << 14
        length = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
        return bytes([number << 3 | 2]) + length + data

    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<pad>": 3}
    encoded = [
        field(1, piece.encode()) + b"\x15\x00\x00\x80\xbf" + b"\x18" + bytes([kinds.get(piece, 1)]) for piece in pieces
    ]
    return b"".join(field(1, piece) for piece in encoded) + field(2, b"\x18\x04" + field(7, b"trainer"))

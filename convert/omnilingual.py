"""Omnilingual ASR's CTC models and encoders (fairseq2's wav2vec2) to the Hugging Face layout.

The architecture is that of MMS without adapters: one head over the characters of all languages, whose blank is id 0.
Neither the number of attention heads nor the vocabulary is in a checkpoint: the first is known for the published sizes,
the second is a SentencePiece model of characters beside it.

Sources: fairseq2's models/wav2vec2 (factory.py, interop.py, asr/model.py), omnilingual_asr's wav2vec2_asr/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.conversion import Conversion, ConversionError, Part, Texts
from convert.fairseq_config import feature_extractor, shaped
from convert.renaming import Name, Tensor, affine, to_huggingface, weight_normed
from convert.sentencepiece import WORD_BOUNDARY, read_pieces
from convert.torch_files import StoredTensor
from mms_jax.checkpoint.weights import WEIGHTS
from mms_jax.files import read_json

HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 48): 16, (2048, 60): 16, (2048, 128): 16}  # by width and depth
STRIDES = (5, 2, 2, 2, 2, 2, 2)
KERNELS = (10, 3, 3, 3, 3, 2, 2)
_MARK = "encoder_frontend.post_extract_layer_norm.weight"
_FRONTEND, _LAYER = "encoder_frontend.", "encoder.layers.{i}."
_COUNTERS = {"quantizer.num_updates": "how often the quantiser was trained"}

ENCODER = (
    *affine(f"{_FRONTEND}feature_extractor.layers.{{i}}.conv", "wav2vec2.feature_extractor.conv_layers.{i}.conv"),
    *affine(
        f"{_FRONTEND}feature_extractor.layers.{{i}}.layer_norm", "wav2vec2.feature_extractor.conv_layers.{i}.layer_norm"
    ),
    *affine(f"{_FRONTEND}feature_extractor.layers.0.group_norm", "wav2vec2.feature_extractor.conv_layers.0.layer_norm"),
    *affine(f"{_FRONTEND}post_extract_layer_norm", "wav2vec2.feature_projection.layer_norm"),
    *affine(f"{_FRONTEND}model_dim_proj", "wav2vec2.feature_projection.projection"),
    *weight_normed(f"{_FRONTEND}pos_encoder.conv", "wav2vec2.encoder.pos_conv_embed.conv"),
    *affine(f"{_LAYER}self_attn.q_proj", "wav2vec2.encoder.layers.{i}.attention.q_proj"),
    *affine(f"{_LAYER}self_attn.k_proj", "wav2vec2.encoder.layers.{i}.attention.k_proj"),
    *affine(f"{_LAYER}self_attn.v_proj", "wav2vec2.encoder.layers.{i}.attention.v_proj"),
    *affine(f"{_LAYER}self_attn.output_proj", "wav2vec2.encoder.layers.{i}.attention.out_proj"),
    *affine(f"{_LAYER}self_attn_layer_norm", "wav2vec2.encoder.layers.{i}.layer_norm"),
    *affine(f"{_LAYER}ffn.inner_proj", "wav2vec2.encoder.layers.{i}.feed_forward.intermediate_dense"),
    *affine(f"{_LAYER}ffn.output_proj", "wav2vec2.encoder.layers.{i}.feed_forward.output_dense"),
    *affine(f"{_LAYER}ffn_layer_norm", "wav2vec2.encoder.layers.{i}.final_layer_norm"),
    Name("masker.temporal_mask_embed", "wav2vec2.masked_spec_embed"),
)
PRE_NORM = affine("encoder.layer_norm", "wav2vec2.encoder.layer_norm")
POST_NORM = affine(f"{_FRONTEND}layer_norm", "wav2vec2.encoder.layer_norm")
CTC = affine("final_proj", "lm_head")
PRETRAINING = (
    Name("quantizer.entries", "quantizer.codevectors"),
    *affine("quantizer.entry_proj", "quantizer.weight_proj"),
    *affine("final_target_proj", "project_q"),
    *affine("final_proj", "project_hid"),
)


def _state(held: Any) -> Mapping[str, Any]:
    """The state dict, whatever it was wrapped in."""
    state = held.get("model", held) if isinstance(held, Mapping) else {}
    return (
        {str(name).removeprefix("module."): value for name, value in state.items()}
        if isinstance(state, Mapping)
        else {}
    )


def is_omnilingual(held: Any) -> bool:
    """Whether what a file held has the names of fairseq2's wav2vec2."""
    return _MARK in _state(held)


def convert_omnilingual(path: Path, held: Any, *, tokenizer: Path | None, stated: Path | None) -> Conversion:
    """What a checkpoint of fairseq2's wav2vec2 becomes, read from ``path``.

    Args:
        path: for messages.
        held: what the file held.
        tokenizer: omniASR_tokenizer*.model, for a model with a CTC head.
        stated: a config.json, for a model of another size than the published ones.

    Raises:
        ConversionError: another architecture (the LLM models), an unknown size, or a vocabulary that does not fit.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in _state(held).items():
        if not isinstance(value, StoredTensor):
            raise ConversionError(f"{path}: {name} is no tensor but a {type(value).__name__}")
        tensors[name] = value
    if any(name.startswith(("llama_decoder.", "text_frontend.", "encoder_proj.")) for name in tensors):
        raise ConversionError(f"{path}: an LLM model of omnilingual ASR; only its CTC models and encoders are wav2vec2")
    unused = {name: why for name, why in _COUNTERS.items() if tensors.pop(name, None) is not None}
    pretrained = "quantizer.entries" in tensors
    norms = POST_NORM if f"{_FRONTEND}layer_norm.weight" in tensors else PRE_NORM
    table = (*ENCODER, *norms, *(PRETRAINING if pretrained else CTC))
    parts = to_huggingface(tensors, table, source=str(path))
    pre_norm = norms is PRE_NORM
    config = read_json(stated, error=ConversionError) if stated else config_json(parts, path, HEADS, pre_norm=pre_norm)
    if pretrained:
        config["architectures"] = ["Wav2Vec2ForPreTraining"]
        texts: Texts = {"config.json": config, "preprocessor_config.json": feature_extractor(config)}
        return Conversion("omnilingual ASR's wav2vec2, pretrained", {WEIGHTS: parts}, texts, unused=unused)
    texts, notes = _recogniser(config, parts, tokenizer, path)
    return Conversion("omnilingual ASR's wav2vec2 with a CTC head", {WEIGHTS: parts}, texts, unused=unused, notes=notes)


def config_json(
    parts: Sequence[Part], path: Path, heads: Mapping[tuple[int, int], int], *, pre_norm: bool
) -> dict[str, Any]:
    """The attributes of transformers' ``Wav2Vec2Config`` for tensors of a checkpoint that has no settings.

    Args:
        parts: the tensors.
        path: for messages.
        heads: how many attention has, by width and depth.
        pre_norm: whether norms are before attention and feed-forward.

    Raises:
        ConversionError: an unknown size, or other convolutions than wav2vec2's.
    """
    shapes = {part.target: part.shape for part in parts}
    values = shaped(shapes, str(path))
    size = values["hidden_size"], values["num_hidden_layers"]
    if size not in heads:
        raise ConversionError(
            f"{path}: {size[1]} layers of width {size[0]} are no published size, and nothing in it says how many heads "
            "there are; name a config.json (--config)"
        )
    prefix = "wav2vec2.feature_extractor.conv_layers"
    convs = [shapes.get(f"{prefix}.{i}.conv.weight", ()) for i in range(len(KERNELS))]
    if tuple(conv[-1] for conv in convs if conv) != KERNELS:
        raise ConversionError(f"{path}: its first convolutions are {convs}, not those of wav2vec2")
    return {
        "model_type": "wav2vec2",
        **values,
        "num_attention_heads": heads[size],
        "do_stable_layer_norm": pre_norm,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "conv_dim": [conv[0] for conv in convs],
        "conv_kernel": list(KERNELS),
        "conv_stride": list(STRIDES),
        "conv_bias": f"{prefix}.0.conv.bias" in shapes,
        "feat_extract_norm": "layer" if f"{prefix}.1.layer_norm.weight" in shapes else "group",
        "mask_time_prob": 0.65 if "wav2vec2.masked_spec_embed" in shapes else 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.1,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": 0.1,
    }


def _recogniser(
    config: dict[str, Any], parts: Sequence[Part], tokenizer: Path | None, path: Path
) -> tuple[Texts, list[str]]:
    if tokenizer is None:
        raise ConversionError(
            f"{path}: has a CTC head and no vocabulary; name its omniASR_tokenizer.model (--dictionary)"
        )
    rows = next((part.shape[0] for part in parts if part.target == "lm_head.weight"), 0)
    pieces = read_pieces(tokenizer)
    if len(pieces) != rows:
        raise ConversionError(f"{tokenizer}: {len(pieces)} pieces, but the head of {path} has {rows} outputs")
    if WORD_BOUNDARY not in pieces:
        raise ConversionError(f"{tokenizer}: no piece {WORD_BOUNDARY!r}, so nothing divides words")
    # The blank is whatever has id 0; transformers calls it <pad>, and what is called so gets its name.
    blank, renamed = pieces[0], {pieces[0]: "<pad>", "<pad>": pieces[0]}
    vocabulary = {renamed.get(piece, piece): index for index, piece in enumerate(pieces)}
    tokens = {name: token for name, token in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>")) if token in vocabulary}
    if "unk" not in tokens:
        raise ConversionError(f"{tokenizer}: no piece '<unk>', which every tokenizer of transformers has")
    config |= {"architectures": ["Wav2Vec2ForCTC"], "vocab_size": rows, "pad_token_id": 0}
    config |= {f"{name}_token_id": vocabulary[tokens[name]] for name in ("bos", "eos") if name in tokens}
    texts: Texts = {
        "config.json": config,
        "vocab.json": vocabulary,
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "pad_token": "<pad>",
            **{f"{name}_token": tokens.get(name) for name in ("bos", "eos", "unk")},
            "word_delimiter_token": WORD_BOUNDARY,
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
        },
        "preprocessor_config.json": feature_extractor(config),
    }
    return texts, [f"the blank is id 0, {blank!r} there and '<pad>' here"]

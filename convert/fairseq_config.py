"""config.json from what fairseq keeps in a checkpoint: what shapes do not tell, and what they do, checked."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from convert.conversion import ConversionError, Part
from convert.torch_files import Record

DEFAULT_CONVS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"  # of Wav2Vec2Config there
_MAX_CONVS = 64

# fairseq's values of these change the maths and are none of transformers'; what each must be, and its default there.
_FIXED: Mapping[str, tuple[Any, Any]] = {
    "quantize_input": (False, False),
    "pos_conv_depth": (1, 1),
    "conv_pos_batch_norm": (False, False),
    "adp_act_fn": ("relu", "relu"),
    "adp_trf_idx": ("all", "all"),
    "crop_seq_to_multiple": (1, 1),
}
# What fairseq takes from the settings of the model with a head, whatever the encoder's own say.
_OVERRIDES = ("layer_type", "adp_num", "adp_dim", "adp_act_fn", "adp_trf_idx")
_NEEDED = ("encoder_attention_heads", "layer_norm_first")  # which no shape tells
_LAYER_TYPES = ("transformer", "trf_adp")
_ACTIVATIONS = {"gelu": "gelu", "gelu_accurate": "gelu_new", "relu": "relu"}

# Rates that matter to training only: their names there, and the default if a checkpoint does not tell.
_RATES = {
    "hidden_dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "feat_proj_dropout": ("dropout_input", 0.0),
    "mask_time_length": ("mask_length", 10),
    "mask_feature_prob": ("mask_channel_prob", 0.0),
    "mask_feature_length": ("mask_channel_length", 10),
}


class Settings(NamedTuple):
    """What a fairseq checkpoint says of itself; {} where it says nothing."""

    encoder: Mapping[str, Any]
    model: Mapping[str, Any]  # of the model with a head; the encoder's own if there is none
    task: Mapping[str, Any]


def read_settings(checkpoint: Mapping[str, Any], *, finetuned: bool, source: str) -> Settings:
    """The hyperparameters of a checkpoint, as Hydra (``cfg``) or argparse (``args``) had them.

    Raises:
        ConversionError: there are none, or they are no mapping.
    """
    stated = plain(checkpoint.get("cfg")) or plain(checkpoint.get("args"))
    if not isinstance(stated, Mapping):
        raise ConversionError(
            f"{source}: neither 'cfg' nor 'args' there, so nothing says how many heads attention has or where its "
            "norms are; name a config.json of the Hugging Face layout with --config"
        )
    model, task = _section(stated, "model"), _section(stated, "task")
    encoder = model
    if finetuned:
        nested = plain(model.get("w2v_args") or stated.get("w2v_args"))
        if not isinstance(nested, Mapping):
            raise ConversionError(
                f"{source}: no 'w2v_args', the hyperparameters of the encoder; name a config.json with --config"
            )
        said_last = {name: model[name] for name in _OVERRIDES if model.get(name) is not None}
        encoder = {**_section(nested, "model"), **said_last}
    return Settings(encoder, model, task)


def _section(stated: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of Hydra's settings; argparse had them all side by side, and ``task`` was a word there."""
    section = stated.get(name)
    return section if isinstance(section, Mapping) else stated


def plain(value: Any) -> Any:
    """Settings as plain mappings and sequences, whatever kept them."""
    if isinstance(value, Record):
        state = value.state if isinstance(value.state, Mapping) else {}
        if value.name.startswith("omegaconf."):
            return plain(state.get("_content", state.get("_val")))
        return plain(state)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def config_json(settings: Settings, parts: Sequence[Part], *, source: str) -> dict[str, Any]:
    """The attributes of transformers' ``Wav2Vec2Config`` for these tensors, without those of a head.

    Raises:
        ConversionError: an architecture that it has not, or settings that contradict the tensors.
    """
    encoder, shapes = settings.encoder, {part.target: part.shape for part in parts}
    for name in _NEEDED:
        if name not in encoder:
            raise ConversionError(f"{source}: its settings do not say {name}; name a config.json with --config")
    for name, (needed, default) in _FIXED.items():
        if encoder.get(name, default) != needed:
            raise ConversionError(f"{source}: {name} is {encoder[name]!r}; transformers' wav2vec2 has only {needed!r}")
    if encoder.get("layer_type", "transformer") not in _LAYER_TYPES:
        raise ConversionError(f"{source}: layer_type is {encoder['layer_type']!r}, which is not wav2vec2")
    activation = encoder.get("activation_fn", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ConversionError(f"{source}: activation_fn is {activation!r}; supported: {', '.join(_ACTIVATIONS)}")
    config = {
        "model_type": "wav2vec2",
        "hidden_act": _ACTIVATIONS[activation],
        "num_attention_heads": encoder["encoder_attention_heads"],
        "do_stable_layer_norm": bool(encoder["layer_norm_first"]),
        "layer_norm_eps": 1e-5,
        **shaped(shapes, source),
        **_convs(encoder, shapes, source),
        **_rates(settings),
    }
    _check_stated(encoder, config, source)
    return config


def feature_extractor(
    config: Mapping[str, Any], *, normalize: bool = True, sampling_rate: int = 16_000
) -> dict[str, Any]:
    """preprocessor_config.json; models with group norm were trained without masks."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": sampling_rate,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": normalize,
        "return_attention_mask": config.get("feat_extract_norm", "group") == "layer",
    }


def shaped(shapes: Mapping[str, tuple[int, ...]], source: str) -> dict[str, Any]:
    """The attributes of config.json that shapes of an encoder tell, by name of the Hugging Face layout."""
    try:
        hidden, _ = shapes["wav2vec2.feature_projection.projection.weight"]
        conv = "wav2vec2.encoder.pos_conv_embed.conv"
        new, old = f"{conv}.parametrizations.weight.original1", f"{conv}.weight_v"
        _, per_group, taps = shapes[new] if new in shapes else shapes[old]
        up, _ = shapes["wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight"]
    except (KeyError, ValueError) as error:
        raise ConversionError(f"{source}: {error} is missing or of another rank; is it a wav2vec2 model?") from error
    adapter = shapes.get("wav2vec2.encoder.layers.0.adapter_layer.linear_1.weight")
    num_layers = 1 + max(int(name.split(".")[3]) for name in shapes if name.startswith("wav2vec2.encoder.layers."))
    return {
        "hidden_size": hidden,
        "intermediate_size": up,
        "num_hidden_layers": num_layers,
        "num_conv_pos_embeddings": taps,
        "num_conv_pos_embedding_groups": hidden // max(1, per_group),
        "adapter_attn_dim": adapter[0] if adapter else None,
    }


def _convs(encoder: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], source: str) -> dict[str, Any]:
    """The convolutions over the waveform, of which shapes tell all but the strides."""
    prefix = "wav2vec2.feature_extractor.conv_layers"
    kernels: list[tuple[int, ...]] = []
    while f"{prefix}.{len(kernels)}.conv.weight" in shapes and len(kernels) < _MAX_CONVS:
        kernels.append(shapes[f"{prefix}.{len(kernels)}.conv.weight"])
    layers = parse_convs(encoder.get("conv_feature_layers", DEFAULT_CONVS), source=source)
    if [(out, taps) for out, _, taps in kernels] != [(out, taps) for out, taps, _ in layers]:
        raise ConversionError(
            f"{source}: conv_feature_layers says {layers}, the tensors are {[list(shape) for shape in kernels]}"
        )
    return {
        "conv_dim": [out for out, _, _ in layers],
        "conv_kernel": [taps for _, taps, _ in layers],
        "conv_stride": [stride for _, _, stride in layers],
        "conv_bias": f"{prefix}.0.conv.bias" in shapes,
        "feat_extract_norm": "layer" if f"{prefix}.1.layer_norm.weight" in shapes else "group",
        "feat_extract_activation": "gelu",
    }


def parse_convs(text: Any, *, source: str) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of each layer, from fairseq's expression: lists of triples, added and repeated.

    Raises:
        ConversionError: it is anything else. Nothing is evaluated.
    """
    try:
        layers = _expression(ast.parse(text, mode="eval").body) if isinstance(text, str) else text
        found = [(int(out), int(taps), int(stride)) for out, taps, stride in layers]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ConversionError(f"{source}: conv_feature_layers is {str(text)[:80]!r}, which lists no layers") from error
    if not 0 < len(found) <= _MAX_CONVS or not all(size > 0 for layer in found for size in layer):
        raise ConversionError(f"{source}: conv_feature_layers is {str(text)[:80]!r}, which lists no layers")
    return found


def _expression(node: ast.expr) -> Any:
    match node:
        case ast.List(elts=items):
            return [_expression(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_expression(item) for item in items)
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [*_expression(left), *_expression(right)]
        case ast.BinOp(left=ast.List() as left, op=ast.Mult(), right=ast.Constant(value=int(count))) if (
            count <= _MAX_CONVS
        ):
            return _expression(left) * count
    raise ValueError(f"{type(node).__name__} in a list of layers")


def _rates(settings: Settings) -> dict[str, Any]:
    """Dropout and masking of the last training: the head's, if there is one."""
    model = settings.model
    rates: dict[str, Any] = {name: model.get(there, default) for name, (there, default) in _RATES.items()}
    rates["final_dropout"] = model.get("final_dropout", 0.0)
    rates["layerdrop"] = model.get("layerdrop", model.get("encoder_layerdrop", 0.0))
    masks = model.get("apply_mask", True)
    rates["apply_spec_augment"] = bool(masks)
    rates["mask_time_prob"] = model.get("mask_prob", 0.65) if masks else 0.0
    rates["mask_feature_prob"] = rates["mask_feature_prob"] if masks else 0.0
    return rates


def _check_stated(encoder: Mapping[str, Any], config: Mapping[str, Any], source: str) -> None:
    """What is both stated and to be seen must agree."""
    for stated, name in (
        ("encoder_embed_dim", "hidden_size"),
        ("encoder_ffn_embed_dim", "intermediate_size"),
        ("encoder_layers", "num_hidden_layers"),
        ("conv_pos", "num_conv_pos_embeddings"),
        ("conv_pos_groups", "num_conv_pos_embedding_groups"),
    ):
        if stated in encoder and encoder[stated] != config[name]:
            raise ConversionError(f"{source}: {stated} is {encoder[stated]!r}, but the tensors say {config[name]}")
    heads = config["num_attention_heads"]
    if not isinstance(heads, int) or heads < 1 or config["hidden_size"] % heads:
        raise ConversionError(f"{source}: encoder_attention_heads {heads!r} does not divide {config['hidden_size']}")

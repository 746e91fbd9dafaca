"""VITS: which PyTorch tensor is which parameter. A table only; rules.py says what its entries mean.

The published checkpoints store the decoder with its weight norm folded into the kernels, and the WaveNets of flow and
posterior encoder with it, in torch's old spelling; transformers 5 writes the new one.
"""

from __future__ import annotations

from collections.abc import Iterator

from mms_jax.checkpoint.rules import Layout, Rule, Table, affine, expand, norm, prefixed, weight_normed
from mms_jax.config import VitsConfig

LAYER = (
    Rule("attention.emb_rel_k", "attention/emb_rel_k", Layout.SAME),
    Rule("attention.emb_rel_v", "attention/emb_rel_v", Layout.SAME),
    *affine("attention.q_proj", "attention/q"),
    *affine("attention.k_proj", "attention/k"),
    *affine("attention.v_proj", "attention/v"),
    *affine("attention.out_proj", "attention/out"),
    *norm("layer_norm", "norm"),
    *affine("feed_forward.conv_1", "feed_forward/conv_1", Layout.CONV),
    *affine("feed_forward.conv_2", "feed_forward/conv_2", Layout.CONV),
    *norm("final_layer_norm", "final_norm"),
)
DETERMINISTIC_DURATIONS = (
    *affine("cond", "cond", Layout.POINTWISE),
    *affine("conv_1", "conv_1", Layout.CONV),
    *norm("norm_1", "norm_1"),
    *affine("conv_2", "conv_2", Layout.CONV),
    *norm("norm_2", "norm_2"),
    *affine("proj", "proj", Layout.POINTWISE),
)
AFFINE_FLOW = (Rule("translate", "translate", Layout.SAME), Rule("log_scale", "log_scale", Layout.SAME))
DILATED_LAYER = (
    *affine("convs_dilated.{i}", "convs_dilated_{i}", Layout.CONV),
    *affine("convs_pointwise.{i}", "convs_pointwise_{i}", Layout.POINTWISE),
    *norm("norms_1.{i}", "norms_1_{i}"),
    *norm("norms_2.{i}", "norms_2_{i}"),
)
WAVENET_LAYER = (
    *weight_normed("in_layers.{i}", "in_{i}"),
    *weight_normed("res_skip_layers.{i}", "res_skip_{i}"),
)

HINTS = (
    (
        r"unknown decoder\..*(weight_g|original0)",
        "The decoder was saved with its weight norm, as training needs it. Fold it before saving: for every layer of "
        'model.decoder that has one, torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")',
    ),
    (r"unknown discriminator", "Discriminators are for training; keep them in a file of their own"),
    (
        r"duration_predictor[./](conv_1|post_conv_pre)[./]",  # each is of one kind of predictor only
        "Does use_stochastic_duration_prediction in config.json match the weights?",
    ),
    (
        r"(embed_speaker|decoder[./]cond)",
        "Do num_speakers and speaker_embedding_size in config.json match the weights?",
    ),
    (
        r"duration_predictor[./]",
        "Do duration_predictor_num_flows and depth_separable_num_layers in config.json match the weights?",
    ),
    (r"text_encoder[./]", "Do num_hidden_layers and use_bias in config.json match the weights?"),
    (r"(flow|wavenet)[./]", "Do the numbers of flows and WaveNet layers in config.json match the weights?"),
    (
        r"decoder[./]",
        "Do upsample_rates, resblock_kernel_sizes and resblock_dilation_sizes in config.json match the weights?",
    ),
)


def vits_table(config: VitsConfig) -> Table:
    """Every rule for ``VitsModel``; those of parts that the config lacks match nothing."""
    parts = (
        *(rule._replace(float32=True) for rule in (*_text_encoder(config), *_duration_predictor(config))),
        *prefixed(_flow(config), "flow", "flow"),
        *prefixed(_decoder(config), "decoder", "decoder"),
        *prefixed(_posterior_encoder(config), "posterior_encoder", "posterior_encoder"),
        Rule("embed_speaker.weight", "embed_speaker", Layout.SAME),
    )
    return Table(parts, hints=HINTS)


def _text_encoder(config: VitsConfig) -> Iterator[Rule]:
    yield Rule("text_encoder.embed_tokens.weight", "text_encoder/embed_tokens", Layout.SAME)
    layers = prefixed(LAYER, "text_encoder.encoder.layers.{i}", "text_encoder/layers_{i}")
    yield from expand(tuple(layers), config.num_hidden_layers)
    yield from affine("text_encoder.project", "text_encoder/project", Layout.POINTWISE)


def _duration_predictor(config: VitsConfig) -> Iterator[Rule]:
    rules = _stochastic_durations(config) if config.use_stochastic_duration_prediction else DETERMINISTIC_DURATIONS
    yield from prefixed(rules, "duration_predictor", "duration_predictor")


def _stochastic_durations(config: VitsConfig) -> Iterator[Rule]:
    dilated = tuple(expand(DILATED_LAYER, config.depth_separable_num_layers))
    conv_flow = (
        *affine("conv_pre", "conv_pre", Layout.POINTWISE),
        *prefixed(dilated, "conv_dds", "conv_dds"),
        *affine("conv_proj", "conv_proj", Layout.POINTWISE),
    )
    yield from affine("cond", "cond", Layout.POINTWISE)
    for name in ("", "post_"):
        yield from affine(f"{name}conv_pre", f"{name}conv_pre", Layout.POINTWISE)
        yield from affine(f"{name}conv_proj", f"{name}conv_proj", Layout.POINTWISE)
        yield from prefixed(dilated, f"{name}conv_dds", f"{name}conv_dds")
        yield from prefixed(AFFINE_FLOW, f"{name}flows.0", f"{name}flows_0")
        for i in range(1, config.duration_predictor_num_flows + 1):
            yield from prefixed(conv_flow, f"{name}flows.{i}", f"{name}flows_{i}")


def _wavenet(num_layers: int) -> Iterator[Rule]:
    rules = (*weight_normed("cond_layer", "cond"), *expand(WAVENET_LAYER, num_layers))
    yield from prefixed(rules, "wavenet", "wavenet")


def _flow(config: VitsConfig) -> Iterator[Rule]:
    coupling = (
        *affine("conv_pre", "conv_pre", Layout.POINTWISE),
        *_wavenet(config.prior_encoder_num_wavenet_layers),
        *affine("conv_post", "conv_post", Layout.POINTWISE),
    )
    for i in range(config.prior_encoder_num_flows):
        yield from prefixed(coupling, f"flows.{i}", f"flows_{i}")


def _posterior_encoder(config: VitsConfig) -> Iterator[Rule]:
    yield from affine("conv_pre", "conv_pre", Layout.POINTWISE)
    yield from _wavenet(config.posterior_encoder_num_wavenet_layers)
    yield from affine("conv_proj", "conv_proj", Layout.POINTWISE)


def _decoder(config: VitsConfig) -> Iterator[Rule]:
    yield from affine("cond", "cond", Layout.POINTWISE)
    yield from affine("conv_pre", "conv_pre", Layout.CONV)
    yield from expand(affine("upsampler.{i}", "upsampler_{i}", Layout.CONV), len(config.upsample_rates))
    kinds = config.resblock_dilation_sizes
    for i in range(len(config.upsample_rates) * len(kinds)):
        for j in range(len(kinds[i % len(kinds)])):
            for convs in ("convs1", "convs2"):
                yield from affine(f"resblocks.{i}.{convs}.{j}", f"resblocks_{i}/{convs}_{j}", Layout.CONV)
    yield Rule("conv_post.weight", "conv_post/kernel", Layout.CONV)

"""wav2vec2: which PyTorch tensor is which parameter. A table only; rules.py says what its entries mean."""

from __future__ import annotations

from mms_jax.checkpoint.rules import Layout, Rule, affine, expand, norm, prefixed, weight_normed
from mms_jax.config import Wav2Vec2Config

FEATURE_EXTRACTOR = (
    *affine("feature_extractor.conv_layers.{i}.conv", "feature_extractor/conv_{i}", Layout.CONV),
    *norm("feature_extractor.conv_layers.{i}.layer_norm", "feature_extractor/norm_{i}"),
)
ENCODER = (
    *norm("feature_projection.layer_norm", "feature_projection/norm"),
    *affine("feature_projection.projection", "feature_projection/projection"),
    *weight_normed("encoder.pos_conv_embed.conv", "encoder/pos_conv"),
    *norm("encoder.layer_norm", "encoder/norm"),
    Rule("masked_spec_embed", "masked_spec_embed", Layout.SAME),
)
ENCODER_LAYER = (
    *affine("encoder.layers.{i}.attention.q_proj", "encoder/layers_{i}/attention/q"),
    *affine("encoder.layers.{i}.attention.k_proj", "encoder/layers_{i}/attention/k"),
    *affine("encoder.layers.{i}.attention.v_proj", "encoder/layers_{i}/attention/v"),
    *affine("encoder.layers.{i}.attention.out_proj", "encoder/layers_{i}/attention/out"),
    *norm("encoder.layers.{i}.layer_norm", "encoder/layers_{i}/norm"),
    *affine("encoder.layers.{i}.feed_forward.intermediate_dense", "encoder/layers_{i}/feed_forward/up"),
    *affine("encoder.layers.{i}.feed_forward.output_dense", "encoder/layers_{i}/feed_forward/down"),
    *norm("encoder.layers.{i}.final_layer_norm", "encoder/layers_{i}/final_norm"),
    *norm("encoder.layers.{i}.adapter_layer.norm", "encoder/layers_{i}/adapter/norm"),
    *affine("encoder.layers.{i}.adapter_layer.linear_1", "encoder/layers_{i}/adapter/down"),
    *affine("encoder.layers.{i}.adapter_layer.linear_2", "encoder/layers_{i}/adapter/up"),
)
CTC_HEAD = affine("lm_head", "lm_head")

# May be absent from a file, and may be there without being used: it is what time masking writes during training.
OPTIONAL = frozenset({"wav2vec2/masked_spec_embed"})

HINTS = (
    (r"unknown quantizer\.", "This is a pretrained encoder without a CTC head: fine-tune it, or use load_encoder"),
    (r"unknown (classifier|projector)\.", "This is a classifier, not a recognition (CTC) model: use load_lid"),
    (r"missing lm_head[./]", "Without lm_head it is no recognition (CTC) model"),
    (r"/layers/", "The layers are stacked: mms_jax.models.trees.unstack_layers takes them apart"),
    (r"encoder[./]layers[._]\d+[./]attention", "Does num_hidden_layers in config.json match the weights?"),
    (r"adapter_layer\.|/adapter/", "Do adapter_attn_dim and num_hidden_layers in config.json match the weights?"),
    (r"feature_extractor.*bias", "Do conv_bias and feat_extract_norm in config.json match the weights?"),
    (r"feature_extractor", "Do conv_dim and feat_extract_norm in config.json match the weights?"),
)


def ctc_rules(config: Wav2Vec2Config) -> tuple[Rule, ...]:
    """Every rule for ``Wav2Vec2ForCTC``; those of parts that the config lacks (a bias, an adapter) match nothing."""
    body = (
        *expand(FEATURE_EXTRACTOR, len(config.conv_dim)),
        *ENCODER,
        *expand(ENCODER_LAYER, config.num_hidden_layers),
    )
    return (*prefixed(body, "wav2vec2", "wav2vec2"), *CTC_HEAD)

"""wav2vec2: which PyTorch tensor is which parameter. Tables only; rules.py says what their entries mean."""

from __future__ import annotations

from mms_jax.checkpoint.rules import Layout, Rule, Table, affine, expand, norm, prefixed, weight_normed
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
    *affine("encoder.layers.{i}.attention.q_proj", "encoder/layers_{i}/attention/q", int8=True),
    *affine("encoder.layers.{i}.attention.k_proj", "encoder/layers_{i}/attention/k", int8=True),
    *affine("encoder.layers.{i}.attention.v_proj", "encoder/layers_{i}/attention/v", int8=True),
    *affine("encoder.layers.{i}.attention.out_proj", "encoder/layers_{i}/attention/out", int8=True),
    *norm("encoder.layers.{i}.layer_norm", "encoder/layers_{i}/norm"),
    *affine("encoder.layers.{i}.feed_forward.intermediate_dense", "encoder/layers_{i}/feed_forward/up", int8=True),
    *affine("encoder.layers.{i}.feed_forward.output_dense", "encoder/layers_{i}/feed_forward/down", int8=True),
    *norm("encoder.layers.{i}.final_layer_norm", "encoder/layers_{i}/final_norm"),
    *norm("encoder.layers.{i}.adapter_layer.norm", "encoder/layers_{i}/adapter/norm"),
    *affine("encoder.layers.{i}.adapter_layer.linear_1", "encoder/layers_{i}/adapter/down"),
    *affine("encoder.layers.{i}.adapter_layer.linear_2", "encoder/layers_{i}/adapter/up"),
)
CTC_HEAD = affine("lm_head", "lm_head")
CLASSIFIER_HEAD = (*affine("projector", "projector"), *affine("classifier", "classifier"))

# May be absent from a file, and may be there without being used: it is what time masking writes during training.
SPEC_EMBED = "masked_spec_embed"
OPTIONAL = frozenset({f"wav2vec2/{SPEC_EMBED}"})

# What a checkpoint may hold besides the encoder, where that alone is loaded.
UNUSED = {
    "quantizer.codevectors": "the codebook that pretraining draws its targets from",
    "quantizer.weight_proj.weight": "chooses codebook entries during pretraining",
    "quantizer.weight_proj.bias": "chooses codebook entries during pretraining",
    "project_q.weight": "maps codebook entries to the space of pretraining's loss",
    "project_q.bias": "maps codebook entries to the space of pretraining's loss",
    "project_hid.weight": "maps hidden states to the space of pretraining's loss",
    "project_hid.bias": "maps hidden states to the space of pretraining's loss",
    "lm_head.weight": "the recognition (CTC) head",
    "lm_head.bias": "the recognition (CTC) head",
    "projector.weight": "the first half of the classifier",
    "projector.bias": "the first half of the classifier",
    "classifier.weight": "the second half of the classifier",
    "classifier.bias": "the second half of the classifier",
}

COMMON_HINTS = (
    (r"unknown .*/kernel_scale", "A model in int8 is for use alone: to save it, load it in another dtype"),
    (r"/layers/", "The layers are stacked: mms_jax.models.trees.unstack_layers takes them apart"),
    (r"encoder[./]layers[._]\d+[./]attention", "Does num_hidden_layers in config.json match the weights?"),
    (r"adapter_layer\.|/adapter/", "Do adapter_attn_dim and num_hidden_layers in config.json match the weights?"),
    (r"feature_extractor.*bias", "Do conv_bias and feat_extract_norm in config.json match the weights?"),
    (r"feature_extractor", "Do conv_dim and feat_extract_norm in config.json match the weights?"),
)
HINTS = (
    (r"unknown quantizer\.", "This is a pretrained encoder without a CTC head: fine-tune it, or use load_encoder"),
    (r"unknown (classifier|projector)\.", "This is a classifier, not a recognition (CTC) model: use load_lid"),
    (r"missing lm_head[./]", "Without lm_head it is no recognition (CTC) model"),
    *COMMON_HINTS,
)
CLASSIFIER_HINTS = (
    (r"unknown quantizer\.", "This is a pretrained encoder without a classifier: fine-tune it, or use load_encoder"),
    (r"unknown lm_head\.", "This is a recognition (CTC) model, not a classifier: use load_asr"),
    (r"missing (classifier|projector)[./]", "Without projector and classifier it identifies no language"),
    *COMMON_HINTS,
)


def encoder_rules(config: Wav2Vec2Config) -> tuple[Rule, ...]:
    """Every rule for ``Wav2Vec2Model``; those of parts that the config lacks (a bias, an adapter) match nothing."""
    return (
        *expand(FEATURE_EXTRACTOR, len(config.conv_dim)),
        *ENCODER,
        *expand(ENCODER_LAYER, config.num_hidden_layers),
    )


def ctc_rules(config: Wav2Vec2Config) -> tuple[Rule, ...]:
    """Every rule for ``Wav2Vec2ForCTC``."""
    return (*prefixed(encoder_rules(config), "wav2vec2", "wav2vec2"), *CTC_HEAD)


def classifier_table(config: Wav2Vec2Config) -> Table:
    """The rules of ``Wav2Vec2ForSequenceClassification``."""
    rules = (*prefixed(encoder_rules(config), "wav2vec2", "wav2vec2"), *CLASSIFIER_HEAD)
    return Table(rules, OPTIONAL, CLASSIFIER_HINTS)


def encoder_table(config: Wav2Vec2Config, *, bare: bool) -> Table:
    """The rules of ``Wav2Vec2Model``, alone in a file (``bare``) or the part ``wav2vec2.`` of a model with a head."""
    rules = encoder_rules(config)
    if bare:
        return Table(rules, frozenset({SPEC_EMBED}), COMMON_HINTS)
    return Table(tuple(prefixed(rules, "wav2vec2", None)), frozenset({SPEC_EMBED}), COMMON_HINTS, UNUSED)

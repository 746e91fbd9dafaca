"""fairseq's wav2vec2: which of its tensors is which of transformers'. Tables only; renaming.py says what they mean.

Sources: fairseq's models/wav2vec/wav2vec2.py, wav2vec2_asr.py and wav2vec2_classification.py.
"""

from __future__ import annotations

from convert.renaming import Name, Way, affine, prefixed, weight_normed

PRETRAINED = ""  # what stands before the encoder's names, in a file of the pretrained encoder …
FINETUNED = "w2v_encoder.w2v_model."  # … and in one with a head

ADAPTER = prefixed(
    (
        Name("ln_W", "norm.weight", Way.ONE_OF_ONE),
        Name("ln_b", "norm.bias", Way.ONE_OF_ONE),
        Name("W_a", "linear_1.weight", Way.ONE_OF_ONE),
        Name("b_a", "linear_1.bias", Way.ONE_OF_ONE),
        Name("W_b", "linear_2.weight", Way.ONE_OF_ONE),
        Name("b_b", "linear_2.bias", Way.ONE_OF_ONE),
    ),
    "encoder.layers.{i}.adapter_layer.",
    "encoder.layers.{i}.adapter_layer.",
)
FEATURE_LAYER_NORM = affine("feature_extractor.conv_layers.{i}.2.1", "feature_extractor.conv_layers.{i}.layer_norm")
FEATURE_GROUP_NORM = affine("feature_extractor.conv_layers.0.2", "feature_extractor.conv_layers.0.layer_norm")
ENCODER = (
    *affine("feature_extractor.conv_layers.{i}.0", "feature_extractor.conv_layers.{i}.conv"),
    *affine("layer_norm", "feature_projection.layer_norm"),
    *affine("post_extract_proj", "feature_projection.projection"),
    *weight_normed("encoder.pos_conv.0", "encoder.pos_conv_embed.conv"),
    *affine("encoder.layer_norm", "encoder.layer_norm"),
    *affine("encoder.layers.{i}.self_attn.q_proj", "encoder.layers.{i}.attention.q_proj"),
    *affine("encoder.layers.{i}.self_attn.k_proj", "encoder.layers.{i}.attention.k_proj"),
    *affine("encoder.layers.{i}.self_attn.v_proj", "encoder.layers.{i}.attention.v_proj"),
    *affine("encoder.layers.{i}.self_attn.out_proj", "encoder.layers.{i}.attention.out_proj"),
    *affine("encoder.layers.{i}.self_attn_layer_norm", "encoder.layers.{i}.layer_norm"),
    *affine("encoder.layers.{i}.fc1", "encoder.layers.{i}.feed_forward.intermediate_dense"),
    *affine("encoder.layers.{i}.fc2", "encoder.layers.{i}.feed_forward.output_dense"),
    *affine("encoder.layers.{i}.final_layer_norm", "encoder.layers.{i}.final_layer_norm"),
    Name("mask_emb", "masked_spec_embed"),
    *ADAPTER,
)
PRETRAINING = (
    Name("quantizer.vars", "quantizer.codevectors"),
    *affine("quantizer.weight_proj", "quantizer.weight_proj"),
    *affine("project_q", "project_q"),
    *affine("final_proj", "project_hid"),
)
CTC_HEAD = affine("w2v_encoder.proj", "lm_head")
CLASSIFIER_HEAD = (*affine("pooling_layer.linear", "projector"), *affine("pooling_layer.projection", "classifier"))


def names(*, prefix: str, group_norm: bool) -> tuple[Name, ...]:
    """All names there are: those of heads that a file lacks match nothing."""
    features = FEATURE_GROUP_NORM if group_norm else FEATURE_LAYER_NORM
    encoder = prefixed((*features, *ENCODER), prefix, "wav2vec2.")
    return (*encoder, *(PRETRAINING if prefix == PRETRAINED else (*CTC_HEAD, *CLASSIFIER_HEAD)))

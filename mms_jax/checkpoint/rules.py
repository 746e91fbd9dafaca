"""Which PyTorch tensor is which parameter here, and how their layouts differ. Tables only; engine.py applies them.

Each rule is two-way. ``{i}`` in a template stands for a layer index and expands to the config's number of layers.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mms_jax.config import Wav2Vec2Config


class Layout(enum.Enum):
    """How a tensor's axes are ordered: PyTorch's on the left, ours on the right. Every one is its own inverse."""

    SAME = "vectors, unchanged"
    LINEAR = "[out, in] <-> [in, out]"
    CONV = "[out, in, kernel] <-> [kernel, in, out]"
    GAIN = "[1, 1, kernel] <-> [kernel, 1, 1]: a weight norm's magnitude per tap"

    def convert(self, tensor: np.ndarray) -> np.ndarray:
        """Reverse the axes; bitwise reversible, and from either side to the other."""
        return tensor.transpose() if tensor.ndim > 1 else tensor

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that ``convert`` gives a tensor of this one."""
        return tuple(reversed(shape))

    @property
    def is_matrix(self) -> bool:
        """Whether it is an operand of matrix products, so that it may be stored in a narrower dtype."""
        return self in (Layout.LINEAR, Layout.CONV)


class Rule(NamedTuple):
    """One tensor on both sides."""

    torch: str
    jax: str
    layout: Layout
    alias: str | None = None  # another spelling of the PyTorch name, accepted on reading


def _affine(torch: str, jax: str, layout: Layout = Layout.LINEAR) -> tuple[Rule, Rule]:
    return Rule(f"{torch}.weight", f"{jax}/kernel", layout), Rule(f"{torch}.bias", f"{jax}/bias", Layout.SAME)


def _norm(torch: str, jax: str) -> tuple[Rule, Rule]:
    return Rule(f"{torch}.weight", f"{jax}/scale", Layout.SAME), Rule(f"{torch}.bias", f"{jax}/bias", Layout.SAME)


FEATURE_EXTRACTOR = (
    *_affine("feature_extractor.conv_layers.{i}.conv", "feature_extractor/conv_{i}", Layout.CONV),
    *_norm("feature_extractor.conv_layers.{i}.layer_norm", "feature_extractor/norm_{i}"),
)
ENCODER = (
    *_norm("feature_projection.layer_norm", "feature_projection/norm"),
    *_affine("feature_projection.projection", "feature_projection/projection"),
    Rule(
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder/pos_conv/kernel_g",
        Layout.GAIN,
        alias="encoder.pos_conv_embed.conv.weight_g",
    ),
    Rule(
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "encoder/pos_conv/kernel_v",
        Layout.CONV,
        alias="encoder.pos_conv_embed.conv.weight_v",
    ),
    Rule("encoder.pos_conv_embed.conv.bias", "encoder/pos_conv/bias", Layout.SAME),
    *_norm("encoder.layer_norm", "encoder/norm"),
    Rule("masked_spec_embed", "masked_spec_embed", Layout.SAME),
)
ENCODER_LAYER = (
    *_affine("encoder.layers.{i}.attention.q_proj", "encoder/layers_{i}/attention/q"),
    *_affine("encoder.layers.{i}.attention.k_proj", "encoder/layers_{i}/attention/k"),
    *_affine("encoder.layers.{i}.attention.v_proj", "encoder/layers_{i}/attention/v"),
    *_affine("encoder.layers.{i}.attention.out_proj", "encoder/layers_{i}/attention/out"),
    *_norm("encoder.layers.{i}.layer_norm", "encoder/layers_{i}/norm"),
    *_affine("encoder.layers.{i}.feed_forward.intermediate_dense", "encoder/layers_{i}/feed_forward/up"),
    *_affine("encoder.layers.{i}.feed_forward.output_dense", "encoder/layers_{i}/feed_forward/down"),
    *_norm("encoder.layers.{i}.final_layer_norm", "encoder/layers_{i}/final_norm"),
    *_norm("encoder.layers.{i}.adapter_layer.norm", "encoder/layers_{i}/adapter/norm"),
    *_affine("encoder.layers.{i}.adapter_layer.linear_1", "encoder/layers_{i}/adapter/down"),
    *_affine("encoder.layers.{i}.adapter_layer.linear_2", "encoder/layers_{i}/adapter/up"),
)
CTC_HEAD = _affine("lm_head", "lm_head")

# May be absent from a file, and may be there without being used: it is what time masking writes during training.
OPTIONAL = frozenset({"wav2vec2/masked_spec_embed"})

# What a mismatch means: the first pattern found in one of "missing NAME", "unknown NAME" (PyTorch names when reading,
# our paths when writing) gives the advice.
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
        *_expand(FEATURE_EXTRACTOR, len(config.conv_dim)),
        *ENCODER,
        *_expand(ENCODER_LAYER, config.num_hidden_layers),
    )
    return (*_prefixed(body, "wav2vec2"), *CTC_HEAD)


def _expand(rules: Sequence[Rule], count: int) -> Iterator[Rule]:
    for i in range(count):
        for rule in rules:
            yield rule._replace(torch=rule.torch.format(i=i), jax=rule.jax.format(i=i))


def _prefixed(rules: Sequence[Rule], prefix: str) -> Iterator[Rule]:
    for rule in rules:
        alias = rule.alias and f"{prefix}.{rule.alias}"
        yield Rule(f"{prefix}.{rule.torch}", f"{prefix}/{rule.jax}", rule.layout, alias)

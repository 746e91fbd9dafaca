"""What the original VITS calls things: tensors, attributes of config.json, symbols. Tables only; vits.py applies them.

Names are derived from those of the Hugging Face layout, of which mms_jax knows a finite list for every configuration.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mms_jax.checkpoint.vits import vits_param_shapes
from mms_jax.checkpoint.vits_rules import vits_table
from mms_jax.config import VitsConfig


class Norm(enum.Enum):
    """How a tensor is stored, where the original may have normed it."""

    NONE = "the tensor itself, on both sides"
    KEPT = "weight_g and weight_v on both sides"
    FOLDED = "weight_g and weight_v in the original, their product in the Hugging Face layout"


class Entry(NamedTuple):
    """One tensor on both sides; a normed one is called by the name of the product, ``….weight``."""

    hugging_face: str
    original: str
    shape: tuple[int, ...]  # in the Hugging Face layout
    original_shape: tuple[int, ...]
    norm: Norm


LAYER = r"^text_encoder\.encoder\.layers\.(\d+)\."
RENAMED = (  # applied in order, each to what the one before made of the name
    (r"^text_encoder\.embed_tokens\b", "enc_p.emb"),
    (r"^text_encoder\.project\b", "enc_p.proj"),
    (LAYER + r"attention\.([qkvo])\w*_proj\b", r"enc_p.encoder.attn_layers.\1.conv_\2"),
    (LAYER + r"attention\b", r"enc_p.encoder.attn_layers.\1"),
    (LAYER + r"feed_forward\b", r"enc_p.encoder.ffn_layers.\1"),
    (LAYER + r"layer_norm\b", r"enc_p.encoder.norm_layers_1.\1"),
    (LAYER + r"final_layer_norm\b", r"enc_p.encoder.norm_layers_2.\1"),
    (r"^duration_predictor\b", "dp"),
    (r"^(dp\..*?)conv_(pre|proj)\b", r"\1\2"),
    (r"^(dp\..*?)conv_dds\b", r"\1convs"),
    (r"^(dp\..*)convs_dilated\b", r"\1convs_sep"),
    (r"^(dp\..*)convs_pointwise\b", r"\1convs_1x1"),
    (r"^(dp\..*)translate$", r"\1m"),
    (r"^(dp\..*)log_scale$", r"\1logs"),
    (r"^posterior_encoder\b", "enc_q"),
    (r"^(flow|enc_q)\b(.*)wavenet\b", r"\1\2enc"),
    (r"^(flow|enc_q)\b(.*)conv_(pre|post|proj)\b", r"\1\2\3"),
    (r"^decoder\b", "dec"),
    (r"^dec\.upsampler\b", "dec.ups"),
    (r"^embed_speaker\b", "emb_g"),
    (r"^discriminator\.", ""),
    (r"\bfinal_conv\b", "conv_post"),
    (r"^((?:enc_p|dp)\..*norm\w*(?:\.\d+)?)\.weight$", r"\1.gamma"),
    (r"^((?:enc_p|dp)\..*norm\w*(?:\.\d+)?)\.bias$", r"\1.beta"),
)
# A flip without parameters stands behind every flow of the original, and counts; not behind the duration predictor's
# first, the affine one.
FLOW_INDEX = re.compile(r"^(flow\.flows|dp\.flows|dp\.post_flows)\.(\d+)")

ATTENTION = re.compile(r"attention\.\w+_proj\.weight$")  # linear maps there, convolutions of one tap in the original
FOLDED = re.compile(r"^decoder\.(upsampler|resblocks)\..*\.weight$")

# What a mismatch means: the first pattern that is found in one of the original's names gives the advice.
HINTS = (
    (r"^module\.", "They were saved from a parallel wrapper: take 'module.' off the names"),
    (r"^dec\.resblocks\.\d+\.convs\.", 'These are blocks of resblock "2", which the Hugging Face layout does not have'),
    (r"weight_(orig|u)$", "Discriminators with spectral norm have no counterpart; move the file away to do without"),
    (
        r"^discriminators",
        "Discriminators not of VITS's size, or in the wrong file; without them, the voice is converted alone",
    ),
    (r"^dp\.(?!cond)", "Do use_sdp and hidden_channels under 'model' in config.json match the weights?"),
    (r"^emb_g|\.cond", "Do n_speakers and gin_channels in config.json match the weights?"),
    (
        r"^dec\.",
        "Do inter_channels, upsample_initial_channel, upsample_rates, upsample_kernel_sizes, resblock_kernel_sizes and "
        "resblock_dilation_sizes under 'model' in config.json match the weights?",
    ),
    (r"^enc_q\.pre\.", "Do filter_length under 'data' and hidden_channels under 'model' in config.json match it?"),
    (
        r"^(enc_p|flow|enc_q)\.",
        "Do inter_channels, hidden_channels, filter_channels, n_heads, n_layers and kernel_size under 'model' in "
        "config.json match the weights? All else is fixed in VITS",
    ),
)

# Attributes under 'model' and what they are here.
MODEL_KEYS: Mapping[str, tuple[str, ...]] = {
    "inter_channels": ("flow_size",),
    "hidden_channels": ("hidden_size",),
    "filter_channels": ("ffn_dim",),
    "n_heads": ("num_attention_heads",),
    "n_layers": ("num_hidden_layers",),
    "kernel_size": ("ffn_kernel_size",),
    "p_dropout": ("hidden_dropout", "attention_dropout", "activation_dropout"),
    "resblock_kernel_sizes": ("resblock_kernel_sizes",),
    "resblock_dilation_sizes": ("resblock_dilation_sizes",),
    "upsample_rates": ("upsample_rates",),
    "upsample_initial_channel": ("upsample_initial_channel",),
    "upsample_kernel_sizes": ("upsample_kernel_sizes",),
}
OPTIONAL_KEYS: Mapping[str, tuple[str, Any]] = {  # with the original's default
    "gin_channels": ("speaker_embedding_size", 0),
    "use_sdp": ("use_stochastic_duration_prediction", True),
}
UNREAD_KEYS = frozenset({"n_layers_q", "use_spectral_norm"})  # no generator depends on them
RESBLOCK = "1"  # the original compares with this string: a number 1 would mean the other kind
NUM_DILATIONS = 3  # the original's blocks read as many
# What the original has no attribute for.
CONSTANTS: Mapping[str, Any] = {
    "window_size": 4,
    "use_bias": True,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
    "leaky_relu_slope": 0.1,
    "depth_separable_num_layers": 3,
    "duration_predictor_flow_bins": 10,
    "duration_predictor_tail_bound": 5.0,
    "duration_predictor_kernel_size": 3,
    "duration_predictor_num_flows": 4,
    "duration_predictor_filter_channels": 256,
    "prior_encoder_num_flows": 4,
    "prior_encoder_num_wavenet_layers": 4,
    "posterior_encoder_num_wavenet_layers": 16,
    "wavenet_kernel_size": 5,
    "wavenet_dilation_rate": 1,
}
# Likewise, but of training only: a model with others is spoken with the same.
TRAINING_CONSTANTS: Mapping[str, Any] = {"layerdrop": 0.0, "duration_predictor_dropout": 0.5, "wavenet_dropout": 0.0}
SEGMENT_SIZE = 8192  # samples, in training; the original's constructor asks for it even to speak

# The symbols of the voices that VITS was published with (LJ Speech, VCTK), which read English phonemes by espeak.
PHONEME_CLEANERS = ["english_cleaners2"]
PHONEMES = (
    *"_",
    *';:,.!?¡¿—…"«»“” ',
    *"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    *"ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃ",
    *"ˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'̩'ᵻ",
)

# Kernels of the discriminators, which have one size only: first the one of scales, then one for each period.
SCALES = ((16, 1, 15), (64, 4, 41), (256, 4, 41), (1024, 4, 41), (1024, 4, 41), (1024, 1024, 5), (1, 1024, 3))
PERIODS = ((32, 1, 5, 1), (128, 32, 5, 1), (512, 128, 5, 1), (1024, 512, 5, 1), (1024, 1024, 5, 1), (1, 1024, 3, 1))
NUM_PERIODS = 5


def original_name(name: str) -> str:
    """What the original calls a tensor of the Hugging Face layout."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return FLOW_INDEX.sub(_flow_index, name)


def _flow_index(match: re.Match[str]) -> str:
    flows, index = match[1], int(match[2])
    return f"{flows}.{2 * index if flows == 'flow.flows' else max(0, 2 * index - 1)}"


def voice_entries(config: VitsConfig) -> Iterator[Entry]:
    """Every tensor of a model of this configuration."""
    shapes = vits_param_shapes(config)
    for rule in vits_table(config).rules:
        name = rule.alias or rule.torch  # the alias is the old spelling of weight norms, which the original has
        if rule.jax in shapes and not name.endswith(".weight_g"):
            yield _entry(name, rule.layout.shape(shapes[rule.jax]))


def _entry(name: str, shape: tuple[int, ...]) -> Entry:
    norm = Norm.FOLDED if FOLDED.match(name) else Norm.NONE
    if name.endswith(".weight_v"):
        name, norm = f"{name.removesuffix('_v')}", Norm.KEPT
    original_shape = (*shape, 1) if ATTENTION.search(name) else shape
    return Entry(name, original_name(name), shape, original_shape, norm)


def discriminator_entries() -> Iterator[Entry]:
    """Every tensor of the discriminators, under the names that fine-tuning in the Hugging Face layout has for them."""
    for index, kernels in enumerate((SCALES, *[PERIODS] * NUM_PERIODS)):
        for layer, shape in enumerate(kernels):
            name = "final_conv" if layer == len(kernels) - 1 else f"convs.{layer}"
            stem = f"discriminator.discriminators.{index}.{name}"
            yield Entry(f"{stem}.weight", original_name(f"{stem}.weight"), shape, shape, Norm.KEPT)
            yield Entry(f"{stem}.bias", original_name(f"{stem}.bias"), shape[:1], shape[:1], Norm.NONE)

"""Model configurations: frozen dataclasses read from a checkpoint's ``config.json`` through an allow-list.

An attribute that is not on a list here is an error, because a model that ignores one may compute something else
than the checkpoint's author did. Field names and defaults are those of the Hugging Face configuration.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar, Self

from mms_jax.errors import ConfigError
from mms_jax.files import MAX_SIZE, coerce, listed, read_json, shorten


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Bookkeeping that every transformers config carries; none of it changes what a forward pass computes.
_BOOKKEEPING = _names("""
    _name_or_path architectures model_type transformers_version dtype torch_dtype return_dict
    output_hidden_states output_attentions is_encoder_decoder problem_type id2label label2id num_labels
    gradient_checkpointing _attn_implementation _attn_implementation_autoset attn_implementation use_cache
    torchscript finetuning_task tokenizer_class processor_class initializer_range feat_extract_dropout
    feat_quantizer_dropout num_feat_extract_layers chunk_size_feed_forward pruned_heads tie_word_embeddings
""")

# Heads and objectives that are not computed here; the encoder never reads what they are made of.
_OTHER_HEADS = _names("""
    codevector_dim contrastive_logits_temperature diversity_loss_weight num_codevector_groups
    num_codevectors_per_group num_negatives proj_codevector_dim tdnn_dim tdnn_kernel tdnn_dilation
    xvector_output_dim adapter_kernel_size adapter_stride num_adapter_layers output_hidden_size
""")

# Text-generation settings that transformers 4 wrote into every config.json; CTC models have no generation.
_GENERATION = _names("""
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
    top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens cross_attention_hidden_size add_cross_attention is_decoder decoder_start_token_id
    sep_token_id prefix task_specific_params tf_legacy_loss use_bfloat16 tie_encoder_decoder
""")

# Training settings of fairseq and of the first transformers releases, in wav2vec2 files of 2021; now nobody reads them.
_LEFTOVERS = _names("""
    hidden_dropout_prob mask_channel_length mask_channel_min_space mask_channel_other mask_channel_prob
    mask_channel_selection mask_time_min_space mask_time_other mask_time_selection no_mask_channel_overlap
    no_mask_time_overlap
""")

# Training settings of VITS: its losses and discriminators, which no checkpoint in the Hugging Face layout holds.
_VITS_TRAINING = _names("""
    segment_size hop_length discriminator_kernel_size discriminator_stride discriminator_periods
    discriminator_period_channels discriminator_scale_channels
""")

_LOADERS = {"wav2vec2": "load_asr, load_lid or load_encoder", "vits": "load_tts"}

# Attributes that would change the maths: accepted only at the value this library computes.
_FIXED: Mapping[str, tuple[Any, str]] = {
    "add_adapter": (False, "convolutional adapters after the encoder are not implemented"),
    "use_weighted_layer_sum": (False, "weighted layer sums are not implemented"),
    "depth_separable_channels": (2, "the duration flows have two channels, as the original's noise has"),
}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "feat_extract_norm": ("layer", "group"),
    "feat_extract_activation": ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
    "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
    "ctc_loss_reduction": ("sum", "mean"),
}


# Beyond this a file is damaged, and finding that out from the weights would take for ever: a model is traced first.
MAX_LAYERS = 200  # the largest wav2vec2 has 55, the voices of MMS have 86


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What all architectures' configurations have in common: the allow-list, checked types, the way back to a dict."""

    model_type: ClassVar[str]
    ignored: ClassVar[frozenset[str]]  # attributes that a config.json of this type may hold and nothing here reads

    def __post_init__(self):
        types = _types(type(self))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, coerce(field.name, getattr(self, field.name), types[field.name]))
        for name, allowed in _CHOICES.items():
            if getattr(self, name, allowed[0]) not in allowed:
                raise ConfigError(f"{name} is {shorten(getattr(self, name))}; supported: {', '.join(allowed)}")
        self._check_shapes()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> Self:
        """Read a parsed ``config.json``; ``source`` names it in errors.

        Raises:
            ConfigError: another model type, an attribute not on the allow-list, or a value that is not computed.
        """
        model_type = values.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            hint = next((f"; use {loader}" for name, loader in _LOADERS.items() if name == model_type), "")
            raise ConfigError(f"{source}: model_type is {shorten(model_type)}, not {cls.model_type!r}{hint}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known - cls.ignored - _BOOKKEEPING - _GENERATION)
        if unknown:
            raise ConfigError(
                f"{source}: unknown attribute(s) {listed(unknown)}; they may change what the model computes. "
                "Remove them if they do not"
            )
        for name, (expected, reason) in _FIXED.items():
            if values.get(name, expected) != expected:
                raise ConfigError(
                    f"{source}: {name} is {shorten(values[name])}; only {expected!r} is supported: {reason}"
                )
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Self:
        """Read a ``config.json``; raises ConfigError naming the file when it is not one this library computes."""
        return cls.from_dict(read_json(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The attributes as they stand in ``config.json``, ready for ``json.dumps``."""
        return {name: _as_json(value) for name, value in dataclasses.asdict(self).items()} | {
            "model_type": self.model_type
        }

    def replace(self, **changes: Any) -> Self:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def _check_shapes(self) -> None:
        """Raise ConfigError for attributes that contradict each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config(ModelConfig):
    """Architecture of a wav2vec2 checkpoint; names and defaults are those of Hugging Face's ``Wav2Vec2Config``."""

    model_type: ClassVar[str] = "wav2vec2"
    ignored: ClassVar[frozenset[str]] = _OTHER_HEADS | _LEFTOVERS | {"add_adapter", "use_weighted_layer_sum"}

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    adapter_attn_dim: int | None = None
    classifier_proj_size: int = 256

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_adapters(self) -> bool:
        """Whether layers carry per-language adapters; post-norm encoders never do, whatever adapter_attn_dim says."""
        return self.do_stable_layer_norm and self.adapter_attn_dim is not None

    @property
    def has_spec_embed(self) -> bool:
        """Whether a checkpoint of this config holds ``masked_spec_embed``, the vector that time masking writes."""
        return self.mask_time_prob > 0 or self.mask_feature_prob > 0

    @property
    def samples_per_frame(self) -> int:
        """Hop between frames, in samples (320 for every MMS model: 20 ms at 16 kHz)."""
        return math.prod(self.conv_stride)

    @property
    def min_samples(self) -> int:
        """Fewest samples that give one frame (400 for every MMS model: 25 ms)."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def num_frames(self, num_samples: Any) -> Any:
        """Frames that come out of ``num_samples`` samples: an int, or an integer array elementwise; never negative."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples * (num_samples > 0)

    def _check_shapes(self) -> None:
        lengths = {len(self.conv_dim), len(self.conv_stride), len(self.conv_kernel)}
        if len(lengths) != 1 or 0 in lengths:
            raise ConfigError("conv_dim, conv_stride and conv_kernel must have the same length, at least 1")
        _check_depth(self.num_hidden_layers + len(self.conv_dim))
        _check_divisible(self, "hidden_size", by="num_attention_heads")
        _check_divisible(self, "hidden_size", by="num_conv_pos_embedding_groups")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id {self.pad_token_id} (the CTC blank) is outside vocab_size {self.vocab_size}"
            )


MIN_SPEAKING_RATE, MAX_SPEAKING_RATE = 0.1, 10.0  # ten times either way: beyond, nothing can be understood
MAX_SPLINE_BINS = 1_000  # each has at least a thousandth of the spline's width; transformers refuses more, too


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitsConfig(ModelConfig):
    """Architecture of a VITS checkpoint; names and defaults are those of Hugging Face's ``VitsConfig``."""

    model_type: ClassVar[str] = "vits"
    ignored: ClassVar[frozenset[str]] = _VITS_TRAINING | {"depth_separable_channels", "pad_token_id"}

    vocab_size: int = 38
    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 2
    window_size: int = 4
    use_bias: bool = True
    ffn_dim: int = 768
    layerdrop: float = 0.1  # only kept for the files we write: in transformers' training, it leaves layers out
    ffn_kernel_size: int = 3
    flow_size: int = 192
    spectrogram_bins: int = 513
    hidden_act: str = "relu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    use_stochastic_duration_prediction: bool = True
    num_speakers: int = 1
    speaker_embedding_size: int = 0
    upsample_initial_channel: int = 512
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    leaky_relu_slope: float = 0.1
    depth_separable_num_layers: int = 3
    duration_predictor_flow_bins: int = 10
    duration_predictor_tail_bound: float = 5.0
    duration_predictor_kernel_size: int = 3
    duration_predictor_dropout: float = 0.5
    duration_predictor_num_flows: int = 4
    duration_predictor_filter_channels: int = 256
    prior_encoder_num_flows: int = 4
    prior_encoder_num_wavenet_layers: int = 4
    posterior_encoder_num_wavenet_layers: int = 16
    wavenet_kernel_size: int = 5
    wavenet_dilation_rate: int = 1
    wavenet_dropout: float = 0.0
    speaking_rate: float = 1.0
    noise_scale: float = 0.667
    noise_scale_duration: float = 0.8
    sampling_rate: int = 16_000

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the text encoder."""
        return self.hidden_size // self.num_attention_heads

    @property
    def hop_length(self) -> int:
        """Samples per frame: 256, which is 16 ms, for every MMS model."""
        return math.prod(self.upsample_rates)

    @property
    def num_layers(self) -> int:
        """Layers of all parts, one after another."""
        return (
            self.num_hidden_layers
            + self.prior_encoder_num_flows * self.prior_encoder_num_wavenet_layers
            + self.posterior_encoder_num_wavenet_layers
            + self.duration_predictor_num_flows * self.depth_separable_num_layers
            + len(self.upsample_rates) * sum(map(len, self.resblock_dilation_sizes))
        )

    def to_dict(self) -> dict[str, Any]:
        """The attributes as they stand in ``config.json``, ready for ``json.dumps``."""
        return super().to_dict() | {"depth_separable_channels": 2}

    def _check_shapes(self) -> None:
        _check_divisible(self, "hidden_size", by="num_attention_heads")
        _check_depth(self.num_layers)
        stages, kernels = len(self.upsample_rates), self.upsample_kernel_sizes
        for condition, message in (
            (stages > 0, "upsample_rates must not be empty"),
            (len(kernels) == stages, "upsample_kernel_sizes and upsample_rates differ in length"),
            (
                # not strict: that the lengths agree is the condition above, whose message comes first
                all(k >= r and (k - r) % 2 == 0 for k, r in zip(kernels, self.upsample_rates, strict=False)),
                "each upsample kernel must be its rate, or exceed it by an even number",
            ),
            (
                self.upsample_initial_channel % 2**stages == 0,
                f"upsample_initial_channel must be divisible by 2^{stages}, one halving for each upsample rate",
            ),
            (
                len(self.resblock_kernel_sizes) == len(self.resblock_dilation_sizes) > 0,
                "resblock_kernel_sizes and resblock_dilation_sizes must have the same length, at least 1",
            ),
            (
                all(k % 2 for k in (*self.resblock_kernel_sizes, self.wavenet_kernel_size)),
                "resblock_kernel_sizes and wavenet_kernel_size must be odd",
            ),
            (self.duration_predictor_kernel_size % 2 == 1, "duration_predictor_kernel_size must be odd"),
            (
                # multiplied out only where that is a number at all: layers are few by now
                self.duration_predictor_kernel_size**self.depth_separable_num_layers <= MAX_SIZE,
                f"the dilations of {self.depth_separable_num_layers} depth_separable_num_layers pass {MAX_SIZE:,}",
            ),
            (
                self.wavenet_dilation_rate
                ** max(self.prior_encoder_num_wavenet_layers, self.posterior_encoder_num_wavenet_layers)
                <= MAX_SIZE,
                f"wavenet_dilation_rate {self.wavenet_dilation_rate} makes dilations that pass {MAX_SIZE:,}",
            ),
            (self.flow_size % 2 == 0, "flow_size must be even: the coupling layers halve it"),
            (
                MIN_SPEAKING_RATE <= self.speaking_rate <= MAX_SPEAKING_RATE,
                f"speaking_rate is {self.speaking_rate}; it must be in {MIN_SPEAKING_RATE:g} … {MAX_SPEAKING_RATE:g}",
            ),
            (self.duration_predictor_tail_bound > 0, "duration_predictor_tail_bound must be over 0"),
            (
                self.duration_predictor_flow_bins <= MAX_SPLINE_BINS,
                f"duration_predictor_flow_bins must be at most {MAX_SPLINE_BINS:,}: none is narrower than a thousandth",
            ),
            (
                self.num_speakers == 1 or self.speaker_embedding_size > 0,
                "several speakers need a speaker_embedding_size",
            ),
        ):
            if not condition:
                raise ConfigError(message)


def _check_divisible(config: ModelConfig, name: str, *, by: str) -> None:
    value, divisor = getattr(config, name), getattr(config, by)
    if value % divisor:
        raise ConfigError(f"{name} {value} is not divisible by {by} {divisor}")


def _check_depth(num_layers: int) -> None:
    if num_layers > MAX_LAYERS:
        raise ConfigError(f"it describes {shorten(num_layers)} layers; no model has more than {MAX_LAYERS}")


@functools.cache
def _types(config: type[ModelConfig]) -> Mapping[str, Any]:
    return typing.get_type_hints(config)


def _as_json(value: Any) -> Any:
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value

"""Model configurations: frozen dataclasses read from a checkpoint's ``config.json`` through an allow-list.

An attribute that is not on a list here is an error, because a model that ignores one may compute something else
than the checkpoint's author did. Field names and defaults are those of the Hugging Face configuration.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeGuard

from mms_jax.errors import ConfigError
from mms_jax.files import read_json

# Bookkeeping that every transformers config carries; none of it changes what a forward pass computes.
_BOOKKEEPING = frozenset(
    [
        "_name_or_path",
        "architectures",
        "model_type",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "is_encoder_decoder",
        "problem_type",
        "id2label",
        "label2id",
        "num_labels",
        "gradient_checkpointing",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "use_cache",
        "torchscript",
        "finetuning_task",
        "tokenizer_class",
        "processor_class",
        "initializer_range",
        "feat_extract_dropout",
        "feat_quantizer_dropout",
        "num_feat_extract_layers",
        "chunk_size_feed_forward",
        "pruned_heads",
        "tie_word_embeddings",
    ]
)

# Heads and objectives other than CTC: read by their own modules, never by the encoder or the CTC head.
_OTHER_HEADS = frozenset(
    [
        "classifier_proj_size",
        "codevector_dim",
        "contrastive_logits_temperature",
        "diversity_loss_weight",
        "num_codevector_groups",
        "num_codevectors_per_group",
        "num_negatives",
        "proj_codevector_dim",
        "tdnn_dim",
        "tdnn_kernel",
        "tdnn_dilation",
        "xvector_output_dim",
        "adapter_kernel_size",
        "adapter_stride",
        "num_adapter_layers",
        "output_hidden_size",
    ]
)

# Text-generation settings that transformers 4 wrote into every config.json; CTC models have no generation.
_GENERATION = frozenset(
    [
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "cross_attention_hidden_size",
        "add_cross_attention",
        "is_decoder",
        "decoder_start_token_id",
        "sep_token_id",
        "prefix",
        "task_specific_params",
        "tf_legacy_loss",
        "use_bfloat16",
        "tie_encoder_decoder",
    ]
)

# Training settings of fairseq and of the first transformers releases, in wav2vec2 files of 2021; now nobody reads them.
_LEFTOVERS = frozenset(
    [
        "hidden_dropout_prob",
        "mask_channel_length",
        "mask_channel_min_space",
        "mask_channel_other",
        "mask_channel_prob",
        "mask_channel_selection",
        "mask_time_min_space",
        "mask_time_other",
        "mask_time_selection",
        "no_mask_channel_overlap",
        "no_mask_time_overlap",
    ]
)

# Attributes that would change the maths: accepted only at the value this library computes.
_FIXED: Mapping[str, tuple[Any, str]] = {
    "add_adapter": (False, "convolutional adapters after the encoder are not implemented"),
    "use_weighted_layer_sum": (False, "weighted layer sums are not implemented"),
}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "feat_extract_norm": ("layer", "group"),
    "feat_extract_activation": ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
    "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
    "ctc_loss_reduction": ("sum", "mean"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config:
    """Architecture of a wav2vec2 checkpoint; names and defaults are those of Hugging Face's ``Wav2Vec2Config``."""

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

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _coerce(field.name, getattr(self, field.name)))
        self._check_choices()
        self._check_shapes()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> Wav2Vec2Config:
        """Read a parsed ``config.json``; ``source`` names it in errors.

        Raises:
            ConfigError: another model type, an attribute not on the allow-list, or a value that is not computed.
        """
        model_type = values.get("model_type", "wav2vec2")
        if model_type != "wav2vec2":
            raise ConfigError(f"{source}: model_type is {model_type!r}; this library reads 'wav2vec2' here")
        known = {field.name for field in dataclasses.fields(cls)}
        ignored = _BOOKKEEPING | _OTHER_HEADS | _GENERATION | _LEFTOVERS | _FIXED.keys()
        unknown = sorted(set(values) - known - ignored)
        if unknown:
            raise ConfigError(
                f"{source}: unknown attribute(s) {', '.join(unknown)}; they may change what the model computes. "
                "Remove them if they do not"
            )
        for name, (expected, reason) in _FIXED.items():
            if values.get(name, expected) != expected:
                raise ConfigError(f"{source}: {name} is {values[name]!r}; only {expected!r} is supported: {reason}")
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Wav2Vec2Config:
        """Read a ``config.json``; raises ConfigError naming the file when it is not one this library computes."""
        return cls.from_dict(read_json(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The attributes as they stand in ``config.json``, ready for ``json.dumps``."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()} | {
            "model_type": "wav2vec2"
        }

    def replace(self, **changes: Any) -> Wav2Vec2Config:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

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

    def _check_choices(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; supported: {', '.join(allowed)}")

    def _check_shapes(self) -> None:
        lengths = {len(self.conv_dim), len(self.conv_stride), len(self.conv_kernel)}
        if len(lengths) != 1 or 0 in lengths:
            raise ConfigError("conv_dim, conv_stride and conv_kernel must have the same length, at least 1")
        for name, divisor in (("num_attention_heads", self.num_attention_heads), *self._groups()):
            if self.hidden_size % divisor:
                raise ConfigError(f"hidden_size {self.hidden_size} is not divisible by {name} {divisor}")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id {self.pad_token_id} (the CTC blank) is outside vocab_size {self.vocab_size}"
            )

    def _groups(self):
        return (("num_conv_pos_embedding_groups", self.num_conv_pos_embedding_groups),)


_TYPES = typing.get_type_hints(Wav2Vec2Config)
_MAY_BE_ZERO = frozenset({"pad_token_id", "bos_token_id", "eos_token_id"})


def _coerce(name: str, value: Any) -> Any:
    """Check a value against its field's type: a config.json can hold anything."""
    expected = _TYPES[name]
    if value is None and type(None) in typing.get_args(expected):
        return None
    if expected is bool or expected is str:
        valid = isinstance(value, expected)
    elif expected is float:
        valid = _is_number(value) and 0 <= value < math.inf
    elif expected == tuple[int, ...]:
        value = tuple(value) if isinstance(value, list) else value
        valid = isinstance(value, tuple) and all(_is_int(item) and item > 0 for item in value)
    else:
        valid = _is_int(value) and (value > 0 or (value == 0 and (name in _MAY_BE_ZERO or "min_masks" in name)))
    if not valid:
        raise ConfigError(f"{name} is {value!r}, which is not a valid {getattr(expected, '__name__', expected)}")
    return value


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

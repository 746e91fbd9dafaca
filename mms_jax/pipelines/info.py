"""What a checkpoint is, told from its small files and the weights' headers; no tensor is read."""

from __future__ import annotations

import math
from os import PathLike

from mms_jax.checkpoint import find_licence, load_processor, open_source, open_weights, require
from mms_jax.config import Wav2Vec2Config
from mms_jax.pipelines.adapters import available_languages

_LANGUAGES_SHOWN = 12


def describe(model: str | PathLike[str]) -> str:
    """A few lines about a recognition checkpoint: architecture, size, dtype, languages, licence."""
    source = open_source(model)
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    processor = load_processor(source)
    tensors = open_weights(source)
    languages = available_languages(source, config, processor.tokenizer)
    num_parameters = sum(math.prod(info.shape) for info in tensors.values())
    num_bytes = sum(info.num_bytes for info in tensors.values())
    norms = "pre-norm" if config.do_stable_layer_norm else "post-norm"
    adapters = f"{config.adapter_attn_dim} wide in every layer" if config.has_adapters else "none"
    shown = ", ".join(languages[:_LANGUAGES_SHOWN]) + (" …" if len(languages) > _LANGUAGES_SHOWN else "")
    rows = {
        "model": source.name,
        "task": "speech recognition (wav2vec2 with CTC)",
        "parameters": f"{num_parameters:,} in {num_bytes / 1e6:,.1f} MB ({_dtypes(tensors)})",
        "encoder": f"{config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {norms}; {config.feat_extract_norm}-norm features",
        "frames": f"one per {config.samples_per_frame / 16:.0f} ms, of {config.min_samples / 16:.0f} ms of audio",
        "adapters": adapters,
        "languages": f"{len(languages)}: {shown}" if languages else "one, unnamed (a single vocabulary)",
        "blank": f"id {config.pad_token_id}",
        "licence": find_licence(source) or "not stated in the checkpoint; the published MMS weights are CC-BY-NC 4.0",
    }
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items())


def model_languages(model: str | PathLike[str]) -> list[str]:
    """The tags of the languages a checkpoint recognises, without reading its weights."""
    source = open_source(model)
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    return available_languages(source, config, load_processor(source).tokenizer)


def _dtypes(tensors) -> str:
    return ", ".join(sorted({info.dtype for info in tensors.values()}))

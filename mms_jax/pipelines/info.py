"""What a checkpoint is, told from its small files and the weights' headers; no tensor is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from typing import Any

from mms_jax.checkpoint import (
    Source,
    find_licence,
    load_processor,
    load_text_tokenizer,
    open_source,
    open_weights,
    read_labels,
    require,
)
from mms_jax.config import VitsConfig, Wav2Vec2Config
from mms_jax.files import read_json
from mms_jax.pipelines.adapters import available_languages

_LANGUAGES_SHOWN = 12


def describe(model: str | PathLike[str]) -> str:
    """A few lines about a checkpoint: architecture, size, dtype, languages, licence."""
    source = open_source(model)
    config = read_json(require(source, "config.json"))
    tensors = open_weights(source)
    num_parameters = sum(math.prod(info.shape) for info in tensors.values())
    num_bytes = sum(info.num_bytes for info in tensors.values())
    task, rows = _task(config, tensors)(source)
    licence = find_licence(source) or "not stated in the checkpoint; the published MMS weights are CC-BY-NC 4.0"
    size = f"{num_parameters:,} in {num_bytes / 1e6:,.1f} MB ({_dtypes(tensors)})"
    rows = {"model": source.name, "task": task, "parameters": size, **rows, "licence": licence}
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items())


def _task(config: Mapping[str, Any], tensors: Collection[str]) -> Callable[[Source], tuple[str, Mapping[str, str]]]:
    """What a checkpoint is for, told by the head it has."""
    if config.get("model_type") == VitsConfig.model_type:
        return _synthesis
    if "lm_head.weight" in tensors:
        return _recognition
    return _identification if "classifier.weight" in tensors else _encoding


def _synthesis(source: Source) -> tuple[str, Mapping[str, str]]:
    c = VitsConfig.from_file(require(source, "config.json"))
    tokenizer = load_text_tokenizer(source, num_symbols=c.vocab_size)
    durations = "stochastic" if c.use_stochastic_duration_prediction else "deterministic"
    return "speech synthesis (VITS)", {
        "encoder": f"{c.num_hidden_layers} layers of width {c.hidden_size}, {durations} durations",
        "audio": f"{c.sampling_rate:,} Hz, one frame per {1000 * c.hop_length / c.sampling_rate:g} ms",
        "language": f"{tokenizer.language or 'not stated'}{', romanised with uroman' if tokenizer.is_uroman else ''}",
        "symbols": str(c.vocab_size),
        "speakers": str(c.num_speakers),
    }


def _recognition(source: Source) -> tuple[str, Mapping[str, str]]:
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    languages = available_languages(source, config, load_processor(source).tokenizer)
    return "speech recognition (wav2vec2 with CTC)", {
        **_encoder(config),
        "languages": _some(languages) if languages else "one, unnamed (a single vocabulary)",
        "blank": f"id {config.pad_token_id}",
    }


def _identification(source: Source) -> tuple[str, Mapping[str, str]]:
    path = require(source, "config.json")
    config, labels = Wav2Vec2Config.from_file(path), read_labels(read_json(path), source=str(path))
    return "language identification (wav2vec2 with a classifier)", {
        **_encoder(config),
        "languages": _some(labels),
        "classifier": f"mean of {config.classifier_proj_size} features over time",
    }


def _encoding(source: Source) -> tuple[str, Mapping[str, str]]:
    config = Wav2Vec2Config.from_file(require(source, "config.json"))
    return "speech encoding (wav2vec2 without a head for a task)", _encoder(config)


def _encoder(c: Wav2Vec2Config) -> Mapping[str, str]:
    norms = "pre-norm" if c.do_stable_layer_norm else "post-norm"
    return {
        "encoder": f"{c.num_hidden_layers} layers of width {c.hidden_size}, "
        f"{c.num_attention_heads} heads, {norms}; {c.feat_extract_norm}-norm features",
        "frames": f"one per {c.samples_per_frame / 16:.0f} ms, of {c.min_samples / 16:.0f} ms of audio",
        "adapters": f"{c.adapter_attn_dim} wide in every layer" if c.has_adapters else "none",
    }


def _some(languages: Sequence[str]) -> str:
    shown = ", ".join(languages[:_LANGUAGES_SHOWN]) + (" …" if len(languages) > _LANGUAGES_SHOWN else "")
    return f"{len(languages)}: {shown}"


def model_languages(model: str | PathLike[str]) -> list[str]:
    """The tags of the languages a checkpoint recognises or identifies, without reading its weights."""
    source = open_source(model)
    path = require(source, "config.json")
    values, config = read_json(path), Wav2Vec2Config.from_file(path)
    if values.get("architectures") == ["Wav2Vec2ForSequenceClassification"]:
        return list(read_labels(values, source=str(path)))
    return available_languages(source, config, load_processor(source).tokenizer)


def _dtypes(tensors) -> str:
    return ", ".join(sorted({info.dtype for info in tensors.values()}))

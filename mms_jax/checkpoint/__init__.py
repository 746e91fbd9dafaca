"""Checkpoints on disk: the only place that knows PyTorch parameter names."""

from mms_jax.checkpoint.hub import Directory, Source, open_source, require
from mms_jax.checkpoint.processor import (
    Processor,
    find_licence,
    load_processor,
    load_text_tokenizer,
    save_processor,
)
from mms_jax.checkpoint.vits import VitsCheckpoint, load_vits, save_vits, vits_param_shapes
from mms_jax.checkpoint.wav2vec2 import (
    Checkpoint,
    adapter_filename,
    find_adapter,
    load_adapter,
    load_ctc,
    param_shapes,
    save_adapter,
    save_ctc,
)
from mms_jax.checkpoint.weights import open_weights

__all__ = [
    "Checkpoint",
    "Directory",
    "Processor",
    "Source",
    "VitsCheckpoint",
    "adapter_filename",
    "find_adapter",
    "find_licence",
    "load_adapter",
    "load_ctc",
    "load_processor",
    "load_text_tokenizer",
    "load_vits",
    "open_source",
    "open_weights",
    "param_shapes",
    "require",
    "save_adapter",
    "save_ctc",
    "save_processor",
    "save_vits",
    "vits_param_shapes",
]

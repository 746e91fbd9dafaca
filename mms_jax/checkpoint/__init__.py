"""Checkpoints on disk: the only place that knows PyTorch parameter names."""

from mms_jax.checkpoint.hub import Source, open_source, require
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

__all__ = [
    "Checkpoint",
    "Source",
    "adapter_filename",
    "find_adapter",
    "load_adapter",
    "load_ctc",
    "open_source",
    "param_shapes",
    "require",
    "save_adapter",
    "save_ctc",
]

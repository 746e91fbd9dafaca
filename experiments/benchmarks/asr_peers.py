"""What recognition is compared with: transformers in its ways, ONNX Runtime with the same weights."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

import mms_jax
from experiments.benchmarks.onnx_export import exported

RATE = 16_000
Waves = Sequence[np.ndarray]


class Recognizer(NamedTuple):
    """A way to get from waveforms to texts."""

    library: str
    setting: str
    dtype: str
    logits: Callable[[Waves], Sequence[np.ndarray] | np.ndarray]  # [T, V] each, of clips of one length
    texts: Callable[[Waves], Sequence[str]]


def read(processor: Any, logits: Any) -> list[str]:
    """The texts of logits, as transformers' documentation reads them."""
    return processor.batch_decode(logits.argmax(-1))


def from_torch(directory: Path, dtype: str, device: torch.device, *, compiled: bool = False) -> Recognizer:
    """transformers: SDPA, which is its default, and the same with its layers compiled."""
    processor: Any = transformers.Wav2Vec2Processor.from_pretrained(directory)
    model: Any = transformers.Wav2Vec2ForCTC.from_pretrained(directory, dtype=getattr(torch, dtype))
    model = model.eval().to(device)
    if compiled:
        compile_layers(model)

    def forward(waves: Waves) -> torch.Tensor:
        inputs = processor(list(waves), sampling_rate=RATE, return_tensors="pt", padding=True)
        values = inputs.input_values.to(device, model.dtype)
        with torch.inference_mode():
            return model(values, attention_mask=inputs.attention_mask.to(device)).logits

    return Recognizer(
        "transformers",
        "torch.compile" if compiled else "",
        dtype,
        lambda waves: forward(waves).float().cpu().numpy(),
        lambda waves: read(processor, forward(waves)),
    )


def compile_layers(model: Any) -> None:
    """Have every layer compiled: one program for all of them, where the whole model would take minutes."""
    torch._dynamo.reset()
    for layer in model.wav2vec2.encoder.layers:
        layer.compile(dynamic=False)


def from_onnx(directory: Path, form: str, *, threads: int) -> Recognizer:
    """ONNX Runtime with all its graph optimisations; features and texts as transformers makes them."""
    onnxruntime = importlib.import_module("onnxruntime")
    processor: Any = transformers.Wav2Vec2Processor.from_pretrained(directory)
    session = onnx_session(onnxruntime, exported(directory, form), threads=threads)

    def forward(waves: Waves) -> np.ndarray:
        inputs = processor(list(waves), sampling_rate=RATE, return_tensors="np", padding=True)
        return session.run(None, {"x": inputs.input_values})[0]

    dtype, _, variant = form.partition("-")
    return Recognizer("ONNX Runtime", variant, dtype, forward, lambda waves: read(processor, forward(waves)))


def onnx_session(onnxruntime: Any, path: Path, *, threads: int) -> Any:
    """A session on the CPU, as many threads as everybody has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def from_ours(directory: Path, dtype: str) -> Recognizer:
    """This library."""
    asr = mms_jax.load_asr(directory, dtype=dtype)

    def texts(waves: Waves) -> list[str]:
        return [result.text for result in asr.transcribe(list(waves), batch_size=len(waves))]

    return Recognizer("mms_jax", "", dtype, lambda waves: asr.logits(list(waves), batch_size=len(waves)), texts)


def first_call(recognizer: Recognizer, waves: Waves) -> float:
    """Seconds of the first texts: whatever is compiled is compiled."""
    start = time.perf_counter()
    recognizer.texts(waves)
    return time.perf_counter() - start

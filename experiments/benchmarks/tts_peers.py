"""What synthesis is compared with: transformers in its ways, ONNX Runtime and sherpa-onnx with the same weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

import mms_jax
from experiments.benchmarks.asr_peers import onnx_session
from experiments.benchmarks.onnx_export import VOICE_INPUTS, exported

# All draw their noise as ever, each its own, and scale it by this: too little to change float32 means or durations, so
# that results can be compared. sherpa-onnx takes no noise from outside.
NOISE = 1e-9

Texts = Sequence[str]


class Speaker(NamedTuple):
    """A way to get from texts to waveforms [S], float32."""

    library: str
    setting: str
    dtype: str
    speak: Callable[[Texts], list[np.ndarray]]


class Rounded(torch.nn.Module):
    """A part of a model in bfloat16, between others in float32."""

    def __init__(self, part: torch.nn.Module):
        super().__init__()
        self.part = part.bfloat16()

    def forward(self, *arguments: Any, **settings: Any) -> torch.Tensor:
        """The same for anybody outside."""
        low = [one.bfloat16() if torch.is_tensor(one) else one for one in arguments]
        return self.part(*low, **settings).float()


def from_torch(
    directory: Path, dtype: str, device: torch.device, *, compiled: bool = False, one_by_one: bool = False
) -> Speaker:
    """transformers; in bfloat16 as in this library, what is before the flow stays float32."""
    tokenizer: Any = transformers.VitsTokenizer.from_pretrained(directory)
    model: Any = transformers.VitsModel.from_pretrained(directory).eval()
    model.noise_scale = model.noise_scale_duration = NOISE
    if dtype == "bfloat16":
        model.flow, model.decoder = Rounded(model.flow), Rounded(model.decoder)
    if compiled:
        torch._dynamo.reset()
        model.decoder.compile(dynamic=False)
    model = model.to(device)

    def batch(texts: Texts) -> list[np.ndarray]:
        inputs = tokenizer(list(texts), return_tensors="pt", padding=True).to(device)
        with torch.inference_mode():
            output = model(**inputs)
        lengths = output.sequence_lengths.tolist()
        return [row[:length] for row, length in zip(output.waveform.cpu().numpy(), lengths, strict=True)]

    setting = ", ".join(["torch.compile"] * compiled + ["one by one"] * one_by_one)
    speak = (lambda texts: [batch([text])[0] for text in texts]) if one_by_one else batch
    return Speaker("transformers", setting, dtype, speak)


def from_onnx(directory: Path, *, threads: int) -> Speaker:
    """ONNX Runtime, text by text: padding would cost more than batches gain."""
    onnxruntime = importlib.import_module("onnxruntime")
    tokenizer: Any = transformers.VitsTokenizer.from_pretrained(directory)
    session = onnx_session(onnxruntime, exported(directory, "float32"), threads=threads)
    noise, one = np.full(1, NOISE, np.float32), np.ones(1, np.float32)

    def speak(text: str) -> np.ndarray:
        symbols = np.asarray(tokenizer(text)["input_ids"])[None]
        values = (symbols, np.array([symbols.shape[1]]), noise, one, noise)
        return session.run(None, dict(zip(VOICE_INPUTS, values, strict=True)))[0][0, 0]

    return Speaker("ONNX Runtime", "", "float32", lambda texts: [speak(text) for text in texts])


def from_sherpa(directory: Path, *, threads: int) -> Speaker:
    """sherpa-onnx with the graph that ONNX Runtime has, text by text, which is all it can."""
    sherpa: Any = importlib.import_module("sherpa_onnx")
    path = exported(directory, "float32")
    voice = sherpa.OfflineTtsVitsModelConfig(
        model=str(path), tokens=str(path.parent / "tokens.txt"), noise_scale=NOISE, noise_scale_w=NOISE
    )
    model = sherpa.OfflineTtsModelConfig(vits=voice, num_threads=threads, provider="cpu")
    tts = sherpa.OfflineTts(sherpa.OfflineTtsConfig(model=model, silence_scale=1.0))  # pauses as the model has them

    def speak(text: str) -> np.ndarray:
        return np.asarray(tts.generate(text).samples, np.float32)

    return Speaker("sherpa-onnx", "", "float32", lambda texts: [speak(text) for text in texts])


def from_ours(directory: Path, dtype: str) -> Speaker:
    """This library."""
    tts = mms_jax.load_tts(directory, dtype=dtype)

    def speak(texts: Texts) -> list[np.ndarray]:
        speeches = tts.synthesize(list(texts), noise_scale=NOISE, noise_scale_duration=NOISE)
        return [speech.waveform for speech in speeches]

    return Speaker("mms_jax", "", dtype, speak)

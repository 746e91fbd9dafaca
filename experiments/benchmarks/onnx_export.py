"""The checkpoints of the benchmarks for ONNX Runtime and sherpa-onnx: the same weights, exported once and kept.

    python -m experiments.benchmarks.onnx_export .work/bench-1b .work/onnx-bench-1b/float32.onnx
    python -m experiments.benchmarks.onnx_export .work/bench-1b .work/onnx-bench-1b/int8-s8.onnx

The benchmarks run this themselves, in a process of its own: exporting the 1B takes gigabytes.
Weight norms are folded before, and attention is plain products, for which ONNX Runtime has the faster kernels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.utils import parametrize

# Dynamic quantisation of matrix products with constant weights, ONNX Runtime's recipe for transformers: what weights
# are stored as, and whether every output has a scale of its own. reduce_range is for processors without VNNI, whose
# 16-bit sums overflow.
INT8 = {
    "s8": {"weight_type": "QInt8", "per_channel": True},
    "u8": {"weight_type": "QUInt8", "per_channel": True},
    "s8-tensor": {"weight_type": "QInt8", "per_channel": False},
    "s8-reduced": {"weight_type": "QInt8", "per_channel": True, "reduce_range": True},
}
VOICE_INPUTS = (
    "x",
    "x_length",
    "noise_scale",
    "length_scale",
    "noise_scale_w",
)  # their order is sherpa-onnx's interface


def exported(directory: Path, form: str) -> Path:
    """The ONNX file of a checkpoint, made if it is not there; ``form``: float32, or int8- and a key of ``INT8``."""
    path = directory.parent / f"onnx-{directory.name}" / f"{form}.onnx"
    if not path.exists() or path.stat().st_mtime < (directory / "model.safetensors").stat().st_mtime:
        path.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-W", "ignore", "-m", "experiments.benchmarks.onnx_export", directory, path]
        run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(
                f"exporting {directory} to {path} failed: {(run.stderr.strip() or '?').splitlines()[-1]}"
            )
    return path


def main() -> None:
    """Export one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    architecture = json.loads((options.directory / "config.json").read_text())["model_type"]
    form = options.path.stem
    if form != "float32":
        quantize(exported(options.directory, "float32"), options.path, form.removeprefix("int8-"))
    elif architecture == "vits":
        export_voice(options.directory, options.path)
    else:
        export_recognizer(options.directory, options.path)


def fold(model: torch.nn.Module) -> None:
    """Make weights of their norms and directions, once and for all."""
    for part in model.modules():
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight")


class Recognizer(torch.nn.Module):
    """Normalised samples [B, S] of equal lengths to logits [B, T, V]."""

    def __init__(self, directory: Path):
        super().__init__()
        self.model: Any = transformers.Wav2Vec2ForCTC.from_pretrained(directory, attn_implementation="eager")
        fold(self.model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.model(x).logits


def export_recognizer(directory: Path, path: Path) -> None:
    """Write the graph, and its weights beside it."""
    any_size = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        torch.onnx.export(
            Recognizer(directory).eval(),
            (torch.randn(2, 48_000),),
            str(path),
            dynamo=True,
            external_data=True,
            input_names=["x"],
            output_names=["logits"],
            dynamic_shapes={"x": {0: any_size, 1: any_size}},
        )


def quantize(source: Path, path: Path, variant: str) -> None:
    """Write the graph with 8-bit weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    settings: dict[str, Any] = dict(INT8[variant])
    weight_type = getattr(QuantType, str(settings.pop("weight_type")))
    quantize_dynamic(
        source,
        path,
        op_types_to_quantize=["MatMul"],
        weight_type=weight_type,
        use_external_data_format=True,
        **settings,
    )


class Voice(torch.nn.Module):
    """The interface that sherpa-onnx has for VITS: noise is drawn inside."""

    def __init__(self, directory: Path):
        super().__init__()
        self.model: Any = transformers.VitsModel.from_pretrained(directory)
        fold(self.model)

    def forward(self, x, x_length, noise_scale, length_scale, noise_scale_w) -> torch.Tensor:
        """Symbols [1, T] and their number to samples [1, 1, S]."""
        mask = (torch.arange(x.shape[1])[None] < x_length[:, None]).long()
        self.model.noise_scale, self.model.noise_scale_duration = noise_scale, noise_scale_w
        return self.model(x, attention_mask=mask, speaking_rate=1 / length_scale).waveform[:, None]


def export_voice(directory: Path, path: Path) -> None:
    """Write the graph with what sherpa-onnx wants to know of it, and the symbols beside it."""
    import onnx

    one, num_symbols = torch.ones(1), 101
    symbols = torch.arange(num_symbols)[None] % 25
    with torch.no_grad():
        torch.onnx.export(  # the newer exporter knows no boolean index, which the duration predictor has
            Voice(directory).eval(),
            (symbols, torch.tensor([num_symbols]), one, one, one),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=list(VOICE_INPUTS),
            output_names=["y"],
            dynamic_axes={"x": {0: "N", 1: "T"}, "x_length": {0: "N"}, "y": {0: "N", 2: "S"}},
        )
    model = onnx.load(path)
    about = json.loads((directory / "tokenizer_config.json").read_text())
    vocabulary = json.loads((directory / "vocab.json").read_text())
    facts = {
        "model_type": "vits",
        "comment": "mms",
        "frontend": "characters",
        "language": about["language"],
        "sample_rate": json.loads((directory / "config.json").read_text())["sampling_rate"],
        "n_speakers": 1,
        "add_blank": int(about["add_blank"]),
        "use_eos_bos": 0,  # MMS puts nothing before and after a text but blanks
        "blank_id": vocabulary[about["pad_token"]],
    }
    for key, value in facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)
    onnx.save(model, path)
    lines = [f"{symbol} {number}\n" for symbol, number in vocabulary.items()]
    (path.parent / "tokens.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Recognition, this library beside its peers: same weights, same audio, same machine, in turn.

    python -m experiments.benchmarks asr --size 1b --seconds 10 --rounds 7 --output asr.json
    python -m experiments.benchmarks asr --device gpu --size 1b --seconds 10 30 --batch 1 32 --output asr-gpu.json

Builds a random checkpoint of the given size in the mms-1b-all layout (kept in --directory), compares the logits of all
with those of transformers in float32, then times waveform -> text alternately. Ratios (> 1: faster) are to transformers
in float32, as its users run it. The others are at their best: transformers in bfloat16, and with its layers compiled by
torch.compile; ONNX Runtime in float32 and int8 (exported once, beside the checkpoint; CPU only). float32 is one group,
bfloat16 and int8 the other, so that the 1B's copies fit into 24 GB. "limit": the share of what a large matrix product
of the dtype reaches in the same run; "first": seconds of the first call, compilation included.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch._dynamo.exc import TorchDynamoException

from experiments.benchmarks.asr_peers import (
    RATE,
    Recognizer,
    Waves,
    first_call,
    from_onnx,
    from_ours,
    from_torch,
)
from experiments.benchmarks.device import (
    add_arguments,
    environment,
    limits,
    measure,
    missing,
    prepare,
    torch_device,
)
from experiments.benchmarks.flops import forward_gflops
from experiments.benchmarks.onnx_export import INT8
from experiments.benchmarks.report import Contender, DifferenceError, Report
from mms_jax.config import Wav2Vec2Config

__all__ = ["SIZES", "VOCAB", "build", "main", "measure"]  # what other benchmarks take from here

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    "300m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "1b": {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120},
}
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
VOCAB = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}
# Largest difference allowed, relative to the largest logit. float32: order of summation. bfloat16: both round every
# operand to 8 bits, transformers the results too, through 48 layers. int8: two roundings of 0.4 % in each product.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "int8": 0.3}
PEERS = ("bfloat16", "compile", "onnx-float32", "onnx-int8")
GROUPS = (("float32",), ("bfloat16", "int8"))

Made = tuple[str, Callable[[], Recognizer]]


def main() -> None:
    """Run the benchmark and print its table."""
    options = arguments().parse_args()
    prepare(options)
    directory = options.directory or Path(".work") / f"bench-{options.size}"
    if not (directory / "model.safetensors").exists():
        build(directory, SIZES[options.size])
    report = Report("asr", environment(options), limits(["float32", *options.dtypes], options.device))
    report.start()
    for group in GROUPS:
        if chosen := [dtype for dtype in group if dtype in options.dtypes]:
            compare(report, options, directory, chosen)
            report.save(options.output)
    print(f"peak memory, all together: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


def arguments() -> argparse.ArgumentParser:
    """What can be told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0], help="length of the clips")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="clips at a time")
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE), help="of this library")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="beside float32 transformers")
    parser.add_argument("--int8", nargs="+", choices=INT8, default=["s8"], help="ONNX Runtime's kinds of int8")
    parser.add_argument("--directory", type=Path, default=None, help="where the checkpoint is made (default .work/)")
    return parser


def build(directory: Path, size: dict[str, Any]) -> None:
    """Save a random model whose signals neither vanish nor explode, so that the comparison means something."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(VOCAB))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(directory / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(directory)
    config = transformers.Wav2Vec2Config(
        **size,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        adapter_attn_dim=16,
        vocab_size=len(VOCAB),
    )
    with torch.device("meta"):
        model = transformers.Wav2Vec2ForCTC(config)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        torch.nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
        if "norm.weight" in name or name.endswith("original0"):
            parameter.data.abs_().add_(1)
    model.save_pretrained(directory, max_shard_size="10GB")


def recognizers(options: argparse.Namespace, directory: Path, dtypes: list[str]) -> Iterator[Made]:
    """Who takes part in a group, transformers as its users run it first; made only when asked for."""
    device, low = torch_device(options), dtypes != ["float32"]
    yield "transformers float32", lambda: from_torch(directory, "float32", device)
    if low and "bfloat16" in options.peers:
        yield "transformers bfloat16", lambda: from_torch(directory, "bfloat16", device)
    if low and "compile" in options.peers:
        yield "torch.compile", lambda: from_torch(directory, "bfloat16", device, compiled=True)
    forms = [f"int8-{kind}" for kind in options.int8] if "int8" in dtypes else []
    forms = (["float32"] if not low else []) + forms
    for form in (form for form in forms if f"onnx-{form.partition('-')[0]}" in options.peers):
        yield f"ONNX Runtime {form}", lambda form=form: from_onnx(directory, form, threads=options.threads)
    for dtype in dtypes:
        yield f"mms_jax {dtype}", lambda dtype=dtype: from_ours(directory, dtype)


def compare(report: Report, options: argparse.Namespace, directory: Path, dtypes: list[str]) -> None:
    """Rows of one group, for all lengths and batch sizes."""
    config = Wav2Vec2Config.from_file(directory / "config.json")
    made = []
    for name, make in recognizers(options, directory, dtypes):
        if problem := unavailable(name, options.device):
            report.note(f"{name}: {problem}")
        else:
            made.append(make())
    for seconds in options.seconds:
        for batch in options.batch:
            rng = np.random.default_rng(0)
            waves = [(rng.normal(size=int(seconds * RATE)) * 0.1).astype(np.float32) for _ in range(batch)]
            contenders = list(checked(report, made, waves))
            audio = seconds * batch
            gflops = forward_gflops(config, seconds=seconds) * audio
            work = f"{batch} x {seconds:g} s"
            report.time(work, contenders, rounds=options.rounds, audio_seconds=audio, gflops=gflops)
    del made
    gc.collect()


def unavailable(name: str, device: str) -> str | None:
    """Why something cannot take part here; None if it can."""
    if not name.startswith("ONNX Runtime"):
        return None
    return "runs on the CPU only here" if device == "gpu" else missing("onnx", "onnxscript", "onnxruntime")


def checked(report: Report, made: list[Recognizer], waves: Waves) -> Iterator[Contender]:
    """Those whose results are right, ready to be timed; a compiler that fails is told of and left out."""
    expected: list[np.ndarray] = []
    texts: list[str] = []
    for one in made:
        try:
            first = first_call(one, waves)
        except TorchDynamoException as error:
            report.note(f"{one.library} {one.setting} {one.dtype}: {str(error).strip().splitlines()[0]}")
            continue
        logits = list(one.logits(waves))
        if not expected:
            expected, texts = logits, list(one.texts(waves))
        error = difference(logits, expected)
        if not error <= TOLERANCE[one.dtype] or (one.dtype == "float32" and list(one.texts(waves)) != texts):
            raise DifferenceError(f"{one.library} {one.setting} {one.dtype}: {error:.1e} from {made[0].library}'s")
        yield Contender(one.library, one.setting, one.dtype, lambda one=one: one.texts(waves), error, first)


def difference(logits: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest, relative to the largest logit; clips apart. NaN where there is one, which ``max`` would lose."""
    pairs = zip(logits, expected, strict=True)
    return float(np.max([np.abs(own - other).max() / np.abs(other).max() for own, other in pairs]))


if __name__ == "__main__":
    main()

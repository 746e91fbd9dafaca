"""Synthesis, this library beside its peers: same weights, same texts, same machine, in turn.

    python -m experiments.benchmarks tts --rounds 7 --output tts.json
    python -m experiments.benchmarks tts --device gpu --batch 32 --output tts-gpu.json

Builds a random checkpoint in the mms-tts layout (36.3 M parameters, kept in --directory), compares the waveforms of all
with those of transformers in float32, then times text -> waveform alternately: one sentence of about 5 s, a batch of
sentences of 2 to 8 s, and the first chunk of a stream of 10 s. Ratios (> 1: faster) are to transformers in float32, as
its users run it, a batch padded to its longest. The others are at their best: transformers text by text, and with flow
and decoder in bfloat16; ONNX Runtime and sherpa-onnx text by text, on the CPU. With --peers compile its decoder is
compiled besides (one text only: every length is compiled anew). Noise is drawn by all and scaled to nothing, as
sherpa-onnx cannot be given ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch._dynamo.exc import TorchDynamoException

import mms_jax
from experiments.benchmarks.device import (
    add_arguments,
    environment,
    limits,
    measure,
    missing,
    prepare,
    torch_device,
)
from experiments.benchmarks.flops import speech_gflops
from experiments.benchmarks.report import OURS, Contender, DifferenceError, Report
from experiments.benchmarks.tts_peers import Speaker, Texts, from_onnx, from_ours, from_sherpa, from_torch
from mms_jax.config import VitsConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz' -"
SYMBOLS = {letter: i for i, letter in enumerate(LETTERS)}
FRAMES_PER_SYMBOL = 1.0  # what the random checkpoint needs for a symbol or a blank, without noise
# Root mean square of the difference allowed, relative to the waveform's: the largest of 100,000 samples would go by
# their number. float32: order of summation through 80 layers. bfloat16: operands rounded to 8 bits.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
PEER_TOLERANCE = TOLERANCE | {"bfloat16": 0.2}  # 0.1 is seen: PyTorch rounds what every layer gives, too
BEST_PEERS = ["one-by-one", "bfloat16", "onnx", "sherpa"]
PEERS = (*BEST_PEERS, "compile")  # which compiles for minutes and gains nothing: float32 1.04 x, bfloat16 0.4 x

Made = tuple[str, Callable[[], Speaker]]


def main() -> None:
    """Run the benchmark and print its table."""
    options = arguments().parse_args()
    prepare(options)
    if not (options.directory / "model.safetensors").exists():
        build(options.directory)
    report = Report("tts", environment(options), limits(TOLERANCE, options.device))
    report.start()
    made = [(name, make()) for name, make in speakers(report, options)]
    for count in (1, *options.batch):
        compare(report, options, made, sentences(count))
        report.save(options.output)
    if "float32" in options.dtypes:
        print(first_audio(mms_jax.load_tts(options.directory), sentence(10.0), options.rounds), flush=True)


def arguments() -> argparse.ArgumentParser:
    """What can be told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE), help="of this library")
    parser.add_argument("--batch", type=int, nargs="*", default=[16], help="sentences at a time, beside one alone")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=BEST_PEERS, help="beside float32 transformers")
    parser.add_argument("--directory", type=Path, default=Path(".work/bench-tts"), help="where the checkpoint is made")
    return parser


def sentences(count: int) -> list[str]:
    """One of about 5 s; several of 2 to 8 s."""
    return [sentence(5.0)] if count == 1 else [sentence(2 + 6 * i / count) for i in range(count)]


def sentence(seconds: float) -> str:
    """Letters that last about so long."""
    count = max(1, round(seconds * 16_000 / 256 / FRAMES_PER_SYMBOL / 2))
    return "".join(np.random.default_rng(count).choice(list(LETTERS[1:26]), count))


def build(directory: Path) -> None:
    """Save a random model whose signals neither vanish nor explode, so that the comparison means something."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(SYMBOLS))
    tokenizer = transformers.VitsTokenizer(
        str(directory / "vocab.json"), pad_token="a", unk_token="-", language="eng", phonemize=False
    )
    tokenizer.save_pretrained(directory)
    model = transformers.VitsModel(transformers.VitsConfig(vocab_size=len(SYMBOLS)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        torch.nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
        if ("norm" in name and name.endswith("weight")) or name.endswith("original0"):
            parameter.data.abs_().add_(1)
    model.save_pretrained(directory)


def speakers(report: Report, options: argparse.Namespace) -> Iterator[Made]:
    """Who takes part, transformers as its users run it first."""
    directory, device, threads = options.directory, torch_device(options), options.threads
    yield "transformers", lambda: from_torch(directory, "float32", device)
    if "one-by-one" in options.peers:
        yield "one by one", lambda: from_torch(directory, "float32", device, one_by_one=True)
    if "bfloat16" in options.peers:
        one_by_one = options.device == "cpu"
        yield "bfloat16", lambda: from_torch(directory, "bfloat16", device, one_by_one=one_by_one)
    if "compile" in options.peers:
        yield "torch.compile", lambda: from_torch(directory, "float32", device, compiled=True)
        yield "torch.compile bfloat16", lambda: from_torch(directory, "bfloat16", device, compiled=True)
    for name, modules, make in (
        ("onnx", ("onnx", "onnxruntime"), from_onnx),
        ("sherpa", ("onnx", "sherpa_onnx"), from_sherpa),
    ):
        if name not in options.peers:
            continue
        if problem := "runs on the CPU only here" if options.device == "gpu" else missing(*modules):
            report.note(f"{name}: {problem}")
        else:
            yield name, lambda make=make: make(directory, threads=threads)
    for dtype in options.dtypes:
        yield f"mms_jax {dtype}", lambda dtype=dtype: from_ours(directory, dtype)


def compare(report: Report, options: argparse.Namespace, made: list[tuple[str, Speaker]], texts: Texts) -> None:
    """Rows for some texts, those left out that make no difference or no sense for so many."""
    left_out = {"one by one"} if len(texts) == 1 else {"torch.compile", "torch.compile bfloat16"}
    taking_part = [speaker for name, speaker in made if name not in left_out]
    expected = [taking_part[0].speak([text])[0] for text in texts]
    config = VitsConfig.from_file(options.directory / "config.json")
    frames = [len(waveform) // config.hop_length for waveform in expected]
    gflops = sum(
        speech_gflops(config, num_symbols=2 * len(text) + 1, num_frames=count)
        for text, count in zip(texts, frames, strict=True)
    )
    seconds = sum(map(len, expected)) / config.sampling_rate
    work = f"{len(texts)} x {seconds / len(texts):.1f} s"
    contenders = list(checked(report, taking_part, texts, expected))
    report.time(work, contenders, rounds=options.rounds, audio_seconds=seconds, gflops=gflops)


def checked(report: Report, made: list[Speaker], texts: Texts, expected: list[np.ndarray]) -> Iterator[Contender]:
    """Those whose results are right, ready to be timed; a compiler that fails is told of and left out."""
    for one in made:
        start = time.perf_counter()
        try:
            waveforms = one.speak(texts)
        except TorchDynamoException as error:
            report.note(f"{one.library} {one.setting} {one.dtype}: {str(error).strip().splitlines()[0]}")
            continue
        first = time.perf_counter() - start
        padded = one.library == "transformers" and "one by one" not in one.setting
        error = difference(waveforms, expected, ignored=PADDING_REACHES * (padded and len(texts) > 1))
        if not error <= (TOLERANCE if one.library == OURS else PEER_TOLERANCE)[one.dtype]:
            raise DifferenceError(f"{one.library} {one.setting} {one.dtype}: {error:.1e} from {made[0].library}'s")
        yield Contender(one.library, one.setting, one.dtype, lambda one=one: one.speak(texts), error, first)


PADDING_REACHES = 16_000  # samples at the end of a row that transformers computes from padding, too: at most so many


def difference(waveforms: list[np.ndarray], expected: list[np.ndarray], *, ignored: int = 0) -> float:
    """Root mean square, relative to that of what is expected; infinite where lengths differ.

    The last ``ignored`` samples do not count.
    """
    if [len(one) for one in waveforms] != [len(one) for one in expected]:
        return float("inf")
    ours, theirs = (np.concatenate([one[: len(one) - ignored] for one in rows]) for rows in (waveforms, expected))
    return float(np.sqrt(np.square(ours - theirs).sum() / np.square(theirs).sum()))


def first_audio(tts: Any, text: str, rounds: int) -> str:
    """How long the first chunk of a stream takes, as a share of the whole."""
    whole = tts.synthesize(text)
    stream = np.concatenate(list(tts.synthesize_stream(text)))
    error = float(np.abs(stream - whole.waveform).max())
    times = measure([lambda: tts.synthesize(text), lambda: next(tts.synthesize_stream(text))], rounds)
    full, first = (statistics.median(one) for one in times)
    return (
        f"stream of {whole.duration:.1f} s: first audio after {first * 1000:.0f} ms, {first / full:.1%} of the whole; "
        f"max |Δ| {error:.1e}"
    )


if __name__ == "__main__":
    main()

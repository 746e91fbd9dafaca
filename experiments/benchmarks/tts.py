"""Synthesis, this library beside transformers: same weights, same text, same noise, same machine, in turn.

    .venv/bin/python -m experiments.benchmarks.tts --rounds 5

Builds a random checkpoint in the mms-tts layout (36.3 M parameters, kept in --directory), loads it in both libraries,
compares the waveforms, then times text -> waveform alternately: one sentence of about 5 s, a batch of 16 sentences of 2
to 8 s, and how soon a stream of a 10 s sentence gives its first half second. Prints medians and ratios (> 1: this
library is faster); everything is compiled before it is timed. Results: README.md, "Speed".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

import mms_jax
from experiments.benchmarks.asr_forward import measure

LETTERS = "abcdefghijklmnopqrstuvwxyz' -"
SYMBOLS = {letter: i for i, letter in enumerate(LETTERS)}
FRAMES_PER_SYMBOL = 1.33  # what the random checkpoint needs for a symbol or a blank, about as in mms-tts-eng
# Largest difference allowed in samples between -1 and 1. float32: order of summation through 80 layers. bfloat16:
# operands rounded to 8 bits.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--directory", type=Path, default=Path(".work/bench-tts"), help="where the checkpoint is made")
    options = parser.parse_args()
    mms_jax.reuse_freed_memory()  # both sides are faster for it
    if not (options.directory / "model.safetensors").exists():
        build(options.directory)
    threads = f"torch {torch.__version__} ({torch.get_num_threads()} threads), transformers {transformers.__version__}"
    print(f"{threads}; jax {jax.__version__} on {jax.devices()[0].device_kind}; {options.rounds} rounds, medians")
    peer = Peer(options.directory)
    print(
        f"{'dtype':<9} {'texts':>12} {'transformers':>13} {'mms_jax':>9} {'ratio':>6} {'x realtime':>11} {'max |Δ|':>8}"
    )
    for dtype in options.dtypes:
        tts = mms_jax.load_tts(options.directory, dtype=dtype)
        for texts in ([sentence(5.0)], [sentence(2 + 6 * i / options.batch) for i in range(options.batch)]):
            print(compare(peer, tts, texts, dtype, options.rounds), flush=True)
        print(first_audio(tts, sentence(10.0), options.rounds), flush=True)


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


class Peer:
    """transformers as its documentation shows it, with our noise."""

    def __init__(self, directory: Path):
        self.tokenizer = transformers.VitsTokenizer.from_pretrained(directory)
        self.model = transformers.VitsModel.from_pretrained(directory).eval()

    def __call__(self, texts: list[str], seed: int = 0) -> list[np.ndarray]:
        """The waveforms of a padded batch, each cut to its own length."""
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        with torch.inference_mode(), same_noise(inputs["attention_mask"].sum(-1).tolist(), seed):
            output = self.model(**inputs)
        lengths = output.sequence_lengths.tolist()
        return [row[:length] for row, length in zip(output.waveform.numpy(), lengths, strict=True)]


@contextlib.contextmanager
def same_noise(num_symbols: list[int], seed: int) -> Iterator[None]:
    """Let torch's two draws give, row by row, what ``synthesize`` draws with ``seed``."""
    sources = [np.random.default_rng(seed) for _ in num_symbols]

    def randn(*shape: int) -> torch.Tensor:
        noise = np.zeros(shape, np.float32)
        for row, source, count in zip(noise, sources, num_symbols, strict=True):
            row[:, :count] = source.standard_normal((count, shape[1]), np.float32).T
        return torch.from_numpy(noise)

    def randn_like(means: torch.Tensor) -> torch.Tensor:
        shape = means.shape[2], means.shape[1]
        rows = [source.standard_normal(shape, np.float32).T for source in sources]
        return torch.from_numpy(np.stack(rows))

    originals = torch.randn, torch.randn_like
    torch.randn, torch.randn_like = randn, randn_like
    try:
        yield
    finally:
        torch.randn, torch.randn_like = originals


def compare(peer: Peer, tts: Any, texts: list[str], dtype: str, rounds: int) -> str:
    """One row of the table."""
    speeches = tts.synthesize(texts)  # compiles
    difference = 0.0
    for speech, text in zip(speeches, texts, strict=True):
        (expected,) = peer([text])
        assert len(expected) == len(speech.waveform), "durations differ by a rounding; choose another sentence"
        difference = max(difference, float(np.abs(expected - speech.waveform).max()))
    assert difference <= TOLERANCE[dtype], f"results differ by {difference:.1e}; no timing is worth anything"
    times = measure([lambda: peer(texts), lambda: tts.synthesize(texts)], rounds)
    theirs, ours = (statistics.median(one) for one in times)
    seconds = sum(speech.duration for speech in speeches)
    what = f"{len(texts)} x {seconds / len(texts):.1f} s"
    return (
        f"{dtype:<9} {what:>12} {theirs:>12.2f}s {ours:>8.2f}s {theirs / ours:>6.2f} "
        f"{seconds / theirs:>5.1f} {seconds / ours:>6.1f} {difference:>9.1e}"
    )


def first_audio(tts: Any, text: str, rounds: int) -> str:
    """How long the first chunk of a stream takes, as a share of the whole."""
    whole = tts.synthesize(text)
    stream = np.concatenate(list(tts.synthesize_stream(text)))
    difference = float(np.abs(stream - whole.waveform).max())
    times = measure([lambda: tts.synthesize(text), lambda: next(tts.synthesize_stream(text))], rounds)
    full, first = (statistics.median(one) for one in times)
    return (
        f"stream of {whole.duration:.1f} s: first audio after {first * 1000:.0f} ms, {first / full:.1%} of the whole; "
        f"max |Δ| {difference:.1e}"
    )


if __name__ == "__main__":
    main()

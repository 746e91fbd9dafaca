"""Recognition, this library beside transformers: same weights, same audio, same machine, in turn.

    .venv/bin/python -m experiments.benchmarks.asr_forward --size 1b --seconds 10 --rounds 5

Builds a random checkpoint of the given size in the mms-1b-all layout (kept in --directory), loads it in both libraries,
compares logits and text, then times waveform -> text alternately and prints medians and their ratio (> 1: this library
is faster). int8 is compared with transformers in bfloat16. Compilation is timed apart. Results: README.md, "Speed".
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

import mms_jax

SIZES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    "300m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "1b": {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120},
}
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
VOCAB = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}
# Largest difference allowed, relative to the largest logit. float32: order of summation. bfloat16: both round every
# operand to 8 bits, transformers the results too, through 48 layers. int8: two roundings of 0.4 % in each product.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "int8": 0.3}
PEER_DTYPE = {"int8": "bfloat16"}  # transformers' fastest, where it has no such dtype


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0], help="length of the clips")
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None, help="where the checkpoint is made (default .work/)")
    options = parser.parse_args()
    mms_jax.reuse_freed_memory()  # both sides are faster for it
    directory = options.directory or Path(".work") / f"bench-{options.size}"
    if not (directory / "model.safetensors").exists():
        build(directory, SIZES[options.size])
    threads = f"torch {torch.__version__} ({torch.get_num_threads()} threads), transformers {transformers.__version__}"
    print(f"{threads}; jax {jax.__version__} on {jax.devices()[0].device_kind}; {options.rounds} rounds, medians")
    print(f"{'dtype':<9} {'clip':>6} {'transformers':>13} {'mms_jax':>9} {'ratio':>6} {'compile':>8} {'max |Δ|':>9}")
    for dtype in options.dtypes:
        for row in compare(directory, dtype, options.seconds, options.rounds):
            print(row, flush=True)
    print(f"peak memory, both together: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


def build(directory: Path, size: dict[str, int]) -> None:
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


def compare(directory: Path, dtype: str, seconds: list[float], rounds: int):
    """Yield a printed row for each clip length."""
    processor = transformers.Wav2Vec2Processor.from_pretrained(directory)
    peer_dtype = getattr(torch, PEER_DTYPE.get(dtype, dtype))
    model = transformers.Wav2Vec2ForCTC.from_pretrained(directory, dtype=peer_dtype).eval()
    asr = mms_jax.load_asr(directory, dtype=dtype)

    def peer(waveform: np.ndarray) -> tuple[torch.Tensor, str]:
        inputs = processor(waveform, sampling_rate=16_000, return_tensors="pt")
        values = inputs.input_values.to(model.dtype)
        with torch.inference_mode():
            logits = model(values, attention_mask=inputs.attention_mask).logits
        return logits, processor.batch_decode(logits.argmax(-1))[0]

    for length in seconds:
        waveform = np.random.default_rng(0).normal(size=int(length * 16_000)).astype(np.float32) * 0.1
        start = time.perf_counter()
        ours = asr.logits(waveform)[0]
        compile_time = time.perf_counter() - start
        theirs = peer(waveform)[0][0].float().numpy()
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        assert difference <= TOLERANCE[dtype], f"results differ by {difference:.1e}; no timing is worth anything"
        if dtype == "float32":
            assert asr.transcribe(waveform).text == peer(waveform)[1]
        times = measure([lambda w=waveform: peer(w), lambda w=waveform: asr.transcribe(w)], rounds)
        a, b = (statistics.median(one) for one in times)
        figures = f"{a:>12.2f}s {b:>8.2f}s {a / b:>6.2f} {compile_time - b:>7.1f}s {difference:>9.1e}"
        yield f"{dtype:<9} {length:>5.1f}s {figures}"
    del model, asr
    gc.collect()


def measure(functions, rounds: int) -> list[list[float]]:
    """Time functions in turn, after one unmeasured round, so that whatever else the machine does meets all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, record in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                record.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()

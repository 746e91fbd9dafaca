"""VITS' decoder, this library beside transformers: same weights, same latents, same machine, in turn.

    .venv/bin/python -m experiments.benchmarks.vits_decoder --rounds 7

One row of 5 s; then 16 rows of 2 to 8 s, which transformers pads to the longest. Results are compared before anything
is timed, over the frames that padding cannot reach in transformers. Prints medians, and their ratio to transformers in
float32 (> 1: faster than it). Compilation is timed apart.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.vits.modeling_vits import VitsHifiGan

from experiments.benchmarks.asr_forward import measure
from mms_jax.config import VitsConfig
from mms_jax.models.vits.decoder import Decoder, prepare_kernels, receptive_field

BATCHES = {"1 x 5 s": [312], "16 x 2-8 s": np.linspace(125, 500, 16).astype(int).tolist()}  # frames of 16 ms
# Largest difference allowed to transformers in float32, of samples between -1 and 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of torch; JAX takes all there are")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, jax {jax.__version__}, {options.rounds} rounds, medians")
    print(f"{'batch':<12} {'decoder':<22} {'seconds':>8} {'ratio':>6} {'max |Δ|':>9} {'compile':>8}")
    model = random_peer()
    for name, lengths in BATCHES.items():
        for row in compare(model, lengths, options.rounds):
            print(f"{name:<12} {row}", flush=True)


def random_peer() -> VitsHifiGan:
    """transformers' decoder at the size of every MMS voice, random: neither silent nor cut off by its tanh."""
    model = VitsHifiGan(transformers.VitsConfig()).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        if "upsampler" in name and parameter.ndim > 1:  # each output has two taps
            fan_in = 2 * parameter.shape[0]
        torch.nn.init.normal_(parameter, std=(0.6 if "resblocks" in name else 1.2) * fan_in**-0.5, generator=generator)
    return model


def params_of(model: VitsHifiGan) -> dict[str, Any]:
    """Its parameters in this library's tree: channels last, indices joined to names."""
    params: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        *path, leaf = name.replace(".weight", ".kernel").split(".")
        node = params
        for part in ".".join(path).replace(".convs", "/convs").replace(".", "_").split("/"):
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(np.ascontiguousarray(parameter.detach().numpy().T))
    return params


def compare(model: VitsHifiGan, lengths: list[int], rounds: int):
    """Yield a printed row for each decoder."""
    config, params = VitsConfig(), params_of(model)
    latents = np.random.default_rng(0).normal(size=(len(lengths), max(lengths), config.flow_size)).astype(np.float32)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    decoders: dict[str, Callable[[], np.ndarray]] = {"transformers float32": peer(model, latents, torch.float32)}
    compile_times = {}
    for dtype in TOLERANCE:
        start = time.perf_counter()
        decoders[f"mms_jax {dtype}"] = ours(config, params, latents, mask, dtype)
        compile_times[f"mms_jax {dtype}"] = time.perf_counter() - start
    decoders["transformers bfloat16"] = peer(model, latents, torch.bfloat16)
    expected, errors = decoders["transformers float32"](), {}
    for name, decode in decoders.items():
        waveform = decode()
        errors[name] = max(
            np.abs(waveform[i, :end] - expected[i, :end]).max()
            for i, end in enumerate(config.hop_length * (n - receptive_field(config)) for n in lengths)
        )
        limit = TOLERANCE[name.split()[1]]
        assert errors[name] <= limit, f"{name} differs by {errors[name]:.1e}; no timing is worth anything"
    times = dict(zip(decoders, measure(list(decoders.values()), rounds), strict=True))
    base = float(np.median(times["transformers float32"]))
    for name, seconds in times.items():
        compiled = f"{compile_times[name]:.1f}s" if name in compile_times else ""
        median = float(np.median(seconds))
        yield f"{name:<22} {median:>8.3f} {base / median:>6.2f} {errors[name]:>9.1e} {compiled:>8}"


def peer(model: VitsHifiGan, latents: np.ndarray, dtype: torch.dtype) -> Callable[[], np.ndarray]:
    """transformers' decoder, ready to run."""
    inputs = torch.tensor(latents).mT.to(dtype)
    model = copy.deepcopy(model).to(dtype)

    @torch.inference_mode()
    def decode() -> np.ndarray:
        return model(inputs)[:, 0].float().numpy()

    return decode


def ours(config: VitsConfig, params, latents: np.ndarray, mask: np.ndarray, dtype: str) -> Callable[[], np.ndarray]:
    """This library's decoder, compiled, with the parameters as the pipeline holds them."""
    if jax.default_backend() == "cpu":
        params = prepare_kernels(params, config, dtype=jnp.dtype(dtype))
    arguments = {"params": params}, jnp.asarray(latents), jnp.asarray(mask), None
    decode = jax.jit(Decoder(config, jnp.dtype(dtype)).apply).lower(*arguments).compile()
    return lambda: np.asarray(decode(*arguments))


if __name__ == "__main__":
    main()

"""VITS' decoder, this library beside transformers: same weights, same latents, same machine, in turn.

    python -m experiments.benchmarks decoder --rounds 7 --output decoder.json

One row of 5 s; then 16 rows of 2 to 8 s, which transformers pads to the longest. Results are compared before anything
is timed, over the frames that padding cannot reach in transformers. Ratios (> 1: faster) are to transformers in
float32.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.vits.modeling_vits import VitsHifiGan

from experiments.benchmarks.device import add_arguments, environment, limits, prepare, torch_device
from experiments.benchmarks.flops import decoder_products
from experiments.benchmarks.report import OURS, Contender, DifferenceError, Report
from mms_jax.config import VitsConfig
from mms_jax.models.vits.decoder import Decoder, prepare_kernels, receptive_field

BATCHES = {"1 x 5 s": [312], "16 x 2-8 s": np.linspace(125, 500, 16).astype(int).tolist()}  # frames of 16 ms
# Largest difference allowed to transformers in float32, of samples between -1 and 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=7)
    options = parser.parse_args()
    prepare(options)
    report = Report("decoder", environment(options), limits(TOLERANCE, options.device))
    report.start()
    model, config = random_peer(), VitsConfig()
    for work, lengths in BATCHES.items():
        contenders = list(checked(model, config, lengths, torch_device(options)))
        gflops = 2e-9 * sum(lengths) * decoder_products(config)
        seconds = sum(lengths) * config.hop_length / config.sampling_rate
        report.time(work, contenders, rounds=options.rounds, audio_seconds=seconds, gflops=gflops)
        report.save(options.output)


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


def checked(model: VitsHifiGan, config: VitsConfig, lengths: list[int], device: torch.device) -> Iterator[Contender]:
    """The decoders whose results are right, ready to be timed; transformers in float32 first."""
    params = params_of(model)
    latents = np.random.default_rng(0).normal(size=(len(lengths), max(lengths), config.flow_size)).astype(np.float32)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ends = [config.hop_length * (count - receptive_field(config)) for count in lengths]
    expected = peer(model, latents, "float32", device)()
    made = [("transformers", dtype, lambda dtype=dtype: peer(model, latents, dtype, device)) for dtype in TOLERANCE]
    made += [(OURS, dtype, lambda dtype=dtype: ours(config, params, latents, mask, dtype)) for dtype in TOLERANCE]
    for library, dtype, make in made:
        start = time.perf_counter()
        decode = make()
        waveform = decode()
        first = time.perf_counter() - start
        rows = zip(waveform, expected, ends, strict=True)
        error = float(np.max([np.abs(own - other)[:end].max() for own, other, end in rows]))
        if not error <= TOLERANCE[dtype]:  # NaN, too
            raise DifferenceError(f"{library} {dtype}: {error:.1e} from transformers' float32")
        yield Contender(library, "", dtype, decode, error, first)


def peer(model: VitsHifiGan, latents: np.ndarray, dtype: str, device: torch.device) -> Callable[[], np.ndarray]:
    """transformers' decoder, ready to run."""
    inputs = torch.tensor(latents).mT.to(device, getattr(torch, dtype))
    model = copy.deepcopy(model).to(device, getattr(torch, dtype))

    @torch.inference_mode()
    def decode() -> np.ndarray:
        return model(inputs)[:, 0].float().cpu().numpy()

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

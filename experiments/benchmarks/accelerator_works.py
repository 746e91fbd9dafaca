"""What an accelerator is timed with: compiled programs on random weights that are made on it, nothing but it busy."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.asr_forward import SIZES
from experiments.benchmarks.flops import decoder_products, forward_gflops, step_gflops
from experiments.benchmarks.report import OURS, Contender
from mms_jax.checkpoint import param_shapes
from mms_jax.config import VitsConfig, Wav2Vec2Config
from mms_jax.features import FeatureExtractor
from mms_jax.models import Wav2Vec2ForCTC, attention
from mms_jax.models.layers import fold_weight_norm
from mms_jax.models.trees import is_adapter_path, split_adapter, stack_layers, unflatten
from mms_jax.models.vits.decoder import Decoder
from mms_jax.parallel import make_mesh
from mms_jax.pipelines.greedy import collapse
from mms_jax.pipelines.waveforms import STEP, model_input
from mms_jax.training.state import Optimizer, fresh_adapter, init_state
from mms_jax.training.step import Batch, Objective, make_step

RATE = 16_000
VOCAB_SIZE = 154  # of English in mms-1b-all
HOP = 256
BATCHES = {"1b": ((64, 10.0), (24, 30.0), (192, 2.0)), "tiny": ((2, 2.0),)}
SINGLE = {"1b": (10.0, 2.0, 30.0), "tiny": (2.0,)}
TRAINING = {"1b": ((32, 15.0), (8, 15.0)), "tiny": ((2, 2.0),)}
LANGUAGES = {"1b": 64, "tiny": 2}
SPEECH = {"1b": ((32, 8.0), (1, 5.0)), "tiny": ((2, 1.0),)}
DROPOUTS = ("attention_dropout", "hidden_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
FRAMES = {"1b": (128, 256, 512, 1024, 1500), "tiny": (64,)}
TOKENS = 16_000  # frames in a batch for which attention is timed


@dataclass(frozen=True)
class Work:
    """Programs that do the same, to be timed in turn; they are made one by one, as each is compiled."""

    name: str
    contenders: list[Callable[[], Contender]]
    seconds: float  # of audio
    gflops: float


def model_config(size: str, **changes: Any) -> Wav2Vec2Config:
    """The published shapes of MMS-1B, or small ones."""
    values = dict(SIZES[size], conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True)
    values |= {"conv_dim": (32,) * 7} if size == "tiny" else {}
    return Wav2Vec2Config(**values, adapter_attn_dim=16, vocab_size=VOCAB_SIZE).replace(**changes)


def random_params(config: Wav2Vec2Config, dtype: str, *, seed: int = 0, scan: bool, sets: int | None = None) -> Any:
    """Weights whose signals neither vanish nor explode, made on the device; ``sets`` of adapters and heads."""
    flat = {}
    for number, (path, shape) in enumerate(sorted(param_shapes(config).items())):
        if path.endswith("masked_spec_embed"):
            continue
        is_matrix, key = len(shape) > 1, jax.random.fold_in(jax.random.key(seed), number)
        std = math.prod(shape[:-1]) ** -0.5 if is_matrix else 0.1
        shape = (sets, *shape) if sets and is_adapter_path(path) else shape
        # In float32, so that a seed means the same weights in every dtype.
        leaf = (jax.random.normal(key, shape) * std).astype(dtype if is_matrix else jnp.float32)
        flat[path] = abs(leaf) + 1 if path.endswith(("scale", "kernel_g")) else leaf
    params = fold_weight_norm(unflatten(flat))
    return stack_layers(params) if scan else params


def recogniser(
    config: Wav2Vec2Config, *, rows: int, seconds: float, scan: bool, sets: int | None = None, dtype: str = "bfloat16"
) -> Callable[[], Any]:
    """A compiled program, samples of 16 bits to packed token ids, and its input: called, it runs to the end."""
    module = Wav2Vec2ForCTC(config, jnp.dtype(dtype), scan, num_adapters=sets)
    extractor, num_samples = FeatureExtractor(), int(seconds * RATE)

    def run(params: Any, samples: jax.Array, lengths: jax.Array, reading: jax.Array) -> Any:
        inputs = model_input(samples.astype(jnp.float32) * STEP, lengths, extractor=extractor)
        output: Any = module.apply({"params": params}, *inputs)
        ids = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
        return collapse(ids, reading, vocab_size=config.vocab_size)

    noise = np.random.default_rng(0).normal(size=(rows, num_samples)) * 3000
    num_frames = int(config.num_frames(num_samples))
    reading = np.tile(np.array([0, num_frames, 0, config.vocab_size, 0], np.int32), (rows, 1))
    data = jax.device_put((noise.astype(np.int16), np.full(rows, num_samples, np.int32), reading))
    params = random_params(config, dtype, scan=scan, sets=sets)
    compiled = jax.jit(run).lower(params, *data).compile()
    return lambda: jax.block_until_ready(compiled(params, *data))


def contender(
    setting: str, make: Callable[[], Callable[[], Any]], *, dtype: str = "bfloat16"
) -> Callable[[], Contender]:
    """Compiled and called once, when it is asked for."""

    def prepared() -> Contender:
        start = time.perf_counter()
        run = make()
        run()
        return Contender(OURS, setting, dtype, run, 0.0, time.perf_counter() - start)

    return prepared


def recognition(config: Wav2Vec2Config, ways: list[Any], *, rows: int, seconds: float) -> Work:
    """Clips of one length in a batch."""
    audio = rows * seconds
    return Work(f"{rows} x {seconds:g} s", ways, audio, audio * forward_gflops(config, seconds=seconds))


def throughput(size: str) -> Iterator[Work]:
    """Whole batches; long ones also without cuDNN's attention."""
    config = model_config(size)
    for rows, seconds in BATCHES[size]:
        shape = {"rows": rows, "seconds": seconds, "scan": True}
        ways = [contender("scanned", lambda shape=shape: recogniser(config, **shape))]
        if seconds * 50 >= attention.CUDNN_FRAMES:
            ways.append(contender("scanned, no cuDNN", lambda shape=shape: without_cudnn(recogniser, config, **shape)))
        yield recognition(config, ways, rows=rows, seconds=seconds)


def without_cudnn(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Traced with attention by products, whatever the length."""
    before, attention.CUDNN_FRAMES = attention.CUDNN_FRAMES, 10**9
    try:
        return make(*arguments, **options)
    finally:
        attention.CUDNN_FRAMES = before


def latency(size: str) -> Iterator[Work]:
    """A single clip."""
    config = model_config(size)
    for seconds in SINGLE[size]:
        ways = [
            contender(name, lambda scan=scan, seconds=seconds: recogniser(config, rows=1, seconds=seconds, scan=scan))
            for name, scan in (("scanned", True), ("unrolled", False))
        ]
        yield recognition(config, ways, rows=1, seconds=seconds)


def languages(size: str) -> Iterator[Work]:
    """As many languages as rows, each with an adapter and a head of its own, beside one that all rows share."""
    config, rows, seconds = model_config(size), LANGUAGES[size], SINGLE[size][0]
    shape = {"rows": rows, "seconds": seconds, "scan": True}
    ways = [
        contender("one language", lambda: recogniser(config, **shape)),
        contender(f"{rows} languages", lambda: recogniser(config, **shape, sets=rows)),
    ]
    yield recognition(config, ways, rows=rows, seconds=seconds)


def attention_ways(size: str) -> Iterator[Work]:
    """One layer's attention, by products and by cuDNN's kernel, at several lengths: where do the lines cross?"""
    config = model_config(size)
    for frames in FRAMES[size]:
        rows = max(1, TOKENS // frames)
        shape = rows, frames, config.num_attention_heads, config.head_dim
        heads = [jax.random.normal(jax.random.key(i), shape, jnp.bfloat16).astype(jnp.float32) for i in range(3)]
        arguments = *heads, jnp.ones((rows, frames), bool)
        implementation = "cudnn" if jax.default_backend() == "gpu" else "xla"

        def fused(*x: jax.Array, implementation: Any = implementation) -> jax.Array:
            return attention.attend_fused(*x, dtype=jnp.bfloat16, implementation=implementation)

        def products(*x: jax.Array) -> jax.Array:
            return without_cudnn(attention.attend, *x, dtype=jnp.bfloat16)

        ways = [
            contender(name, lambda call=call, arguments=arguments: compiled(call, *arguments))
            for name, call in (("products", products), (f"fused ({implementation})", fused))
        ]
        gflops = 4e-9 * rows * frames**2 * config.hidden_size
        yield Work(f"{rows} x {frames} frames", ways, rows * frames / 50, gflops)


def compiled(call: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A function and its input, ready to be timed."""
    program = jax.jit(call).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))


def speech(size: str) -> Iterator[Work]:
    """VITS' decoder, 97 % of a synthesis."""
    config = VitsConfig(vocab_size=40)
    for rows, seconds in SPEECH[size]:
        frames = round(seconds * RATE / HOP)
        arguments = jnp.ones((rows, frames, config.flow_size)), jnp.ones((rows, frames), bool), None
        ways = []
        for dtype in ("bfloat16", "float32"):
            module = Decoder(config, jnp.dtype(dtype))
            params = jax.jit(module.init)(jax.random.key(0), *arguments)["params"]

            def call(params: Any, *x: Any, module: Decoder = module) -> Any:
                return module.apply({"params": params}, *x)

            make = lambda call=call, params=params, arguments=arguments: compiled(call, params, *arguments)  # noqa: E731
            ways.append(contender(f"decoder {dtype}", make, dtype=dtype))
        gflops = 2e-9 * rows * frames * decoder_products(config)
        yield Work(f"{rows} x {seconds:g} s", ways, rows * seconds, gflops)


def training(size: str) -> Iterator[Work]:
    """An adapter's update on a frozen base: forward, CTC loss, gradients, AdamW; without dropout, as cuDNN has none."""
    config = model_config(size, **dict.fromkeys(DROPOUTS, 0.0))
    for rows, seconds in TRAINING[size]:
        ways = [
            contender(name, functools.partial(step, config, rows=rows, seconds=seconds, scan=scan))
            for name, scan in (("step, scanned", True), ("step, unrolled", False))
        ]
        audio = rows * seconds
        yield Work(f"{rows} x {seconds:g} s", ways, audio, audio * step_gflops(config, seconds=seconds))


def step(config: Wav2Vec2Config, *, rows: int, seconds: float, scan: bool) -> Callable[[], Any]:
    """A compiled update, and a batch of noise with 12 labels for each second."""
    optimizer, num_samples, num_labels = Optimizer(), int(seconds * RATE), int(12 * seconds)
    objective = Objective(config, np.ones((1, config.vocab_size), bool), True, jnp.bfloat16, scan_layers=scan)
    base, _ = split_adapter(random_params(config, "bfloat16", scan=scan))
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], fresh_adapter(config, vocab_size=VOCAB_SIZE, seed=0))
    source = np.random.default_rng(0)
    batch = Batch(
        input_values=source.normal(size=(1, rows, num_samples)).astype(np.float32),
        num_samples=np.full((1, rows), num_samples, np.int32),
        labels=source.integers(5, VOCAB_SIZE, (1, rows, num_labels)).astype(np.int32),
        num_labels=np.full((1, rows), num_labels, np.int32),
        weights=np.full((1, rows), 1 / rows, np.float32),
    )
    update = make_step(objective, optimizer, make_mesh(num_devices=1))
    held: list[Any] = [init_state(own, optimizer=optimizer)]
    rest = base, None, jax.device_put(batch), None, np.array([1e-3], np.float32), jax.random.key(0)

    def run() -> None:
        held[0], metrics = update(held[0], *rest)  # the state before is given up to it
        jax.block_until_ready(metrics)

    return run


def first_batch(size: str) -> Iterator[Work]:
    """The first batch alone: for XLA's flags, which are set from outside."""
    yield next(throughput(size))

"""Live parity with transformers: random models that both sides read from the same files, and one measure of error.

A freshly initialised model hides faults: its norms are ones, its biases zeros, its adapters nearly the identity. Here
every parameter is drawn anew, at a scale that neither blows up nor silences the signal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from mms_jax.checkpoint import Checkpoint, load_ctc, open_source
from mms_jax.config import Wav2Vec2Config
from mms_jax.models import CTCOutput, Wav2Vec2ForCTC

# Three convolutions instead of seven: a kernel that is no multiple of its stride, an equal one, a shorter one.
# The first frame takes 10 samples and every other 12 more.
SHORT_CONVS: dict[str, Any] = {"conv_kernel": (7, 2, 1), "conv_stride": (3, 2, 2)}
MMS_CONVS: dict[str, Any] = {"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)}

BIAS_RANGE = 0.3  # biases are drawn from ± this, norms' scales from 1 ± this


def small_config(**changes: Any) -> transformers.Wav2Vec2Config:
    """An MMS model in little: layer-norm features, pre-norm encoder, adapters; ``changes`` make it something else."""
    values: dict[str, Any] = {
        "vocab_size": 23,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "conv_dim": (9, 11, 7),
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "adapter_attn_dim": 5,
        "layerdrop": 0.0,
    }
    return transformers.Wav2Vec2Config(**values | SHORT_CONVS | changes)


BASE: dict[str, Any] = {  # wav2vec2-base in little: group-norm features, post-norm encoder
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "conv_bias": False,
    "adapter_attn_dim": None,
}


def random_model(config: transformers.Wav2Vec2Config, *, seed: int = 0) -> transformers.Wav2Vec2ForCTC:
    """A model in evaluation mode of which every element of every parameter was drawn, none left as initialised."""
    model = transformers.Wav2Vec2ForCTC(config).eval()
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    randomize(model, seed=seed)
    for name, parameter in model.named_parameters():
        assert (parameter != initial[name]).all(), f"{name} keeps initial values"
        assert parameter.numel() == 1 or parameter.std() > 0, f"{name} is constant"
    return model


@torch.no_grad()
def randomize(model: transformers.Wav2Vec2ForCTC, *, seed: int) -> None:
    """Draw every parameter in place, whatever it holds."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(1 - BIAS_RANGE, 1 + BIAS_RANGE, generator=generator)
        elif name.endswith("original0"):  # gain of the weight norm: the effective kernel gets variance 1 / fan-in
            width = parameter.shape[-1]
            parameter.uniform_(1 - BIAS_RANGE, 1 + BIAS_RANGE, generator=generator)
            parameter.mul_(math.sqrt(model.config.hidden_size / width))
        elif name.endswith("masked_spec_embed"):
            parameter.uniform_(-1, 1, generator=generator)
        elif parameter.ndim == 1:
            parameter.uniform_(-BIAS_RANGE, BIAS_RANGE, generator=generator)
        else:
            parameter.normal_(0, math.prod(parameter.shape[1:]) ** -0.5, generator=generator)


def load(model: transformers.Wav2Vec2ForCTC, directory: Path, *, stack_layers: bool = False) -> Checkpoint:
    """Write the model as transformers does and read it as our users do."""
    model.save_pretrained(directory)
    return load_ctc(open_source(directory), stack_layers=stack_layers)


def waveforms(num_samples: list[int], *, padded_to: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise of unit variance with zeros behind it: (float32 [B, S], bool [B, S], True = valid)."""
    lengths = np.array(num_samples)
    mask = np.arange(max(num_samples) if padded_to is None else padded_to) < lengths[:, None]
    samples = np.random.default_rng(seed).standard_normal(mask.shape, dtype=np.float32)
    return np.where(mask, samples, np.float32(0)), mask


def valid_frames(model: transformers.Wav2Vec2ForCTC, mask: np.ndarray) -> np.ndarray:
    """Bool [B, T]: the frames that the reference counts as valid, for rows of at least one frame."""
    count: Any = model._get_feat_extract_output_lengths
    return np.arange(int(count(mask.shape[1]))) < count(torch.from_numpy(mask.sum(axis=1))).numpy()[:, None]


def run_torch(model: torch.nn.Module, samples: np.ndarray, mask: np.ndarray | None = None, **arguments: Any) -> Any:
    """The reference's output with hidden states, without gradients, as torch tensors."""
    arrays = {name: torch.from_numpy(value) for name, value in arguments.items()}
    attention_mask = None if mask is None else torch.from_numpy(mask).long()
    with torch.no_grad():
        return model(torch.from_numpy(samples), attention_mask, output_hidden_states=True, **arrays)


def run_jax(
    config: Wav2Vec2Config,
    params: Mapping[str, Any],
    samples: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    seed: int | None = None,
    fresh: bool = False,
    scan_layers: bool = False,
    dtype: Any = jnp.float32,
    optimize: bool = False,
    **arguments: np.ndarray,
) -> CTCOutput:
    """Our output with hidden states; with dropout if there is a ``seed``.

    Calls that differ in values only share a compilation, except ``fresh`` ones: a trace made before a module was
    patched must not stand in for one made after. ``optimize`` compiles as for users, and for longer.
    """
    build = _compiled.__wrapped__ if fresh else _compiled
    forward = build(config, scan_layers=scan_layers, dtype=dtype, optimize=optimize, training=seed is not None)
    return forward(params, samples, mask, seed, arguments)


@functools.cache
def _compiled(config: Wav2Vec2Config, *, scan_layers: bool, dtype: Any, optimize: bool, training: bool):
    module = Wav2Vec2ForCTC(config, dtype, scan_layers)

    def forward(params, samples, mask, seed, arguments):
        rngs = {"dropout": jax.random.key(seed)} if training else None
        options = {"deterministic": not training, "output_hidden_states": True, "rngs": rngs}
        return module.apply({"params": params}, samples, mask, **options, **arguments)

    return jax.jit(forward, compiler_options=None if optimize else quick())


@functools.cache
def quick() -> dict[str, Any]:
    """Compiler options for what is compiled to be run once: the same graph, in a quarter of the time.

    The parity of two configurations, and that of the full-size model, is tested without them.
    """
    options = {"xla_backend_optimization_level": 0}
    faster = options | {"xla_cpu_use_fusion_emitters": False}  # no part of jaxlib's interface: it may go
    try:
        jax.jit(lambda x: x, compiler_options=faster)(0.0)
    except jax.errors.JaxRuntimeError:
        return options
    return faster


def relative_error(actual: Any, expected: Any, *, where: Any = ...) -> float:
    """Largest |actual - expected| relative to the largest |expected|, or as it is if nothing else than 0 is expected.

    It is NaN, which is within no limit, if either holds one.
    """
    actual, expected = np.asarray(actual)[where], np.asarray(expected)[where]
    assert actual.shape == expected.shape
    assert expected.size > 0
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))


def output_errors(actual: CTCOutput, expected: Any, valid: np.ndarray) -> dict[str, float]:
    """The relative error of every hidden state and of the logits, over ``valid`` [B, T] frames."""
    assert actual.hidden_states is not None
    assert len(actual.hidden_states) == len(expected.hidden_states)
    errors = {
        f"hidden_states[{i}]": relative_error(ours, theirs, where=valid)
        for i, (ours, theirs) in enumerate(zip(actual.hidden_states, expected.hidden_states, strict=True))
    }
    return errors | {"logits": relative_error(actual.logits, expected.logits, where=valid)}


def exceeding(errors: Mapping[str, float], tolerance: float) -> dict[str, float]:
    """Those of the errors that are not within the tolerance; NaN is not."""
    return {name: error for name, error in errors.items() if not error <= tolerance}

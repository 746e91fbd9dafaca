"""Live parity of VITS with transformers: random models read from the same files, the same noise on both sides.

As in parity.py no parameter keeps its initial value. Two things need more care here: the log-durations must give
durations as speech has them, and the waveform must be neither silent nor cut off by its tanh, or errors would not show.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from mms_jax.checkpoint import open_source
from mms_jax.checkpoint.vits import VitsCheckpoint, load_vits
from mms_jax.config import VitsConfig
from mms_jax.models.vits import VitsModel, VitsOutput, frame_counts
from tests.parity import quick

# Absolute errors allowed in float32, of values of size 1 (latents: up to 10). A few dozen roundings of 6e-8, a few
# times as many where a spline is steep. Seen in small models and at full size: log-durations 6e-6, means and
# log-variances 3e-6, latents 9e-6, waveform 1.4e-6. Frames are whole numbers.
LIMITS = {
    "log_durations": 1e-4,
    "means": 1e-5,
    "log_variances": 1e-5,
    "latents": 1e-4,
    "waveform": 1e-4,
    "num_frames": 0.5,
}
NOTICED = 10.0  # what a mistake must cost to count as noticed, in limits

BIAS_RANGE = 0.3  # biases are drawn from ± this, norms' scales and weight norms' gains from 1 ± this
MEAN_LOG_DURATION, LOG_DURATION_SPREAD = 1.2, 0.7  # 3.3 frames, half of them between 2 and 5.3
MAX_FRAMES = 25  # of a symbol: 400 ms at the real models' 16 ms per frame
NORM_SCALE = re.compile(r"norm(s?_\d)?(\.\d+)?\.weight$")


def small_vits(**changes: Any) -> transformers.VitsConfig:
    """An MMS voice in little, of one speaker and with stochastic durations; ``changes`` make it something else."""
    values: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "flow_size": 12,
        "spectrogram_bins": 9,
        "upsample_initial_channel": 16,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[3], [2]],
        "depth_separable_num_layers": 1,
        "duration_predictor_num_flows": 2,
        "duration_predictor_filter_channels": 10,
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 2,
        "posterior_encoder_num_wavenet_layers": 1,
    }
    return transformers.VitsConfig(**values | changes)


DETERMINISTIC = {"use_stochastic_duration_prediction": False}
SPEAKERS = {"num_speakers": 3, "speaker_embedding_size": 5}
ONE_STAGE = {
    "upsample_rates": [4],
    "upsample_kernel_sizes": [8],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
}
# Nothing for a mistake to hide behind: two of everything, an epsilon that tells, an even kernel, dilations, speakers.
STRICT = (
    SPEAKERS
    | ONE_STAGE
    | {
        "num_hidden_layers": 2,
        "depth_separable_num_layers": 2,
        "layer_norm_eps": 3e-2,
        "ffn_kernel_size": 4,
        "wavenet_dilation_rate": 2,
    }
)


def random_vits(config: transformers.VitsConfig, *, seed: int = 0) -> transformers.VitsModel:
    """A model in evaluation mode of which every element of every parameter was drawn, none left as initialised."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the initial values, with which those drawn must not coincide
        model = transformers.VitsModel(config).eval()
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    randomize_vits(model, seed=seed)
    for name, parameter in model.named_parameters():
        kept = (parameter == initial[name]).sum()
        assert kept <= parameter.numel() // 100_000, f"{name} keeps initial values"  # that many are equal by chance
        assert parameter.numel() == 1 or parameter.std() > 0, f"{name} is constant"
    return model


@torch.no_grad()
def randomize_vits(model: transformers.VitsModel, *, seed: int) -> None:
    """Draw every parameter in place, whatever it holds."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if NORM_SCALE.search(name) or name.endswith("original0"):  # original1 has rows of norm 1 or so
            parameter.uniform_(1 - BIAS_RANGE, 1 + BIAS_RANGE, generator=generator)
        elif parameter.ndim == 1 or name.endswith(("translate", "log_scale")):
            parameter.uniform_(-BIAS_RANGE, BIAS_RANGE, generator=generator)
        elif "emb_rel" in name:  # so that positions count for as much as contents
            parameter.normal_(generator=generator)
        else:
            parameter.normal_(0, _fan_in(model, name, parameter) ** -0.5, generator=generator)
    model.text_encoder.project.weight[model.config.flow_size :] /= 2  # log-variances: their exponential scales noise
    model.decoder.conv_post.weight /= 3  # so that its tanh does not saturate


def _fan_in(model: transformers.VitsModel, name: str, parameter: torch.Tensor) -> float:
    """How many products a sum has: of a transposed convolution, the taps that meet an output sample."""
    stage = re.fullmatch(r"decoder\.upsampler\.(\d+)\.weight", name)
    if stage:
        return parameter.shape[0] * parameter.shape[2] / model.config.upsample_rates[int(stage[1])]
    return math.prod(parameter.shape[1:])


@torch.no_grad()
def calibrate_durations(model: transformers.VitsModel, text: Text, noise: Noise) -> None:
    """Shift the log-durations of a text to the mean wanted, and bring them closer to it if they vary too much."""
    hurried = run_torch(model, text, noise, speaking_rate=1e3)  # few frames, which are not looked at
    predicted = hurried.log_durations[text.mask]
    mean, factor = float(predicted.mean()), min(1.0, LOG_DURATION_SPREAD / (float(predicted.std()) or 1.0))
    predictor: Any = model.duration_predictor
    if model.config.use_stochastic_duration_prediction:  # the last affine flow: (z - translate) / exp(log_scale)
        affine = predictor.flows[0]
        affine.log_scale[0] -= math.log(factor)
        affine.translate[0] += (mean - MEAN_LOG_DURATION / factor) * torch.exp(affine.log_scale[0]) * factor
    else:
        predictor.proj.weight *= factor
        predictor.proj.bias.copy_((predictor.proj.bias - mean) * factor + MEAN_LOG_DURATION)


def load(model: transformers.VitsModel, directory: Path, **options: Any) -> VitsCheckpoint:
    """Write the model as transformers does and read it as our users do."""
    model.save_pretrained(directory)
    return load_vits(open_source(directory), **options)


def call(function, *arrays: Any) -> Any:
    """A function of arrays or trees, compiled quickly and run."""
    return jax.jit(function, compiler_options=quick())(*jax.tree.map(jnp.asarray, arrays))


class Text(NamedTuple):
    """What both sides read."""

    ids: np.ndarray  # int [B, U]
    mask: np.ndarray  # bool [B, U], True = a symbol

    def row(self, index: int) -> Text:
        """One row, alone and without padding."""
        length = int(self.mask[index].sum())
        return Text(self.ids[index : index + 1, :length], self.mask[index : index + 1, :length])


class Noise(NamedTuple):
    """Standard normal numbers, for both sides and for longer speech than there will be."""

    durations: np.ndarray  # float32 [B, U, 2]
    prior: np.ndarray  # float32 [B, more than T, C]

    def row(self, index: int) -> Noise:
        """Those of one row."""
        return Noise(self.durations[index : index + 1], self.prior[index : index + 1])


class Expected(NamedTuple):
    """What transformers computes, in our layout; T and U as in the batch or in the row that it was given."""

    means: np.ndarray  # [B, U, C]
    log_variances: np.ndarray
    log_durations: np.ndarray  # [B, U]
    latents: np.ndarray  # [B, T, C]
    waveform: np.ndarray  # [B, S]
    num_frames: np.ndarray  # [B]


def random_text(config: Any, num_symbols: Sequence[int], *, seed: int) -> tuple[Text, Noise]:
    """A batch of random symbols, in the padding too, and its noise."""
    rng = np.random.default_rng(seed)
    shape = (len(num_symbols), max(num_symbols))
    ids = rng.integers(config.vocab_size, size=shape)
    durations = rng.standard_normal((*shape, 2), dtype=np.float32)
    prior = rng.standard_normal((shape[0], MAX_FRAMES * shape[1], config.flow_size), dtype=np.float32)
    return Text(ids, np.arange(shape[1]) < np.array(num_symbols)[:, None]), Noise(durations, prior)


@contextlib.contextmanager
def injected(*, durations: np.ndarray | None = None, frames: np.ndarray | None = None) -> Iterator[None]:
    """Make torch.randn give ``durations`` [B, U, 2] and torch.randn_like ``frames`` [B, T, C], both channels first."""

    def randn(*size: int) -> torch.Tensor:
        assert durations is not None
        drawn = torch.from_numpy(np.ascontiguousarray(durations.swapaxes(1, 2)))[..., : size[-1]]
        assert drawn.shape == size
        return drawn

    def randn_like(like: torch.Tensor) -> torch.Tensor:
        assert frames is not None
        drawn = torch.from_numpy(frames).transpose(1, 2)[..., : like.shape[-1]]
        assert drawn.shape == like.shape
        return drawn

    with mock.patch.object(torch, "randn", randn), mock.patch.object(torch, "randn_like", randn_like):
        yield


def run_torch(
    model: transformers.VitsModel, text: Text, noise: Noise, *, scale: float = 1.0, **arguments: Any
) -> Expected:
    """The reference's output and what leads to it, with ``scale`` times its own noise scales; padding is masked."""
    seen: dict[str, Any] = {}
    parts = {"text": model.text_encoder, "log_durations": model.duration_predictor}
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, part in parts.items()
    ]
    scales = {name: scale * getattr(model.config, name) for name in ("noise_scale", "noise_scale_duration")}
    try:
        with (
            torch.no_grad(),
            mock.patch.multiple(model, **scales),
            injected(durations=noise.durations, frames=noise.prior),
        ):
            mask = None if text.mask.all() else torch.from_numpy(text.mask).long()
            output: Any = model(torch.from_numpy(text.ids), mask, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return Expected(
        seen["text"].prior_means.numpy(),
        seen["text"].prior_log_variances.numpy(),
        seen["log_durations"][:, 0].numpy(),
        output.spectrogram.numpy().swapaxes(1, 2),
        output.waveform.numpy(),
        output.sequence_lengths.numpy() // math.prod(model.config.upsample_rates),
    )


def run_jax(
    config: VitsConfig,
    params: Mapping[str, Any],
    text: Text,
    noise: Noise,
    *,
    num_frames: int,
    scale: float = 1.0,
    speaker_id: int | None = None,
    speaking_rate: float = 1.0,
    dtype: Any = jnp.float32,
    fresh: bool = False,
    optimize: bool = False,
) -> VitsOutput:
    """Our output. Calls that differ in values only share a compilation, except ``fresh`` ones: see parity.run_jax."""
    build = _compiled.__wrapped__ if fresh else _compiled
    speak = build(config, num_frames=num_frames, speaking_rate=speaking_rate, dtype=dtype, optimize=optimize)
    speakers = None if speaker_id is None else jnp.full(len(text.ids), speaker_id)
    durations = jnp.asarray(noise.durations) * (scale * config.noise_scale_duration)
    prior = jnp.asarray(noise.prior[:, :num_frames]) * (scale * config.noise_scale)
    return speak(params, jnp.asarray(text.ids), jnp.asarray(text.mask), durations, prior, speakers)


@functools.cache
def _compiled(config: VitsConfig, *, num_frames: int, speaking_rate: float, dtype: Any, optimize: bool):
    module = VitsModel(config, dtype)

    def speak(params, ids, mask, durations, prior, speakers):
        return module.apply(
            {"params": params},
            ids,
            mask,
            num_frames=num_frames,
            duration_noise=durations,
            prior_noise=prior,
            speaker_id=speakers,
            speaking_rate=speaking_rate,
        )

    return jax.jit(speak, compiler_options=None if optimize else quick())


def check_plausible(expected: Expected, text: Text, *, speaking_rate: float = 1.0) -> None:
    """Assert that errors would show in this output, and that no rounding within the limit changes a duration."""
    spoken = expected.log_durations[text.mask] - math.log(speaking_rate)
    durations = np.ceil(np.exp(spoken))
    assert durations.min() >= 1
    assert durations.max() <= MAX_FRAMES
    flips = np.log(np.arange(1, MAX_FRAMES + 1))
    assert np.abs(spoken[:, None] - flips).min() > LIMITS["log_durations"], "a duration may flip: take another seed"
    assert expected.num_frames.tolist() == _sums(durations, text.mask)
    loudness = np.abs(expected.waveform)
    assert 0.05 < loudness.max() < 0.999
    assert (loudness > 0.9).mean() < 0.02


def _sums(values: np.ndarray, mask: np.ndarray) -> list[int]:
    spread = np.zeros(mask.shape)
    spread[mask] = values
    return spread.sum(axis=1).astype(int).tolist()


def row_errors(ours: VitsOutput, expected: Expected, index: int, hop: int) -> dict[str, float]:
    """Errors of a row of ours against what the reference makes of that row alone, in units of their limits.

    Behind the row's end ours must be zero; that counts as an error too.
    """
    symbols, frames = expected.log_durations.shape[1], expected.latents.shape[1]
    prior = {name: np.asarray(getattr(ours.prior, name))[index] for name in ours.prior._fields}
    pairs = {name: (value, getattr(expected, name)[0], symbols) for name, value in prior.items()}
    pairs["latents"] = (np.asarray(ours.latents)[index], expected.latents[0], frames)
    pairs["waveform"] = (np.asarray(ours.waveform)[index], expected.waveform[0], frames * hop)
    errors = {"num_frames": abs(int(ours.num_samples[index]) - frames * hop) / hop}
    for name, (actual, wanted, length) in pairs.items():
        errors[name] = float(np.abs(actual[:length] - wanted).max())
        errors[f"{name} behind the end"] = float(np.abs(actual[length:]).max(initial=0.0))
    return {f"{name}, row {index}": error / LIMITS[name.split(" ")[0]] for name, error in errors.items()}


def durations_of(ours: VitsOutput, text: Text, *, speaking_rate: float = 1.0) -> np.ndarray:
    """Whole frames of every symbol, as our model counts them."""
    return np.asarray(frame_counts(ours.prior.log_durations, jnp.asarray(text.mask), speaking_rate))


class Case(NamedTuple):
    """A configuration, a batch, and how it is to be spoken."""

    changes: dict[str, Any]
    num_symbols: tuple[int, ...]
    speaker: int | None = None
    speaking_rate: float = 1.0
    seed: int = 0


class Reference(NamedTuple):
    """A case as transformers computes it."""

    model: transformers.VitsModel
    text: Text
    noise: Noise
    arguments: dict[str, Any]  # the others, for both sides
    rows: list[Expected]  # each alone
    batch: Expected

    def durations(self) -> np.ndarray:
        """Whole frames of every symbol [B, U], 0 in the padding."""
        frames = np.exp(self.batch.log_durations) / self.arguments["speaking_rate"]
        return np.ceil(frames) * self.text.mask


def speak(case: Case, *, scale: float = 1.0) -> Reference:
    """Draw a model and a text for the case, check that they are fit for a comparison, and run the reference."""
    model = random_vits(small_vits(**case.changes), seed=case.seed)
    text, noise = random_text(model.config, case.num_symbols, seed=case.seed)
    calibrate_durations(model, text, noise)
    arguments = {"speaker_id": case.speaker, "speaking_rate": case.speaking_rate}
    batch = run_torch(model, text, noise, scale=scale, **arguments)
    indices = range(len(case.num_symbols))
    rows = [run_torch(model, text.row(i), noise.row(i), scale=scale, **arguments) for i in indices]
    for i, row in enumerate(rows):
        check_plausible(row, text.row(i), speaking_rate=case.speaking_rate)
    return Reference(model, text, noise, arguments, rows, batch)


def parity_errors(ours: VitsOutput, reference: Reference) -> dict[str, float]:
    """Every row's errors against the reference on that row alone, in units of their limits."""
    hop = math.prod(reference.model.config.upsample_rates)
    return {key: error for i, row in enumerate(reference.rows) for key, error in row_errors(ours, row, i, hop).items()}

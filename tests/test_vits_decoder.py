"""The decoder: equal to transformers' in both arrangements, blind to padding, and no wider than it says."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.vits.modeling_vits import VitsHifiGan

from mms_jax.config import VitsConfig
from mms_jax.models.layers import same_padding
from mms_jax.models.products import conv
from mms_jax.models.vits import decoder as decoder_file
from mms_jax.models.vits.convolution import GROUP, Signal, toom_cook_conv, transform_kernel
from mms_jax.models.vits.decoder import Decoder, prepare_kernels, receptive_field

SAME = 1e-5  # of samples between -1 and 1, float32: the order of summation, and twice the rounding of a plain sum
BFLOAT16 = 0.05  # operands have 8 bits; 0.02 is usual through four stages of 19 convolutions
SMALL_WINDOW = 11  # frames: several windows for a short test, and no multiple of anything

NARROW: dict[str, Any] = {"flow_size": 6, "upsample_initial_channel": 16}
SHORT: dict[str, Any] = NARROW | {"upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4]}
OTHER = "other slope, other blocks"  # the least to compile
CONFIGS: dict[str, dict[str, Any]] = {
    "mms": NARROW | {"upsample_initial_channel": 32},
    "speakers": SHORT | {"num_speakers": 3, "speaker_embedding_size": 5},
    "kernels no longer than rates": NARROW | {"upsample_rates": [2, 3, 4], "upsample_kernel_sizes": [2, 3, 4]},
    "kernel no multiple of its rate": SHORT | {"upsample_rates": [5, 4], "upsample_kernel_sizes": [11, 6]},
    OTHER: SHORT | {"leaky_relu_slope": 0.3, "resblock_kernel_sizes": [5], "resblock_dilation_sizes": [[1, 7, 3, 9]]},
    "even dilations": SHORT | {"resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 2], [4, 3]]},
    "blocks of different depth": SHORT | {"resblock_kernel_sizes": [9, 1], "resblock_dilation_sizes": [[5], [1, 3]]},
}
ARRANGEMENTS = pytest.mark.parametrize("windowed", [False, True], ids=["plain", "windowed"])


@functools.cache
def peer(name: str) -> VitsHifiGan:
    """transformers' decoder, every parameter random: signals neither vanish nor are cut off by the last tanh."""
    config = transformers.VitsConfig(**CONFIGS[name])
    model = VitsHifiGan(config).eval()
    generator = torch.Generator().manual_seed(0)
    for path, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)
            continue
        fan_in = parameter[0].numel()
        if "upsampler" in path:
            fan_in = parameter.shape[0] * parameter.shape[2] / config.upsample_rates[int(path.split(".")[1])]
        gain = 0.6 if "resblocks" in path else 1.2
        torch.nn.init.normal_(parameter, std=gain * fan_in**-0.5, generator=generator)
    return model


def params_of(model: VitsHifiGan) -> dict[str, Any]:
    """The parameters under our names: channels last, list entries joined by an underscore."""
    params: dict[str, Any] = {}
    for path, parameter in model.named_parameters():
        *modules, leaf = path.split(".")
        names = [f"{a}_{b}" if b.isdigit() else a for a, b in zip(modules, [*modules[1:], ""], strict=True)]
        node = params
        for name in (name for name in names if not name.isdigit()):
            node = node.setdefault(name, {})
        value = parameter.detach().numpy()
        if leaf == "weight":
            leaf, value = "kernel", value.T[0] if modules == ["cond"] else value.T
        node[leaf] = np.ascontiguousarray(value)
    return params


def config_of(name: str) -> VitsConfig:
    return VitsConfig.from_dict(transformers.VitsConfig(**CONFIGS[name]).to_dict())


@functools.cache
def compiled(name: str, *, windowed: bool, dtype: str = "float32") -> Any:
    module = Decoder(config_of(name), jnp.dtype(dtype), windowed)
    return jax.jit(lambda params, *args: module.apply({"params": params}, *args))


def decode(name: str, latents: Any, lengths: Any, speaker: Any = None, **how: Any) -> np.ndarray:
    mask = np.arange(latents.shape[1]) < np.asarray(lengths)[:, None]
    return np.asarray(compiled(name, **how)(params_of(peer(name)), latents, mask, speaker))


def random_latents(name: str, batch: int, num_frames: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, num_frames, CONFIGS[name]["flow_size"])).astype(np.float32)


def run_peer(name: str, latents: np.ndarray, speaker: np.ndarray | None = None) -> np.ndarray:
    with torch.inference_mode():
        condition = None if speaker is None else torch.tensor(speaker)[..., None]
        return peer(name)(torch.tensor(latents).mT, condition)[:, 0].numpy()


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(decoder_file, "WINDOW", SMALL_WINDOW)


@ARRANGEMENTS
@pytest.mark.parametrize("name", CONFIGS)
def test_waveforms_equal_those_of_transformers(name, windowed):
    latents = random_latents(name, 2, 3 * SMALL_WINDOW - 4)
    expected = run_peer(name, latents)
    assert 0.1 < expected.std() < 0.8  # or errors would be hidden
    ours = decode(name, latents, [latents.shape[1]] * 2, windowed=windowed)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME)


@ARRANGEMENTS
def test_a_speaker_is_added_as_transformers_adds_it(windowed):
    latents = random_latents("speakers", 2, SMALL_WINDOW + 2)
    speaker = np.random.default_rng(2).normal(size=(2, 5)).astype(np.float32)
    expected = run_peer("speakers", latents, speaker)
    assert np.abs(expected - run_peer("speakers", latents)).max() > 0.1
    ours = decode("speakers", latents, [latents.shape[1]] * 2, speaker, windowed=windowed)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME)


@ARRANGEMENTS
@pytest.mark.parametrize("name", [OTHER, "kernel no multiple of its rate", "even dilations"])
def test_rows_of_a_batch_equal_themselves_alone_and_are_silent_behind_their_end(name, windowed):
    lengths = [29, SMALL_WINDOW, 1, 0, SMALL_WINDOW + 1]
    latents, hop = random_latents(name, len(lengths), max(lengths)), config_of(name).hop_length
    batch = decode(name, latents, lengths, windowed=windowed)
    assert batch.shape == (len(lengths), max(lengths) * hop)
    for row, length in enumerate(lengths):
        assert not batch[row, length * hop :].any()
        if length:
            alone = run_peer(name, latents[row : row + 1, :length])[0]
            np.testing.assert_allclose(batch[row, : length * hop], alone, rtol=0, atol=SAME)


@ARRANGEMENTS
def test_masked_frames_are_not_read(windowed):
    latents = random_latents(OTHER, 1, 20)
    masked = latents.copy()
    masked[:, 15:] = np.inf
    expected = decode(OTHER, latents, [15], windowed=windowed)
    np.testing.assert_array_equal(decode(OTHER, masked, [15], windowed=windowed), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_receptive_field_is_as_far_as_a_frame_is_heard(name):
    reach, hop = receptive_field(config_of(name)), config_of(name).hop_length
    latents = random_latents(name, 1, 2 * reach + 5)
    latents[:, reach + 2] = np.nan  # whatever depends on it is not a number either
    heard = np.isnan(run_peer(name, latents)[0])
    frames = np.flatnonzero(heard.reshape(-1, hop).any(axis=1)) - (reach + 2)
    assert reach - 1 <= max(-frames.min(), frames.max()) <= reach


def test_the_receptive_field_of_mms_models_is_13_frames():
    assert receptive_field(VitsConfig()) == 13


def test_windows_do_not_hear_beyond_the_receptive_field():
    reach, hop = receptive_field(config_of(OTHER)), config_of(OTHER).hop_length
    latents = random_latents(OTHER, 1, 3 * SMALL_WINDOW + 2 * reach)
    changed, middle = latents.copy(), latents.shape[1] // 2
    changed[:, : middle - reach] += 1
    changed[:, middle + reach + 1 :] += 1
    one, other = (decode(OTHER, x, [x.shape[1]], windowed=True)[0] for x in (latents, changed))
    np.testing.assert_allclose(*(x[middle * hop : (middle + 1) * hop] for x in (one, other)), rtol=0, atol=SAME)
    assert np.abs(one - other).max() > 0.1


@ARRANGEMENTS
def test_bfloat16_operands_stay_close_and_are_used(windowed):
    latents = random_latents(OTHER, 1, 2 * SMALL_WINDOW)
    exact = run_peer(OTHER, latents)
    error = np.abs(decode(OTHER, latents, [latents.shape[1]], windowed=windowed, dtype="bfloat16") - exact).max()
    assert 1e-4 < error < BFLOAT16


@pytest.mark.parametrize("name", ["kernels no longer than rates", "even dilations", "speakers"])
def test_kernels_transformed_beforehand_give_the_same_waveform(name):
    latents, params = random_latents(name, 1, SMALL_WINDOW + 1), params_of(peer(name))
    prepared = prepare_kernels(jax.tree.map(jnp.asarray, params), config_of(name), dtype=jnp.float32)
    mask = np.ones(latents.shape[:2], bool)
    ours = compiled(name, windowed=True)(prepared, latents, mask, None)
    np.testing.assert_allclose(ours, run_peer(name, latents), rtol=0, atol=SAME)


@pytest.mark.parametrize("dilation", [1, 3, 5, 7])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9, 11, 13])
def test_the_economical_convolution_is_the_convolution(kernel_size, dilation):
    rng, num_rows = np.random.default_rng(0), 9
    x = jnp.asarray(rng.normal(size=(2, GROUP * num_rows, 5)), jnp.float32)
    first, second = (jnp.asarray(rng.normal(size=(kernel_size, 5, 5)) / kernel_size, jnp.float32) for _ in range(2))
    economical = functools.partial(toom_cook_conv, kernel_size=kernel_size, num_rows=num_rows, dtype=jnp.float32)
    signal = Signal(x.reshape(2, num_rows, GROUP, 5))
    y = economical(signal, transform_kernel(first, dtype=jnp.float32), dilation=dilation)
    valid = y.mask(jnp.ones((2, num_rows), bool))  # groups of a dilated result reach beyond the ends
    y = y._replace(values=jnp.where(valid[..., None], y.values, 0.0))
    y = economical(y, transform_kernel(second, dtype=jnp.float32), dilation=1)
    expected = conv(
        x, first, dtype=jnp.float32, dilation=dilation, padding=same_padding(kernel_size, dilation=dilation)
    )
    expected = conv(expected, second, dtype=jnp.float32, padding=same_padding(kernel_size))
    assert (y.first, y.step) == (0, 1)
    np.testing.assert_allclose(y.values.reshape(expected.shape), expected, rtol=0, atol=SAME)


def test_parameters_have_the_names_and_shapes_that_checkpoints_are_read_into():
    config = transformers.VitsConfig(num_speakers=2, speaker_embedding_size=4)
    module = Decoder(VitsConfig.from_dict(config.to_dict()))
    inputs = (jnp.zeros((1, 2, 192)), jnp.ones((1, 2), bool), None)
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in VitsHifiGan(config).named_parameters()}
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    assert len(shapes) == len(expected)
    assert shapes["conv_pre/kernel"] == (7, 192, 512)
    assert shapes["upsampler_0/kernel"] == expected["upsampler.0.weight"][::-1] == (16, 256, 512)
    assert shapes["upsampler_3/bias"] == (32,)
    assert shapes["resblocks_11/convs1_2/kernel"] == expected["resblocks.11.convs1.2.weight"][::-1]
    assert shapes["resblocks_0/convs2_0/bias"] == (256,)
    assert shapes["conv_post/kernel"] == (7, 32, 1)
    assert shapes["cond/kernel"] == (4, 512)

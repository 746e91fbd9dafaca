"""Log-durations, priors, latents and waveform equal transformers', for the same checkpoint, text and noise."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from mms_jax.models.vits import receptive_field
from tests.parity import exceeding
from tests.vits_parity import (
    DETERMINISTIC,
    LIMITS,
    NOTICED,
    ONE_STAGE,
    SPEAKERS,
    STRICT,
    Case,
    Noise,
    Reference,
    durations_of,
    load,
    parity_errors,
    run_jax,
    speak,
)

CASES = {
    "mms, in a batch": Case(
        ONE_STAGE
        | {
            "num_hidden_layers": 3,
            "depth_separable_num_layers": 3,
            "duration_predictor_num_flows": 4,
            "prior_encoder_num_flows": 4,
            "resblock_kernel_sizes": [3, 7],
            "resblock_dilation_sizes": [[1, 3]] * 2,
        },
        (31, 12, 4, 1),
        seed=1,
    ),
    "strict": Case(STRICT, (12, 5), speaker=1),
    "strict, deterministic": Case(STRICT | DETERMINISTIC | {"hidden_act": "silu"}, (12, 5), speaker=2),
    "several speakers, none of them; dilated WaveNets": Case(
        SPEAKERS | {"wavenet_dilation_rate": 2, "wavenet_kernel_size": 3, "prior_encoder_num_wavenet_layers": 3}, (8, 5)
    ),
    "one symbol": Case({}, (1,)),
    "one symbol, deterministic": Case(DETERMINISTIC | {"window_size": 3}, (1,)),
    "two symbols": Case({}, (2,)),
    "four symbols, fewer than the window sees": Case({}, (4,), seed=1),
    "window of one, three stages, a kernel as wide as its rate": Case(
        {
            "window_size": 1,
            "num_attention_heads": 1,
            "upsample_rates": [3, 2, 2],
            "upsample_kernel_sizes": [3, 4, 6],
            "upsample_initial_channel": 24,
        },
        (9, 3),
    ),
    "window of five, even feed-forward kernel, no biases": Case(
        {"window_size": 5, "num_attention_heads": 4, "ffn_kernel_size": 4, "use_bias": False}, (14, 4)
    ),
    "odd channel counts, gelu, large epsilon": Case(
        {
            "hidden_size": 15,
            "num_attention_heads": 3,
            "ffn_dim": 7,
            "flow_size": 6,
            "vocab_size": 5,
            "upsample_initial_channel": 12,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-2,
        },
        (10, 6),
    ),
    "odd channel counts, deterministic, slow": Case(
        DETERMINISTIC | {"hidden_size": 9, "num_attention_heads": 3, "duration_predictor_filter_channels": 7},
        (6, 3),
        speaking_rate=0.7,
    ),
    "one of everything": Case(
        ONE_STAGE
        | {
            "duration_predictor_num_flows": 1,
            "prior_encoder_num_flows": 1,
            "prior_encoder_num_wavenet_layers": 1,
            "ffn_kernel_size": 1,
        },
        (8,),
    ),
    "another spline, another slope, fast": Case(
        {
            "duration_predictor_tail_bound": 1.5,
            "duration_predictor_flow_bins": 3,
            "duration_predictor_kernel_size": 5,
            "leaky_relu_slope": 0.2,
        },
        (12, 7),
        speaking_rate=1.7,
    ),
}
SCALES = {"noise": 1.0, "no noise": 0.0}


@functools.cache
def reference(name: str, scale: float) -> Reference:
    return speak(CASES[name], scale=scale)


def longest(name: str) -> int:
    """Frames for a case with noise and without, so that one compilation serves both."""
    return max(int(reference(name, scale).batch.num_frames.max()) for scale in SCALES.values())


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("name", CASES)
def test_every_row_equals_what_transformers_makes_of_it_alone(name, scale, tmp_path):
    expected = reference(name, scale)
    config, params = load(expected.model, tmp_path)
    options = {"num_frames": longest(name), "scale": scale}
    ours = run_jax(config, params, expected.text, expected.noise, **expected.arguments, **options)
    assert exceeding(parity_errors(ours, expected), 1.0) == {}
    durations = durations_of(ours, expected.text, speaking_rate=expected.arguments["speaking_rate"])
    np.testing.assert_array_equal(durations, expected.durations())


@pytest.mark.parametrize("name", ["mms, in a batch", "strict", "strict, deterministic"])
def test_the_batch_equals_transformers_batch_but_for_what_leaks_into_the_ends_of_its_shorter_rows(name, tmp_path):
    expected = reference(name, 1.0)
    config, params = load(expected.model, tmp_path)
    ours = run_jax(config, params, expected.text, expected.noise, **expected.arguments, num_frames=longest(name))
    errors, leaks = {}, []
    for i, num_frames in enumerate(expected.batch.num_frames):
        is_longest = num_frames == max(expected.batch.num_frames)
        end = num_frames if is_longest else max(num_frames - receptive_field(config), 0)
        samples, sure = num_frames * config.hop_length, end * config.hop_length
        latents = np.asarray(ours.latents)[i, :num_frames] - expected.batch.latents[i, :num_frames]
        waveform = np.abs(np.asarray(ours.waveform)[i, :samples] - expected.batch.waveform[i, :samples])
        errors[f"latents, row {i}"] = np.abs(latents).max() / LIMITS["latents"]
        errors[f"waveform, row {i}"] = waveform[:sure].max(initial=0.0) / LIMITS["waveform"]
        leaks.append(waveform[sure:].max(initial=0.0))
    assert exceeding(errors, 1.0) == {}
    assert max(leaks) > NOTICED * LIMITS["waveform"]  # or the exception would not be needed


def test_the_numbers_that_a_seed_of_torch_gives_are_the_noise_as_it_enters_here(tmp_path):
    name = "strict"
    expected = reference(name, 1.0)
    model, text = expected.model, expected.text
    torch.manual_seed(555)
    with torch.no_grad():
        theirs = model(torch.from_numpy(text.ids), torch.from_numpy(text.mask).long(), speaker_id=1)
    torch.manual_seed(555)
    durations = torch.randn(len(text.ids), 2, text.ids.shape[1]).numpy()
    shape = (len(text.ids), theirs.spectrogram.shape[2], model.config.flow_size)
    # torch.randn(shape) would draw other numbers: only into contiguous memory does torch draw several at a time.
    prior = torch.randn_like(torch.empty(shape).mT).mT.numpy()
    config, params = load(model, tmp_path)
    noise = Noise(durations.swapaxes(1, 2), prior)
    ours = run_jax(config, params, text, noise, num_frames=prior.shape[1], speaker_id=1)
    np.testing.assert_array_equal(ours.num_samples, theirs.sequence_lengths)
    longest_row = int(np.argmax(ours.num_samples))
    wanted = theirs.waveform[longest_row].numpy()
    assert np.abs(np.asarray(ours.waveform)[longest_row, : len(wanted)] - wanted).max() <= LIMITS["waveform"]

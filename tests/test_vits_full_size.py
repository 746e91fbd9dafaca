"""A voice of facebook/mms-tts-eng's real size: over 5 seconds of speech equal transformers', sample by sample."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import pytest
import transformers

from mms_jax.checkpoint.vits import VitsCheckpoint
from mms_jax.models.vits import VitsOutput
from tests.parity import exceeding
from tests.vits_parity import (
    Expected,
    Noise,
    Text,
    calibrate_durations,
    check_plausible,
    durations_of,
    load,
    random_text,
    random_vits,
    row_errors,
    run_jax,
    run_torch,
)

pytestmark = pytest.mark.slow

NUM_PARAMETERS = 36_284_592  # "36.3 M", 7.2 M of them the posterior encoder's
NUM_SYMBOLS = 71  # 35 letters and the blanks around them
MIN_FRAMES = 313  # 5 s at 62.5 frames a second


class Voice(NamedTuple):
    """Both sides' results."""

    model: transformers.VitsModel
    checkpoint: VitsCheckpoint
    text: Text
    noise: Noise
    expected: Expected
    ours: VitsOutput


@pytest.fixture(scope="module")
def voice(tmp_path_factory) -> Voice:
    """A random voice, saved by transformers and loaded here, and what each makes of a text."""
    model = random_vits(transformers.VitsConfig())
    text, noise = random_text(model.config, (NUM_SYMBOLS,), seed=4)
    calibrate_durations(model, text, noise)
    expected = run_torch(model, text, noise)
    check_plausible(expected, text)
    checkpoint = load(model, tmp_path_factory.mktemp("voice"))
    num_frames = int(expected.num_frames[0])
    ours = run_jax(*checkpoint, text, noise, num_frames=num_frames, optimize=True)
    return Voice(model, checkpoint, text, noise, expected, ours)


def test_every_parameter_is_loaded_once(voice):
    assert sum(parameter.numel() for parameter in voice.model.parameters()) == NUM_PARAMETERS
    assert sum(leaf.size for leaf in jax.tree.leaves(voice.checkpoint.params)) == NUM_PARAMETERS


def test_the_speech_is_longer_than_five_seconds(voice):
    assert voice.expected.num_frames[0] >= MIN_FRAMES
    assert len(voice.expected.waveform[0]) >= 5 * voice.model.config.sampling_rate


def test_log_durations_priors_latents_and_every_sample_equal_those_of_transformers(voice):
    errors = row_errors(voice.ours, voice.expected, 0, voice.checkpoint.config.hop_length)
    assert exceeding(errors, 1.0) == {}
    theirs = np.ceil(np.exp(voice.expected.log_durations))
    np.testing.assert_array_equal(durations_of(voice.ours, voice.text), theirs)

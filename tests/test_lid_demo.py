"""The bundled language identification: PyTorch loads it as it is and gives the same logits, and the clips are told."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import mms_jax
from mms_jax.audio import SAMPLING_RATE, load_audio
from mms_jax.pipelines.demo import DEMO_LID, DEMO_MODEL, demo_clips
from tests.parity import relative_error

MAX_BYTES = 3_000_000  # of the model's directory
TOLERANCE = 2e-5  # float32 on both sides, few layers: only the order of summation differs
# Probability of the right language, for every clip; the recipe's table, over 200 clips a language, has the means.
CERTAIN = 0.9
NOISE_DB = 20.0  # of speech over noise: within what training heard


@pytest.fixture(scope="module")
def lid():
    return mms_jax.load_lid(DEMO_LID)


def _reference():
    """transformers, used as its documentation says: a function from a list of waveforms to logits [B, K]."""
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(DEMO_LID)
    model: Any = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(DEMO_LID).eval()

    @torch.no_grad()
    def logits(waveforms):
        return model(
            **extractor(waveforms, sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt")
        ).logits.numpy()

    return logits, model.config


def _check(results, languages):
    for result, language in zip(results, languages, strict=True):
        assert result.language == language
        assert result.probability >= CERTAIN


def test_transformers_loads_the_bundle_as_it_is_and_gives_the_same_logits(lid):
    logits, config = _reference()
    waveforms = [load_audio(clip.path) for clip in demo_clips()]
    alone = np.concatenate([logits([waveform]) for waveform in waveforms])
    ours = lid.logits(waveforms)
    for row, theirs in zip(ours, alone, strict=True):
        assert relative_error(row, theirs) <= TOLERANCE
    assert relative_error(np.stack(ours), logits(waveforms)) <= TOLERANCE  # padded and masked on their side too
    assert [config.id2label[i] for i in range(len(config.id2label))] == lid.languages


def test_it_knows_the_languages_that_the_demo_recogniser_does(lid):
    assert sorted(lid.languages) == sorted(mms_jax.load_asr(DEMO_MODEL).languages)


def test_every_bundled_clip_is_identified_with_certainty(lid):
    clips = demo_clips()
    assert {clip.language for clip in clips} == set(lid.languages)
    _check(lid.identify([clip.path for clip in clips]), [clip.language for clip in clips])


def test_longer_audio_than_training_heard_is_identified_too(lid):
    silence = np.zeros(SAMPLING_RATE // 2, np.float32)
    joined = []
    for language in lid.languages:
        clips = [load_audio(clip.path) for clip in demo_clips() if clip.language == language] * 3
        joined.append(np.concatenate([part for clip in clips for part in (silence, clip)]))
    assert min(map(len, joined)) > 20 * SAMPLING_RATE
    _check(lid.identify(joined), lid.languages)


def test_noise_leaves_a_clip_its_language(lid):
    rng = np.random.default_rng(0)
    waveforms = []
    for clip in demo_clips():
        samples = load_audio(clip.path)
        noise = rng.standard_normal(samples.size, dtype=np.float32)
        waveforms.append(samples + noise * samples.std() * 10 ** (-NOISE_DB / 20))
    _check(lid.identify(waveforms), [clip.language for clip in demo_clips()])


def test_the_bundle_is_small_and_says_what_it_is():
    assert sum(path.stat().st_size for path in DEMO_LID.iterdir()) <= MAX_BYTES
    card = (DEMO_LID / "README.md").read_text(encoding="utf-8")
    assert "espeak-ng" in card
    assert "license: apache-2.0" in card

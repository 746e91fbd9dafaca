"""The bundled demo: PyTorch loads it as it is and hears the same, and the program shows it."""

import jiwer
import numpy as np
import pytest

import mms_jax
from mms_jax import cli
from mms_jax.audio import load_audio
from mms_jax.pipelines.demo import DEMO_MODEL, demo_clips
from tests.checkpoints import Reference
from tests.parity import relative_error

# Of mms_jax/demo: a recogniser (6.9 MB with its clips), an identifier (2.6), Italian to train on (1.8).
MAX_BYTES = 12_000_000
TOLERANCE = 2e-5  # float32 on both sides, five layers: only the order of summation differs
MAX_CER = 0.15  # of the clips together; the recipe's table, over 200 sentences a language, is in the README


@pytest.fixture(scope="module")
def asr():
    return mms_jax.load_asr(DEMO_MODEL)


@pytest.fixture(scope="module")
def reference():
    return Reference(DEMO_MODEL)


@pytest.mark.parametrize("language", ["eng", "fra", "deu", "spa"])
def test_transformers_loads_the_demo_as_it_is_and_hears_the_same(asr, reference, language):
    reference.choose(language)
    clips = [load_audio(clip.path) for clip in demo_clips() if clip.language == language]
    results = asr.transcribe(clips, language=language)
    logits = asr.logits(clips, language=language)
    assert len(clips) >= 3
    for clip, result, ours in zip(clips, results, logits, strict=True):
        assert relative_error(ours, reference.logits(clip)) <= TOLERANCE
        assert result.text == reference.transcribe(clip)


def test_a_clip_is_heard_worse_in_a_wrong_language(asr):
    clips = [clip for clip in demo_clips() if clip.language == "deu"]
    references = [clip.reference for clip in clips]
    right, wrong = (
        jiwer.cer(references, [result.text for result in asr.transcribe([c.path for c in clips], language=language)])
        for language in ("deu", "eng")
    )
    assert wrong > right + 0.1


def test_silence_around_a_clip_leaves_its_words(asr):
    clip = demo_clips()[0]
    samples = np.pad(load_audio(clip.path), 8000)
    assert asr.transcribe(samples, language=clip.language).text != ""


def test_the_demo_prints_what_was_said_and_heard(capsys):
    assert cli.main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(f"said   {clip.reference}" in out for clip in demo_clips())
    assert "12 of 12 languages right" in out
    assert "00:00:00," in out


def test_the_demo_hears(asr):
    clips = demo_clips()
    heard = asr.transcribe([clip.path for clip in clips], language=[clip.language for clip in clips])
    assert jiwer.cer([clip.reference for clip in clips], [result.text for result in heard]) <= MAX_CER


def test_the_demo_is_small():
    assert sum(path.stat().st_size for path in DEMO_MODEL.parent.rglob("*") if path.is_file()) <= MAX_BYTES

"""The synthesis pipeline against transformers on whole checkpoint directories, and what speech does not depend on."""

from __future__ import annotations

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mms_jax
from mms_jax.errors import SettingError, TextError
from mms_jax.models.trees import flatten
from mms_jax.pipelines.windows import MAX_WINDOW
from tests.parity import quick
from tests.tts_checkpoints import FOX, LONG, SHORT, VOICES, Reference, directory, drawn, load, reference, synthesizer

# float32 on both sides; sums in another order and, in the decoder, half of the multiplications. 1e-6 is seen.
PARITY = 1e-4
# The same operations in other shapes, so that sums go in another order. 2e-7 is seen.
SAME = 1e-5
# Operands rounded to 8 significant bits, relatively 2^-9 each, through two flows and the decoder: of values up to 1,
# 0.005 is seen. float16 has 11 bits: 0.0009.
ROUNDED = {"bfloat16": 0.05, "float16": 0.01}

SILENT: dict[str, Any] = {"noise_scale": 0.0, "noise_scale_duration": 0.0}
KOREAN = VOICES["korean"].sentence


def difference(waveform, expected):
    """The largest one, of as many samples."""
    assert waveform.shape == expected.shape
    assert waveform.dtype == np.float32
    return float(np.abs(waveform - expected).max())


@pytest.mark.parametrize("scales", [{}, SILENT], ids=["noise", "no noise"])
@pytest.mark.parametrize(
    ("name", "text", "speaker"),
    [
        ("english", SHORT, None),
        ("english", "i", None),
        ("english", "kat", None),
        ("english", LONG, None),
        ("speakers", FOX, 2),
        ("deterministic", FOX, None),
        ("korean", KOREAN, None),
    ],
)
def test_speech_is_that_of_transformers(name, text, speaker, scales):
    speech = synthesizer(name).synthesize(text, seed=3, speaker=speaker, **scales)
    expected = reference(name).speak(text, seed=3, speaker=speaker, **scales)
    assert np.abs(expected).max() > 0.1
    assert difference(speech.waveform, expected) <= PARITY


@pytest.mark.parametrize("rate", [0.25, 0.5, 2, 4])
def test_the_speaking_rate_divides_every_duration_as_in_transformers(rate):
    tts = synthesizer("english")
    speech, normal = (tts.synthesize("hello", seed=4, speaking_rate=one) for one in (rate, 1.0))
    assert difference(speech.waveform, reference("english").speak("hello", seed=4, speaking_rate=rate)) <= PARITY
    frames, expected = (len(one.waveform) / tts.config.hop_length for one in (speech, normal))
    num_symbols = len(tts.tokenizer.encode("hello").ids)
    # Each symbol's frames are its duration over the rate, rounded up.
    assert (expected - num_symbols) / rate < frames < expected / rate + num_symbols
    assert (frames > expected) == (rate < 1)


def test_defaults_are_those_of_the_checkpoint():
    tts = synthesizer("english")
    stated: dict[str, Any] = {"speaking_rate": 1.25, "noise_scale": 0.5, "noise_scale_duration": 0.6}
    config = json.loads((directory("english") / "config.json").read_text())
    assert {name: config[name] for name in stated} == stated
    default = tts.synthesize(SHORT).waveform
    np.testing.assert_array_equal(tts.synthesize(SHORT, **stated).waveform, default)
    for name, value in stated.items():
        other = tts.synthesize(SHORT, **stated | {name: value / 2}).waveform
        assert not np.array_equal(other, default), f"{name} has no effect"


# An item is always the same


ITEMS = [(SHORT, 3), ("i", 0), (LONG, 1), ("日本", 5), (FOX, 2), (SHORT, 4), ("i", 7), (FOX, 2)]
BAD = 3


@pytest.fixture(scope="module")
def alone():
    """Each item's waveform by itself; None for the one that cannot be spoken."""
    tts = synthesizer("english")
    return [None if i == BAD else tts.synthesize(text, seed=seed).waveform for i, (text, seed) in enumerate(ITEMS)]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 8])
@pytest.mark.parametrize("order", ["as given", "reversed"])
def test_an_item_is_the_same_alone_and_in_any_list(alone, batch_size, order):
    tts = synthesizer("english")
    places = [*range(len(ITEMS))][:: 1 if order == "as given" else -1]
    texts, seeds = zip(*(ITEMS[place] for place in places), strict=True)
    for place, speech in zip(places, tts.synthesize(texts, seed=seeds, batch_size=batch_size), strict=True):
        assert speech.text == ITEMS[place][0]
        if place == BAD:
            assert isinstance(speech.error, TextError)
        else:
            assert difference(speech.waveform, alone[place]) <= SAME


def test_a_list_of_failures_is_a_list():
    speeches = synthesizer("english").synthesize(["日", ""])
    assert [str(speech.error).split(":")[0] for speech in speeches] == ["item 0", "item 1"]
    assert synthesizer("english").synthesize([]) == []


@pytest.mark.parametrize("kind", [tuple, iter, lambda texts: (text for text in texts), lambda texts: map(str, texts)])
def test_several_texts_may_come_from_anything_that_gives_them_in_order(kind):
    tts = synthesizer("english")
    good, bad = tts.synthesize(kind([SHORT, "日"]), seed=[3, 4])
    assert difference(good.waveform, tts.synthesize(SHORT, seed=3).waveform) <= SAME
    assert str(bad.error).startswith("item 1: ")
    assert tts.synthesize(kind([])) == []


def test_errors_call_the_texts_of_a_list_by_their_names():
    speeches = synthesizer("english").synthesize(["i", "日", "日"], names=["a", "b", "page 3"])
    assert [str(speech.error).split(": nothing to say")[0] for speech in speeches] == ["None", "b", "page 3"]


# Noise


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_voice():
    tts = synthesizer("english")
    first, again, other = (tts.synthesize(SHORT, seed=seed).waveform for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or np.abs(first - other).max() > 0.01
    np.testing.assert_array_equal(tts.synthesize(SHORT).waveform, tts.synthesize(SHORT, seed=0).waveform)


ONE_SEED: list[Any] = [3, np.int64(3), np.array(3), jnp.array(3)]
MANY_SEEDS: list[Any] = [[3, 4], (3, 4), range(3, 5), np.array([3, 4]), jnp.array([3, 4]), [np.array(3), jnp.array(4)]]


def test_one_seed_is_for_all_texts_or_there_is_one_for_each():
    tts = synthesizer("english")
    one = [tts.synthesize(SHORT, seed=seed).waveform for seed in (3, 4)]
    for seeds in MANY_SEEDS:
        both = tts.synthesize([SHORT] * 2, seed=seeds)
        assert max(difference(speech.waveform, expected) for speech, expected in zip(both, one, strict=True)) <= SAME
    for seed in ONE_SEED:
        both = tts.synthesize([SHORT] * 2, seed=seed)
        assert max(difference(speech.waveform, one[0]) for speech in both) <= SAME


def test_each_scale_of_zero_silences_its_own_noise():
    tts = synthesizer("english")
    one, other = (tts.synthesize(SHORT, seed=seed, **SILENT).waveform for seed in (3, 4))
    np.testing.assert_array_equal(one, other)
    rhythm = [tts.synthesize(SHORT, seed=seed, noise_scale_duration=0).waveform for seed in (3, 4)]
    assert difference(*rhythm) > 0.01  # as long, and another voice
    voice = [tts.synthesize(SHORT, seed=seed, noise_scale=0).waveform for seed in (3, 4)]
    assert len(voice[0]) != len(voice[1])


def test_the_noise_of_durations_means_nothing_to_a_deterministic_predictor():
    tts = synthesizer("deterministic")
    speeches = [tts.synthesize(FOX, seed=3, noise_scale_duration=scale).waveform for scale in (0, 2)]
    np.testing.assert_array_equal(*speeches)


# Speakers


def test_speakers_differ_and_one_must_be_chosen():
    tts = synthesizer("speakers")
    assert tts.num_speakers == 3
    voices = [tts.synthesize(FOX, speaker=speaker, **SILENT).waveform for speaker in range(3)]
    assert len({voice.tobytes() for voice in voices}) == 3
    with pytest.raises(SettingError, match=r"3 speakers; choose one: speaker=0 … 2"):
        tts.synthesize(FOX)


@pytest.mark.parametrize("speaker", [3, -1, True, 0.0, "0", np.bool_(True)])
def test_speakers_that_there_are_not_are_refused_with_the_range(speaker):
    with pytest.raises(SettingError, match=r"speaker is .*; this checkpoint has 3: 0 … 2"):
        synthesizer("speakers").synthesize(FOX, speaker=speaker)


def test_numbers_may_be_scalars_and_arrays_of_none_but_one():
    tts = synthesizer("speakers")
    settings = {"speaker": 2, "speaking_rate": 1.5, "noise_scale": 0.5, "noise_scale_duration": 0.25}
    expected = tts.synthesize(FOX, **settings).waveform
    for kind in (np.asarray, jnp.asarray, lambda value: np.asarray(value)[()]):
        given: dict[str, Any] = {name: kind(value) for name, value in settings.items()}
        np.testing.assert_array_equal(tts.synthesize(FOX, **given).waveform, expected)


def test_the_only_speaker_need_not_be_told():
    tts = synthesizer("english")
    np.testing.assert_array_equal(tts.synthesize("i", speaker=0).waveform, tts.synthesize("i").waveform)
    with pytest.raises(SettingError, match="speaker is 1; this checkpoint has 1"):
        tts.synthesize("i", speaker=1)


# The model itself


def test_long_speech_is_that_of_a_single_pass_of_the_module():
    tts = synthesizer("english")
    speech = tts.synthesize(LONG, seed=3)
    num_frames = len(speech.waveform) // tts.config.hop_length
    assert num_frames > 2 * MAX_WINDOW
    ids = jnp.array([tts.tokenizer.encode(LONG).ids])
    noise = drawn(3, ids.shape[1], tts.config.flow_size)

    def speak(params, durations, prior):
        return tts.module.apply(
            {"params": params},
            ids,
            jnp.ones(ids.shape, bool),
            num_frames=num_frames,
            duration_noise=durations * tts.config.noise_scale_duration,
            prior_noise=prior[:, :num_frames] * tts.config.noise_scale,
            speaking_rate=tts.config.speaking_rate,
        )

    output = jax.jit(speak, compiler_options=quick())(tts.params, noise.durations, noise.prior)
    assert output.num_samples.tolist() == [len(speech.waveform)]
    assert difference(speech.waveform, np.asarray(output.waveform[0])) <= SAME


def test_texts_of_a_bucket_share_what_is_compiled():
    tts: Any = synthesizer("english")

    def compiled() -> list[int]:
        return [jitted._cache_size() for jitted in (tts._encode, tts._flow, tts._decode)]

    tts.synthesize("i", speaking_rate=10)  # at this rate all letters take fewer frames than the smallest bucket has
    before = compiled()
    tts.synthesize(["a", "o", "y"], seed=9, speaking_rate=9, noise_scale=0.1, noise_scale_duration=0.3, batch_size=1)
    assert compiled() == before


def test_what_was_said_is_told():
    tts = synthesizer("english")
    english = tts.synthesize("Hello, World!")
    assert (english.text, english.normalized_text, english.dropped) == ("Hello, World!", SHORT, ",!")
    assert not english.romanized
    np.testing.assert_array_equal(english.waveform, tts.synthesize(SHORT).waveform)
    korean = synthesizer("korean").synthesize(KOREAN + "!")
    assert (korean.normalized_text, korean.dropped, korean.romanized) == ("ibwa museun iliya", "!", True)
    assert difference(korean.waveform, synthesizer("korean").synthesize("ibwa museun iliya").waveform) == 0


def test_without_normalisation_nothing_is_dropped():
    tts = synthesizer("english")
    np.testing.assert_array_equal(tts.synthesize(SHORT, normalize=False).waveform, tts.synthesize(SHORT).waveform)
    with pytest.raises(TextError, match="'H', '!'"):
        tts.synthesize("Hello world!", normalize=False)


# Files


@pytest.mark.parametrize(("name", "text", "speaker"), [("speakers", FOX, 1), ("korean", KOREAN, None)])
def test_a_saved_checkpoint_speaks_alike_in_both_libraries(name, text, speaker, tmp_path):
    tts = synthesizer(name)
    expected = tts.synthesize(text, seed=3, speaker=speaker).waveform
    tts.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(load(tmp_path / "saved").synthesize(text, seed=3, speaker=speaker).waveform, expected)
    theirs = Reference(tmp_path / "saved").speak(text, seed=3, speaker=speaker)
    assert difference(expected, theirs) <= PARITY


def test_parameters_cannot_be_exchanged_for_others_that_nobody_would_hear():
    tts = synthesizer("english")
    with pytest.raises(AttributeError):
        tts.params = jax.tree.map(jnp.zeros_like, tts.params)


def test_trained_parameters_are_saved_in_place_of_those_that_were_loaded(tmp_path):
    tts = synthesizer("english")
    trained = jax.tree.map(lambda leaf: leaf * 1.01, tts.params)
    tts.save_pretrained(tmp_path, params=trained)
    expected = Reference(tmp_path).speak(SHORT, seed=3)
    assert difference(load(tmp_path).synthesize(SHORT, seed=3).waveform, expected) <= PARITY
    before = tts.synthesize(SHORT, seed=3).waveform
    assert len(before) != len(expected) or difference(before, expected) > PARITY


@pytest.mark.parametrize("dtype", ROUNDED)
def test_in_half_precision_the_rhythm_is_the_same_and_the_voice_close(dtype):
    half, full = synthesizer("english", dtype), synthesizer("english")
    waveforms = [tts.synthesize(FOX, seed=3).waveform for tts in (half, full)]
    assert 0 < difference(*waveforms) <= ROUNDED[dtype]
    dtypes = {
        path: leaf.dtype.name
        for path, leaf in flatten(half.params).items()
        if leaf.ndim > 1 and leaf.size > max(leaf.shape)
    }
    for path, name in dtypes.items():
        exact = path.startswith(("text_encoder/", "duration_predictor/"))
        assert name == ("float32" if exact else dtype), path
    assert {path.split("/")[0] for path in dtypes} >= {"text_encoder", "duration_predictor", "flow", "decoder"}


def test_it_says_what_it_is():
    tts = synthesizer("speakers", "float32")
    assert (tts.language, tts.sampling_rate, tts.num_speakers) == ("eng", 22_050, 3)
    assert repr(tts) == (
        f"SpeechSynthesizer({str(directory('speakers'))!r}, language='eng', sampling_rate=22050, dtype='float32')"
    )


def test_what_goes_well_says_nothing_on_the_way(capfd, tmp_path):
    """As users have it: nothing patched, and compiled with all optimisations."""
    folder = shutil.copytree(directory("english"), tmp_path / "voice")
    tts = mms_jax.load_tts(folder)
    speech = tts.synthesize(["hello"], seed=3)[0]
    speech.save(tmp_path / "hello.wav")
    assert capfd.readouterr() == ("", "")
    assert difference(speech.waveform, reference("english").speak("hello", seed=3)) <= PARITY

"""``language="auto"``: identified by one model, recognised by the other, and never by a language nobody heard."""

import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mms_jax
from mms_jax.errors import AudioError, CheckpointError, LanguageError
from mms_jax.pipelines.chunks import cut, make_chunking
from mms_jax.pipelines.routing import Router
from tests.checkpoints import LETTERS, many_languages
from tests.sounds import noise
from tests.test_lid_parity import compiling_quickly, save_lid

LABELS = ("fra", "eng", "aze", "deu")  # of them the recogniser has no deu, and aze goes by azj-script_latin
CHUNK: dict[str, Any] = {"chunk_length_s": 1.0, "stride_length_s": 0.1}


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with compiling_quickly():
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return many_languages(tmp_path_factory.mktemp("mms"))


def some_clips():
    """Forty sounds that have little in common."""
    rng = np.random.default_rng(0)
    for seed in range(40):
        tone = np.sin(np.arange(12_000) * rng.uniform(0.005, 3)) * rng.uniform(0.01, 1)
        yield (tone + noise(12_000, seed=seed) * rng.uniform(0, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def lid_directory(tmp_path_factory):
    """A random classifier that is not in love with one label: the mean of its logits over some clips is zero."""
    directory = save_lid(tmp_path_factory.mktemp("lid"), labels=LABELS, num_hidden_layers=1)
    mean = np.mean(mms_jax.load_lid(directory).logits(list(some_clips())), axis=0)
    tensors = load_file(directory / "model.safetensors")
    tensors["classifier.bias"] -= mean
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def lid(lid_directory):
    return mms_jax.load_lid(lid_directory)


@pytest.fixture(scope="module")
def asr(directory, lid):
    return mms_jax.load_asr(directory, lid=lid)


@pytest.fixture(scope="module")
def clips(lid):
    """A clip that the identifier takes for each of its languages, by label."""
    every = list(some_clips())
    found = {result.language: clip for clip, result in zip(every, lid.identify(every), strict=True)}
    assert set(found) == set(LABELS)
    return found


TAGS = {"fra": "fra", "eng": "eng", "aze": "azj-script_latin"}


def test_each_item_is_recognised_in_the_language_that_was_identified(asr, lid, clips):
    order = ["eng", "fra", "aze", "eng"]
    results = asr.transcribe([clips[label] for label in order], language="auto")
    for label, result in zip(order, results, strict=True):
        alone = asr.transcribe(clips[label], language=TAGS[label])
        assert (result.language, result.text) == (TAGS[label], alone.text)
        assert result.language_probability == pytest.approx(lid.identify(clips[label]).probability, rel=1e-4)
        assert alone.language_probability is None


def test_a_language_that_is_heard_but_not_recognised_is_an_error_and_no_other_language(asr, clips):
    results = asr.transcribe([clips["deu"], clips["fra"]], language="auto")
    with pytest.raises(LanguageError, match=r"identified as 'deu' \(\d\.\d\d\)"):
        _ = results[0].text
    assert results[1].language == "fra"
    with pytest.raises(LanguageError, match="deu"):
        asr.transcribe(clips["deu"], language="auto")


def test_candidates_are_the_only_languages_considered(asr, lid, clips):
    for label, clip in clips.items():
        expected = TAGS[lid.identify(clip, languages=["fra", "eng"]).language]
        result = asr.transcribe(clip, language="auto", candidates=["French", "en"])
        assert result.language == expected
        assert label != expected or result.language_probability >= lid.identify(clip).probability


def test_items_of_a_list_may_be_identified_or_not(asr, clips):
    results = asr.transcribe([clips["fra"], clips["fra"]], language=["auto", "eng"])
    assert [result.language for result in results] == ["fra", "eng"]


def test_auto_can_be_chosen_when_loading_and_left_again(directory, lid_directory, clips):
    asr = mms_jax.load_asr(directory, language="auto", lid=lid_directory)
    assert asr.language == "auto"
    assert asr.transcribe(clips["fra"]).language == "fra"
    asr.load_adapter("eng")
    assert (asr.language, asr.transcribe(clips["fra"]).language) == ("eng", "eng")


def test_long_audio_goes_by_its_first_window_that_is_not_silent(asr, lid, clips):
    silence = np.zeros(40_000, np.float32)
    clip = np.concatenate([silence, clips["fra"], clips["eng"], clips["eng"]])
    candidates = ["eng", "fra"]
    result = asr.transcribe(clip, language="auto", candidates=candidates, timestamps="word", **CHUNK)
    spoken = asr.transcribe(clip, language=result.language, timestamps="word", **CHUNK)
    assert (result.text, result.words) == (spoken.text, spoken.words)
    first = next(
        chunk for chunk in cut([clip], make_chunking(asr.config, **CHUNK), asr.config) if np.ptp(chunk.samples)
    )
    assert result.language == lid.identify(first.samples, languages=candidates).language


@pytest.mark.parametrize("silence", [np.zeros(20_000, np.float32), np.zeros(10, np.float32), noise(100)])
def test_silence_is_in_no_language_and_has_no_text(asr, silence):
    result = asr.transcribe(silence, language="auto", timestamps="word")
    assert (result.language, result.text, result.words, result.error) == (None, "", (), None)


def test_a_bad_file_is_its_items_error(asr, clips, tmp_path):
    results = asr.transcribe([tmp_path / "absent.wav", clips["eng"]], language="auto")
    assert isinstance(results[0].error, AudioError)
    assert results[1].language == "eng"


# ------------------------------------------------------------------------------------------------------- bad input


def test_without_an_identification_model_auto_says_what_to_do(directory, clips):
    for ask in (
        lambda: mms_jax.load_asr(directory, language="auto"),
        lambda: mms_jax.load_asr(directory).transcribe(clips["fra"], language="auto"),
        lambda: mms_jax.load_asr(directory).lid,
    ):
        with pytest.raises(LanguageError, match="lid='facebook/mms-lid-126'"):
            ask()


def test_a_recogniser_is_no_identification_model(directory):
    with pytest.raises(CheckpointError):
        _ = mms_jax.load_asr(directory, lid=directory).lid


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (["eng", "klingon"], "klingon"),
        ([], "candidates is empty"),
        ("eng", "give a list"),
        (5, "give a list"),
        (["deu"], "deu"),  # not recognised
        ([None], "None"),
    ],
)
def test_candidates_that_cannot_be_are_named(asr, clips, candidates, message):
    with pytest.raises(LanguageError, match=message):
        asr.transcribe(clips["eng"], language="auto", candidates=candidates)


def test_candidates_without_auto_are_refused(asr, clips):
    with pytest.raises(LanguageError, match="language='auto'"):
        asr.transcribe(clips["eng"], language="eng", candidates=["eng", "fra"])


def test_scripts_that_no_identifier_tells_apart_are_refused(tmp_path, lid, clips):
    letters = LETTERS | {"azj-script_cyrillic": "абвгд"}
    asr = mms_jax.load_asr(many_languages(tmp_path, letters), lid=lid)
    with pytest.raises(LanguageError, match=r"both identified as"):
        asr.transcribe(clips["aze"], language="auto", candidates=["azj-script_latin", "azj-script_cyrillic"])
    result = asr.transcribe([clips["aze"]], language="auto")[0]
    with pytest.raises(LanguageError, match=r"'aze'.*azj-script_cyrillic, azj-script_latin; choose one"):
        _ = result.text
    chosen = asr.transcribe(clips["aze"], language="auto", candidates=["azj-script_cyrillic", "eng", "fra"])
    assert chosen.language in {"azj-script_cyrillic", "eng", "fra"}


def test_a_damaged_adapter_is_the_error_of_the_items_identified_as_it(directory, lid, clips, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    path = copy / "adapter.fra.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    asr = mms_jax.load_asr(copy, lid=lid)
    bad, good = asr.transcribe([clips["fra"], clips["eng"]], language="auto")
    assert good.error is None
    assert isinstance(bad.error, CheckpointError)
    assert "adapter.fra.safetensors" in str(bad.error)


def test_a_language_goes_by_its_own_label_rather_than_its_macrolanguage(directory, tmp_path):
    lid = mms_jax.load_lid(save_lid(tmp_path, labels=("aze", "azj"), num_hidden_layers=1))
    asr = mms_jax.load_asr(directory, lid=lid)
    clip = noise(9_000)
    result = asr.transcribe(clip, language="auto", candidates=["azj-script_latin"])
    assert (result.language, result.language_probability) == ("azj-script_latin", 1.0)
    assert Router(lid, asr.languages, asr._store.resolve, candidates=["az"])._tags == {"azj": "azj-script_latin"}


def test_a_choice_that_fails_changes_nothing(directory, lid):
    without = mms_jax.load_asr(directory, language="eng")
    with pytest.raises(LanguageError, match="identification model"):
        without.load_adapter("auto")
    assert without.language == "eng"
    asr = mms_jax.load_asr(directory, language="auto", lid=lid)
    with pytest.raises(LanguageError, match="klingon"):
        asr.load_adapter("klingon")
    assert asr.language == "auto"
    with pytest.raises(LanguageError, match="another tag"):
        asr.load_adapter(directory / "adapter.fra.safetensors", language="auto")


def test_logits_of_an_unknown_language_are_refused(asr, clips):
    with pytest.raises(LanguageError, match="identify it first"):
        asr.logits(clips["eng"], language="auto")

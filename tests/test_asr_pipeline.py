"""The recognition pipeline against transformers on whole checkpoint directories, and what it does with bad input."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import mms_jax
from mms_jax.errors import (
    AudioError,
    CheckpointError,
    LanguageError,
    NumericsError,
    SettingError,
    VocabularyError,
)
from mms_jax.pipelines.batching import make_batches
from tests.checkpoints import LETTERS, Reference, many_languages, one_vocabulary, vocab
from tests.parity import BASE, relative_error

# float32 on both sides; two layers, sums of at most a few hundred terms in another order.
TOLERANCE = 2e-5
# Rows of a batch go through the same operations in other shapes: only the order of summation may differ.
BATCH_TOLERANCE = 1e-5
# Operands rounded to 8 significant bits (relative 2^-9 each) through two layers and the head.
BFLOAT16_TOLERANCE = 0.1

LENGTHS = (16_000, 0, 1, 399, 400, 720, 5_003, 40_000)


def noise(num_samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return many_languages(tmp_path_factory.mktemp("mms"))


@pytest.fixture(scope="module")
def asr(directory):
    return mms_jax.load_asr(directory)


@pytest.fixture(scope="module")
def reference(directory):
    return Reference(directory)


@pytest.mark.parametrize("language", LETTERS)
def test_logits_and_text_are_those_of_transformers_in_every_language(asr, reference, language):
    reference.choose(language)
    clips = [noise(num_samples, seed) for seed, num_samples in enumerate(LENGTHS)]
    texts = [result.text for result in asr.transcribe(clips, language=language)]
    for clip, logits, text in zip(clips, asr.logits(clips, language=language), texts, strict=True):
        if len(clip) < 400:  # no frame: transformers fails, here it is defined
            assert (logits.shape, text) == ((0, len(vocab(LETTERS[language]))), "")
        else:
            assert relative_error(logits, reference.logits(clip)) <= TOLERANCE
            assert text == reference.transcribe(clip)


def test_a_clip_has_the_same_logits_alone_and_in_any_batch(asr):
    clips = [noise(num_samples, seed) for seed, num_samples in enumerate(LENGTHS)]
    together = asr.logits(clips, language="fra", batch_size=len(clips))
    for clip, logits in zip(clips, together, strict=True):
        alone = asr.logits(clip, language="fra")[0]
        assert np.abs(logits - alone).max(initial=0) <= BATCH_TOLERANCE


def test_each_item_of_a_list_is_heard_in_its_own_language(asr):
    clips = [noise(num_samples, seed) for seed, num_samples in enumerate((3000, 9000, 3000, 5000))]
    languages = ["fra", "eng", "fra", "azj-script_latin"]
    mixed = asr.transcribe(clips, language=languages)
    for clip, language, result in zip(clips, languages, mixed, strict=True):
        assert result.language == language
        assert result.text == asr.transcribe(clip, language=language).text


def test_swapping_languages_is_bit_exact_and_compiles_nothing(directory):
    asr = mms_jax.load_asr(directory)
    clip = noise(8000)
    first = asr.logits(clip, language="eng")[0]
    compiled = asr._recognition.num_compiled
    for language in ("fra", "azj-script_latin", "eng"):  # three vocabulary sizes
        asr.load_adapter(language)
        again = asr.logits(clip)[0]
    np.testing.assert_array_equal(first, again)
    assert asr._recognition.num_compiled == compiled


def test_english_from_its_file_is_english_from_the_base_weights(asr):
    base = asr._store.base_leaves["lm_head"]["kernel"]
    np.testing.assert_array_equal(base, asr._store.read("eng").leaves["lm_head"]["kernel"])


def test_module_and_params_are_usable_as_they_are(asr):
    asr.load_adapter("fra")
    clip = noise(4000)
    features = asr.feature_extractor([clip])
    output = asr.module.apply({"params": asr.params}, *map(jnp.asarray, features))
    assert relative_error(output.logits[0], asr.logits(clip)[0]) <= TOLERANCE


def test_scanned_and_unrolled_layers_agree(directory, asr):
    scanned = mms_jax.load_asr(directory, language="fra", scan_layers=True)
    clip = noise(6000)
    assert relative_error(scanned.logits(clip)[0], asr.logits(clip, language="fra")[0]) <= TOLERANCE


def test_bfloat16_is_close_and_smaller(directory, asr):
    small = mms_jax.load_asr(directory, language="fra", dtype="bfloat16")
    clip = noise(6000)
    assert relative_error(small.logits(clip)[0], asr.logits(clip, language="fra")[0]) <= BFLOAT16_TOLERANCE
    assert small.params["lm_head"]["kernel"].dtype == "bfloat16"


def test_an_adapter_saved_and_loaded_is_bit_equal_and_transformers_loads_it(directory, tmp_path):
    asr = mms_jax.load_asr(directory, language="fra")
    clip = noise(8000)
    expected = asr.logits(clip)[0]
    path = asr.save_adapter(tmp_path)
    other = mms_jax.load_asr(directory, language="eng")
    other.load_adapter(path, language="xyz")
    assert other.language == "xyz"
    assert "xyz" in other.languages
    np.testing.assert_array_equal(other.logits(clip)[0], expected)

    asr.save_adapter(tmp_path, language="eng")
    assert set(json.loads((tmp_path / "vocab.json").read_text())) == {"fra", "eng"}
    for name in ("config.json", "model.safetensors", "processor_config.json"):
        shutil.copy(directory / name, tmp_path)
    reference = Reference(tmp_path)
    reference.choose("fra")
    assert relative_error(expected, reference.logits(clip)) <= TOLERANCE
    assert asr.transcribe(clip).text == reference.transcribe(clip)


def test_saving_never_overwrites_unasked(directory, tmp_path):
    asr = mms_jax.load_asr(directory, language="fra")
    asr.save_adapter(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        asr.save_adapter(tmp_path)
    asr.save_adapter(tmp_path, overwrite=True)


def test_a_fine_tuned_checkpoint_with_another_blank_needs_no_language(tmp_path):
    directory = one_vocabulary(tmp_path, blank_id=7)
    asr, reference, clip = mms_jax.load_asr(directory), Reference(directory), noise(9000)
    assert asr.languages == []
    assert asr.transcribe(clip).text == reference.transcribe(clip)
    with pytest.raises(LanguageError, match="leave language out"):
        asr.transcribe(clip, language="eng")


def test_group_norm_models_are_heard_as_if_alone(tmp_path):
    directory = one_vocabulary(tmp_path, **BASE)
    asr, reference = mms_jax.load_asr(directory), Reference(directory)
    clips = [noise(num_samples, seed) for seed, num_samples in enumerate((5000, 7001, 5000))]
    for clip, logits in zip(clips, asr.logits(clips), strict=True):
        assert relative_error(logits, reference.logits(clip)) <= TOLERANCE


@pytest.mark.parametrize(
    ("given", "tag"), [("fr", "fra"), ("fre", "fra"), ("French", "fra"), ("az", "azj-script_latin")]
)
def test_languages_go_by_any_of_their_names(asr, given, tag):
    assert asr.transcribe(noise(1000), language=given).language == tag


def test_a_language_that_is_not_there_is_an_error_that_names_what_is(asr):
    with pytest.raises(LanguageError, match="deu"):
        asr.transcribe(noise(1000), language="deu")
    with pytest.raises(LanguageError, match="available: azj-script_latin"):
        asr.load_adapter("klingon")


def test_no_language_is_guessed(directory):
    with pytest.raises(LanguageError, match="say which"):
        mms_jax.load_asr(directory).transcribe(noise(1000))


def test_one_language_per_item_is_counted(asr):
    with pytest.raises(LanguageError, match="2 item"):
        asr.transcribe([noise(1000)] * 2, language=["eng"])


def wav(samples, rate=16_000):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_one_bad_item_leaves_the_others_alone(asr, tmp_path):
    good = [noise(7000, seed) for seed in range(3)]
    (tmp_path / "text.wav").write_text("this is no audio")
    bad = [tmp_path / "text.wav", tmp_path / "absent.wav", np.full(5000, np.nan), wav(noise(16_000))[:40]]
    clean = asr.transcribe(good, language="eng")
    mixed = asr.transcribe([good[0], bad[0], bad[1], good[1], bad[2], bad[3], good[2]], language="eng")
    assert [mixed[i].text for i in (0, 3, 6)] == [result.text for result in clean]
    for i, name in ((1, "text.wav"), (2, "absent.wav"), (4, "nan"), (5, "bytes")):
        assert isinstance(mixed[i].error, AudioError)
        assert name in str(mixed[i].error)
        with pytest.raises(AudioError):
            _ = mixed[i].text


def test_a_single_bad_item_raises(asr, tmp_path):
    with pytest.raises(AudioError, match=r"absent\.wav"):
        asr.transcribe(tmp_path / "absent.wav", language="eng")
    with pytest.raises(AudioError, match=r"absent\.wav"):
        asr.logits([noise(1000), tmp_path / "absent.wav"], language="eng")


def test_silence_has_no_text(asr):
    dithered = np.random.default_rng(0).integers(-1, 2, 16_000).astype(np.int16)
    silent = [np.zeros(16_000, np.float32), np.full(16_000, 0.25, np.float32), dithered]
    assert [result.text for result in asr.transcribe(silent, language="eng")] == ["", "", ""]
    assert asr.transcribe(dithered * 2, language="eng").text != ""


def test_output_that_is_not_finite_is_an_error_and_no_text(directory):
    asr = mms_jax.load_asr(directory, language="eng")
    asr.transcribe(noise(5000))
    asr._bank._leaves["lm_head"]["kernel"] *= np.inf
    good = mms_jax.load_asr(directory, language="fra")
    results = asr.transcribe([noise(5000), np.zeros(5000, np.float32)])
    assert isinstance(results[0].error, NumericsError)
    assert results[1].text == ""
    with pytest.raises(NumericsError, match="float32"):
        asr.transcribe(noise(5000))
    assert good.transcribe(noise(5000)).error is None


def test_a_whole_checkpoint_is_saved_for_both_libraries(directory, tmp_path):
    for scan_layers in (False, True):
        asr = mms_jax.load_asr(directory, language="fra", scan_layers=scan_layers)
        trained = jax.tree.map(lambda leaf: leaf * 1.01, asr.params)
        asr.save_pretrained(tmp_path, params=trained)
        clip = noise(7000)
        again, reference = mms_jax.load_asr(tmp_path), Reference(tmp_path)
        expected = asr.module.apply({"params": trained}, *map(jnp.asarray, asr.feature_extractor([clip]))).logits[0]
        assert again.languages == ["fra"]
        assert relative_error(again.logits(clip)[0], expected) <= TOLERANCE
        assert relative_error(reference.logits(clip), expected) <= TOLERANCE
        assert again.transcribe(clip).text == reference.transcribe(clip)


def test_a_sole_language_is_saved_with_its_own_adapter_though_nobody_chose_it(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "vocab.json").write_text(json.dumps({"fra": vocab(LETTERS["fra"])}))
    asr, clip = mms_jax.load_asr(copy), noise(6000)
    asr.save_pretrained(tmp_path / "saved")  # the base weights of the copy hold English
    saved = mms_jax.load_asr(tmp_path / "saved")
    np.testing.assert_array_equal(saved.logits(clip)[0], asr.logits(clip)[0])


def test_a_tag_that_could_be_no_file_name_stands_in_nobodys_way(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    vocabularies = json.loads((copy / "vocab.json").read_text())
    (copy / "vocab.json").write_text(json.dumps(vocabularies | {"zh (cn)": vocabularies["eng"]}))
    assert set(mms_jax.load_asr(copy, language="eng").languages) == set(LETTERS)


def test_languages_without_an_adapter_file_are_not_offered(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "adapter.fra.safetensors").unlink()
    assert "fra" not in mms_jax.load_asr(copy).languages
    for path in copy.glob("adapter.*"):
        path.unlink()
    with pytest.raises(LanguageError, match=r"no adapter\.<language>\.safetensors"):
        mms_jax.load_asr(copy).transcribe(noise(1000), language="eng")


def test_many_items_need_few_shapes_and_no_row_is_padding(asr):
    clips = [noise(num_samples) for num_samples in (*[4000] * 11, *[9000] * 3)]
    batches = list(make_batches(clips, batch_size=16, max_samples=100_000, pad=True))
    rows = [batch.waveforms.samples.shape[0] for batch in batches]
    assert rows == [2, 1, 8, 2, 1]
    assert sorted(index for batch in batches for index in batch.indices) == list(range(14))
    assert all(batch.waveforms.samples.size <= 100_000 for batch in batches)


def test_items_without_a_name_are_named_by_their_number(asr):
    with pytest.raises(AudioError, match="item 1: "):
        asr.logits([noise(1000), np.full(1000, np.nan)], language="eng")


@pytest.mark.parametrize("language", [5, b"eng"])
def test_a_language_of_another_type_is_refused(asr, language):
    with pytest.raises(LanguageError, match="give a code"):
        asr.transcribe(noise(1000), language=language)


def test_audio_of_any_rate_and_channel_count_is_heard(asr):
    stereo = np.stack([noise(8000), noise(8000)], axis=1)
    as_file = asr.transcribe(wav(stereo, 8_000), language="eng")
    as_pair = asr.transcribe((stereo, 8_000), language="eng")
    assert as_file.duration == pytest.approx(1.0)
    assert as_file.text == as_pair.text


def test_ten_hours_are_refused_where_less_is_wanted_before_they_are_decoded(asr, tmp_path):
    path = tmp_path / "ten_hours.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC") as file:
        for _ in range(600):
            file.write(np.zeros(8_000 * 60, np.int16))
    with pytest.raises(AudioError, match=r"ten_hours\.flac"):
        asr.transcribe(path, language="eng", max_duration=3600)


def test_an_empty_list_gives_an_empty_list(asr):
    assert asr.transcribe([], language="eng") == []
    assert asr.logits([], language="eng") == []


def test_a_vocabulary_with_another_blank_than_the_model_is_refused(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"pad_token_id": 3}))
    with pytest.raises(VocabularyError, match="pad_token_id is 3"):
        mms_jax.load_asr(copy, language="eng")


def test_an_adapter_of_another_model_is_refused_by_name(directory, tmp_path):
    asr = mms_jax.load_asr(directory)
    one_vocabulary(tmp_path, adapter_attn_dim=6)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        asr.load_adapter(tmp_path / "model.safetensors", language="xyz")
    with pytest.raises(LanguageError, match="language='xyz'"):
        asr.load_adapter(tmp_path / "adapter.xyz.safetensors")


def test_a_recogniser_says_what_it_is(directory):
    said = repr(mms_jax.load_asr(directory, language="fra", dtype="bfloat16"))
    assert said == f"SpeechRecognizer({str(directory)!r}, 3 languages, 'fra' chosen, bfloat16)"


def test_an_unsupported_dtype_is_named(directory):
    with pytest.raises(SettingError, match="int16"):
        mms_jax.load_asr(directory, dtype="int16")

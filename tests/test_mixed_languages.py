"""A batch whose rows are in different languages: what each row alone would give, whatever the others are."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import mms_jax
from mms_jax.errors import CheckpointError, LanguageError, SettingError
from mms_jax.pipelines.bank import FIRST_SLOTS, AdapterBank
from tests.checkpoints import LETTERS, MORE_LETTERS, Reference, many_languages, vocab
from tests.compilations import compilations
from tests.parity import relative_error
from tests.sounds import noise
from tests.test_lid_parity import compiling_quickly

# float32 on both sides; two layers, sums of at most a few hundred terms in another order.
TOLERANCE = 2e-5
# Rows of a batch go through the same operations in other shapes: only the order of summation may differ.
BATCH_TOLERANCE = 1e-5

LANGUAGES = tuple(MORE_LETTERS)
NUM_SAMPLES = (2_000, 5_000, 5_100, 9_000)  # three buckets


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with compiling_quickly():
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return many_languages(tmp_path_factory.mktemp("five"), MORE_LETTERS)


@pytest.fixture(scope="module")
def asr(directory):
    return mms_jax.load_asr(directory)


@pytest.fixture(scope="module")
def clips():
    return [noise(num_samples, seed=seed) for seed, num_samples in enumerate(NUM_SAMPLES * 4)]


@pytest.fixture(scope="module")
def alone(asr, clips):
    """Logits of every clip in every language, by itself."""
    return {
        (number, language): asr.logits(clip, language=language)[0]
        for number, clip in enumerate(clips)
        for language in LANGUAGES
    }


def slot_bytes(asr):
    """What one language takes on the device."""
    for language in LANGUAGES:
        asr.transcribe(noise(400), language=language)
    return asr._bank._slot_bytes


def test_the_vocabularies_differ_in_size_so_that_padded_heads_are_tested():
    assert len({len(vocab(letters)) for letters in MORE_LETTERS.values()}) == len(LANGUAGES) == 5


def test_sixteen_rows_in_five_languages_are_what_each_is_alone(asr, clips, alone):
    languages = [LANGUAGES[number % 5] for number in range(16)]
    for logits, key in zip(
        asr.logits(clips, language=languages, batch_size=16), zip(range(16), languages, strict=True), strict=True
    ):
        assert logits.shape == alone[key].shape
        assert np.abs(logits - alone[key]).max() <= BATCH_TOLERANCE
        np.testing.assert_array_equal(logits.argmax(-1), alone[key].argmax(-1))


def test_no_token_flips_in_a_thousand_random_batches(asr, clips, alone):
    rng = np.random.default_rng(0)
    texts = {
        (number, language): asr._bank.alphabet(language).vocabulary.decode(logits.argmax(-1))
        for (number, language), logits in alone.items()
    }
    assert len(set(texts.values())) > 40  # a mix-up of rows or languages would show
    for _ in range(1000):
        numbers = rng.integers(len(clips), size=rng.integers(1, 9)).tolist()
        languages = [LANGUAGES[i] for i in rng.integers(5, size=len(numbers))]
        results = asr.transcribe([clips[number] for number in numbers], language=languages)
        assert [result.text for result in results] == [texts[key] for key in zip(numbers, languages, strict=True)]


def test_a_mixed_batch_is_what_transformers_gives_by_changing_adapters(asr, directory, clips):
    reference = Reference(directory)
    languages = [LANGUAGES[(3 * number) % 5] for number in range(16)]
    texts = asr.transcribe(clips, language=languages)
    logits = asr.logits(clips, language=languages)
    for clip, language, text, ours in zip(clips, languages, texts, logits, strict=True):
        reference.choose(language)
        assert relative_error(ours, reference.logits(clip)) <= TOLERANCE
        assert text.text == reference.transcribe(clip)


@pytest.mark.parametrize("settings", [{"scan_layers": True}, {"dtype": "bfloat16"}])
def test_a_mixed_batch_is_one_call_however_the_model_is_loaded(directory, clips, settings):
    asr = mms_jax.load_asr(directory, **settings)
    same = [clips[1]] * 4
    single = [asr.logits(clips[1], language=language)[0] for language in LANGUAGES[1:]]
    before = asr._recognition.num_compiled
    mixed = asr.logits(same, language=LANGUAGES[1:])
    assert asr._recognition.num_compiled == before + 1  # four rows: one shape, whatever is in them
    for one, many in zip(single, mixed, strict=True):
        assert relative_error(many, one) <= TOLERANCE


def test_text_is_decoded_with_the_vocabulary_of_the_adapter_that_heard_it(directory, clips, alone):
    """While one thread replaces an adapter, another hears one or the other, never a mixture."""
    asr = mms_jax.load_asr(directory)
    wanted = {
        asr.tokenizer.vocabulary(language).decode(alone[1, language].argmax(-1))
        for language in ("fra", "azj-script_latin")
    }
    assert len(wanted) == 2

    def replace_it(number):
        language = ("fra", "azj-script_latin")[number % 2]
        path = directory / f"adapter.{language}.safetensors"
        asr.load_adapter(path, language="xyz", vocab=vocab(MORE_LETTERS[language]))

    replace_it(0)
    with ThreadPoolExecutor(1) as pool:
        replaced = pool.map(replace_it, range(60))
        heard = {asr.transcribe(clips[1], language="xyz").text for _ in range(60)}
        list(replaced)
    assert heard <= wanted


def test_a_new_language_takes_a_free_slot_and_nothing_is_compiled(directory, clips):
    asr = mms_jax.load_asr(directory)
    batch = clips[1], clips[5]  # of one length
    first = asr.transcribe(batch, language=["eng", "azj-script_latin"])
    with compilations() as compiled:
        later = asr.transcribe(batch, language=["fra", "deu"])
        again = asr.transcribe(batch, language=["eng", "azj-script_latin"])
    assert compiled == []
    assert [result.text for result in again] == [result.text for result in first]
    assert [result.language for result in later] == ["fra", "deu"]


def test_a_wider_vocabulary_widens_every_head_once_and_changes_no_result(directory, clips):
    asr = mms_jax.load_asr(directory)
    before = asr.logits(clips[1], language="fra")[0]
    assert asr._bank._width == 64
    asr.transcribe(clips[1], language="cmn-script_simplified")
    assert asr._bank._width == 256
    np.testing.assert_allclose(asr.logits(clips[1], language="fra")[0], before, atol=BATCH_TOLERANCE, rtol=0)


def test_more_languages_than_fit_are_split_and_the_least_recently_used_leave(directory, asr, clips, alone):
    small = mms_jax.load_asr(directory, adapter_memory=2 * slot_bytes(asr))
    languages = [LANGUAGES[number % 5] for number in range(8)]
    for logits, key in zip(
        small.logits([clips[1]] * 8, language=languages), zip([1] * 8, languages, strict=True), strict=True
    ):
        assert np.abs(logits - alone[key]).max() <= BATCH_TOLERANCE
    assert small._bank.capacity == 2
    for language in ("eng", "fra", "eng", "deu"):
        small.transcribe(clips[0], language=language)
    assert list(small._bank._slots) == ["eng", "deu"]


def test_where_three_languages_fit_rows_still_come_in_powers_of_two(directory, asr, clips, alone):
    small = mms_jax.load_asr(directory, adapter_memory=3 * slot_bytes(asr))
    languages = [LANGUAGES[number % 5] for number in range(8)]
    found = small.logits([clips[1]] * 8, language=languages)
    assert small._bank.capacity == 3
    assert {rows for rows, *_ in small._recognition._compiled} <= {1, 2, 4, 8}
    for logits, language in zip(found, languages, strict=True):
        assert np.abs(logits - alone[1, language]).max() <= BATCH_TOLERANCE


def test_a_file_that_is_gone_when_it_is_read_again_is_its_items_error(directory, clips, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    asr = mms_jax.load_asr(copy, adapter_memory=0)
    expected = asr.transcribe(clips[1], language="eng").text
    for language in ("fra", "eng", "deu"):
        asr.transcribe(clips[1], language=language)
    (copy / "adapter.fra.safetensors").unlink()
    results = asr.transcribe([clips[1]] * 4, language=["deu", "fra", "eng", "fra"])
    assert [result.error is None for result in results] == [True, False, True, False]
    assert "adapter.fra.safetensors" in str(results[1].error)
    assert results[2].text == expected


def test_memory_for_less_than_one_adapter_holds_one(directory, clips, alone):
    asr = mms_jax.load_asr(directory, adapter_memory=0)
    mixed = asr.logits([clips[1]] * 2, language=["eng", "fra"])
    for logits, language in zip(mixed, ("eng", "fra"), strict=True):
        assert np.abs(logits - alone[1, language]).max() <= BATCH_TOLERANCE


def test_slots_are_made_as_languages_come_and_never_beyond_the_memory():
    leaves = {"lm_head": {"kernel": jnp.ones((4, 64)), "bias": jnp.ones(64)}}
    adapter_bytes = sum(leaf.nbytes for leaf in leaves["lm_head"].values())

    class Adapter:
        vocabulary, vocab_size = None, 64

        def __init__(self, language):
            self.language, self.leaves = language, leaves

    read: Any = Adapter  # of a LanguageAdapter the bank needs no more than this
    bank = AdapterBank(read, memory=40 * adapter_bytes + 1)
    sizes = []
    for number in range(60):
        bank.alphabet(f"x{number}")
        sizes.append(bank._leaves["lm_head"]["bias"].shape[0])
    assert sizes[:2] == [1, FIRST_SLOTS]
    assert sorted(set(sizes)) == [1, 16, 32, 40]
    assert len(bank._slots) == 40
    assert list(bank._slots)[-1] == "x59"


def test_many_threads_hear_what_one_hears(directory, clips, alone):
    asr = mms_jax.load_asr(directory, adapter_memory=0)  # every call evicts what another needs
    rng = np.random.default_rng(1)
    requests = [[(int(rng.integers(16)), LANGUAGES[i]) for i in rng.integers(5, size=4)] for _ in range(40)]

    def heard(request):
        numbers, languages = zip(*request, strict=True)
        return asr.logits([clips[number] for number in numbers], language=languages)

    with ThreadPoolExecutor(8) as pool:
        for request, found in zip(requests, pool.map(heard, requests), strict=True):
            for key, logits in zip(request, found, strict=True):
                np.testing.assert_allclose(logits, alone[key], atol=BATCH_TOLERANCE, rtol=0)


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_language_that_is_not_there_is_its_items_error_in_a_list(asr, clips):
    results = asr.transcribe(clips[:4], language=["eng", "deux", "fra", None])
    assert [result.error is None for result in results] == [True, False, True, False]
    assert "deux" in str(results[1].error)
    with pytest.raises(LanguageError, match="deux"):
        _ = results[1].text
    with pytest.raises(LanguageError, match="say which"):
        _ = results[3].text
    assert results[2].text == asr.transcribe(clips[2], language="fra").text


@pytest.mark.parametrize("languages", [{"eng", "fra"}, {"eng": 1, "fra": 2}, np.array("eng"), 5, b"eng"])
def test_languages_in_no_order_are_refused(asr, clips, languages):
    with pytest.raises(LanguageError, match="give a code, a name, or a list"):
        asr.transcribe(clips[:2], language=languages)


def test_languages_may_come_as_an_array_and_what_is_none_is_its_items_error(asr, clips):
    results = asr.transcribe(clips[:2], language=np.array(["eng", "fra"]))
    assert [type(result.language) for result in results] == [str, str]
    results = asr.transcribe(clips[:3], language=[["eng"], 5, "fra"])
    assert [isinstance(result.error, LanguageError) for result in results] == [True, True, False]


def test_as_many_languages_as_items_are_asked_for(asr, clips):
    for languages in (["eng"], ["eng"] * 3, []):
        with pytest.raises(LanguageError, match=f"2 item.*{len(languages)} language"):
            asr.transcribe(clips[:2], language=languages)


def test_a_damaged_adapter_is_the_error_of_its_items_and_names_the_file(directory, clips, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    path = copy / "adapter.fra.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    asr = mms_jax.load_asr(copy)
    good, bad = asr.transcribe(clips[:2], language=["eng", "fra"])
    assert good.error is None
    assert isinstance(bad.error, CheckpointError)
    assert "adapter.fra.safetensors" in str(bad.error)
    with pytest.raises(CheckpointError, match=r"adapter\.fra\.safetensors"):
        asr.transcribe(clips[0], language="fra")


def test_a_vocabulary_with_ids_twice_or_beyond_the_head_is_named(directory, clips, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    text = (copy / "vocab.json").read_text(encoding="utf-8")
    for tokens, message in (({"<pad>": 0, "a": 1, "b": 1}, "same id 1"), ({"<pad>": 0, "a": 999}, "no token has")):
        (copy / "vocab.json").write_text(json.dumps(json.loads(text) | {"fra": tokens}), encoding="utf-8")
        results = mms_jax.load_asr(copy).transcribe(clips[:2], language=["eng", "fra"])
        assert results[0].error is None
        assert message in str(results[1].error)
        assert "vocab.json" in str(results[1].error)


def test_an_adapter_added_again_under_its_name_is_the_one_that_is_used(directory, clips, alone):
    asr = mms_jax.load_asr(directory)
    for language in ("fra", "eng"):
        path = directory / f"adapter.{language}.safetensors"
        asr.load_adapter(path, language="xyz", vocab=vocab(LETTERS[language]))
        found = asr.logits(clips[1:3], language=["xyz", "deu"])
        np.testing.assert_allclose(found[0], alone[1, language], atol=BATCH_TOLERANCE, rtol=0)


@pytest.mark.parametrize("memory", [-1, "1 GB", 1.5])
def test_memory_that_is_no_number_of_bytes_is_refused(directory, memory):
    with pytest.raises(SettingError, match="adapter_memory"):
        mms_jax.load_asr(directory, adapter_memory=memory)

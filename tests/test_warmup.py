"""Shapes are few and compiled beforehand: after a warm-up nothing is compiled, whatever comes."""

import numpy as np
import pytest

import mms_jax
from mms_jax.errors import LanguageError, SettingError
from tests.checkpoints import LETTERS, many_languages, one_vocabulary
from tests.compilations import compilations
from tests.parity import BASE
from tests.sounds import noise
from tests.test_lid_parity import compiling_quickly, save_lid


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with compiling_quickly():
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return many_languages(tmp_path_factory.mktemp("mms"))


def test_nothing_is_compiled_after_a_warm_up_over_two_hundred_random_lists(directory):
    asr = mms_jax.load_asr(directory)
    with compilations() as first:
        count = asr.warmup(languages=LETTERS, max_duration=0.2, batch_size=4)
    assert len(first) >= count > 10
    rng = np.random.default_rng(0)
    languages = tuple(LETTERS)
    with compilations() as compiled:
        for _ in range(200):
            clips = [noise(int(rng.integers(0, 9_000))) for _ in range(rng.integers(1, 10))]  # some of them in windows
            chosen = [languages[i] for i in rng.integers(3, size=len(clips))]
            asr.transcribe(clips, language=chosen, batch_size=4, chunk_length_s=0.2, timestamps="word")
    assert compiled == []
    assert asr.warmup(languages=LETTERS, max_duration=0.2, batch_size=4) == count


def test_a_warm_up_of_auto_compiles_the_identifier_and_the_widest_head_too(directory, tmp_path):
    lid = mms_jax.load_lid(save_lid(tmp_path, labels=("eng", "fra"), num_hidden_layers=1))
    asr = mms_jax.load_asr(directory, language="auto", lid=lid)
    asr.warmup(max_duration=0.1, batch_size=2)
    asr.warmup(languages=["auto", "eng", "fra"], max_duration=0.1, batch_size=2)
    with compilations() as compiled:
        for seed in range(10):
            asr.transcribe([noise(400 + 120 * seed, seed=seed), noise(1_000, seed=seed)], batch_size=2)
    assert compiled == []


def test_what_was_not_warmed_up_is_compiled(directory):
    asr = mms_jax.load_asr(directory, language="eng")
    asr.warmup(max_duration=0.1, batch_size=1)
    with compilations() as compiled:
        asr.transcribe(noise(9_000))
    assert compiled


def test_a_model_that_never_pads_has_nothing_to_warm_up(tmp_path):
    asr = mms_jax.load_asr(one_vocabulary(tmp_path, **BASE))
    assert asr.warmup() == 0


def test_a_warm_up_needs_languages_it_can_find(directory):
    asr = mms_jax.load_asr(directory)
    with pytest.raises(LanguageError, match="say which"):
        asr.warmup()
    with pytest.raises(LanguageError, match="klingon"):
        asr.warmup(languages=["klingon"])


@pytest.mark.parametrize("settings", [{"max_duration": 121}, {"max_duration": -1}, {"batch_size": 0}])
def test_a_warm_up_out_of_its_range_is_refused(directory, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        mms_jax.load_asr(directory, language="eng").warmup(**settings)

"""Language identification on whole checkpoint directories: against transformers, in lists, and with bad input."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

import mms_jax
from mms_jax.checkpoint import read_labels
from mms_jax.errors import AudioError, CheckpointError, ConfigError, LanguageError, NumericsError, SettingError
from tests.checkpoints import many_languages
from tests.parity import BASE, relative_error
from tests.sounds import noise
from tests.test_lid_parity import LABELS, SHORT, compiling_quickly, label_names, save_lid

# float32 on both sides; two layers, sums of at most a few hundred terms in another order.
TOLERANCE = 2e-5
# Rows of a batch go through the same operations in other shapes: only the order of summation may differ.
BATCH_TOLERANCE = 1e-5
# Operands rounded to 8 significant bits (relative 2^-9 each) through two layers and the head.
BFLOAT16_TOLERANCE = 0.1
# float32 probabilities: each is off by some steps of 6e-8.
SUM_TOLERANCE = 1e-6


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with compiling_quickly():
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_lid(tmp_path_factory.mktemp("lid"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def lid(directory):
    return mms_jax.load_lid(directory)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return save_lid(tmp_path_factory.mktemp("short"), **SHORT)


class Reference:
    """transformers, used as its documentation says, one clip at a time."""

    def __init__(self, directory):
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(directory)
        self.model: Any = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(directory).eval()

    @torch.no_grad()
    def logits(self, clip):
        inputs = self.extractor(clip, sampling_rate=16_000, return_tensors="pt")
        return self.model(**inputs).logits[0].numpy()

    def ranking(self, clip):
        """Every (label, probability), the most probable first."""
        probabilities = torch.softmax(torch.from_numpy(self.logits(clip)), dim=-1)
        order = torch.argsort(probabilities, descending=True)
        return [(self.model.config.id2label[int(i)], float(probabilities[i])) for i in order]


@pytest.fixture(scope="module")
def reference(directory):
    return Reference(directory)


LENGTHS = (400, 5_003, 4_900, 719)


def test_logits_and_languages_are_those_of_transformers(lid, reference):
    clips = [noise(num_samples, seed=seed) for seed, num_samples in enumerate(LENGTHS)]
    logits, results = lid.logits(clips), lid.identify(clips, top_k=3)
    for clip, own, result in zip(clips, logits, results, strict=True):
        assert own.dtype == np.float32
        assert relative_error(own, reference.logits(clip)) <= TOLERANCE
        expected = reference.ranking(clip)[:3]
        assert [language for language, _ in result.top] == [language for language, _ in expected]
        np.testing.assert_allclose([p for _, p in result.top], [p for _, p in expected], atol=TOLERANCE)
        assert (result.language, result.probability) == result.top[0]
        assert result.duration == len(clip) / 16_000


def test_group_norm_models_hear_clips_as_if_alone(tmp_path):
    directory = save_lid(tmp_path, **BASE | SHORT)
    lid, reference = mms_jax.load_lid(directory), Reference(directory)
    clips = [noise(num_samples, seed=seed) for seed, num_samples in enumerate((300, 391, 300))]
    for clip, logits in zip(clips, lid.logits(clips), strict=True):
        assert relative_error(logits, reference.logits(clip)) <= TOLERANCE


def test_a_clip_has_the_same_logits_alone_and_in_any_list(short):
    lid = mms_jax.load_lid(short)
    clips = [noise(num_samples, seed=num_samples) for num_samples in (397, 10, 300, 150, 22, 250, 399)]
    for clip, logits in zip(clips, lid.logits(clips, batch_size=4), strict=True):
        assert np.abs(logits - lid.logits(clip)[0]).max() <= BATCH_TOLERANCE


def test_scanned_layers_and_bfloat16_agree_with_the_plain_model(short):
    clip, expected = noise(400), mms_jax.load_lid(short).logits(noise(400))[0]
    assert relative_error(mms_jax.load_lid(short, scan_layers=True).logits(clip)[0], expected) <= TOLERANCE
    small = mms_jax.load_lid(short, dtype="bfloat16")
    assert relative_error(small.logits(clip)[0], expected) <= BFLOAT16_TOLERANCE
    assert small.params["projector"]["kernel"].dtype == "bfloat16"


@pytest.mark.parametrize("top_k", [1, 2, 5, 6, 1000, np.int64(3)])
def test_probabilities_fall_and_add_up_to_one_over_all_labels(lid, top_k):
    top = lid.identify(noise(5000), top_k=top_k).top
    probabilities = [probability for _, probability in top]
    assert len(top) == min(top_k, len(LABELS))
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(type(probability) is float for probability in probabilities)
    total = sum(probabilities)
    assert abs(total - 1) <= SUM_TOLERANCE if top_k >= len(LABELS) else total < 1 - SUM_TOLERANCE


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["fra", "deu"], {"fra", "deu"}),
        (["fr", "German", "ger", "deu"], {"fra", "deu"}),  # a language named twice counts once
        (("en-US", "zh"), {"eng", "cmn"}),
        (iter(["azj"]), {"azj"}),
    ],
)
def test_a_restriction_leaves_the_proportions_of_the_languages_it_names(lid, given, labels):
    clip = noise(5000)
    everything = dict(lid.identify(clip, top_k=9).top)
    top = dict(lid.identify(clip, top_k=9, languages=given).top)
    share = sum(everything[label] for label in labels)
    assert top.keys() == labels
    assert abs(sum(top.values()) - 1) <= SUM_TOLERANCE
    for label, probability in top.items():
        assert probability == pytest.approx(everything[label] / share, abs=TOLERANCE)


def test_module_and_params_are_usable_as_they_are(lid):
    clip = noise(5000)
    output = jax.jit(lid.module.apply)({"params": lid.params}, *lid.feature_extractor([clip]))
    assert relative_error(output.logits[0], lid.logits(clip)[0]) <= TOLERANCE
    assert lid.languages == list(LABELS)
    assert repr(lid).endswith("5 languages, float32)")
    assert lid.config.classifier_proj_size == 13


def test_a_trained_model_is_saved_for_both_libraries(short, tmp_path):
    lid = mms_jax.load_lid(short, scan_layers=True)
    trained, clip = jax.tree.map(lambda leaf: leaf * 1.01, lid.params), noise(400)
    lid.save_pretrained(tmp_path, params=trained)
    again = mms_jax.load_lid(tmp_path)
    expected = jax.jit(lid.module.apply)({"params": trained}, *lid.feature_extractor([clip])).logits[0]
    assert again.languages == lid.languages
    assert again.feature_extractor == lid.feature_extractor
    assert relative_error(again.logits(clip)[0], expected) <= TOLERANCE
    assert relative_error(Reference(tmp_path).logits(clip), expected) <= TOLERANCE


# Bad input


def test_one_bad_item_leaves_the_others_alone(lid, tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio")
    bad = {
        "text.wav": tmp_path / "text.wav",
        "absent.wav": str(tmp_path / "absent.wav"),
        "nan": np.full(5000, np.nan),
        "item 5: <array of shape (0,)>: 0 samples": np.zeros(0, np.float32),
        "item 6: <array of shape (399,)>: 399 samples are less than one frame (25 ms)": noise(399),
        "item 7: <array of shape (5000,)>: digital silence": np.full(5000, 0.25, np.float32),
    }
    good = [noise(5003, seed=1), noise(4900, seed=2)]
    clean, mixed = lid.identify(good, top_k=2), lid.identify([good[0], good[1], *bad.values()], top_k=2)
    assert mixed[:2] == clean
    for result, reason in zip(mixed[2:], bad, strict=True):
        assert isinstance(result.error, AudioError)
        assert reason in str(result.error)
        for use in (lambda r: r.top, lambda r: r.language, lambda r: r.probability):
            with pytest.raises(AudioError):
                use(result)
    assert [result.duration for result in mixed[2:]] == [0, 0, 0, 0, 399 / 16_000, 5000 / 16_000]


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_a_single_clip_too_short_to_be_in_a_language_raises(lid, num_samples):
    for use in (lid.identify, lid.logits):
        with pytest.raises(AudioError, match=f"^<array of shape .*{num_samples} samples are less than one frame"):
            use(noise(num_samples))


def test_silence_is_in_no_language_and_near_silence_in_some(lid):
    dithered = np.random.default_rng(0).integers(-1, 2, 5000).astype(np.int16)
    for silent in (np.zeros(5000, np.float32), dithered):
        with pytest.raises(AudioError, match="digital silence"):
            lid.identify(silent)
        assert np.isfinite(lid.logits(silent)[0]).all()
    assert lid.identify(dithered * 2).language in LABELS


def test_what_is_too_long_is_refused(lid):
    with pytest.raises(AudioError, match="max_duration"):
        lid.identify(noise(20_000), max_duration=1.0)


def test_an_empty_list_gives_an_empty_list(lid):
    assert lid.identify([]) == lid.logits([]) == []


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True, "3", None])
def test_top_k_is_a_whole_number_from_one(lid, top_k):
    with pytest.raises(SettingError, match="top_k is"):
        lid.identify(noise(5000), top_k=top_k)


@pytest.mark.parametrize(
    ("languages", "reason"),
    [
        (["fra", "yue"], "'yue' (Chinese, Yue) .*nearest: cmn"),
        (["fra", "nld"], "'nld' (Dutch) .*available: .*fra"),
        (["fra", "klingon"], "'klingon' .*available: .*eng"),
        (["fra", ""], "must be a code"),
        (["fra", 5], "must be a code"),
        ([], "languages is empty"),
        ("fra", "give a list"),
        (b"fra", "give a list"),
        (5, "give a list"),
    ],
)
def test_a_restriction_to_what_is_not_there_is_an_error_that_names_what_is(lid, languages, reason):
    with pytest.raises(LanguageError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        lid.identify("absent.wav", languages=languages)  # before anything is decoded


def test_output_that_is_not_finite_is_an_error_and_no_language(short):
    lid = mms_jax.load_lid(short)
    lid.params["classifier"]["bias"] *= np.inf
    results = lid.identify([noise(400), noise(5)])
    assert isinstance(results[0].error, NumericsError)
    assert isinstance(results[1].error, AudioError)
    with pytest.raises(NumericsError, match="float32"):
        lid.identify(noise(400))


def test_each_kind_of_checkpoint_names_the_loader_it_needs(directory, tmp_path):
    recognition = many_languages(tmp_path)
    with pytest.raises(ConfigError, match=r"recognition .* use load_asr"):
        mms_jax.load_lid(recognition)
    with pytest.raises(CheckpointError, match="a classifier: use load_lid"):
        mms_jax.load_asr(directory)
    edit_config(recognition, id2label={"0": "eng", "1": "fra"})  # transformers 4 writes such labels everywhere
    with pytest.raises(CheckpointError, match=r"unknown: lm_head\.bias.* use load_asr"):
        mms_jax.load_lid(recognition)
    edit_config(directory_copy := save_lid(tmp_path / "classifier", **SHORT), model_type="vits")
    with pytest.raises(ConfigError, match="use load_tts"):
        mms_jax.load_lid(directory_copy)


def edit_config(directory, **changes):
    """Change or, with None, remove attributes of a config.json."""
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id2label": None}, "no id2label"),
        ({"id2label": {}}, "no id2label"),
        ({"id2label": ["eng", "fra"]}, "no id2label"),
        ({"id2label": {"0": "eng", "2": "fra"}}, "id2label has no '1' but '2'"),
        ({"id2label": {"1": "eng", "2": "fra"}}, "id2label has no '0' but '2'"),
        ({"id2label": {"00": "eng", "1": "fra"}}, "id2label has no '0' but '00'"),
        ({"id2label": {"0": "eng", "1": "eng"}}, "both 0 and 1 'eng'"),
        ({"id2label": {"0": "eng", "1": 7}}, "names 1 7, which is no text"),
        ({"id2label": {"0": "eng", "1": [" "]}}, "which is no text"),
        ({"id2label": {"0": "eng", "1": " "}}, "which is no text"),
        ({"id2label": {"0": "eng", "1": "fra"}}, r"label2id and id2label disagree about 'azj'"),
        ({"label2id": dict.fromkeys(LABELS, 0)}, "disagree about 'azj'"),
        ({"label2id": [0, 1, 2]}, "label2id and id2label disagree"),
        ({"num_labels": 7}, "num_labels is 7, but id2label has 5"),
        ({"use_weighted_layer_sum": True}, "weighted layer sums are not implemented"),
        ({"classifier_proj_size": "wide"}, "classifier_proj_size is 'wide'"),
    ],
)
def test_labels_that_cannot_be_right_are_refused_with_the_fault(tmp_path, changes, reason):
    directory = save_lid(tmp_path, **SHORT)
    edit_config(directory, **changes)
    with pytest.raises(ConfigError, match=rf"config\.json: {reason}|config\.json: .*{reason}"):
        mms_jax.load_lid(directory)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"id2label": dict(enumerate(label_names(4))), "label2id": None},
            r"classifier\.(bias|weight) has shape \[5.*asks for \[4",
        ),
        ({"classifier_proj_size": 14}, r"has shape \[.*13.*asks for \[.*14"),
    ],
)
def test_a_head_of_another_size_than_the_config_is_refused_by_name(tmp_path, changes, reason):
    directory = save_lid(tmp_path, **SHORT)
    edit_config(directory, **changes)
    with pytest.raises(CheckpointError, match=reason):
        mms_jax.load_lid(directory)


def test_ids_that_a_script_wrote_as_text_are_read():
    values = {"id2label": {"1": "fra", "0": "eng"}, "label2id": {"eng": "0", "fra": "1"}}
    assert read_labels(values, source="config.json") == ("eng", "fra")
    assert len(read_labels({"id2label": {str(i): str(i) for i in range(4017)}}, source="config.json")) == 4017


def test_labels_that_repeat_are_not_saved(lid, tmp_path):
    lid = mms_jax.load_lid(save_lid(tmp_path / "good", **SHORT))
    lid._labels = ("eng",) * len(LABELS)
    with pytest.raises(ConfigError, match="both 0 and 1 'eng'"):
        lid.save_pretrained(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()

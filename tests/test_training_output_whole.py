"""Training from a base that has no adapters, and of a whole model: the weights are written here, and both load them."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import mms_jax
from mms_jax.checkpoint import (
    Checkpoint,
    base_fingerprint,
    load_ctc,
    load_feature_extractor,
    load_processor,
    open_source,
)
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import TrainingError
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.training.files.output import prepare_model_directory, save_model
from tests.checkpoints import vocab
from tests.parity import MMS_CONVS, random_model, relative_error, small_config
from tests.sounds import noise
from tests.test_lid_parity import compiling_quickly
from tests.training_outputs import (
    CONFIG,
    LETTERS,
    PARITY,
    WEIGHTS,
    adapter,
    assert_both_load,
    contents,
    logits_of_transformers,
    mms,
    output,
    trained,
)
from tests.training_outputs import pretrained as pretrained_checkpoint


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly() -> Iterator[None]:
    with compiling_quickly():
        yield


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    return Path(shutil.copytree(pretrained_checkpoint(), tmp_path / "pretrained"))


# A base without adapters: written whole


def test_a_pretrained_encoder_is_written_whole_with_the_first_language_inside(pretrained, tmp_path):
    before = contents(pretrained)
    trained(tmp_path / "out", pretrained, "tur")
    assert_both_load(tmp_path / "out", "tur")
    whole, waveform = contents(tmp_path / "out")[WEIGHTS], noise(8000)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "out").eval()  # not asked for any language
    with torch.no_grad():
        inside = model(torch.from_numpy(load_processor(open_source(tmp_path / "out")).feature_extractor([waveform])[0]))
    assert relative_error(inside.logits[0].numpy(), logits_of_transformers(tmp_path / "out", "tur", waveform)) <= PARITY
    trained(tmp_path / "out", pretrained, "swe")
    assert contents(tmp_path / "out")[WEIGHTS] == whole
    assert_both_load(tmp_path / "out", "tur", "swe")
    assert contents(pretrained) == before
    assert base_fingerprint(open_source(tmp_path / "out")) == base_fingerprint(open_source(pretrained))


def test_what_is_inside_whole_weights_is_the_language_s_last_adapter(pretrained, tmp_path):
    output(tmp_path / "out", pretrained, "tur").prepare()
    for seed in range(2):  # every time as another job would, which knows what is on the disk only
        directory = output(tmp_path / "out", pretrained, "tur")
        directory.write_adapter("tur", adapter(directory, "tur", seed=seed))
    output(tmp_path / "out", pretrained, "tur").finish()
    inside = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "out")
    assert inside.config.vocab_size == len(vocab(LETTERS["tur"]))
    np.testing.assert_array_equal(
        inside.lm_head.weight.detach().numpy().T, adapter(directory, "tur", seed=1)["lm_head"]["kernel"]
    )
    before = (tmp_path / "out" / WEIGHTS).stat().st_mtime_ns
    output(tmp_path / "out", pretrained, "tur").finish()
    assert (tmp_path / "out" / WEIGHTS).stat().st_mtime_ns == before, "what is up to date is not written again"


def test_a_base_without_adapters_is_not_made_one_with_adapters(pretrained):
    before = contents(pretrained)
    with pytest.raises(TrainingError, match="is the base"):
        output(pretrained, pretrained, "tur").prepare()
    assert contents(pretrained) == before


def test_a_model_without_a_place_for_adapters_is_named_with_the_remedy(pretrained, tmp_path):
    config = Wav2Vec2Config.from_file(pretrained / CONFIG)
    with pytest.raises(TrainingError, match=r"no place for adapters.*--target_language"):
        output(tmp_path / "out", pretrained, "tur", config=config).prepare()


def test_adapters_of_another_width_are_refused(pretrained, tmp_path):
    trained(tmp_path / "out", pretrained, "tur")
    for source, path in ((mms(), tmp_path / "new"), (pretrained, tmp_path / "out")):
        config = Wav2Vec2Config.from_file(source / CONFIG).replace(adapter_attn_dim=9)
        with pytest.raises(TrainingError, match="adapter_attn_dim 5, not 9"):
            output(path, source, "swe", config=config).prepare()


# Full fine-tuning


@functools.cache
def whole() -> Checkpoint:
    """A recognition model without adapters, its layers stacked as training has them."""
    config = small_config(**MMS_CONVS, conv_dim=(12,) * 7, adapter_attn_dim=None, vocab_size=len(vocab(LETTERS["tur"])))
    with tempfile.TemporaryDirectory() as directory:
        random_model(config, seed=3).save_pretrained(directory)
        return load_ctc(open_source(directory), stack_layers=True)


def save(path: Path, base: Path, **options: bool) -> None:
    source = open_source(base)
    prepare_model_directory(path, source, fingerprint=base_fingerprint(source), **options)
    config, params = whole()
    tokenizer = CTCTokenizer(vocab(LETTERS["tur"]), {})
    save_model(path, params, config=config, tokenizer=tokenizer, feature_extractor=load_feature_extractor(source))


@torch.no_grad()
def test_both_libraries_load_a_whole_model(pretrained, tmp_path):
    save(tmp_path / "out", pretrained)
    waveform = noise(8000)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    model = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "out").eval()
    theirs = model(**processor(waveform, sampling_rate=16_000, return_tensors="pt")).logits[0].numpy()
    assert relative_error(mms_jax.load_asr(tmp_path / "out").logits(waveform)[0], theirs) <= PARITY
    assert processor.tokenizer.get_vocab() == vocab(LETTERS["tur"])


def test_a_whole_model_is_replaced_only_if_that_is_asked_for(pretrained, tmp_path):
    save(tmp_path / "out", pretrained)
    with pytest.raises(TrainingError, match=r"a model fine-tuned from pretrained; .*--overwrite_output_dir"):
        save(tmp_path / "out", pretrained)
    save(tmp_path / "out", pretrained, resume=True)
    with pytest.raises(TrainingError, match="fine-tuned from pretrained"):
        save(tmp_path / "out", mms(), resume=True)
    save(tmp_path / "out", mms(), overwrite=True)


def test_a_job_that_ended_before_it_wrote_a_model_can_begin_again(pretrained, tmp_path):
    for _ in range(2):
        prepare_model_directory(
            tmp_path / "out", open_source(pretrained), fingerprint=base_fingerprint(open_source(pretrained))
        )
    save(tmp_path / "out", pretrained)


def test_a_whole_model_never_goes_where_adapters_or_its_base_are(pretrained, tmp_path):
    trained(tmp_path / "out", mms(), "tur")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter.nld.safetensors").write_bytes(b"precious")
    for path, what in ((tmp_path / "out", "adapters"), (tmp_path / "alone", "adapters"), (pretrained, "starts from")):
        before = contents(path)
        with pytest.raises(TrainingError, match=rf"{what}.*output_dir"):
            save(path, pretrained, overwrite=True)
        assert contents(path) == before


def test_adapters_never_go_where_a_whole_model_is(pretrained, tmp_path):
    save(tmp_path / "out", pretrained)
    with pytest.raises(TrainingError, match="fully fine-tuned model"):
        output(tmp_path / "out", pretrained, "tur").prepare(overwrite=True)


def test_other_things_are_overwritten_by_a_whole_model_only_if_that_is_asked_for(pretrained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "processor_config.json").write_text('{"feature_extractor": {"sampling_rate": 8000}}')
    with pytest.raises(TrainingError, match="other things"):
        save(tmp_path / "out", pretrained)
    save(tmp_path / "out", pretrained, overwrite=True)
    assert load_processor(open_source(tmp_path / "out")).feature_extractor.sampling_rate == 16_000

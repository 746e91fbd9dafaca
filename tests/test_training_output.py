"""What adapter training leaves behind loads here and in transformers, and nothing of the user's is ever touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import transformers

import mms_jax
from mms_jax.checkpoint import base_fingerprint, load_adapter, open_source, open_weights
from mms_jax.errors import CheckpointError, LanguageError, TrainingError, VocabularyError
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.training.files import output as output_module
from mms_jax.training.files.output import RECORD
from tests.checkpoints import vocab
from tests.test_lid_parity import compiling_quickly
from tests.training_outputs import (
    CONFIG,
    LETTERS,
    WEIGHTS,
    adapter,
    assert_both_load,
    contents,
    mms,
    output,
    trained,
)


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly() -> Iterator[None]:
    with compiling_quickly():
        yield


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(mms(), tmp_path / "base"))


# A base with adapters: its files are copied


def test_both_libraries_load_what_was_trained_and_give_the_same_logits(base, tmp_path):
    trained(tmp_path / "out", base, "tur", "swe")
    assert_both_load(tmp_path / "out", "tur", "swe")
    assert mms_jax.load_asr(tmp_path / "out").languages == ["swe", "tur"]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", target_lang="swe")
    assert processor.tokenizer.get_vocab() == vocab(LETTERS["swe"])


def test_the_base_is_copied_byte_for_byte_and_never_linked(base, tmp_path):
    before = contents(base)
    trained(tmp_path / "out", base, "tur")
    for name in (WEIGHTS, CONFIG):
        copy = tmp_path / "out" / name
        assert copy.read_bytes() == (base / name).read_bytes()
        assert not copy.is_symlink()
        assert not copy.samefile(base / name)
        assert copy.stat().st_nlink == 1
    assert contents(base) == before
    assert base_fingerprint(open_source(tmp_path / "out")) == base_fingerprint(open_source(base))


def test_shards_are_copied_with_their_index(base, tmp_path):
    model = transformers.Wav2Vec2ForCTC.from_pretrained(base)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for path in base.glob("*.json"):
        if path.name != CONFIG:
            shutil.copy(path, tmp_path / "shards")
    trained(tmp_path / "out", tmp_path / "shards", "tur")
    assert not (tmp_path / "out" / WEIGHTS).exists()
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert_both_load(tmp_path / "out", "tur")


def test_only_the_trained_languages_are_there_and_an_adapter_names_its_base(base, tmp_path):
    directory = trained(tmp_path / "out", base, "tur")
    assert set(json.loads((tmp_path / "out" / "vocab.json").read_text())) == {"tur"}
    with open(tmp_path / "out" / "adapter.tur.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {"format": "pt", "base_fingerprint": base_fingerprint(open_source(base))}
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record == {"base": "base", "fingerprint": directory.fingerprint, "kind": "adapters"}


def test_before_an_adapter_is_written_no_language_is_there(base, tmp_path):
    output(tmp_path / "out", base, "tur").prepare()
    assert not (tmp_path / "out" / "vocab.json").exists()
    with pytest.raises(CheckpointError, match=r"vocab[.]json"):
        mms_jax.load_asr(tmp_path / "out", language="tur")


def test_a_second_language_leaves_the_first_as_it_is(base, tmp_path):
    trained(tmp_path / "out", base, "tur")
    before = contents(tmp_path / "out")
    trained(tmp_path / "out", base, "swe", seed=1)
    after = contents(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} <= {"vocab.json", "tokenizer_config.json"}
    assert set(after) - set(before) == {"adapter.swe.safetensors"}
    assert_both_load(tmp_path / "out", "tur", "swe")


def test_an_adapter_can_be_written_again_and_again(base, tmp_path):
    directory = output(tmp_path / "out", base, "tur")
    directory.prepare()
    for seed in range(3):
        leaves = adapter(directory, "tur", seed=seed)
        path = directory.write_adapter("tur", leaves)
        read = load_adapter(path, directory.config, stack_layers=True)
        np.testing.assert_array_equal(read["lm_head"]["kernel"], leaves["lm_head"]["kernel"])


def test_languages_can_be_added_to_the_base_s_own_directory(base):
    weights = (base / WEIGHTS).read_bytes()
    trained(base, base, "tur")
    assert (base / WEIGHTS).read_bytes() == weights
    assert_both_load(base, "tur")
    assert set(mms_jax.load_asr(base).languages) == {"eng", "fra", "azj-script_latin", "tur"}


# Whose directory it is


def test_another_base_is_refused_and_nothing_changes(base, tmp_path):
    trained(tmp_path / "out", base, "tur")
    before, other = contents(tmp_path / "out"), tmp_path / "other"
    shutil.copytree(base, other)
    content = bytearray((other / WEIGHTS).read_bytes())
    content[open_weights(open_source(base))["wav2vec2.encoder.layer_norm.weight"].offset] ^= 1
    (other / WEIGHTS).write_bytes(content)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(TrainingError, match=r"rest on base \(fingerprint \w{12}\), not on .*other .*output_dir"):
            output(tmp_path / "out", other, "swe").prepare(**options)
    (tmp_path / "out" / RECORD).unlink()  # the weights themselves say whose they are
    with pytest.raises(TrainingError, match="rest on another base"):
        output(tmp_path / "out", other, "swe").prepare()
    assert contents(tmp_path / "out") | {RECORD: before[RECORD]} == before
    trained(tmp_path / "out", base, "swe")


def test_a_copy_of_the_base_from_elsewhere_is_the_same_base(base, tmp_path):
    trained(tmp_path / "out", base, "tur")
    shutil.move(base, tmp_path / "moved")
    trained(tmp_path / "out", tmp_path / "moved", "swe")
    assert_both_load(tmp_path / "out", "tur", "swe")


def test_a_directory_with_other_things_is_used_only_if_that_is_asked_for(base, tmp_path):
    out = tmp_path / "out"
    (out / "photos").mkdir(parents=True)
    (out / "vocab.json").write_text('{"<pad>": 0, "a": 1}')
    (out / WEIGHTS).write_text("no weights")
    with pytest.raises(
        TrainingError, match=r"other things; .*--overwrite_output_dir, which replaces .*vocab.json.* leaves all others"
    ):
        output(out, base, "tur").prepare()
    with pytest.raises(TrainingError, match="other things"):
        output(out, base, "tur").prepare(resume=True)
    trained(out, base, "tur", overwrite=True)
    assert (out / "photos").is_dir()
    assert set(json.loads((out / "vocab.json").read_text())) == {"tur"}
    assert_both_load(out, "tur")


def test_what_is_hidden_makes_no_directory_anybody_s(base, tmp_path):
    (tmp_path / "out" / ".git").mkdir(parents=True)
    trained(tmp_path / "out", base, "tur")


def test_adapters_without_their_base_are_never_overwritten(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter.nld.safetensors").write_bytes(b"precious")
    with pytest.raises(TrainingError, match=r"adapter[.]nld[.]safetensors, but not the base"):
        output(tmp_path / "out", base, "tur").prepare(overwrite=True)


def test_a_trained_language_is_replaced_only_if_that_is_asked_for(base, tmp_path):
    trained(tmp_path / "out", base, "tur")
    before = contents(tmp_path / "out")
    with pytest.raises(
        TrainingError, match=r"tur was trained there already; .*--overwrite_output_dir.* other languages"
    ):
        output(tmp_path / "out", base, "swe", "tur").prepare()
    for options in ({"resume": True}, {"overwrite": True}):
        output(tmp_path / "out", base, "tur").prepare(**options)
        assert contents(tmp_path / "out") == before
    trained(tmp_path / "out", base, "tur", seed=9, overwrite=True)
    assert contents(tmp_path / "out")["adapter.tur.safetensors"] != before["adapter.tur.safetensors"]


def test_a_file_is_no_directory_and_a_tag_no_path(base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="is a file"):
        output(tmp_path / "file", base, "tur").prepare()
    with pytest.raises(LanguageError, match=r"[.][.]/tur"):
        output(tmp_path / "out", base, "../tur").prepare(overwrite=True)


# Vocabularies


def test_a_vocabulary_whose_blank_is_not_the_model_s_is_refused(base, tmp_path):
    tokenizer = CTCTokenizer({"tur": vocab(LETTERS["tur"], blank_id=3)}, {})
    with pytest.raises(VocabularyError, match=r"pad_token_id is 0"):
        output(tmp_path / "out", base, "tur", tokenizer=tokenizer).prepare()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "value"), [("do_lower_case", True), ("word_delimiter_token", " "), ("unk_token", "[UNK]")]
)
def test_a_tokenizer_that_reads_text_in_another_way_is_refused(base, tmp_path, setting, value):
    trained(tmp_path / "out", base, "tur")
    before = contents(tmp_path / "out")
    tokens = dict.fromkeys((*vocab(LETTERS["swe"]), "[UNK]", " "))
    tokenizer = CTCTokenizer({"swe": {token: i for i, token in enumerate(tokens)}}, {setting: value})
    with pytest.raises(VocabularyError, match=f"{setting}.*output_dir"):
        output(tmp_path / "out", base, "swe", tokenizer=tokenizer).prepare()
    assert contents(tmp_path / "out") == before


def test_a_head_smaller_than_the_vocabulary_is_refused(base, tmp_path):
    directory = output(tmp_path / "out", base, "tur")
    directory.prepare()
    leaves = adapter(directory, "tur")
    leaves["lm_head"] = {"kernel": leaves["lm_head"]["kernel"][:, :9], "bias": leaves["lm_head"]["bias"][:9]}
    with pytest.raises(VocabularyError, match=r"adapter[.]tur[.]safetensors.*vocab_size is 9"):
        directory.write_adapter("tur", leaves)


# Faults


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_full_disk_leaves_no_half_and_the_next_attempt_goes_on(base, tmp_path, monkeypatch, fails_at):
    copied: list[Path] = []
    copy = shutil.copyfileobj

    def full(source, target, *length):
        copied.append(target)
        if len(copied) > fails_at:
            target.write(source.read(100))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(source, target, *length)

    with monkeypatch.context() as patch:
        patch.setattr(output_module.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="No space left") as raised:
            output(tmp_path / "out", base, "tur").prepare()
    assert raised.value.filename == str(tmp_path / "out" / (WEIGHTS, CONFIG)[fails_at])
    assert sorted(os.listdir(tmp_path / "out")) == sorted([WEIGHTS, RECORD][1 - fails_at :])
    trained(tmp_path / "out", base, "tur")
    assert_both_load(tmp_path / "out", "tur")

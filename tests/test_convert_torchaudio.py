"""MMS's romanised aligner, published as torchaudio's wav2vec2, loads and computes the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import mms_jax
from convert import torchaudio
from mms_jax.files import read_json
from tests.converting import close, failure, run
from tests.parity import MMS_CONVS, small_config
from tests.parity import random_model as random_huggingface
from tests.sounds import noise
from tests.torchaudio_originals import DICTIONARY, random_model, state_dict

WIDTH, DEPTH, HEADS = 24, 2, 3


@pytest.fixture(autouse=True)
def _published(monkeypatch):
    """The size is not a published one, so its number of heads is told here."""
    monkeypatch.setitem(torchaudio.HEADS, (WIDTH, DEPTH), HEADS)


@pytest.fixture(scope="module")
def model():
    return random_model(width=WIDTH, layers=DEPTH, heads=HEADS)


def published(folder, model, *, old_spelling=True, zipped=True, tokens=DICTIONARY, dictionary="dictionary.txt"):
    """The two files as they are fetched."""
    path = folder / "ctc_alignment_mling_uroman_model.pt"
    torch.save(state_dict(model, old_spelling=old_spelling), path, _use_new_zipfile_serialization=zipped)
    (folder / dictionary).write_text("\n".join(tokens) + "\n")
    return path


@torch.no_grad()
def expected(model, samples) -> np.ndarray:
    """[T, V]; the waveform is normalised as torchaudio's bundles do it, by a layer norm over all of it.

    Its epsilon there is 1e-5, as for all of MMS in fairseq; transformers' feature extractor, which all MMS models have
    on the hub, takes 1e-7, and so do we.
    """
    values = torch.tensor(samples)[None]
    return model(torch.nn.functional.layer_norm(values, values.shape, eps=1e-7))[0].numpy()


@pytest.mark.parametrize("old_spelling", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_aligner_computes_what_torchaudio_does(tmp_path, model, old_spelling, zipped):
    path = published(tmp_path, model, old_spelling=old_spelling, zipped=zipped)
    assert run(path, tmp_path / "out") == 0
    asr = mms_jax.load_asr(tmp_path / "out")
    close(asr.logits(noise(20_001)), expected(model, noise(20_001)))


def test_its_tokens_and_blank_are_those_of_the_dictionary(tmp_path, model):
    assert run(published(tmp_path, model), tmp_path / "out") == 0
    asr = mms_jax.load_asr(tmp_path / "out")
    ids = expected(model, noise(20_000)).argmax(-1)
    assert len(set(ids)) > 3
    kept = [DICTIONARY[index] for index, last in zip(ids, [-1, *ids[:-1]], strict=True) if index not in (0, last)]
    assert asr.transcribe(noise(20_000)).text == "".join(kept)
    assert asr.tokenizer.vocabulary().letters == {token: DICTIONARY.index(token) for token in DICTIONARY[4:]}
    assert asr.tokenizer.vocabulary().delimiter_id is None


def test_transformers_reads_it_too_and_computes_the_same(tmp_path, model):
    assert run(published(tmp_path, model), tmp_path / "out") == 0
    theirs, info = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert set(info["missing_keys"]) <= {"wav2vec2.masked_spec_embed"}  # which only training with masks reads
    assert not info["unexpected_keys"]
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "out")
    assert processor.feature_extractor.do_normalize
    assert (processor.tokenizer.pad_token, processor.tokenizer.pad_token_id) == ("<blank>", 0)
    assert [processor.tokenizer.decode([index]) for index in range(4, len(DICTIONARY))] == DICTIONARY[4:]
    values = processor(noise(20_000), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        close(theirs.eval()(**values).logits[0].numpy(), expected(model, noise(20_000)))


def test_the_dictionary_may_lie_where_the_published_script_puts_it_or_be_named(tmp_path, model):
    path = published(tmp_path, model, dictionary="ctc_alignment_mling_uroman_model.dict")
    assert run(path, tmp_path / "found") == 0
    (tmp_path / "elsewhere").write_text("\n".join(DICTIONARY[::-1]))
    assert run(path, tmp_path / "named", "--dictionary", tmp_path / "elsewhere") == 0
    assert read_json(tmp_path / "found" / "vocab.json", error=ValueError)["<blank>"] == 0
    assert read_json(tmp_path / "named" / "vocab.json", error=ValueError)["<blank>"] == len(DICTIONARY) - 1
    assert mms_jax.load_asr(tmp_path / "named").tokenizer.vocabulary().blank_id == len(DICTIONARY) - 1


def test_another_size_needs_a_config(tmp_path, model, monkeypatch, capsys):
    path = published(tmp_path, model)
    assert run(path, tmp_path / "out") == 0
    monkeypatch.delitem(torchaudio.HEADS, (WIDTH, DEPTH))
    assert "2 layers of width 24 are no published size" in failure(capsys, path, tmp_path / "again")
    assert run(path, tmp_path / "again", "--config", tmp_path / "out" / "config.json") == 0
    close(mms_jax.load_asr(tmp_path / "again").logits(noise(20_000)), expected(model, noise(20_000)))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (DICTIONARY[:-1], "30 tokens, but the model has 31 outputs"),
        (["-", *DICTIONARY[1:]], "no <blank>"),
        ([*DICTIONARY[:-1], "a"], "line 31 is 'a' again"),
        ([*DICTIONARY[:5], "", *DICTIONARY[6:]], "line 6 is ''"),
        ([f"{token} 1" for token in DICTIONARY], "line 1 is '<blank> 1'"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(tmp_path, model, capsys, tokens, message):
    path = published(tmp_path, model, tokens=tokens)
    assert message in failure(capsys, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_named_and_nothing_is_left(tmp_path, model, capsys):
    path, state = published(tmp_path, model), state_dict(model, old_spelling=True)
    (tmp_path / "dictionary.txt").write_bytes(b"\xff\xfe")
    assert "dictionary.txt: not UTF-8" in failure(capsys, path, tmp_path / "out")
    (tmp_path / "dictionary.txt").unlink()
    assert "no dictionary.txt beside it" in failure(capsys, path, tmp_path / "out")
    (tmp_path / "dictionary.txt").write_text("\n".join(DICTIONARY))
    norms = [f"feature_extractor.conv_layers.{i}.layer_norm.{end}" for i in range(1, 7) for end in ("weight", "bias")]
    for changed, message in (
        ({"aux.weight": None, "aux.bias": None}, "no CTC head (aux.weight)"),
        (dict.fromkeys(norms), "have a group norm"),
        ({"encoder.transformer.layers.0.attention.rel_attn_embed.weight": torch.ones(2)}, "no rule knows"),
        ({"aux.bias": None}, "lm_head.bias"),
        ({"encoder.transformer.layers.1.final_layer_norm.bias": None}, "final_layer_norm.bias"),
        ({"aux.bias": "text"}, "'aux.bias' is no tensor"),
    ):
        torch.save({name: tensor for name, tensor in (state | changed).items() if tensor is not None}, path)
        assert message in failure(capsys, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_its_hugging_face_form_loads_as_it_is(tmp_path):
    """The aligner as it is on the hub: Wav2Vec2ForCTC, 31 outputs, a flat vocab.json whose blank is called <blank>."""
    config = small_config(
        **MMS_CONVS, conv_dim=(12,) * 7, vocab_size=len(DICTIONARY), adapter_attn_dim=None, pad_token_id=0
    )
    theirs = random_huggingface(config)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(DICTIONARY)}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Wav2Vec2CTCTokenizer",
                "pad_token": "<blank>",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "word_delimiter_token": "|",
            }
        )
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16000})
    )
    samples = noise(20_000)
    values = torch.tensor((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None]
    with torch.no_grad():
        logits = theirs(values, attention_mask=torch.ones(values.shape, dtype=torch.long)).logits[0].numpy()
    close(mms_jax.load_asr(tmp_path).logits(samples), logits)

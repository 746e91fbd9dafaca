"""Omnilingual ASR's CTC models, which are fairseq2's wav2vec2, load and compute the same."""

from __future__ import annotations

import torch
import transformers

import mms_jax
from convert import omnilingual
from tests.converting import close, failure, reference, run
from tests.fairseq_originals import fairseq2_state, save, sentencepiece_model
from tests.parity import MMS_CONVS, random_model, small_config
from tests.sounds import noise

SMALL = {**MMS_CONVS, "conv_dim": (12,) * 7}


def test_omnilingual_asr(tmp_path, monkeypatch):
    """fairseq2's names; the size is not a published one, so its number of heads is told here."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *"abcde|", "\u4e00"]
    config = small_config(**SMALL, vocab_size=len(pieces)).to_dict() | {"adapter_attn_dim": None}
    model = random_model(transformers.Wav2Vec2Config(**config))
    path = save(tmp_path / "omniASR-CTC.pt", {"model": fairseq2_state(model), "fs2": True})
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    monkeypatch.setitem(omnilingual.HEADS, (24, 2), 3)
    assert run(path, tmp_path / "out", "--dictionary", tmp_path / "tokenizer.model") == 0
    asr = mms_jax.load_asr(tmp_path / "out")
    expected = reference(model, noise(20_000))
    close(asr.logits(noise(20_000)), expected)
    ids = expected.argmax(-1)
    kept = [pieces[index] for index, last in zip(ids, [-1, *ids[:-1]], strict=True) if index not in (0, last)]
    text = "".join({"\u2581": " ", "<pad>": "<s>"}.get(piece, piece) for piece in kept)
    assert " ".join(asr.transcribe(noise(20_000)).text.split()) == " ".join(text.split())


def test_omnilingual_asr_refuses_what_it_cannot_know(tmp_path, capsys, monkeypatch):
    model = random_model(
        transformers.Wav2Vec2Config(**small_config(**SMALL, vocab_size=7).to_dict() | {"adapter_attn_dim": None})
    )
    path = save(tmp_path / "model.pt", fairseq2_state(model))
    assert "2 layers of width 24 are no published size" in failure(capsys, path, tmp_path / "out")
    monkeypatch.setitem(omnilingual.HEADS, (24, 2), 3)
    assert "omniASR_tokenizer.model (--dictionary)" in failure(capsys, path, tmp_path / "out")
    tokenizer = tmp_path / "tokenizer.model"
    for data, message in (
        (sentencepiece_model(["<s>", "<unk>", "\u2581"]), "3 pieces, but the head of"),
        (sentencepiece_model([*"abcdef", "\u2581"]), "no piece '<unk>'"),
        (sentencepiece_model([*"abcdef", "<unk>"]), "nothing divides words"),
        (sentencepiece_model([*"abcdea", "<unk>"]), "the piece 'a' twice"),
        (b"<html>", "not a SentencePiece model"),
        (b"", "it has no pieces"),
        (b"\x0a\x7f", "not a SentencePiece model"),
    ):
        tokenizer.write_bytes(data)
        assert message in failure(capsys, path, tmp_path / "out", "--dictionary", tokenizer)
    llm = save(tmp_path / "llm.pt", fairseq2_state(model) | {"llama_decoder.layers.0.weight": torch.ones(2)})
    assert "an LLM model of omnilingual ASR" in failure(capsys, llm, tmp_path / "out")
    assert not (tmp_path / "out").exists()

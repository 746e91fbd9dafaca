"""Whole checkpoint directories as transformers writes them: weights, processor, one adapter file per language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from tests.parity import MMS_CONVS, random_model, small_config

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
LETTERS = {
    "eng": "abcdefghijklmnopqrstuvwxyz'",
    "fra": "abcdefghijklmnopqrstuvwxyzàâçéèêëîïôùûœ",
    "azj-script_latin": "abcçdeəfgğhxıijkqlmnoöprsştuüvyz" + "0123456789" * 4,  # duplicates fall away
}

MORE_LETTERS = LETTERS | {
    "deu": "abcdefghijklmnopqrstuvwxyzäöüß",
    "cmn-script_simplified": "".join(map(chr, range(0x4E00, 0x4E00 + 140))),  # wider than any other's head
}


def vocab(letters: str, *, blank_id: int = 0) -> dict[str, int]:
    """Token ids of an MMS vocabulary; ``blank_id`` swaps <pad> with the token that has that id."""
    tokens = list(dict.fromkeys((*SPECIAL, *letters)))
    tokens[0], tokens[blank_id] = tokens[blank_id], tokens[0]
    return {token: i for i, token in enumerate(tokens)}


def save_processor(directory: Path, vocabularies: dict, *, target_lang: str | None) -> None:
    """Write vocab.json and the processor's files as transformers 5 does."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocabularies))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(directory / "vocab.json"), target_lang=target_lang)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(directory)


def many_languages(directory: Path, letters: Mapping[str, str] = LETTERS) -> Path:
    """A checkpoint in the MMS layout: nested vocabulary, English in the base weights, an adapter file per language."""
    vocabularies = {language: vocab(own) for language, own in letters.items()}
    save_processor(directory, vocabularies, target_lang="eng")
    model = random_model(small_config(**MMS_CONVS, conv_dim=(12,) * 7, vocab_size=len(vocabularies["eng"])))
    model.save_pretrained(directory)
    for seed, (language, tokens) in enumerate(vocabularies.items()):
        adapted = model
        if language != "eng":
            config = small_config(**MMS_CONVS, conv_dim=(12,) * 7, vocab_size=len(tokens))
            adapted = random_model(config, seed=seed + 1)
        leaves = {name: leaf.detach().clone() for name, leaf in adapted._get_adapters().items()}
        save_file(leaves, directory / f"adapter.{language}.safetensors", metadata={"format": "pt"})
    return directory


def one_vocabulary(directory: Path, *, blank_id: int = 0, **changes) -> Path:
    """A checkpoint of one language without a name, as fine-tuned models are: flat vocabulary, no adapter files."""
    tokens = vocab(LETTERS["eng"], blank_id=blank_id)
    save_processor(directory, tokens, target_lang=None)
    config = small_config(
        **{"conv_dim": (12,) * 7} | MMS_CONVS | {"vocab_size": len(tokens), "pad_token_id": blank_id} | changes
    )
    random_model(config).save_pretrained(directory)
    return directory


class Reference:
    """transformers, used as its documentation says: one language at a time, one clip at a time."""

    def __init__(self, directory: Path):
        self.processor = transformers.Wav2Vec2Processor.from_pretrained(directory)
        self.model = transformers.Wav2Vec2ForCTC.from_pretrained(directory).eval()

    def choose(self, language: str) -> None:
        """Swap the adapter and the vocabulary."""
        self.processor.tokenizer.set_target_lang(language)
        self.model.load_adapter(language)

    @torch.no_grad()
    def logits(self, waveform):
        """[T, V] of one waveform at 16 kHz."""
        inputs = self.processor(waveform, sampling_rate=16_000, return_tensors="pt")
        return self.model(**inputs).logits[0].numpy()

    def transcribe(self, waveform) -> str:
        """The greedy text of one waveform."""
        return self.processor.decode(self.logits(waveform).argmax(-1))

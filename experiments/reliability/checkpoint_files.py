"""The sound checkpoints of checkpoint_mutants.py, written by the library itself: its files are tested elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mms_jax.checkpoint import save_adapter, save_classifier, save_ctc, save_processor, save_vits, vits_param_shapes
from mms_jax.checkpoint.processor import save_feature_extractor
from mms_jax.checkpoint.wav2vec2 import classifier_shapes, param_shapes
from mms_jax.config import VitsConfig, Wav2Vec2Config
from mms_jax.features import FeatureExtractor
from mms_jax.models.trees import unflatten
from mms_jax.text.ctc import CTCTokenizer

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
LETTERS = {"eng": "abcdefgh", "fra": "abcdefghéàç"}
LABELS = ("eng", "fra", "azj", "cmn")
ASR, LID, TTS = "asr", "lid", "tts"
ADAPTER = f"{ASR}/adapter.fra.safetensors"
WEIGHTS = "model.safetensors"
TARGETS = (  # what is spoilt; those that come twice twice as often
    *(f"{kind}/{WEIGHTS}" for kind in (ASR, ASR, LID, TTS)),
    *(ADAPTER, ADAPTER),
    *(f"{kind}/config.json" for kind in (ASR, LID, TTS)),
    *(f"{kind}/{name}" for kind in (ASR, TTS) for name in ("vocab.json", "tokenizer_config.json")),
    *(f"{kind}/preprocessor_config.json" for kind in (ASR, LID)),
)
SPEECH: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(LETTERS["eng"]),
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 10,
    "conv_dim": (6, 7),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 64),
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "adapter_attn_dim": 3,
    "classifier_proj_size": 8,
}
VOICE: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "ffn_dim": 10,
    "flow_size": 4,
    "spectrogram_bins": 9,
    "upsample_initial_channel": 8,
    "upsample_rates": (4,),
    "upsample_kernel_sizes": (8,),
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
    "duration_predictor_filter_channels": 8,
    "duration_predictor_num_flows": 2,
    "depth_separable_num_layers": 1,
    "prior_encoder_num_flows": 1,
    "prior_encoder_num_wavenet_layers": 1,
    "posterior_encoder_num_wavenet_layers": 1,
}


def write_checkpoints(folder: Path) -> None:
    """A CTC model with an adapter file, an identifier and a voice."""
    _write_recogniser(folder / ASR)
    config = Wav2Vec2Config(**SPEECH).replace(adapter_attn_dim=None)
    save_classifier(folder / LID, config=config, labels=LABELS, params=_random(classifier_shapes(config, len(LABELS))))
    save_feature_extractor(folder / LID, FeatureExtractor())
    voice = VitsConfig(**VOICE)
    save_vits(folder / TTS, config=voice, params=_random(vits_param_shapes(voice)))
    vocabulary = {symbol: id_ for id_, symbol in enumerate("kabcdefgh'-")}
    (folder / TTS / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = {"tokenizer_class": "VitsTokenizer", "language": "eng", "pad_token": "k", "unk_token": "<unk>"}
    flags = {"add_blank": True, "normalize": True, "phonemize": False, "is_uroman": False}
    (folder / TTS / "tokenizer_config.json").write_text(json.dumps(tokenizer | flags))


def _write_recogniser(folder: Path) -> None:
    config = Wav2Vec2Config(**SPEECH)
    save_ctc(folder, config=config, params=_random(param_shapes(config)))
    vocabularies = {
        language: {token: id_ for id_, token in enumerate((*SPECIAL, *letters))}
        for language, letters in LETTERS.items()
    }
    save_processor(folder, FeatureExtractor(), CTCTokenizer(vocabularies, {"target_lang": "eng"}))
    wide = config.replace(vocab_size=len(vocabularies["fra"]))
    save_adapter(folder / Path(ADAPTER).name, config=wide, params=_random(param_shapes(wide), seed=1))


def _random(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return unflatten({path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()})

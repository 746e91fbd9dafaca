"""Whether a directory's files fit together, told from headers and small files alone; no tensor is read."""

from __future__ import annotations

import re

from mms_jax.checkpoint.hub import Directory, require
from mms_jax.checkpoint.processor import load_feature_extractor, load_text_tokenizer, load_tokenizer
from mms_jax.checkpoint.vits import bind_vits
from mms_jax.checkpoint.wav2vec2 import bind_adapter, bind_classifier, bind_ctc, bind_encoder
from mms_jax.checkpoint.weights import open_weights
from mms_jax.config import VitsConfig, Wav2Vec2Config
from mms_jax.files import read_json
from mms_jax.text.ctc import CTCTokenizer

_ADAPTER = re.compile(r"adapter\.(.+)\.safetensors")


def check_checkpoint(source: Directory) -> None:
    """Check every tensor's name, shape and dtype, the vocabulary and all adapters against config.json.

    Raises:
        CheckpointError: something is wrong, incomplete or contradictory; the message names the file and the tensor.
    """
    path = require(source, "config.json")
    if read_json(path).get("model_type") == VitsConfig.model_type:
        voice = VitsConfig.from_file(path)
        bind_vits(source, voice)
        load_text_tokenizer(source, num_symbols=voice.vocab_size)
        return
    config, tensors = Wav2Vec2Config.from_file(path), open_weights(source)
    load_feature_extractor(source)
    if "lm_head.weight" in tensors:
        bind_ctc(source, config)
        tokenizer = load_tokenizer(source)
        tokenizer.vocabulary().check_model(config.vocab_size, pad_token_id=config.pad_token_id, source=source.name)
        _check_adapters(source, config, tokenizer)
    elif "classifier.weight" in tensors:
        bind_classifier(source, config)
    else:
        bind_encoder(source, config)


def _check_adapters(source: Directory, config: Wav2Vec2Config, tokenizer: CTCTokenizer) -> None:
    for language in tokenizer.languages:
        tokenizer.vocabulary(language)
    for filename in source.filenames():
        match = _ADAPTER.fullmatch(filename)
        if match is None:
            continue
        shapes = {binding.name: binding.info.shape for binding in bind_adapter(source.path / filename, config)}
        vocabulary = tokenizer.vocabulary(match[1] if tokenizer.is_nested else None)
        where = f"{source.path / filename} (lm_head.weight)"
        vocabulary.check_model(shapes["lm_head.weight"][0], pad_token_id=config.pad_token_id, source=where)

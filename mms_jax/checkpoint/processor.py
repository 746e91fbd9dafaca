"""The processor's files beside the weights: how audio is normalised and how ids are spelled."""

from __future__ import annotations

import dataclasses
import re
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from mms_jax.checkpoint.hub import Source, require
from mms_jax.errors import CheckpointError, ConfigError
from mms_jax.features import SAMPLING_RATE, FeatureExtractor
from mms_jax.files import read_json, write_json
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.text.tts import VitsTokenizer


class Processor(NamedTuple):
    """What turns audio into model input and ids into text."""

    feature_extractor: FeatureExtractor
    tokenizer: CTCTokenizer


def load_processor(source: Source) -> Processor:
    """Read a checkpoint's processor as transformers 4 (preprocessor_config.json) or 5 (processor_config.json) wrote it.

    Raises:
        CheckpointError: neither file is there. ConfigError, VocabularyError: one is malformed; the message names it.
    """
    return Processor(_read_feature_extractor(source), load_tokenizer(source))


def load_tokenizer(source: Source) -> CTCTokenizer:
    """Read a checkpoint's CTC vocabularies alone.

    Raises:
        CheckpointError: no vocab.json there. VocabularyError: a file is malformed; the message names it.
    """
    return CTCTokenizer.from_files(require(source, "vocab.json"), **_beside_vocabulary(source))


def load_feature_extractor(source: Source) -> FeatureExtractor:
    """Read how audio is normalised, for checkpoints that have no vocabulary.

    Raises:
        CheckpointError: no such file. ConfigError: it is malformed, or for another rate than 16 kHz.
    """
    extractor = _read_feature_extractor(source)
    check_sampling_rate(extractor, source.name)
    return extractor


def check_sampling_rate(extractor: FeatureExtractor, source: str) -> None:
    """Raise ConfigError, naming ``source``, for a model of another rate than the one that audio is loaded at."""
    if extractor.sampling_rate != SAMPLING_RATE:
        raise ConfigError(f"{source}: sampling_rate {extractor.sampling_rate}; only {SAMPLING_RATE} Hz models are read")


def _read_feature_extractor(source: Source) -> FeatureExtractor:
    for filename, key in (("processor_config.json", "feature_extractor"), ("preprocessor_config.json", None)):
        path = source.find(filename)
        values = None if path is None else read_json(path)
        values = values.get(key) if values is not None and key is not None else values
        if isinstance(values, dict):
            try:
                return FeatureExtractor.from_dict(values)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
    raise CheckpointError(f"{source.name}: neither processor_config.json nor preprocessor_config.json is there")


def load_text_tokenizer(source: Source, *, num_symbols: int) -> VitsTokenizer:
    """Read the symbols of a synthesis checkpoint, whose model has embeddings for ``num_symbols``.

    Raises:
        VocabularyError: a file is malformed, or contradicts the model; the message names it.
    """
    require(source, "tokenizer_config.json")  # says what kind of symbols they are; nothing stands in for that
    tokenizer = VitsTokenizer.from_files(require(source, "vocab.json"), **_beside_vocabulary(source))
    tokenizer.check_model(num_symbols, source=source.name)
    return tokenizer


def _beside_vocabulary(source: Source) -> dict[str, dict[str, Any] | None]:
    """What the files beside vocab.json hold, each of which may be absent: arguments of ``from_files``."""
    paths = {name: source.find(f"{name}.json") for name in ("tokenizer_config", "special_tokens_map", "added_tokens")}
    return {name: None if path is None else read_json(path) for name, path in paths.items()}


def save_processor(
    directory: str | PathLike[str], feature_extractor: FeatureExtractor, tokenizer: CTCTokenizer
) -> None:
    """Write the processor's files in the layout that transformers 4 and 5 both read."""
    tokenizer.save(directory)
    save_feature_extractor(directory, feature_extractor)


def save_feature_extractor(directory: str | PathLike[str], feature_extractor: FeatureExtractor) -> None:
    """Write preprocessor_config.json, which transformers 4 and 5 both read."""
    values = dataclasses.asdict(feature_extractor)
    del values["norm_eps"]  # no such key there: everybody computes with the same
    values |= {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "padding_side": "right"}
    write_json(Path(directory) / "preprocessor_config.json", values)


def find_licence(source: Source) -> str | None:
    """The licence that a checkpoint's model card (README.md) states in its front matter, or None."""
    path = source.find("README.md")
    if path is None:
        return None
    match = re.match(r"---\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    stated = re.search(r"^license: *(\S.*?) *$", match[1], re.MULTILINE) if match else None
    return stated[1] if stated else None

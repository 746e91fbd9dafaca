"""The small files of VITS, config.json and vocab.txt, to those of the Hugging Face layout and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convert.conversion import ConversionError, Texts
from convert.vits_names import (
    CONSTANTS,
    MODEL_KEYS,
    NUM_DILATIONS,
    OPTIONAL_KEYS,
    PHONEME_CLEANERS,
    PHONEMES,
    RESBLOCK,
    SEGMENT_SIZE,
    TRAINING_CONSTANTS,
    UNREAD_KEYS,
)
from mms_jax.config import VitsConfig
from mms_jax.errors import ConfigError, VocabularyError
from mms_jax.files import read_json
from mms_jax.text.tts import VitsTokenizer

MAX_VOCABULARY_BYTES = 1 << 20  # published ones have some hundred bytes
BYTE_ORDER_MARK = "\ufeff"
# What Meta's code speaks with, which no file of the original holds.
SPOKEN_WITH = {"speaking_rate": 1.0, "noise_scale": 0.667, "noise_scale_duration": 0.8}


class Settings:
    """The original's config.json."""

    def __init__(self, path: Path):
        self.path = path
        values = read_json(path, error=ConversionError)
        if "model_type" in values:
            raise ConversionError(f"{path}: is of the Hugging Face layout already; that of VITS has 'model' and 'data'")
        self.model, self.data = (self._section(values, name) for name in ("model", "data"))

    def _section(self, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        section = values.get(name)
        if not isinstance(section, dict):
            raise ConversionError(f"{self.path}: no object under {name!r}; take the config.json that VITS trained with")
        return section

    def require(self, section: str, key: str, kind: type) -> Any:
        """A value that must be there, and of that very type; raises ConversionError."""
        values = getattr(self, section)
        if type(values.get(key)) is not kind:
            found = f"is {values[key]!r}" if key in values else "is missing"
            raise ConversionError(f"{self.path}: {key!r} under {section!r} {found}; it must be a {kind.__name__}")
        return values[key]

    @property
    def is_uroman(self) -> bool:
        """Whether the texts of its training were romanised, which their file's name tells."""
        return self.require("data", "training_files", str).rpartition(".")[2] == "uroman"

    def config(self, num_symbols: int) -> VitsConfig:
        """The model's configuration; raises ConversionError for what the Hugging Face layout has no word for."""
        self._check_known()
        values: dict[str, Any] = {"vocab_size": num_symbols, **CONSTANTS, **TRAINING_CONSTANTS}
        for key, names in MODEL_KEYS.items():
            if key not in self.model:
                raise ConversionError(f"{self.path}: {key!r} under 'model' is missing")
            values |= dict.fromkeys(names, self.model[key])
        values |= {name: self.model.get(key, default) for key, (name, default) in OPTIONAL_KEYS.items()}
        values["num_speakers"] = self._num_speakers()
        values["sampling_rate"] = self.require("data", "sampling_rate", int)
        values["spectrogram_bins"] = self.require("data", "filter_length", int) // 2 + 1
        try:
            config = VitsConfig(**values)
        except ConfigError as error:
            raise ConversionError(f"{self.path}: {error}{_called(str(error))}") from error
        self._check_frames(config)
        return config

    def _check_known(self) -> None:
        known = {*MODEL_KEYS, *OPTIONAL_KEYS, *UNREAD_KEYS, "resblock", "n_speakers"}
        if unknown := sorted(set(self.model) - known):
            raise ConversionError(
                f"{self.path}: unknown under 'model': {', '.join(map(repr, unknown))}; VITS has no such attribute, and "
                "what has may compute something else. Remove it if it changes nothing"
            )
        if (resblock := self.model.get("resblock")) != RESBLOCK:
            raise ConversionError(
                f"{self.path}: 'resblock' under 'model' is {resblock!r}; the Hugging Face layout has only {RESBLOCK!r}"
            )

    def _num_speakers(self) -> int:
        """At least 1. VITS gives speakers to models with ``gin_channels`` only, whatever 'data' says."""
        if not self.model.get("gin_channels"):
            return 1
        return max(1, self.require("model" if "n_speakers" in self.model else "data", "n_speakers", int))

    def _check_frames(self, config: VitsConfig) -> None:
        _check_dilations(config, self.path)
        if (hop := self.require("data", "hop_length", int)) != config.hop_length:
            raise ConversionError(
                f"{self.path}: 'hop_length' is {hop}, but 'upsample_rates' {list(config.upsample_rates)} make "
                f"{config.hop_length} samples of a frame; one of them is another model's"
            )


def _check_dilations(config: VitsConfig, path: Path) -> None:
    for dilations in config.resblock_dilation_sizes:
        if len(dilations) != NUM_DILATIONS:
            raise ConversionError(
                f"{path}: resblock_dilation_sizes has {list(dilations)}; VITS's blocks have {NUM_DILATIONS} each"
            )


def _called(message: str) -> str:
    """What the attributes in a message are called in the original's config.json, where that differs."""
    there = {name: key for key, names in MODEL_KEYS.items() for name in names if name != key}
    there |= {name: key for key, (name, _) in OPTIONAL_KEYS.items()}
    there |= {"spectrogram_bins": "filter_length", "num_speakers": "n_speakers"}
    found = [f"{name} is {key!r} there" for name, key in there.items() if re.search(rf"\b{name}\b", message)]
    return f" ({', '.join(found)})" if found else ""


class Symbols(NamedTuple):
    """What a voice reads."""

    source: Path
    by_id: Sequence[str]
    are_phonemes: bool


def read_symbols(path: Path, settings: Settings) -> Symbols:
    """The lines of vocab.txt, as Meta's code reads them; the published English ones of VITS itself need no such file.

    Raises:
        ConversionError: missing, not UTF-8, or damaged by an editor.
    """
    if not path.is_file():
        if settings.data.get("text_cleaners") == PHONEME_CLEANERS:
            return Symbols(path, PHONEMES, are_phonemes=True)
        raise ConversionError(f"{path}: missing; it has the symbols, one a line, in the order of their embeddings")
    if (size := path.stat().st_size) > MAX_VOCABULARY_BYTES:
        raise ConversionError(f"{path}: {size:,} bytes; such a file has at most {MAX_VOCABULARY_BYTES:,}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # with CRLF as one end of line, and no others
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: not UTF-8 ({error}); save it as such") from error
    symbols = lines[:-1] if lines[-1] == "" else lines
    if symbols and len(symbols[0]) > 1 and symbols[0].startswith(BYTE_ORDER_MARK):
        raise ConversionError(f"{path}: begins with a byte order mark, which symbol 0 would have in it; save without")
    if "" in symbols and " " not in symbols:
        raise ConversionError(
            f"{path}: line {symbols.index('') + 1} is empty, and none is a space: an editor has removed it; put it back"
        )
    return Symbols(path, symbols, are_phonemes=False)


def tokenizer_files(symbols: Symbols, settings: Settings, *, language: str | None) -> tuple[Texts, list[str]]:
    """vocab.json and tokenizer_config.json, and what there is to say of them; raises ConversionError."""
    vocabulary = _vocabulary(symbols.by_id)
    pad_token, *_ = vocabulary  # as published voices have it: they know no padding, and this one's id is the blank's
    config = {
        "tokenizer_class": "VitsTokenizer",
        "add_blank": settings.require("data", "add_blank", bool),
        "is_uroman": settings.is_uroman,
        "language": language,
        "normalize": True,
        "phonemize": symbols.are_phonemes,
        "pad_token": pad_token,
        "unk_token": "<unk>",
        "added_tokens_decoder": {},
    }
    try:
        VitsTokenizer(vocabulary, pad_token=pad_token, source=str(symbols.source))
    except VocabularyError as error:
        raise ConversionError(str(error)) from error
    text = json.dumps(vocabulary, indent=2, ensure_ascii=False) + "\n"  # in order of id
    return {"vocab.json": text, "tokenizer_config.json": config}, _notes(symbols, vocabulary, language)


def _notes(symbols: Symbols, vocabulary: Mapping[str, int], language: str | None) -> list[str]:
    notes = []
    silent = [str(id_ + 1) for symbol, id_ in vocabulary.items() if symbol != symbols.by_id[id_]]
    if symbols.are_phonemes:
        notes.append(
            "it reads phonemes, which mms_jax does not make: pass espeak's (en-us, stress and punctuation kept) as "
            "text, and normalize=False"
        )
    elif silent:
        notes.append(f"{symbols.source}: line(s) {', '.join(silent)} are empty or come again, so nothing leads to them")
    if " " not in vocabulary:
        notes.append(f"{symbols.source}: no line is a space, so words are run together")
    if language is None:
        notes.append("no language is given, so tokenizer_config.json has none; Romanian ('ron') is misread without")
    return notes


def _vocabulary(symbols: Sequence[str]) -> dict[str, int]:
    """The symbols' ids; of equal ones the last counts, as in Meta's code. Ids without a symbol get a name as well."""
    last = {symbol: id_ for id_, symbol in enumerate(symbols) if symbol}
    return {symbol if last.get(symbol) == id_ else _unused(id_): id_ for id_, symbol in enumerate(symbols)}


def _unused(id_: int) -> str:
    """What stands for an id in vocab.json that no text leads to: ids must have no holes, and this is no character."""
    return f"<unused-{id_}>"


def original_files(config: VitsConfig, tokenizer: VitsTokenizer, path: Path) -> tuple[Texts, list[str]]:
    """config.json and vocab.txt as the original has them, and what it has no place for.

    Raises:
        ConversionError: the original computes something else than ``config``, which is from ``path``, asks for.
    """
    for name, value in CONSTANTS.items():
        if (found := getattr(config, name)) != value:
            raise ConversionError(f"{path}: {name} is {found!r}, but always {value!r} in the original")
    _check_dilations(config, path)
    values = config.to_dict()
    model = {key: values[names[0]] for key, names in MODEL_KEYS.items()}
    model |= {key: values[name] for key, (name, _) in OPTIONAL_KEYS.items()} | {"resblock": RESBLOCK}
    data = {
        "training_files": "train.uroman" if tokenizer.is_uroman else "train.txt",
        "text_cleaners": PHONEME_CLEANERS if tokenizer.phonemize else [],
        "sampling_rate": config.sampling_rate,
        "filter_length": 2 * (config.spectrogram_bins - 1),
        "hop_length": config.hop_length,
        "add_blank": tokenizer.add_blank,
        "n_speakers": config.num_speakers if config.num_speakers > 1 else 0,
    }
    texts: Texts = {"config.json": {"train": {"segment_size": SEGMENT_SIZE}, "data": data, "model": model}}
    symbols = _by_id(tokenizer, config.vocab_size, path.with_name("vocab.json"))
    if not tokenizer.phonemize:
        texts["vocab.txt"] = "".join(f"{symbol}\n" for symbol in symbols)
    return texts, _lost(config, tokenizer)


def _by_id(tokenizer: VitsTokenizer, num_symbols: int, path: Path) -> list[str]:
    if tokenizer.phonemize:
        if dict(tokenizer.vocab) != _vocabulary(PHONEMES):
            raise ConversionError(f"{path}: phonemes, but not those that are written down in VITS's own code")
        return list(PHONEMES)
    names = {id_: symbol for symbol, id_ in tokenizer.vocab.items()}
    names |= {token.id: token.content for token in tokenizer.added_tokens}
    symbols = [names.get(id_, _unused(id_)) for id_ in range(num_symbols)]
    for symbol in symbols:
        if re.search(r"[\r\n]", symbol):
            raise ConversionError(f"{path}: {symbol!r} cannot be a line of vocab.txt")
    return symbols


def _lost(config: VitsConfig, tokenizer: VitsTokenizer) -> list[str]:
    """What the original's files have no place for, where it is not what everybody has."""
    usual = {**TRAINING_CONSTANTS, **SPOKEN_WITH, **dict.fromkeys(MODEL_KEYS["p_dropout"], config.hidden_dropout)}
    lost = [f"{name} {getattr(config, name)}" for name, value in usual.items() if getattr(config, name) != value]
    lost += [f"language {tokenizer.language!r}"] if tokenizer.language else []
    notes = [f"not kept, as the original has no place for it: {', '.join(lost)}"] if lost else []
    return [*notes, "config.json has what speaking needs; training needs more under 'train' and 'data'"]

"""Whether a checkpoint of checkpoint_mutants.py was rightly refused or accepted."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

import mms_jax
from experiments.reliability.checkpoint_files import ADAPTER, ASR, LID, TTS, WEIGHTS
from experiments.reliability.checkpoint_spoilers import UNHEARD_OF, joined, parts
from mms_jax.errors import MMSError
from mms_jax.features import FeatureExtractor
from mms_jax.models.trees import flatten

NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
MAY_BE_NONE = {"bos_token", "eos_token", "unk_token", "pad_token", "language"}  # elsewhere null is as if not there
MAX_MESSAGE = 4_000  # characters: a hundred unknown tensors are not all listed, nor is a value of 10 MB shown
FILES = {ASR: (f"{ASR}/{WEIGHTS}", ADAPTER), LID: (f"{LID}/{WEIGHTS}",), TTS: (f"{TTS}/{WEIGHTS}",)}
CTC_DEFAULTS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
CTC_DEFAULTS |= {"word_delimiter_token": "|", "replace_word_delimiter_char": " ", "do_lower_case": False}
CTC_DEFAULTS |= {"clean_up_tokenization_spaces": False}
VITS_DEFAULTS = {"pad_token": "<pad>", "unk_token": "<unk>", "language": None}
VITS_DEFAULTS |= {"add_blank": True, "normalize": True, "phonemize": True, "is_uroman": False}


class Judge:
    """Loads mutants of the checkpoints in ``folder``, in a copy of each process's own, and judges what comes of it."""

    def __init__(self, folder: Path):
        self._sound = folder
        self._folder = folder
        self._places: dict[str, dict[str, np.ndarray]] = {}  # by kind and path: which element of the files is where
        self._shapes: dict[str, list[list[tuple[str, tuple[int, ...]]]]] = {}  # by kind and file

    def prepare(self) -> None:
        """Make the copy, and learn which element of a file becomes which of a parameter."""
        self._folder = self._sound / f"process{os.getpid()}"
        for kind, files in FILES.items():
            shutil.copytree(self._sound / kind, self._folder / kind)
            start, self._shapes[kind] = 0, []
            for name in files:
                header, data = parts((self._sound / name).read_bytes())
                header.pop("__metadata__")
                order = sorted(header, key=lambda tensor: header[tensor]["data_offsets"])
                self._shapes[kind].append([(tensor, tuple(header[tensor]["shape"])) for tensor in order])
                numbers = np.arange(start, start + len(data) // 4, dtype=np.float32)
                (self._folder / name).write_bytes(joined(header, numbers.tobytes()))
                start += len(numbers)
            assert start < 2**24, "float32 counts no further"
            self._places[kind] = {path: leaf.astype(np.int64) for path, leaf in self._leaves(load(self._folder, kind))}
            for name in files:
                shutil.copyfile(self._sound / name, self._folder / name)

    @staticmethod
    def _leaves(model: Any) -> Iterator[tuple[str, np.ndarray]]:
        return ((path, np.asarray(leaf)) for path, leaf in flatten(model.params).items())

    def check(self, target: str, mutant: bytes) -> str:
        """What loading came to: "accepted", the kind of the typed error, or "wrong" and what is."""
        kind = target.split("/")[0]
        (self._folder / target).write_bytes(mutant)
        try:
            model = load(self._folder, kind)
        except MMSError as error:
            if len(str(error)) > MAX_MESSAGE:
                return f"wrong: a message of {len(str(error))} characters: {str(error)[:200]}"
            named = str(self._folder / kind) in str(error)
            return _reason(error) if named else f"wrong: {type(error).__name__} names no file: {str(error)[:200]}"
        else:
            fault = self._fault(kind, target, mutant, model)
            return f"wrong: {fault}" if fault else "accepted"
        finally:
            shutil.copyfile(self._sound / target, self._folder / target)

    def _fault(self, kind: str, target: str, mutant: bytes, model: Any) -> str | None:
        """Why this should not have been accepted."""
        if target.endswith(".json"):
            try:
                values = json.loads(mutant, object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                return f"accepted what is no JSON: {error}"
            fault = _misread(target, values, model) if isinstance(values, dict) else "accepted what is no object"
            if fault:
                return fault
        return self._wrong_numbers(kind, model)

    def _wrong_numbers(self, kind: str, model: Any) -> str | None:
        """The parameters that are not what the files say."""
        elements = []
        for name, shapes in zip(FILES[kind], self._shapes[kind], strict=True):
            content = (self._folder / name).read_bytes()
            try:
                library = dict(safetensors.deserialize(content))
                json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")], object_pairs_hook=_unique)
            except (safetensors.SafetensorError, ValueError) as error:
                return f"accepted {name}: {error}"
            if library.keys() != {tensor for tensor, _ in shapes}:
                return f"accepted {name} of other tensors: {library.keys() ^ {tensor for tensor, _ in shapes}}"
            for tensor, shape in shapes:
                info = library[tensor]
                if tuple(info["shape"]) != shape or info["dtype"] not in NUMPY:
                    return f"accepted {tensor} of {info['dtype']} {info['shape']}, which is {shape}"
                elements.append(np.frombuffer(info["data"], NUMPY[info["dtype"]]).astype(np.float32))
        values = np.concatenate(elements)
        if not np.isfinite(values).all():
            return "accepted numbers that are not finite"
        leaves = dict(self._leaves(model))
        if leaves.keys() != self._places[kind].keys():
            return f"accepted other parameters: {leaves.keys() ^ self._places[kind].keys()}"
        for path, leaf in leaves.items():
            if leaf.dtype != np.float32 or leaf.tobytes() != values[self._places[kind][path]].tobytes():
                return f"{path} is not what the file holds"
        return None


def load(folder: Path, kind: str) -> Any:
    """As a user would; the adapter that is in a file of its own included."""
    if kind == ASR:
        return mms_jax.load_asr(folder / ASR, language="fra")
    return mms_jax.load_lid(folder / LID) if kind == LID else mms_jax.load_tts(folder / TTS)


def _misread(target: str, values: Mapping[str, Any], model: Any) -> str | None:
    """The first thing that the model has otherwise than the file says."""
    for name, ours, theirs in _pairs(target, values, model):
        if not _same(ours, theirs):
            return f"{name} is {ours!r}, the file says {str(theirs)[:80]!r}"
    if target.endswith("config.json") and "tokenizer" not in target and UNHEARD_OF in values:
        return "accepted a setting nobody ever heard of"
    return None


def _pairs(target: str, values: Mapping[str, Any], model: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, what was loaded, what the file says) of all settings that the file is there for."""
    kind, _, name = target.partition("/")
    if name == "config.json":
        config = model._config if kind == LID else model.config
        sizes = {"vocab_size"} if kind == ASR else set()  # that of the adapter's language
        for field in dataclasses.fields(config):
            if field.name not in sizes:
                yield field.name, getattr(config, field.name), values.get(field.name, field.default)
        if kind == LID:
            yield "labels", {str(id_): label for id_, label in enumerate(model.languages)}, values["id2label"]
    elif name == "preprocessor_config.json":
        for field in dataclasses.fields(FeatureExtractor):
            default = False if field.name == "return_attention_mask" else field.default
            yield field.name, getattr(model.feature_extractor, field.name), values.get(field.name, default)
    elif name == "vocab.json":
        tokens = model.tokenizer.vocabulary("fra").tokens if kind == ASR else model.tokenizer.vocab
        said = values["fra"] if kind == ASR else values
        yield "vocabulary", dict(tokens), said
        yield "ids", sorted(tokens.values()), list(range(len(tokens)))
    elif name == "tokenizer_config.json":
        tokenizer = model.tokenizer.vocabulary("fra") if kind == ASR else model.tokenizer
        for key, default in (CTC_DEFAULTS if kind == ASR else VITS_DEFAULTS).items():
            said = values.get(key, default)
            said = said["content"] if isinstance(said, dict) else said
            yield key, getattr(tokenizer, key), default if said is None and key not in MAY_BE_NONE else said


def _same(ours: Any, theirs: Any) -> bool:
    """Equal, of the same kinds, and no number infinite or none."""
    if isinstance(ours, tuple | list):
        return isinstance(theirs, tuple | list) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(ours, dict):
        return (
            isinstance(theirs, dict) and ours.keys() == theirs.keys() and all(_same(ours[k], theirs[k]) for k in ours)
        )
    if isinstance(ours, int | float) and not isinstance(ours, bool):
        numbers = isinstance(theirs, int | float) and not isinstance(theirs, bool)
        return numbers and math.isfinite(ours) and ours == theirs
    return type(ours) is type(theirs) and ours == theirs


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def _reason(error: MMSError) -> str:
    """An error's type and reason without its numbers and names."""
    reason = re.sub(r"\S*/process\d+/\w+/?", "", str(error))
    reason = re.sub(r"'[^']*'|\d[\d.,e+]*|\([^)]*\)|\[[^]]*\]|[a-z_0-9]+(\.[a-z_0-9]+){2,}", "…", reason)
    return f"{type(error).__name__} {reason}"[:70]

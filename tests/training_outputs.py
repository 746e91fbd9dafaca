"""Output directories of adapter training, from bases as transformers writes them, and how both libraries read them."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import mms_jax
from mms_jax.checkpoint import base_fingerprint, load_feature_extractor, open_source, param_shapes
from mms_jax.config import Wav2Vec2Config
from mms_jax.models.trees import Params, is_adapter_path, stack_layers, unflatten
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.training.files.output import OutputDirectory
from tests.checkpoints import many_languages, vocab
from tests.parity import MMS_CONVS, randomize, relative_error, small_config
from tests.sounds import noise

PARITY = 2e-5  # float32, other order of summation: see test_model_parity.py
LETTERS = {"tur": "abcçdefgğhıijklmnoöprsştuüvyz", "swe": "abcdefghijklmnopqrstuvwxyzåäö"}
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@functools.cache
def mms() -> Path:
    """A base with adapters, and with keys in its config.json that nothing here reads."""
    directory = many_languages(Path(tempfile.mkdtemp()) / "base")
    config = json.loads((directory / CONFIG).read_text()) | {"_name_or_path": "meta/of-old", "codevector_dim": 768}
    (directory / CONFIG).write_text(json.dumps(config))
    return directory


@functools.cache
def pretrained() -> Path:
    """An encoder without adapters and without a head."""
    directory = Path(tempfile.mkdtemp()) / "pretrained"
    model = transformers.Wav2Vec2ForPreTraining(small_config(**MMS_CONVS, conv_dim=(12,) * 7, adapter_attn_dim=None))
    randomize(model, seed=5)
    model.save_pretrained(directory)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(directory)
    return directory


def contents(directory: Path) -> dict[str, str]:
    """A hash of every file."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def nested(*languages: str, **config: Any) -> CTCTokenizer:
    return CTCTokenizer({language: vocab(LETTERS.get(language, "ab")) for language in languages}, config)


def output(path: Path, base: Path, *languages: str, **changes: Any) -> OutputDirectory:
    source = open_source(base)
    config = Wav2Vec2Config.from_file(base / CONFIG).replace(adapter_attn_dim=5)
    values: dict[str, Any] = {
        "languages": languages,
        "tokenizer": nested(*languages),
        "feature_extractor": load_feature_extractor(source),
        "config": config,
        "fingerprint": base_fingerprint(source),
    }
    return OutputDirectory(path, source, **values | changes)


def adapter(directory: OutputDirectory, language: str, *, seed: int = 0) -> Params:
    """A random adapter, its layers stacked as training has them."""
    num_tokens = len(directory.tokenizer.vocab[language])
    shapes = {path: shape for path, shape in param_shapes(directory.config).items() if is_adapter_path(path)}
    shapes |= {"lm_head/kernel": (directory.config.hidden_size, num_tokens), "lm_head/bias": (num_tokens,)}
    rng = np.random.default_rng([seed, zlib.crc32(language.encode())])
    return stack_layers(unflatten({path: rng.standard_normal(s).astype(np.float32) for path, s in shapes.items()}))


def trained(path: Path, base: Path, *languages: str, seed: int = 0, **options: bool) -> OutputDirectory:
    """A directory after a job."""
    directory = output(path, base, *languages)
    directory.prepare(**options)
    for language in languages:
        directory.write_adapter(language, adapter(directory, language, seed=seed))
    directory.finish()
    return directory


@torch.no_grad()
def logits_of_transformers(directory: Path, language: str, waveform: np.ndarray) -> np.ndarray:
    processor = transformers.AutoProcessor.from_pretrained(directory, target_lang=language)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(directory, target_lang=language, ignore_mismatched_sizes=True)
    return model.eval()(**processor(waveform, sampling_rate=16_000, return_tensors="pt")).logits[0].numpy()


def assert_both_load(directory: Path, *languages: str) -> None:
    asr, waveform, seen = mms_jax.load_asr(directory), noise(8000), []
    for language in languages:
        asr.load_adapter(language)
        theirs = logits_of_transformers(directory, language, waveform)
        assert relative_error(asr.logits(waveform)[0], theirs) <= PARITY
        seen.append(theirs)
    for one, other in itertools.pairwise(seen):
        assert one.shape != other.shape or relative_error(one, other) > 0.1

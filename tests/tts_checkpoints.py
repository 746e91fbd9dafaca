"""Whole synthesis checkpoints as transformers writes them, the library's synthesisers of them, and transformers' own.

The voices are small, so that compiling them takes a second or two; it still is most of the time that their tests take.
Hence each voice is made once, and all synthesisers of one configuration share what has been compiled for it.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import transformers
from transformers.models.vits import tokenization_vits

import mms_jax
from mms_jax.config import VitsConfig
from mms_jax.models.trees import flatten, unflatten
from mms_jax.pipelines.tts import SpeechSynthesizer
from mms_jax.text import romanize
from tests.parity import quick
from tests.test_tts_text import ENGLISH, KOREAN
from tests.vits_parity import (
    MAX_FRAMES,
    Expected,
    Noise,
    Text,
    calibrate_durations,
    randomize_vits,
    run_torch,
    small_vits,
)

# A duration that is rounded up must not be closer to a whole number than rounding errors go (seen: 4e-6), relatively.
FLIP_MARGIN = 2e-5

SHORT, FOX, LONG = "hello world", "the quick brown fox", "the lazy dog jumps over the quick brown fox and sleeps " * 3


class Voice(NamedTuple):
    """What makes one checkpoint different from another."""

    vocabulary: Mapping[str, int]
    sentence: str  # of which the durations are as in speech
    tokenizer: Mapping[str, Any]
    changes: Mapping[str, Any]  # of the configuration


FEW_BLOCKS = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]]}
ONE_STAGE = FEW_BLOCKS | {"upsample_rates": [4], "upsample_kernel_sizes": [8]}
# Scales and rate that are nobody's defaults, so that they can only come from config.json.
SETTINGS = {"speaking_rate": 1.25, "noise_scale": 0.5, "noise_scale_duration": 0.6}
ENGLISH_TOKENS = {"language": "eng", "pad_token": "k", "phonemize": False}
VOICES = {
    "english": Voice(ENGLISH, FOX, ENGLISH_TOKENS, FEW_BLOCKS | SETTINGS),
    "speakers": Voice(
        ENGLISH,
        FOX,
        ENGLISH_TOKENS,
        ONE_STAGE | {"num_speakers": 3, "speaker_embedding_size": 5, "sampling_rate": 22_050},
    ),
    "deterministic": Voice(
        ENGLISH,
        FOX,
        ENGLISH_TOKENS | {"add_blank": False},
        ONE_STAGE | {"use_stochastic_duration_prediction": False},
    ),
    "korean": Voice(
        KOREAN,
        "이봐 무슨 일이야",
        {"language": "kor", "pad_token": "u", "phonemize": False, "is_uroman": True},
        ONE_STAGE,
    ),
}


@functools.cache
def directory(name: str) -> Path:
    """The directory of a voice; it is for all tests, so copy it before changing anything."""
    return make(_root() / name, VOICES[name])


@functools.cache
def _root() -> Path:
    root = tempfile.mkdtemp(prefix="mms_jax_voices_")
    atexit.register(shutil.rmtree, root)
    return Path(root)


def make(folder: Path, voice: Voice, *, config: Callable[..., transformers.VitsConfig] = small_vits) -> Path:
    """Write a voice as transformers does: a random model whose durations are those of speech, and its tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = save_tokenizer(folder, voice.vocabulary, **voice.tokenizer)
    model = transformers.VitsModel(config(vocab_size=len(voice.vocabulary), **voice.changes)).eval()
    randomize_vits(model, seed=0)
    text = read_text(tokenizer, voice.sentence)
    calibrate_durations(model, text, drawn(0, text.ids.shape[1], model.config.flow_size))
    model.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, vocabulary: Mapping[str, int], **settings: Any) -> transformers.VitsTokenizer:
    """Write the tokenizer's files as transformers does."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    tokenizer = transformers.VitsTokenizer(str(folder / "vocab.json"), unk_token="<unk>", **settings)
    tokenizer.save_pretrained(folder)
    return tokenizer


def read_text(tokenizer: transformers.VitsTokenizer, text: str) -> Text:
    """A text as transformers' tokenizer has it; uroman is built once and not, as there, for every text."""
    with mock.patch.object(tokenization_vits, "ur", SimpleNamespace(Uroman=romanize._uroman)):
        ids = np.array(tokenizer(text)["input_ids"])[None]
    return Text(ids, np.ones(ids.shape, bool))


def drawn(seed: int, num_symbols: int, flow_size: int, *, max_frames: int = MAX_FRAMES) -> Noise:
    """The noise of an item: the pipeline's draws, and then more of them than its frames can need."""
    source = np.random.default_rng(seed)
    durations = source.standard_normal((1, num_symbols, 2), np.float32)
    return Noise(durations, source.standard_normal((1, num_symbols * max_frames, flow_size), np.float32))


@functools.cache
def synthesizer(name: str, dtype: str = "float32") -> SpeechSynthesizer:
    """A loaded voice; it is for all tests."""
    return load(directory(name), dtype=dtype)


def load(folder: Path, **options: Any) -> SpeechSynthesizer:
    """``load_tts``, and compilations that are quick and shared."""
    return hurried(mms_jax.load_tts(folder, **options))


def hurried(tts: SpeechSynthesizer) -> SpeechSynthesizer:
    """Let it compile without optimisation, and nothing that was compiled for the same configuration and dtype."""
    vars(tts).update(_jitted(tts.config, tts.module.dtype))
    return tts


@functools.cache
def _jitted(config: VitsConfig, dtype: Any) -> Mapping[str, Any]:
    nothing: Any = None  # no tokenizer: what is jitted takes ids and parameters
    tts = SpeechSynthesizer(config, nothing, {}, dtype, "")
    with mock.patch.object(jax, "jit", functools.partial(jax.jit, compiler_options=quick())):
        return {name: getattr(tts, name) for name in ("_encode", "_flow", "_decode")}


def altered(name: str, path: str, change: Callable[[jax.Array], Any], *, dtype: str = "float32") -> SpeechSynthesizer:
    """A voice of which one parameter is another."""
    tts = synthesizer(name, dtype)
    leaves = dict(flatten(tts.params))
    leaves[path] = change(leaves[path])
    return hurried(SpeechSynthesizer(tts.config, tts.tokenizer, unflatten(leaves), tts.module.dtype, name))


class Reference:
    """A voice as transformers' documentation uses it, one text at a time, with the noise that ``synthesize`` draws."""

    def __init__(self, folder: Path):
        self.tokenizer = transformers.VitsTokenizer.from_pretrained(folder)
        self.model = transformers.VitsModel.from_pretrained(folder).eval()

    def speak(
        self,
        text: str,
        *,
        seed: int = 0,
        speaking_rate: float | None = None,
        speaker: int | None = None,
        **scales: float,
    ) -> np.ndarray:
        """The waveform, float32 [S]; ``scales``: noise_scale, noise_scale_duration. Defaults are the checkpoint's."""
        rate = self.model.config.speaking_rate if speaking_rate is None else speaking_rate
        read = read_text(self.tokenizer, text)
        most = round(MAX_FRAMES / min(1.0, rate))
        noise = drawn(seed, read.ids.shape[1], self.model.config.flow_size, max_frames=most)
        with mock.patch.dict(vars(self.model.config), scales):
            expected = run_torch(self.model, read, noise, speaking_rate=speaking_rate, speaker_id=speaker)
        _check_no_flip(expected, read, rate)
        return expected.waveform[0]


def _check_no_flip(expected: Expected, text: Text, rate: float) -> None:
    """Assert that no rounding error changes a duration: else the test had to be one of luck."""
    durations = np.exp(expected.log_durations[text.mask]) / rate
    whole = np.maximum(np.round(durations), 1)
    assert np.abs(durations / whole - 1).min() > FLIP_MARGIN, "a duration may flip: take another text or seed"


@functools.cache
def reference(name: str) -> Reference:
    """A voice in transformers; it is for all tests."""
    return Reference(directory(name))

"""Meta's MMS speech models in JAX/Flax.

>>> import mms_jax
>>> asr = mms_jax.load_asr("facebook/mms-1b-all", language="fra")
>>> asr.transcribe("clip.wav").text
>>> lid = mms_jax.load_lid("facebook/mms-lid-126")
>>> lid.identify("clip.wav").language
>>> encoder = mms_jax.load_encoder("facebook/mms-300m")
>>> encoder.features("clip.wav", layer=12).hidden
>>> tts = mms_jax.load_tts("facebook/mms-tts-eng")
>>> tts.synthesize("Hello, my dog is cute").save("hello.wav")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mms_jax.errors import (
    AlignmentError,
    AudioError,
    CacheError,
    CheckpointError,
    ConfigError,
    LanguageError,
    LanguageModelError,
    MMSError,
    MMSWarning,
    NumericsError,
    SettingError,
    TextError,
    VocabularyError,
)
from mms_jax.languages import languages
from mms_jax.memory import release_freed_memory, reuse_freed_memory
from mms_jax.pipelines.compilation import enable_compilation_cache

if TYPE_CHECKING:
    from mms_jax.pipelines.alignment import AlignedSegment, AlignedWord, Alignment
    from mms_jax.pipelines.asr import SpeechRecognizer, load_asr
    from mms_jax.pipelines.demo import DEMO_LID, DEMO_MODEL
    from mms_jax.pipelines.encoder import EncoderFeatures, SpeechEncoder, load_encoder
    from mms_jax.pipelines.lid import Candidate, Identification, LanguageIdentifier, load_lid
    from mms_jax.pipelines.speech import Speech
    from mms_jax.pipelines.subtitles import to_srt, to_vtt
    from mms_jax.pipelines.transcription import Alternative, RankedLanguage, Segment, Transcription, Word
    from mms_jax.pipelines.tts import SpeechSynthesizer, load_tts

__version__ = "0.1.0"

__all__ = [
    "DEMO_LID",
    "DEMO_MODEL",
    "AlignedSegment",
    "AlignedWord",
    "Alignment",
    "AlignmentError",
    "Alternative",
    "AudioError",
    "CacheError",
    "Candidate",
    "CheckpointError",
    "ConfigError",
    "EncoderFeatures",
    "Identification",
    "LanguageError",
    "LanguageIdentifier",
    "LanguageModelError",
    "MMSError",
    "MMSWarning",
    "NumericsError",
    "RankedLanguage",
    "Segment",
    "SettingError",
    "Speech",
    "SpeechEncoder",
    "SpeechRecognizer",
    "SpeechSynthesizer",
    "TextError",
    "Transcription",
    "VocabularyError",
    "Word",
    "enable_compilation_cache",
    "languages",
    "load_asr",
    "load_encoder",
    "load_lid",
    "load_tts",
    "release_freed_memory",
    "reuse_freed_memory",
    "to_srt",
    "to_vtt",
]

# Imported when it is first asked for: a quarter of the time was flax, which what needs no model does without.
_LATER = {
    "mms_jax.pipelines.alignment": ("AlignedSegment", "AlignedWord", "Alignment"),
    "mms_jax.pipelines.asr": ("SpeechRecognizer", "load_asr"),
    "mms_jax.pipelines.demo": ("DEMO_LID", "DEMO_MODEL"),
    "mms_jax.pipelines.encoder": ("EncoderFeatures", "SpeechEncoder", "load_encoder"),
    "mms_jax.pipelines.lid": ("Candidate", "Identification", "LanguageIdentifier", "load_lid"),
    "mms_jax.pipelines.speech": ("Speech",),
    "mms_jax.pipelines.subtitles": ("to_srt", "to_vtt"),
    "mms_jax.pipelines.transcription": ("Alternative", "RankedLanguage", "Segment", "Transcription", "Word"),
    "mms_jax.pipelines.tts": ("SpeechSynthesizer", "load_tts"),
}
_MODULES = {name: module for module, names in _LATER.items() for name in names}
_PACKAGES = ("audio", "checkpoint", "config", "ctc", "features", "models", "parallel", "training")  # likewise


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Meta's MMS speech models in JAX/Flax.

>>> import mms_jax
>>> asr = mms_jax.load_asr("facebook/mms-1b-all", language="fra")
>>> asr.transcribe("clip.wav").text
"""

from mms_jax.errors import (
    AudioError,
    CheckpointError,
    ConfigError,
    LanguageError,
    MMSError,
    NumericsError,
    VocabularyError,
)
from mms_jax.languages import languages
from mms_jax.pipelines.asr import SpeechRecognizer, Transcription, load_asr
from mms_jax.pipelines.demo import DEMO_MODEL

__version__ = "0.1.0"

__all__ = [
    "DEMO_MODEL",
    "AudioError",
    "CheckpointError",
    "ConfigError",
    "LanguageError",
    "MMSError",
    "NumericsError",
    "SpeechRecognizer",
    "Transcription",
    "VocabularyError",
    "languages",
    "load_asr",
]

"""Flax modules: the maths and nothing else."""

from mms_jax.models.heads import ClassifierOutput, CTCOutput, Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification
from mms_jax.models.wav2vec2 import EncoderOutput, Wav2Vec2Model

__all__ = [
    "CTCOutput",
    "ClassifierOutput",
    "EncoderOutput",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2Model",
]

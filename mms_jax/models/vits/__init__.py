"""VITS, one file for each part of the paper; ``model`` puts them together."""

from mms_jax.models.vits.decoder import prepare_kernels, receptive_field
from mms_jax.models.vits.model import Prior, VitsModel, VitsOutput, draw, frame_counts
from mms_jax.models.vits.wavenet import fold_weight_norm

__all__ = [
    "Prior",
    "VitsModel",
    "VitsOutput",
    "draw",
    "fold_weight_norm",
    "frame_counts",
    "prepare_kernels",
    "receptive_field",
]

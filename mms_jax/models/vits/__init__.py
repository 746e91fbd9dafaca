"""VITS, one file for each part of the paper; ``model`` puts them together."""

from mms_jax.models.vits.decoder import prepare_kernels, receptive_field
from mms_jax.models.vits.model import Prior, VitsModel, VitsOutput, draw, frame_counts

__all__ = [
    "Prior",
    "VitsModel",
    "VitsOutput",
    "draw",
    "frame_counts",
    "prepare_kernels",
    "receptive_field",
]

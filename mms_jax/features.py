"""Waveforms to model input: a batch padded and normalised as the checkpoint was trained, at one of few lengths.

``FeatureExtractor`` computes what Hugging Face's ``Wav2Vec2FeatureExtractor`` computes, in the same float32 steps.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mms_jax.errors import AudioError, ConfigError

FRAME_SAMPLES = 400  # samples that one frame sees: 25 ms at 16 kHz
FRAME_STRIDE = 320  # samples from one frame to the next: 20 ms at 16 kHz
SAMPLING_RATE = 16_000  # Hz: what every MMS model was trained on
MAX_AMPLITUDE = 2.0**31  # float audio at int32's scale is allowed; above it is no audio, and its variance overflows
FRAMES_PER_SECOND = 50
WHOLE_SECONDS = (5, 10, 15, 20, 30, 60, 120)  # what long recordings are cut to
BUCKET_RATIO = 1.15  # a row is at most 13 % or one frame of padding; 52 lengths reach to 30 s, 85 to half an hour

REQUIRED = {  # keys of preprocessor_config.json that must say this, because nothing else is computed here
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "padding_side": "right",
}
HARMLESS = {"processor_class", "tokenizer_class", "transformers_version", "_name_or_path", "name_or_path"}


class Features(NamedTuple):
    """A batch: input_values float32 [B, S]; attention_mask bool [B, S], True = a sample that counts."""

    input_values: np.ndarray
    attention_mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """Padding and normalisation, as ``preprocessor_config.json`` states them.

    ``norm_eps`` is in no such file: Hugging Face uses 1e-7 throughout, Meta's own code 1e-5, and for very quiet audio
    (variance about 1e-5) their inputs differ by up to a factor of sqrt(2).
    """

    do_normalize: bool = True
    return_attention_mask: bool = True
    padding_value: float = 0.0
    sampling_rate: int = SAMPLING_RATE
    feature_size: int = 1
    norm_eps: float = 1e-7

    def __post_init__(self):
        for name, valid, expected in (
            ("do_normalize", isinstance(self.do_normalize, bool), "true or false"),
            ("return_attention_mask", isinstance(self.return_attention_mask, bool), "true or false"),
            ("padding_value", _is_number(self.padding_value), "a finite number"),
            ("sampling_rate", _is_int(self.sampling_rate) and self.sampling_rate > 0, "a positive integer, in Hz"),
            ("feature_size", _is_int(self.feature_size) and self.feature_size == 1, "1 (mono)"),
            ("norm_eps", _is_number(self.norm_eps) and self.norm_eps > 0, "a positive number"),
        ):
            if not valid:
                raise ConfigError(f"feature extractor: {name} is {getattr(self, name)!r}, expected {expected}")

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "FeatureExtractor":
        """Read the content of a preprocessor_config.json, or the "feature_extractor" part of a processor_config.json.

        An absent key has Hugging Face's default: ``return_attention_mask`` is False then, unlike this class's own.
        Raises ``ConfigError`` for a wrong type, for another extractor, and for a key that is not known to be harmless.
        """
        for key, value in REQUIRED.items():
            if d.get(key, value) != value:
                raise ConfigError(f"feature extractor: {key} is {d[key]!r}; only {value!r} is computed here")
        read = {field.name for field in dataclasses.fields(cls)} - {"norm_eps"}
        unknown = sorted(set(d) - read - set(REQUIRED) - HARMLESS)
        if unknown:
            raise ConfigError(f"feature extractor: unknown keys {unknown}; what they would change is not computed here")
        return cls(**{"return_attention_mask": False} | {key: d[key] for key in read if key in d})

    def __call__(self, waveforms: Sequence[np.ndarray], *, pad_to: int | None = None) -> Features:
        """Pad waveforms, each [S] at ``sampling_rate``, to ``pad_to`` samples (None: the longest) and normalise each.

        With ``return_attention_mask``, a row's mean and variance are those of its own samples and its padding stays
        ``padding_value``: neither batch mates nor ``pad_to`` change it. Without, they are taken over the padding too
        and the mask is all True, as such checkpoints were trained: a row then depends on the padded length, unless all
        rows have one length and ``pad_to`` is None. A row without samples is all padding.

        Raises ``AudioError`` for a row that is not one-dimensional, finite float audio, naming it; ``ValueError`` for a
        ``pad_to`` below the longest row.
        """
        rows = [_check_row(row, index) for index, row in enumerate(waveforms)]
        lengths = np.array([len(row) for row in rows], np.int64)
        longest = int(lengths.max(initial=0))
        width = longest if pad_to is None else pad_to
        if width < longest:
            raise ValueError(f"pad_to={pad_to} samples is less than the longest row, {longest}; nothing is cut off")
        values = np.full((len(rows), width), self.padding_value, np.float32)
        for out, row in zip(values, rows, strict=True):
            out[: len(row)] = row
            if self.do_normalize:
                self._normalize(out[: len(row)] if self.return_attention_mask else out)
        num_valid = lengths[:, None] if self.return_attention_mask else width
        return Features(values, np.broadcast_to(np.arange(width) < num_valid, values.shape).copy())

    def _normalize(self, row: np.ndarray) -> None:
        """To zero mean and unit (population) variance, in place, in float32 like the reference."""
        if len(row):
            row[:] = (row - row.mean()) / np.sqrt(row.var() + self.norm_eps)


def _check_row(row: np.ndarray, index: int) -> np.ndarray:
    row = np.asarray(row)
    if row.ndim != 1 or row.dtype.kind != "f":
        raise AudioError(f"row {index} is {row.dtype} of shape {row.shape}, expected float samples [S]; see load_audio")
    if not (np.abs(row) <= np.float64(MAX_AMPLITUDE)).all():  # False for NaN too; float16 cannot hold the limit
        raise AudioError(f"row {index} has samples that are NaN, infinite or over 2^31; load_audio names the place")
    return row


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (isinstance(value, float) or _is_int(value)) and math.isfinite(value)


def bucket_length(num_samples: int, *, ratio: float = BUCKET_RATIO) -> int:
    """The smallest length of a fixed, roughly geometric series that holds ``num_samples``, in samples.

    The lengths are those of T whole frames, 400 + 320 (T - 1): each T is ``ratio`` times the one before, rounded down,
    or the next integer, but none of the lengths that clips are cut to (``WHOLE_SECONDS``) is stepped over. Few lengths
    mean few compilations.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples={num_samples} must not be negative")
    needed = max(0, math.ceil((num_samples - FRAME_SAMPLES) / FRAME_STRIDE)) + 1
    frames = next_bucket(needed, ratio=ratio)
    cuts = [FRAMES_PER_SECOND * seconds for seconds in WHOLE_SECONDS if needed <= FRAMES_PER_SECOND * seconds <= frames]
    return FRAME_SAMPLES + FRAME_STRIDE * (min(cuts, default=frames) - 1)


def next_bucket(count: int, *, first: int = 1, ratio: float = BUCKET_RATIO) -> int:
    """The smallest number ≥ ``count`` of a series: ``first``, then ``ratio`` times the one before, at least + 1."""
    if first < 1 or not ratio > 1:
        raise ValueError(f"first={first} must be at least 1, ratio={ratio} over 1")
    size = first
    while size < count:
        size = max(size + 1, int(size * ratio))
    return size


def bucketed_batches(
    num_samples: Sequence[int],
    *,
    batch_size: int,
    max_samples: int | None = None,
    bucket: Callable[[int], int] = bucket_length,
) -> list[list[int]]:
    """Group the indices of ``num_samples`` into batches whose rows share one bucket.

    A batch has at most ``batch_size`` rows and, where ``max_samples`` is given, at most that many padded samples in all
    (but at least one row). The longest come first, so memory runs out at once or not at all; equal lengths keep their
    order. Every index occurs once, so ``results[index] = …`` restores the order. ``bucket=int`` batches rows of exactly
    equal length, for extractors without a mask.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(num_samples)), key=lambda index: -num_samples[index]):
        groups.setdefault(bucket(num_samples[index]), []).append(index)
    batches = []
    for length, indices in groups.items():
        rows = batch_rows(length, batch_size=batch_size, max_samples=max_samples)
        batches += [indices[start : start + rows] for start in range(0, len(indices), rows)]
    return batches


def batch_rows(num_samples: int, *, batch_size: int, max_samples: int | None) -> int:
    """How many rows of a padded length go into one batch at most: ``batch_size``, or what ``max_samples`` hold."""
    return batch_size if max_samples is None else max(1, min(batch_size, max_samples // max(1, num_samples)))

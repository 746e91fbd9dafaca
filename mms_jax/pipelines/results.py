"""What identification and features share: one item or many, errors that stay with their item, rows in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from mms_jax.audio import SAMPLING_RATE, describe_audio
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError
from mms_jax.features import FeatureExtractor
from mms_jax.pipelines.batching import MAX_DURATION, WINDOW, load_all, make_batches, pads


class Item(NamedTuple):
    """One input, decoded, or why it cannot be used."""

    samples: np.ndarray  # float32 [S] at 16 kHz; empty where it could not be read
    error: AudioError | None = None

    @property
    def duration(self) -> float:
        """Seconds; 0.0 where it could not be read."""
        return len(self.samples) / SAMPLING_RATE


class _Result(Protocol):
    @property
    def error(self) -> Exception | None: ...


R = TypeVar("R", bound=_Result)


def load_windows(
    inputs: Sequence[Any],
    *,
    many: bool,
    max_duration: float,
    refuse: Callable[[np.ndarray], str | None] = lambda samples: None,
) -> Iterator[list[Item]]:
    """Decode inputs in order, a limited number at a time, so that a long list stays small in memory.

    Args:
        inputs: what ``load_audio`` takes.
        many: whether errors are to say which of the inputs they are about.
        max_duration: longest input, seconds; what is longer is an error.
        refuse: why samples that could be read cannot be used, or None.
    """
    for start in range(0, len(inputs), WINDOW):
        window = inputs[start : start + WINDOW]
        items = []
        for offset, samples in enumerate(load_all(window, max_duration=max_duration, first=start if many else None)):
            if isinstance(samples, AudioError):
                items.append(Item(np.zeros(0, np.float32), samples))
                continue
            reason = refuse(samples)
            name = _name(window[offset], start + offset if many else None)
            items.append(Item(samples, None if reason is None else AudioError(f"{name}: {reason}")))
        yield items


def _name(audio: Any, number: int | None) -> str:
    nameless = number is not None and not isinstance(audio, (str, PathLike))
    return f"item {number}: {describe_audio(audio)}" if nameless else describe_audio(audio)


def one_or_all(results: list[R], *, many: bool) -> Any:
    """The results of many inputs, errors among them; or that of a single one, whose error is raised."""
    if many:
        return results
    if results[0].error is not None:
        raise results[0].error
    return results[0]


def forward_rows(
    forward: Callable[..., Mapping[str, jax.Array]],
    items: Sequence[Item],
    todo: Sequence[int],
    *,
    config: Wav2Vec2Config,
    feature_extractor: FeatureExtractor,
    batch_size: int,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Run the items whose indices are in ``todo``, of at least one frame each, in batches of like length.

    Args:
        forward: (input_values [B, S], attention_mask [B, S]) to named arrays with a leading axis B.
        items: all of them.
        todo: which to run.
        config, feature_extractor: the model's.
        batch_size: most rows in a batch.

    Yields:
        (index, that row of every array), in no particular order; rows are views of their batch.
    """
    batches = make_batches(
        [items[index].samples for index in todo],
        feature_extractor,
        batch_size=batch_size,
        max_samples=int(MAX_DURATION * SAMPLING_RATE),
        pad=pads(config),
    )
    for batch in batches:
        outputs = {name: np.asarray(value) for name, value in forward(*batch.features).items()}
        for row, position in enumerate(batch.indices):
            yield todo[position], {name: value[row] for name, value in outputs.items()}

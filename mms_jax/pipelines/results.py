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
from mms_jax.pipelines.batching import MAX_DURATION, WINDOW, WINDOW_BYTES, Batch, load_each, make_batches, pads
from mms_jax.pipelines.prefetch import made_ahead, one_call_behind
from mms_jax.pipelines.waveforms import on_device


class Item(NamedTuple):
    """One input, decoded, or why it cannot be used."""

    samples: np.ndarray  # int16 or float32 [S] at 16 kHz; empty where it could not be read
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
    """Decode inputs in order, ``WINDOW`` at a time or ``WINDOW_BYTES``, so that a long list stays small in memory.

    While one window is in use the next one is decoded.

    Args:
        inputs: what ``load_samples`` takes.
        many: whether errors are to say which of the inputs they are about.
        max_duration: longest input, seconds; what is longer is an error.
        refuse: why samples that could be read cannot be used, or None.
    """

    def item(samples: np.ndarray | AudioError, index: int) -> Item:
        if isinstance(samples, AudioError):
            return Item(np.zeros(0, np.float32), samples)
        reason = refuse(samples)
        if reason is None:
            return Item(samples)
        return Item(samples, AudioError(f"{_name(inputs[index], index if many else None)}: {reason}"))

    loaded = load_each(inputs, max_duration=max_duration, many=many)
    least = WINDOW_BYTES // WINDOW  # what an item counts, so that no more than a window's are made ahead
    with made_ahead(loaded, cost=lambda samples: max(least, _num_bytes(samples)), limit=WINDOW_BYTES) as decoded:
        window: list[Item] = []
        held = 0
        for index, samples in enumerate(decoded):
            window.append(item(samples, index))
            held += _num_bytes(samples)
            if len(window) == WINDOW or held >= WINDOW_BYTES:
                yield window
                window, held = [], 0
        if window:
            yield window


def _num_bytes(samples: np.ndarray | AudioError) -> int:
    return samples.nbytes if isinstance(samples, np.ndarray) else 0


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
    batch_size: int,
    ahead: bool = True,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Run the items whose indices are in ``todo``, of at least one frame each, in batches of like length.

    Args:
        forward: (samples [B, S], num_samples [B]) to named arrays with a leading axis B.
        items: all of them.
        todo: which to run.
        config: the model's.
        batch_size: most rows in a batch.
        ahead: dispatch a batch while the one before is computed, whose results are both held then.

    Yields:
        (index, that row of every array), in no particular order; rows are views of their batch.
    """
    batches = make_batches(
        [items[index].samples for index in todo],
        batch_size=batch_size,
        max_samples=int(MAX_DURATION * SAMPLING_RATE),
        pad=pads(config),
    )

    def call(batch: Batch) -> tuple[list[int], Mapping[str, jax.Array]]:
        outputs = forward(*on_device(batch.waveforms))
        for value in outputs.values():
            value.copy_to_host_async()
        return batch.indices, outputs

    calls = map(call, batches)
    for indices, outputs in one_call_behind(calls, is_call=lambda _: True) if ahead else calls:
        rows = {name: np.asarray(value) for name, value in outputs.items()}
        for row, position in enumerate(indices):
            yield todo[position], {name: value[row] for name, value in rows.items()}

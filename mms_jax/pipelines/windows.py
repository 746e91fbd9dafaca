"""Windows of frames for a decoder that sees only so far: one for short speech, several for long speech and streams.

A window is decoded with ``context`` frames on both sides and gives the samples of its own frames exactly: they depend
on nothing further away. Frames before the first and behind the last one are masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mms_jax.errors import SettingError
from mms_jax.features import next_bucket
from mms_jax.pipelines.batching import powers_of_two

MAX_WINDOW = 512  # frames, context included: 8.2 s of an MMS voice; bounds the decoder's memory
MIN_WINDOW = 16
STREAM_CHUNKS = (32, 64, 128, 256)  # frames: half a second at once, then fewer and longer; the last size repeats


class Window(NamedTuple):
    """Frames start … stop - 1, decoded among first … first + size - 1."""

    start: int
    stop: int
    first: int  # may be negative
    size: int


def whole_windows(num_frames: int, *, context: int) -> list[Window]:
    """Windows that cover all frames, for decoding in any order."""
    if num_frames <= MAX_WINDOW:
        return [Window(0, num_frames, 0, min(next_bucket(num_frames, first=MIN_WINDOW), MAX_WINDOW))]
    largest = max(MAX_WINDOW, 4 * context)  # at least half of it is not context
    step = largest - 2 * context
    windows = []
    for start in range(0, num_frames, step):
        stop = min(start + step, num_frames)
        size = min(next_bucket(stop - start + 2 * context, first=MIN_WINDOW), largest)
        windows.append(Window(start, stop, start - context, size))
    return windows


def stream_windows(num_frames: int, *, context: int) -> Iterator[Window]:
    """Windows that cover all frames, in order, the first one small."""
    start, index = 0, 0
    while start < num_frames:
        step = STREAM_CHUNKS[min(index, len(STREAM_CHUNKS) - 1)]
        first = start - context if index else 0
        stop = min(start + step, num_frames)
        yield Window(start, stop, first, start + step + context - first)
        start, index = stop, index + 1


def window_batches(windows: Sequence[tuple[int, Window]], *, batch_size: int) -> Iterator[list[tuple[int, Window]]]:
    """Batches of windows of one size, largest first; numbers of rows are powers of two, so that few shapes compile."""
    if batch_size < 1:
        raise SettingError(f"batch_size is {batch_size!r}; it must be at least 1")
    by_size: dict[int, list[tuple[int, Window]]] = {}
    for item in windows:
        by_size.setdefault(item[1].size, []).append(item)
    for _, group in sorted(by_size.items(), reverse=True):
        for start in range(0, len(group), batch_size):
            yield from powers_of_two(group[start : start + batch_size])

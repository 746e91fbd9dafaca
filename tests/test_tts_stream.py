"""Streams of speech: the same samples as at once, the first of them soon; and the windows that both are decoded in."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mms_jax.config import VitsConfig
from mms_jax.errors import NumericsError, SettingError, TextError
from mms_jax.models.vits import receptive_field
from mms_jax.pipelines.windows import (
    MAX_WINDOW,
    MIN_WINDOW,
    STREAM_CHUNKS,
    Window,
    stream_windows,
    whole_windows,
    window_batches,
)
from tests.tts_checkpoints import FOX, LONG, SHORT, altered, synthesizer

# The same operations in other shapes, so that sums go in another order. 2e-7 is seen.
SAME = 1e-5


def chunks(text: str = LONG, *, name: str = "english", **settings: Any) -> list[np.ndarray]:
    return [*synthesizer(name).synthesize_stream(text, **settings)]


# Streams


@pytest.mark.parametrize(
    ("name", "text", "settings"),
    [
        ("english", LONG, {"seed": 3}),
        ("english", SHORT, {"seed": 4, "noise_scale": 0.9, "noise_scale_duration": 0.1, "speaking_rate": 0.9}),
        ("english", "i", {}),
        ("speakers", FOX, {"speaker": 2}),
        ("deterministic", "i", {"normalize": False}),
    ],
)
def test_chunks_together_are_the_whole(name, text, settings):
    whole = synthesizer(name).synthesize(text, **settings).waveform
    pieces = chunks(text, name=name, **settings)
    stream = np.concatenate(pieces)
    assert stream.shape == whole.shape
    assert np.abs(stream - whole).max() <= SAME
    assert all(piece.dtype == np.float32 and piece.ndim == 1 and piece.size for piece in pieces)


def test_chunks_are_short_at_first_and_then_longer():
    hop = synthesizer("english").config.hop_length
    sizes = [len(chunk) // hop for chunk in chunks()]
    assert len(sizes) > len(STREAM_CHUNKS) + 1
    assert sizes[0] * 256 / 16_000 <= 0.52  # seconds, of a published voice
    assert sizes[:-1] == [STREAM_CHUNKS[min(i, len(STREAM_CHUNKS) - 1)] for i in range(len(sizes) - 1)]


def test_the_first_chunk_is_there_before_the_second_is_computed():
    tts = synthesizer("english")
    stream = tts.synthesize_stream(LONG)
    with mock.patch.dict(vars(tts), _decode=mock.Mock(wraps=tts._decode)):
        next(stream)
        shapes = [call.args[1].shape for call in vars(tts)["_decode"].call_args_list]
    assert shapes == [(1, STREAM_CHUNKS[0] + receptive_field(tts.config), tts.config.flow_size)]


def test_two_streams_do_not_disturb_each_other():
    apart = chunks(seed=3), chunks(seed=4)
    tts = synthesizer("english")
    # not strict: another seed gives speech of another length, and the shorter stream ends the comparison
    both = list(zip(tts.synthesize_stream(LONG, seed=3), tts.synthesize_stream(LONG, seed=4), strict=False))
    assert len(both) == min(map(len, apart)) > 1
    for (first, second), *expected in zip(both, *apart, strict=False):  # likewise
        np.testing.assert_array_equal(first, expected[0])
        np.testing.assert_array_equal(second, expected[1])


@pytest.mark.parametrize(
    ("text", "settings", "error", "reason"),
    [
        ("日本", {}, TextError, "'日', '本' dropped"),
        ([SHORT], {}, TextError, "got list"),
        (SHORT, {"speaking_rate": 0}, SettingError, "speaking_rate is 0"),
        (SHORT, {"seed": [1]}, SettingError, r"seed is \[1\]"),
        (SHORT, {"speaker": 1}, SettingError, "speaker is 1"),
        (SHORT, {"max_duration": float("nan")}, SettingError, "max_duration is nan"),
        (SHORT, {"max_duration": 0.01}, TextError, r"longer than max_duration=0\.01 s"),
    ],
)
def test_errors_come_at_the_call_and_not_at_the_first_chunk(text, settings, error, reason):
    with pytest.raises(error, match=reason):
        synthesizer("english").synthesize_stream(text, **settings)


def test_a_chunk_that_is_not_finite_is_an_error_and_no_noise():
    stream = altered("english", "decoder/conv_post/kernel", lambda x: x * np.nan).synthesize_stream(SHORT)
    with pytest.raises(NumericsError, match="not finite in float32; is the checkpoint whole"):
        next(stream)


# Windows

FRAMES = st.integers(1, 5_000)
CONTEXTS = st.integers(0, 300)


def check_cover(windows: list[Window], num_frames: int, context: int) -> None:
    """Every frame is in one window, in order, and is decoded among all that it depends on."""
    assert windows[0].start == 0
    assert windows[-1].stop == num_frames
    assert all(one.stop == other.start for one, other in itertools.pairwise(windows))
    for window in windows:
        assert window.start < window.stop
        assert window.first <= max(window.start - context, 0)
        assert window.first + window.size >= min(window.stop + context, num_frames)


@given(FRAMES, CONTEXTS)
@example(MAX_WINDOW, 100)
@example(MAX_WINDOW + 1, 100)
@example(1, 0)
def test_whole_windows_cover_all_frames_once_with_what_they_depend_on(num_frames, context):
    windows = whole_windows(num_frames, context=context)
    check_cover(windows, num_frames, context)
    assert len({window.size for window in windows[:-1]}) <= 1  # the last one has a bucket of its own
    if len(windows) > 1:
        size, step = windows[0].size, windows[0].stop - windows[0].start
        assert size == max(MAX_WINDOW, 4 * context)
        assert 2 * step >= size  # no more than half is decoded twice


@given(FRAMES, CONTEXTS)
@example(STREAM_CHUNKS[0], 0)
@example(sum(STREAM_CHUNKS) + 1, 13)
def test_stream_windows_cover_all_frames_once_with_what_they_depend_on(num_frames, context):
    windows = [*stream_windows(num_frames, context=context)]
    check_cover(windows, num_frames, context)
    assert windows[0].stop <= STREAM_CHUNKS[0]
    assert max(window.size for window in windows) <= STREAM_CHUNKS[-1] + 2 * context


def test_few_sizes_are_compiled_whatever_the_lengths():
    context = receptive_field(VitsConfig())  # of the published voices
    whole = {window.size for n in range(1, 40_000, 13) for window in whole_windows(n, context=context)}
    stream = {window.size for n in range(1, 40_000, 13) for window in stream_windows(n, context=context)}
    assert len(whole) <= 30
    assert min(whole) >= MIN_WINDOW
    assert max(whole) <= MAX_WINDOW  # ten minutes are decoded in no larger pieces than eight seconds
    assert len(stream) <= len(STREAM_CHUNKS) + 1


WINDOWS = st.lists(st.integers(1, 1_500), max_size=40).map(
    lambda lengths: [(i, window) for i, n in enumerate(lengths) for window in whole_windows(n, context=13)]
)


@given(WINDOWS, st.integers(1, 20))
def test_batches_hold_every_window_once_beside_others_of_its_size(windows, batch_size):
    batches = [*window_batches(windows, batch_size=batch_size)]
    assert sorted(item for batch in batches for item in batch) == sorted(windows)
    for batch in batches:
        assert len({window.size for _, window in batch}) == 1
        assert len(batch) <= batch_size
        assert len(batch) & (len(batch) - 1) == 0, "not a power of two"
    sizes = [batch[0][1].size for batch in batches]
    assert sizes == sorted(sizes, reverse=True)  # what needs most memory fails first


def test_many_windows_fill_their_batches():
    windows = [(i, Window(0, 10, 0, 16)) for i in range(13)]
    assert [len(batch) for batch in window_batches(windows, batch_size=8)] == [8, 4, 1]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_of_nothing_are_refused(batch_size):
    with pytest.raises(SettingError, match=f"batch_size is {batch_size}"):
        list(window_batches([], batch_size=batch_size))

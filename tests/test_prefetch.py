"""What goes on while other work is waited for: bounded, in order, and over once nobody wants it."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mms_jax
from mms_jax.errors import AudioError
from mms_jax.pipelines import recognition
from mms_jax.pipelines.batching import AHEAD, WINDOW
from mms_jax.pipelines.chunks import chunk_bytes
from mms_jax.pipelines.prefetch import made_ahead, one_call_behind
from mms_jax.pipelines.recordings import WINDOWS_HELD
from mms_jax.pipelines.results import load_windows
from tests.checkpoints import many_languages
from tests.sounds import encode, noise
from tests.test_lid_parity import compiling_quickly

SHORT = {"chunk_length_s": 0.5, "stride_length_s": 0.1}


@given(st.lists(st.integers(0, 9)), st.integers(0, 20))
def test_items_come_in_order_whatever_they_cost(costs, limit):
    with made_ahead((pair for pair in enumerate(costs)), cost=lambda pair: pair[1], limit=limit) as items:
        assert list(items) == list(enumerate(costs))


def test_no_more_is_made_ahead_than_the_limit_allows():
    made, room = [], threading.Semaphore(0)

    def items():
        for number in range(100):
            made.append(number)
            room.release()
            yield number

    with made_ahead(items(), cost=lambda _: 1, limit=5) as ahead:
        for _ in range(6):  # five wait, and the thread holds one more
            assert room.acquire(timeout=10)
        assert not room.acquire(timeout=0.1)
        assert next(ahead) == 0
        assert room.acquire(timeout=10)
        assert not room.acquire(timeout=0.1)
    assert len(made) == 7


def test_errors_take_room_too():
    made = []

    def errors():
        for number in range(1000):
            made.append(number)
            yield number, AudioError("not audio")

    with made_ahead(errors(), cost=lambda pair: chunk_bytes(pair[1]), limit=8 * chunk_bytes(AudioError(""))) as ahead:
        next(ahead)
    assert len(made) < 20


def test_one_item_over_the_limit_is_made_all_the_same():
    with made_ahead((item for item in (100, 200)), cost=lambda item: item, limit=1) as items:
        assert list(items) == [100, 200]


def test_what_fails_in_the_thread_is_raised_in_its_place():
    def items():
        yield 1
        raise RuntimeError("of the second item")

    with made_ahead(items(), cost=lambda _: 1, limit=5) as ahead:
        assert next(ahead) == 1
        with pytest.raises(RuntimeError, match="of the second item"):
            next(ahead)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_ends_the_thread_and_closes_what_it_reads(taken):
    closed = []

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    before = threading.active_count()
    with made_ahead(items(), cost=lambda _: 1, limit=2) as ahead:
        for _ in range(taken):
            next(ahead)
    assert len(closed) == 1
    assert threading.active_count() == before


@given(st.lists(st.booleans()))
def test_every_call_waits_for_the_next_one_and_nothing_overtakes(kinds):
    made, events = [], []

    def steps():
        for step in enumerate(kinds):
            made.append(step)
            yield step

    for step in one_call_behind(steps(), is_call=lambda step: step[1]):
        events.append(step)
        later = [other for other in made[step[0] + 1 :] if other[1]]
        more = any(kinds[step[0] + 1 :])
        if step[1]:
            assert len(later) == (1 if more else 0)  # one call ahead, and never two
    assert events == list(enumerate(kinds))


# ------------------------------------------------------------------------------------- in identification and features


@pytest.mark.parametrize(("limit", "sizes"), [(4 * 16_000 * 10, [10, 10, 5]), (10**9, [25])])
def test_a_window_ends_at_so_many_bytes_of_samples(monkeypatch, limit, sizes):
    """Long items would be 490 MB in use and as many decoded, if only their number counted."""
    monkeypatch.setattr("mms_jax.pipelines.results.WINDOW_BYTES", limit)
    seconds = [noise(16_000, seed=seed) for seed in range(25)]
    windows = list(load_windows(seconds, many=True, max_duration=2))
    assert [len(window) for window in windows] == sizes
    for item, samples in zip([item for window in windows for item in window], seconds, strict=True):
        np.testing.assert_array_equal(item.samples, samples)


def test_a_window_ends_at_so_many_items(tmp_path):
    missing = [tmp_path / f"{number}.wav" for number in range(WINDOW + 3)]
    windows = list(load_windows(missing, many=True, max_duration=2))
    assert [len(window) for window in windows] == [WINDOW, 3]
    assert all(isinstance(item.error, AudioError) for window in windows for item in window)


# --------------------------------------------------------------------------------------------- in the recogniser itself


@pytest.fixture(scope="module")
def asr(tmp_path_factory):
    with compiling_quickly():
        asr = mms_jax.load_asr(many_languages(tmp_path_factory.mktemp("mms")), language="fra")
        asr.warmup(max_duration=0.5, batch_size=2)
        yield asr


@pytest.fixture
def events(monkeypatch):
    """What the device is asked to do, and when its results are waited for."""
    found: list[str] = []
    run, results = recognition.Recognition._run, recognition.Call.results

    def counted_run(self, *arguments):
        found.append("call")
        return run(self, *arguments)

    def counted_results(self):
        found.append("wait")
        return results(self)

    monkeypatch.setattr(recognition.Recognition, "_run", counted_run)
    monkeypatch.setattr(recognition.Call, "results", counted_results)
    return found


def test_the_device_has_its_next_batch_before_the_results_of_one_are_waited_for(asr, events):
    """From the first batch to the last, whatever windows were read together."""
    asr.transcribe([noise(8_000 * WINDOWS_HELD * 4, seed=seed) for seed in range(3)], batch_size=2, **SHORT)
    calls = events.count("call")
    assert calls > 20
    assert events == ["call", *["call", "wait"] * (calls - 1), "wait"]


def test_files_are_decoded_while_the_device_computes(asr, monkeypatch, tmp_path):
    """The results of the first batch are held back until files far behind it have been opened."""
    for number in range(40):
        (tmp_path / f"{number}.wav").write_bytes(encode(noise(8_000, seed=number), codec="PCM_16"))
    paths = sorted(tmp_path.glob("*.wav"))
    opened, decoded, results = [], threading.Event(), recognition.Call.results

    def stream(audio, **settings):
        opened.append(audio)
        # Four files of 16 bits are in use and four wait; without the latter no more than AHEAD + 1 would be open.
        if len(opened) >= 4 + 4 + AHEAD:
            decoded.set()
        return mms_jax.audio.stream_samples(audio, **settings)

    def patient(self):
        assert decoded.wait(timeout=30)
        return results(self)

    monkeypatch.setattr("mms_jax.pipelines.chunks.stream_samples", stream)
    monkeypatch.setattr(recognition.Call, "results", patient)
    assert len(asr.transcribe(paths, batch_size=1, **SHORT)) == 40
    assert len(opened) == 40


def test_an_interrupt_leaves_no_thread_and_no_open_file(asr, monkeypatch, tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(encode(noise(400_000), codec="PCM_16"))

    def interrupted(self):
        raise KeyboardInterrupt

    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(recognition.Call, "results", interrupted)
        with pytest.raises(KeyboardInterrupt):
            asr.transcribe([path] * 20, batch_size=2, **SHORT)  # an open file would be a ResourceWarning, so an error
    assert threading.active_count() == before
    assert asr.transcribe(path, batch_size=2, **SHORT).text


def test_a_bad_file_among_files_decoded_ahead_is_an_error_of_its_own(asr, tmp_path):
    clips = [encode(noise(8_000, seed=seed), codec="PCM_16") for seed in range(40)]
    clips[35] = clips[35][:5_000]
    results = asr.transcribe(clips, batch_size=1, **SHORT)
    assert [isinstance(result.error, AudioError) for result in results] == [number == 35 for number in range(40)]
    assert "item 35" in str(results[35].error)
    clips[35] = clips[34]
    again = asr.transcribe(clips, batch_size=1, **SHORT)
    assert [one.text for one in again[:35]] == [one.text for one in results[:35]]


def test_16_bit_and_float_clips_of_one_list_are_heard_alike(asr):
    clips = [np.round(noise(3_000 + 900 * seed, seed=seed) * 2**15).astype(np.int16) for seed in range(6)]
    mixed = [clip if number % 2 else clip.astype(np.float32) / 2**15 for number, clip in enumerate(clips)]
    for one, other in zip(asr.logits(clips, batch_size=4), asr.logits(mixed, batch_size=4), strict=True):
        np.testing.assert_array_equal(one, other)

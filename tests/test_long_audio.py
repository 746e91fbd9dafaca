"""Audio longer than a window: cut as transformers' pipeline cuts it, and nothing lost, doubled or shifted by it."""

import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import soundfile
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

import mms_jax
from mms_jax.audio import SAMPLING_RATE, load_audio
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, NumericsError, SettingError
from mms_jax.pipelines.chunks import Chunk, cut, make_chunking, read_chunks
from mms_jax.pipelines.demo import demo_clips
from mms_jax.pipelines.recordings import WINDOWS_HELD, Reader, Recording
from tests.checkpoints import Reference, many_languages
from tests.parity import relative_error
from tests.sounds import encode, noise
from tests.test_lid_parity import compiling_quickly

# float32 on both sides; two layers, sums of at most a few hundred terms in another order.
TOLERANCE = 2e-5
# Rows of a batch go through the same operations in other shapes: only the order of summation may differ.
BATCH_TOLERANCE = 1e-5

HOP = 320  # samples from frame to frame
CONFIG = Wav2Vec2Config()
SHORT = {"chunk_length_s": 1.0, "stride_length_s": (0.2, 0.1)}  # 50 frames, of which 35 are kept


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with compiling_quickly():
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return many_languages(tmp_path_factory.mktemp("mms"))


@pytest.fixture(scope="module")
def asr(directory):
    return mms_jax.load_asr(directory, language="fra")


@pytest.fixture(scope="module")
def reference(directory):
    reference = Reference(directory)
    reference.choose("fra")
    return reference


def whole_frames(samples, chunking):
    """The samples each kept frame of each chunk begins with, laid end to end."""
    starts = []
    for chunk in cut([samples], chunking, CONFIG):
        starts += [chunk.start + frame * HOP for frame in range(chunk.keep.start, chunk.keep.stop)]
        assert chunk.keep.stop <= CONFIG.num_frames(len(chunk.samples))
    return starts


@given(
    st.integers(0, 400_000),
    st.floats(0.1, 4.0),
    st.none() | st.floats(0, 0.5) | st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
)
def test_the_kept_frames_of_all_windows_are_the_frames_of_the_whole(num_samples, chunk, stride):
    try:
        chunking = make_chunking(CONFIG, chunk_length_s=chunk, stride_length_s=stride)
    except SettingError:
        return  # all of the window is context
    starts = whole_frames(np.zeros(num_samples, np.float32), chunking)
    assert starts == [frame * HOP for frame in range(CONFIG.num_frames(num_samples))]


@pytest.mark.parametrize("stride", [None, 0, 0.1, (0.3, 0.02), (0, 0.2)])
def test_no_residue_of_the_length_loses_a_frame(stride):
    chunking = make_chunking(CONFIG, chunk_length_s=1.0, stride_length_s=stride)
    for num_samples in range(60_000, 60_000 + HOP):
        frames = whole_frames(np.zeros(num_samples, np.float32), chunking)
        assert frames == [frame * HOP for frame in range(CONFIG.num_frames(num_samples))]


@given(st.lists(st.integers(1, 40_000), max_size=8))
def test_windows_do_not_depend_on_the_blocks_that_audio_comes_in(sizes):
    chunking = make_chunking(CONFIG, **SHORT)
    samples = np.arange(sum(sizes), dtype=np.float32)
    blocks = np.split(samples, np.cumsum(sizes)[:-1]) if sizes else []
    in_blocks, at_once = list(cut(blocks, chunking, CONFIG)), list(cut([samples], chunking, CONFIG))
    assert [chunk[1:] for chunk in in_blocks] == [chunk[1:] for chunk in at_once]
    for one, other in zip(in_blocks, at_once, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)


@pytest.fixture(scope="module")
def demo_reference():
    reference = Reference(mms_jax.DEMO_MODEL)
    reference.choose("fra")
    return reference


@pytest.fixture(scope="module")
def demo():
    """The bundled model, which understands the bundled clips: its text changes with every frame that is off."""
    return mms_jax.load_asr(mms_jax.DEMO_MODEL, language="fra")


@pytest.fixture(scope="module")
def speech():
    """About nine seconds, float32."""
    return np.concatenate([load_audio(clip.path) for clip in demo_clips() if clip.language == "fra"])


@pytest.mark.parametrize("end", [0, 1, 79, 80, 160, 319, 12_345])
@pytest.mark.parametrize(("chunk", "stride"), [(3.0, None), (2.0, (0.6, 0.2))])
def test_the_text_is_that_of_transformers_pipeline(demo, speech, demo_reference, end, chunk, stride):
    clip = speech[: len(speech) - end]
    pipeline: Any = transformers.pipeline(
        "automatic-speech-recognition",
        model=demo_reference.model,
        tokenizer=demo_reference.processor.tokenizer,
        feature_extractor=demo_reference.processor.feature_extractor,
        chunk_length_s=chunk,
        stride_length_s=stride,
    )
    expected = pipeline({"raw": clip, "sampling_rate": SAMPLING_RATE})["text"]
    assert demo.transcribe(clip, chunk_length_s=chunk, stride_length_s=stride).text == expected
    assert len(expected) > 80


def test_stitched_logits_are_those_of_the_windows_one_by_one(asr, reference):
    clip = noise(50_000)
    parts = []
    for chunk in cut([clip], make_chunking(CONFIG, **SHORT), CONFIG):
        parts.append(reference.logits(chunk.samples)[chunk.keep])
    stitched = asr.logits(clip, **SHORT)[0]
    assert len(parts) > 3
    assert len(stitched) == CONFIG.num_frames(50_000)
    assert relative_error(stitched, np.concatenate(parts)) <= TOLERANCE


@pytest.mark.parametrize("num_samples", [400, 15_999, 16_000])
def test_audio_that_fits_into_a_window_is_recognised_in_one_pass(asr, reference, num_samples):
    clip = noise(num_samples)
    logits = asr.logits(clip, **SHORT)[0]
    np.testing.assert_array_equal(logits, asr.logits(clip, chunk_length_s=100)[0])
    assert relative_error(logits, reference.logits(clip)) <= TOLERANCE


def test_one_sample_more_than_a_window_is_cut(asr):
    clip = noise(16_001)
    assert len(list(cut([clip], make_chunking(CONFIG, **SHORT), CONFIG))) == 2
    assert asr.logits(clip, **SHORT)[0].shape == asr.logits(clip)[0].shape


def test_long_and_short_items_of_a_list_are_each_what_they_are_alone(asr):
    clips = [noise(num_samples, seed=num_samples) for num_samples in (70_000, 300, 16_000, 33_000, 0, 90_000)]
    languages = ["fra", "eng", "eng", "azj-script_latin", "fra", "eng"]
    together = asr.logits(clips, language=languages, **SHORT)
    for clip, language, logits in zip(clips, languages, together, strict=True):
        alone = asr.logits(clip, language=language, **SHORT)[0]
        assert logits.shape == alone.shape
        assert np.abs(logits - alone).max(initial=0) <= BATCH_TOLERANCE


def test_a_stretch_of_digital_silence_has_no_text_and_moves_nothing(demo, speech):
    silence = np.zeros(20 * SAMPLING_RATE, np.float32)
    clip = np.concatenate([speech, silence, speech])
    words = demo.transcribe(clip, timestamps="word", chunk_length_s=4.0).words
    first, length = len(speech) / SAMPLING_RATE, len(clip) / SAMPLING_RATE
    assert sum(word.end < first for word in words) > 10
    assert sum(word.start > length - first for word in words) > 10
    assert not any(first + 4 < word.start < length - first - 4 for word in words)  # windows that hold nothing else
    assert demo.transcribe(silence, chunk_length_s=4.0).text == ""


def test_the_duration_of_audio_in_windows_is_that_of_the_whole(asr):
    for num_samples in (16_000, 16_001, 50_123):
        assert asr.transcribe(noise(num_samples), **SHORT).duration == num_samples / SAMPLING_RATE


def test_no_more_windows_are_held_than_the_batch_size_allows(asr, monkeypatch):
    reader, sizes = Reader._read_group, []

    def counted(self, group):
        sizes.append(sum(chunk.samples.nbytes for _, chunk in group))
        return reader(self, group)

    monkeypatch.setattr(Reader, "_read_group", counted)
    half = WINDOWS_HELD // 2 * 2 * 16_000 * 4  # the other one is decoded in the meantime
    for audio in (noise(200_000), encode(noise(200_000), codec="PCM_16")):
        sizes.clear()
        asr.transcribe([audio] * 3, batch_size=2, **SHORT)
        assert 0 <= max(sizes) - half < 64_000  # the last one may go beyond
        assert len(sizes) > 6


def test_a_window_holds_its_own_samples_and_not_the_block_they_came_in():
    block = noise(100_000)
    chunks = list(cut([block], make_chunking(CONFIG, **SHORT), CONFIG))
    assert all(chunk.samples.base is None for chunk in chunks)


def test_a_long_file_is_read_as_it_is_recognised(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1, format="WAV") as file:
        for _ in range(30):
            file.write(noise(10 * SAMPLING_RATE))
    chunking = make_chunking(CONFIG, chunk_length_s=10, stride_length_s=1)
    chunks = read_chunks([path], [0], chunking, CONFIG, max_duration=1e9, many=True)
    first = next(chunks)[1]
    assert isinstance(first, Chunk)
    assert first.samples.shape == (160_000,)
    path.write_bytes(b"")  # what is yet to be read is gone
    rest = [chunk for _, chunk in chunks]
    assert len(rest) < 37
    assert isinstance(rest[-1], AudioError)


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_file_that_breaks_off_is_an_error_though_its_beginning_was_recognised(asr, tmp_path):
    path = tmp_path / "broken.wav"
    path.write_bytes(encode(noise(200_000), codec="PCM_16")[:300_000])
    results = asr.transcribe([path, noise(20_000), path], **SHORT)
    assert [isinstance(result.error, AudioError) for result in results] == [True, False, True]
    assert "broken.wav" in str(results[0].error)
    assert results[0].duration == 0.0
    with pytest.raises(AudioError, match=r"broken\.wav"):
        asr.transcribe(path, **SHORT)


def test_the_first_reason_is_kept():
    """A file that breaks off is told as such, though the model's output for its windows before was no number."""
    recording = Recording("fra")
    recording.fail(AudioError("damaged"))
    recording.fail(NumericsError("not finite"))
    assert isinstance(recording.error, AudioError)


def test_a_window_that_is_not_finite_fails_its_item_alone(directory):
    asr = mms_jax.load_asr(directory, language="fra")
    bad = np.concatenate([noise(40_000), np.full(100, 3e38, np.float32)])  # refused where it is read
    results = asr.transcribe([bad, noise(40_000)], **SHORT)
    assert isinstance(results[0].error, AudioError)
    asr.transcribe(noise(40_000), **SHORT)
    asr._bank._leaves["lm_head"]["kernel"] *= np.inf
    with pytest.raises(NumericsError, match="float32"):
        asr.transcribe(noise(40_000), **SHORT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_length_s": 0}, "leaves no frame"),
        ({"chunk_length_s": -1}, "chunk_length_s is -1"),
        ({"chunk_length_s": 121}, r"chunk_length_s is 121.*120"),
        ({"chunk_length_s": "30"}, "chunk_length_s is '30'"),
        ({"chunk_length_s": float("nan")}, "chunk_length_s is nan"),
        ({"chunk_length_s": 10, "stride_length_s": 5}, "leaves no frame"),
        ({"chunk_length_s": 10, "stride_length_s": (1, 2, 3)}, "stride_length_s"),
        ({"chunk_length_s": 10, "stride_length_s": -1}, "stride_length_s is -1"),
        ({"batch_size": 0}, "batch_size"),
        ({"timestamps": "sentence"}, "timestamps is 'sentence'"),
        ({"max_duration": 0}, "max_duration"),
        ({"max_duration": "1"}, "max_duration"),
    ],
)
def test_a_setting_out_of_its_range_is_named(asr, settings, message):
    with pytest.raises(SettingError, match=message):
        asr.transcribe(noise(1000), **settings)


def test_what_is_longer_than_wanted_is_refused(asr):
    with pytest.raises(AudioError, match="max_duration"):
        asr.transcribe(io.BytesIO(encode(noise(32_000))), max_duration=1.0)


def test_a_closed_stderr_has_no_bar_and_stops_nothing(asr, monkeypatch):
    monkeypatch.setattr("mms_jax.pipelines.recordings.PROGRESS_DELAY", 0)
    monkeypatch.setattr("sys.stderr", None)
    for progress in (None, True):
        assert asr.transcribe(noise(64_000), progress=progress, **SHORT).text


def test_a_bar_is_shown_on_stderr_where_it_is_wanted(asr, capsys, monkeypatch):
    monkeypatch.setattr("mms_jax.pipelines.recordings.PROGRESS_DELAY", 0)
    every_update = partial(tqdm, mininterval=0, miniters=0)
    monkeypatch.setattr("mms_jax.pipelines.recordings.tqdm", every_update)
    asr.transcribe(noise(64_000), progress=True, **SHORT)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "transcribed 4 s of audio in" in shown.err
    asr.transcribe(noise(64_000), **SHORT)  # stderr is no terminal here
    assert capsys.readouterr().err == ""

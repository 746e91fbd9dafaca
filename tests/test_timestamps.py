"""When characters and words are heard: as transformers says, never beyond the audio, and fit for subtitles."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mms_jax
from mms_jax.audio import SAMPLING_RATE, load_audio
from mms_jax.errors import AudioError, SettingError
from mms_jax.pipelines.demo import demo_clips
from mms_jax.pipelines.subtitles import to_srt, to_vtt
from mms_jax.pipelines.transcription import (
    LINE,
    MAX_LINES,
    MAX_SEGMENT,
    PAUSE,
    Segment,
    Times,
    Transcription,
    Word,
    wrap,
)
from tests.checkpoints import Reference
from tests.sounds import noise
from tests.test_lid_parity import compiling_quickly

FRAME = 0.02  # seconds
# float32 softmax on both sides, of logits that agree within 2e-5 of their largest value (tests/test_asr_pipeline.py)
SCORE_TOLERANCE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with compiling_quickly():
        yield


@pytest.fixture(scope="module")
def asr():
    return mms_jax.load_asr(mms_jax.DEMO_MODEL)


@pytest.fixture(scope="module")
def reference():
    return Reference(mms_jax.DEMO_MODEL)


@pytest.fixture(scope="module")
def speech():
    return np.concatenate([load_audio(clip.path) for clip in demo_clips() if clip.language == "spa"])


@pytest.mark.parametrize("clip", demo_clips(), ids=lambda clip: clip.path.stem)
def test_characters_and_words_are_heard_when_transformers_hears_them(asr, reference, clip):
    reference.choose(clip.language)
    samples = load_audio(clip.path)
    ids = reference.logits(samples).argmax(-1)
    expected = reference.processor.tokenizer.decode(ids, output_char_offsets=True, output_word_offsets=True)
    result = asr.transcribe(samples, language=clip.language, timestamps="char")
    assert result.text == expected.text == result.transcript
    for ours, theirs, key in (
        (result.chars, expected.char_offsets, "char"),
        (result.words, expected.word_offsets, "word"),
    ):
        assert [(one.text, one.start, one.end) for one in ours] == [
            (one[key], round(one["start_offset"] * FRAME, 6), round(one["end_offset"] * FRAME, 6)) for one in theirs
        ]
    assert len(result.words) == len(result.text.split()) > 2


def test_a_score_is_the_mean_probability_of_the_frames(asr, reference):
    clip = demo_clips()[0]
    reference.choose(clip.language)
    logits = reference.logits(load_audio(clip.path))
    probability = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    for word in asr.transcribe(clip.path, language=clip.language, timestamps="word").words:
        frames = slice(round(word.start / FRAME), round(word.end / FRAME))
        assert abs(word.score - probability[frames].mean()) <= SCORE_TOLERANCE
        assert 0 < word.score <= 1


@settings(max_examples=40)
@given(st.integers(400, 40_000), st.sampled_from([None, 0, 0.1]))
def test_times_are_in_order_and_end_before_the_audio(asr, speech, num_samples, stride):
    result = asr.transcribe(
        speech[:num_samples], language="spa", timestamps="char", chunk_length_s=1.0, stride_length_s=stride
    )
    for spans in (result.chars, result.words, result.segments):
        times = [time for span in spans for time in (span.start, span.end)]
        assert times == sorted(times)
        assert all(span.start < span.end for span in spans)
        assert all(0 <= time <= num_samples / SAMPLING_RATE for time in times)


def test_timestamps_change_no_text_and_cost_nothing_where_nobody_asks(asr, speech):
    plain = asr.transcribe(speech, language="spa")
    assert plain.text == asr.transcribe(speech, language="spa", timestamps="word").text
    for name in ("words", "chars", "segments"):
        with pytest.raises(SettingError, match="timestamps='word'"):
            getattr(plain, name)


def test_silence_has_no_words_and_a_bad_item_raises_its_error(asr, tmp_path):
    silent, absent = asr.transcribe([np.zeros(16_000), tmp_path / "absent.wav"], language="eng", timestamps="word")
    assert (silent.text, silent.words, silent.chars, silent.segments) == ("", (), (), ())
    with pytest.raises(AudioError, match="absent"):
        _ = absent.words


def test_times_go_on_across_windows(asr, speech):
    whole = asr.transcribe(speech, language="spa", timestamps="word")
    cut = asr.transcribe(speech, language="spa", timestamps="word", chunk_length_s=4.0)
    same = {word.text: word.start for word in whole.words}
    found = [(word.start, same[word.text]) for word in cut.words if word.text in same]
    assert len(found) > 0.6 * len(whole.words)
    assert max(abs(one - other) for one, other in found) <= 3 * FRAME  # normalised apart, so a frame or two may move


# ------------------------------------------------------------------------------------------------------- subtitles


def spoken(*words, gap=0.1):
    """A transcription of (text, seconds) one after another, each followed by ``gap`` or the third number."""
    found, chars, now = [], [], 0.0
    for text, seconds, *pause in words:
        times = np.round(np.linspace(now, now + seconds, len(text) + 1), 6).tolist()
        found.append(Word(text, times[0], times[-1], 1.0))
        chars += [Word(char, times[i], times[i + 1], 1.0) for i, char in enumerate(text)]
        now = round(times[-1] + (pause[0] if pause else gap), 6)
    text = " ".join(word.text for word in found)
    return Transcription("eng", now, transcript=text, times=Times(tuple(chars), tuple(found)))


def test_a_pause_parts_subtitles():
    result = spoken(("one", 0.5), ("two", 0.5, PAUSE), ("three", 0.5))
    assert [segment.text for segment in result.segments] == ["one two", "three"]
    assert result.segments[0].end == result.words[1].end
    assert result.segments[1].start == result.words[2].start


def test_a_pause_within_what_was_heard_as_one_word_parts_it():
    chars = [
        Word(char, 0.1 * i + (2.0 if i > 2 else 0), 0.1 * i + 0.05 + (2.0 if i > 2 else 0), 1.0)
        for i, char in enumerate("abcdef")
    ]
    word = Word("abcdef", chars[0].start, chars[-1].end, 1.0)
    result = Transcription("eng", 3.0, transcript="abcdef", times=Times(tuple(chars), (word,)))
    assert [segment.text for segment in result.segments] == ["abc", "def"]


def test_the_end_of_a_sentence_parts_subtitles():
    result = spoken(("Yes.", 0.3), ("No", 0.3), ("は。", 0.3), ("3.14", 0.1), ("x", 0.1))
    assert [segment.text for segment in result.segments] == ["Yes.", "No は。", "3.14 x"]
    spaceless = spoken(("文" * 50 + "。" + "文" * 20 + ".文", 6.0))
    assert [segment.text for segment in spaceless.segments] == ["文" * 42, "文" * 8 + "。", "文" * 20 + ".文"]


@given(
    st.lists(
        st.tuples(st.text("aé文 ".replace(" ", ""), min_size=1, max_size=200), st.floats(0.05, 12), st.floats(0, 1)),
        max_size=40,
    )
)
def test_no_subtitle_is_too_long_and_no_word_is_lost(words):
    result = spoken(*words)
    for segment in result.segments:
        lines = wrap(segment.text)
        assert len(lines) <= MAX_LINES
        assert all(len(line) + line.count("文") <= LINE for line in lines)
        assert segment.end - segment.start <= MAX_SEGMENT + 1e-9 or len(segment.text) == 1
    assert "".join(segment.text for segment in result.segments).replace(" ", "") == "".join(word for word, *_ in words)


def test_lines_are_broken_at_spaces_and_within_what_is_longer():
    assert wrap(" ".join(["a" * 30, "b" * 30, "c" * 11])) == ["a" * 30, "b" * 30 + " " + "c" * 11]
    assert wrap("文" * 50) == ["文" * 21, "文" * 21, "文" * 8]
    assert wrap("a" * 100) == ["a" * 42, "a" * 42, "a" * 16]
    assert wrap("") == [""]


def test_srt_is_what_players_read():
    segments = [Segment("hello world", 0.0, 1.5), Segment("x" * 30 + " " + "y" * 30, 3599.9996, 3661.25)]
    assert to_srt(segments) == (
        f"1\n00:00:00,000 --> 00:00:01,500\nhello world\n\n2\n01:00:00,000 --> 01:01:01,250\n{'x' * 30}\n{'y' * 30}\n"
    )
    assert to_srt([]) == ""


def test_vtt_is_what_browsers_read():
    assert to_vtt([Segment("a < b & c", 0.02, 100 * 3600)]) == (
        "WEBVTT\n\n00:00:00.020 --> 100:00:00.000\na &lt; b &amp; c\n"
    )
    assert to_vtt([]) == "WEBVTT\n"


def test_every_line_of_a_subtitle_fits(asr, speech):
    result = asr.transcribe(np.tile(speech, 6), language="spa", timestamps="word", chunk_length_s=10)
    srt = to_srt(result.segments)
    assert len(result.segments) > 6
    assert max(map(len, srt.splitlines())) <= LINE
    numbers = [int(line) for line in srt.splitlines() if line.isdecimal()]
    assert numbers == list(range(1, len(result.segments) + 1))
    times = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3})", srt)
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
    assert seconds == sorted(seconds)
    assert len(seconds) == 2 * len(numbers)


def test_noise_gives_no_impossible_times(asr):
    for num_samples in (400, 719, 720, 4321):
        result = asr.transcribe(noise(num_samples), language="eng", timestamps="char")
        assert all(char.end <= result.duration for char in result.chars)

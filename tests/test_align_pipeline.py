"""asr.align: words as they were written on the time axis of their audio, what is doubtful about them, and bad input."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest

import mms_jax
from mms_jax.audio import load_audio
from mms_jax.ctc.align import STAR
from mms_jax.errors import AlignmentError, AudioError, LanguageError, SettingError
from mms_jax.pipelines.alignment import align_plan
from mms_jax.pipelines.alignment_files import to_ctm, to_json_fields, to_subtitles, to_textgrid, writer
from mms_jax.pipelines.alignment_text import Plan, Spelling, is_roman, make_plan
from mms_jax.pipelines.demo import demo_clips
from mms_jax.text.ctc import CTCTokenizer, CTCVocabulary
from tests.checkpoints import one_vocabulary

NEAR = 0.2  # seconds: a clip has up to 50 ms of silence at its ends, and its last sound fades
PAUSE = 0.8  # seconds between clips
FRAME = 0.02
ENGLISH = CTCVocabulary({token: number for number, token in enumerate(["<pad>", "<unk>", "|", *"abcdefgh'"])})
PUBLISHED = {
    token: number for number, token in enumerate(["<blank>", "<pad>", "</s>", "<unk>", *"aienuotsrmkldghybpwcvjzf'qx"])
}


@pytest.fixture(scope="module")
def asr():
    return mms_jax.load_asr(mms_jax.DEMO_MODEL)


@pytest.fixture(scope="module")
def clips():
    """Samples and text of the bundled English clips."""
    return [(load_audio(clip.path), clip.reference) for clip in demo_clips() if clip.language == "eng"]


@pytest.fixture(scope="module")
def joined(clips):
    """All of them with pauses between, and when each starts and ends."""
    parts, times, moment = [], [], 0.0
    for samples, _ in clips:
        parts += [np.zeros(int(PAUSE * 16_000), np.float32), samples]
        times.append((moment + PAUSE, moment + PAUSE + len(samples) / 16_000))
        moment = times[-1][1]
    return np.concatenate([*parts, parts[0]]), times


def plan_of(text: str, **options) -> Plan:
    return make_plan(text.splitlines(), ENGLISH, language="eng", **{"romanize": False, "star": None} | options)


def found_in(path: str, text: str, **options):
    """The alignment of a text with frames in which letters are as good as certain, "-" the blank."""
    log_probs = np.full((len(path), ENGLISH.size), np.log(0.01), np.float32)
    tokens = {**ENGLISH.letters, "-": ENGLISH.blank_id, "|": ENGLISH.delimiter_id}
    log_probs[np.arange(len(path)), [tokens[letter] for letter in path]] = np.log(0.9)
    ids = np.arange(ENGLISH.size)
    return align_plan(log_probs, plan_of(text, **options), blank_id=0, ids=ids, seconds_per_frame=FRAME)[0]


def test_words_are_those_of_the_text_and_in_order(asr, clips):
    text = "“United” (Sam 23:17) Swilled — loafer,\n\n 12 underwear!"
    result = asr.align(clips[0][0], text, language="English")
    assert [word.text for word in result.words] == text.split()
    assert [segment.text for segment in result.segments] == ["“United” (Sam 23:17) Swilled — loafer,", "12 underwear!"]
    assert [word.segment for word in result.words] == [0] * 6 + [1] * 2
    assert [word.text for word in result.words if word.flags] == ["(Sam", "23:17)", "—", "12"]
    times = [time for word in result.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= result.duration
    assert "".join(char.text for char in result.chars) == "unitedswilledloaferunderwear"
    assert result.score > 0.5
    assert result.warnings == ("not aligned, though somebody may have said it: '12'; write numbers in words",)


def test_what_is_not_spoken_has_no_length_and_is_at_its_neighbour(asr, clips):
    result = asr.align(clips[0][0], "1. united swilled (12)\n2. loafer underwear", language="eng")
    first, united, _, note, second, loafer, _ = result.words
    assert first[1:3] == (united.start, united.start)
    assert second[1:3] == (loafer.start, loafer.start)
    assert note.start == note.end == result.words[2].end
    assert {word.flags for word in (first, note, second)} == {("not aligned",)}


def test_segments_are_found_where_their_clips_are(asr, clips, joined):
    audio, times = joined
    result = asr.align(audio, [text for _, text in clips], language="eng")
    for segment, (start, end) in zip(result.segments, times, strict=True):
        assert abs(segment.start - start) < NEAR
        assert abs(segment.end - end) < NEAR
        assert segment.score > 0.5
    for before, after in pairwise(result.segments):
        assert before.cut_end == after.cut_start == pytest.approx((before.end + after.start) / 2)
    assert result.segments[0].cut_start == pytest.approx(result.segments[0].start - 0.5)  # not all of the silence
    assert result.untranscribed == ()


def test_a_segment_that_is_not_spoken_takes_nothing_from_its_neighbours(asr, clips):
    first, note, second = asr.align(clips[0][0], "united swilled\n(12)\nloafer underwear", language="eng").segments
    assert note[1:] == (first.end, first.end, 0.0, first.end, first.end, ("not aligned",))
    assert first.cut_end == second.cut_start == pytest.approx((first.end + second.start) / 2)


def test_windows_with_context_make_little_difference(asr, clips, joined):
    audio, _ = joined
    whole = asr.align(audio, [text for _, text in clips], language="eng")
    parts = asr.align(audio, [text for _, text in clips], language="eng", chunk_length_s=5)
    for one, other in zip(whole.words, parts.words, strict=True):
        assert abs(one.start - other.start) <= 2 * FRAME
        assert abs(one.end - other.end) <= 2 * FRAME


def test_a_list_gives_a_list_in_which_errors_stay_with_their_items(asr, clips):
    texts = [clips[0][1], "nobody", "", clips[1][1]]
    results = asr.align([clips[0][0], "absent.wav", clips[2][0], clips[1][0]], texts, language="eng")
    assert [type(result.error) for result in results] == [type(None), AudioError, AlignmentError, type(None)]
    assert results[3].words == asr.align(clips[1][0], clips[1][1], language="eng").words
    with pytest.raises(AlignmentError, match="the text is empty"):
        _ = results[2].words
    with pytest.raises(AlignmentError, match=r"2 recording\(s\), but 1 text"):
        asr.align([clips[0][0]] * 2, clips[0][1], language="eng")


def test_each_item_is_in_its_own_language(asr):
    clips = demo_clips()[::3]
    results = asr.align(
        [clip.path for clip in clips], [clip.reference for clip in clips], language=[clip.language for clip in clips]
    )
    assert [result.language for result in results] == [clip.language for clip in clips]
    assert min(result.score for result in results) > 0.4


@pytest.mark.parametrize("star", [None, "start", "segments"])
def test_speech_that_the_text_lacks_is_skipped_by_stars_and_always_reported(asr, clips, joined, star):
    audio, times = joined
    result = asr.align(audio, clips[1][1], language="eng", star=star)
    if star == "segments":
        assert abs(result.segments[0].start - times[1][0]) < NEAR
        assert abs(result.segments[0].end - times[1][1]) < NEAR
        assert result.untranscribed[0].start == 0  # never a silent stretch, skipped or not
        assert len(result.warnings) == len(result.untranscribed) == 2
    elif star is None:
        assert abs(result.words[0].start - times[1][0]) < NEAR
        assert result.untranscribed[0].start == 0
        assert any("speech that the text does not have" in warning for warning in result.warnings)
    else:  # it can take what is before, and the text has to be what is behind
        assert "does not fit the audio" in result.warnings[0]


def test_a_star_in_the_text_takes_the_words_that_are_missing(asr, clips):
    result = asr.align(clips[0][0], "united <star> underwear", language="eng")
    right = asr.align(clips[0][0], clips[0][1], language="eng")
    united, star, underwear = result.words
    assert abs(united.end - right.words[0].end) <= 3 * FRAME  # no silence between to reach into
    assert abs(underwear.start - right.words[3].start) <= 2 * FRAME
    assert star.flags == ("any sound",)
    assert star.score == 0.0
    assert all(char.text != "<star>" for char in result.chars)


def test_the_text_of_another_recording_has_a_low_score_and_says_so(asr, clips):
    result = asr.align(clips[0][0], clips[2][1], language="eng")
    assert result.score < 0.05
    assert all("low score" in word.flags for word in result.words)
    assert "does not fit the audio" in result.warnings[0]


@pytest.mark.parametrize("level", [0.0, 1e-3])
def test_silence_has_a_low_score(asr, level):
    noise = level * np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
    result = asr.align(noise, "hello world", language="eng")
    assert result.score < 0.05
    assert all("low score" in word.flags for word in result.words)


def test_a_text_that_is_too_long_is_refused_with_the_numbers(asr, clips):
    with pytest.raises(AlignmentError, match=r"\d+ tokens, \d+ of which .* need \d+ frames, but there are 101"):
        asr.align(clips[0][0], " ".join([clips[0][1]] * 9), language="eng")


@pytest.mark.parametrize(("num_samples", "error"), [(0, AlignmentError), (300, AlignmentError)])
def test_audio_without_a_frame_is_refused(asr, num_samples, error):
    with pytest.raises(error, match="shorter than one"):
        asr.align(np.zeros(num_samples, np.float32), "hello", language="eng")


def test_audio_that_is_not_a_number_is_refused(asr):
    with pytest.raises(AudioError, match="nan"):
        asr.align(np.full(16_000, np.nan, np.float32), "hello", language="eng")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is empty"),
        (" \n\ufeff\n".replace("\ufeff", ""), "the text is empty"),
        (None, "got None"),
        ([b"a"], "a transcript is a str"),
        ("12 (34) !", "no word to align"),
        ("<star>", "no word to align"),
        ("Привет, мир", r"9 of the text's 9 letters .* CYRILLIC: р .*own language"),
    ],
)
def test_a_text_that_cannot_be_aligned_is_refused(asr, clips, text, reason):
    with pytest.raises(AlignmentError, match=reason):
        asr.align(clips[0][0], text, language="eng")


def test_a_language_must_be_given_and_be_known(asr, clips):
    with pytest.raises(LanguageError, match="'auto'"):
        asr.align(clips[0][0], "hello", language="auto")
    with pytest.raises(LanguageError, match="recognises 4 languages"):
        asr.align(clips[0][0], "hello")
    with pytest.raises(SettingError, match="'start', 'segments' or None"):
        asr.align(clips[0][0], "hello", language="eng", star=True)


def test_letters_outside_the_vocabulary_are_dropped_and_reported(asr, clips):
    result = asr.align(clips[0][0], "united swilled Привет loafer underwéar", language="eng")
    assert [word.flags for word in result.words] == [(), (), ("any sound",), (), ("letters dropped",)]
    assert result.dropped == {**dict.fromkeys("привет", 1), "é": 1}
    assert "é (1)" in result.warnings[-1]


def test_words_reach_a_frame_into_the_silence_and_no_further_than_its_middle():
    found = found_in("--ab|-cd|ef-", "ab cd ef")
    times = [(word.start, word.end) for word in found.words]
    assert times == [(0.02, 0.10), (0.10, 0.17), (0.17, 0.24)]


def test_a_word_with_too_long_a_letter_or_too_little_time_is_flagged():
    long = found_in("a" + "-" * 120 + "b|cd", "ab cd")
    assert [word.flags for word in long.words] == [("too long",), ()]
    tight = found_in("--abcdefgh--", "abcdefgh")
    assert [word.flags for word in tight.words] == [("squeezed",)]


def test_speech_between_words_is_found():
    found = found_in("-ab|" + "-e-f" * 8 + "|cd-", "ab cd")
    assert len(found.untranscribed) == 1
    gap = found.untranscribed[0]
    assert 4 * FRAME <= gap.start + 1e-9 < gap.end <= 40 * FRAME


def test_a_word_s_score_is_the_geometric_mean_over_its_frames():
    found = found_in("aab-|g", "ab h")
    assert found.words[0].score == pytest.approx(0.9, abs=1e-5)
    assert found.words[1].score == pytest.approx(0.01, abs=1e-5)
    assert found.score == pytest.approx((0.9**3 * 0.01) ** (1 / 4), abs=1e-5)


def test_stars_that_nobody_wrote_stand_around_segments_and_not_beside_others():
    assert plan_of("ab\ncd\n<star> ef", star="segments").tokens.tolist() == [STAR, 3, 4, STAR, 5, 6, STAR, 7, 8, STAR]
    assert plan_of("ab\ncd", star="start").tokens.tolist() == [STAR, 3, 4, 2, 5, 6]
    assert plan_of("ab\ncd").tokens.tolist() == [3, 4, 2, 5, 6]
    assert plan_of("(12)\nab\n(5)", star="segments").tokens.tolist() == [STAR, 3, 4, STAR]


def test_tokens_of_several_letters_and_of_capitals_are_found():
    vocabulary = CTCVocabulary({token: number for number, token in enumerate(["<pad>", "sch", "A", "s", "H"])})
    plan = make_plan(["Schas"], vocabulary, language="deu", romanize=False, star=None)
    assert plan.words == (Spelling("Schas", 0, (1, 2, 3), ("sch", "A", "s"), ""),)


@pytest.fixture(scope="module")
def aligner(tmp_path_factory):
    """A checkpoint with the published multilingual aligner's 31 outputs, its weights random."""
    directory = one_vocabulary(tmp_path_factory.mktemp("aligner"), vocab_size=len(PUBLISHED))
    (directory / "vocab.json").write_text(json.dumps(PUBLISHED))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (directory / name).unlink(missing_ok=True)
    config = {"pad_token": "<blank>", "tokenizer_class": "Wav2Vec2CTCTokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return mms_jax.load_asr(directory)


def test_the_romanised_aligner_takes_any_script_and_keeps_the_words(aligner, clips):
    assert is_roman(CTCTokenizer(PUBLISHED, {"pad_token": "<blank>"}).vocabulary())
    result = aligner.align(clips[0][0], "Привет, мир! 12 你好", language="rus")
    assert [word.text for word in result.words] == ["Привет,", "мир!", "12", "你好"]
    assert "".join(char.text for char in result.chars) == "privetmirnihao"
    assert result.dropped == {}
    named = aligner.align([clips[0][0]] * 2, ["Игорь"] * 2, language=["Russian", "uk"])
    assert ["".join(char.text for char in one.chars) for one in named] == ["igor", "yhor"]
    with pytest.raises(LanguageError, match="nearest"):
        aligner.align(clips[0][0], "мир", language="xx")
    with pytest.raises(LanguageError, match="one for all or one each"):
        aligner.align([clips[0][0]] * 2, ["мир"] * 2, language=["rus"])
    with pytest.raises(AlignmentError, match="romanize=True"):
        aligner.align(clips[0][0], "Привет, мир!", language="rus", romanize=False)


# Files, each read back by a small reader of its own.


@pytest.fixture(scope="module")
def result(asr, joined, clips):
    return asr.align(joined[0], [f'{text} "(12)"' for _, text in clips], language="eng")


def test_json_has_everything(result):
    fields = json.loads(json.dumps(to_json_fields(result)))
    assert [word["text"] for word in fields["words"]] == [word.text for word in result.words]
    assert fields["words"][4] == {
        "text": '"(12)"',
        "start": fields["words"][3]["end"],
        "end": fields["words"][3]["end"],
        "score": 0.0,
        "segment": 0,
        "flags": ["not aligned"],
    }
    assert [one["cut_start"] for one in fields["segments"]] == [one.cut_start for one in result.segments]
    assert fields["duration"] == round(result.duration, 3)
    assert fields["score"] == round(result.score, 4)


def cues(text: str) -> list[tuple[float, float, str]]:
    found = re.findall(r"\d+\n(\d+):(\d+):(\d+),(\d+) --> (\d+):(\d+):(\d+),(\d+)\n(.+(?:\n.+)*)\n", text)
    seconds = [
        [round(int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000, 3) for h, m, s, ms in (c[:4], c[4:8])]
        for c in found
    ]
    return [(start, end, cue[8].replace("\n", " ")) for (start, end), cue in zip(seconds, found, strict=True)]


def test_srt_has_a_subtitle_for_each_segment_or_word_that_is_heard(result):
    segments = [(one.start, one.end, one.text) for one in result.segments]
    assert cues(to_subtitles(result)) == segments
    words = [(one.start, one.end, one.text) for one in result.words if one.end > one.start]
    assert cues(to_subtitles(result, level="words")) == words


def test_ctm_has_six_fields_a_line(result):
    lines = [line.split() for line in to_ctm(result, name="my talk").splitlines()]
    heard = [one for one in result.words if one.end > one.start]
    assert [line[:2] for line in lines] == [["my_talk", "1"]] * len(heard)
    assert [line[4] for line in lines] == [one.text for one in heard]
    for (_, _, start, duration, _, score), one in zip(lines, heard, strict=True):
        assert float(start) == pytest.approx(one.start, abs=0.0006)
        assert float(duration) == pytest.approx(one.end - one.start, abs=0.0006)
        assert float(score) == pytest.approx(one.score, abs=0.0001)
    assert {len(line.split()) for line in to_ctm(result, level="segments", name="x").splitlines()} == {6}


def tiers(text: str) -> dict[str, list[tuple[float, float, str]]]:
    """The tiers of a TextGrid in the long format."""
    head, *rest = re.split(r"\n    item \[\d+\]:\n", text)
    assert head.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\n')
    assert f"size = {len(rest)}" in head
    found = {}
    for tier in rest:
        name = re.search(r'name = "(.*)"', tier)[1]
        rows = re.findall(r'xmin = (\S+)\n +xmax = (\S+)\n +text = "((?:[^"]|"")*)"(?:\n|$)', tier)
        assert f"intervals: size = {len(rows)}" in tier
        found[name] = [(float(start), float(end), label.replace('""', '"')) for start, end, label in rows]
    return found


def test_textgrid_tiers_cover_the_whole_time_without_holes(result):
    found = tiers(to_textgrid(result))
    assert list(found) == ["segments", "words", "chars"]
    for intervals in found.values():
        assert intervals[0][0] == 0
        assert intervals[-1][1] == pytest.approx(result.duration, abs=1e-5)
        assert all(before[1] == after[0] for before, after in pairwise(intervals))
        assert all(start < end for start, end, _ in intervals)
    assert [label for *_, label in found["segments"] if label] == [one.text for one in result.segments]
    assert [label for *_, label in found["words"] if label] == [one.text for one in result.words if one.score]
    assert [label for *_, label in found["chars"] if label] == [one.text for one in result.chars]


def test_levels_that_a_format_does_not_have_are_refused(result):
    with pytest.raises(SettingError, match="TextGrid"):
        writer("textgrid", level="words", name="x")
    with pytest.raises(SettingError, match="level is 'letters'"):
        to_subtitles(result, level="letters")

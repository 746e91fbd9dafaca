"""What scanning keeps of a data set, what it drops and why, and that the clips it gives are those it checked."""

import json
import re

import numpy as np
import pytest
from clip_files import FORMS, SIZES, TEXTS, write_clips, write_table
from sounds import RATE, encode, noise, tone

from mms_jax.audio import load_audio
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import DatasetError, SettingError
from mms_jax.text.vocabulary import CTCVocabulary
from mms_jax.training.data.clips import ClipRules, decode_audio, stream_clips
from mms_jax.training.data.corpus import scan
from mms_jax.training.data.dataset import load_rows
from mms_jax.training.data.report import NAMES_KEPT, Report, UnusableError
from mms_jax.training.data.streams import stream_rows

LETTERS = {
    token: id_ for id_, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"])
}
VOCABULARY = CTCVocabulary(LETTERS, source="letters")
CONFIG = Wav2Vec2Config()
FRAME = 320  # samples from one frame to the next; the first takes 400


def rules(vocabulary=VOCABULARY, **options) -> ClipRules:
    return ClipRules(vocabulary=vocabulary, num_frames=CONFIG.num_frames, min_samples=CONFIG.min_samples, **options)


def samples_of(frames: int) -> int:
    return 400 + FRAME * (frames - 1)


@pytest.fixture
def table(tmp_path):
    """Writes clips, each (file's bytes or None, text), and loads them."""

    def write(*clips, **columns):
        names = [f"{index}.wav" for index in range(len(clips))]
        for name, (content, _) in zip(names, clips, strict=True):
            if content is not None:
                (tmp_path / name).write_bytes(content)
        columns = {"audio": names, "text": [text for _, text in clips], **columns}
        path = write_table(tmp_path / "clips.jsonl", columns)
        return load_rows(str(path), split="train", length_column="length" if "length" in columns else None)

    return write


SECOND = encode(noise(RATE))


def test_clips_are_dropped_for_exactly_these_reasons(table):
    rows = table(
        (SECOND, "kept"),
        (None, "missing"),
        (b"", "empty file"),
        (SECOND[:20000], "truncated"),
        (b"RIFF and then nonsense", "no audio"),
        (encode(noise(399)), "x"),
        (encode(noise(3 * RATE)), "long"),
        (SECOND, None),
        (SECOND, 7),
        (SECOND, " \t\n"),
        (SECOND, "?!"),
        (SECOND, "a" * 30),
        (encode(noise(RATE // 4)), "short"),
        (SECOND, "kept too"),
    )
    corpus = scan(
        rows,
        rules=rules(chars_to_ignore="?!", min_duration_in_seconds=0.5, max_duration_in_seconds=2.0),
        title="the clips",
    )
    dropped = {
        reason: sorted(int(re.findall(r"row (\d+)", name)[0]) for name in drops.names)
        for reason, drops in corpus.report.dropped.items()
    }
    assert dropped == {
        "undecodable": [1, 2, 3, 4],
        "too short": [5, 12],
        "too long": [6],
        "no text": [7, 8],
        "empty text": [9, 10],
        "infeasible": [11],
    }
    assert corpus.indices.tolist() == [0, 13]
    assert corpus.texts == ["kept", "kept too"]
    assert (corpus.report.clips, corpus.report.num_dropped, corpus.report.hours) == (2, 12, 2 / 3600)
    printed = str(corpus.report)
    assert printed.startswith("the clips: 2 of 14 clips, 2.0 s (a clip: 1.0 to 1.0 s, 1.0 s on average)\n")
    for told in ("4  undecodable", "row 1 (1.wav): no such file", "and 1 more", "--max_duration_in_seconds", "a int"):
        assert told in printed
    assert json.loads(json.dumps(corpus.report.to_dict()))["dropped"]["undecodable"] == 4


@pytest.mark.parametrize(("text", "labels", "repeats"), [("abc", 4, 0), ("aabb", 5, 2), ("a a", 4, 0), ("zzz", 4, 2)])
def test_a_clip_is_feasible_from_exactly_as_many_frames_as_ctc_needs(table, text, labels, repeats):
    needed = labels + repeats
    clips = [(encode(noise(samples_of(frames))), text) for frames in (needed, needed - 1)]
    corpus = scan(table((encode(noise(samples_of(needed + 1) - 1)), text), *clips), rules=rules())
    assert corpus.num_labels.tolist() == [labels, labels]
    assert corpus.indices.tolist() == [0, 1]
    assert list(corpus.report.dropped) == ["infeasible"]
    assert f"are {needed - 1} frames, the text takes {needed}" in str(corpus.report)


def test_a_clip_of_one_frame_is_not_too_short_but_too_short_for_any_text(table):
    corpus = scan(table((encode(noise(399)), "x"), (encode(noise(400)), "x"), (SECOND, "x")), rules=rules())
    assert corpus.report.num_dropped_by_reason == {"too short": 1, "infeasible": 1}


def test_durations_at_the_limits_are_kept(table):
    clips = [(encode(noise(size)), "a") for size in (RATE - 1, RATE, 2 * RATE, 2 * RATE + 1)]
    corpus = scan(table(*clips), rules=rules(min_duration_in_seconds=1.0, max_duration_in_seconds=2.0))
    assert corpus.num_samples.tolist() == [RATE, 2 * RATE]


def test_labels_are_those_of_the_cleaned_text_and_a_delimiter(table):
    corpus = scan(table((SECOND, "  Ab, C\t"), (SECOND, "d")), rules=rules(chars_to_ignore=[","]))
    assert [labels.tolist() for labels in corpus.labels] == [VOCABULARY.encode("ab c "), VOCABULARY.encode("d ")]
    assert all(labels.dtype == np.int32 for labels in corpus.labels)
    assert corpus.texts == ["ab c", "d"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("form", ["csv", "parquet with bytes", "saved"])
def test_clips_are_in_the_order_of_their_rows_and_their_audio_is_theirs(form, workers, tmp_path):
    (tmp_path / "data").mkdir()
    rows = load_rows(FORMS[form](tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    corpus = scan(rows, rules=rules(), num_workers=workers)
    assert corpus.num_samples.tolist() == SIZES
    assert corpus.texts == [text.lower() for text in TEXTS]
    for index in range(len(corpus)):
        expected = load_audio(encode(noise(SIZES[index], seed=index)))
        np.testing.assert_array_equal(corpus.waveform(index), expected)
        assert f"row {index} (" in corpus.names[index]


@pytest.mark.parametrize("max_bytes_held", [0, 100_000, 10**9])
def test_clips_are_the_same_held_in_memory_or_decoded_again(table, max_bytes_held):
    loud = np.clip(20 * noise(RATE), -1, 1)  # reaches -1.0, the lowest step of 16 bits
    contents = [
        SECOND,
        encode(noise(RATE), container="FLAC"),
        encode(loud),
        encode(np.stack([noise(RATE), tone()], axis=1)),
        encode(tone(rate=44_100), rate=44_100, container="MP3"),
        encode(tone(rate=8_000), rate=8_000),
        encode(noise(RATE), codec="FLOAT"),
        encode(np.full(RATE, -1.5), codec="FLOAT"),  # whole steps of 16 bits, but more of them than there are
        encode(np.full(RATE, 1.0), codec="FLOAT"),
    ]
    corpus = scan(table(*((content, "a") for content in contents)), rules=rules(), max_bytes_held=max_bytes_held)
    for _ in range(2):
        for index, content in enumerate(contents):
            waveform = corpus.waveform(index)
            assert waveform.dtype == np.float32
            np.testing.assert_array_equal(waveform, load_audio(content))
            waveform[:] = 0  # nobody else's


def test_small_data_is_not_decoded_again_and_large_data_is(table, tmp_path):
    for held in (10**9, 0):
        corpus = scan(table((SECOND, "a"), (SECOND, "b")), rules=rules(), max_bytes_held=held)
        (tmp_path / "0.wav").unlink()
        if held:
            assert len(corpus.waveform(0)) == RATE
        else:
            with pytest.raises(DatasetError, match=r"clips.jsonl row 0 \(0.wav\): cannot be decoded .*no such file"):
                corpus.waveform(0)


@pytest.mark.parametrize(("size", "message"), [(RATE - 1, "has 15,999 of 16,000"), (RATE + 1, "more than 16,000")])
def test_a_clip_that_changes_while_in_use_is_told(table, tmp_path, size, message):
    corpus = scan(table((SECOND, "a")), rules=rules(), max_bytes_held=0)
    (tmp_path / "0.wav").write_bytes(encode(noise(size)))
    with pytest.raises(DatasetError, match=rf"row 0 \(0.wav\): has .*{message.removeprefix('has ')}"):
        corpus.waveform(0)


def test_a_clip_that_is_too_long_is_not_decoded_to_its_end():
    samples = np.zeros(300 * RATE, np.int16)
    assert RATE < len(decode_audio(encode(samples), max_samples=RATE)) < len(samples) / 2


# --- lengths in a column ---------------------------------------------------------------------------------------------


def test_stated_lengths_are_believed_and_only_few_clips_decoded(table, tmp_path):
    clips = [(SECOND, "a")] * 20
    rows = table(*clips, length=[RATE] * 17 + ["16000", 4e5, "x"])
    for name in ("1.wav", "3.wav", "4.wav"):
        (tmp_path / name).unlink()
    corpus = scan(rows, rules=rules())
    assert corpus.num_samples.tolist() == [RATE] * 18
    assert corpus.report.num_dropped_by_reason == {"too long": 1, "unknown length": 1}
    with pytest.raises(DatasetError, match=r"row 3 .*cannot be decoded"):
        corpus.waveform(3)
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"row 0 .*cannot be decoded"):
        scan(rows, rules=rules())


def test_a_column_of_other_lengths_is_noticed(table):
    with pytest.raises(DatasetError, match="--length_column_name is wrong"):
        scan(table((SECOND, "a"), (SECOND, "b"), length=[RATE, 48_000]), rules=rules())


# --- what the vocabulary lacks ---------------------------------------------------------------------------------------


def test_characters_outside_the_vocabulary_are_counted_and_become_unknown(table):
    corpus = scan(table((SECOND, "aéé"), (SECOND, "é~"), (None, "~")), rules=rules())
    assert corpus.report.unknown == {"é": 3, "~": 2}
    assert corpus.labels[0].tolist() == [5, 3, 3, 4]
    assert "(become <unk>): 'é' (U+00E9) x 3, '~' (U+007E) x 2" in str(corpus.report)


def test_without_an_unknown_token_all_such_characters_are_told(table):
    known = {token: id_ - (id_ > 3) for token, id_ in LETTERS.items() if token != "<unk>"}
    with pytest.raises(DatasetError, match=r"letters: has no '<unk>'.*'é' .U\+00E9. x 1, '~' .*--chars_to_ignore"):
        scan(table((SECOND, "aé"), (SECOND, "~")), rules=rules(CTCVocabulary(known, source="letters")))


def test_a_vocabulary_bigger_than_the_head_is_told(table):
    assert len(scan(table((SECOND, "y")), rules=rules(head_size=30))) == 1
    with pytest.raises(DatasetError, match="letters: 'z' has the id 30, but the model's head has 30 rows"):
        scan(table((SECOND, "z")), rules=rules(head_size=30))


def test_a_transcript_of_50_000_labels_is_dropped_at_once(table):
    corpus = scan(table((SECOND, "ab <" * 12_500), (SECOND, "a")), rules=rules())
    assert corpus.indices.tolist() == [1]
    assert corpus.report.unknown == {"<": 12_500}


# --- what there is to tell -------------------------------------------------------------------------------------------


def test_data_of_which_nothing_is_left_is_an_error_with_the_report(table):
    with pytest.raises(DatasetError, match=r"(?s)no clip can be used\n.*0 of 2 clips, 0 h\n.*2  undecodable"):
        scan(table((None, "a"), (b"", "b")), rules=rules())


def test_a_bar_is_shown_only_where_it_is_wanted(table, capsys):
    rows = table((SECOND, "a"))
    scan(rows, rules=rules())
    scan(rows, rules=rules(), progress=False)
    assert capsys.readouterr() == ("", "")
    scan(rows, rules=rules(), progress=True, title="my clips")
    out, err = capsys.readouterr()
    assert out == ""
    assert "my clips" in err


@pytest.mark.parametrize(
    "options",
    [{"min_duration_in_seconds": -1.0}, {"max_duration_in_seconds": 0.0}, {"max_duration_in_seconds": np.nan}],
)
def test_durations_that_no_clip_has_are_refused(options):
    with pytest.raises(SettingError, match="_duration_in_seconds is"):
        rules(**options)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_clips_that_a_scan_keeps(tmp_path):
    names = write_clips(tmp_path)
    (tmp_path / names[1]).write_bytes(b"damaged")
    path = write_table(tmp_path / "clips.jsonl", {"audio": names, "text": ["One", "b", "é c", "", "d" * 90]})
    corpus = scan(load_rows(str(path), split="train"), rules=rules())
    report = Report()
    clips = list(stream_clips(stream_rows(str(path), split="train"), rules=rules(), report=report, num_workers=2))
    assert [clip.text for clip in clips] == corpus.texts == ["one", "é c"]
    assert [clip.name for clip in clips] == corpus.names
    for index, clip in enumerate(clips):
        np.testing.assert_array_equal(clip.waveform, corpus.waveform(index))
        np.testing.assert_array_equal(clip.labels, corpus.labels[index])
    assert report.to_dict() == corpus.report.to_dict()


def test_a_stream_is_read_only_a_little_ahead_and_can_be_left(tmp_path):
    names = write_clips(tmp_path, sizes=[800] * 60)
    path = write_table(tmp_path / "clips.jsonl", {"audio": names, "text": ["a"] * 60})
    read = []

    def counted():
        for row in stream_rows(str(path), split="train"):
            read.append(row.name)
            yield row

    clips = stream_clips(counted(), rules=rules(), report=Report(), num_workers=2)
    next(clips)
    clips.close()
    assert len(read) < 20


def test_a_stream_without_a_usable_clip_ends_with_the_report(tmp_path):
    path = write_table(tmp_path / "clips.jsonl", {"audio": ["none.wav"], "text": ["a"]})
    with pytest.raises(DatasetError, match="no clip can be used"):
        list(stream_clips(stream_rows(str(path), split="train"), rules=rules(), report=Report()))
    rest = stream_rows(str(path), split="train").skip(1)
    assert list(stream_clips(rest, rules=rules(), report=Report(), is_whole=False)) == []


def test_a_report_keeps_few_names_of_many_clips_that_were_dropped():
    report = Report()
    for index in range(10 * NAMES_KEPT):
        report.drop(f"{index}.wav", UnusableError("too long", "over 1 s"))
    assert report.dropped["too long"].names == [f"{index}.wav" for index in range(NAMES_KEPT)]
    assert report.num_dropped_by_reason == {"too long": 10 * NAMES_KEPT}
    assert f"and {10 * NAMES_KEPT - 3:,} more" in str(report)


def test_what_a_stream_drops_is_counted_as_far_as_its_clips_came(tmp_path):
    """Texts are read ahead of the audio; a job that goes on from a clip reads, and counts, all behind it again."""
    names = write_clips(tmp_path, sizes=[800] * 40)
    path = write_table(tmp_path / "clips.jsonl", {"audio": names, "text": ["a", ""] * 20})
    report = Report()
    for count, _ in enumerate(stream_clips(stream_rows(str(path), split="train"), rules=rules(), report=report)):
        assert report.num_dropped == count
    assert report.num_dropped == 20

"""CTC vocabularies against the live ``Wav2Vec2CTCTokenizer`` (the ids, texts and offsets must be identical)."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from mms_jax.errors import VocabularyError
from mms_jax.text.added_tokens import AddedToken
from mms_jax.text.ctc import CTCTokenizer, CTCVocabulary
from tests.ctc_vocabularies import ENGLISH, EXAMPLES, SPECIALS, TEXTS, build_both, vocabularies, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vocabulary")


def assert_same_offsets(ours, live, ids):
    wanted = live.decode(ids, output_char_offsets=True, output_word_offsets=True)
    found = ours.decode_offsets(ids)
    assert found.text == wanted.text
    chars = [(entry["char"], entry["start_offset"], entry["end_offset"]) for entry in wanted.char_offsets]
    words = [(entry["word"], entry["start_offset"], entry["end_offset"]) for entry in wanted.word_offsets]
    assert (list(found.chars), list(found.words)) == (chars, words)


@EXAMPLES
@given(built=vocabularies(), text=TEXTS)
@example(built=({"<pad>": 0, "<unk>": 1, "|": 2, "abcd": 3, "bc": 4, "a": 5, "X": 6, "d": 7}, {}), text="abcXd abcX")
def test_labels_equal_the_live_tokenizers(folder, built, text):
    ours, live = build_both(folder, *built)
    wanted = live(text).input_ids
    assert ours.encode(text) == wanted
    assert (ours.size, ours.blank_id) == (len(live), live.pad_token_id)
    assert list(ours.labels) == [live.convert_ids_to_tokens(id_) for id_ in range(ours.size)]


@EXAMPLES
@given(built=vocabularies(), data=st.data())
def test_texts_and_offsets_equal_the_live_tokenizers(folder, built, data):
    ours, live = build_both(folder, *built)
    # runs, as in CTC output; some ids have no token
    runs = data.draw(st.lists(st.tuples(st.integers(-2, ours.size + 2), st.integers(1, 4)), max_size=30))
    ids = [id_ for id_, count in runs for _ in range(count)]
    for group in (True, False):
        for skip in (True, False):
            wanted = live.decode(ids, group_tokens=group, skip_special_tokens=skip)
            assert ours.decode(ids, group_tokens=group, skip_special_tokens=skip) == wanted
    assert_same_offsets(ours, live, ids)


@EXAMPLES
@given(
    text=TEXTS,
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    content=st.sampled_from(["x", "ab", "b c", "<star>", "é", " d"]),
    base=vocabularies(),
)
def test_declared_added_tokens_equal_the_live_tokenizers(folder, text, flags, content, base):
    vocab, config = base
    assume(content not in vocab)
    entry = dict(zip(("lstrip", "rstrip", "single_word"), flags, strict=True))
    declared = {str(len(vocab)): {"content": content, "normalized": False, "special": False, **entry}}
    ours, live = build_both(folder, vocab, {**config, "added_tokens_decoder": declared})
    wanted = live(text + content + text).input_ids
    assert ours.encode(text + content + text) == wanted
    assert ours.decode(wanted, group_tokens=False) == live.decode(wanted, group_tokens=False)


def test_legacy_token_files_count_as_in_the_live_tokenizer(folder):
    """The usual fine-tuned checkpoint: blank last, <s> and </s> appended, settings in special_tokens_map.json."""
    vocab = {**{char: id_ for id_, char in enumerate("abc|")}, "[UNK]": 4, "[PAD]": 5}
    special = {"bos_token": "<s>", "unk_token": {"content": "[UNK]", "lstrip": False}, "pad_token": "[PAD]"}
    special |= {"additional_special_tokens": ["<s>", "<noise>"]}
    added = {"<s>": 6, "</s>": 7, "<noise>": 8}
    ours, live = build_both(folder, vocab, {}, special_tokens_map=special, added_tokens=added)
    text = "a <noise> b<s>é"
    assert ours.encode(text) == live(text).input_ids == [0, 3, 8, 3, 1, 6, 4]
    ids = [0, 5, 0, 0, 8, 3, 6, 1, 7, 4]
    assert ours.decode(ids, skip_special_tokens=True) == live.decode(ids, skip_special_tokens=True) == "a b"
    assert ours.decode(ids) == live.decode(ids) == "aa<noise> <s>b</s>[UNK]"
    assert (ours.blank_id, ours.size) == (5, 9)


def test_added_characters_and_words_take_part_in_encoding(folder):
    declared = {str(32 + place): {"content": token} for place, token in enumerate(("x", "www", "qq"))}
    ours, live = build_both(folder, ENGLISH, {"added_tokens_decoder": declared})
    for text, wanted in (("C x A", [19, 4, 32, 4, 7]), ("T www Aqq", [6, 4, 33, 4, 7, 34])):
        assert ours.encode(text) == live(text).input_ids == wanted


def test_ids_without_a_token_read_as_the_unknown_token(folder):
    ours, live = build_both(folder, ENGLISH, {})
    for ids, wanted in (
        ([11, 5, 15, 0, 15, 8, 98], "HELLO<unk>"),
        ([24, 22, 5, 4, 24, 22, 22, 5, 77, -100], "BYE BYE<unk>"),
    ):
        assert ours.decode(ids) == live.decode(ids) == wanted


def test_special_tokens_are_dropped_before_repeats_merge(folder):
    ours, live = build_both(folder, ENGLISH, {})
    ids = [11, 5, 15, 0, 15, 3, 8, 98, 98, 4, 4, 4, 1, 4, 0, 4]
    assert ours.decode(ids) == live.decode(ids) == "HELL<unk>O<unk> <s>"
    assert ours.decode(ids, skip_special_tokens=True) == live.decode(ids, skip_special_tokens=True) == "HELO"


def test_labels_keep_double_letters(folder):
    ours, _ = build_both(folder, ENGLISH, {})
    labels = ours.encode("HELLO CARRY")
    assert ours.decode(labels, group_tokens=False) == "HELLO CARRY"
    assert ours.decode(labels) == "HELO CARY"


def test_special_characters_survive_saving(folder, tmp_path):
    vocab = {"<unk>": 0, "<pad>": 1, "<s>": 2, "</s>": 3, "ʈʰ": 4, "æ": 5, "æ̃": 6, "˧": 7, "kʰ": 8}
    ours, live = build_both(folder, vocab, {})
    text = "ʈʰ æ æ̃ ˧ kʰ"
    assert ours.encode(text) == live(text).input_ids
    CTCTokenizer.from_directory(folder).save(tmp_path)
    again = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    assert again(text).input_ids == CTCTokenizer.from_directory(tmp_path).vocabulary().encode(text) == ours.encode(text)
    assert ours.decode([4, 1, 4, 6, 6, 8]) == again.decode([4, 1, 4, 6, 6, 8]) == "ʈʰʈʰæ̃kʰ"


def test_offsets_are_frames_of_the_runs(folder):
    ours, live = build_both(folder, ENGLISH, {})
    ids = [11, *[5] * 5, 4, 4, *[15] * 3, 0, 15, 8, 98]
    found = ours.decode_offsets(ids)
    assert found.text == "HE LLO<unk>"
    assert [char.text for char in found.chars] == ["H", "E", " ", "L", "L", "O", "<unk>"]
    assert [char.start for char in found.chars] == [0, 1, 6, 8, 12, 13, 14]
    assert [char.end for char in found.chars] == [1, 6, 8, 11, 13, 14, 15]
    assert found.words == (("HE", 0, 6), ("LLO<unk>", 8, 15))
    assert_same_offsets(ours, live, ids)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([4, 4, 11, 4, 0, 4, 5, 4], [("H", 2, 3), ("E", 6, 7)]),  # leading, double and trailing delimiters
        ([11, 4, 0, 4, 4, 0, 5, 5], [("H", 0, 1), ("E", 6, 8)]),
        ([4, 0, 4], []),
        ([0, 0], []),
        ([], []),
    ],
)
def test_delimiters_only_separate_words(folder, ids, words):
    ours, live = build_both(folder, ENGLISH, {})
    assert list(ours.decode_offsets(ids).words) == words
    assert_same_offsets(ours, live, ids)


def test_offsets_do_not_depend_on_the_batch(folder):
    ours, live = build_both(folder, ENGLISH, {})
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 33, (4, 200)).repeat(2, axis=1)
    wanted = live.batch_decode(batch, output_char_offsets=True, output_word_offsets=True)
    found = [ours.decode_offsets(row) for row in batch]
    assert [offsets.text for offsets in found] == wanted.text
    starts = [[entry["start_offset"] for entry in row] for row in wanted.char_offsets]
    assert [[char.start for char in offsets.chars] for offsets in found] == starts


def test_custom_word_delimiter_is_honoured(folder):
    """Built by hand: ``from_pretrained`` of transformers 5.23 forgets the delimiter of tokenizer_config.json."""
    vocab = {"<pad>": 0, "<unk>": 1, "#": 2, "a": 3, "|": 4, "<s>": 5, "</s>": 6}
    write(folder, vocab, config={"word_delimiter_token": "#", "replace_word_delimiter_char": "_"})
    ours = CTCTokenizer.from_files(folder / "vocab.json", tokenizer_config={"word_delimiter_token": "#"})
    live = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), word_delimiter_token="#", replace_word_delimiter_char="_")
    underscored = CTCTokenizer.from_directory(folder).vocabulary()
    assert ours.vocabulary().encode("a a|#") == live("a a|#").input_ids == [3, 2, 3, 4, 2]
    assert underscored.decode([3, 2, 3, 4]) == live.decode([3, 2, 3, 4]) == "a_a|"
    assert_same_offsets(underscored, live, [3, 3, 2, 0, 2, 3, 4])


def test_the_blank_and_the_head_must_agree_with_the_model():
    vocabulary = CTCVocabulary({"a": 0, "<unk>": 1, "<pad>": 2}, source="mine/vocab.json")
    assert (vocabulary.blank_id, vocabulary.size, vocabulary.encode("<s> ")) == (2, 6, [3, 5])  # <s>, </s>, | appended
    vocabulary.check_model(3, pad_token_id=2, source="mine/config.json")
    vocabulary.check_model(40, pad_token_id=2, source="mine/config.json")
    for size, blank, reason in (
        (3, 0, "pad_token_id is 0"),
        (3, None, "pad_token_id is None"),
        (2, 2, "vocab_size is 2"),
    ):
        with pytest.raises(VocabularyError, match=reason) as caught:
            vocabulary.check_model(size, pad_token_id=blank, source="mine/config.json")
        assert "mine/config.json" in str(caught.value)
        assert "mine/vocab.json" in str(caught.value)


def test_a_character_without_any_id_is_an_error_not_none():
    vocabulary = CTCVocabulary({"a": 0, "<pad>": 1, "|": 2})
    assert vocabulary.unk_id is None
    assert vocabulary.decode([0, 77]) == "a<unk>"
    with pytest.raises(VocabularyError, match="'é' is not in the vocabulary"):
        vocabulary.encode("aé")


@pytest.mark.parametrize("ids", [[0.5], [[0, 1]], 3, ["a"], [2**70]])
def test_ids_must_be_a_row_of_integers(ids):
    with pytest.raises(VocabularyError, match="ids must be"):
        CTCVocabulary(SPECIALS).decode(ids)
    with pytest.raises(VocabularyError, match="must be a str"):
        CTCVocabulary(SPECIALS).encode(None)  # pyright: ignore[reportArgumentType]


def test_an_added_token_is_listed_once():
    twice = (AddedToken("x", 2), AddedToken("x", 3))
    with pytest.raises(VocabularyError, match="listed twice"):
        CTCVocabulary(SPECIALS, added_tokens=twice)


def test_a_word_is_spelt_by_its_letters_or_not_at_all():
    vocabulary = CTCVocabulary({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "ch": 5})
    assert vocabulary.spell("abba") == (3, 4, 4, 3)
    assert vocabulary.spell("bach") == (4, 3, 5)  # as labels are made of it
    for word in ("", "c", "a b", "<unk>", "a<pad>"):
        assert vocabulary.spell(word) is None
    assert CTCVocabulary({"<pad>": 0, "a": 1}, special_tokens=("<pad>",)).spell("ab") is None  # nothing to write b as
    capitals = CTCVocabulary({"<pad>": 0, "|": 1, "A": 2}, do_lower_case=True)
    assert capitals.spell("aa") == (2, 2)

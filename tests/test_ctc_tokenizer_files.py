"""The vocabulary files of a checkpoint: what is read equals the live tokenizer, what is saved loads there."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer

from mms_jax.errors import VocabularyError
from mms_jax.text.ctc import CTCTokenizer
from tests.ctc_vocabularies import ENGLISH, EXAMPLES, NESTED, SPECIALS, TEXTS, build_both, vocabularies, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vocabulary")


@pytest.mark.parametrize("language", list(NESTED))
def test_every_language_of_a_nested_file_equals_the_live_tokenizer(folder, language):
    write(folder, NESTED, config={"target_lang": "eng"})
    ours = CTCTokenizer.from_directory(folder)
    live = Wav2Vec2CTCTokenizer.from_pretrained(folder, target_lang=language)
    assert ours.is_nested
    assert ours.languages == tuple(NESTED)
    vocabulary = ours.vocabulary(language)
    text = "ab schʈʰ s æ̃é 中文<pad>c"
    assert vocabulary.encode(text) == live(text).input_ids
    assert vocabulary.blank_id == live.pad_token_id
    assert vocabulary.decode(np.arange(-1, 12)) == live.decode(np.arange(-1, 12))


def test_a_language_keeps_no_token_of_the_one_before(folder, tmp_path):
    """ "sch" is 7 in eng and 7 is é in the other: after the change of language it must not encode to é."""
    write(folder, NESTED, config={"target_lang": "eng"})
    live = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    live.save_pretrained(tmp_path)  # its added_tokens_decoder declares "sch": 7
    live.set_target_lang("aaq-script_latin")
    ours = CTCTokenizer.from_directory(tmp_path).vocabulary("aaq-script_latin")
    assert ours.encode("sch") == live("sch").input_ids == [9, 3, 3]
    assert ours.decode([7, 9]) == live.decode([7, 9]) == "és"


def test_left_over_tokens_of_another_language_are_dropped(folder):
    """A transformers 4 tokenizer saved after a change of language still declares the former one's tokens."""
    left_over = {
        "9": {"content": "sch"},
        "7": {"content": "sch"},
        "30": {"content": "ʈʰ"},
        "31": {"content": "文"},
        "5": {"content": "<mine>"},
    }
    for id_, entry in left_over.items():
        config = {"target_lang": "zho", "added_tokens_decoder": {id_: entry}}
        write(folder, NESTED, config=config)
        assert CTCTokenizer.from_directory(folder).vocabulary().labels == tuple(NESTED["zho"])


def test_an_added_token_belongs_to_the_language_it_was_saved_with(folder, tmp_path):
    config = {"target_lang": "zho", "added_tokens_decoder": {"7": {"content": "<mine>", "normalized": False}}}
    write(folder, NESTED, config=config)
    many = CTCTokenizer.from_directory(folder)
    assert many.vocabulary().encode("中<mine>") == [5, 7]
    for_eng = {"target_lang": "eng", "added_tokens_decoder": {"9": {"content": "<mine>"}}}
    assert CTCTokenizer(NESTED, for_eng).vocabulary("zho").labels == tuple(NESTED["zho"])
    nobodys = {"added_tokens_decoder": for_eng["added_tokens_decoder"]}
    CTCTokenizer(NESTED, nobodys).save(tmp_path / "nobodys", target_lang="eng")
    assert CTCTokenizer.from_directory(tmp_path / "nobodys").vocabulary().labels == tuple(NESTED["eng"])
    tmp_path /= "own"
    tmp_path.mkdir()
    with pytest.raises(VocabularyError, match="'<mine>' is an added token of 'zho' alone"):
        many.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    left_over = {"5": {"content": "sch"}}  # of a language the file no longer has
    config["added_tokens_decoder"] |= left_over
    CTCTokenizer({"zho": NESTED["zho"]}, config).save(tmp_path)
    assert Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)("sch").input_ids == [3, 3, 3]
    assert Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)("中<mine>").input_ids == [5, 7]


def test_appended_special_tokens_are_appended_anew_for_every_saved_language(folder, tmp_path):
    """A fine-tuned nested checkpoint declares <s> and </s> behind its own language's letters."""
    vocab = {"tur": {"|": 0, "a": 1, "[UNK]": 2, "[PAD]": 3}}
    path = str(write(folder, vocab) / "vocab.json")
    live = Wav2Vec2CTCTokenizer(path, pad_token="[PAD]", unk_token="[UNK]", target_lang="tur")
    live.save_pretrained(folder)
    first = CTCTokenizer.from_directory(folder)
    assert first.vocabulary().encode("<s>a") == live("<s>a").input_ids == [4, 1]
    second = {"[PAD]": 0, "[UNK]": 1, "|": 2, "x": 3, "y": 4, "z": 5}
    grown = first.with_language("xyz", second)
    grown.save(tmp_path)
    for language, wanted in (("tur", [4, 5, 1]), ("xyz", [6, 7, 1])):
        again = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path, target_lang=language)
        assert grown.vocabulary(language).encode("<s></s>a") == again("<s></s>a").input_ids == wanted


@EXAMPLES
@given(built=vocabularies(), text=TEXTS, extra=st.lists(st.sampled_from(["<noise>", "~"]), unique=True))
def test_transformers_loads_what_is_saved(folder, built, text, extra):
    vocab, config = built
    ours, live = build_both(folder, vocab, {**config, "additional_special_tokens": extra, "model_max_length": 99})
    CTCTokenizer.from_directory(folder).save(folder)
    again = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    assert again(text + "<noise>").input_ids == live(text + "<noise>").input_ids
    ids = [*range(ours.size + 1)]
    assert again.decode(ids, skip_special_tokens=True) == live.decode(ids, skip_special_tokens=True)
    assert CTCTokenizer.from_directory(folder).vocabulary().decode(ids) == again.decode(ids)
    assert again.model_max_length == 99


def test_a_nested_tokenizer_grows_by_a_language_and_auto_tokenizer_loads_it(folder, tmp_path):
    write(folder, NESTED, config={"target_lang": "eng"})
    base = CTCTokenizer.from_directory(folder)
    new = {"[PAD]": 2, "x": 0, "y": 1}
    with pytest.raises(VocabularyError, match="the pad_token '<pad>', which is the CTC blank, has no id"):
        base.with_language("xyz", new)
    grown = base.with_language("xyz", {"x": 0, "|": 1, "<pad>": 2, "<unk>": 3})
    assert base.languages == tuple(NESTED)  # the original is unchanged
    (tmp_path / "added_tokens.json").write_text('{"<stale>": 1}')
    grown.save(tmp_path)
    for language in (*NESTED, "xyz"):
        live = AutoTokenizer.from_pretrained(tmp_path, target_lang=language)
        assert live("x ab中<s><stale>").input_ids == grown.vocabulary(language).encode("x ab中<s><stale>")
    grown.save(tmp_path, target_lang="xyz")
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == 2
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == grown.vocab
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "added_tokens.json",
        "tokenizer_config.json",
        "vocab.json",
    ]


def test_adding_a_language_never_overwrites_unasked(folder):
    base = CTCTokenizer(NESTED, {}, source="vocab.json")
    with pytest.raises(VocabularyError, match=r"vocab\.json: has 'eng' already"):
        base.with_language("eng", NESTED["zho"])
    replaced = base.with_language("eng", NESTED["zho"], overwrite=True)
    assert replaced.vocabulary("eng").blank_id == 1
    assert replaced.target_lang == "eng"
    with pytest.raises(VocabularyError, match="flat"):
        CTCTokenizer(ENGLISH, {}).with_language("eng", ENGLISH)


MALFORMED = {
    "duplicate id": (SPECIALS | {"a": 1}, {}, "'<unk>' and 'a' have the same id 1"),
    "text id": (SPECIALS | {"a": "2"}, {}, "the id of 'a' must be an integer"),
    "boolean id": ({"<pad>": 0, "<unk>": True}, {}, "the id of '<unk>' must be an integer"),
    "fractional id": (SPECIALS | {"a": 2.0}, {}, "the id of 'a' must be an integer"),
    "negative id": (SPECIALS | {"a": -1}, {}, "the id of 'a' must be an integer >= 0"),
    "hole": (SPECIALS | {"a": 3}, {}, "no token has the id 2, but 'a' has 3"),
    "list": (["a", "b"], {}, "holds a list, expected an object"),
    "empty": ({}, {}, "expected a non-empty JSON object"),
    "empty language": ({"eng": {}}, {"target_lang": "eng"}, "language 'eng': expected a JSON object"),
    "mixed": ({"eng": SPECIALS, "a": 3}, {}, "'a' makes it neither flat nor nested"),
    "no blank": ({"<unk>": 0, "a": 1}, {}, "the pad_token '<pad>', which is the CTC blank, has no id"),
    "null blank": (SPECIALS, {"pad_token": None}, "pad_token in tokenizer_config.json is None"),
    "huge key": (SPECIALS | {"a" * 10_000_000: 2}, {}, "aaa…"),
    "no language chosen": (NESTED, {}, "holds 3 languages and no target_lang"),
    "unknown language": (NESTED, {"target_lang": "fra"}, "no language 'fra' among its 3"),
    "language of a flat file": (SPECIALS, {"target_lang": "eng"}, "a flat vocabulary, so none for the language 'eng'"),
    "other class": (SPECIALS, {"tokenizer_class": "BertTokenizer"}, "tokenizer_class is 'BertTokenizer'"),
    "split specials": (SPECIALS, {"split_special_tokens": True}, "split_special_tokens"),
    "text for a switch": (SPECIALS, {"do_lower_case": "no"}, "do_lower_case in tokenizer_config.json is no bool: 'no'"),
    "bad added token": (SPECIALS, {"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder has 'x'"),
    "huge added id": (SPECIALS, {"added_tokens_decoder": {"9" * 5000: {"content": "a"}}}, "added_tokens_decoder has"),
    "two ids": (SPECIALS, {"added_tokens_decoder": {"2": {"content": "<pad>"}}}, "'<pad>' has the id 0 there and 2"),
    "same id": (SPECIALS, {"added_tokens_decoder": {"1": {"content": "b"}}}, "'<unk>' and 'b' have the same id 1"),
    "no token": (SPECIALS, {"bos_token": 5}, "bos_token in tokenizer_config.json must be a token, got 5"),
    "extras": (SPECIALS, {"extra_special_tokens": "<x>"}, "extra_special_tokens must be a list"),
}


@pytest.mark.parametrize("case", list(MALFORMED))
def test_a_malformed_vocabulary_is_refused_by_file_and_key(tmp_path, case):
    vocab, config, reason = MALFORMED[case]
    write(tmp_path, vocab, config=config)
    with pytest.raises(VocabularyError) as caught:
        CTCTokenizer.from_directory(tmp_path).vocabulary()
    message = str(caught.value)
    assert str(tmp_path / "vocab.json") in message
    assert reason in message
    assert len(message) < 600  # a huge key is not quoted whole


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 0, "a": 1}', "the key 'a' appears twice"),
        (b'{"a": 0', "not valid JSON"),
        (b"\xff\xfe{", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b" " * ((64 << 20) + 1), "at most 67,108,864"),
    ],
)
def test_an_unreadable_file_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=reason) as caught:
        CTCTokenizer.from_files(path)
    assert str(path) in str(caught.value)
    with pytest.raises(VocabularyError, match=r"nowhere\.json: cannot be read"):
        CTCTokenizer.from_files(tmp_path / "nowhere.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    CTCTokenizer(SPECIALS, {}).save(tmp_path)
    before = (tmp_path / "tokenizer_config.json").read_bytes()
    with pytest.raises(TypeError):
        CTCTokenizer(SPECIALS, {"not_json": object()}).save(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer_config.json", "vocab.json"]

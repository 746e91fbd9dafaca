"""Transcripts and vocabularies: what is removed, what gets an id, and that no language's vocabulary changes unasked."""

import json
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from mms_jax.errors import DatasetError, VocabularyError
from mms_jax.text.ctc import CTCTokenizer
from mms_jax.training.data.transcripts import TranscriptEncoder, clean_text, clean_texts, num_repeats
from mms_jax.training.data.vocabulary import build_vocabulary, make_language_tokenizer, make_tokenizer

MMS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}
BASE = CTCTokenizer({"eng": MMS | {"a": 5, "b": 6}}, {"target_lang": "eng"}, source="base")
META = r"]^-\[.*+?(){}|$/#&~"
TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from(META + " aAİßΣ"), max_size=20)
WORDS = st.lists(st.text(st.sampled_from("abcdéß中'"), min_size=1), min_size=1).map(" ".join)


# --- cleaning --------------------------------------------------------------------------------------------------------


@given(text=TEXTS, ignored=st.lists(st.sampled_from(META + ",\"';“é"), max_size=6), lower=st.booleans())
def test_a_clean_text_has_single_spaces_and_no_ignored_character(text, ignored, lower):
    cleaned = clean_text(text, chars_to_ignore=ignored, do_lower_case=lower)
    assert cleaned == " ".join(cleaned.split())
    assert not set(cleaned) & set(ignored)
    assert clean_text(cleaned, chars_to_ignore=ignored, do_lower_case=lower) == cleaned
    kept = "".join(char for char in text if char not in ignored)
    assert cleaned.replace(" ", "") == "".join((kept.lower() if lower else kept).split())


@given(words=WORDS, ignored=st.lists(st.sampled_from(",?.!:“%‘”�'"), min_size=1, max_size=5))
def test_characters_that_mean_nothing_in_a_pattern_are_removed_as_the_originals_remove_them(words, ignored):
    text = "".join(char + ignored[index % len(ignored)] for index, char in enumerate(words.upper()))
    original = re.sub(f"[{''.join(ignored)}]", "", text).lower() + " "
    assert clean_text(text, chars_to_ignore=ignored) == " ".join(original.split())


@pytest.mark.parametrize("char", META)
def test_every_character_stands_for_itself(char):
    assert clean_text(f"a{char}b0'", chars_to_ignore=[char]) == "ab0'"
    assert clean_text(f"{META}x", chars_to_ignore=[*META]) == "x"


def test_no_range_is_made_of_the_list_in_the_originals_readme():
    assert clean_text("it's 10-20!", chars_to_ignore=[",", "?", ".", "!", "-", ";", ":"]) == "it's 1020"


def test_the_unicode_form_stays():
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "é")
        assert clean_text(text) == text


def test_only_transcripts_that_say_something_are_cleaned():
    assert list(clean_texts(["A", None, 3, " ", "?", "B  b"], chars_to_ignore="?")) == ["a", "b b"]


def test_repeats_are_neighbours_that_are_equal():
    for labels, repeats in (([], 0), ([1], 0), ([1, 1, 1, 2, 1], 2), ([1, 2, 2, 3, 3], 2)):
        assert num_repeats(np.array(labels, np.int32)) == repeats


# --- encoding --------------------------------------------------------------------------------------------------------


@given(words=WORDS)
def test_labels_are_those_of_the_original_tokenizer_with_its_trailing_space(words, tmp_path_factory):
    tokenizer = make_language_tokenizer("xyz", ["abc d"], base=BASE, pad_token_id=0)
    folder = tmp_path_factory.getbasetemp()
    tokenizer.save(folder)
    live = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    encoder = TranscriptEncoder(tokenizer.vocabulary("xyz"))
    assert encoder.encode(words).tolist() == live(words + " ").input_ids
    assert encoder.unknown == Counter(char for char in words if char not in "abcd ")


def test_a_character_within_a_longer_token_is_not_unknown_there():
    vocabulary = CTCTokenizer(MMS | {"ʈʰ": 5, "a": 6}, {}).vocabulary()
    encoder = TranscriptEncoder(vocabulary)
    assert encoder.encode("aʈʰʰ").tolist() == [6, 5, 3, 4]
    assert encoder.unknown == {"ʰ": 1}


def test_a_vocabulary_of_capitals_knows_small_letters():
    vocabulary = CTCTokenizer(MMS | {"A": 5}, {"do_lower_case": True}).vocabulary()
    encoder = TranscriptEncoder(vocabulary)
    assert encoder.encode("ab").tolist() == [5, 3, 4]
    assert encoder.unknown == {"b": 1}


# --- making ----------------------------------------------------------------------------------------------------------


def original_vocabulary(texts):
    """What the scripts make of transcripts that each end with a space."""
    ids = {char: id_ for id_, char in enumerate(sorted(set(" ".join(f"{text} " for text in texts))))}
    ids["|"] = ids.pop(" ")
    ids["[UNK]"] = len(ids)
    ids["[PAD]"] = len(ids)
    return ids


@given(texts=st.lists(WORDS, min_size=1))
def test_a_whole_models_vocabulary_is_the_originals(texts):
    assert build_vocabulary(texts) == original_vocabulary(texts)
    assert make_tokenizer(texts).vocab == original_vocabulary(texts)


@given(texts=st.lists(WORDS, min_size=1))
def test_a_languages_vocabulary_has_the_bases_special_tokens_first(texts):
    vocab = make_language_tokenizer("xyz", texts, base=BASE, pad_token_id=0).vocab["xyz"]
    chars = sorted(set("".join(texts)) - {" "})
    assert list(vocab.items()) == [*MMS.items(), *zip(chars, range(5, 5 + len(chars)), strict=True)]


@given(texts=st.lists(WORDS, min_size=1), pad_token_id=st.integers(0, 40), based=st.booleans())
def test_the_blank_is_the_models_wherever_that_is(texts, pad_token_id, based):
    tokenizer = make_language_tokenizer("xyz", texts, base=BASE if based else None, pad_token_id=pad_token_id)
    vocabulary = tokenizer.vocabulary("xyz")
    assert vocabulary.blank_id == pad_token_id
    assert set(MMS if based else ("[PAD]", "<s>", "</s>", "[UNK]", "|")) <= set(vocabulary.tokens)
    vocabulary.check_model(vocabulary.size, pad_token_id=pad_token_id, source="model")
    encoder = TranscriptEncoder(vocabulary)
    for text in texts:
        assert vocabulary.decode(encoder.encode(text), group_tokens=False) == text
    assert not encoder.unknown


def test_without_a_base_the_special_tokens_have_the_originals_names_and_mms_places():
    vocab = make_language_tokenizer("xyz", ["ab"], pad_token_id=0).vocab["xyz"]
    assert vocab == {"[PAD]": 0, "<s>": 1, "</s>": 2, "[UNK]": 3, "|": 4, "a": 5, "b": 6}
    named = make_language_tokenizer("xyz", ["ab"], pad_token_id=0, base=BASE, pad_token="_", unk_token=None)
    assert list(named.vocab["xyz"])[:4] == ["_", "<s>", "</s>", "<unk>"]
    assert named.vocabulary("xyz").pad_token == "_"


def test_a_base_of_capitals_gets_a_vocabulary_of_capitals():
    base = CTCTokenizer(MMS | {"A": 5}, {"do_lower_case": True})
    tokenizer = make_language_tokenizer("xyz", ["ab ß"], base=base, pad_token_id=0)
    assert list(tokenizer.vocab["xyz"])[5:] == ["A", "B", "S"]
    assert not TranscriptEncoder(tokenizer.vocabulary()).unknown


def test_the_word_delimiter_may_stand_in_texts_and_special_tokens_may_not():
    assert build_vocabulary(["a|b"]) == {"|": 0, "a": 1, "b": 2, "[UNK]": 3, "[PAD]": 4}
    with pytest.raises(VocabularyError, match=r"'_' is a special token and also in the transcripts.*--chars_to_ignore"):
        build_vocabulary(["a_"], pad_token="_")
    with pytest.raises(VocabularyError, match="'#' is a special token"):
        build_vocabulary(["a#"], special={"#": 0, "[PAD]": 1, "[UNK]": 2})


@pytest.mark.parametrize("texts", [[], [" "], ["|"]])
def test_transcripts_without_a_character_make_no_vocabulary(texts):
    with pytest.raises(DatasetError, match="hold no characters"):
        build_vocabulary(texts)
    with pytest.raises(DatasetError, match="hold no characters"):
        make_language_tokenizer("xyz", texts, base=BASE, pad_token_id=0)


# --- growing ---------------------------------------------------------------------------------------------------------


def test_a_second_language_is_added_and_the_first_stays(tmp_path):
    first = make_language_tokenizer("tur", ["çay"], base=BASE, pad_token_id=0)
    first.save(tmp_path)
    both = make_language_tokenizer(
        "swe", ["å"], base=BASE, existing=CTCTokenizer.from_directory(tmp_path), pad_token_id=0
    )
    both.save(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == {
        "tur": MMS | {"a": 5, "y": 6, "ç": 7},
        "swe": MMS | {"å": 5},
    }
    for language, text in (("tur", "çay"), ("swe", "å")):
        live = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path, target_lang=language)
        assert both.vocabulary(language).encode(text) == live(text).input_ids
    assert both.target_lang == "tur"


def test_a_second_language_has_the_special_tokens_of_the_first_and_not_of_the_base():
    first = make_language_tokenizer("tur", ["ab"], pad_token_id=0)
    both = make_language_tokenizer("swe", ["c"], base=BASE, given=BASE, existing=first, pad_token_id=0)
    assert both.vocab["swe"] == {"[PAD]": 0, "<s>": 1, "</s>": 2, "[UNK]": 3, "|": 4, "c": 5}


def test_a_language_that_is_there_keeps_its_vocabulary_unless_told_otherwise():
    first = make_language_tokenizer("tur", ["ab"], base=BASE, pad_token_id=0)
    again = make_language_tokenizer("tur", ["xyz"], base=BASE, existing=first, pad_token_id=0)
    assert again.vocab == first.vocab
    anew = make_language_tokenizer("tur", ["xyz"], base=BASE, existing=first, overwrite=True, pad_token_id=0)
    assert list(anew.vocab["tur"])[5:] == ["x", "y", "z"]
    assert list(first.vocab["tur"])[5:] == ["a", "b"]


def test_a_given_vocabulary_is_taken_as_it_is_and_never_replaces_another():
    given_one = CTCTokenizer({"tur": MMS | {"ş": 5}}, {}, source="given")
    taken = make_language_tokenizer("tur", ["ab"], base=BASE, given=given_one, pad_token_id=0)
    assert taken.vocab == given_one.vocab
    assert make_language_tokenizer("tur", [], given=given_one, existing=taken, pad_token_id=0).vocab == given_one.vocab
    other = CTCTokenizer({"tur": MMS | {"x": 5}}, {}, source="directory")
    with pytest.raises(VocabularyError, match=r"directory: has another vocabulary for 'tur' than given.*--overwrite"):
        make_language_tokenizer("tur", ["ab"], given=given_one, existing=other, pad_token_id=0)
    anew = make_language_tokenizer("tur", ["ab"], given=given_one, existing=other, overwrite=True, pad_token_id=0)
    assert list(anew.vocab["tur"])[5:] == ["a", "b"]


def test_one_directory_has_one_set_of_special_tokens():
    first = make_language_tokenizer("tur", ["ab"], base=BASE, pad_token_id=0)
    with pytest.raises(VocabularyError, match=r"its languages have the pad_token '<pad>'.*leave --pad_token out"):
        make_language_tokenizer("swe", ["ab"], existing=first, pad_token_id=0, pad_token="[PAD]")
    same = make_language_tokenizer("swe", ["ab"], existing=first, pad_token_id=0, pad_token="<pad>")
    assert same.languages == ("tur", "swe")


def test_a_directory_of_a_whole_model_takes_no_language():
    with pytest.raises(VocabularyError, match="a flat vocabulary; 'tur' cannot be added"):
        make_language_tokenizer("tur", ["ab"], existing=make_tokenizer(["ab"]), pad_token_id=0)

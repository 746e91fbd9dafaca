"""Language models, lexicons and hotwords held against a vocabulary: what fits is planned, what does not says why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.demo.ngram import estimate, letters
from mms_jax.errors import LanguageModelError, SettingError
from mms_jax.pipelines.decoding.files import open_language_model, read_lexicon
from mms_jax.pipelines.decoding.plans import Plan, make_plan
from mms_jax.pipelines.decoding.request import Request, make_request
from mms_jax.text.ctc import CTCVocabulary
from tests.kenlm_binaries import write_binary

LETTERS = "abcdefghijklmnopqrstuvwxyzé"
VOCABULARY = CTCVocabulary(
    {token: id_ for id_, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}, source="eng/vocab.json"
)
SENTENCES = ("the cat sat", "a cat ran", "the dog sat", "a quick fox jumped over my lazy dog", "be why vex zig")


def write_arpa(path: Path, *, level: str, sentences: tuple[str, ...] = SENTENCES, order: int = 2) -> Path:
    words = [sentence.split() for sentence in sentences]
    path.write_text(estimate(map(letters, words) if level == "letters" else words, order=order), encoding="utf-8")
    return path


def plan(lm: Path | None = None, *, vocabulary: CTCVocabulary = VOCABULARY, lexicon=None, hotwords=()) -> Plan:
    model = None if lm is None else open_language_model(lm)
    given = None if lexicon is None else read_lexicon(lexicon)
    return make_plan(vocabulary, vocab_size=vocabulary.size, lm=model, lexicon=given, hotwords=list(hotwords))


def test_letters_are_known_as_such_and_need_no_lexicon(tmp_path: Path):
    made = plan(write_arpa(tmp_path / "lm.arpa", level="letters"))
    assert made.is_token_lm
    assert made.spellings is None
    assert made.tokens[4:7] == ("|", "a", "b")
    assert made.difference.missing == ("é",)  # the only letter that these sentences lack
    assert "é" in str(made.difference)


def test_words_are_their_own_lexicon(tmp_path: Path):
    made = plan(write_arpa(tmp_path / "lm.arpa", level="words"))
    assert not made.is_token_lm
    assert set(made.words) == {"<unk>", *" ".join(SENTENCES).split()}
    cat = made.words.index("cat")
    assert dict(made.spellings or ())[cat] == (7, 5, 24, 4)


def test_words_that_cannot_be_spelt_are_left_out_and_shown(tmp_path: Path):
    made = plan(write_arpa(tmp_path / "lm.arpa", level="words", sentences=(*SENTENCES, "the 7up ñandú")))
    assert made.difference.unspeakable == ("7up", "ñandú")
    assert "ñandú" not in made.words


@pytest.mark.parametrize("level", ["letters", "words"])
def test_another_alphabet_is_refused_with_the_difference(tmp_path: Path, level: str):
    lm = write_arpa(tmp_path / "rus.arpa", level=level, sentences=("кот сидит", "собака бежит", "кот бежит"))
    with pytest.raises(
        LanguageModelError, match=r"(?s)rus\.arpa: .*another alphabet than eng/vocab\.json.*'[а-я]"
    ) as raised:
        plan(lm)
    assert "'" in str(raised.value)


def test_letters_in_capitals_fit_a_vocabulary_in_capitals(tmp_path: Path):
    capitals = CTCVocabulary(
        {token: id_ for id_, token in enumerate(["<pad>", "|", *LETTERS.upper()])}, do_lower_case=True
    )
    lm = write_arpa(tmp_path / "lm.arpa", level="letters")
    assert plan(lm, vocabulary=capitals).difference.missing == ("É",)
    words = plan(write_arpa(tmp_path / "words.arpa", level="words"), vocabulary=capitals)
    assert dict(words.spellings or ())[words.words.index("cat")] == (4, 2, 21, 1)


def test_letters_without_a_space_are_refused(tmp_path: Path):
    lm = write_arpa(tmp_path / "lm.arpa", level="letters", sentences=tuple(" ".join(SENTENCES).split()))
    with pytest.raises(LanguageModelError, match="without a sign for the space"):
        plan(lm)


def test_a_lexicon_that_the_language_model_does_not_know_is_refused(tmp_path: Path):
    lm = write_arpa(tmp_path / "lm.arpa", level="words")
    with pytest.raises(LanguageModelError, match=r"other words than the lexicon: it lacks 2 of 3 .*capitals"):
        plan(lm, lexicon=["katze", "hund", "the"])


def test_a_lexicon_may_spell_words_in_its_own_ways(tmp_path: Path):
    path = tmp_path / "lexicon.txt"
    path.write_text("\ufeffcafé c a f e |\ncafé c a f é\ncat\n", encoding="utf-8")
    made = plan(lexicon=path)
    assert made.words == ("<unk>", "café", "cat")
    assert made.spellings == ((1, (7, 5, 10, 9, 4)), (1, (7, 5, 10, 31, 4)), (2, (7, 5, 24, 4)))


def test_words_in_capitals_are_heard_without_and_written_with_them():
    made = plan(lexicon=["Hund", "NATO"], hotwords=["Hund", "New York"])
    assert made.words == ("<unk>", "Hund", "NATO", "New", "York")
    assert dict(made.spellings or ())[1] == (12, 25, 18, 8, 4)
    assert made.hotwords == ((12, 25, 18, 8), (18, 9, 27, 4, 29, 19, 22, 15))  # letters: there is no model of words


@pytest.mark.parametrize(
    ("lexicon", "message"),
    [
        ({"cat": "C A T"}, "for want of the letters 'A', 'C', 'T'"),
        ([], "has no words"),
        ([""], "'' is not a word"),
        (["two words"], "'two words' is not a word"),
        ([7], "7 is not a word"),
        (7, "lexicon is 7; give a file"),
        ({"cat": 5}, "the spelling of 'cat' is 5"),
        (["кот", "пёс"], "2 of 2 cannot be spelt"),
        ("/nowhere/lexicon.txt", "/nowhere/lexicon.txt"),
    ],
)
def test_lexicons_of_no_use_are_refused(lexicon, message: str):
    with pytest.raises(LanguageModelError, match=message):
        plan(lexicon=lexicon)


def test_words_need_a_delimiter():
    without = CTCVocabulary({"<pad>": 0, "a": 1}, special_tokens=("<pad>",))
    with pytest.raises(LanguageModelError, match="has none"):
        plan(vocabulary=without, lexicon=["a"])


def test_hotwords_are_spelt_or_refused_with_the_letter(tmp_path: Path):
    assert plan(hotwords=["my cat"]).hotwords == ((17, 29, 4, 7, 5, 24),)
    words = plan(write_arpa(tmp_path / "lm.arpa", level="words"), hotwords=["zorg cat"])
    assert [words.words[index] for index in words.hotwords[0]] == ["zorg", "cat"]  # a new word joins the lexicon
    assert dict(words.spellings or ())[words.words.index("zorg")][-1] == 4
    assert plan(hotwords=["My CAT"]).hotwords == plan(hotwords=["my cat"]).hotwords
    with pytest.raises(LanguageModelError, match=r"'№5' cannot be heard: eng/vocab\.json has no '№', '5'"):
        plan(hotwords=["№5"])
    with pytest.raises(LanguageModelError, match="'' is no phrase"):
        plan(hotwords=[""])


@pytest.mark.parametrize("kind", ["probing", "trie"])
def test_a_kenlm_binary_is_read_like_its_arpa(tmp_path: Path, kind: str):
    model = open_language_model(write_binary(tmp_path / "words.bin", kind))
    assert set(model.words) == {"the", "cat", "sat", "on", "mat", "dog", "log", "a", "saw"}
    assert model.order == 3


def test_a_binary_without_its_words_is_refused(tmp_path: Path):
    with pytest.raises(LanguageModelError, match="without its words; build it with them"):
        open_language_model(write_binary(tmp_path / "words.bin", "no_words"))


def decoder_directory(folder: Path, *, labels: list[str]) -> Path:
    """As pyctcdecode's ``save_to_dir`` writes it."""
    model = folder / "language_model"
    model.mkdir(parents=True)
    write_arpa(model / "words.arpa", level="words")
    (model / "unigrams.txt").write_text("\n".join(" ".join(SENTENCES).split()), encoding="utf-8")
    (model / "attrs.json").write_text(
        json.dumps({"alpha": 0.5, "beta": 1.5, "unk_score_offset": -10.0, "score_boundary": True}), encoding="utf-8"
    )
    (folder / "alphabet.json").write_text(json.dumps({"labels": labels, "is_bpe": False}), encoding="utf-8")
    return folder


STORED = ["", "<s>", "</s>", "⁇", " ", *LETTERS]  # of the vocabulary above


def test_a_directory_that_transformers_wrote_gives_its_weights_and_words(tmp_path: Path):
    model = open_language_model(decoder_directory(tmp_path / "decoder", labels=STORED))
    assert model.lm_weight == pytest.approx(0.5 * 2.302585)  # alpha weighs natural logarithms
    assert model.word_score == 1.5
    assert model.path.name == "words.arpa"
    assert plan(tmp_path / "decoder").words[1:3] == ("the", "cat")


def test_a_directory_of_another_vocabulary_is_refused(tmp_path: Path):
    folder = decoder_directory(tmp_path / "decoder", labels=[*STORED[:5], *reversed(LETTERS)])
    with pytest.raises(LanguageModelError, match=r"stored for another vocabulary than eng/vocab.json; 26 letters"):
        plan(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("language_model/attrs.json", '{"alpha": "high"}', "alpha must be a number, got 'high'"),
        ("language_model/attrs.json", "[]", "holds a list, expected an object"),
        ("alphabet.json", '{"labels": 3}', "labels must be a list of tokens"),
        ("language_model/other.arpa", "", "expected one language model"),
    ],
)
def test_a_damaged_directory_names_the_file(tmp_path: Path, file: str, content: str, message: str):
    folder = decoder_directory(tmp_path / "decoder", labels=STORED)
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(LanguageModelError, match=message):
        open_language_model(folder)


@pytest.mark.parametrize("lm", ["", 5, b"lm.arpa", ["lm.arpa"]])
def test_what_is_no_path_is_no_language_model(lm):
    with pytest.raises(LanguageModelError, match=r"lm is .*; give an ARPA file"):
        open_language_model(lm)


def test_no_file_no_model(tmp_path: Path):
    with pytest.raises(LanguageModelError, match="no such file"):
        open_language_model(tmp_path / "lm.arpa")
    with pytest.raises(LanguageModelError, match="found \\[\\]"):
        open_language_model(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lm_weight": 1.0}, "lm_weight and word_score are those of a beam search"),
        ({"beam": 0}, "beam is 0"),
        ({"beam": True}, "beam is True"),
        ({"beam": 10**20}, "beam is 10{20}; it may be 100000 at most"),
        ({"beam": 5, "num_best": 6}, "num_best=6 is more than the beam holds"),
        ({"num_best": 0}, "num_best is 0"),
        ({"beam": 5, "lm_weight": -1.0}, "lm_weight is -1.0"),
        ({"beam": 5, "word_score": float("nan")}, "word_score is nan"),
        ({"decoder": "gpu"}, "decoder is 'gpu'"),
        ({"decoder": "device", "beam": 5000}, "beam is 5000; it may be 4096 at most"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message: str):
    with pytest.raises(SettingError, match=message):
        make_request(**arguments)


def test_arrays_are_lists_of_words_and_phrases():
    request = make_request(lexicon=np.array(["the", "cat"]), hotwords=np.array(["my cat", "zorg"]))
    assert request is not None
    assert request.lexicon == ("the", "cat")
    assert request.hotwords == ("my cat", "zorg")


def test_of_a_directory_no_more_is_looked_at_than_a_decoder_has(tmp_path: Path):
    folder = tmp_path / "language_model" / "other"
    folder.mkdir(parents=True)
    (folder / "file").write_text("")
    key = Request(lm=tmp_path).key
    assert str(folder / "file") not in str(key)
    (tmp_path / "language_model" / "lm.arpa").write_text("")
    assert Request(lm=tmp_path).key != key


def test_nothing_asked_for_is_greedy_and_anything_is_a_search():
    assert make_request() is None
    for asked in ({"beam": 3}, {"lm": "a.arpa"}, {"hotwords": ["a"]}, {"num_best": 2}, {"decoder": "device"}):
        assert make_request(**asked) is not None


def test_one_language_model_is_not_for_two_languages():
    request = make_request(lm="eng.arpa")
    assert request is not None
    with pytest.raises(LanguageModelError, match="one language model for 2 languages; give one each"):
        request.materials(["eng", "deu"], lambda tag: tag)
    request = make_request(lm={"eng": None})
    assert request is not None
    with pytest.raises(LanguageModelError, match="no entry for 'deu', only for 'eng'"):
        request.materials(["eng", "deu"], lambda tag: tag)
    request = make_request(lm={})
    assert request is not None
    with pytest.raises(LanguageModelError, match="lm is an empty mapping"):
        request.materials(["eng"], lambda tag: tag)

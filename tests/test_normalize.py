"""Normalisation of text is that of MMS's data preparation, and every word of the original is found again.

The expected texts of GOLDEN and the digests of SWEEPS are what fairseq's examples/mms/data_prep/text_normalization.py
gives for them; ``sweep`` below makes the text of a digest.
"""

import hashlib
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_jax.errors import TextError
from mms_jax.text.normalize import STAR, SpokenWord, normalize, spoken_words

GOLDEN = [
    ("Hello, World!  It's 5 o’clock.", "eng", "hello world it's o'clock"),
    ("l’ami’s ‘house’ dogs’ ’tis", "eng", "l ami's house dogs tis"),
    ("He spoke (Sam 23:17) and (quietly) left", "eng", "he spoke and quietly left"),
    ("a (b\n3) c) d (4", "eng", "a c d"),
    ("(((((1)2)", "eng", ""),
    ("mother-in-law – and — so ― on", "eng", "mother-in-law – and — so on"),
    ("1984", "eng", "1984"),
    (" 1984", "eng", ""),
    ("1984.", "eng", ""),
    ("in 1984 2nd 3 4 5th 1-2 ½ Ⅳ ⅳ 10", "eng", "in 2nd 5th 1-2 iv iv"),
    ("&lt;b&gt; A&nbsp;B &amp; &LT;", "eng", "b a b amp"),
    ("Ｆｕｌｌ（３）ＷＩＤＴＨ， ok１ １２", "jpn", "full width ok1"),
    ("今日は、いい天気です。「はい」と言った・々ー", "jpn", "今日は いい天気です はい と言った"),
    ("नमस्ते। आप कैसे हैं॥ १२३ तीन", "hin", "नमस्ते आप कैसे हैं तीन"),
    ("ٱلْحَمْدُ لِلَّهِ، رَبِّ؟ ١٢٣ ۱۲۳", "ara", "الحمد لله رب ١٢٣"),
    ("ٱبٱ", "urd", "ابا"),
    ("שָׁלוֹם עֲלֵיכֶם־הם", "heb", "שלום עליכם הם"),
    ("שָׁלוֹם־הם", "eng", "שָׁלוֹם הם"),
    ("ก\u200dข ก็ๆ มาก", "tha", "ก ข ก็ มาก"),
    ("ก\u200dข", "eng", "ก\u200dข"),
    ("сайн\xadуу Юу", "mon", "сайнуу юу"),
    ("сайн\xadуу", "khk", "сайнуу"),
    ("сайн\xadуу", "rus", "сайн\xadуу"),
    ("ΟΔΟΣ ΣΑΣ· ΤΙ; Σ", "ell", "οδος σας τι σ"),
    ("İSTANBUL Iğdır", "tur", "i̇stanbul iğdır"),
    ("Բարև՜ աշխարհ։ ո՞վ", "hye", "բարեւ աշխարհ ո վ"),
    ("ሰላም፡ልዑል። ፲", "amh", "ሰላም ልዑል ፲"),
    ("ကျွန်တော်၊ ၁၂ သည်။", "mya", "ကျွန်တော် သည်"),
    ("ខ្ញុំ។ ១២ ៗ", "khm", "ខ្ញុំ"),
    ("a\u200bb\u200cc\u200ed\u202ae", "eng", "abcde"),
    ("x\ue003y\uf7e8z � \x81 ok\x85next\u3000line", "eng", "x y z ok next line"),
    ("ﷺ ﬁne ´x ½", "eng", "صلى الله عليه وسلم fine ́x"),
    ("\ufeffbom", "eng", "\ufeffbom"),
    ("", "eng", ""),
    (" \n\t ", "eng", ""),
    ("!?.", "eng", ""),
    ("Straße ÉCOLE é", "fra", "straße école é"),
    ("💡 idea 👍🏽", "eng", "💡 idea 👍🏽"),
    ("٣٤ ৩৪ ๓๔ 3", "eng", "٣٤ ๓๔"),
    ("a\xadb", "jvn", "a\xadb"),
]
# Of normalize() of every character known to Unicode 3.2 (whose properties no later version changes) within a word, and
# as a word, one text a line.
SWEEPS = {
    "eng": "a489aaca6a7a31d3ab521f80a105268084b2c036372c5d4275edcd1696b9f038",
    "heb": "604498629dfef9d1908cbc64f4d9a0eb5ed6ae8be773da77353f3334d96629fb",
    "mon": "7f55bf94315256bc2c3899a8c1aad47c8ff88ba5b1cdae71525a0821234de72e",
    "tha": "4b885346b6f0f0311aec333164949264f4f42e9a2eaeb539fea1a45f244e688b",
}
MEGABYTE = 1_000_000  # characters
MAX_SECONDS = 5.0  # for a megabyte; it takes 1 s, and anything quadratic takes hours
# What the steps look at, so that random text meets all of them: brackets, digits of several scripts, apostrophes,
# escapes, letters that NFKC or lower case make longer, marks, and what is white space to Python alone.
PIECES = [
    *"aB()[]12 3\n\t’‘‛'٣१०.,-—٪Σσ́´ﷺⅣ½ıİßκ中ნកا",
    "ٱ",
    "&lt;",
    "&nbsp",
    "\u200b",
    "\u200d",
    "\x85",
    "\x1c",
    "\u3000",
]
LANGUAGES = [None, "eng", "ara", "heb", "jav", "khk", "tha", "uig-script_arabic"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
)


def sweep(language: str) -> str:
    digest = hashlib.sha256()
    for char in map(chr, range(1, 0x110000)):
        if unicodedata.ucd_3_2_0.category(char) not in ("Cn", "Cs"):
            digest.update(normalize(f"a{char}b {char} c", language=language).encode() + b"\n")
    return digest.hexdigest()


@pytest.mark.parametrize(("text", "language", "expected"), GOLDEN)
def test_text_is_normalised_as_by_the_reference(text, language, expected):
    assert normalize(text, language=language) == expected


@pytest.mark.parametrize("language", SWEEPS)
def test_every_character_becomes_what_the_reference_makes_of_it(language):
    assert sweep(language) == SWEEPS[language]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"lower_case": False}, "Psalm A Ὀδός"),
        ({"remove_numbers": False}, "psalm a 23 ὀδός"),
        ({"remove_brackets": True}, "psalm ὀδός"),
    ],
)
def test_each_setting_does_what_the_reference_does(setting, expected):
    assert normalize("Psalm (A) 23 (v. 3) Ὀδός", language="eng", **setting) == expected


def test_javanese_loses_accents_and_nothing_else():
    assert normalize("Wis é sèlêh, Ngajogya 3! Ø ꦗꦮ 한 ё", language="jav") == "wis e seleh ngajogya ø ꦗꦮ 한 е"


def test_a_tag_has_the_rules_of_the_language_it_starts_with():
    text = "сайн\u00adуу"
    assert normalize(text, language="mon-script_cyrillic") == normalize(text, language="mon") == "сайнуу"
    assert normalize(text, language="monx") == normalize(text) == text


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from(LANGUAGES))
def test_words_are_those_of_the_original_and_their_spoken_forms_the_normalised_text(text, language):
    words = spoken_words(text, language=language, romanized=False)
    assert [word.original for word in words] == text.split()
    assert " ".join(word.spoken for word in words if word.spoken) == normalize(text, language=language)
    assert all(word.spoken == " ".join(word.spoken.split()) for word in words)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["Дом,", "Σ’ς", "(3", "４)", "a-b", "नमस्ते।", "ሰላም፡ሰላም", "12", "…", "中文"]), max_size=12)
)
def test_romanised_words_have_only_the_letters_of_the_aligner(written):
    words = spoken_words(" ".join(written), language="ell", romanized=True)
    assert [word.original for word in words] == written
    plain = spoken_words(" ".join(written), language="ell", romanized=False)
    for word, normal in zip(words, plain, strict=True):
        assert set(word.spoken) <= set("abcdefghijklmnopqrstuvwxyz' ")
        assert word.spoken == " ".join(word.spoken.split())
        assert bool(word.spoken) == any(map(str.isalpha, normal.spoken))


def test_each_word_keeps_what_is_spoken_of_it():
    text = "“My mother-in-law’s   (Sam\n23:17) 40 l’ami’s and/or . <star> end!”"
    assert spoken_words(text, language="eng", romanized=False) == [
        SpokenWord("“My", "my"),
        SpokenWord("mother-in-law’s", "mother-in-law's"),
        SpokenWord("(Sam", ""),
        SpokenWord("23:17)", ""),
        SpokenWord("40", ""),
        SpokenWord("l’ami’s", "l ami's"),
        SpokenWord("and/or", "and or"),
        SpokenWord(".", ""),
        SpokenWord(STAR, STAR),
        SpokenWord("end!”", "end"),
    ]
    romanized = spoken_words(text, language="eng", romanized=True)
    assert [word.spoken for word in romanized[:2]] == ["my", "mother in law's"]
    assert romanized[8] == SpokenWord(STAR, STAR)


def test_a_star_within_a_word_is_text():
    assert spoken_words("a<star> <STAR>", language=None, romanized=False) == [("a<star>", "a star"), ("<STAR>", "star")]


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Привет, мир!", "rus", ["privet", "mir"]),
        ("नमस्ते दुनिया।", "hin", ["namaste", "duniyaa"]),
        ("안녕하세요 세계", "kor", ["annyeonghaseyo", "segye"]),
        ("第二十三章 好", "cmn", ["di zhang", "hao"]),  # uroman spells 二十三 as 23, and digits are no letters
        ("Ḥāfiẓ ñandú", None, ["hafiz", "nandu"]),
        ("3 III ۳", "fas", ["", "iii", ""]),
    ],
)
def test_romanised_text_is_what_the_reference_pipeline_aligns(text, language, expected):
    assert [word.spoken for word in spoken_words(text, language=language, romanized=True)] == expected


def test_uroman_has_the_rules_of_the_languages_that_the_reference_names_and_of_no_other():
    written = "Игорь щ"
    russian, ukrainian, unnamed, tajik = (
        [word.spoken for word in spoken_words(written, language=language, romanized=True)]
        for language in ("rus", "ukr-x", None, "tgk")
    )
    assert russian != ukrainian
    assert unnamed == tajik


@pytest.mark.parametrize("text", [None, b"text", 3, ["a"]])
def test_what_is_no_str_is_refused_by_type(text):
    with pytest.raises(TextError, match=f"got {type(text).__name__}"):
        normalize(text)
    with pytest.raises(TextError, match=f"got {type(text).__name__}"):
        spoken_words(text, language=None, romanized=False)


@pytest.mark.parametrize(("text", "culprit"), [("ab\ud800c", "surrogate.*character 2"), ("a\0b", "NUL at character 1")])
def test_text_that_is_no_text_is_refused_with_the_place(text, culprit):
    with pytest.raises(TextError, match=culprit):
        normalize(text)
    with pytest.raises(TextError, match=culprit):
        spoken_words(text, language="eng", romanized=True)


@pytest.mark.parametrize(
    "unit", ["(", "(1", "()", "’", "a’", "1", "1 ", " ", "&lt;", "e\u0301\u0316", "The House (3) l’ami, ", "한"]
)
def test_a_megabyte_takes_seconds(unit):
    text = (unit * MEGABYTE)[:MEGABYTE]
    started = time.process_time()
    normalize(text, language="jav", remove_brackets=True)
    spoken_words(text, language=None, romanized=False)
    assert time.process_time() - started < MAX_SECONDS


def test_a_repeated_word_is_romanised_once():
    text = "Дом стоит на горе, " * (MEGABYTE // 20)
    started = time.process_time()
    words = spoken_words(text, language="rus", romanized=True)
    assert time.process_time() - started < MAX_SECONDS  # uroman would take 40 s for them all
    assert {word.spoken for word in words} == {"dom", "stoit", "na", "gore"}

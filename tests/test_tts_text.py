"""The text front end of synthesis: what is said, what is dropped, and what is refused with a reason."""

import gc
import json
import shutil
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uroman

from mms_jax.errors import TextError, VocabularyError
from mms_jax.files import read_json
from mms_jax.text import romanize as romanize_module
from mms_jax.text.added_tokens import AddedToken
from mms_jax.text.romanize import ROMANIZED_LANGUAGES, romanize
from mms_jax.text.tts import EncodedText, VitsTokenizer

# The symbols of facebook/mms-tts-eng in order of id (transformers' own tests hold them); of mms-tts-kor those that the
# published ids of a sentence tell, "?", "@" and the capitals standing for the rest.
ENGLISH = {symbol: id_ for id_, symbol in enumerate("k'zyudhesw–3cp-1jmi flo0bra42n_xvtq56g")}
KOREAN = {symbol: id_ for id_, symbol in enumerate("u?@wsAyaBiCDEbFGnlHIJ em")}
PUBLISHED = {"add_blank": True, "is_uroman": False, "normalize": True, "phonemize": False, "unk_token": "<unk>"}
PUBLISHED |= {"clean_up_tokenization_spaces": True, "model_max_length": 10**30, "tokenizer_class": "VitsTokenizer"}
MANY = 50_000  # characters


def english(**settings) -> VitsTokenizer:
    return VitsTokenizer(ENGLISH, **{"language": "eng", "phonemize": False, "pad_token": "k", **settings})


def from_files(folder: Path, vocab, config, **legacy) -> VitsTokenizer:
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    return VitsTokenizer.from_files(folder / "vocab.json", tokenizer_config=config, **legacy)


def from_directory(folder: Path) -> VitsTokenizer:
    return VitsTokenizer.from_files(
        folder / "vocab.json", tokenizer_config=read_json(folder / "tokenizer_config.json", error=VocabularyError)
    )


def test_the_published_ids_of_english_sentences():
    """Those that transformers' tests hold for facebook/mms-tts-eng."""
    letters = [9, 7, 19, 4, 8, 7, 19, 0, 19, 26, 8, 19, 22, 4, 25, 19, 13, 26, 5, 5, 18, 29, 37, 19, 33, 22, 0, 7, 29]
    encoded = english().encode("We use k as our padding token")
    assert encoded.ids[1::2] == tuple(letters)
    assert encoded.ids[::2] == (0,) * 30
    fox = [33, 6, 7, 19, 34, 4, 18, 12, 0, 19, 24, 25, 22, 9, 29, 19, 20, 22, 31, 19, 16, 4, 17, 13, 8]
    fox += [19, 22, 32, 7, 25, 19, 33, 6, 7, 19, 21, 26, 2, 3, 19, 5, 22, 37]
    encoded = english().encode("The quick brown fox! Jumps over the lazy dog...")
    assert encoded.ids[1::2] == tuple(fox)
    assert encoded == EncodedText(encoded.ids, "the quick brown fox jumps over the lazy dog", "!...", romanized=False)


def test_the_published_ids_of_a_korean_sentence():
    """Those that transformers' tests hold for mms-tts-kor, whose symbol 0 is u."""
    ids = [9, 13, 3, 7, 21, 23, 0, 4, 22, 0, 16, 21, 9, 17, 9, 6, 7]
    tokenizer = VitsTokenizer(KOREAN, language="kor", phonemize=False, is_uroman=True)
    encoded = tokenizer.encode("이봐 무슨 일이야")
    assert encoded.ids[1::2] == tuple(ids)
    assert (encoded.normalized_text, encoded.dropped, encoded.romanized) == ("ibwa museun iliya", "", True)
    assert not tokenizer.encode("ibwa").romanized


@pytest.mark.parametrize("pad_token", ["k", "<pad>"])
@pytest.mark.parametrize("text", ["k", "kk", "kat", "lak", "akkb", "k k", "hakkk kok", "a", "we use k"])
@pytest.mark.parametrize("add_blank", [True, False])
def test_the_letter_that_is_the_blank_survives_decoding(text, pad_token, add_blank):
    tokenizer = english(pad_token=pad_token, add_blank=add_blank)
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == text
    if not add_blank:
        assert ids == tuple(ENGLISH[char] for char in text)


@pytest.mark.parametrize("pad_token", ["k", "<pad>"])
@pytest.mark.parametrize("text", ["?a", "a?", "??", "k?", "?k", "a?k k", "<unk>b", "a<unk>", "a<unk>b", "<unk><unk>k"])
def test_an_unknown_character_brings_no_letter_into_the_decoded_text(text, pad_token):
    tokenizer = VitsTokenizer({**ENGLISH, "<unk>": 38}, phonemize=False, pad_token=pad_token)
    assert tokenizer.decode(tokenizer.encode(text, normalize=False).ids) == text.replace("?", "<unk>")


def test_a_padding_letter_gets_no_blanks_of_its_own():
    """transformers cuts it out first; Meta's code would give 0 0 0 26 0 33 0."""
    assert english().encode("kat").ids == (0, 0, 26, 0, 33, 0)
    assert english(pad_token="<pad>").encode("kat").ids == (0, 0, 0, 26, 0, 33, 0)


@pytest.mark.parametrize("ids", [[], [0]])
def test_blanks_alone_decode_to_no_text(ids):
    assert english(pad_token="<pad>").decode(ids) == ""


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([5, 6], "the ids have no blank at 0"),
        ([0, 5], "the ids have no blank at 2"),
        ([0, 5, 6], "the ids have no blank at 2"),
        ([0, 99, 0], "no symbol has the id 99; ids go from 0 to 38"),
        ([0, -1, 0], "no symbol has the id -1"),
        ([[0, 5, 0]], r"ids must be \[T\] integers, got int64\[1, 3\]"),
        ([0.0, 5.0, 0.0], r"ids must be \[T\] integers, got float64"),
    ],
)
def test_ids_that_no_text_has_are_not_decoded(ids, reason):
    with pytest.raises(TextError, match=f"^{reason}"):
        english().decode(ids)


# The vocabulary of transformers' own tests: both letters of Romanian, and the special tokens among the symbols.
HUGGING = dict(ENGLISH) | {token: id_ for id_, token in enumerate(["ț", "ţ", "<", ">", "|", "<pad>", "<unk>"], 38)}


def test_letters_are_lowered_and_the_rest_dropped_by_name():
    text = "VITS; is a model for t-t-s!"
    tokenizer = VitsTokenizer(HUGGING, phonemize=False)
    encoded = tokenizer.encode(text)
    assert (encoded.normalized_text, encoded.dropped) == ("vits is a model for t-t-s", ";!")
    assert tokenizer.decode(encoded.ids) == "vits is a model for t-t-s"
    raw = tokenizer.encode(text, normalize=False)
    assert (raw.normalized_text, raw.dropped) == (text, "")
    assert tokenizer.decode(raw.ids) == "<unk><unk><unk><unk><unk> is a model for t-t-s<unk>"
    assert replace(tokenizer, normalize=False).encode(text) == raw
    assert replace(tokenizer, normalize=False).encode(text, normalize=True) == encoded


@pytest.mark.parametrize("normalize", [True, False])
def test_romanian_has_one_letter_for_both_commas_and_cedillas(normalize):
    romanian = VitsTokenizer(HUGGING, language="ron", phonemize=False)
    assert romanian.encode("vițs", normalize=normalize).normalized_text == "viţs"
    assert replace(romanian, language="eng").encode("vițs", normalize=normalize).normalized_text == "vițs"
    assert romanian.encode("VIȚS").normalized_text == "viţs"


def test_an_entry_of_the_vocabulary_keeps_its_case_and_the_first_one_counts():
    symbols = ["Ab", "A", "a", "b", "B", "ß", "Q", " "]
    tokenizer = VitsTokenizer({symbol: id_ for id_, symbol in enumerate(symbols)}, phonemize=False)
    assert tokenizer.encode("AB Ab aB Q q ẞ X").normalized_text == "AB Ab aB Q  ß"
    assert tokenizer.encode("AB Ab aB Q q ẞ X").dropped == "qx"
    tokenizer = VitsTokenizer({symbol: id_ for id_, symbol in enumerate(["CD", "CDE", *"CDde"])}, phonemize=False)
    assert tokenizer.encode("CDE").normalized_text == "CDe"  # by "CDE" the E would stay, which no symbol is


def test_white_space_at_the_ends_is_neither_said_nor_reported():
    encoded = english().encode("\n\t a\nb! \u3000")
    assert (encoded.normalized_text, encoded.dropped) == ("ab", "\n!")
    assert english().encode("! a !").normalized_text == "a"  # also what only dropping brings to the ends


NOTHING = {
    "": "'' is empty",
    " \t\n\u3000": "is empty",
    "!?": "'!', '?' dropped; the symbols of this checkpoint for 'eng' are 'k', \"'\", 'z'",
    "你好🙂": "'你', '好', '🙂' dropped",
    "\x00": r"'\x00' dropped",
    "\ud800\udc00": r"'\ud800', '\udc00' dropped",
    "مرحبا": "'م', 'ر'",
    "\u0301" * MANY: "dropped",
    "".join(map(chr, range(0x4E00, 0x6000))): "'一', '丁'",
}


@pytest.mark.parametrize("text", NOTHING, ids=range(len(NOTHING)))
def test_nothing_to_say_is_an_error_that_names_what_was_dropped(text):
    with pytest.raises(TextError) as caught:
        english(source="here/vocab.json").encode(text)
    message = str(caught.value)
    assert message.startswith("nothing to say: ")
    assert NOTHING[text] in message
    assert message.endswith(" is empty" if not text.strip() else " (here/vocab.json)")
    assert len(message) < 500
    with pytest.raises(TextError):
        english(source="here/vocab.json").encode(text, normalize=False)


@pytest.mark.parametrize("text", [None, b"abc", 5, ["abc"]])
def test_only_text_is_spoken(text):
    with pytest.raises(TextError, match=f"^a text to speak must be a str, got {type(text).__name__}$"):
        english().encode(text)


def test_without_normalisation_every_character_needs_a_symbol_with_an_embedding():
    """<unk> is id 38 in the published added_tokens.json, and the embedding has rows 0 to 37."""
    published = english(added_tokens=(AddedToken("<unk>", 38),))
    with pytest.raises(TextError, match=r"^no symbol for 'A', '!'; remove it"):
        published.encode("AbA!", normalize=False)
    with pytest.raises(TextError, match="no symbol for '<unk>'"):
        published.encode("a<unk>b", normalize=False)
    assert published.unk_id is None
    assert VitsTokenizer(HUGGING, phonemize=False).encode("A", normalize=False).ids == (0, HUGGING["<unk>"], 0)


@pytest.mark.parametrize("piece", ["a", "kA", "é", "\0a", "🙂a", "<unk", "a\u0301", "\ud800a", "אa", "K"])
def test_a_text_of_50000_characters_is_encoded_whole(piece):
    text = "a" + piece * (MANY // len(piece))
    encoded = english().encode(text)
    spoken = "".join(char for char in text.lower() if char in ENGLISH)
    assert encoded.normalized_text == spoken
    assert english().decode(encoded.ids) == spoken
    assert len(encoded.dropped) == len(text) - len(spoken)


def test_entries_are_looked_up_by_their_first_character():
    """Else the time is that of the text times that of the vocabulary."""
    tokenizer = VitsTokenizer({chr(0x4E00 + id_): id_ for id_ in range(20_000)}, phonemize=False)
    assert max(map(len, tokenizer._cased.values())) <= 2  # two special tokens begin with "<"
    assert tokenizer.encode("一" * MANY).ids == (0,) * (2 * MANY + 1)


@pytest.mark.parametrize("stated", [{"phonemize": True}, {}])
def test_phonemes_are_never_made_up(tmp_path, stated):
    """The key's absence means true in transformers."""
    config = {key: value for key, value in PUBLISHED.items() if key != "phonemize"} | stated
    tokenizer = from_files(tmp_path, ENGLISH, config)
    for normalize in (None, True):
        with pytest.raises(TextError, match=r"reads phonemes.* pass espeak's as text with normalize=False"):
            tokenizer.encode("hello", normalize=normalize)
    assert tokenizer.encode("hello", normalize=False).normalized_text == "hello"
    with pytest.raises(TextError, match="no symbol for 'ə'"):
        tokenizer.encode("həllo", normalize=False)


@pytest.mark.parametrize("language", sorted(ROMANIZED_LANGUAGES))
def test_a_romanised_language_must_say_so_itself(tmp_path, language):
    silent = {key: value for key, value in PUBLISHED.items() if key != "is_uroman"} | {"language": language}
    with pytest.raises(VocabularyError, match=rf"vocab\.json: is_uroman in tokenizer_config\.json .* for '{language}'"):
        from_files(tmp_path, KOREAN, silent)
    for said in (True, False):
        assert from_files(tmp_path, KOREAN, silent | {"is_uroman": said}).is_uroman is said
    assert from_files(tmp_path, KOREAN, silent | {"language": "hin"}).is_uroman is False


MALFORMED = {
    "duplicate id": ({"a": 0, "b": 0}, {}, "'a' and 'b' have the same id 0"),
    "hole": ({"a": 0, "b": 2}, {}, "no token has the id 1, but 'b' has 2"),
    "not from 0": ({"a": 1, "b": 2}, {}, "no token has the id 0"),
    "text id": ({"a": "0"}, {}, "the id of 'a' must be an integer"),
    "boolean id": ({"a": False}, {}, "the id of 'a' must be an integer"),
    "negative id": ({"a": -1}, {}, "the id of 'a' must be an integer >= 0"),
    "list": (["a"], {}, "holds a list, expected an object"),
    "empty": ({}, {}, "expected a JSON object"),
    "nested": ({"eng": {"a": 0}}, {}, "the id of 'eng' must be an integer >= 0, got dict"),
    "empty symbol": ({"a": 0, "": 1}, {}, "the symbol with the id 1 is empty"),
    "huge symbol": ({"a" * 10_000: 0}, {}, "aaa…"),
    "other class": ({"a": 0}, {"tokenizer_class": "BertTokenizer"}, "tokenizer_class in tokenizer_config.json must be"),
    "split specials": ({"a": 0}, {"split_special_tokens": True}, "split_special_tokens"),
    "no switch": ({"a": 0}, {"add_blank": "yes"}, "add_blank in tokenizer_config.json must be true or false"),
    "null switch": (
        {"a": 0},
        {"phonemize": None},
        "phonemize in tokenizer_config.json must be true or false, got None",
    ),
    "language": ({"a": 0}, {"language": 3}, "language in tokenizer_config.json must be a language code or null"),
    "pad token": ({"a": 0}, {"pad_token": 5}, "pad_token in tokenizer_config.json must be a token, got 5"),
    "extras": ({"a": 0}, {"extra_special_tokens": "<x>"}, "extra_special_tokens in"),
    "added list": ({"a": 0}, {"added_tokens_decoder": []}, "added_tokens_decoder in tokenizer_config.json must be"),
    "added id": ({"a": 0}, {"added_tokens_decoder": {"x": {"content": "b"}}}, "tokens by their ids, got 'x'"),
    "added token": ({"a": 0}, {"added_tokens_decoder": {"1": "b"}}, "tokens by their ids, got 'b'"),
    "added content": ({"a": 0}, {"added_tokens_decoder": {"1": {}}}, "added_tokens_decoder in"),
    "two ids": ({"a": 0}, {"added_tokens_decoder": {"1": {"content": "a"}}}, "'a' has the id 0 there and 1"),
    "far id": ({"a": 0}, {"added_tokens_decoder": {"9": {"content": "b"}}}, "no token has the id 1"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_by_name_and_key(tmp_path, case):
    vocab, config, reason = MALFORMED[case]
    with pytest.raises(VocabularyError) as caught:
        from_files(tmp_path, vocab, PUBLISHED | config)
    message = str(caught.value)
    assert str(tmp_path / "vocab.json") in message
    assert reason in message
    assert len(message) < 600  # a huge key is not quoted whole


@pytest.mark.parametrize("content", [b'{"a": 0, "a": 1}', b'{"a": 0', b"\xff\xfe{"])
def test_an_unreadable_vocabulary_is_refused_by_name(tmp_path, content):
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(VocabularyError, match=r"vocab\.json: not valid JSON"):
        VitsTokenizer.from_files(tmp_path / "vocab.json", tokenizer_config=PUBLISHED)
    with pytest.raises(VocabularyError, match=r"nowhere\.json: cannot be read"):
        VitsTokenizer.from_files(tmp_path / "nowhere.json", tokenizer_config=PUBLISHED)


def test_a_model_must_have_a_row_for_every_symbol_but_not_for_appended_special_tokens(tmp_path):
    tokenizer = from_files(tmp_path, ENGLISH, PUBLISHED | {"pad_token": "k"}, added_tokens={"<unk>": 38})
    assert (tokenizer.size, tokenizer.pad_id) == (38, 0)
    tokenizer.check_model(38, source="here")
    with pytest.raises(VocabularyError, match=r"^here: vocab_size is 37, but .*vocab\.json gives 'g' the id 37"):
        tokenizer.check_model(37, source="here")
    grown = from_files(tmp_path, ENGLISH, PUBLISHED, added_tokens={"<unk>": 38, "<breath>": 39})
    assert grown.size == 40
    assert grown.encode("a<breath>b", normalize=False).ids == (0, 26, 0, 39, 0, 24, 0)
    assert VitsTokenizer(HUGGING).pad_id == HUGGING["<pad>"]


def test_what_is_saved_is_read_back(tmp_path):
    vocab = {"Ab": 0, "A": 1, "b": 2, "ţ": 3, "<x>": 4, " ": 5, "<": 6, ">": 7, "x": 8}
    config = PUBLISHED | {"language": "ron", "normalize": False, "pad_token": "A", "bos_token": "<x>", "eos_token": "b"}
    saved = from_files(tmp_path, vocab, config, added_tokens={"<y>": 9})
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "b"}')
    saved.save(tmp_path / "new")
    again = from_directory(tmp_path / "new")
    for field in ("language", "add_blank", "normalize", "phonemize", "is_uroman", "pad_token", "unk_token"):
        assert getattr(again, field) == getattr(saved, field)
    assert list(again.vocab.items()) == list(vocab.items())
    text = "AB Abț<x><y>b"
    assert again.encode(text, normalize=True) == saved.encode(text, normalize=True)
    assert again.encode("Abț<x><y>b").ids == saved.encode("Abț<x><y>b").ids
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tokenizer_config.json", "vocab.json"]


def test_the_language_decides_where_uroman_has_rules_for_it():
    assert romanize("Игорь") == romanize("Игорь", language="rus-script_cyrillic") == "Igor"
    assert romanize("Игорь", language="ukr") == romanize("Игорь", language="ukr-x") == "Yhor"
    ukrainian = VitsTokenizer(
        {char: id_ for id_, char in enumerate("Yhorig")}, language="ukr", is_uroman=True, phonemize=False
    )
    assert ukrainian.encode("игорь").normalized_text == "yhor".replace("y", "")
    assert replace(ukrainian, language=None).encode("игорь").normalized_text == "igor"


@pytest.fixture
def fresh():
    """No instance of uroman yet, and none of this test's left."""
    romanize_module._uroman.cache_clear()
    yield
    romanize_module._uroman.cache_clear()


def test_uroman_is_built_once_in_silence_and_the_collector_left_as_it_was(fresh, monkeypatch, capfd):
    for name in ("uroman", "uroman.uroman"):  # so that its import, too, runs under the tests' error for warnings
        monkeypatch.delitem(sys.modules, name)
    import uroman as again

    built = []
    monkeypatch.setattr(again, "Uroman", lambda original=again.Uroman: built.append(1) or original())
    texts = ["이봐", "ሰላም", "नमस्ते", "привет"] * 4
    results: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda at=at: results.__setitem__(at, romanize(texts[at]))) for at in range(len(texts))
    ]
    gc.disable()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert [results[at] for at in range(len(texts))] == ["ibwa", "salaame", "namaste", "privet"] * 4
    assert built == [1]
    assert capfd.readouterr() == ("", "")


def test_without_uroman_the_remedy_is_named(fresh, monkeypatch):
    tokenizer = VitsTokenizer(KOREAN, language="kor", phonemize=False, is_uroman=True)
    for broken in (None, types.ModuleType("uroman")):
        monkeypatch.setitem(sys.modules, "uroman", broken)
        with pytest.raises(TextError, match=r"needs the package uroman .*: pip install uroman"):
            tokenizer.encode("이봐")
    assert tokenizer.encode("ibwa").normalized_text == "ibwa"  # Latin letters do without it


@pytest.mark.parametrize(
    ("damaged", "content"), [("Scripts.txt", None), ("romanization-auto-table.txt", b"::s \xff"), ("*", None)]
)
def test_a_uroman_without_its_tables_is_refused(fresh, monkeypatch, tmp_path, damaged, content):
    """It says so on stderr only, and goes on with half the letters."""
    original, data = uroman.Uroman, tmp_path / "data"
    shutil.copytree(uroman.Uroman.default_data_dir(), data)
    for table in data.glob(damaged):
        table.unlink()
        if content is not None:
            table.write_bytes(content)
    monkeypatch.setattr(uroman, "Uroman", lambda: original(data_dir=data))
    with pytest.raises(TextError, match=r"uroman (is damaged|cannot be used).*reinstall it"):
        romanize("नमस्ते")
    assert gc.isenabled()


@pytest.mark.parametrize(("text", "reason"), [("三分之", "AttributeError"), ("한" + "1" * 5000, "ValueError")])
def test_a_text_that_uroman_fails_on_is_named(text, reason):
    with pytest.raises(TextError, match=f"{text[:5]}.*uroman fails on it .{reason}.* in words") as caught:
        romanize(text, language="zho")
    assert len(str(caught.value)) < 400
    assert romanize("한") == "han"  # and the next text is none the worse

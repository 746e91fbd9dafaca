"""Symbol ids equal those of the live ``VitsTokenizer``, for any text and vocabulary, from files old and new."""

import json
import types
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import pytest
import uroman
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import VitsTokenizer as LiveTokenizer
from transformers.models.vits import tokenization_vits

from mms_jax.errors import TextError
from mms_jax.text.tts import VitsTokenizer
from tests.test_tts_text import ENGLISH, KOREAN, PUBLISHED

# Romanian, Hindi and Arabic in the manner of MMS: the letters, marks and digits of the language in no special order.
ROMANIAN = "ăîoţrlmia enu-tscdpgbvfhzşjxkâyw'ț"
HINDI = "कखगघङचछजझञटठडढणतथदधनपफबभमयरलवशषसहअआइईउऊएऐओऔ ािीुूृेैोौ्ंँः़ॅॉ–'क़\u200d"
ARABIC = "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئىة \u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652'-"
LATIN = "e'abcdfghijklmnopqrstuvwxyz -"
# Entries of several characters and in capitals, entries that begin alike, special tokens spelled with symbols.
MIXED = [
    "Ab",
    "AB",
    "ABC",
    "A",
    "a",
    "B",
    "b",
    "c",
    "<unk>",
    "İ",
    "ß",
    "Ǆ",
    "sch",
    "Sch",
    "s",
    "h",
    " ",
    "<",
    ">",
    "u",
    "n",
    "k",
]


class Case(NamedTuple):
    """A checkpoint's text files, and a sentence in its language."""

    symbols: str | list[str] | dict[str, int]
    sentence: str
    config: dict


CASES = {
    "eng": Case(ENGLISH, "Hello - my dog Rex is CUTE; don’t kick 12 kk k", {"language": "eng"}),
    "ron": Case(ROMANIAN, "Și ȚĂRILE noastre au șapte mii de vițe, ţin minte.", {"language": "ron"}),
    "hin": Case(HINDI, "नमस्ते, मेरा कुत्ता क़्या प्यारा है! ABC १२", {"language": "hin"}),
    "ara": Case(ARABIC, "مَرْحَبًا، كلبي لطيف؟ Ok ١٢٣ ﷺ", {"language": "ara"}),
    "kor": Case(KOREAN, "이봐 무슨 일이야! MWE 3월 ㅋㅋ", {"language": "kor", "is_uroman": True}),
    "amh": Case(LATIN, "ሰላም፡ እንዴት ነህ? ፲፪ OK", {"language": "amh", "is_uroman": True}),
    # without a language, as transformers never tells uroman one
    "ara romanised": Case(LATIN, "مَرْحَبًا، كلبي لطيف؟ Ok ١٢٣ ﷺ", {"language": None, "is_uroman": True}),
    "capitals romanised": Case(LATIN + LATIN.upper(), "ПРИВЕТ Θεσσαλονίκη Юг, СССР", {"is_uroman": True}),
    "mixed": Case(MIXED, "AbABCabc SCHSchsch İSTANBUL ß ẞ ǄǅA <unk><UNK>ab <unkA>k", {"language": None}),
    "no blanks": Case(MIXED, "AbABCabc SCH <unk> k", {"add_blank": False, "normalize": False}),
}
PADDING = ["0", "<pad>"]  # the symbol with id 0, or a token that only the tokenizer has
FORMS = ["published", "saved"]
UROMAN_FAULTS = (AttributeError, ValueError)  # the live tokenizer lets them through
EXAMPLES = settings(max_examples=100)


@lru_cache
def live_uroman() -> Any:
    return uroman.Uroman()


@pytest.fixture(scope="module", autouse=True)
def _uroman_once():
    """The live tokenizer would build another instance for every text, 2 s each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization_vits, "ur", types.SimpleNamespace(Uroman=live_uroman))
        yield


def read(folder: Path) -> tuple[VitsTokenizer, LiveTokenizer]:
    """Both tokenizers, from the same files."""
    names = ("tokenizer_config", "special_tokens_map", "added_tokens")
    paths = {name: folder / f"{name}.json" for name in names}
    contents = {
        name: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None for name, path in paths.items()
    }
    return VitsTokenizer.from_files(folder / "vocab.json", **contents), LiveTokenizer.from_pretrained(folder)


def write(folder: Path, vocab, config, **files) -> Path:
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.json"):
        stale.unlink()
    for name, content in {"vocab": vocab, "tokenizer_config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@lru_cache
def both(name: str, padding: str, form: str) -> tuple[VitsTokenizer, LiveTokenizer]:
    """A case's tokenizers from the files Meta's checkpoints have, or from those that transformers 5 makes of them."""
    symbols, _, config = CASES[name]
    vocab = {symbol: id_ for id_, symbol in enumerate(dict.fromkeys(symbols))}
    pad_token = next(iter(vocab)) if padding == "0" else padding
    special = {"pad_token": pad_token, "unk_token": "<unk>"}
    appended = [token for token in special.values() if token not in vocab]
    added = {token: len(vocab) + at for at, token in enumerate(dict.fromkeys(appended))}
    folder = Path(mkdtemp())
    files = {"special_tokens_map": special, "added_tokens": added}
    write(folder, vocab, PUBLISHED | special | config, **files)
    if form == "saved":
        read(folder)[1].save_pretrained(folder / "saved")
        folder /= "saved"
        assert "added_tokens_decoder" in (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    return read(folder)


def live_ids(live, text: str, *, normalize: bool | None) -> list[int] | None:
    """The reference's ids; None where it has none, or ids that no embedding has."""
    prepared, _ = live.prepare_for_tokenization(text, normalize=normalize)
    ids = live(text, normalize=normalize).input_ids
    return ids if prepared.strip() and max(ids) < len(live.encoder) else None


def assert_equal(ours: VitsTokenizer, live, text: str, *, normalize: bool | None = None) -> None:
    try:
        wanted = live_ids(live, text, normalize=normalize)
    except UROMAN_FAULTS:
        wanted = None
    if wanted is None:
        with pytest.raises(TextError):
            ours.encode(text, normalize=normalize)
        return
    encoded = ours.encode(text, normalize=normalize)
    assert list(encoded.ids) == wanted
    normalizes = live.normalize if normalize is None else normalize
    spelled = live._preprocess_char(live.normalize_text(text) if normalizes else text)
    assert encoded.romanized == (live.is_uroman and not spelled.isascii())
    if encoded.romanized:
        spelled = live_uroman().romanize_string(spelled)
    dropped = [char for char in spelled.strip() if char not in live.encoder] if normalizes else ()
    assert encoded.dropped == "".join(dropped)
    if normalizes:
        assert ours.decode(encoded.ids) == encoded.normalized_text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("normalize", [None, True, False])
def test_a_sentence_of_the_language_has_the_live_ids(name, padding, form, normalize):
    ours, live = both(name, padding, form)
    assert_equal(ours, live, CASES[name].sentence, normalize=normalize)
    assert live_ids(live, CASES[name].sentence, normalize=True)


def texts(symbols) -> st.SearchStrategy[str]:
    """Texts of the symbols alone, the blank's letter being frequent; of these in either case; of anything."""
    exact = [*symbols, *[next(iter(symbols))] * (len(symbols) // 4)]
    cased = [*exact, *(symbol.upper() for symbol in exact), *(symbol.lower() for symbol in exact), " "]
    strange = ["<unk>", "<pad>", "<unk", "\n", "\0", "\u3000", "ț", "Ț", "이", "한", "ሰ", "三", "é", "½", "\u0301"]
    anything = st.characters(exclude_categories=())  # lone surrogates too
    wild = st.one_of(st.sampled_from(cased), st.sampled_from(cased), st.sampled_from(strange), anything)
    kinds = (st.sampled_from(exact), st.sampled_from(cased), wild)
    return st.one_of(*(st.lists(kind, min_size=1, max_size=24) for kind in kinds)).map("".join)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", CASES)
def test_any_text_has_the_live_ids(name, padding, form):
    ours, live = both(name, padding, form)

    @EXAMPLES
    @given(text=texts(CASES[name].symbols), normalize=st.sampled_from([None, True, False]))
    @example(text="", normalize=None)
    @example(text=" ", normalize=False)
    @example(text="三分之", normalize=None)
    def check(text, normalize):
        assert_equal(ours, live, text, normalize=normalize)

    check()


POOL = [*MIXED, *"Cdeéțţ-", "cA", "bc", "<x>", "\u00a0", "\t", "K"]


@st.composite
def tokenizers(draw):
    """A random vocabulary in random order, what the other files may say about its tokens, and a text for it."""
    vocab = draw(st.lists(st.sampled_from(POOL), min_size=2, unique=True))
    tokens = st.sampled_from([*vocab, "<pad>", "<unk>", "<x>"])
    config = {key: draw(st.booleans()) for key in ("add_blank", "normalize")}
    config |= {"phonemize": False, "language": draw(st.sampled_from(["ron", "eng", None]))}
    named = {key: draw(tokens) for key in ("pad_token", "unk_token", "eos_token") if draw(st.booleans())}
    new = draw(st.lists(st.sampled_from(["<new>", "ab", "q", "Aa"]), unique=True))
    added = {token: len(vocab) + at for at, token in enumerate(token for token in new if token not in vocab)}
    files = {"special_tokens_map": named, "added_tokens": added}
    if draw(st.booleans()):
        flags = st.fixed_dictionaries({flag: st.booleans() for flag in ("lstrip", "rstrip", "single_word")})
        ids = {token: id_ for id_, token in enumerate(vocab)} | added
        chosen = [*added, *draw(st.lists(st.sampled_from(vocab), unique=True, max_size=3))]
        declared = {str(ids[token]): {"content": token, "normalized": False, **draw(flags)} for token in chosen}
        config |= named | {"added_tokens_decoder": declared}
    text = draw(texts([*vocab, *added]))
    return {token: id_ for id_, token in enumerate(vocab)}, config, files, text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@settings(max_examples=250)
@given(built=tokenizers(), normalize=st.sampled_from([None, True, False]))
def test_any_vocabulary_gives_the_live_ids_and_is_saved_as_transformers_reads_it(folder, built, normalize):
    vocab, config, files, text = built
    ours, live = read(write(folder, vocab, config, **files))
    unspeakable = set(live.all_special_tokens) - set(vocab)  # no embedding has their ids

    def agree(one, other) -> bool:
        """Whether both say the same; False if neither can say it."""
        prepared, _ = other.prepare_for_tokenization(text, normalize=normalize)
        tokens = other.tokenize(text, normalize=normalize)
        unknown = any(token not in vocab and token not in other.added_tokens_encoder for token in tokens)
        if not prepared.strip() or unspeakable & {*tokens, *[other.unk_token] * unknown}:
            with pytest.raises(TextError):
                one.encode(text, normalize=normalize)
            return False
        assert list(one.encode(text, normalize=normalize).ids) == other(text, normalize=normalize).input_ids
        return True

    said = agree(ours, live)
    ours.save(folder)  # over the legacy files, which must not count any more
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<stale>"}', encoding="utf-8")
    (folder / "added_tokens.json").write_text('{"<stale>": 3}', encoding="utf-8")
    ours_again, live_again = read(folder)
    assert agree(ours, live_again) == agree(ours_again, live) == said

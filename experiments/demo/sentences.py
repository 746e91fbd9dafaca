"""Words and sentences for the demo checkpoint, with the test words held out before anything is synthesised.

Words come from Debian's word lists (packages wamerican-small, wamerican, wfrench, wngerman, wspanish); pronunciations
from espeak-ng. Of words that sound alike only one spelling stays (parler, parlez, parlé: nothing in the sound of a word
alone tells them apart), and a word's split is a hash of the word: no word of a dev or test sentence is in any training
sentence. Everyday words (`common_words.tsv`) win such ties, are always training words, and are drawn more often.

Counts of the words kept (train / dev / test): see the table in `train_demo.py`; print them with
    .venv/bin/python -m experiments.demo.sentences
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORD_LISTS = Path("/usr/share/dict")
COMMON_WORDS = Path(__file__).with_name("common_words.tsv")
MIN_LETTERS, MAX_LETTERS = 2, 11
HELD_OUT_PERCENT = {"dev": 2, "test": 3}
COMMON_SHARE = 0.15  # of the words of a training sentence
VOWELS = frozenset("aeiouyàâäáèéêëìíîïòóôöùúûüœ")


@dataclass(frozen=True)
class Language:
    """What espeak-ng calls a language, its alphabet, its word lists: held-out words come from the first one only."""

    voice: str
    letters: str
    word_lists: tuple[str, ...]
    capitalised: bool = False  # whether capitalised entries are ordinary words (German nouns) or names


LANGUAGES = {
    "eng": Language("en-us", "abcdefghijklmnopqrstuvwxyz", ("american-english-small", "american-english")),
    "fra": Language("fr-fr", "abcdefghijklmnopqrstuvwxyzàâçèéêëîïôùûœ", ("french",)),
    "deu": Language("de", "abcdefghijklmnopqrstuvwxyzßäöü", ("ngerman",), capitalised=True),
    "spa": Language("es", "abcdefghijklmnopqrstuvwxyzáéíñóúü", ("spanish",)),
}


@dataclass(frozen=True)
class Lexicon:
    """The words of one language by split; `common` is the everyday part of `train`."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    common: tuple[str, ...]


def split_of(word: str) -> str:
    """Split of a word that is not an everyday word, from the word alone: "train", "dev" or "test"."""
    bucket = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % 100
    if bucket < HELD_OUT_PERCENT["dev"]:
        return "dev"
    return "test" if bucket < sum(HELD_OUT_PERCENT.values()) else "train"


def usable_words(lines: Iterable[str], *, language: Language) -> list[str]:
    """Lower-cased words of a word list in the language's letters: no names, possessives, abbreviations."""
    words = dict.fromkeys(
        line.strip().lower() for line in lines if language.capitalised or line[:1].islower()
    )  # a dict keeps the list's order, which Debian fixes per package version
    alphabet = frozenset(language.letters)
    return [w for w in words if MIN_LETTERS <= len(w) <= MAX_LETTERS and alphabet.issuperset(w) and VOWELS & set(w)]


def pronunciations(words: Sequence[str], *, voice: str) -> list[str]:
    """espeak-ng phoneme mnemonics of each word spoken alone, stress marks included.

    Raises RuntimeError when espeak-ng does not answer one line per word.
    """
    text = "".join(f"{word}.\n" for word in words)  # the full stop keeps espeak-ng from joining lines into one clause
    command = ["espeak-ng", "-q", "-x", "-v", voice, "--stdin"]
    answer = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout.decode()
    sounds = [line.strip() for line in answer.splitlines() if line.strip()]
    if len(sounds) != len(words):
        raise RuntimeError(f"espeak-ng -v {voice} gave {len(sounds)} pronunciations for {len(words)} words")
    return sounds


def one_spelling_per_sound(words: Sequence[str], sounds: Sequence[str], *, preferred: frozenset[str]) -> list[str]:
    """Words with a sound of their own: of those that sound alike the preferred one, then the shortest, then the first.

    Words that espeak-ng reads in another language's voice, marked "(en)", or spells out (far more sounds than letters)
    are dropped.
    """
    chosen: dict[str, str] = {}
    for word, sound in sorted(zip(words, sounds, strict=True), key=lambda x: (x[0] not in preferred, len(x[0]), x[0])):
        plain = re.sub(r"[',_|!:;*]", "", sound)
        if "(" not in sound and len(plain) <= 1.5 * len(word) + 2:
            chosen.setdefault(sound, word)
    kept = frozenset(chosen.values())
    return [word for word in words if word in kept]


def read_common_words(code: str) -> tuple[str, ...]:
    """Everyday words of a language, from `common_words.tsv`."""
    rows = dict(line.split("\t") for line in COMMON_WORDS.read_text(encoding="utf-8").splitlines())
    return tuple(dict.fromkeys(rows[code].split()))


def build_lexicon(code: str) -> Lexicon:
    """Words of a language by split, from Debian's word lists: a pure function of the installed package versions."""
    language = LANGUAGES[code]
    common = frozenset(read_common_words(code))
    texts = [(WORD_LISTS / name).read_text(encoding="utf-8") for name in language.word_lists]
    lists = [usable_words(text.splitlines(), language=language) for text in texts]
    words = list(dict.fromkeys(word for some in (sorted(common), *lists) for word in some))
    words = one_spelling_per_sound(words, pronunciations(words, voice=language.voice), preferred=common)
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    ordinary = frozenset(lists[0])
    for word in words:
        split = "train" if word in common else split_of(word)
        if split == "train" or word in ordinary:  # a held-out word of the larger list is used nowhere
            splits[split].append(word)
    return Lexicon(**{k: tuple(v) for k, v in splits.items()}, common=tuple(w for w in words if w in common))


def load_lexicon(code: str, *, cache: Path) -> Lexicon:
    """`build_lexicon`, kept as JSON in the cache folder: pronouncing 200,000 words takes a minute or two."""
    path = cache / f"lexicon.{code}.json"
    if not path.exists():
        lexicon = build_lexicon(code)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(lexicon.__dict__, ensure_ascii=False), encoding="utf-8")
    return Lexicon(**{k: tuple(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()})


def sample_sentence(rng: np.random.Generator, *, lexicon: Lexicon, split: str, num_letters: int) -> str:
    """Words of one split drawn until they hold about `num_letters` letters; everyday words only among training ones."""
    words: tuple[str, ...] = getattr(lexicon, split)
    sentence: list[str] = []
    while not sentence or sum(map(len, sentence)) + 3 < num_letters:
        pool = lexicon.common if split == "train" and rng.random() < COMMON_SHARE else words
        sentence.append(pool[int(rng.integers(len(pool)))])
    return " ".join(sentence)


def main() -> None:
    """Print how many words each language has in each split."""
    for code in LANGUAGES:
        lexicon = load_lexicon(code, cache=Path(".work/demo"))
        print(code, {name: len(words) for name, words in lexicon.__dict__.items()})


if __name__ == "__main__":
    main()

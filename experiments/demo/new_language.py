"""Speech of a language that the demo model has never heard, as a data set folder: what `make demo-train` adapts it to.

    apt-get install espeak-ng witalian
    .venv/bin/python -m experiments.demo.new_language

writes .work/demo/ita/train and .work/demo/ita/test, each with Opus files and a metadata.csv (file_name, text). Words
are Debian's, drawn at random; no word of a test sentence is in any training sentence. Voices, rates and pitches are
those of `synthesize.py`. What is bundled, 7 minutes, was made by

    .venv/bin/python -m experiments.demo.new_language --output mms_jax/demo/ita --train 240 --test 40
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile

from experiments.demo.sentences import (
    WORD_LISTS,
    Language,
    Lexicon,
    one_spelling_per_sound,
    pronunciations,
    sample_sentence,
    split_of,
    usable_words,
)
from experiments.demo.synthesize import (
    PITCHES,
    RATES,
    SAMPLE_RATE,
    VARIANTS,
    WORD_GAPS,
    WORK,
    Utterance,
    synthesize_all,
)

CODE = "ita"
ITALIAN = Language("it", "abcdefghijklmnopqrstuvwxyzàèéìòù", ("italian",))
LETTERS = (6, 30)  # per sentence, about
CLIPS = {"train": 1000, "test": 100}
SEEDS = {"train": 11, "test": 12}
COMPRESSION = 0.9  # of libsndfile's Opus encoder, 0 best to 1 smallest: 4.5 kB a second


def build_lexicon() -> Lexicon:
    """The words of the list by split, one spelling of those that sound alike."""
    lines = (WORD_LISTS / ITALIAN.word_lists[0]).read_text(encoding="utf-8").splitlines()
    words = usable_words(lines, language=ITALIAN)
    words = one_spelling_per_sound(words, pronunciations(words, voice=ITALIAN.voice), preferred=frozenset())
    train = tuple(word for word in words if split_of(word) == "train")
    held_out = tuple(word for word in words if split_of(word) == "test")
    return Lexicon(train=train, dev=(), test=held_out, common=train)


def draw(rng: np.random.Generator, *, lexicon: Lexicon, split: str) -> Utterance:
    """A random sentence of a split in a random voice."""
    return Utterance(
        text=sample_sentence(rng, lexicon=lexicon, split=split, num_letters=int(rng.integers(*LETTERS))),
        voice=ITALIAN.voice + VARIANTS[int(rng.integers(len(VARIANTS)))],
        rate=int(rng.integers(*RATES)),
        pitch=int(rng.integers(*PITCHES)),
        word_gap=WORD_GAPS[int(rng.integers(len(WORD_GAPS)))],
    )


def write_split(folder: Path, *, lexicon: Lexicon, split: str, count: int) -> None:
    """Speak and write the clips of a split, and their texts."""
    rng = np.random.default_rng(SEEDS[split])
    utterances = [draw(rng, lexicon=lexicon, split=split) for _ in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("file_name", "text")]
    for index, (utterance, audio) in enumerate(zip(utterances, synthesize_all(utterances), strict=True)):
        name = f"{index:04}.opus"
        samples = audio.astype(np.float32) / 32768
        soundfile.write(
            folder / name, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION
        )
        rows.append((name, utterance.text))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=WORK / CODE)
    parser.add_argument("--train", type=int, default=CLIPS["train"], help="training clips")
    parser.add_argument("--test", type=int, default=CLIPS["test"], help="test clips")
    options = parser.parse_args()
    lexicon = build_lexicon()
    print({name: len(words) for name, words in lexicon.__dict__.items()})
    for split in CLIPS:
        write_split(options.output / split, lexicon=lexicon, split=split, count=getattr(options, split))
        files = sorted((options.output / split).glob("*.opus"))
        seconds = sum(soundfile.info(file).duration for file in files)
        size = sum(file.stat().st_size for file in files)
        print(f"{split}: {len(files)} clips, {seconds / 60:.1f} minutes, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

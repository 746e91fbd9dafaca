"""Synthesise the demo's speech with espeak-ng: several voices, rates, pitches and word gaps; 16 kHz, kept as int16.

    .venv/bin/python -m experiments.demo.synthesize

writes .work/demo/corpus/<language>.<split>.<count>/: audio.npy, all clips end to end, and clips.json, the text and
num_samples of each. About 12 ms of a core per clip, most of it espeak-ng starting up: 84,000 clips (40 h) take ten
minutes on two cores.
"""

import io
import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from experiments.demo.sentences import LANGUAGES, Lexicon, load_lexicon, sample_sentence

SAMPLE_RATE = 16_000
MAX_SECONDS = 3.6  # the longest training clip; longer ones are left out by the trainer
WORK = Path(".work/demo")
VARIANTS = ("", "+m1", "+m3", "+m4", "+m7", "+f1", "+f2", "+f3", "+f4")
RATES = (130, 185)  # words per minute
PITCHES = (35, 65)  # espeak-ng's 0 to 99
WORD_GAPS = (0, 1, 2, 3, 4, 5, 6)  # pauses between words, units of 10 ms at the default rate
LETTERS = (4, 40)  # per sentence, about; spaces not counted
TRAIN_CLIPS = {"eng": 24_000, "fra": 24_000, "deu": 24_000, "spa": 12_000}  # Spanish is spelled as it sounds: fewer
HELD_OUT_CLIPS = 200  # per language, in dev and in test
SPLIT_SEEDS = {"train": 1, "dev": 2, "test": 3, "clips": 4}


@dataclass(frozen=True)
class Utterance:
    """One thing to say, and everything that decides how it sounds."""

    text: str
    voice: str
    rate: int
    pitch: int
    word_gap: int


def draw_utterance(rng: np.random.Generator, *, code: str, lexicon: Lexicon, split: str) -> Utterance:
    """A random sentence of a split in a random voice; the same generator state gives the same utterance."""
    text = sample_sentence(rng, lexicon=lexicon, split=split, num_letters=int(rng.integers(*LETTERS)))
    return Utterance(
        text=text,
        voice=LANGUAGES[code].voice + VARIANTS[int(rng.integers(len(VARIANTS)))],
        rate=int(rng.integers(*RATES)),
        pitch=int(rng.integers(*PITCHES)),
        word_gap=WORD_GAPS[int(rng.integers(len(WORD_GAPS)))],
    )


def synthesize(utterance: Utterance) -> np.ndarray:
    """int16 [S] at 16 kHz: what espeak-ng says, silence at both ends trimmed to at most 50 ms.

    Raises subprocess.CalledProcessError when espeak-ng fails and ValueError when it says nothing.
    """
    u = utterance
    command = [
        "espeak-ng",
        "-v",
        u.voice,
        "-s",
        str(u.rate),
        "-p",
        str(u.pitch),
        "-g",
        str(u.word_gap),
        "--stdout",
        u.text,
    ]
    wav = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    audio = soxr.resample(audio, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(audio) > 0.01)
    if not loud.size:
        raise ValueError(f"espeak-ng said nothing for {u}")
    margin = SAMPLE_RATE // 20
    audio = audio[max(loud[0] - margin, 0) : loud[-1] + margin]
    return np.clip(np.round(audio * 32767), -32768, 32767).astype(np.int16)


def _synthesize_many(utterances: Sequence[Utterance]) -> list[np.ndarray]:
    return [synthesize(u) for u in utterances]


def synthesize_all(utterances: Sequence[Utterance], *, workers: int = 2) -> list[np.ndarray]:
    """`synthesize` over processes, in order."""
    chunks = [utterances[i : i + 50] for i in range(0, len(utterances), 50)]
    with ProcessPoolExecutor(workers) as pool:
        return [audio for chunk in pool.map(_synthesize_many, chunks) for audio in chunk]


def draw_corpus(code: str, *, split: str, lexicon: Lexicon, count: int) -> list[Utterance]:
    """`count` utterances of a split, seeded by the language and the split."""
    rng = np.random.default_rng([SPLIT_SEEDS[split], list(LANGUAGES).index(code)])
    return [draw_utterance(rng, code=code, lexicon=lexicon, split=split) for _ in range(count)]


@dataclass(frozen=True)
class Corpus:
    """Clips of one language and split, end to end in one int16 array; clip i is audio[starts[i] : starts[i + 1]]."""

    audio: np.ndarray
    starts: np.ndarray
    texts: tuple[str, ...]

    def clip(self, i: int) -> np.ndarray:
        """int16 [S]."""
        return self.audio[self.starts[i] : self.starts[i + 1]]

    @property
    def num_samples(self) -> np.ndarray:
        """int64 [clips]."""
        return np.diff(self.starts)


def write_corpus(directory: Path, *, clips: Sequence[np.ndarray], texts: Sequence[str]) -> None:
    """Write clips and their texts; the index comes last, so that a folder that has one is complete."""
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "audio.npy", np.concatenate(clips))
    index = [{"text": text, "num_samples": len(clip)} for clip, text in zip(clips, texts, strict=True)]
    (directory / "clips.json").write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def read_corpus(directory: Path) -> Corpus:
    """Read what `write_corpus` wrote, the audio memory-mapped."""
    index = json.loads((directory / "clips.json").read_text(encoding="utf-8"))
    starts = np.cumsum([0, *(row["num_samples"] for row in index)])
    return Corpus(np.load(directory / "audio.npy", mmap_mode="r"), starts, tuple(row["text"] for row in index))


def load_corpus(code: str, *, split: str, count: int, work: Path = WORK) -> Corpus:
    """The corpus of one language and split, synthesised on first use."""
    directory = work / "corpus" / f"{code}.{split}.{count}"
    if not (directory / "clips.json").exists():
        utterances = draw_corpus(code, split=split, lexicon=load_lexicon(code, cache=work), count=count)
        write_corpus(directory, clips=synthesize_all(utterances), texts=[u.text for u in utterances])
    return read_corpus(directory)


def main() -> None:
    """Synthesise every split of every language."""
    for code in LANGUAGES:
        for split, size in {"train": TRAIN_CLIPS[code], "dev": HELD_OUT_CLIPS, "test": HELD_OUT_CLIPS}.items():
            corpus = load_corpus(code, split=split, count=size)
            seconds = corpus.num_samples / SAMPLE_RATE
            print(
                f"{code} {split}: {len(corpus.texts)} clips, {seconds.sum() / 3600:.2f} h, {np.median(seconds):.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

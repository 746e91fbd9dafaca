"""How near forced alignment comes to word times that are known, and what an hour of audio takes.

    .venv/bin/python -m experiments.alignment_accuracy [--reach 1]
    .venv/bin/python -m experiments.alignment_accuracy --hour

espeak-ng says when each word starts and ends (espeak_events.py); no training saw the words, and the demo model aligns
them. Clips are aligned one by one, and end to end with silences of 0.1 to 1.5 s as one recording (its windows have
context), of which the text has a line for each clip: a clip starts with its first word and ends with its last.

    test words, reach 1 frames; boundaries: mean absolute error ms, shares within (--count 40)
                             number  error  50 ms 100 ms   bias of starts, of ends ms
    eng words of single clips    264   15.7  98.9%  99.6%   +0.2 -5.6
    eng words of a recording     264   16.4  98.9%  98.9%   -2.7 -5.0
    eng clips of a recording      80   17.5  97.5%  97.5%   -1.1 -6.4
    fra words of single clips    230   17.4 100.0% 100.0%   -1.0 +8.9
    fra words of a recording     230   17.8 100.0% 100.0%   -2.6 +9.4
    fra clips of a recording      80   18.6 100.0% 100.0%   -1.7 +9.6
    deu words of single clips    200   16.3  97.0% 100.0%   -1.4 -10.4
    deu words of a recording     200   18.0  97.5% 100.0%   -4.1 -11.1
    deu clips of a recording      80   17.9  96.2% 100.0%   -3.2 -11.7
    spa words of single clips    214   11.9 100.0% 100.0%   -6.2 -3.2
    spa words of a recording     214   13.0 100.0% 100.0%   -9.4 -3.8
    spa clips of a recording      80   13.7 100.0% 100.0%   -10.3 -6.2
    all words of single clips    908   15.4  99.0%  99.9%   -2.0 -2.4
    all words of a recording     908   16.3  99.1%  99.7%   -4.6 -2.4
    all clips of a recording     320   16.9  98.4%  99.4%   -4.1 -3.7

    --hour --count 100
    3596 s of audio, 3500 words, 28838 letters: 19.1 s;
    200 MB above the 771 MB of loading, the samples and a minute's alignment
    spa words of an hour        7000   13.5  99.8% 100.0%   -6.8 -4.4

Where a word begins. A model emits a letter inside its sound, so first frames are late and ends of last frames early.
Chosen on 595 words of the dev split, checked on 445 of the test split without French (mean absolute error, ms; shares
within 100 ms; bias of starts and ends), when a word reaches some frames of 20 ms into silence, and no further than its
middle:

    reach          dev                          test
    0        23.1  99.2%  +17.8 -20.4     25.0  99.2%  +16.9 -26.8
    0.5      18.4  99.6%   +8.6 -10.5     19.3  99.7%   +7.8 -16.8
    1        16.0  99.7%   -0.4  -0.8     15.7  99.9%   -1.2  -6.9    <- alignment.REACH
    2        19.6  99.7%  -13.6 +15.7     18.2 100.0%  -15.4 +10.8
    middle   91.9  81.4%  -23.3 +158      98.0  80.7%  -26.1 +168

1 is also best for English and German (dev 17.3) and for French and Spanish (dev 14.7) alone. The receptive field of a
frame, 25 ms from its start, would say 0.6. Whether the word delimiter is aligned or left out changes 0.1 to 0.4 ms
(better with it); it is aligned, since where a model hears it nothing else explains those frames.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import mms_jax
from experiments.demo.sentences import LANGUAGES, load_lexicon
from experiments.demo.synthesize import draw_utterance
from experiments.espeak_events import SAMPLE_RATE, SpokenWord, speak
from mms_jax.pipelines import alignment

CACHE = Path(".work/demo")
SEED = 2026
SILENCES = (0.1, 1.5)  # seconds between the clips of a long recording
NOISE = 1e-4  # of full scale, in the silences: digital silence is a case of its own
NEAR = (0.05, 0.1)  # seconds
HOUR = 3600.0


class Clip(NamedTuple):
    """A sentence and when its words sound."""

    samples: np.ndarray  # float32 [S]
    words: list[SpokenWord]

    @property
    def text(self) -> str:
        """The sentence."""
        return " ".join(word.text for word in self.words)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="sentences of each language")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="of words that no training saw")
    parser.add_argument("--reach", type=float, default=alignment.REACH, help="frames added to words on each side")
    parser.add_argument("--hour", action="store_true", help="an hour of audio instead: seconds and memory")
    options = parser.parse_args()
    alignment.REACH = options.reach
    asr = mms_jax.load_asr(mms_jax.DEMO_MODEL)
    if options.hour:
        hour(asr, draw_clips("spa", options.count, split=options.split))
        return
    print(f"{options.split} words, reach {options.reach:g} frames; boundaries: mean absolute error ms, shares within")
    print(f"{'':<24} {'number':>6} {'error':>6} {'50 ms':>6} {'100 ms':>6}   bias of starts, of ends ms")
    everything: dict[str, list[np.ndarray]] = {}
    for code in LANGUAGES:
        for name, errors in compare(asr, code, draw_clips(code, options.count, split=options.split)).items():
            print(row(f"{code} {name}", errors), flush=True)
            everything.setdefault(name, []).append(errors)
    for name, errors in everything.items():
        print(row(f"all {name}", np.concatenate(errors)))


def draw_clips(code: str, count: int, *, split: str) -> list[Clip]:
    """Sentences in random voices; those of which espeak-ng reports other words than it was given are left out."""
    lexicon = load_lexicon(code, cache=CACHE)
    rng = np.random.default_rng([SEED, list(LANGUAGES).index(code), split == "test"])
    clips: list[Clip] = []
    while len(clips) < count:
        said = draw_utterance(rng, code=code, lexicon=lexicon, split=split)
        try:
            speech = speak(said.text, voice=said.voice, rate=said.rate, pitch=said.pitch, word_gap=said.word_gap)
        except RuntimeError:
            continue
        clips.append(Clip(*speech))
    return clips


def compare(asr: mms_jax.SpeechRecognizer, code: str, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Errors in seconds, [n, 2] of starts and ends: of words of single clips; of words and clips of one recording."""
    singles = asr.align([clip.samples for clip in clips], [clip.text for clip in clips], language=code)
    alone = [
        (found.start - word.start, found.end - word.end)
        for clip, result in zip(clips, singles, strict=True)
        for found, word in zip(result.words, clip.words, strict=True)
    ]
    samples, words, segments = join(clips, np.random.default_rng(SEED))
    long = asr.align(samples, [clip.text for clip in clips], language=code)
    together = [(found.start - word.start, found.end - word.end) for found, word in zip(long.words, words, strict=True)]
    whole = [
        (found.start - start, found.end - end) for found, (start, end) in zip(long.segments, segments, strict=True)
    ]
    return {
        "words of single clips": np.array(alone),
        "words of a recording": np.array(together),
        "clips of a recording": np.array(whole),
    }


def join(clips: Sequence[Clip], rng: np.random.Generator) -> tuple[np.ndarray, list[SpokenWord], list]:
    """One recording with silences of random lengths, its words, and when each clip's first starts and last ends."""
    parts: list[np.ndarray] = []
    words: list[SpokenWord] = []
    segments = []
    moment = 0
    for clip in clips:
        silence = rng.normal(0, NOISE, int(rng.uniform(*SILENCES) * SAMPLE_RATE)).astype(np.float32)
        parts += [silence, clip.samples]
        offset = (moment + len(silence)) / SAMPLE_RATE
        words += [SpokenWord(text, start + offset, end + offset) for text, start, end in clip.words]
        segments.append((clip.words[0].start + offset, clip.words[-1].end + offset))
        moment += len(silence) + len(clip.samples)
    return np.concatenate(parts), words, segments


def row(name: str, errors: np.ndarray) -> str:
    """A line of the table."""
    size = np.abs(errors)
    shares = "".join(f" {np.mean(size <= near):>6.1%}" for near in NEAR)
    bias = errors.mean(axis=0) * 1e3
    return f"{name:<24} {errors.size:>6} {size.mean() * 1e3:>6.1f}{shares}   {bias[0]:+.1f} {bias[1]:+.1f}"


def hour(asr: mms_jax.SpeechRecognizer, clips: Sequence[Clip]) -> None:
    """Align an hour made of clips; prints seconds and the peak of memory above that of aligning a minute."""
    rng = np.random.default_rng(SEED)
    order: list[Clip] = []
    seconds = 0.0
    while seconds < HOUR:
        order.append(clips[int(rng.integers(len(clips)))])
        seconds += len(order[-1].samples) / SAMPLE_RATE + sum(SILENCES) / 2
    samples, words, _ = join(order, rng)
    texts = [clip.text for clip in order]
    part = 20
    asr.align(join(order[:part], rng)[0], texts[:part], language="spa")  # compiles
    before, start = peak(), time.perf_counter()
    result = asr.align(samples, texts, language="spa")
    took = time.perf_counter() - start
    errors = np.array(
        [(one.start - word.start, one.end - word.end) for one, word in zip(result.words, words, strict=True)]
    )
    print(f"{result.duration:.0f} s of audio, {len(words)} words, {len(result.chars)} letters: {took:.1f} s;")
    print(f"{peak() - before:.0f} MB above the {before:.0f} MB of loading, the samples and a minute's alignment")
    print(row("spa words of an hour", errors))


def peak() -> float:
    """MB that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

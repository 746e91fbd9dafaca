"""Whether recognising the likeliest languages tells more of which is spoken than identification alone (lid_rerank).

.venv/bin/python -m experiments.lid_reranking

The demo's identifier makes next to no errors on whole clips, so they are made harder: cut short, or under white noise.
The weight is that with the most languages right on dev clips, all conditions together; figures are of test clips, their
words held out from training. "ctc" is the mean log probability of a frame's best token, "search" the score of a beam
search with a 6-gram of letters of each language (experiments/lm_decoding.py; lm_weight 1.5, beam 32) by frames.

| ranked by (weight) | whole (400) | 0.5 s (392) | 0.25 s (400) | noise 5 dB (400) | noise 0 dB (400) | mean |
| --- | --- | --- | --- | --- | --- | --- |
| identification (0) | 99.8% | 96.7% | 77.8% | 93.5% | 58.8% | 85.3% |
| and ctc (8) | 99.8% | 97.2% | 77.0% | 93.0% | 60.2% | 85.4% |
| and search (12) | 99.5% | 96.9% | 75.5% | 92.0% | 65.8% | 85.9% |

So it is worth little here: more are right under loud noise, fewer where clips are very short.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

import mms_jax
from experiments.demo.evaluate import middles
from experiments.demo.sentences import LANGUAGES, load_lexicon
from experiments.demo.synthesize import WORK
from experiments.lm_decoding import clips_of, language_model

ORDER = 6
WEIGHTS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)


def under_noise(clips: Sequence[np.ndarray], *, decibels: float) -> list[np.ndarray]:
    """White noise, so many decibels below the speech."""
    rng = np.random.default_rng(0)
    scale = 10 ** (-decibels / 20)
    return [(clip + clip.std() * scale * rng.normal(size=len(clip))).astype(np.float32) for clip in clips]


CONDITIONS: dict[str, Callable[[Sequence[np.ndarray]], list[np.ndarray]]] = {
    "whole": list,
    "0.5 s": lambda clips: middles(clips, seconds=0.5),
    "0.25 s": lambda clips: middles(clips, seconds=0.25),
    "noise 5 dB": lambda clips: under_noise(clips, decibels=5),
    "noise 0 dB": lambda clips: under_noise(clips, decibels=0),
}


class Features(NamedTuple):
    """Of N clips and L languages."""

    right: np.ndarray  # int [N]
    scores: np.ndarray  # float [N, L, 3]: log probability by identification, ctc, search


def features(asr: mms_jax.SpeechRecognizer, *, split: str, count: int) -> dict[str, Features]:
    """By condition."""
    codes = list(LANGUAGES)
    models = {code: language_model(code, order=ORDER, lexicon=load_lexicon(code, cache=WORK)) for code in codes}
    found = {}
    for name, made in CONDITIONS.items():
        right, scores = [], []
        for code in codes:
            clips = made(clips_of(code, split=split)[0][:count])
            results = asr.transcribe(
                clips, language="auto", rerank=len(codes), lm=models, lm_weight=1.5, decoder="device", beam=32
            )
            for result in results:
                if result.error is not None:
                    raise result.error
                own = {one.language: one for one in result.language_ranking}
                right.append(codes.index(code))
                scores.append(
                    [(np.log(max(own[c].probability, 1e-30)), own[c].asr_score, own[c].search_score) for c in codes]
                )
        found[name] = Features(np.array(right), np.array(scores, np.float64))
    return found


def accuracy(found: Features, feature: int, weight: float) -> float:
    """Share of the clips whose language is ranked first, one of the features weighed against identification."""
    scores = found.scores[..., 0] + weight * found.scores[..., feature]
    return float(np.mean(scores.argmax(axis=1) == found.right))


def tuned(found: dict[str, Features], feature: int) -> float:
    """The weight with the best mean accuracy; of several the least."""
    return max(
        WEIGHTS, key=lambda weight: round(np.mean([accuracy(one, feature, weight) for one in found.values()]), 6)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="clips of each language and split")
    options = parser.parse_args()
    asr = mms_jax.load_asr(mms_jax.DEMO_MODEL, lid=mms_jax.DEMO_LID)
    dev, test = (features(asr, split=split, count=options.count) for split in ("dev", "test"))
    ways = {"identification": (0, 0.0), "and ctc": (1, tuned(dev, 1)), "and search": (2, tuned(dev, 2))}
    print("| ranked by (weight) |", " | ".join(f"{name} ({len(test[name].right)})" for name in test), "| mean |")
    print("|", " | ".join(["---"] * (2 + len(test))), "|")
    for name, (feature, weight) in ways.items():
        rates = [accuracy(one, feature, weight) for one in test.values()]
        print(f"| {name} ({weight:g}) |", " | ".join(f"{rate:.1%}" for rate in (*rates, np.mean(rates))), "|")


if __name__ == "__main__":
    main()

"""The weights of a language model that make the fewest errors on speech whose text is known."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import jiwer

from mms_jax.errors import MMSWarning, SettingError
from mms_jax.text.ctc import CTCVocabulary

# What fairseq sweeps: 0 to 5, and -3 to 3.
LM_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
WORD_SCORES = (-3.0, -1.5, 0.0, 1.5, 3.0)

Metric = Literal["wer", "cer"]
METRICS = ("wer", "cer")


class Trial(NamedTuple):
    """Error rates with one pair of weights, 0.25 is a quarter."""

    lm_weight: float
    word_score: float
    wer: float
    cer: float


@dataclass(frozen=True)
class Tuning:
    """All trials; ``print`` shows them as a table."""

    trials: tuple[Trial, ...]
    metric: Metric

    @property
    def best(self) -> Trial:
        """That with the fewest errors; of several the one with the least lm_weight, then word_score."""
        return min(self.trials, key=lambda trial: (self._rate(trial), trial.lm_weight, abs(trial.word_score)))

    def _rate(self, trial: Trial) -> float:
        return trial.wer if self.metric == "wer" else trial.cer

    def __str__(self) -> str:
        """A row for every lm_weight, a column for every word_score; the best in asterisks."""
        weights = list(dict.fromkeys(trial.lm_weight for trial in self.trials))
        scores = list(dict.fromkeys(trial.word_score for trial in self.trials))
        rates = {(trial.lm_weight, trial.word_score): f"{self._rate(trial):.2%}" for trial in self.trials}
        rates[self.best.lm_weight, self.best.word_score] = f"*{self._rate(self.best):.2%}*"
        rows = [[f"{self.metric.upper()} at lm_weight", *(f"word_score {score:g}" for score in scores)]]
        rows += [[f"{weight:g}", *(rates[weight, score] for score in scores)] for weight in weights]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def check_references(references: Sequence[str], vocabulary: CTCVocabulary) -> None:
    """Raise SettingError for what is no text, and warn of characters that are errors whatever is recognised."""
    for number, reference in enumerate(references):
        if not isinstance(reference, str):
            raise SettingError(f"transcript {number} is {reference!r}, not a str")
    letters = {*vocabulary.letters, *(letter.lower() for letter in vocabulary.letters if vocabulary.do_lower_case)}
    strange = Counter(char for text in references for char in text if not char.isspace() and char not in letters)
    if strange:
        shown = " ".join(f"{char} ({count})" for char, count in strange.most_common(12))
        warnings.warn(
            f"the transcripts have characters that {vocabulary.source} has not, so they count as errors: {shown}; "
            "mms_jax.text.normalize.normalize writes texts as MMS was trained on them",
            MMSWarning,
            stacklevel=3,
        )


def tune(
    texts_at: Callable[[float, float], Sequence[str]],
    references: Sequence[str],
    *,
    lm_weights: Sequence[float],
    word_scores: Sequence[float],
    metric: Metric,
    told: Callable[[Trial], None] = lambda trial: None,
) -> Tuning:
    """Try every pair of weights.

    Args:
        texts_at: (lm_weight, word_score) to what is recognised with them.
        references: what was said.
        lm_weights, word_scores: to try.
        metric: that is to be least.
        told: called after each trial.
    """
    if metric not in METRICS:
        raise SettingError(f"metric is {metric!r}; it must be 'wer' or 'cer'")
    if not lm_weights or not word_scores:
        raise SettingError("lm_weights and word_scores: at least one of each is needed")
    if not any(reference.strip() for reference in references):
        raise SettingError("transcripts are all empty, so there is no error rate")
    trials = []
    for lm_weight, word_score in product(lm_weights, word_scores):
        texts = list(texts_at(lm_weight, word_score))
        rates = float(jiwer.wer(list(references), texts)), float(jiwer.cer(list(references), texts))
        trials.append(Trial(lm_weight, word_score, *rates))
        told(trials[-1])
    return Tuning(tuple(trials), metric)

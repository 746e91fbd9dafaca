"""How well training goes: error rates, the share of blanks and an alarm for it, averages between two logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jiwer
import numpy as np

from mms_jax.errors import DatasetError

COLLAPSE_RATIO = 0.99  # of all frames, of which there are 50 a second; speech has more than one letter in two seconds
COLLAPSE_LOGS = 5  # in a row: one log may be a batch of near silence


class ErrorRates(NamedTuple):
    """Word and character error rate of a corpus, as fractions: 0.05 is 5 %, and above 1 is possible."""

    wer: float
    cer: float


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation of one language found: loss, error rates (fractions), and what it was computed from.

    ``blank_ratio`` is of the valid frames; ``seconds`` is the audio evaluated; ``samples`` holds a few pairs of
    reference and hypothesis.
    """

    loss: float
    wer: float
    cer: float
    blank_ratio: float
    num_clips: int
    seconds: float
    samples: tuple[tuple[str, str], ...] = ()


def error_rates(references: Sequence[str], *, hypotheses: Sequence[str]) -> ErrorRates:
    """Errors of all texts together over words (or characters) of all references, by jiwer, as ``evaluate`` counts them.

    An error is a substitution, deletion or insertion. Words are what single blanks separate, after surplus ones and the
    outer white space are removed; characters include the blanks, after the outer white space is removed. Nothing else
    is normalised. What is said where the reference is empty counts as insertions. Where every reference is empty there
    is nothing to divide by: the rates are then the numbers of insertions (``evaluate`` divides by zero there).

    Raises:
        DatasetError: there are no texts, whose rates would be 0.
        ValueError: there are not as many hypotheses as references.
    """
    if not references and not hypotheses:
        raise DatasetError("no clips to evaluate: an error rate needs at least one; look at --eval_split_name")
    ours, theirs = list(references), list(hypotheses)
    return ErrorRates(float(jiwer.wer(ours, theirs)), float(jiwer.cer(ours, theirs)))


def blank_ratio(ids: np.ndarray, *, num_frames: np.ndarray, blank_id: int) -> float:
    """Share of valid frames whose best label is the blank: ids int [B, T], num_frames int [B]; NaN without frames."""
    valid = np.arange(ids.shape[-1]) < np.asarray(num_frames)[:, None]
    return float(np.mean(np.asarray(ids)[valid] == blank_id)) if valid.any() else float("nan")


class BlankMonitor:
    """Notices, once, that a model answers with nothing but blanks although its warm-up is over.

    Every CTC model goes through such a phase at first; one that stays there has collapsed.
    """

    def __init__(self, name: str, *, warmup_steps: int, patience: int = COLLAPSE_LOGS) -> None:
        """``name`` is the language, or whatever else the message shall name; ``patience`` the logs in a row."""
        self._name = name
        self._warmup_steps = warmup_steps
        self._patience = patience
        self._logs = 0  # in a row
        self._told = False

    @property
    def state(self) -> list[int]:
        """What ``restore`` goes on from."""
        return [self._logs, int(self._told)]

    def restore(self, state: Sequence[int]) -> None:
        """Go on from where another monitor was."""
        self._logs, self._told = state[0], bool(state[1])

    def update(self, step: int, *, ratio: float) -> str | None:
        """The advice, if the blank ratio of ``step`` makes the row of logs long enough; a NaN ratio ends the row."""
        self._logs = self._logs + 1 if step > self._warmup_steps and ratio > COLLAPSE_RATIO else 0
        if self._told or self._logs < self._patience:
            return None
        self._told = True
        return (
            f"{self._name}: {ratio:.1%} of the frames are blank, as in the last {self._patience} logs: the model has "
            "collapsed to silence. Lower --learning_rate, raise --warmup_steps, and check that each transcript belongs "
            "to its clip and is written with the characters of the vocabulary"
        )


class Averages:
    """Means of loss and gradient norm, and the audio seen, between two logs.

    What is added may still be on its way from the device: only ``take`` waits for it.
    """

    def __init__(self, languages: Sequence[str] = ()) -> None:
        """``languages`` are the names along the axis N of what is added; none where that has no axis."""
        self._languages = tuple(languages)
        self._losses: list[Any] = []
        self._grad_norms: list[Any] = []
        self._audio_seconds: list[Any] = []
        self._took_part: list[Any] = []

    def add(self, *, loss: Any, grad_norm: Any, audio_seconds: Any, took_part: Any = True) -> None:
        """Take in one update: loss and gradient norm as scalars or [N], and the seconds of audio in its batches.

        ``took_part`` (bool, or [N]) is False for languages that the update was not of, whose values mean nothing.
        """
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)
        self._took_part.append(took_part)
        self._audio_seconds.append(audio_seconds)

    @property
    def _added(self) -> tuple[list[Any], ...]:
        return self._losses, self._grad_norms, self._audio_seconds, self._took_part

    @property
    def state(self) -> list[list[Any]]:
        """What was added since the last ``take``, as JSON has it."""
        return [[np.asarray(value, np.float64).tolist() for value in values] for values in self._added]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Go on from what others had added."""
        for own, values in zip(self._added, state, strict=True):
            own[:] = values

    def take(self, *, seconds: float) -> dict[str, float]:
        """What was added since the last call, which took ``seconds``; and start anew.

        "loss" and "grad_norm" are means over all steps and languages where they are finite (NaN where none is), then
        "loss/<language>" and "grad_norm/<language>" if there are several; "not_finite" counts the losses and norms
        left out, where there are any; "audio_seconds" is a sum, "audio_seconds_per_second" the speed.
        """
        width = max(1, len(self._languages))
        losses, grad_norms = _stacked(self._losses, width), _stacked(self._grad_norms, width)
        took_part = _stacked([np.broadcast_to(value, width) for value in self._took_part], width).astype(bool)
        audio = float(sum(float(value) for value in self._audio_seconds))
        for added in self._added:
            added.clear()
        values = {"loss": _mean(losses), "grad_norm": _mean(grad_norms)}
        if len(self._languages) > 1:
            for index, language in enumerate(self._languages):
                values[f"loss/{language}"] = _mean(losses[:, index])
                values[f"grad_norm/{language}"] = _mean(grad_norms[:, index])
        left_out = sum(int(np.sum(~np.isfinite(of_all) & took_part)) for of_all in (losses, grad_norms))
        values |= {"not_finite": left_out} if left_out else {}
        return values | {"audio_seconds": audio, "audio_seconds_per_second": audio / seconds if seconds > 0 else 0.0}


def _stacked(values: list[Any], width: int) -> np.ndarray:
    """float64 [steps, N]."""
    return np.asarray([np.asarray(value, np.float64) for value in values]).reshape(len(values), width)


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")

"""Beam search of recordings: log probabilities in pieces to decoders, hypotheses back into text and frames."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from mms_jax.pipelines.decoding.plans import Plan
from mms_jax.pipelines.decoding.pool import DecoderPool, Hypothesis, Task
from mms_jax.pipelines.transcription import Alternative

# Frames that are searched in one go: what flashlight-text remembers grows with them, 0.2 GB a minute at a beam of 500.
# Longer recordings are parted in the longest pause that is found in the second half of a piece.
MAX_PIECE = 3000


@dataclass(frozen=True)
class Reading:
    """What was found in a recording."""

    alternatives: tuple[Alternative, ...]  # best first, at least one
    ids: np.ndarray  # int32 [T]: the token of every frame for the first of them
    scores: np.ndarray  # float32 [T]: its probability
    words: tuple[str, ...] | None  # of the first, as the lexicon writes them; None without one


class Search:
    """A recording that is being searched."""

    def __init__(self, pool: DecoderPool, decoder: int, plan: Plan, log_probs: np.ndarray, task: Task):
        self._plan = plan
        self._task = task
        self._pieces = [log_probs[piece] for piece in pieces(log_probs, blank_id=plan.blank_id)]
        self._futures: list[Future[list[Hypothesis]]] = [pool.submit(decoder, piece, task) for piece in self._pieces]

    def wait(self) -> Reading:
        """The result, when it is there."""
        found = [future.result() for future in self._futures]
        ids = np.concatenate([one[0].frames for one in found])
        scores = [
            np.exp(piece[np.arange(len(piece)), one[0].frames]) for piece, one in zip(self._pieces, found, strict=True)
        ]
        joined = join(found, num_best=self._task.num_best)
        best = tuple(index for one in found for index in one[0].words)
        words = None if self._plan.spellings is None else tuple(self._plan.words[index] for index in best)
        return Reading(tuple(self._alternative(one) for one in joined), ids, np.concatenate(scores), words)

    def _alternative(self, joined: Hypothesis) -> Alternative:
        if self._plan.spellings is not None:
            text = " ".join(self._plan.words[index] for index in joined.words)
        else:
            text = self._plan.vocabulary.decode(joined.frames)
        return Alternative(text, joined.score, joined.lm_score)


def pieces(log_probs: np.ndarray, *, blank_id: int) -> list[slice]:
    """Part frames, float [T, V], into pieces of at most ``MAX_PIECE``, each boundary within a pause if there is one."""
    found, start = [], 0
    is_blank = log_probs.argmax(axis=1) == blank_id
    while len(log_probs) - start > MAX_PIECE:
        first = start + MAX_PIECE // 2
        stop = first + longest_run_middle(is_blank[first : start + MAX_PIECE])
        found.append(slice(start, stop))
        start = stop
    return [*found, slice(start, len(log_probs))]


def longest_run_middle(is_blank: np.ndarray) -> int:
    """The middle of the longest run of True in bool [N], at least 1; N where there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_blank, [False]]).astype(np.int8)))
    if len(edges) == 0:
        return len(is_blank)
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return max(1, int(starts[longest] + stops[longest]) // 2)


def join(found: Sequence[list[Hypothesis]], *, num_best: int) -> list[Hypothesis]:
    """The best combinations of the hypotheses of successive pieces."""
    joined = found[0][:num_best]
    for piece in found[1:]:
        pairs = [(before, after) for before in joined for after in piece]
        pairs.sort(key=lambda pair: -(pair[0].score + pair[1].score))
        joined = [
            Hypothesis(
                before.score + after.score,
                before.lm_score + after.lm_score,
                before.words + after.words,
                np.concatenate([before.frames, after.frames]),
            )
            for before, after in pairs[:num_best]
        ]
    return joined


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [T, V] logits to log probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

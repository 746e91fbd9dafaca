"""Beam search of recordings: log probabilities in pieces to decoders, hypotheses back into text and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mms_jax.ctc.align import align_tokens
from mms_jax.pipelines.decoding.plans import Plan
from mms_jax.pipelines.transcription import Alternative

# Frames that are searched in one go: what flashlight-text remembers grows with them, to 2 GB at a beam of 1,000.
# Longer recordings are parted in the longest pause that is found in the second half of a piece.
MAX_PIECE = 3000


class Hypothesis(NamedTuple):
    """One result of a search."""

    score: float  # log probability of what was heard, and what language model, words and hotwords add to it
    lm_score: float  # log10 probability by the language model
    tokens: np.ndarray  # int [N]: repeats merged, blanks dropped
    words: tuple[int, ...]  # indices of the lexicon's words


class Task(NamedTuple):
    """How to search."""

    beam_size: int
    beam_size_token: int
    beam_threshold: float
    lm_weight: float
    word_score: float
    hotword_weight: float
    num_best: int


class Waiting(Protocol):
    """A search that goes on."""

    def result(self) -> list[Hypothesis]:
        """What it found, best first, when it is there."""
        ...


class Searcher(Protocol):
    """Decoders, by number, for as many plans."""

    broken: bool  # whether it can search no more

    def add(self, plan: Plan) -> int:
        """Another decoder; returns its number."""
        ...

    def submit(self, decoder: int, log_probs: np.ndarray, task: Task) -> Waiting:
        """Search float32 [T, V], at least one frame, with one of the decoders."""
        ...


@dataclass(frozen=True)
class Reading:
    """What was found in a recording."""

    alternatives: tuple[Alternative, ...]  # best first, at least one
    words: tuple[str, ...] | None  # of the first, as the lexicon writes them; None without one
    pieces: tuple[np.ndarray, ...]  # log probabilities, float32 [T, V] together
    tokens: tuple[np.ndarray, ...]  # of the first, in each piece
    blank_id: int

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """int [T], the token of every frame on the most probable way to the first alternative; and its probability."""
        paths = [_path(piece, own, self.blank_id) for piece, own in zip(self.pieces, self.tokens, strict=True)]
        scores = [np.exp(piece[np.arange(len(piece)), path]) for piece, path in zip(self.pieces, paths, strict=True)]
        return np.concatenate(paths), np.concatenate(scores)


def _path(log_probs: np.ndarray, tokens: np.ndarray, blank_id: int) -> np.ndarray:
    if len(tokens) == 0:
        return np.full(len(log_probs), blank_id)
    return align_tokens(log_probs, tokens, blank_id=blank_id).path(tokens, blank_id=blank_id)


class Search:
    """A recording that is being searched."""

    def __init__(self, searcher: Searcher, decoder: int, plan: Plan, log_probs: np.ndarray, task: Task):
        self._plan = plan
        self._task = task
        self._pieces = [log_probs[piece] for piece in pieces(log_probs, blank_id=plan.blank_id)]
        self._waiting = [searcher.submit(decoder, piece, task) for piece in self._pieces]

    def wait(self) -> Reading:
        """The result, when it is there."""
        found = [waiting.result() for waiting in self._waiting]
        joined = join(found, num_best=self._task.num_best)
        return Reading(
            self._alternatives(joined),
            self._words(joined[0]) if self._plan.spellings is not None else None,
            tuple(self._pieces),
            tuple(one[0].tokens for one in found),
            self._plan.blank_id,
        )

    def _words(self, hypothesis: Hypothesis) -> tuple[str, ...]:
        return tuple(self._plan.words[index] for index in hypothesis.words)

    def _alternatives(self, joined: Sequence[Hypothesis]) -> tuple[Alternative, ...]:
        """Texts, each once: hypotheses may differ in delimiters that part nothing."""
        best: dict[str, Alternative] = {}
        for one in joined:
            if self._plan.spellings is None:
                text = self._plan.vocabulary.decode(one.tokens, group_tokens=False)
            else:
                text = " ".join(self._words(one))
            best.setdefault(text, Alternative(text, one.score, one.lm_score))
        return tuple(best.values())[: self._task.num_best]


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
                np.concatenate([before.tokens, after.tokens]),
                before.words + after.words,
            )
            for before, after in pairs[:num_best]
        ]
    return joined

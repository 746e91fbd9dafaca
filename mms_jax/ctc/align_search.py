"""The search behind align.py: Viterbi over labels and the blanks before them, in bounded memory, without useless work.

Three things make an hour of audio a matter of seconds, and none of them changes the result:

- Blanks cost nothing: all scores are relative to the path of blanks alone. With ``B[u]`` the best score of being in the
  blank before label u (behind the last label: u = U), ``L[u]`` of being in label u, and no two equal labels in a row, a
  frame is ``B[u] = max(B[u], L[u-1]); L[u] = max(L[u], B[u]) + gain[label u]``: two maxima, a gather and a sum.
- States without hope are left out. A first, narrow search finds a good path; a state is hopeless where even the best
  token in every frame to come would not bring it to that path's score.
- Scores are kept every ``window`` frames only. The way back is found window by window, last one first, by searching the
  window again, this time noting decisions, and only in the labels from which its end can be reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

NARROW = 1024  # labels on each side of the best one that the first, narrow search follows
CHECK = 64  # frames from one look for hopeless states to the next
BLOCK = 256  # frames whose gains are computed at a time
SHORTEST_WINDOW = 512  # frames
CHECKPOINT_BYTES = 256 << 20  # of kept scores, where windows can be so short


class Lattice:
    """What is searched: T frames, and U labels of which no two neighbours are equal.

    Args:
        columns: float32 [T, K]: log probabilities; column 0 is the blank's.
        states: int64 [U]: the column of each label.
    """

    def __init__(self, columns: np.ndarray, states: np.ndarray):
        self.columns = columns
        self.states = states
        self.num_frames, self.num_labels = len(columns), len(states)

    def gains(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """float64 [K] of each frame in turn: how much more a token gives there than the blank."""
        for first in range(start, stop, BLOCK):
            block = self.columns[first : min(first + BLOCK, stop)].astype(np.float64)
            yield from block - block[:, :1]

    @cached_property
    def ceiling(self) -> np.ndarray:
        """float64 [T + 1]: the most that frames 0 … t - 1 can give."""
        most = (self.columns.max(axis=1).astype(np.float64) - self.columns[:, 0]).cumsum()
        return np.concatenate([[0.0], most])


class Checkpoint(NamedTuple):
    """Scores of the states that are alive before a frame."""

    low: int  # the first label
    blanks: np.ndarray  # float64 [n + 1], of the blanks before labels low … low + n
    labels: np.ndarray  # float64 [n], of labels low … low + n - 1


class Scores:
    """Scores after some frames: of blanks [U + 1] and labels [U], alive from ``low`` on and below ``high``."""

    def __init__(self, num_labels: int):
        self.blanks = np.full(num_labels + 1, -np.inf)
        self.labels = np.full(num_labels, -np.inf)
        self.blanks[0] = 0.0
        self.low, self.high = 0, 0

    def checkpoint(self) -> Checkpoint:
        """A copy of what is alive."""
        part = slice(self.low, self.high)
        return Checkpoint(self.low, self.blanks[self.low : self.high + 1].copy(), self.labels[part].copy())

    def keep(self, low: int, high: int) -> None:
        """Drop labels below ``low`` and from ``high`` on, and the blanks that belong to them."""
        self.labels[high : self.high] = -np.inf
        self.blanks[high + 1 : self.high + 1] = -np.inf
        self.low, self.high = low, high


def search(lattice: Lattice, *, window: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first frame of each label and the one after its last, int64 [U] each; there must be a frame for each."""
    size = _window(lattice) if window is None else window
    if lattice.num_frames <= size:
        checkpoints = [Scores(lattice.num_labels).checkpoint()]
    else:
        checkpoints = _forward(lattice, size, least=_narrow(lattice))
    starts, ends = np.zeros((2, lattice.num_labels), np.int64)
    label, in_blank = lattice.num_labels, True
    for number in reversed(range(len(checkpoints))):
        first, stop = number * size, min((number + 1) * size, lattice.num_frames)
        decisions = _Decisions(lattice, checkpoints.pop(), first, stop, label)
        if stop == lattice.num_frames and decisions.ends_in_label():
            label, in_blank = label - 1, False
            ends[label] = stop
        label, in_blank = decisions.trace(label, in_blank, starts, ends)
    return starts, ends


def _window(lattice: Lattice) -> int:
    """Frames between checkpoints: few, unless checkpoints (16 bytes a label) would outweigh decisions (2 W^2 bytes)."""
    cells = lattice.num_frames * lattice.num_labels
    return max(SHORTEST_WINDOW, min(cells * 16 // CHECKPOINT_BYTES, int((4 * cells) ** (1 / 3))))


def _narrow(lattice: Lattice) -> float:
    """The score of a good path, found among the labels near the best one of each moment; -inf if none is there."""
    scores = Scores(lattice.num_labels)
    for frame in _frames(lattice, scores):
        if frame % CHECK == 0:
            best = scores.low + int(scores.labels[scores.low : scores.high].argmax())
            scores.keep(max(scores.low, best - NARROW), min(scores.high, best + NARROW + 1))
    return _final(scores)


def _forward(lattice: Lattice, window: int, *, least: float) -> list[Checkpoint]:
    """The scores before frames 0, W, 2 W, … of all states that a path of score ``least`` or more can go through."""
    scores = Scores(lattice.num_labels)
    checkpoints = [scores.checkpoint()]
    ceiling = lattice.ceiling
    # What may be lost to rounding on the way: a unit in the last place a frame.
    slack = lattice.num_frames * np.finfo(np.float64).eps * (ceiling[-1] + abs(max(least, -1e300)))
    for frame in _frames(lattice, scores):
        if frame % CHECK == 0 and least > -np.inf:
            _drop_hopeless(scores, least - slack - (ceiling[-1] - ceiling[frame]))
        if frame % window == 0 and frame < lattice.num_frames:
            checkpoints.append(scores.checkpoint())
    return checkpoints


def _drop_hopeless(scores: Scores, floor: float) -> None:
    """Keep the labels from the first to the last state whose score is at least ``floor``."""
    low, high = scores.low, scores.high
    alive = scores.blanks[low : high + 1] >= floor
    alive[:-1] |= scores.labels[low:high] >= floor
    first, last = int(alive.argmax()), len(alive) - 1 - int(alive[::-1].argmax())
    scores.keep(low + first, min(high, low + last + 1))


def _frames(lattice: Lattice, scores: Scores) -> Iterator[int]:
    """Go through all frames; yields how many are done, after each. The caller may drop states in between."""
    num_labels, num_frames, states = lattice.num_labels, lattice.num_frames, lattice.states
    blanks, labels = scores.blanks, scores.labels
    given = np.empty(num_labels)
    for done, gain in enumerate(lattice.gains(0, num_frames), start=1):
        low, high = scores.low, min(scores.high + 1, num_labels)
        inner, behind = labels[low:high], blanks[low + 1 : high + 1]
        np.maximum(behind, inner, out=behind)
        np.maximum(inner, blanks[low:high], out=inner)
        part = given[: high - low]
        gain.take(states[low:high], out=part, mode="clip")
        inner += part
        # Each frame to come can bring one label more, so what is further behind is too late.
        scores.low, scores.high = max(low, num_labels - num_frames + done - 1), high
        yield done


def _final(scores: Scores) -> float:
    return float(max(scores.blanks[-1], scores.labels[-1]))


class _Decisions:
    """Where the best path into each state of a window comes from, for the states from which its end can be reached.

    Args:
        lattice: what is searched.
        checkpoint: scores before ``first``.
        first, stop: the window's frames.
        label: at its end the path is in this label or in the blank before it.
    """

    def __init__(self, lattice: Lattice, checkpoint: Checkpoint, first: int, stop: int, label: int):
        self._first, self._stop = first, stop
        # At the very end label - 1 is possible as well: one more.
        self._low = max(checkpoint.low, label - (stop - first) - 1)
        width = label - self._low + 1
        self._blanks, self._labels = np.full((2, width), -np.inf)
        for mine, theirs in ((self._blanks, checkpoint.blanks), (self._labels, checkpoint.labels)):
            kept = theirs[self._low - checkpoint.low :][:width]
            mine[: len(kept)] = kept
        # Of a blank: whether it was one before; of a label: whether it was that label before.
        self._blank_stays, self._label_stays = np.ones((2, stop - first, width), bool)
        self._search(lattice, np.append(lattice.states, 0)[self._low : label + 1])

    def _search(self, lattice: Lattice, states: np.ndarray) -> None:
        blanks, labels, given = self._blanks, self._labels, np.empty(len(states))
        inner, behind = labels[:-1], blanks[1:]
        for number, gain in enumerate(lattice.gains(self._first, self._stop)):
            np.greater_equal(behind, inner, out=self._blank_stays[number, 1:])
            np.maximum(behind, inner, out=behind)
            np.greater_equal(labels, blanks, out=self._label_stays[number])
            np.maximum(labels, blanks, out=labels)
            gain.take(states, out=given, mode="clip")
            np.add(labels, given, out=labels)

    def ends_in_label(self) -> bool:
        """Whether the window that ends behind the last label ends in it, and not in the blank there."""
        return len(self._labels) > 1 and bool(self._labels[-2] >= self._blanks[-1])

    def trace(self, label: int, in_blank: bool, starts: np.ndarray, ends: np.ndarray) -> tuple[int, bool]:
        """Go back to the window's beginning, noting where labels start and end; returns the state before it."""
        place = label - self._low
        for number in reversed(range(self._stop - self._first)):
            frame = self._first + number
            if not in_blank:
                if self._label_stays[number, place]:
                    continue
                starts[self._low + place] = frame
                in_blank = True  # the way into a label leads through the blank before it, if only in passing
            if not self._blank_stays[number, place]:
                place, in_blank = place - 1, False
                ends[self._low + place] = frame
        return self._low + place, in_blank

"""Forced alignment: the most probable way in which CTC emissions of any length spell given tokens, found exactly.

The search is Viterbi's over labels and the blanks around them (Graves et al. 2006; forced alignment of hours of audio
as in the MMS paper, section 3.1.4), with what makes it fit and quick in align_search.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from mms_jax.ctc.align_search import Lattice, search
from mms_jax.errors import AlignmentError, NumericsError

STAR = -1  # the token that stands for any sound: of probability 1 in every frame


class TokenSpans(NamedTuple):
    """When each of U tokens is emitted, and how probable that is."""

    starts: np.ndarray  # int64 [U]: the first frame of each token
    ends: np.ndarray  # int64 [U]: the frame after its last
    scores: np.ndarray  # float64 [U]: the sum of its log probability over its frames; 0 for a star
    score: float  # log probability of the whole path, blanks included
    num_frames: int

    def path(self, tokens: Any, *, blank_id: int) -> np.ndarray:
        """int64 [T]: the token of every frame; ``tokens`` are those that were aligned."""
        found = np.full(self.num_frames, blank_id, np.int64)
        for token, start, end in zip(tokens, self.starts, self.ends, strict=True):
            found[start:end] = token
        return found


def align_tokens(
    log_probs: np.ndarray | Iterable[np.ndarray],
    tokens: Any,
    *,
    blank_id: int,
    window: int | None = None,
) -> TokenSpans:
    """Find the most probable CTC path that spells ``tokens``.

    Among paths of equal probability it is the one that, read from the end, stays where it is rather than coming from
    the neighbour before, and comes from a blank rather than from a label; at the very end it is in the last label
    rather than in a blank. Scores are added in float64.

    Args:
        log_probs: float [T, V], logarithms of probabilities; or blocks of them, an iterable of [n, V], of which only
            the columns that ``tokens`` name are kept: 4 bytes each a frame.
        tokens: int [U], at least one; none of them the blank; ``STAR`` stands for any sound.
        blank_id: the column of the blank.
        window: frames between the scores that are kept to find the way back. None: as suits the memory, which is at
            most 0.4 GB at 1 h of speech and grows with the 4/3rd power of the length from there. The result does not
            depend on it.

    Raises:
        AlignmentError: no tokens, one that is no column or is the blank, or more than the frames can hold: each takes
            one, and two equal ones in a row another between them. NumericsError: a log probability that is not finite;
            names the frame. Columns that no token names may hold anything.
    """
    labels = _checked_tokens(tokens, blank_id=blank_id)
    names, index = np.unique(labels, return_inverse=True)
    used = names[names != STAR]
    columns = _gathered(log_probs, np.append(blank_id, used))
    if names[0] == STAR:  # unique sorts it to the front; to the columns it comes last
        columns = np.concatenate([columns, np.zeros((len(columns), 1), np.float32)], axis=1)
        index = np.where(index == 0, len(names) - 1, index - 1)
    index = index.astype(np.int64) + 1  # behind the blank
    repeats = np.flatnonzero(labels[1:] == labels[:-1]) + 1
    _check_length(columns.shape[0], len(labels), len(repeats))
    # A blank that must be there is a label of its own, so no two neighbours are equal.
    states = np.insert(index, repeats, 0)
    starts, ends = search(Lattice(columns, states), window=window)
    kept = np.delete(np.arange(len(states)), repeats + np.arange(len(repeats)))
    return _spans(columns, index, starts[kept], ends[kept])


def _checked_tokens(tokens: Any, *, blank_id: int) -> np.ndarray:
    labels = np.asarray(tokens)
    if labels.size == 0:
        raise AlignmentError("there are no tokens to align; give a text of which the vocabulary has at least a letter")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise AlignmentError(f"tokens must be [U] integers, got {labels.dtype}{list(labels.shape)}")
    labels = labels.astype(np.int64)
    if blank_id in labels:
        place = int(np.argmax(labels == blank_id))
        raise AlignmentError(f"token {place} is the blank ({blank_id}), which no text contains; leave it out")
    if labels.min() < STAR:
        raise AlignmentError(f"token {int(np.argmin(labels))} is {labels.min()}; ids start at 0, and STAR is {STAR}")
    return labels


def _gathered(log_probs: np.ndarray | Iterable[np.ndarray], ids: np.ndarray) -> np.ndarray:
    """float32 [T, K], C-contiguous: the columns ``ids`` of all blocks, checked."""
    blocks = [log_probs] if isinstance(log_probs, np.ndarray) else log_probs
    kept: list[np.ndarray] = []
    num_frames, width = 0, None
    for block in blocks:
        if block.ndim != 2 or block.dtype.kind != "f":
            raise AlignmentError(f"log_probs must be float [T, V], got {block.dtype}{list(block.shape)}")
        width = block.shape[1] if width is None else width
        if block.shape[1] != width:
            raise AlignmentError(f"log_probs have {width} columns up to frame {num_frames}, then {block.shape[1]}")
        if max(ids) >= width or min(ids) < 0:
            wrong = max(ids) if max(ids) >= width else min(ids)
            raise AlignmentError(f"the id {wrong} is no column of the log_probs, which have {width}")
        kept.append(np.asarray(block[:, ids], np.float32))
        bad = ~np.isfinite(kept[-1])
        if bad.any():
            frame, column = (int(number) for number in np.argwhere(bad)[0])
            value = kept[-1][frame, column]
            raise NumericsError(f"the log probability of token {ids[column]} in frame {num_frames + frame} is {value}")
        num_frames += len(block)
    if not num_frames:
        raise AlignmentError("there are no frames to align with; the audio is shorter than one, 25 ms")
    return kept[0] if len(kept) == 1 else np.concatenate(kept)


def _check_length(num_frames: int, num_tokens: int, num_repeats: int) -> None:
    if num_frames < num_tokens + num_repeats:
        raise AlignmentError(
            f"{num_tokens} tokens, {num_repeats} of which repeat the one before, need {num_tokens + num_repeats} "
            f"frames, but there are {num_frames}; give the text of this audio only, or all of the audio"
        )


def _spans(columns: np.ndarray, index: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> TokenSpans:
    """Spans with their scores."""
    num_frames = len(columns)
    path = np.zeros(num_frames, np.int64)
    covered = np.repeat(index, ends - starts)
    path[_ranges(starts, ends)] = covered
    each = columns[np.arange(num_frames), path].astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(each[_ranges(starts, ends)])])
    bounds = np.concatenate([[0], np.cumsum(ends - starts)])
    return TokenSpans(starts, ends, total[bounds[1:]] - total[bounds[:-1]], float(each.sum()), num_frames)


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """start, …, end - 1 of all spans, one behind the other."""
    lengths = ends - starts
    first = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - first, lengths)

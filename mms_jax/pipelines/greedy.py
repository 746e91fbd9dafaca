"""Greedy CTC decoding where the logits are: best tokens, repeats merged, blanks dropped, and only those brought back.

``collapse`` runs in the compiled program on a batch of windows, ``joined`` on the host lays the windows of a recording
end to end: together they are ``CTCVocabulary.decode`` of all frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mms_jax.text.ctc import CTCVocabulary

MAX_INT16_VOCABULARY = 2**15  # ids below it fit into 16 bits
NOTHING = -1  # in place of a token: a blank, or no frame
NUM_READINGS = 5  # columns of ``readings``


class Tokens(NamedTuple):
    """What was read in the frames of one window that are kept, at least one."""

    ids: np.ndarray  # int [N]: repeats merged, blanks dropped
    first: int  # what the first frame reads as; NOTHING: a blank
    last: int  # what the last frame reads as


class Collapsed(NamedTuple):
    """``Tokens`` of a batch; NOTHING where there are none."""

    ids: Int[Array, "B T"]  # int16 where every id fits, else int32; a row's tokens, then NOTHING
    edges: Int[Array, "B 2"]  # int32: first, last


def readings(keeps: Sequence[slice], vocabularies: Sequence[CTCVocabulary]) -> np.ndarray:
    """How to read each row, int32 [B, 5]: the first frame, the one after the last, and what ids stand for.

    Args:
        keeps: frames start … stop - 1 of each row; the others are context, or padding.
        vocabularies: in which they are read.
    """
    return np.array(
        [
            (keep.start, keep.stop, vocabulary.blank_id, vocabulary.size, vocabulary.outside_id)
            for keep, vocabulary in zip(keeps, vocabularies, strict=True)
        ],
        np.int32,
    )


def collapse(ids: Int[Array, "B T"], reading: Int[Array, "B 5"], *, vocab_size: int) -> Collapsed:
    """Merge repeats and drop blanks in each row.

    Args:
        ids: int32, the best token of each frame, below ``vocab_size``.
        reading: of ``readings``.
        vocab_size: columns of the logits.
    """
    start, stop, blank, size, outside = (reading[:, i : i + 1] for i in range(NUM_READINGS))
    frame = jnp.arange(ids.shape[1])
    kept = (start <= frame) & (frame < stop)
    tokens = jnp.where(ids < size, ids, outside)  # ids without a token are all read as one, so they are repeats
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    heard = kept & (tokens != blank)
    new = heard & ((frame == start) | (tokens != before))
    dtype = jnp.int16 if vocab_size <= MAX_INT16_VOCABULARY else jnp.int32
    # New ones first, each in its order. A sort compiles in a fifth of the time that cumsum and scatter take.
    order = jnp.where(new, frame, ids.shape[1] + frame)
    packed = jnp.where(new, tokens, NOTHING).astype(dtype)
    _, packed = jax.lax.sort((order, packed), dimension=1, num_keys=1, is_stable=False)
    at_edges = jnp.concatenate([start, stop - 1], axis=1)
    edges = jnp.take_along_axis(jnp.where(heard, tokens, NOTHING), at_edges, axis=1, mode="clip")
    return Collapsed(packed, edges)


def unpacked(ids: np.ndarray, edges: np.ndarray) -> Tokens:
    """A row of ``Collapsed``, [T] and [2], on the host."""
    return Tokens(ids[ids != NOTHING], int(edges[0]), int(edges[1]))


def joined(parts: Iterable[Tokens | int]) -> np.ndarray:
    """The ids of windows end to end, int [N]; a number stands for that many frames of blanks.

    A token that goes on over a boundary between windows is one.
    """
    pieces, before = [np.zeros(0, np.int32)], NOTHING
    for part in parts:
        if isinstance(part, int):
            before = NOTHING if part else before
            continue
        goes_on = part.first == before != NOTHING
        pieces.append(part.ids[1:] if goes_on else part.ids)
        before = part.last
    return np.concatenate(pieces)

"""CTC prefix beam search on the device, batched, with n-grams and hotwords (Hannun et al. 2014, algorithm 1).

A beam holds prefixes, each with the log-probability of all alignments that end in a blank and of all others. In a frame
a prefix stays or is extended by a token; whether an extension is in the beam already is seen from hashes of 64 bits. A
hash of a beam of 32 is another's by chance in one frame of 2e16, in an hour of audio with probability 1e-11.

Extensions are made by a frame's best ``beam_size_token`` tokens. How prefixes that are in the beam already go on is
computed exactly. Per frame only the places of a prefix's parent and its token are kept: texts are traced at the end.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from mms_jax.ctc.dense_ngram import Automaton
from mms_jax.errors import SettingError

_NEVER = -jnp.inf  # a log-probability of 0
_NOTHING = -1  # the last token of the empty prefix, and what a prefix is extended by when it stays
_NO_TOKEN = -2


class Hypotheses(NamedTuple):
    """The best texts of each row, best first. Where a row has fewer than N, scores are -inf and there are no tokens."""

    tokens: Int[Array, "B N T"]  # int32, 0 from num_tokens on
    num_tokens: Int[Array, "B N"]
    scores: Float[Array, "B N"]  # acoustic + lm_weight * lm + word_score * delimiters + hotwords
    acoustic_scores: Float[Array, "B N"]  # the log-probability of all alignments that were in the beam
    lm_scores: Float[Array, "B N"]  # natural logarithm, unweighted, with that of the end; 0 without a model


class _Beam(NamedTuple):
    """The prefixes of one row: K of them, A automata."""

    blank: Float[Array, " K"]  # log-probability of alignments that end in a blank
    label: Float[Array, " K"]  # and of those that end in the last token
    scores: Float[Array, "A K"]  # of automata, unweighted
    words: Float[Array, " K"]  # delimiters
    states: Int[Array, "A K"]  # of automata
    last: Int[Array, " K"]  # token
    hashes: UInt[Array, "2 K"]
    parents: UInt[Array, "2 K"]  # the hash of all but the last token


class _Weights(NamedTuple):
    automata: Float[Array, " A"]
    word: Float[Array, ""]


def prefix_beam_search(
    log_probs: Float[Array, "B T V"],
    num_frames: Int[Array, " B"],
    *,
    blank_id: int,
    delimiter_id: int | None = None,
    ngram: Automaton | None = None,
    hotwords: Automaton | None = None,
    beam_size: int = 32,
    beam_size_token: int = 32,
    lm_weight: float | Float[Array, ""] = 1.0,
    word_score: float | Float[Array, ""] = 0.0,
    num_best: int = 1,
) -> Hypotheses:
    """The best texts of each row by alignments, n-gram model, delimiters and hotwords together.

    Frames from ``num_frames`` on count for nothing and may hold anything; a row gives the same in every batch. Other
    log-probabilities may be -inf, not NaN. ``ngram`` is multiplied by ``lm_weight``, and has natural logarithms: the
    weight of a decoder that takes KenLM's log10 as it is, as flashlight does, is 2.303 times as large. ``word_score``
    is added for every token ``delimiter_id``. Of two texts with the same score the one earlier in the beam wins.

    Under jit ``blank_id``, ``delimiter_id``, the beam's sizes and ``num_best`` are static; weights may be traced.

    Raises SettingError for a size below 1, ``num_best`` above ``beam_size``, and a ``blank_id`` or ``delimiter_id``
    outside the vocabulary.
    """
    _check(log_probs.shape[2], blank_id, delimiter_id, beam_size, beam_size_token, num_best)
    automata = [automaton for automaton in (ngram, hotwords) if automaton is not None]
    weights = [weight for weight, automaton in ((lm_weight, ngram), (1.0, hotwords)) if automaton is not None]
    weighted = _Weights(jnp.asarray(weights, jnp.float32), jnp.asarray(word_score, jnp.float32))
    step = functools.partial(
        _step,
        automata=automata,
        weights=weighted,
        blank_id=blank_id,
        delimiter_id=_NO_TOKEN if delimiter_id is None else delimiter_id,
        num_tokens=min(beam_size_token, log_probs.shape[2]),
    )
    beams, moves = _search(log_probs.astype(jnp.float32), num_frames, jax.vmap(step), _empty(automata, beam_size))
    lm = None if ngram is None else 0  # the n-gram's place among the automata
    return _finished(beams, moves, automata, weighted, lm=lm, num_best=num_best)


def _finished(
    beams: _Beam, moves: Int[Array, "T B K"], automata: list[Automaton], weights: _Weights, *, lm: int | None, num_best
) -> Hypotheses:
    """The rows' best texts, now that they end."""
    acoustic = jnp.logaddexp(beams.blank, beams.label)
    ended = [a.final_scores[beams.states[:, i]] + beams.scores[:, i] for i, a in enumerate(automata)]
    scores = acoustic + weights.word * beams.words
    for weight, of_automaton in zip(weights.automata, ended, strict=True):
        scores += weight * of_automaton
    scores, best = lax.top_k(scores, num_best)
    lm_scores = jnp.zeros_like(acoustic) if lm is None else ended[lm]
    tokens, num_tokens = _traced(moves, best, beams.last.shape[1])
    found = scores > _NEVER
    return Hypotheses(
        tokens=jnp.where(found[..., None], tokens, 0),
        num_tokens=jnp.where(found, num_tokens, 0),
        scores=scores,
        acoustic_scores=jnp.take_along_axis(acoustic, best, axis=1),
        lm_scores=jnp.where(found, jnp.take_along_axis(lm_scores, best, axis=1), 0),
    )


def _check(num_columns, blank_id, delimiter_id, beam_size, beam_size_token, num_best) -> None:
    for name, size in (("beam_size", beam_size), ("beam_size_token", beam_size_token), ("num_best", num_best)):
        if size < 1:
            raise SettingError(f"{name} is {size}; it must be at least 1")
    if num_best > beam_size:
        raise SettingError(f"num_best is {num_best}; a beam of {beam_size} has no more than that")
    for name, token in (("blank_id", blank_id), ("delimiter_id", delimiter_id)):
        if token is not None and not 0 <= token < num_columns:
            raise SettingError(f"{name} is {token}; with {num_columns} log_probs it must be 0 to {num_columns - 1}")


def _search(log_probs, num_frames, step, empty: _Beam) -> tuple[_Beam, Int[Array, "T B K"]]:
    """The rows' beams after their last frames, and each frame's moves: ``(token + 1) * K + place in the last beam``."""
    num_rows, length, _ = log_probs.shape
    beams = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_rows, *x.shape)), empty)
    stay = jnp.arange(empty.last.size, dtype=jnp.int32)
    moves = jnp.broadcast_to(stay, (length, num_rows, stay.size))
    if not length:
        return beams, moves
    frames = jnp.moveaxis(log_probs, 1, 0)

    def advance(t, carry):
        beams, moves = carry
        next_beams, move = step(beams, frames[t])
        is_frame = t < num_frames
        rows = [is_frame.reshape(-1, *(1,) * (x.ndim - 1)) for x in beams]
        beams = _Beam(*(jnp.where(row, new, old) for row, new, old in zip(rows, next_beams, beams, strict=True)))
        return beams, lax.dynamic_update_index_in_dim(moves, jnp.where(is_frame[:, None], move, stay), t, 0)

    return lax.fori_loop(0, jnp.minimum(jnp.max(num_frames, initial=0), length), advance, (beams, moves))


def _empty(automata: list[Automaton], k: int) -> _Beam:
    """A beam with the empty prefix; in the places without a prefix all has probability 0."""
    never, zeros = jnp.full(k, _NEVER), jnp.zeros((len(automata), k))
    root = jnp.broadcast_to(jnp.array([[0x243F6A88], [0x85A308D3]], jnp.uint32), (2, k))  # any numbers: digits of pi
    return _Beam(
        blank=never.at[0].set(0.0),
        label=never,
        scores=zeros,
        words=jnp.zeros(k),
        states=jnp.stack([jnp.full(k, a.start) for a in automata]) if automata else zeros.astype(jnp.int32),
        last=jnp.full(k, _NOTHING),
        hashes=root,
        parents=~root,
    )


def _step(
    beam: _Beam, log_probs: Float[Array, " V"], *, automata, weights: _Weights, blank_id, delimiter_id, num_tokens
) -> tuple[_Beam, Int[Array, " K"]]:
    """One row's beam after a frame, and its moves."""
    total = jnp.logaddexp(beam.blank, beam.label)
    labels = log_probs.at[blank_id].set(_NEVER)
    tokens = jnp.arange(labels.size) if num_tokens == labels.size else lax.top_k(labels, num_tokens)[1]
    after_same = tokens == beam.last[:, None]  # only past a blank is it another token
    extended = jnp.where(after_same, beam.blank[:, None], total[:, None]) + labels[tokens]
    arriving, extended = _merged(beam, total, labels, extended, after_same)
    blank, label = total + log_probs[blank_id], jnp.logaddexp(beam.label + labels[beam.last], arriving)

    bonus, bonuses = weights.word * beam.words, weights.word * (tokens == delimiter_id)
    for weight, automaton, scores, states in zip(weights.automata, automata, beam.scores, beam.states, strict=True):
        bonus += weight * scores
        bonuses += weight * automaton.scores[states[:, None], tokens]
    stays, extends = jnp.logaddexp(blank, label) + bonus, extended + (bonus[:, None] + bonuses)
    best = lax.top_k(jnp.concatenate([stays, extends.reshape(-1)]), stays.size)[1]
    return _taken(best, beam, blank, label, extended, tokens, automata=automata, delimiter_id=delimiter_id)


def _taken(best: Int[Array, " K"], beam: _Beam, blank, label, extended, tokens, *, automata, delimiter_id):
    """The next beam, with the best of the K prefixes that stay and the K * A extensions after them; and its moves."""
    k, num_tokens = extended.shape
    extends, index = best >= k, jnp.maximum(best - k, 0)
    place = jnp.where(extends, index // num_tokens, best)
    token = jnp.where(extends, tokens[index % num_tokens], _NOTHING)
    hashes, states = beam.hashes[:, place], beam.states[:, place]
    steps = [(a.scores[s, token], a.next_states[s, token]) for a, s in zip(automata, states, strict=True)]
    gains, next_states = (jnp.stack(x) for x in zip(*steps, strict=True)) if steps else (jnp.zeros((0, k)), states)
    taken = _Beam(
        blank=jnp.where(extends, _NEVER, blank[place]),
        label=jnp.where(extends, extended.reshape(-1)[index], label[place]),
        scores=beam.scores[:, place] + jnp.where(extends, gains, 0),
        words=beam.words[place] + (extends & (token == delimiter_id)),
        states=jnp.where(extends, next_states, states),
        last=jnp.where(extends, token, beam.last[place]),
        hashes=jnp.where(extends, _hash(hashes, token), hashes),
        parents=jnp.where(extends, hashes, beam.parents[:, place]),
    )
    return taken, (token + 1) * k + place


def _merged(beam: _Beam, total, labels, extended, after_same) -> tuple[Float[Array, " K"], Float[Array, "K A"]]:
    """What comes to each prefix from its parent, if that is in the beam, and the extensions without those."""
    # A prefix of probability 0 is no longer in the beam. As a parent it would do no harm: argmax finds the first, and
    # all of them come after those that are alive.
    alive = total > _NEVER
    is_child = jnp.all(beam.parents[:, :, None] == beam.hashes[:, None, :], axis=0) & alive[:, None]
    parent, has_parent = jnp.argmax(is_child, axis=1), jnp.any(is_child, axis=1)
    arriving = jnp.where(beam.last == beam.last[parent], beam.blank[parent], total[parent]) + labels[beam.last]
    column, has_column = jnp.argmax(after_same, axis=1), jnp.any(after_same, axis=1)
    row = jnp.where(has_parent & has_column, parent, len(parent))  # one beyond the last is dropped
    return jnp.where(has_parent, arriving, _NEVER), extended.at[row, column].set(_NEVER, mode="drop")


def _hash(hashes: UInt[Array, "2 K"], token: Int[Array, " K"]) -> UInt[Array, "2 K"]:
    """The hashes of prefixes extended by a token: different ones for different tokens and for different prefixes."""
    odd = jnp.array([[0x9E3779B1, 0x85EBCA77], [0xC2B2AE3D, 0x27D4EB2F]], jnp.uint32)
    x = (hashes ^ ((token.astype(jnp.uint32) + 1) * odd[0][:, None])) * odd[1][:, None]
    x = (x ^ (x >> 15)) * odd[0][:, None]
    return x ^ (x >> 13)


def _traced(
    moves: Int[Array, "T B K"], best: Int[Array, "B N"], k: int
) -> tuple[Int[Array, "B N T"], Int[Array, "B N"]]:
    """The tokens of the prefixes at these places of the last beam, and how many they are."""

    def back(place, move):
        move = jnp.take_along_axis(move, place, axis=1)
        return move % k, move // k - 1

    tokens = jnp.moveaxis(lax.scan(back, best, moves, reverse=True)[1], 0, -1)
    is_token = tokens != _NOTHING
    position = jnp.where(is_token, jnp.cumsum(is_token, axis=-1) - 1, tokens.shape[-1])
    rows, hypotheses = jnp.indices(best.shape, sparse=True)
    packed = jnp.zeros_like(tokens).at[rows[..., None], hypotheses[..., None], position].set(tokens, mode="drop")
    return packed, jnp.sum(is_token, axis=-1)

"""n-gram models over a CTC vocabulary as dense arrays: one look-up per token, with no backing off left to do.

A state stands for all that the model still needs of the tokens before: the longest of its contexts that they end in.
For each state and token, the arrays have the log-probability and the next state. A context that tells no more than its
ending does is no state of its own. NeMo's NGPU-LM has the same states in sparse arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mms_jax.ctc.arpa import SENTENCE_MARKS, Arpa, find
from mms_jax.errors import LanguageModelError

MAX_BYTES = 256 << 20  # of a model's arrays: a million contexts of 32 tokens
UNKNOWN = ("<unk>", "<UNK>")  # what ARPA files call words that they do not have
MISSING_LOG10 = -100.0  # of words that a model without <unk> does not have, as KenLM does it
_LN_10 = math.log(10)
_ITEM_BYTES = 8  # an int32 and a float32 per state and token


class Automaton(NamedTuple):
    """A score for every sequence of tokens, in steps: from state and token to score and next state. S states, V tokens.

    A pytree: it goes through jit as an argument, so another model of the same size compiles nothing anew.
    """

    next_states: Int[Array, "S V"]
    scores: Float[Array, "S V"]  # natural logarithms
    final_scores: Float[Array, " S"]  # for ending there
    start: Int[Array, ""]


def dense_ngram(arpa: Arpa, *, tokens: Sequence[str], max_bytes: int = MAX_BYTES) -> Automaton:
    """The model's scores of sequences of ``tokens``, in natural logarithms, after <s> and with </s> at the end.

    A token is the word of the same spelling. One that the model does not have, and <s> and </s> as tokens, which are no
    text, score as the model's <unk>, or 1e-100 if it has none. The result is that of backing off word by word, and
    KenLM's, within a few roundings of float32.

    Raises LanguageModelError if the arrays would take more than ``max_bytes``; the message has the numbers.
    """
    columns = _Columns(arpa, tokens)
    contexts = _contexts(arpa, columns)
    num_states = 1 + sum(len(indices) for indices in contexts)
    num_bytes = num_states * (len(tokens) + 1) * _ITEM_BYTES
    if num_bytes > max_bytes:
        raise LanguageModelError(
            f"{arpa.path}: {num_states:,} contexts of {len(tokens):,} tokens take {num_bytes / 2**20:,.0f} MB as dense "
            f"arrays, more than {max_bytes / 2**20:,.0f} MB; prune the model, make one of a lower order than "
            f"{arpa.order}, or decode with flashlight"
        )
    state_of, backoff_states = _numbered(arpa, contexts)
    scores, next_states = _tables(arpa, columns, contexts, state_of, backoff_states)
    start = state_of[0][arpa.words.index("<s>")]
    return Automaton(
        next_states=jnp.asarray(next_states[:, columns.of_tokens]),
        scores=jnp.asarray(scores[:, columns.of_tokens]),
        final_scores=jnp.asarray(scores[:, columns.end]),
        start=jnp.asarray(start, jnp.int32),
    )


class _Columns:
    """The columns of the tables: a word each, </s> among them, as several tokens may be the same unknown word."""

    def __init__(self, arpa: Arpa, tokens: Sequence[str]) -> None:
        ids = {word: i for i, word in enumerate(arpa.words)}
        unknown = next((ids[word] for word in UNKNOWN if word in ids), -1)
        of_tokens = [unknown if token in SENTENCE_MARKS else ids.get(token, unknown) for token in tokens]
        self.words, inverse = np.unique([*of_tokens, ids["</s>"]], return_inverse=True)  # -1: no word at all
        self.of_tokens, self.end = inverse[:-1], int(inverse[-1])
        self.of_words = np.full(len(arpa.words), -1)
        self.of_words[self.words[self.words >= 0]] = np.flatnonzero(self.words >= 0)
        self.may_precede = self.of_words >= 0
        self.may_precede[ids["</s>"]] = False
        self.may_begin = self.may_precede.copy()
        self.may_begin[ids["<s>"]] = True


def _contexts(arpa: Arpa, columns: _Columns) -> list[np.ndarray]:
    """For each order but the highest, the indices of the n-grams that are states."""
    contexts = []
    for shorter, longer in pairwise(arpa.ngrams):
        reachable = columns.may_begin[shorter.words[:, 0]] & np.all(columns.may_precede[shorter.words[:, 1:]], axis=1)
        continued = np.zeros(len(shorter.words), bool)
        continued[longer.contexts[columns.of_words[longer.words[:, -1]] >= 0]] = True
        contexts.append(np.flatnonzero(reachable & (continued | (shorter.backoffs != 0))))
    return contexts


def _numbered(arpa: Arpa, contexts: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The state after each n-gram, and that to which each context backs off, per order; 0 has no context.

    The state after an n-gram is that of its longest ending which is one, up to itself.
    """
    state_of: list[np.ndarray] = []
    backoff_states: list[np.ndarray] = []
    num_states = 1
    for n, ngrams in enumerate(arpa.ngrams, 1):
        states = _ending_states(arpa, state_of, ngrams.words[:, 1:])
        if n < arpa.order:
            backoff_states.append(states[contexts[n - 1]])
            states[contexts[n - 1]] = np.arange(num_states, num_states + len(contexts[n - 1]), dtype=np.int32)
            num_states += len(contexts[n - 1])
        state_of.append(states)
    return state_of, backoff_states


def _ending_states(arpa: Arpa, state_of: list[np.ndarray], words: np.ndarray) -> np.ndarray:
    """The state after each row of words, [M, n]: that of the longest ending which the model lists."""
    states = np.zeros(len(words), np.int32)
    unsettled = np.arange(len(words))
    for start in range(words.shape[1]):
        if not len(unsettled):
            break
        ending = words[unsettled, start:]
        indices = find(arpa.ngrams, ending)
        listed = indices >= 0
        states[unsettled[listed]] = state_of[ending.shape[1] - 1][indices[listed]]
        unsettled = unsettled[~listed]
    return states


def _tables(
    arpa: Arpa,
    columns: _Columns,
    contexts: list[np.ndarray],
    state_of: list[np.ndarray],
    backoff_states: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, float32, and next states, int32, of all states and columns: of each order from those of shorter ones."""
    num_states = 1 + sum(map(len, contexts))
    scores = np.full((num_states, len(columns.words)), MISSING_LOG10 * _LN_10, np.float32)
    next_states = np.zeros((num_states, len(columns.words)), np.int32)
    first = 0
    for n, ngrams in enumerate(arpa.ngrams, 1):
        if n > 1:
            indices, states = contexts[n - 2], backoff_states[n - 2]
            rows = slice(first, first + len(indices))
            backoffs = arpa.ngrams[n - 2].backoffs[indices] * np.float32(_LN_10)
            scores[rows] = scores[states] + backoffs[:, None]
            next_states[rows] = next_states[states]
        column = columns.of_words[ngrams.words[:, -1]]
        row = state_of[n - 2][ngrams.contexts] if n > 1 else np.zeros_like(column)
        here = (column >= 0) & ((row >= first) if n > 1 else True)
        scores[row[here], column[here]] = ngrams.log_probs[here] * np.float32(_LN_10)
        next_states[row[here], column[here]] = state_of[n - 1][here]
        first += len(contexts[n - 2]) if n > 1 else 1
    return scores, next_states

"""Hotwords for beam search: texts with a boost each, as an automaton over tokens (Aho and Corasick 1975).

While a hotword is being spelt, a text has the share of the boost that is spelt so far, or beams would drop it before
the boost comes; what leaves the hotword gives it back. So in the end every whole occurrence has the whole boost, and
nothing else has any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from mms_jax.ctc.dense_ngram import Automaton
from mms_jax.errors import SettingError


def hotword_automaton(
    hotwords: Sequence[tuple[Sequence[int], float]], *, num_tokens: int, delimiter_id: int | None = None
) -> Automaton:
    """An automaton that gives each occurrence of a hotword its boost, in nats; a negative boost makes it unlikely.

    A hotword is its tokens, out of ``num_tokens``. With ``delimiter_id`` only whole words count, from the beginning of
    one to the end of one, and a hotword may be several, with delimiters between; delimiters around it are left out.

    Raises SettingError for a hotword without tokens or with one outside the vocabulary, and a boost that is not finite.
    """
    for tokens, boost in hotwords:
        if not math.isfinite(boost):
            raise SettingError(f"the boost of the hotword {list(tokens)} is {boost}; it must be a finite number")
        if not all(0 <= token < num_tokens for token in tokens):
            raise SettingError(f"the hotword {list(tokens)} has tokens outside 0 to {num_tokens - 1}")
    tree = _Tree()
    for tokens, boost in hotwords:
        own = _stripped(list(tokens), delimiter_id)
        if not own:
            raise SettingError(f"the hotword {list(tokens)} has no tokens but delimiters; leave it out")
        tree.add(own, boost, delimiter_id)
    next_states, shares, boosts = tree.tables(num_tokens)
    gains = boosts + shares
    whole = 0 if delimiter_id is None else boosts[next_states[:, delimiter_id]]  # the end also ends a word
    return Automaton(
        next_states=jnp.asarray(next_states),
        scores=jnp.asarray(gains[next_states] - shares[:, None], jnp.float32),
        final_scores=jnp.asarray(whole - shares, jnp.float32),
        start=jnp.asarray(0 if delimiter_id is None else next_states[0, delimiter_id], jnp.int32),
    )


def _stripped(tokens: list[int], delimiter_id: int | None) -> list[int]:
    while tokens and tokens[0] == delimiter_id:
        tokens = tokens[1:]
    while tokens and tokens[-1] == delimiter_id:
        tokens = tokens[:-1]
    return tokens


class _Tree:
    """The beginnings of all hotwords; node 0 is empty."""

    def __init__(self) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.shares = [0.0]  # of a boost, at each node
        self.boosts = [0.0]  # of what is whole there

    def add(self, tokens: list[int], boost: float, delimiter_id: int | None) -> None:
        """Enter a hotword, with delimiters around it if there are any."""
        around = [] if delimiter_id is None else [delimiter_id]
        spelt = range(len(tokens) + 1 if around else len(tokens))  # how much of it is, at the nodes before the last
        node = 0
        for i, token in enumerate([*around, *tokens, *around]):
            if token not in self.children[node]:
                self.children[node][token] = len(self.children)
                self.children.append({})
                self.shares.append(0.0)
                self.boosts.append(0.0)
            node = self.children[node][token]
            own = i if around else i + 1
            if own in spelt:
                self.shares[node] = max(self.shares[node], boost * own / len(tokens))
        self.boosts[node] += boost

    def tables(self, num_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next state of each state and token, and the share and boost of each state, endings of it included."""
        next_states = np.zeros((len(self.children), num_tokens), np.int32)
        shares, boosts = np.array(self.shares), np.array(self.boosts)
        next_states[0, list(self.children[0])] = list(self.children[0].values())
        waiting = [(child, 0) for child in self.children[0].values()]  # nodes with their longest endings in the tree
        for node, ending in waiting:
            shares[node] = max(shares[node], shares[ending])
            boosts[node] += boosts[ending]
            next_states[node] = next_states[ending]
            waiting += [(child, next_states[ending, token]) for token, child in self.children[node].items()]
            next_states[node, list(self.children[node])] = list(self.children[node].values())
        return next_states, shares, boosts

"""Beam search by flashlight-text in processes of their own; run by its path, so that JAX is not imported here.

flashlight-text holds Python's lock while it searches, so threads would wait for each other; and what KenLM makes of a
damaged file must not end the user's process. The first process reads the language models, then forks the others, which
share them. Each serves one socket: messages are a JSON object and bytes behind it (see ``send`` and ``receive``).
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_HEADER = struct.Struct("<IQ")  # bytes of the JSON object, bytes behind it
UNSPOKEN = -1e4  # log probability of what a frame cannot be; finite, so that sums of it can be compared


def send(connection: socket.socket, message: dict[str, Any], data: bytes = b"") -> None:
    """Send a JSON object, and bytes behind it."""
    text = json.dumps(message).encode()
    connection.sendall(_HEADER.pack(len(text), len(data)) + text)
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytearray] | None:
    """What ``send`` sent; None when the other side is gone."""
    header = _read(connection, _HEADER.size)
    if header is None:
        return None
    text_size, data_size = _HEADER.unpack(header)
    text, data = _read(connection, text_size), _read(connection, data_size)
    return None if text is None or data is None else (json.loads(text), data)


def _read(connection: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        got = connection.recv_into(view[done:])
        if got == 0:
            return None
        done += got
    return data


class Decoder(NamedTuple):
    """All that one language is searched with."""

    lm: Any
    trie: Any | None  # None: any spelling
    blank_id: int
    delimiter_id: int  # -1: none
    unk_index: int  # of the words
    is_token_lm: bool
    has_hotwords: bool


def load(plan: dict[str, Any]) -> Decoder:
    """Read the language model and build the trie that ``plan`` (of ``plans.Plan``) asks for."""
    from flashlight.lib.text import decoder as flashlight
    from flashlight.lib.text.dictionary import Dictionary

    words, tokens = plan["words"], plan["tokens"]
    is_token_lm = plan["is_token_lm"]
    names = tokens if is_token_lm else words
    if plan["lm"] is None:
        lm: Any = flashlight.ZeroLM()
    else:
        from flashlight.lib.text.decoder.kenlm import KenLM

        lm = KenLM(plan["lm"], Dictionary(names))
    trie = None
    if plan["spellings"] is not None:
        trie = _trie(plan, lm=None if is_token_lm else lm)
    if plan["hotwords"]:
        lm = _boosted(lm, plan["hotwords"], boundary=plan["delimiter_id"] if is_token_lm else None)
    return Decoder(
        lm, trie, plan["blank_id"], plan["delimiter_id"], plan["unk_index"], is_token_lm, bool(plan["hotwords"])
    )


def _trie(plan: dict[str, Any], *, lm: Any) -> Any:
    """Every word by its letters, and at every node the best language model score below it."""
    from flashlight.lib.text import decoder as flashlight

    trie = flashlight.Trie(len(plan["tokens"]), plan["delimiter_id"])
    start = None if lm is None else lm.start(False)
    for index, spelling in plan["spellings"]:
        score = 0.0 if lm is None else lm.score(start, index)[1]
        trie.insert(spelling, index, score)
    trie.smear(flashlight.SmearingMode.MAX)
    return trie


def _boosted(lm: Any, hotwords: Sequence[Sequence[int]], *, boundary: int | None) -> Any:
    """A language model that also counts the hotwords it has seen; see ``Hotwords``."""
    from flashlight.lib.text import decoder as flashlight

    automaton = Hotwords(hotwords, boundary=boundary)

    class Boosted(flashlight.LM):  # an instance of theirs, so that their search can call it
        def __init__(self) -> None:
            flashlight.LM.__init__(self)
            self.bonus = 0.0  # for a whole phrase, in units of the language model
            self.states: dict[Any, tuple[Any, int]] = {}

        def start(self, start_with_nothing: bool) -> Any:
            self.states = {}
            state = flashlight.LMState()
            self.states[state] = lm.start(start_with_nothing), automaton.start
            return state

        def score(self, state: Any, index: int) -> tuple[Any, float]:
            inner, node = self.states[state]
            inner, score = lm.score(inner, index)
            following, share = automaton.step(node, index)
            state = state.child(index)
            self.states.setdefault(state, (inner, following))
            return state, score + self.bonus * share

        def finish(self, state: Any) -> tuple[Any, float]:
            inner, node = self.states[state]
            inner, score = lm.finish(inner)
            share = automaton.finish(node)
            state = state.child(-1)
            self.states.setdefault(state, (inner, automaton.start))
            return state, score + self.bonus * share

    return Boosted()


class Hotwords:
    """Phrases as a trie: a step gives its share of a phrase, and one that leads out of it takes all shares back.

    So only a whole phrase keeps its bonus, once. ``phrases`` are word indices, or, with ``boundary`` (the word
    delimiter), token ids, which then count between word boundaries only.
    """

    OUTSIDE = -1  # within a word that starts no phrase

    def __init__(self, phrases: Sequence[Sequence[int]], *, boundary: int | None):
        self.start = 0
        self._boundary = boundary
        self._children: list[dict[int, int]] = [{}]
        self._granted = [0.0]  # of a phrase, on the way to each node
        self._whole = [False]  # whether a phrase is complete here, if it ends here
        self._kept = [False]  # whether one is complete whatever follows
        for phrase in phrases:
            self._insert(phrase)
        self._settle(self.start)

    def _insert(self, phrase: Sequence[int]) -> None:
        node = self.start
        for depth, symbol in enumerate(phrase, start=1):
            if symbol not in self._children[node]:
                self._children[node][symbol] = len(self._children)
                self._children.append({})
                self._granted.append(0.0)
                self._whole.append(False)
                self._kept.append(False)
            node = self._children[node][symbol]
            self._granted[node] = max(self._granted[node], depth / len(phrase))
        self._whole[node] = True

    def _settle(self, start: int) -> None:
        """Below a phrase that is complete, another one is not needed for the bonus."""
        todo = [start]
        while todo:
            node = todo.pop()
            for symbol, child in self._children[node].items():
                if self._kept[node] or (self._whole[node] and self._ends(symbol)):
                    self._kept[child], self._granted[child] = True, 1.0
                todo.append(child)

    def _ends(self, symbol: int) -> bool:
        """Whether a word is over before this symbol."""
        return self._boundary is None or symbol == self._boundary

    def step(self, node: int, symbol: int) -> tuple[int, float]:
        """The node behind a symbol, and the change of what is granted."""
        following = self._children[node].get(symbol) if node != self.OUTSIDE else None
        if following is not None:
            return following, self._granted[following] - self._granted[node]
        change = self._leave(node, complete=self._ends(symbol))
        if self._boundary is not None:
            return (self.start if symbol == self._boundary else self.OUTSIDE), change
        following = self._children[self.start].get(symbol, self.start)
        return following, change + self._granted[following]

    def finish(self, node: int) -> float:
        """The change at the end."""
        return self._leave(node, complete=True)

    def _leave(self, node: int, *, complete: bool) -> float:
        if node == self.OUTSIDE:
            return 0.0
        return float(self._kept[node] or (self._whole[node] and complete)) - self._granted[node]


def search(decoder: Decoder, task: dict[str, Any], log_probs: np.ndarray) -> tuple[list[dict[str, Any]], bytes]:
    """The best hypotheses for float32 [T, V]; and int32, the tokens of all of them, end to end."""
    if decoder.has_hotwords:
        decoder.lm.bonus = task["hotword_weight"] / task["lm_weight"]
    if decoder.trie is not None:  # a word ends with its delimiter, so the last one is given one
        last = np.full((1, log_probs.shape[1]), UNSPOKEN, np.float32)
        last[0, decoder.delimiter_id] = 0.0
        log_probs = np.concatenate([log_probs, last])
    log_probs = np.ascontiguousarray(np.maximum(log_probs, UNSPOKEN), np.float32)
    found: dict[tuple[int, ...], dict[str, Any]] = {}  # by what is read
    texts: list[tuple[int, ...]] = []
    for result in _flashlight(decoder, task).decode(log_probs.ctypes.data, *log_probs.shape):
        words = [word for word in result.words if word >= 0]
        tokens = collapsed(result.tokens[1 : len(log_probs) + 1], decoder)  # a silence stands at either end
        reading = tuple(words) if decoder.trie is not None else _stripped(tokens, decoder.delimiter_id)
        if reading in found or not math.isfinite(result.score):
            continue
        lm_score = result.lmScore
        found[reading] = {"score": result.score, "lm_score": lm_score, "words": words, "num_tokens": len(tokens)}
        texts.append(tokens)
        if len(found) == task["num_best"]:
            break
    return list(found.values()), np.array([token for tokens in texts for token in tokens], np.int32).tobytes()


def collapsed(path: Sequence[int], decoder: Decoder) -> tuple[int, ...]:
    """What is read in frames: repeats merged, blanks dropped."""
    merged = [token for token, before in zip(path, [-1, *path], strict=False) if token != before]
    return tuple(token for token in merged if token != decoder.blank_id)


def _stripped(tokens: Sequence[int], delimiter_id: int) -> tuple[int, ...]:
    """Without delimiters that part nothing."""
    before = [delimiter_id, *tokens]
    kept = [token for token, last in zip(tokens, before, strict=False) if not token == last == delimiter_id]
    return tuple(kept[:-1] if kept and kept[-1] == delimiter_id else kept)


def _flashlight(decoder: Decoder, task: dict[str, Any]) -> Any:
    from flashlight.lib.text import decoder as flashlight

    beams = task["beam_size"], task["beam_size_token"], task["beam_threshold"], task["lm_weight"]
    ctc = flashlight.CriterionType.CTC
    if decoder.trie is None:  # a word's score is that of its delimiter
        options = flashlight.LexiconFreeDecoderOptions(*beams, task["word_score"], True, ctc)
        return flashlight.LexiconFreeDecoder(options, decoder.lm, decoder.delimiter_id, decoder.blank_id, [])
    options = flashlight.LexiconDecoderOptions(*beams, task["word_score"], -math.inf, 0.0, True, ctc)
    return flashlight.LexiconDecoder(
        options,
        decoder.trie,
        decoder.lm,
        decoder.delimiter_id,
        decoder.blank_id,
        decoder.unk_index,
        [],
        decoder.is_token_lm,
    )


def _serve(connection: socket.socket, decoders: dict[int, Decoder | None]) -> None:
    """Load and search until the other side is gone."""
    while (request := receive(connection)) is not None:
        task, data = request
        if "plan" in task:
            decoders[task["decoder"]], error = _loaded(task["plan"])
            send(connection, {"errors": [error]})
            continue
        log_probs = np.frombuffer(data, np.float32).reshape(task["shape"])
        decoder = decoders[task["decoder"]]
        assert decoder is not None  # one that could not be loaded is not asked
        hypotheses, paths = search(decoder, task, log_probs)
        send(connection, {"hypotheses": hypotheses}, paths)


def _loaded(plan: dict[str, Any]) -> tuple[Decoder | None, str | None]:
    """A decoder, or why there is none."""
    try:
        return load(plan), None
    except (RuntimeError, ValueError, ImportError, MemoryError) as error:  # what KenLM throws is a RuntimeError
        return None, f"{type(error).__name__}: {error}"


def main(arguments: Sequence[str]) -> int:
    """Serve the sockets whose file descriptors are given."""
    connections = [socket.socket(fileno=int(number)) for number in arguments]
    request = receive(connections[0])
    if request is None:
        return 0
    message, _ = request
    loaded = [_loaded(plan) for plan in message["plans"]]
    send(connections[0], {"errors": [error for _, error in loaded]})
    own = connections[0]
    for connection in connections[1:]:
        if os.fork() == 0:
            own = connection
            break
    for connection in connections:
        if connection is not own:
            connection.close()
    _serve(own, {number: decoder for number, (decoder, _) in enumerate(loaded)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

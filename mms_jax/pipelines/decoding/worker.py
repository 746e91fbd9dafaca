"""Beam search by flashlight-text in processes of their own; run by its path, so that JAX is not imported here.

flashlight-text holds Python's lock while it searches, so threads would wait for each other; and what KenLM makes of a
damaged file must not end the user's process. The first process reads the language models, then forks the others, which
share them. Each serves one socket: messages are a JSON object and bytes behind it (see ``send`` and ``receive``).
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

_HEADER = struct.Struct("<IQ")  # bytes of the JSON object, bytes behind it
_LEAST_WEIGHT = 1e-6  # of a language model that bonuses are counted with
_UNKNOWN_WORD = 0  # its index, see ``plans.Plan``
_UNSPOKEN = -1e4  # log probability of what a frame cannot be; finite, so that sums of it can be compared


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
    boosted: Any  # the same, and bonuses on top of it; slower
    trie: Any | None  # None: any spelling
    blank_id: int
    delimiter_id: int  # -1: none
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
    boosted = _boosted(lm, plan["hotwords"], boundary=plan["delimiter_id"] if is_token_lm else None)
    ids = plan["blank_id"], plan["delimiter_id"]
    return Decoder(lm, boosted, trie, *ids, is_token_lm, bool(plan["hotwords"]))


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
    """A language model that also counts hotwords (see ``Hotwords``), and words where it is one of letters."""
    from flashlight.lib.text import decoder as flashlight

    automaton = Hotwords(hotwords, boundary=boundary)

    class Boosted(flashlight.LM):  # an instance of theirs, so that their search can call it
        def __init__(self) -> None:
            flashlight.LM.__init__(self)
            self.bonus = 0.0  # for a whole phrase, in units of the language model
            self.word_bonus = 0.0  # for a delimiter
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
            word = self.word_bonus if index == boundary else 0.0
            return state, score + self.bonus * share + word

        def finish(self, state: Any) -> tuple[Any, float]:
            inner, node = self.states[state]
            inner, score = lm.finish(inner)
            share = automaton.finish(node)
            state = state.child(-1)
            self.states.setdefault(state, (inner, automaton.start))
            return state, score + self.bonus * share

    return Boosted()


class Hotwords:
    """Phrases to be found (Aho and Corasick 1975): each occurrence counts 1, of which its beginning is an advance.

    What is advanced is taken back where the text goes on otherwise. ``phrases`` are word indices, or, with ``boundary``
    (the word delimiter), token ids, which count between word boundaries only.
    """

    def __init__(self, phrases: Sequence[Sequence[int]], *, boundary: int | None):
        self._around = [] if boundary is None else [boundary]
        self._children: list[dict[int, int]] = [{}]
        self._advance = [0.0]  # at each node
        self._ends = [0]  # phrases that are complete there
        self._shorter = [0]  # the node of the longest proper ending that begins a phrase
        for phrase in phrases:
            self._insert(phrase)
        self._link()
        self.start = self._after(0, self._around)

    def _insert(self, phrase: Sequence[int]) -> None:
        node = 0
        for depth, symbol in enumerate([*self._around, *phrase, *self._around], start=1 - len(self._around)):
            if symbol not in self._children[node]:
                self._children[node][symbol] = len(self._children)
                self._children.append({})
                self._advance.append(0.0)
                self._ends.append(0)
                self._shorter.append(0)
            node = self._children[node][symbol]
            if depth < len(phrase) + len(self._around):  # it is not complete
                self._advance[node] = max(self._advance[node], depth / len(phrase))
        self._ends[node] += 1

    def _link(self) -> None:
        """From the shortest beginnings on."""
        todo = deque(self._children[0].values())
        while todo:
            node = todo.popleft()
            self._ends[node] += self._ends[self._shorter[node]]
            self._advance[node] = max(self._advance[node], self._advance[self._shorter[node]])
            for symbol, child in self._children[node].items():
                self._shorter[child] = self._after(self._shorter[node], [symbol])
                todo.append(child)

    def _after(self, node: int, symbols: Sequence[int]) -> int:
        for symbol in symbols:
            while node and symbol not in self._children[node]:
                node = self._shorter[node]
            node = self._children[node].get(symbol, 0)
        return node

    def step(self, node: int, symbol: int) -> tuple[int, float]:
        """The node behind a symbol, and the change of what is counted."""
        following = self._after(node, [symbol])
        return following, self._ends[following] + self._advance[following] - self._advance[node]

    def finish(self, node: int) -> float:
        """The change at the end."""
        last = self._after(node, self._around)
        return (self._ends[last] if self._around else 0) - self._advance[node]


def search(decoder: Decoder, task: dict[str, Any], log_probs: np.ndarray) -> tuple[list[dict[str, Any]], bytes]:
    """The best hypotheses for float32 [T, V]; and int32, the tokens of all of them, end to end."""
    if decoder.trie is not None:  # a word ends with its delimiter, so the last one is given one
        last = np.full((1, log_probs.shape[1]), _UNSPOKEN, np.float32)
        last[0, decoder.delimiter_id] = 0.0
        log_probs = np.concatenate([log_probs, last])
    log_probs = np.ascontiguousarray(np.maximum(log_probs, _UNSPOKEN), np.float32)
    found: dict[tuple[int, ...], dict[str, Any]] = {}  # by what is read
    texts: list[tuple[int, ...]] = []
    for result in _flashlight(decoder, task).decode(log_probs.ctypes.data, *log_probs.shape):
        words = [word for word in result.words if word >= 0]
        tokens = _collapsed(result.tokens[1 : len(log_probs) + 1], decoder)  # a silence stands at either end
        reading = tuple(words) if decoder.trie is not None else _stripped(tokens, decoder.delimiter_id)
        if reading in found or not math.isfinite(result.score):
            continue
        lm_score = _lm_score(decoder.lm, tokens if decoder.is_token_lm else words)
        found[reading] = {"score": result.score, "lm_score": lm_score, "words": words, "num_tokens": len(tokens)}
        texts.append(tokens)
        if len(found) == task["num_best"]:
            break
    return list(found.values()), np.array([token for tokens in texts for token in tokens], np.int32).tobytes()


def _lm_score(lm: Any, indices: Sequence[int]) -> float:
    """log10 probability of a whole text, without bonuses."""
    state, total = lm.start(False), 0.0
    for index in indices:
        state, score = lm.score(state, index)
        total += score
    return total + lm.finish(state)[1]


def _collapsed(path: Sequence[int], decoder: Decoder) -> tuple[int, ...]:
    """What is read in frames: repeats merged, blanks dropped."""
    merged = [token for before, token in pairwise([-1, *path]) if token != before]
    return tuple(token for token in merged if token != decoder.blank_id)


def _stripped(tokens: Sequence[int], delimiter_id: int) -> tuple[int, ...]:
    """Without delimiters that part nothing."""
    pairs = pairwise([delimiter_id, *tokens])
    kept = [token for before, token in pairs if not token == before == delimiter_id]
    return tuple(kept[:-1] if kept and kept[-1] == delimiter_id else kept)


def _flashlight(decoder: Decoder, task: dict[str, Any]) -> Any:
    from flashlight.lib.text import decoder as flashlight

    ctc, word_score, lm_weight, lm = flashlight.CriterionType.CTC, task["word_score"], task["lm_weight"], decoder.lm
    if decoder.has_hotwords or (decoder.trie is None and word_score):
        # Without a lexicon flashlight would add a score for every frame of a delimiter, not for every delimiter.
        lm, lm_weight = decoder.boosted, max(lm_weight, _LEAST_WEIGHT)
        lm.bonus = task["hotword_weight"] / lm_weight
        lm.word_bonus = word_score / lm_weight if decoder.trie is None else 0.0
    beams = task["beam_size"], task["beam_size_token"], task["beam_threshold"], lm_weight
    ids = decoder.delimiter_id, decoder.blank_id
    if decoder.trie is None:
        options = flashlight.LexiconFreeDecoderOptions(*beams, 0.0, True, ctc)
        return flashlight.LexiconFreeDecoder(options, lm, *ids, [])
    options = flashlight.LexiconDecoderOptions(*beams, word_score, -math.inf, 0.0, True, ctc)
    return flashlight.LexiconDecoder(options, decoder.trie, lm, *ids, _UNKNOWN_WORD, [], decoder.is_token_lm)


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
        with _ended_by_hanging_up(connection):
            hypotheses, paths = search(decoder, task, log_probs)
        send(connection, {"hypotheses": hypotheses}, paths)


@contextmanager
def _ended_by_hanging_up(connection: socket.socket) -> Iterator[None]:
    """Within it, this process ends when the other side does, of which a search would be told too late.

    The other side says nothing while it waits, so the signal that something came on the socket is that of its end.
    """
    import fcntl  # late: this file is also imported by the other side, which may be where there is none

    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        yield
    finally:
        fcntl.fcntl(connection, fcntl.F_SETFL, flags)


def _loaded(plan: dict[str, Any]) -> tuple[Decoder | None, str | None]:
    """A decoder, or why there is none."""
    try:
        return load(plan), None
    except (RuntimeError, ValueError, ImportError, MemoryError) as error:  # what KenLM throws is a RuntimeError
        return None, f"{type(error).__name__}: {error}"


def main(arguments: Sequence[str]) -> int:
    """Serve the sockets whose file descriptors are given, until the other side lets go of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to all; the other side decides what ends
    with suppress(ConnectionError):  # in the middle of an answer, which nobody waits for any more
        _load_and_serve([socket.socket(fileno=int(number)) for number in arguments])
    return 0


def _load_and_serve(connections: Sequence[socket.socket]) -> None:
    request = receive(connections[0])
    if request is None:
        return
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The beam search of ``mms_jax.ctc``, where the model runs: pieces of recordings in batches."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from mms_jax.ctc.arpa import read_arpa
from mms_jax.ctc.dense_ngram import Automaton, dense_ngram
from mms_jax.ctc.hotwords import hotword_automaton
from mms_jax.ctc.prefix_beam import Hypotheses, prefix_beam_search
from mms_jax.errors import LanguageModelError
from mms_jax.features import next_bucket
from mms_jax.pipelines.decoding.beam import Hypothesis, Task
from mms_jax.pipelines.decoding.plans import Plan

ROWS = 16  # most pieces in a batch
FIRST_BUCKET, BUCKET_RATIO = 128, 1.5  # of frames: few shapes, as a search compiles for longer than a frame takes
_LN_10 = math.log(10)
_STATIC = ("blank_id", "delimiter_id", "beam_size", "beam_size_token", "num_best")

_search = partial(jax.jit, static_argnames=_STATIC)(prefix_beam_search)


class Ticket:
    """A piece that waits for a batch, or its results."""

    def __init__(self, decoders: DeviceDecoders):
        self._decoders = decoders
        self.found: list[Hypothesis] | Exception | None = None

    def result(self) -> list[Hypothesis]:
        """What was found; searches all that waits."""
        if self.found is None:
            self._decoders.run()
        assert self.found is not None
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class _Piece(NamedTuple):
    ticket: weakref.ref[Ticket]  # gone where a call was interrupted
    log_probs: np.ndarray


class DeviceDecoders:
    """Decoders on the device for language models of letters.

    Raises:
        LanguageModelError: a binary, one of words, a lexicon, or one that is too large for dense arrays.
    """

    broken = False  # nothing of it can get lost

    def __init__(self, plans: Sequence[Plan]):
        self._lock = threading.Lock()
        self._plans: list[Plan] = []
        self._ngrams: list[Automaton | None] = []
        self._waiting: dict[tuple[int, Task], list[_Piece]] = {}
        for plan in plans:
            self.add(plan)

    def add(self, plan: Plan) -> int:
        """Another decoder; returns its number."""
        if plan.spellings is not None:
            raise LanguageModelError(
                f"{plan.name}: decoder='device' takes language models of letters and no lexicon; "
                "leave decoder out for words"
            )
        ngram = None if plan.lm is None else dense_ngram(read_arpa(plan.lm), tokens=plan.tokens)
        self._ngrams.append(ngram)
        self._plans.append(plan)
        return len(self._plans) - 1

    def submit(self, decoder: int, log_probs: np.ndarray, task: Task) -> Ticket:
        """Search float32 [T, V] with the next batch."""
        ticket = Ticket(self)
        with self._lock:
            self._waiting.setdefault((decoder, task), []).append(_Piece(weakref.ref(ticket), log_probs))
        return ticket

    def run(self) -> None:
        """Search all that waits."""
        with self._lock:
            while self._waiting:
                (decoder, task), pieces = self._waiting.popitem()
                pieces = [piece for piece in pieces if piece.ticket() is not None]
                pieces.sort(key=lambda piece: len(piece.log_probs))
                for first in range(0, len(pieces), ROWS):
                    self._run_batch(decoder, task, pieces[first : first + ROWS])

    def _run_batch(self, decoder: int, task: Task, pieces: Sequence[_Piece]) -> None:
        plan = self._plans[decoder]
        num_frames = max(len(piece.log_probs) for piece in pieces)
        num_rows = 1 << (len(pieces) - 1).bit_length()  # powers of two, so that few shapes compile
        shape = num_rows, next_bucket(num_frames, first=FIRST_BUCKET, ratio=BUCKET_RATIO), len(plan.tokens)
        values, counts = np.zeros(shape, np.float32), np.zeros(num_rows, np.int32)
        for row, piece in enumerate(pieces):
            values[row, : len(piece.log_probs)] = piece.log_probs
            counts[row] = len(piece.log_probs)
        try:
            found = jax.device_get(self._searched(plan, self._ngrams[decoder], task, values, counts))
        except Exception as error:  # such as no memory: for those who wait for it, in whichever threads
            results: list[Any] = [error] * len(pieces)
        else:
            results = [_hypotheses(found, row) for row in range(len(pieces))]
        for piece, result in zip(pieces, results, strict=True):
            ticket = piece.ticket()
            if ticket is not None:
                ticket.found = result

    def _searched(
        self, plan: Plan, ngram: Automaton | None, task: Task, values: np.ndarray, counts: np.ndarray
    ) -> Hypotheses:
        delimiter = None if plan.delimiter_id < 0 else plan.delimiter_id
        hotwords: Any = None
        if plan.hotwords:
            boosts = [(phrase, task.hotword_weight) for phrase in plan.hotwords]
            hotwords = hotword_automaton(boosts, num_tokens=len(plan.tokens), delimiter_id=delimiter)
        return _search(
            values,
            counts,
            blank_id=plan.blank_id,
            delimiter_id=delimiter,
            ngram=ngram,
            hotwords=hotwords,
            beam_size=task.beam_size,
            beam_size_token=task.beam_size_token,
            lm_weight=task.lm_weight / _LN_10,  # the weight is that of log10 probabilities
            word_score=task.word_score,
            num_best=min(task.beam_size, 2 * task.num_best),  # texts may come twice: "a" and "a |"
        )


def _hypotheses(found: Hypotheses, row: int) -> list[Hypothesis]:
    """Those of a row that there are."""
    return [
        Hypothesis(float(score), float(lm_score) / _LN_10, tokens[:count], ())
        for tokens, count, score, lm_score in zip(
            found.tokens[row], found.num_tokens[row], found.scores[row], found.lm_scores[row], strict=True
        )
        if np.isfinite(score)
    ]

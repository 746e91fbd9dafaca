"""Processes that search: started once for a set of decoders, given log probabilities, waited for by futures."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from mms_jax.errors import LanguageModelError, SettingError
from mms_jax.pipelines.decoding import worker
from mms_jax.pipelines.decoding.beam import Hypothesis, Task
from mms_jax.pipelines.decoding.plans import Plan
from mms_jax.pipelines.decoding.worker import receive, send

_STOP_SECONDS = 5.0
_NOT_READ_BY_WORKERS = ("vocabulary", "difference")
Answer = tuple[dict[str, Any], bytearray]  # a JSON object, and the bytes behind it
Tasks = queue.SimpleQueue[tuple[Future[list[Hypothesis]], Callable[[], list[Hypothesis]]] | None]


class DecoderPool:
    """Decoders in ``num_processes`` processes; close it, or let it go.

    Those of ``plans`` are in memory once, whatever the number of processes; those that are added are in each of them.

    Raises:
        LanguageModelError: a language model cannot be read; names it. SettingError: flashlight-text is not installed.
    """

    def __init__(self, plans: Sequence[Plan], *, num_processes: int):
        if find_spec("flashlight") is None:
            raise SettingError(
                "the beam search needs flashlight-text, which is not here (there are no wheels for Python 3.13): "
                "pip install flashlight-text, or take decoder='device'"
            )
        self._plans = list(plans)
        own, theirs = zip(*(socket.socketpair() for _ in range(num_processes)), strict=True)
        numbers = [connection.fileno() for connection in theirs]
        self._process = subprocess.Popen(
            [sys.executable, worker.__file__, *map(str, numbers)],
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # KenLM draws a progress bar there
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # or forking would be unsafe
        )
        for connection in theirs:
            connection.close()
        self.broken = False  # whether a process is gone
        tasks: Tasks = queue.SimpleQueue()
        self._tasks = tasks
        for _ in range(num_processes):  # not those of concurrent.futures, which end when all is searched, whoever waits
            threading.Thread(target=_work, args=(tasks,), name="beam-search", daemon=True).start()
        self._idle: queue.SimpleQueue[tuple[socket.socket, set[int]]] = queue.SimpleQueue()
        self.close = weakref.finalize(self, _close, os.getpid(), tasks, own, self._process)
        described = [_described(plan) for plan in plans]
        self._check(_ask(own[0], {"plans": described}), range(len(plans)))
        for connection in own:
            self._idle.put((connection, set(range(len(plans)))))

    def add(self, plan: Plan) -> int:
        """Another decoder; returns its number."""
        self._plans.append(plan)
        return len(self._plans) - 1

    def submit(self, decoder: int, log_probs: np.ndarray, task: Task) -> Future[list[Hypothesis]]:
        """Search float32 [T, V] with one of the decoders, when a process has time."""
        future: Future[list[Hypothesis]] = Future()
        self._tasks.put((future, partial(self._search, decoder, log_probs, task)))
        return future

    def _search(self, decoder: int, log_probs: np.ndarray, task: Task) -> list[Hypothesis]:
        message: dict[str, Any] = {"decoder": decoder, "shape": list(log_probs.shape), **task._asdict()}
        connection, known = self._idle.get()
        try:
            if decoder not in known:
                plan = _described(self._plans[decoder])
                self._check(_ask(connection, {"decoder": decoder, "plan": plan}), [decoder])
                known.add(decoder)
            answer = _ask(connection, message, np.ascontiguousarray(log_probs, np.float32).tobytes())
        finally:
            self._idle.put((connection, known))
        if answer is None:
            self.broken = True
            raise LanguageModelError(
                f"{self._name(decoder)}: a process of the beam search ended in the middle of it; "
                "the file is damaged, or there was not enough memory"
            )
        tokens = np.frombuffer(answer[1], np.int32)
        ends = np.cumsum([one["num_tokens"] for one in answer[0]["hypotheses"]])
        return [
            Hypothesis(one["score"], one["lm_score"], tokens[end - one["num_tokens"] : end], tuple(one["words"]))
            for one, end in zip(answer[0]["hypotheses"], ends, strict=True)
        ]

    def _check(self, answer: Answer | None, decoders: Sequence[int]) -> None:
        """Raise unless decoders could be loaded."""
        if answer is None:
            self.broken = True
            names = ", ".join(dict.fromkeys(map(self._name, decoders)))
            raise LanguageModelError(
                f"{names}: reading it ended the process that does; the file is damaged, or there is not enough memory"
            )
        for decoder, error in zip(decoders, answer[0]["errors"], strict=True):
            if error is not None:
                raise LanguageModelError(f"{self._name(decoder)}: cannot be read: {_reason(error)}")

    def _name(self, decoder: int) -> str:
        return self._plans[decoder].name


def _described(plan: Plan) -> dict[str, Any]:
    names = [field.name for field in fields(plan)]
    return {name: getattr(plan, name) for name in names if name not in _NOT_READ_BY_WORKERS}


def _ask(
    connection: socket.socket, message: dict[str, Any], data: bytes = b""
) -> tuple[dict[str, Any], bytearray] | None:
    """The answer to a message; None when the process is gone."""
    try:
        send(connection, message, data)
        return receive(connection)
    except OSError:
        return None


def _work(tasks: Tasks) -> None:
    """Do what comes, until there is None."""
    while (task := tasks.get()) is not None:
        future, search = task
        try:
            future.set_result(search())
        except Exception as error:  # whoever waits for it gets it
            future.set_exception(error)
        del task, future, search  # or this thread would keep its pool


def _close(owner: int, tasks: Tasks, connections: Sequence[socket.socket], process: subprocess.Popen[bytes]) -> None:
    if os.getpid() != owner:  # forked from it, which has the pool still
        return
    for connection in connections:
        tasks.put(None)
        with suppress(OSError):  # it is gone already
            connection.shutdown(socket.SHUT_RDWR)  # now, even if a thread waits for an answer
        connection.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(error: str) -> str:
    """What KenLM says, without where in its sources it says so."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return " ".join(lines[1:]) if len(lines) > 1 else error

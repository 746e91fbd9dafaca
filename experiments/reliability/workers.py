"""Runs a check many times in processes that may crash, hang or fill memory; each of these is told of the very check."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, NamedTuple

MB = 1 << 20
CRASH, HANG = "crash", "hang"
Check = Callable[[int], str]


class Outcome(NamedTuple):
    """What check ``number`` came to: its own word, or CRASH, or HANG; and the memory its process has grown by."""

    number: int
    what: str
    seconds: float
    grown: int  # bytes, of the resident memory's peak since the process was ready


class Worker:
    """A process that makes one check at a time."""

    def __init__(self, check: Check, prepare: Callable[[], object], memory: int):
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(check, prepare, memory, other), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that forks and threads do not mix: this process has started none
            self.process.start()
        other.close()
        self.pipe.recv()  # it is ready
        self.index: int | None = None
        self.begun = 0.0

    def begin(self, index: int) -> None:
        """Give it a check."""
        self.index, self.begun = index, time.monotonic()
        self.pipe.send(index)

    def end(self, what: str) -> Outcome:
        """Kill it, and say of its check that it was a CRASH or a HANG."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        assert self.index is not None
        if what == CRASH:
            what = f"{CRASH} ({self.process.exitcode})"
        return Outcome(self.index, what, time.monotonic() - self.begun, 0)

    def dismiss(self) -> None:
        """There is nothing more to do."""
        self.pipe.close()
        self.process.join(10)
        self.process.kill()


def outcomes(
    check: Check,
    count: int,
    *,
    prepare: Callable[[], object] = lambda: None,
    workers: int = 2,
    seconds: float = 2.0,
    memory: int = 1024 * MB,
) -> Iterator[Outcome]:
    """``check(0)`` to ``check(count - 1)``, in any order, in forked processes; one that dies or hangs is replaced.

    ``prepare`` is called once in each process; then ``memory`` bytes more of address space are what it may have, and
    ``seconds`` what a check may take.
    """
    waiting, idle, busy = iter(range(count)), [], []
    try:
        idle = [Worker(check, prepare, memory) for _ in range(workers)]
        while True:
            while idle and (index := next(waiting, None)) is not None:
                idle[-1].begin(index)
                busy.append(idle.pop())
            if not busy:
                return
            connection.wait([worker.pipe for worker in busy], timeout=0.1)
            for worker in [*busy]:
                outcome, usable = _outcome(worker, seconds)
                if outcome is not None:
                    busy.remove(worker)
                    idle.append(worker if usable else Worker(check, prepare, memory))
                    yield outcome
    finally:
        for worker in busy:
            worker.process.kill()
        for worker in (*idle, *busy):
            worker.dismiss()


def _outcome(worker: Worker, seconds: float) -> tuple[Outcome | None, bool]:
    """What a busy worker has come to, None as long as it may go on; and whether it can be used again."""
    if worker.pipe.poll():  # now: while another one was replaced, this one may have ended
        try:
            what, taken, grown = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return worker.end(CRASH), False
        assert worker.index is not None
        return Outcome(worker.index, what, taken, grown), True
    if time.monotonic() - worker.begun > seconds:
        return worker.end(HANG), False
    return None, True


def _serve(check: Check, prepare: Callable[[], object], memory: int, pipe: Any) -> None:
    prepare()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C comment on thousands of damaged files
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _status("VmSize") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = _status("VmRSS")
    pipe.send("ready")
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        begun = time.monotonic()
        what = _attempt(check, index)
        pipe.send((what, time.monotonic() - begun, _status("VmHWM") - before))


def _attempt(check: Check, index: int) -> str:
    try:
        return check(index)
    except Exception as error:  # what a check did not expect is what is looked for
        return f"untyped {type(error).__name__}: {error}"


def _status(name: str) -> int:
    """A figure of this process, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))

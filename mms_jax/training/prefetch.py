"""Batches prepared in the background while the device computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
DEPTH = 2  # of what is ready: one for the step to come, one that is being made
_END = object()


@contextmanager
def prefetched(items: Iterable[T], *, depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """The items, made by a thread that is at most ``depth`` ahead; what fails there is raised where it is reached.

    Leaving the block ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    left = threading.Event()

    def put(item: Any) -> None:
        while not left.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if left.is_set():
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    def results() -> Iterator[T]:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        left.set()
        thread.join()

"""Work that goes on while other work is waited for: items made in a thread, and calls whose results can wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class _Buffer:
    """Items that were made and not yet taken."""

    def __init__(self, limit: int):
        self.limit = limit
        self.items: deque = deque()  # (item, cost)
        self.held = 0
        self.ended = self.left = False
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def put(self, item: object, cost: int) -> bool:
        """Wait for room, which an empty buffer always has; False once nobody wants items any more."""
        with self.changed:
            self.changed.wait_for(lambda: self.left or not self.items or self.held + cost <= self.limit)
            if not self.left:
                self.items.append((item, cost))
                self.held += cost
                self.changed.notify_all()
            return not self.left

    def taken(self) -> Iterator:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.items or self.ended)
                if not self.items:
                    break
                item, cost = self.items.popleft()
                self.held -= cost
                self.changed.notify_all()
            yield item
            del item  # or it would be held while the next one is waited for
        if self.error is not None:
            raise self.error


@contextmanager
def made_ahead(items: Generator[T], *, cost: Callable[[T], int], limit: int) -> Iterator[Iterator[T]]:
    """The items of a generator, made in a thread before they are asked for; what fails there is raised in its place.

    Leaving the block ends the thread and closes the generator, after the item it is at.

    Args:
        items: the generator.
        cost: of an item.
        limit: of the cost of all items that wait, but one item may.
    """
    buffer = _Buffer(limit)

    def work() -> None:
        try:
            for item in items:
                if not buffer.put(item, cost(item)):
                    break
                del item
        except BaseException as error:  # raised by ``taken``
            buffer.error = error
        finally:
            items.close()
            with buffer.changed:
                buffer.ended = True
                buffer.changed.notify_all()

    thread = threading.Thread(target=work, name="mms_jax decoding", daemon=True)
    thread.start()
    try:
        yield buffer.taken()
    finally:
        with buffer.changed:
            buffer.left = True
            buffer.changed.notify_all()
        thread.join()


def one_call_behind(steps: Iterable[T], *, is_call: Callable[[T], bool]) -> Iterator[T]:
    """Steps in order, each once there is one call after it, or nothing more: a device has its next work by then.

    Args:
        steps: what makes one dispatches its call, if it is one.
        is_call: whether a step waits for a device.
    """
    waiting: deque[T] = deque()
    calls = 0
    for step in steps:
        waiting.append(step)
        calls += is_call(step)
        del step
        while waiting and (calls > 1 or not is_call(waiting[0])):
            calls -= is_call(waiting[0])
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()

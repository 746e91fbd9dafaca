"""How often XLA compiled something, whoever asked for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[float] = []


def _listen(event: str, duration_secs: float, **_: object) -> None:
    if event == _EVENT:
        _seen.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def compilations() -> Iterator[list[float]]:
    """A list that holds, at the end of the block, the seconds each compilation in it took."""
    before = len(_seen)
    found: list[float] = []
    yield found
    found += _seen[before:]

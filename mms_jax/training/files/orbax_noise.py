"""What orbax says beside the errors that it raises: its log, and what a failed save leaves behind in its threads.

A full disk fails hundreds of writes at once. The first ends the save with an error, which says all; each of the others
would print a traceback about an event loop that is closed, or about a task that nobody asked how it ended.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import absl.logging  # noqa: F401 - first: its logger must be of its own class, or records name absl as the caller

_LOGGERS = ("absl", "asyncio")


class OrbaxNoise(logging.Filter):
    """Kept from users from here on until ``close``, and after a failure for good: its tasks end whenever they do."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = False
        self._others = sys.unraisablehook
        sys.unraisablehook = self._ignore
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def close(self) -> None:
        """Let everything be heard again, unless something failed."""
        if self.failed:
            return
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self)
        if sys.unraisablehook == self._ignore:
            sys.unraisablehook = self._others

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is none of orbax's: its warnings are about its own use, its errors are raised elsewhere."""
        of_tasks = record.name == "asyncio" and f"{os.sep}orbax{os.sep}" in record.getMessage()
        return not of_tasks and f"{os.sep}orbax{os.sep}" not in record.pathname

    def _ignore(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed" and unraisable.object is None):
            self._others(unraisable)

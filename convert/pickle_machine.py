"""The machine below a pickle's values: the bytes, the stack and its marks, the memo, and the count of what is made.

Memory stays in proportion to the bytes read: announced lengths are checked against what is there, containers and copies
are counted, and the memo has no holes to speak of.
"""

from __future__ import annotations

import re
import struct
from typing import Any

from convert.conversion import ConversionError, UnsafeFileError
from convert.pickle_opcodes import METHODS, REFUSED

_MAX_MARKS = 1000  # containers open at once
_MAX_MEMO_GAP = 1024  # Python 2 counts from 1, and optimisers leave gaps
_MAX_PROTOCOL = 5
_MAX_DIGITS = 40

# A container takes about 64 bytes of memory and one byte of file. The densest checkpoint, mms-1b-all's 337,000 small
# tensors, makes one per 10 bytes of pickle; 256 kB may be as dense as they like.
_SPARE_CONTAINERS = 1 << 18
_BYTES_PER_CONTAINER = 8

UINT32, UINT64 = struct.Struct("<I"), struct.Struct("<Q")
_UNSET = object()  # a hole in the memo
_DECIMAL = re.compile(rb"-?[0-9]+")


class TruncatedError(ConversionError):
    """The bytes end before the pickle does."""


def decimal(text: bytes) -> int:
    """An integer of protocol 0; Python's int() takes more than digits."""
    if not _DECIMAL.fullmatch(text):
        raise ConversionError(f"damaged: {text!r} is no integer")
    return int(text)


class Machine:
    """One method per opcode; each takes the position after its opcode and returns that of the next one."""

    def __init__(self, data: bytes):
        self.data = data
        self.position = 0  # of the opcode at hand
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below the open marks
        self.memo: list[Any] = []
        self.max_containers = _SPARE_CONTAINERS + len(data) // _BYTES_PER_CONTAINER
        self.containers_left = self.max_containers
        self.end = 0

    def run(self, at: int) -> Any:
        """Interpret from byte ``at`` up to STOP, and return the one value left; ``end`` is the position after it.

        Raises:
            ConversionError: as ``read_pickle`` says; ``position`` is where.
        """
        data = self.data
        handlers = [getattr(self, method) for method in METHODS]
        begin = at
        try:
            while at >= 0:
                begin = at
                at = handlers[data[at]](at + 1)
        except ConversionError:
            raise
        except struct.error as error:
            raise TruncatedError("cut off") from error
        except IndexError as error:
            if begin + 1 >= len(data):
                raise TruncatedError("cut off") from error
            raise ConversionError("damaged: takes a value that is not there") from error
        except ValueError as error:  # text that is not UTF-8, a number that is none
            raise ConversionError(f"damaged ({error})") from error
        finally:
            self.position = begin
        if len(self.stack) != 1 or self.marks:
            raise ConversionError("damaged: ends with more or less than one value")
        return self.stack[0]

    def _refused(self, at: int) -> int:
        code = self.data[at - 1]
        if code in REFUSED:
            raise UnsafeFileError(f"uses the opcode {REFUSED[code]}, which no checkpoint needs")
        raise ConversionError(f"damaged: {code} is no opcode")

    def _proto(self, at: int) -> int:
        if self.data[at] > _MAX_PROTOCOL:
            raise ConversionError(f"pickle protocol {self.data[at]}, expected up to {_MAX_PROTOCOL}")
        return at + 1

    def _frame(self, at: int) -> int:
        self._take(at + 8, UINT64.unpack_from(self.data, at)[0])
        return at + 8

    def _stop(self, at: int) -> int:
        self.end = at
        return -1

    def _take(self, at: int, length: int) -> int:
        """The end of the ``length`` bytes from ``at``, all of which are there."""
        end = at + length
        if end > len(self.data):
            raise TruncatedError(f"cut off: {length:,} bytes announced, {max(0, len(self.data) - at):,} left")
        return end

    def _line(self, at: int, limit: int) -> tuple[bytes, int]:
        """The line from ``at``, without its end, and the position after it."""
        end = self.data.find(b"\n", at, at + limit)
        if end >= 0:
            return self.data[at:end], end + 1
        if at + limit > len(self.data):
            raise TruncatedError("cut off: a line does not end")
        raise UnsafeFileError(f"a line of over {limit:,} bytes")

    def _charge(self, count: int) -> None:
        """Count containers, or items that are copied."""
        self.containers_left -= count
        if self.containers_left < 0:
            raise UnsafeFileError(f"makes over {self.max_containers:,} containers or copies, too many for its size")

    def _mark(self, at: int) -> int:
        self._charge(1)
        if len(self.marks) >= _MAX_MARKS:
            raise UnsafeFileError(f"over {_MAX_MARKS} containers open at once")
        self.marks.append(self.stack)
        self.stack = []
        return at

    def _pop_mark(self) -> list[Any]:
        """The values above the topmost mark, which is gone."""
        below = self.marks.pop()
        items, self.stack = self.stack, below
        return items

    def _pop(self, at: int) -> int:
        if self.stack or not self.marks:
            self.stack.pop()
        else:  # the mark itself
            self._pop_mark()
        return at

    def _pop_marked(self, at: int) -> int:
        self._pop_mark()
        return at

    def _dup(self, at: int) -> int:
        self.stack.append(self.stack[-1])
        return at

    def _memoize(self, at: int) -> int:
        self.memo.append(self.stack[-1])
        return at

    def _binput(self, at: int) -> int:
        index, memo = self.data[at], self.memo
        if index == len(memo):  # nearly always: half the opcodes of a checkpoint are this one or the next
            memo.append(self.stack[-1])
        else:
            self._store(index)
        return at + 1

    def _long_binput(self, at: int) -> int:
        (index,), memo = UINT32.unpack_from(self.data, at), self.memo
        if index == len(memo):
            memo.append(self.stack[-1])
        else:
            self._store(index)
        return at + 4

    def _put(self, at: int) -> int:
        line, end = self._line(at, _MAX_DIGITS)
        self._store(decimal(line))
        return end

    def _store(self, index: int) -> None:
        memo = self.memo
        gap = index - len(memo)
        if gap > _MAX_MEMO_GAP or index < 0:
            raise UnsafeFileError(f"memo index {index:,} after {len(memo):,} entries")
        if gap >= 0:
            self._charge(gap)
            memo.extend([_UNSET] * (gap + 1))
        memo[index] = self.stack[-1]

    def _binget(self, at: int) -> int:
        value = self.memo[self.data[at]]
        if value is _UNSET:
            raise ConversionError(f"damaged: nothing at memo index {self.data[at]}")
        self.stack.append(value)
        return at + 1

    def _long_binget(self, at: int) -> int:
        self._load(UINT32.unpack_from(self.data, at)[0])
        return at + 4

    def _get(self, at: int) -> int:
        line, end = self._line(at, _MAX_DIGITS)
        self._load(decimal(line))
        return end

    def _load(self, index: int) -> None:
        value = self.memo[index] if index >= 0 else _UNSET
        if value is _UNSET:
            raise ConversionError(f"damaged: nothing at memo index {index}")
        self.stack.append(value)

"""Pickles read as data: an interpreter of the opcodes that builds plain values and never looks up, or calls, a name.

The format is Python's pickle, protocols 0 to 5 (Lib/pickletools.py describes every opcode). A global is an entry of a
fixed list, by its exact module and name, or the file is refused there and then. What a listed one makes is decided here
(pickle_values.py, pickle_tensors.py); the stack, the memo and the limits are pickle_machine.py's.
"""

from __future__ import annotations

import gc
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from convert import pickle_tensors, pickle_values
from convert.conversion import ConversionError, UnsafeFileError
from convert.pickle_checks import check_tree
from convert.pickle_machine import UINT32, UINT64, Machine, decimal
from convert.pickle_tensors import Storages
from convert.pickle_values import Record, Reference, check_key, make_set

_MAX_NAME = 300  # bytes of a module's name or a global's
_NAME_CHARS_SHOWN = 100
_MAX_INTEGER = 16  # bytes; PyTorch's magic number takes 10
_MAX_NUMBER = 400  # characters in protocol 0; the longest float written in full has 310
_MAX_LINE = 1 << 20  # bytes of a text in protocol 0
_SET_COST = 4  # an empty set takes 216 bytes, an empty dict 64
_CHARS_PER_COPY = 16  # a copied container item takes 16 times the memory of a copied byte

_INT32, _UINT16, _FLOAT64 = struct.Struct("<i"), struct.Struct("<H"), struct.Struct(">d")
_QUOTED = re.compile(rb"""'(?:[^'\\]|\\['"\\nrt]|\\x[0-9a-f]{2})*'|"(?:[^"\\]|\\['"\\nrt]|\\x[0-9a-f]{2})*\"""")
_PYTHON_2_MODULES = {"__builtin__": "builtins"}
_UNPICKLED_STATE = {"_metadata"}  # torch hangs module versions on a state dict; they are not kept

_BUILDERS = {**pickle_values.BUILDERS, **pickle_tensors.BUILDERS}
_REFERENCES = {tuple(name.rsplit(".", 1)): Reference(name) for name in (*pickle_values.NAMES, *pickle_tensors.NAMES)}


def read_pickle(data: bytes, at: int = 0, *, where: str, storages: Storages | None = None) -> tuple[Any, int]:
    """The value of the pickle that begins at byte ``at`` of ``data``, and the position after its end.

    The value is made of None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, Record, Reference and
    StoredTensor. Errors begin with ``where``. Without ``storages``, a tensor is an error.

    Raises:
        UnsafeFileError: it names a global that is not listed, or asks for more memory than its size explains.
        ConversionError: it is damaged or cut off, or a tensor does not fit its storage.
    """
    machine = _Interpreter(data, storages)
    try:
        with _collector_paused():
            value = machine.run(at)
        check_tree(value, max_items=machine.max_containers + len(data))
    except ConversionError as error:
        raise type(error)(f"{where}: {error} (byte {machine.position:,} of its pickles)") from None
    return value, machine.end


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the search for cycles, of which there are none: 3.0 instead of 2.0 million opcodes per second."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Interpreter(Machine):
    """The opcodes that make values."""

    def __init__(self, data: bytes, storages: Storages | None):
        super().__init__(data)
        self.storages = storages

    # --- numbers

    def _none(self, at: int) -> int:
        self.stack.append(None)
        return at

    def _true(self, at: int) -> int:
        self.stack.append(True)
        return at

    def _false(self, at: int) -> int:
        self.stack.append(False)
        return at

    def _int(self, at: int) -> int:
        line, end = self._line(at, _MAX_NUMBER)
        booleans = {b"00": False, b"01": True}
        self.stack.append(booleans[line] if line in booleans else self._bounded(decimal(line)))
        return end

    def _long(self, at: int) -> int:
        line, end = self._line(at, _MAX_NUMBER)
        self.stack.append(self._bounded(decimal(line.removesuffix(b"L"))))
        return end

    def _bounded(self, number: int) -> int:
        if number.bit_length() > 8 * _MAX_INTEGER:
            raise UnsafeFileError(f"an integer of {number.bit_length()} bits")
        return number

    def _float(self, at: int) -> int:
        line, end = self._line(at, _MAX_NUMBER)
        self.stack.append(float(line))
        return end

    def _binint(self, at: int) -> int:
        self.stack.append(_INT32.unpack_from(self.data, at)[0])
        return at + 4

    def _binint1(self, at: int) -> int:
        self.stack.append(self.data[at])
        return at + 1

    def _binint2(self, at: int) -> int:
        self.stack.append(_UINT16.unpack_from(self.data, at)[0])
        return at + 2

    def _long1(self, at: int) -> int:
        return self._integer(at + 1, self.data[at])

    def _long4(self, at: int) -> int:
        return self._integer(at + 4, UINT32.unpack_from(self.data, at)[0])

    def _integer(self, at: int, length: int) -> int:
        if length > _MAX_INTEGER:
            raise UnsafeFileError(f"an integer of {length:,} bytes")
        end = self._take(at, length)
        self.stack.append(int.from_bytes(self.data[at:end], "little", signed=True))
        return end

    def _binfloat(self, at: int) -> int:
        self.stack.append(_FLOAT64.unpack_from(self.data, at)[0])
        return at + 8

    # --- text and bytes

    def _binunicode(self, at: int) -> int:
        return self._text(at + 4, UINT32.unpack_from(self.data, at)[0])

    def _short_binunicode(self, at: int) -> int:
        return self._text(at + 1, self.data[at])

    def _binunicode8(self, at: int) -> int:
        return self._text(at + 8, UINT64.unpack_from(self.data, at)[0])

    def _text(self, at: int, length: int) -> int:
        end = self._take(at, length)
        self.stack.append(self.data[at:end].decode())
        return end

    def _unicode(self, at: int) -> int:
        line, end = self._line(at, _MAX_LINE)
        text = line.decode("raw-unicode-escape")
        text.encode()  # half a surrogate pair is a UnicodeEncodeError
        self.stack.append(text)
        return end

    def _binbytes(self, at: int) -> int:
        return self._bytes(at + 4, UINT32.unpack_from(self.data, at)[0])

    def _short_binbytes(self, at: int) -> int:
        return self._bytes(at + 1, self.data[at])

    def _binbytes8(self, at: int) -> int:
        return self._bytes(at + 8, UINT64.unpack_from(self.data, at)[0])

    def _bytes(self, at: int, length: int) -> int:
        end = self._take(at, length)
        self.stack.append(self.data[at:end])
        return end

    def _binstring(self, at: int) -> int:
        return self._python_2_text(at + 4, UINT32.unpack_from(self.data, at)[0])

    def _short_binstring(self, at: int) -> int:
        return self._python_2_text(at + 1, self.data[at])

    def _python_2_text(self, at: int, length: int) -> int:
        end = self._take(at, length)
        self.stack.append(_text_or_bytes(self.data[at:end]))
        return end

    def _string(self, at: int) -> int:
        line, end = self._line(at, _MAX_LINE)
        if not _QUOTED.fullmatch(line):
            raise ConversionError("damaged: a text of protocol 0 that is not quoted")
        self.stack.append(_text_or_bytes(line[1:-1].decode("unicode-escape").encode("latin-1")))
        return end

    # --- containers

    def _push_container(self, value: Any) -> None:
        self._charge(1)
        self.stack.append(value)

    def _empty_list(self, at: int) -> int:
        self._push_container([])
        return at

    def _list(self, at: int) -> int:
        self._push_container(self._pop_mark())
        return at

    def _append(self, at: int) -> int:
        item = self.stack.pop()
        self._top(list).append(item)
        return at

    def _appends(self, at: int) -> int:
        items = self._pop_mark()
        self._top(list).extend(items)
        return at

    def _top(self, kind: type) -> Any:
        """The value on top of the stack, which has to be of this very type."""
        value = self.stack[-1]
        if type(value) is not kind:
            raise ConversionError(f"damaged: puts items into a {type(value).__name__}, expected a {kind.__name__}")
        return value

    def _empty_tuple(self, at: int) -> int:
        self.stack.append(())
        return at

    def _tuple(self, at: int) -> int:
        self._push_container(tuple(self._pop_mark()))
        return at

    def _tuple1(self, at: int) -> int:
        return self._short_tuple(at, 1)

    def _tuple2(self, at: int) -> int:
        return self._short_tuple(at, 2)

    def _tuple3(self, at: int) -> int:
        return self._short_tuple(at, 3)

    def _short_tuple(self, at: int, length: int) -> int:
        items = tuple(self.stack[-length:])
        if len(items) != length:
            raise ConversionError("damaged: takes a value that is not there")
        self._charge(1)
        self.stack[-length:] = [items]
        return at

    def _empty_dict(self, at: int) -> int:
        self._push_container({})
        return at

    def _dict(self, at: int) -> int:
        items = self._pop_mark()
        self._push_container({})
        self._fill(self.stack[-1], items)
        return at

    def _setitem(self, at: int) -> int:
        value, key = self.stack.pop(), self.stack.pop()
        check_key(key)
        self._top(dict)[key] = value
        return at

    def _setitems(self, at: int) -> int:
        items = self._pop_mark()
        self._fill(self._top(dict), items)
        return at

    def _fill(self, target: dict, items: list) -> None:
        if len(items) % 2:
            raise ConversionError("damaged: a key without a value")
        keys = items[::2]
        for key in keys:
            check_key(key)
        target.update(zip(keys, items[1::2], strict=True))

    def _empty_set(self, at: int) -> int:
        self._charge(_SET_COST - 1)
        self._push_container(set())
        return at

    def _additems(self, at: int) -> int:
        items = self._pop_mark()
        self._top(set).update(make_set(items))
        return at

    def _frozenset(self, at: int) -> int:
        self._push_container(frozenset(make_set(self._pop_mark())))
        return at

    # --- names, and what is made of them

    def _global(self, at: int) -> int:
        module, at = self._line(at, _MAX_NAME)
        name, at = self._line(at, _MAX_NAME)
        self.stack.append(_resolve(module.decode(), name.decode()))
        return at

    def _stack_global(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise UnsafeFileError("a global whose name is no text")
        self.stack.append(_resolve(module, name))
        return at

    def _reduce(self, at: int) -> int:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if type(function) is not Reference:
            raise UnsafeFileError(f"calls a {type(function).__name__}")
        build = _BUILDERS.get(function.name)
        if build is None or type(arguments) is not tuple:
            raise UnsafeFileError(f"calls {function.name} in a way that no checkpoint does")
        self._charge(1)
        if arguments and function.name in pickle_values.COPYING:
            self._charge_copies(arguments)
        self.stack[-1] = build(arguments)
        return at

    def _charge_copies(self, arguments: tuple) -> None:
        for value in arguments:
            if type(value) in (str, bytes):
                self._charge(len(value) // _CHARS_PER_COPY)
            elif type(value) in (list, tuple, dict, set, frozenset):
                self._charge(len(value))

    def _newobj(self, at: int) -> int:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Reference:
            raise UnsafeFileError(f"makes an object of a {type(kind).__name__}")
        if kind.name not in pickle_values.RECORDS or arguments != ():
            raise UnsafeFileError(f"makes a {kind.name} in a way that no checkpoint does")
        self._push_container(Record(kind.name))
        return at

    def _build(self, at: int) -> int:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Record and target.state is None:
            target.state = _state(target, state)
        elif type(target) is not dict or type(state) is not dict or not state.keys() <= _UNPICKLED_STATE:
            what = target.name if isinstance(target, Record | Reference) else f"a {type(target).__name__}"
            raise UnsafeFileError(f"sets attributes of {what}")
        return at

    def _binpersid(self, at: int) -> int:
        if self.storages is None:
            raise ConversionError("refers to a tensor where there is none")
        self.stack[-1] = self.storages.declare(self.stack[-1])
        return at


def _resolve(module: str, name: str) -> Reference:
    """The listed global of this very module and name; a dot in the name finds none."""
    reference = _REFERENCES.get((_PYTHON_2_MODULES.get(module, module), name))
    if reference is None:
        shown = f"{module}.{name}"[:_NAME_CHARS_SHOWN]
        raise UnsafeFileError(
            f"asks for {shown!r}, which is code that this reader does not know and will not run; it holds more than "
            "tensors and plain values: where you trust it, load it with its own program and save the state dict alone"
        )
    return reference


def _state(target: Record, state: object) -> Any:
    """The attributes of a record: a dict; of a numpy dtype, a tuple."""
    if target.name == "numpy.dtype" and type(state) is tuple:
        return state
    if target.name not in pickle_values.RECORDS or type(state) is not dict:
        raise UnsafeFileError(f"sets the state of a {target.name} to a {type(state).__name__}")
    if target.name in pickle_values.OMEGACONF:
        state.pop("_parent", None)  # every node holds the one that holds it
    return state


def _text_or_bytes(content: bytes) -> str | bytes:
    """A Python 2 string: str where it is UTF-8, else bytes."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content

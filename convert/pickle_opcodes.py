"""The opcodes of pickle protocols 0 to 5: which method of the interpreter runs each, and which are never run."""

from __future__ import annotations

_HANDLED = {
    # the stream and the stack
    b"\x80": "proto",
    b"\x95": "frame",
    b".": "stop",
    b"(": "mark",
    b"0": "pop",
    b"1": "pop_marked",
    b"2": "dup",
    # the memo
    b"p": "put",
    b"q": "binput",
    b"r": "long_binput",
    b"\x94": "memoize",
    b"g": "get",
    b"h": "binget",
    b"j": "long_binget",
    # numbers
    b"N": "none",
    b"\x88": "true",
    b"\x89": "false",
    b"I": "int",
    b"L": "long",
    b"F": "float",
    b"J": "binint",
    b"K": "binint1",
    b"M": "binint2",
    b"\x8a": "long1",
    b"\x8b": "long4",
    b"G": "binfloat",
    # text and bytes
    b"S": "string",
    b"T": "binstring",
    b"U": "short_binstring",
    b"V": "unicode",
    b"X": "binunicode",
    b"\x8c": "short_binunicode",
    b"\x8d": "binunicode8",
    b"B": "binbytes",
    b"C": "short_binbytes",
    b"\x8e": "binbytes8",
    b"\x96": "binbytes8",  # a bytearray, which nobody changes here
    # containers
    b"]": "empty_list",
    b"l": "list",
    b"a": "append",
    b"e": "appends",
    b")": "empty_tuple",
    b"t": "tuple",
    b"\x85": "tuple1",
    b"\x86": "tuple2",
    b"\x87": "tuple3",
    b"}": "empty_dict",
    b"d": "dict",
    b"s": "setitem",
    b"u": "setitems",
    b"\x8f": "empty_set",
    b"\x90": "additems",
    b"\x91": "frozenset",
    # names, and what is made of them
    b"c": "global",
    b"\x93": "stack_global",
    b"R": "reduce",
    b"\x81": "newobj",
    b"b": "build",
    b"Q": "binpersid",
}
METHODS = tuple(f"_{_HANDLED.get(bytes([code]), 'refused')}" for code in range(256))

# By code. Checkpoints hold none of these; each is one more way to call something or to take data from elsewhere.
REFUSED = {
    ord("i"): "INST",
    ord("o"): "OBJ",
    ord("P"): "PERSID",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x92: "NEWOBJ_EX",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}

"""Malicious pickles: that call, that build what may not be built, and that exhaust memory, time or the stack."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

TENSOR = (  # a tensor of two floats in storage 0
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89}tR"
)
GOOD = b"\x80\x02" + TENSOR + b"."


class _Call:
    """Unpickled, it calls."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def calls(canary: Path) -> dict[str, _Call]:
    """Objects that, unpickled, make the file ``canary`` (or set an environment variable), each in its own way."""
    touch = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    return {
        "os.system": _Call(os.system, f"touch {canary}"),
        "eval": _Call(builtins.eval, touch),
        "exec": _Call(builtins.exec, touch),
        "open": _Call(builtins.open, str(canary), "w"),
        "Popen": _Call(subprocess.Popen, ["touch", str(canary)]),
        "check_output": _Call(subprocess.check_output, ["touch", str(canary)]),
        "Path.touch": _Call(Path.touch, canary),
        "putenv": _Call(os.putenv, "MMS_JAX_CANARY", "1"),
        "getattr": _Call(builtins.getattr, Path, "touch"),
        "loads": _Call(pickle.loads, pickle.dumps(_Call(os.system, f"touch {canary}"))),
        "import": _Call(builtins.__import__, "this"),
        "compile": _Call(builtins.compile, touch, "x", "exec"),
    }


def as_text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


NAMES = (
    *("os.system", "posix.system", "nt.system", "builtins.eval", "builtins.exec", "builtins.getattr"),
    *("__builtin__.eval", "__builtin__.apply", "builtins.__import__", "builtins.open", "builtins.compile"),
    *("subprocess.Popen", "subprocess.run", "commands.getoutput", "pty.spawn", "runpy._run_code", "sys.exit"),
    *("importlib.import_module", "operator.attrgetter", "operator.methodcaller", "operator.getitem"),
    *("functools.partial", "types.CodeType", "types.FunctionType", "ctypes.CDLL", "code.interact", "timeit.timeit"),
    *("copyreg._reconstructor", "copyreg.__newobj__", "copy_reg.add_extension", "pickle.loads", "_pickle.loads"),
    *("marshal.loads", "shelve.open", "shutil.rmtree", "webbrowser.open", "socket.create_connection"),
    *("torch.load", "torch.hub.load", "torch.storage._load_from_bytes", "torch.jit.load", "torch.ops.load_library"),
    *("torch.serialization.load", "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor"),
    *("torch.nn.modules.linear.Linear", "numpy.load", "numpy.core.multiarray._reconstruct", "numpy.memmap"),
    *("fairseq.data.dictionary.os", "argparse.FileType", "argparse.ArgumentParser", "omegaconf.OmegaConf"),
    *("collections.namedtuple", "typing.get_type_hints", "builtins.type", "builtins.object", "builtins.globals"),
)
DOTTED = (
    ("collections", "OrderedDict.__init__.__globals__"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections.OrderedDict", "fromkeys"),
    ("collections", "abc.sys.modules"),
    ("argparse", "Namespace.__init__"),
    ("argparse", "_os.system"),
    ("torch", "_utils._rebuild_tensor_v2"),
    ("torch._utils", "torch.hub.load"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch._utils", "_rebuild_tensor_v2 "),
    ("torch._utils\0", "_rebuild_tensor_v2"),
    ("typing", "Any.__class__"),
    ("typing", "sys.modules"),
    ("", "os.system"),
    ("os", ""),
    ("builtins", "set.__class__"),
    ("bu\u0131ltins", "set"),
    ("Builtins", "set"),
    ("_codecs", "encode.__self__"),
)


def globals_asked_for() -> dict[str, bytes]:
    """Names that are not listed: merely named, called, by protocol 2 and by protocol 4."""
    pairs = [*(tuple(name.rsplit(".", 1)) for name in NAMES), *DOTTED]
    attacks = {}
    for module, name in pairs:
        label = ascii(f"{module}.{name}")
        attacks[f"GLOBAL {label}"] = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + as_text("touch x") + b"tR."
        attacks[f"STACK_GLOBAL {label}"] = (
            b"\x80\x04" + as_text(module) + as_text(name) + b"\x93" + as_text("x") + b"\x85R."
        )
    return attacks


_ORDERED = b"ccollections\nOrderedDict\n"
_SPACE = b"cargparse\nNamespace\n)\x81"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_DEFAULTS = b"}" + as_text("__defaults__") + b")s"

OPCODES = {
    "STACK_GLOBAL from the memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x01x\x85R.",
    "STACK_GLOBAL with a doubled name": b"\x80\x04\x8c\x04eval2\x93.",
    "STACK_GLOBAL overwriting the memo": b"\x80\x04\x8c\x05torch\x940\x8c\x02osq\x000h\x00\x8c\x06system\x93.",
    "STACK_GLOBAL of bytes": b"\x80\x04C\x02osC\x06system\x93.",
    "STACK_GLOBAL of Python 2 text": b"\x80\x04U\x02osU\x06system\x93.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "STACK_GLOBAL of a global": b"\x80\x04" + _ORDERED + b"\x8c\x08__init__\x93.",
    "INST": b"(S'touch x'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x01\0\0\0xo.",
    "OBJ of a listed class": b"(cargparse\nNamespace\no.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\0\0\0.",
    "PERSID": b"Pos.system\n.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05C\x01x\x98.",
    "NEWOBJ_EX": b"\x80\x04cargparse\nNamespace\n)}\x92.",
    "NEWOBJ of a function": b"\x80\x02" + REBUILD + b")\x81.",
    "NEWOBJ of an inert name": b"\x80\x02ctyping\nAny\n)\x81.",
    "NEWOBJ with arguments": b"\x80\x02cargparse\nNamespace\nK\x01\x85\x81.",
    "NEWOBJ of text": b"\x80\x02" + as_text("os") + b")\x81.",
    "REDUCE of text": as_text("os.system") + b")R.",
    "REDUCE of a record": b"\x80\x02" + _SPACE + b")R.",
    "REDUCE of a number": b"K\x01)R.",
    "REDUCE of an inert name": b"ctyping\nAny\n)R.",
    "REDUCE of a class that is only a name": b"c__builtin__\ndict\n)R.",
    "REDUCE of a record's class": b"cargparse\nNamespace\n)R.",
    "REDUCE with a list": _ORDERED + b"]R.",
    "BUILD of a function's defaults": REBUILD + _DEFAULTS + b"b.",
    "BUILD of a class": _ORDERED + _DEFAULTS + b"b.",
    "BUILD of an inert name": b"ctyping\nAny\n" + _DEFAULTS + b"b.",
    "BUILD of a dict's class": _ORDERED + b")R}" + as_text("__class__") + b"K\x01sb.",
    "BUILD of a dict with a tuple": _ORDERED + b")RN}\x86b.",
    "BUILD of a plain dict": b"}}" + as_text("a") + b"Nsb.",
    "BUILD of a list": b"]}b.",
    "BUILD of text": as_text("a") + b"}b.",
    "BUILD of a tensor": GOOD[:-1] + _DEFAULTS + b"b.",
    "BUILD of a record twice": b"\x80\x02" + _SPACE + b"}b}b.",
    "BUILD of a record's slots": b"\x80\x02" + _SPACE + b"N}\x86b.",
    "BUILD of a record with None": b"\x80\x02" + _SPACE + b"Nb.",
    "BUILD of a device": b"\x80\x02ctorch\ndevice\n" + as_text("cpu") + b"\x85R}b.",
    "BUILD of a dtype with a dict": b"\x80\x02cnumpy\ndtype\n" + as_text("f8") + b"\x85R}b.",
    "numpy object scalar": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
    + as_text("O8")
    + b"\x85RK\x01\x86R.",
    "codec other than Latin-1": b"\x80\x02c_codecs\nencode\n" + as_text("x") + as_text("rot13") + b"\x86R.",
    "defaultdict that calls": b"\x80\x02ccollections\ndefaultdict\n" + as_text("x") + b"}\x86R.",
    "persistent id of a module": b"(" + as_text("module") + as_text("os") + b"tQ.",
    "persistent id of text": as_text("storage") + b"Q.",
    "APPEND to a tuple": b")K\x01a.",
    "APPEND to a record": b"\x80\x02" + _SPACE + b"K\x01a.",
    "SETITEM of a record": b"\x80\x02" + _SPACE + as_text("a") + b"K\x01s.",
    "SETITEM of a global": _ORDERED + as_text("a") + b"K\x01s.",
    "ADDITEMS to a list": b"\x80\x04](K\x01\x90.",
    "code behind STOP": GOOD + b"cos\nsystem\n(" + as_text("touch x") + b"tR.",
    "another protocol": b"\x80\x06N.",
    "opcode 0": b"\0.",
    "opcode 255": b"\xff.",
    "empty stack": b"\x80\x02.",
    "two values": b"NN.",
    "open mark": b"(N.",
    "nothing": b"",
    "no STOP": b"N",
}

_LAUGHS = b"]q\x00K\x01a" + b"".join(
    b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(40)
)
_MANY = b"](" + b"K\x01" * 200_000 + b"eq\x000"


def memory() -> dict[str, bytes]:
    """Pickles that ask for more memory, time or stack than their size explains."""
    text = b"B" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    huge = struct.pack("<Q", 1 << 63)
    return {
        "BINUNICODE8 of 2^63": b"\x80\x04\x8d" + huge + b"x.",
        "BINBYTES8 of 2^63": b"\x80\x04\x8e" + huge + b"x.",
        "BYTEARRAY8 of 2^63": b"\x80\x05\x96" + huge + b"x.",
        "BYTEARRAY8 of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        "FRAME of 2^63": b"\x80\x04\x95" + huge + b"N.",
        "FRAME of 2^64 - 1": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        "BINUNICODE of 2^32 - 1": b"X\xff\xff\xff\xffx.",
        "BINBYTES of 2^32 - 1": b"B\xff\xff\xff\xffx.",
        "BINSTRING of -1": b"T\xff\xff\xff\xffx.",
        "LONG4 of 2^31 - 1": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
        "LONG4 of -1": b"\x80\x02\x8b\xff\xff\xff\xffx.",
        "LONG1 of 255 bytes": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
        "INT of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "LONG of 300 digits": b"L" + b"9" * 300 + b"L\n.",
        "UNICODE of 2 MB": b"V" + b"x" * (2 << 20) + b"\n.",
        "GLOBAL of 1 MB": b"c" + b"x" * (1 << 20) + b"\nx\n.",
        "memo index of 2^32 - 1": b"Nr\xff\xff\xff\xff.",
        "memo index of 10^30": b"Np" + b"9" * 30 + b"\n.",
        "memo index of -1": b"Np-1\n.",
        "memo that skips": b"".join(b"Nr" + struct.pack("<I", 1000 * i) + b"0" for i in range(1, 5000)) + b"N.",
        "GET of nothing": b"Nr\x05\0\0\0h\x02.",
        "GET of -1": b"Np0\ng-1\n.",
        "lists 100,000 deep": b"]" * 100_000 + b"a" * 99_999 + b".",
        "tuples 100,000 deep": b")" + b"\x85" * 100_000 + b".",
        "tuples 1,000 deep": b")" + b"\x85" * 1000 + b".",
        "dicts 100,000 deep": b"}K\x01" * 100_000 + b"N" + b"s" * 100_000 + b".",
        "marks 100,000 deep": b"(" * 100_000 + b".",
        "a key that is 100,000 tuples deep": b"})" + b"\x85" * 100_000 + b"Ns.",
        "billion laughs": _LAUGHS + b".",
        "billion laughs of tuples": b"K\x01" + b"2\x86" * 60 + b".",
        "billion laughs of records": b"\x80\x02N"
        + (b"q\x00" + _SPACE + b"}" + as_text("a") + b"h\x00s" + as_text("b") + b"h\x00sb") * 60
        + b".",
        "a list that holds itself": b"]q\x00h\x00a.",
        "a dict that holds itself": b"}q\x00K\x01h\x00s.",
        "a tuple that holds itself": b"]q\x00h\x00\x85aq\x01.",
        "a record that holds itself": b"\x80\x02" + _SPACE + b"q\x00}" + as_text("a") + b"h\x00sb.",
        "2 million sets": b"\x80\x04(" + b"\x8f" * (2 << 20) + b"l.",
        "2 million lists": b"(" + b"]" * (2 << 20) + b"l.",
        "a set copied 1,000 times": _MANY + b"(" + b"c__builtin__\nset\nh\x00\x85R" * 1000 + b"l.",
        "a dict copied 1,000 times": b"]("
        + b"K\x01K\x02\x86" * 100_000
        + b"eq\x000("
        + (_ORDERED + b"h\x00\x85R") * 1000
        + b"l.",
        "text copied 1,000 times": b"X"
        + text[1:]
        + b"q\x000"
        + as_text("latin1")
        + b"q\x010("
        + b"c_codecs\nencode\nh\x00h\x01\x86R" * 1000
        + b"l.",
        "keys of one hash": b"}("
        + b"".join(b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for k in range(1, 50_000))
        + b"u.",
        "a key that is a list": b"}]Ns.",
        "a key that is a record": b"\x80\x02}" + _SPACE + b"Ns.",
        "a set of tuples": b"\x80\x04\x8f()\x90.",
        "half a surrogate pair": b"X\x03\0\0\0\xed\xa0\x80.",
    }

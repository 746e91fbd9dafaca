"""What a pickle's names stand for here: inert values in place of classes, none of whose code is ever looked up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from convert.conversion import ConversionError

# A dict of integers that all have one hash takes quadratic time. Python's hash of an integer is itself modulo 2^61 - 1.
_MAX_KEY = 1 << 60


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """A class or function that the file names: its name, and nothing more."""

    name: str


@dataclasses.dataclass(slots=True, eq=False)
class Record:
    """An object of a class that is known to hold nothing but data; its own code is neither looked up nor run."""

    name: str
    arguments: tuple = ()
    state: Any = None


# Classes that checkpoints of fairseq and of Hydra hold, made with NEWOBJ and filled with BUILD.
_OMEGACONF_NODES = ("Any", "String", "Integer", "Float", "Boolean", "Enum", "Bytes", "Path", "None", "Literal")
OMEGACONF = frozenset(
    {
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.Metadata",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.UnionNode",
        "omegaconf.nodes.InterpolationResultNode",
        *(f"omegaconf.nodes.{kind}Node" for kind in _OMEGACONF_NODES),
    }
)
RECORDS = OMEGACONF | {"fairseq.data.dictionary.Dictionary", "argparse.Namespace"}

# Names that stand in such objects as values (a field's type, a factory), and are never called.
_FAIRSEQ_CONFIGS = (
    *("Common", "DistributedTraining", "Dataset", "Optimization", "Checkpoint", "FairseqBMUF", "Generation"),
    *("CommonEval", "EvalLM", "Interactive", "EMA", "Fairseq"),
)
INERT = frozenset(
    {
        "typing.Any",
        "typing.Dict",
        "typing.List",
        "typing.Tuple",
        *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "long", "float", "str", "bool", "unicode")),
        *(f"fairseq.dataclass.configs.{name}Config" for name in _FAIRSEQ_CONFIGS),
    }
)

_SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def check_key(key: object) -> None:
    """Raise ConversionError unless ``key`` may stand in a dict or set: hashed in no time, and without collisions."""
    kind = type(key)
    if kind is str or kind is bytes or kind is float or kind is bool or key is None or kind is Reference:
        return
    if kind is not int:
        raise ConversionError(
            f"a {kind.__name__} as a key of a dict or member of a set; only text and numbers are read"
        )
    assert isinstance(key, int)
    if not -_MAX_KEY < key < _MAX_KEY:
        raise ConversionError("an integer of over 60 bits as a key of a dict or member of a set")


def make_set(items: list) -> set:
    """A set of plain values."""
    for item in items:
        check_key(item)
    return set(items)


def _ordered_dict(arguments: tuple) -> dict:
    """(): empty; (pairs,) as Python 2 wrote it; a Counter has (dict,)."""
    if not arguments:
        return {}
    (pairs,) = _exactly(1, arguments, "an ordered dict")
    items = list(pairs.items()) if type(pairs) is dict else pairs
    if type(items) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items):
        raise ConversionError("an ordered dict that is not made of pairs")
    for key, _ in items:
        check_key(key)
    return dict(items)


def _default_dict(arguments: tuple) -> dict:
    """(factory,): the factory is never called, and not kept."""
    if len(arguments) > 1:
        raise ConversionError(f"a defaultdict of {len(arguments)} arguments")
    return {}


def _set(arguments: tuple) -> set:
    (items,) = _exactly(1, arguments or ([],), "a set")
    if type(items) not in (list, tuple, set, frozenset):
        raise ConversionError("a set that is not made of a list")
    return make_set(list(items))


def _frozenset(arguments: tuple) -> frozenset:
    return frozenset(_set(arguments))


def _bytes(arguments: tuple) -> bytes:
    """(): empty; (bytes,); (text, "latin1") as protocol 2 writes bytes."""
    content, *encoding = arguments or (b"",)
    if type(content) is bytes and not encoding:
        return content
    if type(content) is str and encoding in (["latin1"], ["latin-1"]):
        return content.encode("latin-1")  # UnicodeEncodeError is a ValueError, which the caller names
    raise ConversionError("bytes that are not made of bytes or of Latin-1 text")


def _size(arguments: tuple) -> tuple:
    (sizes,) = _exactly(1, arguments or ((),), "a torch.Size")
    if type(sizes) is not tuple or not all(type(size) is int for size in sizes):
        raise ConversionError("a torch.Size that is not made of integers")
    return sizes


def _device(arguments: tuple) -> Record:
    if not 1 <= len(arguments) <= 2 or type(arguments[0]) is not str:
        raise ConversionError("a torch.device without a name")
    return Record("torch.device", arguments)


def _dtype(arguments: tuple) -> Record:
    if not 1 <= len(arguments) <= 3 or arguments[0] not in _SCALARS:
        raise ConversionError("a numpy.dtype that is no plain number's")
    return Record("numpy.dtype", arguments)


def _scalar(arguments: tuple) -> bool | int | float:
    """(dtype, bytes): a number of numpy's, as a Python one."""
    dtype, content = _exactly(2, arguments, "a numpy scalar")
    content = content.encode() if type(content) is str else content  # text of Python 2, which was UTF-8 all the same
    if type(dtype) is not Record or dtype.name != "numpy.dtype" or type(content) is not bytes:
        raise ConversionError("a numpy scalar that is no plain number")
    order = dtype.state[1] if type(dtype.state) is tuple and len(dtype.state) > 1 else "="
    if order not in ("<", ">", "=", "|"):
        raise ConversionError("a numpy scalar of unknown byte order")
    number = np.dtype(dtype.arguments[0]).newbyteorder(order)
    if len(content) != number.itemsize:
        raise ConversionError(f"a numpy scalar of {len(content)} bytes, expected {number.itemsize}")
    if number.kind == "b":
        return content != b"\0"
    return np.frombuffer(content, number)[0].item()


def _exactly(count: int, arguments: tuple, what: str) -> tuple:
    if len(arguments) != count:
        raise ConversionError(f"{what} of {len(arguments)} arguments")
    return arguments


BUILDERS: dict[str, Callable[[tuple], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _bytes,
    "torch.Size": _size,
    "torch.device": _device,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
COPYING = frozenset(name for name, build in BUILDERS.items() if build in (_ordered_dict, _set, _frozenset, _bytes))
NAMES = (*BUILDERS, *RECORDS, *INERT)

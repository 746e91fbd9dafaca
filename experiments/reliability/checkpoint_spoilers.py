"""What is done to the files of checkpoint_mutants.py."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from experiments.reliability.checkpoint_files import TARGETS

UNHEARD_OF = "nobody_ever_heard_of"
LENGTHS = (0, 1, 7, 8, 100_000_001, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1)
NUMBERS = (0, 1, -1, 2, 3, 0.5, 255, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 1e300, -0.0)
WRONG = (None, True, False, "", "F32", "gelu", "é\0", [], [[]], {}, [1], {"0": "eng"}, math.nan, math.inf, *NUMBERS)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "f32", "", None, 7)
# values that no parsed JSON holds, put in as text
TEXTS = (
    f'"{"x" * 10_000_000}"',
    "9" * 5_000,
    "[" * 100_000 + "]" * 100_000,
    "[" * 900 + "]" * 900,
    '{"a":' * 50_000 + "1" + "}" * 50_000,
)
RECAST = {"F64": np.float64, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
Header = dict[str, Any]


def spoil(contents: Mapping[str, bytes], seed: int, index: int) -> tuple[str, bytes]:
    """Mutant ``index`` of ``seed``: which file is spoilt, and its bytes."""
    rng = random.Random(seed * 10_000_000 + index)
    target = rng.choice(TARGETS)
    kinds = _TENSOR_FAULTS if target.endswith(".safetensors") else _JSON_FAULTS
    return target, rng.choice(kinds)(rng, contents[target])


# ---------------------------------------------------------------------------------------------------- any file


def _flipped(rng: random.Random, content: bytes, start: int, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(start, end)] = rng.choice([rng.randrange(256), *b'0129-+.eE"{}[]:, '])
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.choice([0, rng.randrange(len(content)), len(content) - rng.randint(1, 8)])]


def _longer(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.randint(1, 64))


# ---------------------------------------------------------------------------------------------------- safetensors


def parts(content: bytes) -> tuple[Header, bytes]:
    """Header and data of a sound file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Header | bytes, data: bytes) -> bytes:
    """A file of any header and data."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def _names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _length(rng: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    near = [length - 1, length + 1, len(content), rng.randrange(2 * len(content))]
    return struct.pack("<Q", rng.choice([*LENGTHS, *near])) + content[8:]


def _header_bytes(rng: random.Random, content: bytes) -> bytes:
    return _flipped(rng, content, 8, len(content) - len(parts(content)[1]))


def _data_bytes(rng: random.Random, content: bytes) -> bytes:
    return _flipped(rng, content, len(content) - len(parts(content)[1]), len(content))


def _poisoned(rng: random.Random, content: bytes) -> bytes:
    """NaN, infinity, the largest or the smallest number in one place."""
    data = bytearray(parts(content)[1])
    value = rng.choice([float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-45, -0.0])
    struct.pack_into("<f", data, 4 * rng.randrange(len(data) // 4), value)
    return content[: len(content) - len(data)] + bytes(data)


def _entry(rng: random.Random, content: bytes) -> bytes:
    """Another value for something that the header says of a tensor."""
    header, data = parts(content)
    entry = header[rng.choice(_names(header))]
    key = rng.choice([*entry, "dtype"])
    if key == "dtype":
        entry[key] = rng.choice(DTYPES)
    elif entry[key] and rng.random() < 0.7:
        place = rng.randrange(len(entry[key]))
        number = entry[key][place]
        entry[key][place] = rng.choice([*WRONG, number + 1, number - 1, 2 * number, -number])
    else:
        entry[key] = rng.choice([*WRONG, entry[key][::-1], [1, *entry[key]], entry[key][:-1]])
    return joined(header, data)


def _exchanged(rng: random.Random, content: bytes) -> bytes:
    """Two tensors of the same or another shape change places, or names."""
    header, data = parts(content)
    one, other = rng.sample(_names(header), 2)
    if rng.random() < 0.5:
        one, other = rng.choice([(a, b) for a in _names(header) for b in _names(header) if _alike(header, a, b)])
    for key in rng.choice([("data_offsets",), ("data_offsets", "shape"), ("shape",)]):
        header[one][key], header[other][key] = header[other][key], header[one][key]
    return joined(header, data)


def _alike(header: Header, one: str, other: str) -> bool:
    return one != other and header[one]["shape"] == header[other]["shape"]


def _renamed(rng: random.Random, content: bytes) -> bytes:
    """A tensor gone from the header, under another name, or there twice."""
    header, data = parts(content)
    name = rng.choice(_names(header))
    match rng.randrange(4):
        case 0:
            del header[name]
        case 1:
            header[rng.choice([name.upper(), f"{name} ", f"model.{name}", "", UNHEARD_OF])] = header.pop(name)
        case 2:
            header[UNHEARD_OF] = header[name]
        case _:
            twice = f"{json.dumps(name)}: {json.dumps(header[name])}, "
            return joined(b"{" + twice.encode() + json.dumps(header).encode()[1:], data)
    return joined(header, data)


def _metadata(rng: random.Random, content: bytes) -> bytes:
    header, data = parts(content)
    header["__metadata__"] = rng.choice([*WRONG, {"format": "np"}, {UNHEARD_OF: "x"}, {"format": 1}])
    return joined(header, data)


def _recast(rng: random.Random, content: bytes) -> bytes:
    """All tensors in another dtype, and the order of their names another one: a file that is right."""
    header, data = parts(content)
    made, pieces, at = {}, [], 0
    for name in rng.sample(_names(header), len(_names(header))):
        begin, end = header[name]["data_offsets"]
        dtype = rng.choice(list(RECAST))
        piece = np.frombuffer(data[begin:end], np.float32).astype(RECAST[dtype]).tobytes()
        made[name] = {"dtype": dtype, "shape": header[name]["shape"], "data_offsets": [at, at + len(piece)]}
        pieces.append(piece)
        at += len(piece)
    return joined(made, b"".join(pieces))


# ---------------------------------------------------------------------------------------------------- JSON


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) in a parsed file."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _value(rng: random.Random, content: bytes) -> bytes:
    """Another value at one place."""
    values = json.loads(content)
    holder, key = rng.choice(list(_places(values)))
    old = holder[key]
    choices = [*WRONG]
    if isinstance(old, int | float) and not isinstance(old, bool):
        choices += [old + 1, old - 1, 2 * old, -old, str(old), float(old), [old]] * 3
    elif isinstance(old, list):
        choices += [old[::-1], old[:-1], old * 2, old * 1000, [[old]]] * 3
    elif isinstance(old, str):
        choices += [old.upper(), f"{old} ", old * 2, [old]] * 3
    holder[key] = copy.deepcopy(rng.choice(choices))
    return json.dumps(values).encode()


def _key(rng: random.Random, content: bytes) -> bytes:
    """A key gone, renamed, exchanged with another, or new."""
    values = json.loads(content)
    objects = [holder for holder, _ in _places(values) if isinstance(holder, dict)]
    holder = rng.choice(objects)
    key = rng.choice(list(holder))
    match rng.randrange(4):
        case 0:
            del holder[key]
        case 1:
            holder[rng.choice(["", key.upper(), f"{key} ", "é\0", "x" * 300, UNHEARD_OF])] = holder.pop(key)
        case 2:
            other = rng.choice(list(holder))
            holder[key], holder[other] = holder[other], holder[key]
        case _:
            holder[UNHEARD_OF] = rng.choice(WRONG)
    return json.dumps(values).encode()


def _twice(rng: random.Random, content: bytes) -> bytes:
    """A key that stands twice in its object, with the same or another value."""
    values = json.loads(content)
    key = rng.choice(list(values))
    value = rng.choice([values[key], values[key], rng.choice(WRONG)])
    return b"{" + f"{json.dumps(key)}: {json.dumps(value)}, ".encode() + json.dumps(values).encode()[1:]


def _text(rng: random.Random, content: bytes) -> bytes:
    """A value or key that is huge or deep."""
    values = json.loads(content)
    holder, key = rng.choice(list(_places(values)))
    if rng.random() < 0.2 and isinstance(holder, dict):
        holder["x" * 10_000_000] = holder.pop(key)
        return json.dumps(values).encode()
    holder[key] = UNHEARD_OF
    return json.dumps(values).replace(f'"{UNHEARD_OF}"', rng.choice(TEXTS)).encode()


def _whole(rng: random.Random, content: bytes) -> bytes:
    """Another file altogether, or this one in another encoding."""
    text = content.decode()
    others = (b"", b"null", b"[]", b"{}", b'""', b"0", b"[" * 1_000_000, b"\xff\xfe", b"\0" * 100, b"version https://x")
    return rng.choice(
        [*others, text.encode("utf-16"), b"\xef\xbb\xbf" + content, content + content, f"[{text}]".encode()]
    )


def _json_bytes(rng: random.Random, content: bytes) -> bytes:
    return _flipped(rng, content, 0, len(content))


Fault = Callable[[random.Random, bytes], bytes]
_TENSOR_FAULTS: list[Fault] = [
    *(_length, _cut, _longer, _header_bytes, _header_bytes, _entry, _entry, _entry, _exchanged, _exchanged),
    *(_renamed, _renamed, _metadata, _recast, _data_bytes, _poisoned),
]
_JSON_FAULTS: list[Fault] = [
    *(_value, _value, _value, _value, _value, _key, _key, _key, _twice, _text, _whole, _json_bytes, _json_bytes),
    *(_cut, _longer),
]

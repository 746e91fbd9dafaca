"""Damaged safetensors files, on purpose and at random: the typed error, or exactly what is there, and nothing else."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mms_jax.checkpoint.tensors import TensorInfo, read_header, read_tensor
from mms_jax.errors import CheckpointError
from tests.safetensors_files import DTYPES, by_library, random_array, read, save

NUM_MUTANTS = 250  # of each kind; a mutant takes about a millisecond

FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty file": b"",
    "seven bytes": b"\0" * 7,
    "header of length 0": struct.pack("<Q", 0) + b"\0" * 8,
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "no JSON": b"\4" + b"\0" * 7 + b"\x80\4]." + b"\0" * 8,
}
WRONG_HEADERS: dict[str, Any] = {
    "a list": [],
    "an entry that is a list": {"a": ["F32", [2], [0, 8]]},  # the library takes it
    "an entry that is null": {"a": None},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "overlap": {"a": FLOAT, "b": FLOAT | {"data_offsets": [4, 12]}},
    "the same bytes twice": {"a": FLOAT, "b": FLOAT},
    "a hole": {"a": FLOAT, "b": FLOAT | {"data_offsets": [12, 20]}},
    "bytes that belong to nothing": {"a": FLOAT | {"shape": [1], "data_offsets": [0, 4]}},
    "negative offset": {"a": FLOAT | {"data_offsets": [-8, 0]}},
    "negative shape": {"a": FLOAT | {"shape": [-2]}},
    "end before start": {"a": FLOAT | {"data_offsets": [8, 0]}},
    "offsets beyond the file": {"a": FLOAT | {"shape": [4], "data_offsets": [0, 16]}},
    "shape overflow": {"a": FLOAT | {"shape": [1 << 32, 1 << 32, 1 << 32]}},
    "shape of 2^64": {"a": FLOAT | {"shape": [1 << 64]}},
    "shape that contradicts the offsets": {"a": FLOAT | {"shape": [3]}},
    "fraction in a shape": {"a": FLOAT | {"shape": [2.0]}},
    "text in a shape": {"a": FLOAT | {"shape": ["2"]}},
    "unknown dtype": {"a": FLOAT | {"dtype": "F33"}},
    "metadata that are no text": {"__metadata__": {"a": 1}, "a": FLOAT},
    "two names for one tensor": b'{"a":%s,"a":%s}' % ((json.dumps(FLOAT).encode(),) * 2),  # the library takes it
    "one field twice": b'{"a":{"dtype":"F32","shape":[1,2],"shape":[2],"data_offsets":[0,8]}}',
    "UTF-16": json.dumps({"a": FLOAT}).encode("utf-16"),
    "nested 100,000 deep": b'{"a":' + b"[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_an_error_that_names_it(name, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not a valid safetensors file"):
        read_header(path)


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_a_header_that_is_wrong_is_an_error_that_names_the_file(name, tmp_path):
    path = save(tmp_path / "x.safetensors", WRONG_HEADERS[name], np.ones(2, np.float32).tobytes())
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not a valid safetensors file"):
        read_header(path)


def test_the_header_that_the_wrong_ones_are_made_of_is_right(tmp_path):
    path = save(tmp_path / "x.safetensors", {"a": FLOAT}, np.ones(2, np.float32).tobytes())
    np.testing.assert_array_equal(read(path)["a"], [1, 1])


@pytest.mark.parametrize("name", ["nothing_here", "."])
def test_a_path_that_is_no_file_is_an_error_that_names_it(name, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / name)


def original() -> tuple[bytes, bytes]:
    """Header and data of a file with every dtype we read and one we do not."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for i, (name, dtype) in enumerate((DTYPES | {"I64": np.int64}).items()):
        array = random_array((i + 1, 2), dtype, seed=i)
        offsets = [len(data), len(data) + array.nbytes]
        header[f"tensor.{i}"] = {"dtype": name, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    return json.dumps(header).encode(), data


def flip(rng: random.Random, content: bytes, start: int, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(start, end)] = rng.choice([rng.randrange(256), *b'0129-+.eE"{}[]:, '])
    return bytes(changed)


def change_json(rng: random.Random, header: bytes, data: bytes) -> bytes:
    """Another value at one place of the header, its syntax kept."""
    values = json.loads(header)
    entry = values[rng.choice([name for name in values if name != "__metadata__"])]
    key = rng.choice(list(entry))
    wrong = [None, True, "F32", "I64", "F8_E4M3", [], [[]], {}, -1, 0, 1, 0.5, 1 << 31, 1 << 63, 1 << 64, 1e300, "é\0"]
    if isinstance(entry[key], list) and rng.random() < 0.7:
        place = rng.randrange(len(entry[key]))
        number = entry[key][place]
        entry[key][place] = rng.choice([*wrong, number + 1, number - 1, number * 2, -number])
    else:
        entry[key] = rng.choice(wrong)
    encoded = json.dumps(values).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


HEADER, DATA = original()
WHOLE = struct.pack("<Q", len(HEADER)) + HEADER + DATA
LENGTHS = [0, 1, len(HEADER) - 1, len(HEADER) + 1, len(WHOLE), 100_000_001, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]
MUTATIONS = {
    "length": lambda rng: struct.pack("<Q", rng.choice([*LENGTHS, rng.randrange(2 * len(WHOLE))])) + WHOLE[8:],
    "cut": lambda rng: WHOLE[: rng.randrange(len(WHOLE))],
    "appended": lambda rng: WHOLE + rng.randbytes(rng.randint(1, 64)),
    "header bytes": lambda rng: flip(rng, WHOLE, 0, 8 + len(HEADER)),
    "header values": lambda rng: change_json(rng, HEADER, DATA),
    "header syntax": lambda rng: WHOLE[:8] + bytes(rng.sample(HEADER, len(HEADER))) + DATA,
    "data bytes": lambda rng: flip(rng, WHOLE, 8 + len(HEADER), len(WHOLE)),
}
SOME_ARE_VALID = {"header bytes", "header values", "data bytes"}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_mutant_is_refused_with_the_typed_error_or_read_exactly_as_the_library_reads_it(kind, tmp_path):
    rng, path, accepted = random.Random(kind), tmp_path / "x.safetensors", 0
    for _ in range(NUM_MUTANTS):
        path.write_bytes(MUTATIONS[kind](rng))
        accepted += agrees_with_library(path)
    assert (accepted > 0) == (kind in SOME_ARE_VALID)
    assert accepted < NUM_MUTANTS or kind == "data bytes"


def agrees_with_library(path: Path) -> bool:
    """Whether a file is accepted; if it is, its tensors are those of the library or refused one by one."""
    header, error = attempt(lambda: read_header(path))
    assert error is None or str(path) in error
    if header is None:
        return False
    library = by_library(path.read_bytes())
    assert {name: (info.dtype, list(info.shape)) for name, info in header.items()} == {
        name: (dtype, shape) for name, (dtype, shape, _) in library.items()
    }
    for name, info in header.items():
        if info.is_float:  # the rest is never read: ``bind`` refuses it by its header
            assert_reads(name, info, library[name][2])
    return True


def assert_reads(name: str, info: TensorInfo, expected: bytes) -> None:
    """The library's bytes, or an error if there is NaN or infinity in them."""
    ours = np.empty(info.shape, DTYPES[info.dtype])
    _, error = attempt(lambda: read_tensor(name, info, out=ours))
    finite = np.isfinite(np.frombuffer(expected, DTYPES[info.dtype]).astype(np.float64)).all()
    assert finite == (error is None)
    assert ours.tobytes() == expected if error is None else name in error


def attempt(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None) or (None, message); only the typed error counts as a message."""
    try:
        return function(), None
    except CheckpointError as error:
        return None, str(error)

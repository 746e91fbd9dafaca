"""fairseq's dictionaries: symbols by id, from a checkpoint's task state or from a dict.*.txt, as vocab.json and labels.

fairseq's CTC blank is ``<s>``, the beginning of a sentence, with id 0; transformers calls its blank ``<pad>``. So the
names of ids 0 and 1 are exchanged, and all ids stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.conversion import ConversionError
from convert.torch_files import Record

DICTIONARY = "fairseq.data.dictionary.Dictionary"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # of every dictionary of text, in this order
RENAMED = {"<s>": "<pad>", "<pad>": "<s>"}
_MAX_BYTES = 16 << 20


def read_dictionary(task_state: Any, path: Path | None, *, source: str) -> list[str]:
    """A checkpoint's symbols by id; those of ``path``, if it is named, without special ones in front.

    Raises:
        ConversionError: there are none, or something is no symbol.
    """
    if path is not None:
        return read_symbols(path)
    found = task_state.get("target_dictionary") if isinstance(task_state, Mapping) else None
    if not isinstance(found, Record) or found.name != DICTIONARY or not isinstance(found.state, Mapping):
        raise ConversionError(f"{source}: no dictionary in its task_state; name its dict.*.txt with --dictionary")
    symbols = found.state.get("symbols")
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ConversionError(f"{source}: its dictionary lists no symbols")
    _check_unique(symbols, source)
    return symbols


def read_symbols(path: Path) -> list[str]:
    """The symbols of a dict.*.txt: the first of the two words of every line.

    Raises:
        ConversionError: it cannot be read, or a line has no count.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConversionError(f"{path}: {path.stat().st_size:,} bytes; a dictionary has at most {_MAX_BYTES:,}")
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: not UTF-8 ({error})") from error
    symbols = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r").removesuffix(" #fairseq:overwrite")
        symbol, space, count = line.rpartition(" ")
        if line and not (space and symbol and count.lstrip("-").isdigit()):
            raise ConversionError(f"{path}: line {number} is {line[:40]!r}; expected a symbol and its count")
        symbols += [symbol] if line else []
    _check_unique(symbols, str(path))
    return symbols


def _check_unique(symbols: Sequence[str], source: str) -> None:
    if len(set(symbols)) < len(symbols):
        twice = next(symbol for symbol in symbols if symbols.count(symbol) > 1)
        raise ConversionError(f"{source}: its dictionary lists {twice!r} twice")


def ctc_vocabulary(symbols: Sequence[str], *, size: int, source: str) -> dict[str, int]:
    """vocab.json of a head of ``size`` outputs, whose blank is ``<pad>`` with id 0.

    Raises:
        ConversionError: another number of symbols, or no special ones in front.
    """
    if len(symbols) + len(SPECIAL) == size and tuple(symbols[: len(SPECIAL)]) != SPECIAL:
        symbols = [*SPECIAL, *symbols]  # of a dict.ltr.txt, where fairseq adds them on reading
    if tuple(symbols[: len(SPECIAL)]) != SPECIAL:
        raise ConversionError(f"{source}: its dictionary begins with {list(symbols[:4])}, not with {list(SPECIAL)}")
    _check_size(symbols, size, source)
    return {RENAMED.get(symbol, symbol): index for index, symbol in enumerate(symbols)}


def labels(symbols: Sequence[str], *, size: int, source: str) -> list[str]:
    """The labels of a classifier of ``size`` outputs, by id.

    Raises:
        ConversionError: another number of symbols.
    """
    _check_size(symbols, size, source)
    return list(symbols)


def _check_size(symbols: Sequence[str], size: int, source: str) -> None:
    if len(symbols) != size:
        raise ConversionError(
            f"{source}: its dictionary has {len(symbols)} symbols, its head {size} outputs; name the dict.*.txt that "
            "it was trained with (--dictionary)"
        )

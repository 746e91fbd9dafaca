"""The pieces of a SentencePiece model in the order of their ids: the one field of its message that is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from convert.conversion import ConversionError

WORD_BOUNDARY = "\u2581"  # stands for a space in pieces
_MAX_BYTES = 64 << 20
_PIECES, _TEXT = 1, 1  # numbers of the fields: a model's pieces, a piece's text
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of fields


def read_pieces(path: Path) -> list[str]:
    """Every piece, by id.

    Raises:
        ConversionError: it cannot be read, is no SentencePiece model, or has a piece twice.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ConversionError(f"{path}: {size:,} bytes; a tokenizer has at most {_MAX_BYTES:,}")
        data = path.read_bytes()
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        pieces = [_text(value) for number, value in _fields(data) if number == _PIECES and isinstance(value, bytes)]
    except (ValueError, IndexError) as error:
        raise ConversionError(f"{path}: not a SentencePiece model ({error})") from error
    if not pieces:
        raise ConversionError(f"{path}: not a SentencePiece model: it has no pieces")
    if len(set(pieces)) < len(pieces):
        twice = next(piece for piece in pieces if pieces.count(piece) > 1)
        raise ConversionError(f"{path}: holds the piece {twice!r} twice")
    return pieces


def _text(piece: bytes) -> str:
    text = next((value for number, value in _fields(piece) if number == _TEXT), None)
    if not isinstance(text, bytes):
        raise ValueError("a piece without text")
    return text.decode()


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of each field of a message; what has a fixed width is skipped."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
        elif kind == _BYTES:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError(f"a field of {length} bytes at the end")
            yield number, data[position : position + length]
            position += length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
    if position > len(data):
        raise ValueError("it ends inside a field")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for count in range(10):
        byte = data[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, position + count + 1
    raise ValueError("a number of over ten bytes")

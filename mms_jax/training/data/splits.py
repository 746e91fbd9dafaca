"""Which rows a split names: "train+validation", "train[:100]", "test[10%:20%]", as the `datasets` library writes it."""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from datasets import ReadInstruction

from mms_jax.errors import DatasetError

__all__ = ["Piece", "check_splits", "needed_splits", "pieces", "stream_pieces"]

FLAGS = "--train_split_name, --eval_split_name"
PIECE = re.compile(r"([^\[\]+\s]+)(?:\[(\d*):(\d*)\])?")  # a stream has no end to count from, so neither % nor minus


class Piece(NamedTuple):
    """Rows [start, stop) of a split; ``split`` None: of what has no splits; ``stop`` None: to the end."""

    split: str | None
    start: int
    stop: int | None


def needed_splits(spec: str, splits: Collection[str | None], *, name: str) -> list[str | None]:
    """Which of ``splits`` are read for ``spec``; raises ``DatasetError`` for one that is not there."""
    if None in splits:
        return [None]
    names = _names(_spelled_out(spec, splits))
    _check_known(names, splits, name=name)
    return [split for split in splits if split in names]


def check_splits(splits: Collection[str | None], *, name: str) -> None:
    """Raise ``DatasetError`` if some of the files have splits within, and others none."""
    if None in splits and len(splits) > 1:
        inside = ", ".join(str(split) for split in splits if split is not None)
        raise DatasetError(f"data set {name!r}: one file holds splits ({inside}) and another none; name them apart")


def pieces(spec: str, lengths: Mapping[str | None, int], *, name: str) -> list[Piece]:
    """The rows that ``spec`` names of splits of these lengths; the only key None: whatever split is asked for is all.

    Raises ``DatasetError`` for a split that is not there, naming those that are, and for a spec that cannot be read.
    """
    if None in lengths:
        names = _names(spec)
        _check_one(spec, names, name=name)
        found = _pieces(spec, dict.fromkeys(names, lengths[None]), name=name)
        return [piece._replace(split=None) for piece in (found if "[" in spec else found[:1])]
    return _pieces(_spelled_out(spec, lengths), {str(split): n for split, n in lengths.items()}, name=name)


def stream_pieces(spec: str, splits: Collection[str | None], *, name: str) -> list[Piece]:
    """The same for streams, whose lengths are not known: slices count rows from the beginning, "train[100:200]"."""
    whole = _spelled_out(spec, splits)
    found = []
    for part in re.split(r"\s*\+\s*", whole):
        match = PIECE.fullmatch(part)
        if match is None:
            raise DatasetError(
                f"data set {name!r}: the split {part!r} cannot be streamed; a stream has no length, so a slice counts "
                f"rows from the beginning, like train[100:200] ({FLAGS})"
            )
        start, stop = (int(bound) if bound else None for bound in match.groups()[1:])
        found.append(Piece(match[1], start or 0, stop))
    if None in splits:
        _check_one(spec, {piece.split for piece in found}, name=name)
        return [piece._replace(split=None) for piece in (found if "[" in spec else found[:1])]
    _check_known({str(piece.split) for piece in found}, splits, name=name)
    return found


def _pieces(spec: str, lengths: Mapping[str, int], *, name: str) -> list[Piece]:
    _check_known(_names(spec), lengths, name=name)
    try:
        found = ReadInstruction.from_spec(spec).to_absolute(dict(lengths))
    except (ValueError, AssertionError) as error:
        raise DatasetError(f"data set {name!r}: the split {spec!r} cannot be read ({error}) ({FLAGS})") from error
    return [Piece(piece.splitname, piece.from_, max(piece.from_, piece.to)) for piece in found]


def _check_one(spec: str, names: Collection[str | None], *, name: str) -> None:
    if "[" in spec and len(names) > 1:
        raise DatasetError(f"data set {name!r}: has no splits, so the slices of {spec!r} must be of one ({FLAGS})")


def _names(spec: str) -> set[str]:
    return {part.partition("[")[0].strip() for part in spec.split("+")}


def _spelled_out(spec: str, splits: Collection[str | None]) -> str:
    return "+".join(map(str, splits)) if spec.strip() == "all" and "all" not in splits else spec.strip()


def _check_known(names: Collection[str], splits: Collection[str | None], *, name: str) -> None:
    for split in sorted(names):
        if split not in splits:
            there = ", ".join(map(str, splits)) or "none"
            raise DatasetError(f"data set {name!r}: has no split {split!r}; there are: {there} ({FLAGS})")

"""Spoils audio files in thousands of ways: does every one give audio or an ``AudioError``, soon, in little memory?

    .venv/bin/python -m experiments.reliability.audio_mutants --count 50000

Sources are a fifth of a second of sound as WAV (8, 16, 24, 32 bits, float, mu-law, A-law, IMA and MS ADPCM, GSM,
WAVE_FORMAT_EXTENSIBLE, RF64, RIFX), FLAC, Ogg Vorbis, Ogg Opus and MP3, of several rates and channel counts. A mutant
has one to three faults: bytes flipped, cut off, cut out, put in; a field of 2, 4 or 8 bytes, of either byte order, set
to a size that somebody might count with (0, 2^31, 2^63, ...); chunks, blocks, pages or frames dropped, doubled,
exchanged; the rest of a file of another kind. Of Ogg files most checksums are made right again, and of WAV files half
of the sizes: else few mutants came as far as the decoder.

Each is loaded by ``load_audio``, and by ``stream_audio`` as well, in one of two processes that may take 2 s per mutant
and 1 GB more address space than they begin with. What must hold:

- no process crashes or hangs; no error but ``AudioError``; resident memory grows by less than 256 MB;
- what is given is finite mono float32 and not longer than was asked for;
- the blocks of ``stream_audio`` are the samples of ``load_audio``, or both give the same error.

Mutants for which something does not hold are kept in ``--output``, named by seed and number.

On two shared cores, libsndfile 1.2.2, seed 0, in 47 s (and 250,000 of seed 1, which have no fault either):

    50000 mutants: 15733 audio, 34267 AudioError; the slowest 0.54 s; 22 MB grown
    0 crash, 0 hang, 0 untyped, 0 wrong
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from experiments.reliability.workers import MB, Outcome, outcomes
from mms_jax.audio import load_audio, stream_audio
from mms_jax.containers.xiph import ogg_checksum
from mms_jax.errors import AudioError

MAX_GROWTH = 256 * MB
MAX_SECONDS = 2.0
MAX_DURATION = 1800.0  # seconds of audio, as by default
SECONDS = 0.2  # of sound
HEADER = 160  # bytes from a file's beginning, where most faults are put
KINDS_SHOWN = 12
SIZES = (0, 1, 2, 3, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
RECIPES = (  # container, codec, Hz, channels, byte order
    ("WAV", "PCM_U8", 8000, 1, "FILE"),
    ("WAV", "PCM_16", 16_000, 1, "FILE"),
    ("WAV", "PCM_16", 44_100, 2, "FILE"),
    ("WAV", "PCM_16", 16_000, 1, "BIG"),
    ("WAV", "PCM_24", 48_000, 2, "FILE"),
    ("WAV", "PCM_32", 22_050, 1, "FILE"),
    ("WAV", "FLOAT", 16_000, 1, "FILE"),
    ("WAV", "DOUBLE", 96_000, 1, "FILE"),
    ("WAV", "ULAW", 8000, 1, "FILE"),
    ("WAV", "ALAW", 8000, 2, "FILE"),
    ("WAV", "IMA_ADPCM", 16_000, 1, "FILE"),
    ("WAV", "IMA_ADPCM", 44_100, 2, "FILE"),
    ("WAV", "MS_ADPCM", 22_050, 2, "FILE"),
    ("WAV", "GSM610", 8000, 1, "FILE"),
    ("WAVEX", "PCM_16", 16_000, 1, "FILE"),
    ("WAVEX", "PCM_24", 48_000, 6, "FILE"),
    ("RF64", "PCM_16", 16_000, 2, "FILE"),
    ("FLAC", "PCM_16", 16_000, 1, "FILE"),
    ("FLAC", "PCM_24", 96_000, 2, "FILE"),
    ("FLAC", "PCM_S8", 8000, 1, "FILE"),
    ("OGG", "VORBIS", 16_000, 1, "FILE"),
    ("OGG", "VORBIS", 44_100, 2, "FILE"),
    ("OGG", "OPUS", 16_000, 1, "FILE"),
    ("OGG", "OPUS", 48_000, 2, "FILE"),
    ("MP3", "MPEG_LAYER_III", 16_000, 1, "FILE"),
    ("MP3", "MPEG_LAYER_III", 44_100, 2, "FILE"),
    ("MP3", "MPEG_LAYER_III", 8000, 1, "FILE"),
)


class Source(NamedTuple):
    """A file that is right, and its units: chunks, blocks, pages or frames, as (start, end)."""

    container: str
    content: bytes
    units: Sequence[tuple[int, int]]


def make_sources() -> list[Source]:
    """One file of each of the recipes."""
    return [_make_source(*recipe) for recipe in RECIPES]


def _make_source(container: str, codec: str, rate: int, channels: int, endian: str) -> Source:
    rng = np.random.default_rng(rate)
    time_axis = np.arange(round(SECONDS * rate)) / rate
    sound = 0.4 * np.sin(2 * np.pi * 300 * time_axis)[:, None] + 0.02 * rng.standard_normal((len(time_axis), channels))
    with tempfile.NamedTemporaryFile() as file:  # not io.BytesIO: GSM is not written there
        soundfile.write(file.name, sound, rate, format=container, subtype=codec, endian=endian)
        content = Path(file.name).read_bytes()
    return Source(container, content, _units(container, content))


def _units(container: str, content: bytes) -> list[tuple[int, int]]:
    if container in ("WAV", "WAVEX", "RF64"):
        return _chunks(content)
    if container == "OGG":
        starts = [match.start() for match in re.finditer(rb"OggS\0", content)]
    elif container == "MP3":
        starts = [match.start() for match in re.finditer(re.escape(content[:2]), content)]
    else:
        starts = [0, 4, *(match.start() for match in re.finditer(rb"\xff\xf8", content))]
    return list(zip(starts, [*starts[1:], len(content)], strict=True))


def _chunks(content: bytes) -> list[tuple[int, int]]:
    order, at, found = (">" if content[:4] == b"RIFX" else "<"), 12, []
    while at + 8 <= len(content):
        size = struct.unpack(order + "I", content[at + 4 : at + 8])[0]
        end = min(len(content), at + 8 + size + (size & 1))
        found.append((at, end))
        at = end
    return found


def make_mutant(sources: Sequence[Source], seed: int, index: int) -> tuple[str, bytes]:
    """Mutant ``index`` of ``seed``: the container of what it was made of, and the bytes."""
    rng = np.random.default_rng((seed, index))
    source = sources[int(rng.integers(len(sources)))]
    content = source.content
    for fault in range(rng.integers(1, 4)):
        # units are where the source has them, so that only the first fault can be one of theirs
        kind = rng.choice(FAULTS if fault == 0 else FAULTS[:-2])
        content = _spoil(rng, kind, content, source, sources)
    if source.container == "OGG" and rng.random() < 0.8:
        content = with_checksums(content)
    if content[:4] in (b"RIFF", b"RIFX") and rng.random() < 0.5:
        content = _with_size(content)
    return source.container, content


FAULTS = ("flip", "field", "field", "field", "cut", "take", "put", "splice", "unit", "unit")


def _spoil(rng: np.random.Generator, kind: str, content: bytes, source: Source, sources: Sequence[Source]) -> bytes:
    at = int(rng.integers(1 + (min(HEADER, len(content)) if rng.random() < 0.7 else len(content))))
    few = int(rng.integers(1, 32))
    if kind == "flip":
        spoilt = bytearray(content)
        for place in (at + rng.integers(0, few, few)) % max(1, len(content)) if content else ():
            spoilt[place] ^= 1 << rng.integers(8)
        return bytes(spoilt)
    if kind == "field":
        width, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
        value = SIZES[rng.integers(len(SIZES))] % 256 ** int(width)
        return content[:at] + value.to_bytes(int(width), order) + content[at + width :]
    if kind == "cut":
        return content[: rng.integers(len(content) + 1)]
    if kind == "take":
        return content[:at] + content[at + few :]
    if kind == "put":
        return content[:at] + rng.bytes(few) + content[at:]
    if kind == "splice":
        other = sources[int(rng.integers(len(sources)))].content
        return content[:at] + other[rng.integers(len(other)) :]
    return _rearranged(rng, source)


def _rearranged(rng: np.random.Generator, source: Source) -> bytes:
    """The file with one of its units dropped, doubled, or exchanged with another."""
    units = [source.content[start:end] for start, end in source.units]
    one, other = rng.integers(len(units), size=2)
    match rng.integers(3):
        case 0:
            del units[one]
        case 1:
            units.insert(other, units[one])
        case _:
            units[one], units[other] = units[other], units[one]
    return source.content[: source.units[0][0]] + b"".join(units)


def with_checksums(file: bytes) -> bytes:
    """An Ogg file with the checksums that its pages now have, as somebody who crafts a file would set them."""
    pages, at = bytearray(file), 0
    while pages[at : at + 4] == b"OggS" and at + 27 <= len(pages):
        segments = pages[at + 27 : at + 27 + pages[at + 26]]
        end = at + 27 + len(segments) + sum(segments)
        pages[at + 22 : at + 26] = bytes(4)
        pages[at + 22 : at + 26] = ogg_checksum(bytes(pages[at:end])).to_bytes(4, "little")
        at = end
    return bytes(pages)


def _with_size(file: bytes) -> bytes:
    """A WAV file that declares all bytes after its last "data" to be samples, and its whole size."""
    order = "big" if file[:4] == b"RIFX" else "little"
    at = file.rfind(b"data")
    if at < 0 or at + 8 > len(file):
        return file
    true = bytearray(file)
    true[4:8] = (len(file) - 8).to_bytes(4, order)
    true[at + 4 : at + 8] = (len(file) - at - 8).to_bytes(4, order)
    return bytes(true)


def check(mutant: bytes) -> str:
    """What loading came to: "audio", the kind of ``AudioError``, or "wrong" and what is."""
    whole, streamed = _load(mutant), _stream(mutant)
    if isinstance(whole, str) or isinstance(streamed, str):
        same = isinstance(whole, str) and whole == streamed
        return _kind(str(whole)) if same else f"wrong: in one piece {whole!r}, in blocks {streamed!r}"
    if whole.dtype != np.float32 or whole.ndim != 1 or not np.isfinite(whole).all():
        return f"wrong: {whole.dtype} {whole.shape}, or not finite"
    if len(whole) > MAX_DURATION * 16_000 + 1:
        return f"wrong: {len(whole)} samples are longer than was asked for"
    return "audio" if np.array_equal(whole, streamed) else "wrong: blocks are not the samples in one piece"


def _load(mutant: bytes) -> np.ndarray | str:
    try:
        return load_audio(mutant)
    except AudioError as error:
        return str(error)


def _stream(mutant: bytes) -> np.ndarray | str:
    try:
        return np.concatenate([np.zeros(0, np.float32), *stream_audio(mutant, max_duration=MAX_DURATION)])
    except AudioError as error:
        return str(error)


def _kind(message: str) -> str:
    """An error's reason without its numbers, names and remedy."""
    reason = message.partition(": ")[2]
    return re.sub(r"\d[\d.e+]*|b?'[^']*'|\([^)]*\)", "…", re.split("[;:,]", reason)[0])[:60]


def main(arguments: list[str] | None = None) -> None:
    """Spoil files, load them, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("audio_mutants"), help="where faulty ones are kept")
    options = parser.parse_args(arguments)
    sources, begun = make_sources(), time.perf_counter()
    found: list[Outcome] = []
    for outcome in outcomes(
        lambda index: check(make_mutant(sources, options.seed, index)[1]),
        options.count,
        prepare=lambda: [load_audio(source.content) for source in sources],
        seconds=MAX_SECONDS,
    ):
        found.append(outcome)
        if outcome.what.startswith(("crash", "hang", "untyped", "wrong")):
            keep(sources, options.seed, outcome, options.output)
    sys.exit(report(found, time.perf_counter() - begun))


def keep(sources: Sequence[Source], seed: int, outcome: Outcome, output: Path) -> None:
    """Write the mutant beside others, and say what it did."""
    container, mutant = make_mutant(sources, seed, outcome.number)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{outcome.what.split()[0].strip(':')}-{seed}-{outcome.number}.{container.lower()}"
    path.write_bytes(mutant)
    print(f"{path}: {outcome.what}", flush=True)


def report(found: Sequence[Outcome], seconds: float) -> bool:
    """Print the figures; whether there was a fault."""
    firsts = Counter(outcome.what.split()[0].strip(":") for outcome in found)
    faults = {kind: firsts.pop(kind, 0) for kind in ("crash", "hang", "untyped", "wrong")}
    kinds = Counter(outcome.what for outcome in found if not outcome.what.startswith(tuple(faults)))
    audio, grown = kinds.pop("audio", 0), max(outcome.grown for outcome in found)
    print(f"{len(found)} mutants: {audio} audio, {sum(kinds.values())} AudioError of {len(kinds)} kinds", end="; ")
    print(f"{seconds:.0f} s; the slowest {max(outcome.seconds for outcome in found):.2f} s; {grown / MB:.0f} MB grown")
    print("\n".join(f"{count:8} {kind}" for kind, count in kinds.most_common(KINDS_SHOWN)))
    print(", ".join(f"{count} {kind}" for kind, count in faults.items()))
    return any(faults.values()) or grown > MAX_GROWTH


if __name__ == "__main__":
    main()

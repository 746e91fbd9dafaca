"""Audio in: a file, bytes or an array becomes float32 mono samples at 16 kHz, or an ``AudioError`` that says why not.

Decoding is libsndfile's (WAV, FLAC, Ogg Vorbis and Opus, MP3) behind the checks of ``containers``; resampling is soxr's
HQ quality (linear phase, 20 bits), the same in one piece or in blocks; channels are averaged. No torch, no ffmpeg.
Files are not trusted: they are decoded in blocks, never allocated by the length they declare, and what is not whole is
an error. ``stream_audio`` hands the blocks on as they come, so that a day of audio takes no more memory than a minute.
"""

import io
import math
import numbers
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import soundfile
import soxr

from mms_jax.containers import open_container
from mms_jax.containers.view import CONVERT, TRUNCATED, Rest, View, read_some, too_long
from mms_jax.errors import AudioError
from mms_jax.features import (
    MAX_AMPLITUDE,
    SAMPLING_RATE,
    FeatureExtractor,
    Features,
    bucket_length,
    bucketed_batches,
)

__all__ = [
    "MAX_DURATION",
    "SAMPLING_RATE",
    "FeatureExtractor",
    "Features",
    "bucket_length",
    "bucketed_batches",
    "describe_audio",
    "load_audio",
    "load_samples",
    "stream_audio",
    "stream_samples",
]

MAX_DURATION = 1800.0  # seconds: 115 MB of float32 at 16 kHz; ten times that, from one crafted file, is too much
MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz: below, kHz were meant (16 for 16 000); above, nothing records speech
MAX_CHANNELS_IN_ARRAY = 16  # an array's shorter axis is its channels up to here; files may have 1024, they say so
MAX_STREAM_BYTES = 2**30  # of a pipe, which is held in memory: 30 min of 48 kHz stereo float32 are 0.7 GB
READ_BYTES = 2**16  # read from a file at a time
BLOCK_VALUES = 2**20  # samples x channels decoded at a time, and about what resampling makes of them: 4 MB
UNKNOWN_FRAMES = 2**62  # libsndfile says 2^63 - 1 for a FLAC stream of unknown length
INTEGER_SCALES = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (128, 2**7)}  # dtype: (zero, full scale)


def load_audio(audio: Any, *, sampling_rate: int = SAMPLING_RATE, max_duration: float = MAX_DURATION) -> np.ndarray:
    """Load audio as new float32 samples [S], mono, at ``sampling_rate`` Hz.

    ``audio`` is a path; the bytes of a file; a binary file object (read from its position to its end); an array that is
    already at ``sampling_rate`` (this cannot be checked), [S], or [S, C] or [C, S] with at most 16 channels and more
    samples than channels, float as it is or int16, int32, uint8 scaled to [-1, 1); (array, rate) or (rate, array); a
    mapping with "array" or "raw" and "sampling_rate", or with "bytes" or "path", as ``datasets`` has them; or an object
    with ``get_all_samples``, to which ``datasets`` decodes.

    Rates from 1 kHz to 1 MHz give ``round(S * sampling_rate / rate)`` samples. An empty array gives an empty array, a
    short file a short one; but a file without a single sample is an error: something failed when it was made.

    Raises ``AudioError``, naming the file and the reason, for a file that is missing, not audio, damaged, truncated or
    empty; for samples that are NaN, infinite or over 2^31; for absurd rates; for over ``max_duration`` seconds. One
    loss leaves no trace and is not noticed: whole frames off the end of an MP3 or FLAC that declares no length.
    """
    blocks = stream_audio(audio, sampling_rate=sampling_rate, max_duration=max_duration)
    return np.concatenate([np.zeros(0, np.float32), *blocks])


def load_samples(audio: Any, *, max_duration: float = MAX_DURATION) -> np.ndarray:
    """Load audio at 16 kHz as ``load_audio`` does, but leave 16-bit samples as they are.

    Of a mono WAV or FLAC file of 16 bits and an int16 array, at 16 kHz, these are int16 [S], 2^15 times the samples of
    ``load_audio``: half the memory, and nothing computed. Of everything else they are float32 [S], those very samples.
    """
    blocks = list(stream_samples(audio, max_duration=max_duration))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.zeros(0, np.float32)])


def stream_audio(
    audio: Any, *, sampling_rate: int = SAMPLING_RATE, max_duration: float = math.inf
) -> Generator[np.ndarray, None, None]:
    """Load audio block by block: float32 samples [S], mono, at ``sampling_rate`` Hz, without holding all of them.

    ``audio`` is what ``load_audio`` takes; the blocks, none of them empty, are together the very samples it gives. A
    block has about a million samples, and no more than one is held here. Files and file objects that can seek are read
    as blocks are asked for; a file is closed when none are left or the generator is closed, a file object is left open
    and, after the last block, at its end. Of a pipe, all bytes are held in memory.

    Raises ``AudioError`` as ``load_audio`` does, but once it is noticed: damage far into a file, after what is before.
    """
    if not MIN_RATE <= sampling_rate <= MAX_RATE or not max_duration > 0:
        raise ValueError(f"sampling_rate={sampling_rate!r} Hz and max_duration={max_duration!r} s cannot be loaded to")
    return _stream_named(audio, Target(sampling_rate, max_duration))


def stream_samples(audio: Any, *, max_duration: float = math.inf) -> Generator[np.ndarray, None, None]:
    """The samples of ``load_samples``, all int16 or all float32, block by block as ``stream_audio`` gives them."""
    return _stream_named(audio, Target(SAMPLING_RATE, max_duration, int16=True))


def describe_audio(audio: Any) -> str:
    """A short one-line name of the audio for messages: its path, or what it is, such as ``<bytes, 1234 bytes>``."""
    kind = type(audio).__name__
    if isinstance(audio, str | os.PathLike):
        path = os.fsdecode(audio)
        return path if path and path.isprintable() else repr(path)
    if isinstance(audio, bytes | bytearray | memoryview):
        return f"<{kind}, {memoryview(audio).nbytes} bytes>"
    if isinstance(audio, Mapping):
        named = [audio[key] for key in ("path", "bytes", "array", "raw") if audio.get(key) is not None]
        return describe_audio(named[0]) if named else f"<{kind} with keys {sorted(map(str, audio))}>"
    if isinstance(audio, tuple) and len(audio) == 2:
        return "<({}, {})>".format(*(str(part) if _is_scalar(part) else describe_audio(part) for part in audio))
    if isinstance(shape := getattr(audio, "shape", None), tuple):
        return f"<array of shape {tuple(shape)}>"
    if isinstance(audio, list | tuple):
        return f"<{kind} of {len(audio)} items>"
    name = getattr(audio, "name", None)
    return name if isinstance(name, str) and name.isprintable() else f"<{kind}>"


class Target(NamedTuple):
    """What to load to."""

    sampling_rate: int  # Hz
    max_duration: float  # seconds
    int16: bool = False  # whether what is int16, mono and of that rate stays as it is

    def keeps(self, rate: float, num_channels: int) -> bool:
        """Whether 16-bit samples stay as they are."""
        return self.int16 and num_channels == 1 and rate == self.sampling_rate


def _stream_named(audio: Any, target: Target) -> Generator[np.ndarray, None, None]:
    try:
        yield from _stream(audio, target)
    except AudioError as error:
        raise AudioError(f"{describe_audio(audio)}: {error}") from error.__cause__


def _stream(audio: Any, target: Target) -> Iterator[np.ndarray]:
    if isinstance(audio, str | os.PathLike):
        return _stream_path(audio, target)
    if isinstance(audio, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(audio), target)
    if isinstance(audio, Mapping):
        return _stream_mapping(audio, target)
    if isinstance(audio, tuple):
        return _stream_pair(audio, target)
    if hasattr(audio, "get_all_samples"):
        return _stream_decoder(audio, target)
    if hasattr(audio, "read"):
        return _stream_file_object(audio, target)
    return _stream_array(audio, target.sampling_rate, target)


# --- files -----------------------------------------------------------------------------------------------------------


def _stream_path(path: str | os.PathLike, target: Target) -> Iterator[np.ndarray]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; here only the opening's errors are wanted
    except FileNotFoundError:
        url = "://" in os.fsdecode(path)
        raise AudioError("is a URL, which is not fetched: download it first" if url else "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise AudioError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    with file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise AudioError("is a device or socket; pass a file or a pipe")
        yield from _decode(file if stat.S_ISREG(mode) else _read_pipe(file), target)


def _stream_file_object(file: Any, target: Target) -> Iterator[np.ndarray]:
    rest = Rest.of(file)
    yield from _decode(_read_pipe(file) if rest is None else cast(BinaryIO, rest), target)
    if rest is not None:
        rest.leave_at_end()


def _read_pipe(file: Any) -> io.BytesIO:
    """What is left in a pipe, in memory: decoding seeks."""
    content = io.BytesIO()
    while data := read_some(file, 2**20):
        content.write(data)
        if content.tell() > MAX_STREAM_BYTES:
            raise AudioError(f"gives more than {MAX_STREAM_BYTES} bytes; split it, or save it and pass the path")
    if content.tell() == 0:
        raise AudioError("gives no bytes: it is empty, or at its end (then seek(0) first)")
    return content


def _decode(file: BinaryIO, target: Target) -> Iterator[np.ndarray]:
    try:
        yield from _decode_view(open_container(file, max_duration=target.max_duration), target)
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror or error})") from error


class _Stream(soundfile.SoundFile):
    """A sound file that is only read forward.

    ``SoundFile.read`` otherwise seeks to where it already is after each block, which fails on a FLAC stream of unknown
    length and makes lossy decoders start anew.
    """

    def seekable(self) -> bool:
        return False


def _decode_view(view: View, target: Target) -> Iterator[np.ndarray]:
    try:
        # Some decoders ask for a few bytes at a time, each of which would be a call of Python code.
        with _Stream(io.BufferedReader(view, READ_BYTES)) as stream:
            rate = _check_rate(stream.samplerate)
            yield from _to_mono(_read_blocks(stream, view, target), rate, target)
    except soundfile.LibsndfileError as error:
        if view.failure is not None:
            raise view.failure from None
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise AudioError(f"cannot be decoded ({reason}); {CONVERT}") from error


def _read_blocks(stream: _Stream, view: View, target: Target) -> Iterator[np.ndarray]:
    """A file's samples in blocks [S, C], to its end and no less than it declares."""
    declared, num_samples = stream.frames, 0
    if declared < UNKNOWN_FRAMES:
        _check_length(declared, stream.samplerate, target)
    as_is = stream.subtype == "PCM_16" and target.keeps(stream.samplerate, stream.channels)
    dtype = "int16" if as_is else "float32"
    size = _block_length(stream.samplerate, stream.channels, target)
    # One more than is left: a decoder that goes beyond the end notices what does not belong there. Not many more, since
    # libsndfile fills what it has no samples for with zeros, up to 4 MB of them.
    while len(block := stream.read(min(size, declared - num_samples + 1), dtype=dtype, always_2d=True)):
        if view.failure is not None:
            break
        num_samples += len(block)
        yield block
    if view.failure is not None:
        raise view.failure
    if num_samples < declared < UNKNOWN_FRAMES:
        raise AudioError(f"declares {declared} samples, of which {num_samples} can be decoded; {TRUNCATED}")
    if num_samples == 0:
        raise AudioError("holds no audio (zero samples); record or copy it again")


# --- arrays ----------------------------------------------------------------------------------------------------------


def _stream_mapping(audio: Mapping, target: Target) -> Iterator[np.ndarray]:
    array = audio.get("array") if audio.get("array") is not None else audio.get("raw")
    if array is not None:
        if audio.get("sampling_rate") is None:
            raise AudioError("has an array without its rate: add the key 'sampling_rate' in Hz")
        return _stream_array(array, audio["sampling_rate"], target)
    if isinstance(audio.get("bytes"), bytes | bytearray | memoryview):
        return _decode(io.BytesIO(audio["bytes"]), target)
    if audio.get("bytes") is None and isinstance(audio.get("path"), str | os.PathLike):
        return _stream_path(audio["path"], target)
    raise AudioError(
        'holds neither "array" (or "raw") with "sampling_rate", nor "bytes", nor "path"; of a row, pass row["audio"]'
    )


def _stream_pair(audio: tuple, target: Target) -> Iterator[np.ndarray]:
    if len(audio) != 2 or _is_scalar(audio[0]) == _is_scalar(audio[1]):
        raise AudioError("is a tuple but not (array, rate) or (rate, array); pass several audios as a list")
    rate, array = audio if _is_scalar(audio[0]) else audio[::-1]
    return _stream_array(array, rate, target)


def _stream_decoder(decoder: Any, target: Target) -> Iterator[np.ndarray]:
    """A torchcodec ``AudioDecoder``, which ``datasets`` returns, by the methods it has: torch is not imported here."""
    duration = getattr(getattr(decoder, "metadata", None), "duration_seconds", None)
    if duration is not None and duration > target.max_duration:
        raise AudioError(too_long(target.max_duration))
    try:
        samples = decoder.get_all_samples()
    except (RuntimeError, ValueError, OSError) as error:
        raise AudioError(f"cannot be decoded ({error})") from error
    return _stream_array(samples.data, samples.sample_rate, target)


def _stream_array(array: Any, rate: Any, target: Target) -> Iterator[np.ndarray]:
    rate = _check_rate(rate)
    values = _channels_last(_to_array(array))
    _check_length(len(values), rate, target)
    size = _block_length(rate, values.shape[1], target)
    as_is = values.dtype == np.int16 and target.keeps(rate, values.shape[1])
    convert = np.array if as_is else _to_float  # a copy, in any case
    return _to_mono((convert(values[at : at + size]) for at in range(0, len(values), size)), rate, target)


def _to_array(array: Any) -> np.ndarray:
    """The values as they are, of a dtype whose full scale is known."""
    if not isinstance(array, list) and not hasattr(array, "__array__"):
        raise AudioError(f"is not audio but of type {type(array).__name__}; give a path, bytes, a file or an array")
    try:
        values = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"cannot be read as an array ({error})") from error
    if isinstance(array, list) and values.ndim != 1:
        raise AudioError("is a list of lists or arrays: pass one audio at a time, channels as an array [S, C]")
    if values.dtype.name not in INTEGER_SCALES and values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        raise AudioError(
            f"is {values.dtype}, whose full scale is not known: give floats in [-1, 1] or {', '.join(INTEGER_SCALES)}"
        )
    return values


def _to_float(values: np.ndarray) -> np.ndarray:
    """A float32 copy, integers scaled to [-1, 1); the channels of a sample side by side, as in a file.

    numpy adds up more than eight channels in an order that depends on where they lie.
    """
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which is refused with its position
        floats = values.astype(np.float32, order="C")
    if values.dtype.name in INTEGER_SCALES:
        zero, full_scale = INTEGER_SCALES[values.dtype.name]
        return (floats - zero) / full_scale
    return floats


def _channels_last(values: np.ndarray) -> np.ndarray:
    """[S], [S, C] or [C, S] as [S, C], where the shape leaves no doubt."""
    if values.ndim == 1 or (values.ndim == 2 and values.size == 0):
        return values.reshape(-1, 1)
    channels = min(values.shape, default=0)
    if values.ndim != 2 or channels > MAX_CHANNELS_IN_ARRAY or (values.shape[0] == values.shape[1] != 1):
        raise AudioError(
            f"has shape {values.shape}, which does not tell samples from channels: give [S], or [S, C] with at most "
            f"{MAX_CHANNELS_IN_ARRAY} channels and more samples than channels"
        )
    return values if values.shape[1] == channels else values.T


def _is_scalar(value: Any) -> bool:
    return isinstance(value, numbers.Number) or getattr(value, "ndim", None) == 0


def _check_rate(rate: Any) -> float:
    number = rate.item() if getattr(rate, "ndim", None) == 0 else rate
    if isinstance(number, bool) or not isinstance(number, int | float) or not MIN_RATE <= number <= MAX_RATE:
        raise AudioError(f"has a sampling rate of {number!r}; rates are {MIN_RATE} to {MAX_RATE} Hz (16000, not 16)")
    return float(number)


def _check_length(num_samples: int, rate: float, target: Target) -> None:
    if num_samples > target.max_duration * rate:
        raise AudioError(too_long(target.max_duration))


def _block_length(rate: float, num_channels: int, target: Target) -> int:
    """Samples in a block, so that it has about BLOCK_VALUES values both before and after resampling."""
    return max(1, int(BLOCK_VALUES / max(num_channels, target.sampling_rate / rate)))


def _to_mono(blocks: Iterable[np.ndarray], rate: float, target: Target) -> Iterator[np.ndarray]:
    """Blocks [S, C] of one audio as mono at the target rate; refuses what cannot be used."""
    resampler, position = None, 0
    if rate != target.sampling_rate:
        resampler = soxr.ResampleStream(rate, target.sampling_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        _check_length(position + len(block), rate, target)
        _check_amplitude(block, position / rate, rate)
        position += len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        if resampler is not None:
            mono = resampler.resample_chunk(mono)  # empty until the filter's first output
        if len(mono):
            yield mono
    if resampler is not None and len(end := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield end


def _check_amplitude(block: np.ndarray, start: float, rate: float) -> None:
    """Refuse samples [S, C] that are no audio; ``start`` is the block's place in the audio, in seconds."""
    if not (block.min(initial=0) >= -MAX_AMPLITUDE and block.max(initial=0) <= MAX_AMPLITUDE):  # so for NaN too
        row, channel = np.argwhere(~(np.abs(block) <= MAX_AMPLITUDE))[0]
        raise AudioError(
            f"has a sample of {block[row, channel]} at {start + row / rate:.3f} s: export it again, within [-1, 1]"
        )

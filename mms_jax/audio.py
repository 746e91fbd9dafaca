"""Audio in: a file, bytes or an array becomes float32 mono samples at 16 kHz, or an ``AudioError`` that says why not.

Decoding is libsndfile's (WAV, FLAC, Ogg Vorbis and Opus, MP3) behind the checks of ``containers``; resampling is soxr's
HQ quality (linear phase, 20 bits), the same in one piece or in blocks; channels are averaged. No torch, no ffmpeg.
Files are not trusted: they are decoded in blocks, never allocated by the length they declare, and whole or not at all.
"""

import io
import numbers
import os
import stat
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import soundfile
import soxr

from mms_jax.containers import open_container
from mms_jax.containers.view import CONVERT, TRUNCATED, View, too_long
from mms_jax.errors import AudioError
from mms_jax.features import MAX_AMPLITUDE, FeatureExtractor, Features, bucket_length, bucketed_batches

__all__ = [
    "MAX_DURATION",
    "SAMPLING_RATE",
    "FeatureExtractor",
    "Features",
    "bucket_length",
    "bucketed_batches",
    "describe_audio",
    "load_audio",
]

SAMPLING_RATE = 16_000  # Hz: what every MMS model was trained on
MAX_DURATION = 1800.0  # seconds: 115 MB of float32 at 16 kHz; ten times that, from one crafted file, is too much
MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz: below, kHz were meant (16 for 16 000); above, nothing records speech
MAX_CHANNELS_IN_ARRAY = 16  # an array's shorter axis is its channels up to here; files may have 1024, they say so
MAX_STREAM_BYTES = 2**30  # from a pipe or file object: 30 min of 48 kHz stereo float32 are 0.7 GB
BLOCK_VALUES = 2**20  # samples x channels decoded at a time: 4 MB
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
    if not MIN_RATE <= sampling_rate <= MAX_RATE or not max_duration > 0:
        raise ValueError(f"sampling_rate={sampling_rate!r} Hz and max_duration={max_duration!r} s cannot be loaded to")
    try:
        return _load(audio, Target(sampling_rate, max_duration))
    except AudioError as error:
        raise AudioError(f"{describe_audio(audio)}: {error}") from error.__cause__


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
    """What to load to: Hz and seconds."""

    sampling_rate: int
    max_duration: float


def _load(audio: Any, target: Target) -> np.ndarray:
    if isinstance(audio, str | os.PathLike):
        return _load_path(audio, target)
    if isinstance(audio, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(audio), target)
    if isinstance(audio, Mapping):
        return _load_mapping(audio, target)
    if isinstance(audio, tuple):
        return _load_pair(audio, target)
    if hasattr(audio, "get_all_samples"):
        return _load_decoder(audio, target)
    if hasattr(audio, "read"):
        return _decode(_read_stream(audio), target)
    return _load_array(audio, target.sampling_rate, target)


# --- files -----------------------------------------------------------------------------------------------------------


def _load_path(path: str | os.PathLike, target: Target) -> np.ndarray:
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
        return _decode(file if stat.S_ISREG(mode) else _read_stream(file), target)


def _read_stream(file: Any) -> io.BytesIO:
    """What is left in a file object or pipe, in memory: decoding seeks, and not every file object can."""
    content = io.BytesIO()
    while data := _read_block(file):
        content.write(data)
        if content.tell() > MAX_STREAM_BYTES:
            raise AudioError(f"gives more than {MAX_STREAM_BYTES} bytes; split it, or save it and pass the path")
    if content.tell() == 0:
        raise AudioError("gives no bytes: it is empty, or at its end (then seek(0) first)")
    return content


def _read_block(file: Any) -> bytes | bytearray | memoryview:
    try:
        data = file.read(2**20)
    except (OSError, ValueError) as error:  # ValueError: a closed file
        raise AudioError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise AudioError(f"gives {type(data).__name__}, not bytes: open it in binary mode, open(path, 'rb')")
    return data


def _decode(file: BinaryIO, target: Target) -> np.ndarray:
    try:
        view = open_container(file, max_duration=target.max_duration)
        try:
            return _decode_view(view, target)
        finally:
            if view.failure is not None:
                raise view.failure
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror or error})") from error


class _Stream(soundfile.SoundFile):
    """A sound file that is only read forward.

    ``SoundFile.read`` otherwise seeks to where it already is after each block, which fails on a FLAC stream of unknown
    length and makes lossy decoders start anew.
    """

    def seekable(self) -> bool:
        return False


def _decode_view(view: View, target: Target) -> np.ndarray:
    try:
        with _Stream(cast(BinaryIO, view)) as stream:
            return _read_all(stream, target)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise AudioError(f"cannot be decoded ({reason}); {CONVERT}") from error


def _read_all(stream: _Stream, target: Target) -> np.ndarray:
    declared, mono = stream.frames, _Mono(_check_rate(stream.samplerate), target)
    if declared < UNKNOWN_FRAMES:
        mono.check_length(declared)
    while len(block := stream.read(max(1, BLOCK_VALUES // stream.channels), dtype="float32", always_2d=True)):
        mono.add(block)
    if mono.num_samples < declared < UNKNOWN_FRAMES:
        raise AudioError(f"declares {declared} samples, of which {mono.num_samples} can be decoded; {TRUNCATED}")
    if mono.num_samples == 0:
        raise AudioError("holds no audio (zero samples); record or copy it again")
    return mono.finish()


# --- arrays ----------------------------------------------------------------------------------------------------------


def _load_mapping(audio: Mapping, target: Target) -> np.ndarray:
    array = audio.get("array") if audio.get("array") is not None else audio.get("raw")
    if array is not None:
        if audio.get("sampling_rate") is None:
            raise AudioError("has an array without its rate: add the key 'sampling_rate' in Hz")
        return _load_array(array, audio["sampling_rate"], target)
    if isinstance(audio.get("bytes"), bytes | bytearray | memoryview):
        return _decode(io.BytesIO(audio["bytes"]), target)
    if audio.get("bytes") is None and isinstance(audio.get("path"), str | os.PathLike):
        return _load_path(audio["path"], target)
    raise AudioError(
        'holds neither "array" (or "raw") with "sampling_rate", nor "bytes", nor "path"; of a row, pass row["audio"]'
    )


def _load_pair(audio: tuple, target: Target) -> np.ndarray:
    if len(audio) != 2 or _is_scalar(audio[0]) == _is_scalar(audio[1]):
        raise AudioError("is a tuple but not (array, rate) or (rate, array); pass several audios as a list")
    rate, array = audio if _is_scalar(audio[0]) else audio[::-1]
    return _load_array(array, rate, target)


def _load_decoder(decoder: Any, target: Target) -> np.ndarray:
    """A torchcodec ``AudioDecoder``, which ``datasets`` returns, by the methods it has: torch is not imported here."""
    duration = getattr(getattr(decoder, "metadata", None), "duration_seconds", None)
    if duration is not None and duration > target.max_duration:
        raise AudioError(too_long(target.max_duration))
    try:
        samples = decoder.get_all_samples()
    except (RuntimeError, ValueError, OSError) as error:
        raise AudioError(f"cannot be decoded ({error})") from error
    return _load_array(samples.data, samples.sample_rate, target)


def _load_array(array: Any, rate: Any, target: Target) -> np.ndarray:
    mono = _Mono(_check_rate(rate), target)
    mono.add(_channels_last(_to_float(array)))
    return mono.finish()


def _to_float(array: Any) -> np.ndarray:
    """The values as float32 of the same shape, integers scaled to [-1, 1)."""
    if not isinstance(array, list) and not hasattr(array, "__array__"):
        raise AudioError(f"is not audio but of type {type(array).__name__}; give a path, bytes, a file or an array")
    try:
        values = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"cannot be read as an array ({error})") from error
    if isinstance(array, list) and values.ndim != 1:
        raise AudioError("is a list of lists or arrays: pass one audio at a time, channels as an array [S, C]")
    if values.dtype.name in INTEGER_SCALES:
        zero, full_scale = INTEGER_SCALES[values.dtype.name]
        return (values.astype(np.float32) - zero) / full_scale
    if values.dtype.kind == "f" or values.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which is refused with its position
            return values.astype(np.float32, copy=False)  # the result is a copy in any case
    raise AudioError(
        f"is {values.dtype}, whose full scale is not known: give floats in [-1, 1] or {', '.join(INTEGER_SCALES)}"
    )


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


class _Mono:
    """Collect blocks [S, C] of one audio as mono at the target rate; refuse what cannot be used."""

    def __init__(self, rate: float, target: Target):
        self.num_samples = 0  # so far, at ``rate``
        self._rate, self._target = rate, target
        self._chunks: list[np.ndarray] = []
        self._resampler = None
        if rate != target.sampling_rate:
            self._resampler = soxr.ResampleStream(rate, target.sampling_rate, 1, dtype="float32", quality="HQ")

    def check_length(self, num_samples: int) -> None:
        if num_samples > self._target.max_duration * self._rate:
            raise AudioError(too_long(self._target.max_duration))

    def add(self, block: np.ndarray) -> None:
        self.check_length(self.num_samples + len(block))
        usable = np.abs(block) <= MAX_AMPLITUDE  # False for NaN too
        if not usable.all():
            row, channel = np.argwhere(~usable)[0]
            seconds = (self.num_samples + row) / self._rate
            raise AudioError(
                f"has a sample of {block[row, channel]} at {seconds:.3f} s: export it again, within [-1, 1]"
            )
        self.num_samples += len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        self._chunks.append(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def finish(self) -> np.ndarray:
        if self._resampler is not None:
            self._chunks.append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        return np.concatenate(self._chunks, dtype=np.float32)

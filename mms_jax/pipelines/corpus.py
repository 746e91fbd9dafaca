"""The utterances of a recording as a folder that the training program reads: FLAC files and metadata.jsonl.

Audio is cut at 16 kHz, mono, 16 bits, which is what every MMS model hears and training would make of it; of a recording
that is so already, these are its very samples. It is read in blocks, so that hours take no more memory than minutes.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from mms_jax.audio import SAMPLING_RATE, describe_audio, stream_samples
from mms_jax.errors import AudioError, DatasetError, SettingError
from mms_jax.files import atomic_write, write_json
from mms_jax.pipelines.alignment import Alignment
from mms_jax.pipelines.segmenting import Limits, Utterance, samples_of, utterances

METADATA, REPORT, CLIPS = "metadata.jsonl", "report.json", "clips"
TEXT_COLUMN, NORMALIZED_COLUMN = "text", "normalized_text"
_FULL_SCALE = 2**15  # of 16-bit audio
_MAX_STEM = 60  # characters of the recording's name in those of its clips
_DECIMALS = 3  # of seconds


class Made(NamedTuple):
    """What became of a recording."""

    kept: tuple[Utterance, ...]
    dropped: tuple[Utterance, ...]  # each with its reason

    @property
    def lines(self) -> tuple[str, ...]:
        """What was kept and what not, with the reasons, for people."""
        lines = [f"kept {_amount(self.kept)}"]
        for reason, _ in Counter(utterance.reason for utterance in self.dropped).most_common():
            lines.append(f"left out {_amount([one for one in self.dropped if one.reason == reason])}: {reason}")
        return tuple(lines)


def make_corpus(
    audio: Any,
    alignment: Alignment,
    out: Path,
    *,
    language: str | None = None,
    limits: Limits | None = None,
) -> Made:
    """Write an aligned recording's utterances into a folder; each row of its metadata.jsonl is one of them.

    Columns: file_name, text (as written), normalized_text (what to train on), language, start, end, duration
    (seconds), score, flags, source. What is left out, and why, is in report.json.

    Args:
        audio: the recording; what was aligned, but no stream, since it is read again.
        alignment: of it; raises its error if it has one.
        out: the folder; it must be new or empty. It is filled at the end, all at once; metadata.jsonl comes after the
            clips, so that no folder looks whole that is not.
        language: of the text, for normalising it; None: the alignment's.
        limits: of lengths and score; None: those of ``Limits``.

    Raises:
        SettingError: the folder holds something, or limits that nothing can keep. DatasetError: no utterance is left,
            or the folder cannot be written; nothing is left of it then. AudioError: the recording cannot be read again.
    """
    tag = alignment.language or language
    found = utterances(alignment, language=tag, limits=limits or Limits())
    made = Made(tuple(one for one in found if not one.reason), tuple(one for one in found if one.reason))
    if not made.kept:
        raise DatasetError(f"{describe_audio(audio)}: no utterance is left; {'; '.join(made.lines)}")
    _write(audio, made, out, tag)
    return made


def check_free(out: Path) -> None:
    """Raise SettingError unless a folder can be made there, or is there and empty."""
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out}: is a file; name a new folder, or an empty one")
    held = sorted(os.listdir(out)) if out.exists() else []
    if held:
        hint = " (an interrupted run left it: delete it)" if held[0].startswith(".partial-") else ""
        raise SettingError(f"{out}: holds {held[0]} already{hint}; name a new folder, or an empty one")


def _write(audio: Any, made: Made, out: Path, language: str | None) -> None:
    check_free(out)
    new = not out.exists()
    partial = out / f".partial-{secrets.token_hex(4)}"
    try:
        (partial / CLIPS).mkdir(parents=True)
        _fill(partial, audio, made, language)
        for name in (CLIPS, METADATA, REPORT):  # a report without metadata would be taken for a table
            os.replace(partial / name, out / name)
        partial.rmdir()
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(partial)
        if new:
            with suppress(OSError):  # not empty: it was all but done
                out.rmdir()
        if isinstance(error, OSError):
            raise DatasetError(f"{out}: cannot be written ({error.strerror or error})") from error
        raise


def _fill(folder: Path, audio: Any, made: Made, language: str | None) -> None:
    source = describe_audio(audio)
    stem = re.sub(r"[^\w.-]", "_", Path(source).stem)[:_MAX_STEM]
    digits = max(4, len(str(len(made.kept))))
    with closing(_clips(audio, made.kept)) as clips, atomic_write(folder / METADATA) as table:
        for number, (utterance, samples) in enumerate(zip(made.kept, clips, strict=True), start=1):
            name = f"{CLIPS}/{stem}-{number:0{digits}}.flac"
            (folder / name).write_bytes(_flac(samples))
            row = {"file_name": name, **_fields(utterance), "language": language, "source": source}
            table.write(_json(row) + b"\n")
    write_json(folder / REPORT, _report(made, source))


def _clips(audio: Any, kept: Sequence[Utterance]) -> Generator[np.ndarray]:
    """The samples of each, int16 or float32; a block of the recording is held at a time, and the clip that is due."""
    with closing(stream_samples(audio)) as blocks:
        held, offset = np.zeros(0, np.int16), 0
        for utterance in kept:
            first, last = samples_of(utterance)
            while offset + len(held) < last and (block := next(blocks, None)) is not None:
                past = min(len(held), max(0, first - offset))
                held, offset = np.concatenate([held[past:].astype(block.dtype), block]), offset + past
            if offset + len(held) < last:
                raise AudioError(
                    f"{describe_audio(audio)}: ends at {(offset + len(held)) / SAMPLING_RATE:.2f} s on the second "
                    "reading; it was changed meanwhile, or it is a stream, which can be read once"
                )
            yield held[first - offset : last - offset]


def _flac(samples: np.ndarray) -> bytes:
    if samples.dtype != np.int16:
        scaled = np.rint(samples * np.float32(_FULL_SCALE))
        samples = np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _fields(utterance: Utterance) -> dict[str, Any]:
    return {
        TEXT_COLUMN: utterance.text,
        NORMALIZED_COLUMN: utterance.normalized_text,
        "start": round(utterance.start, _DECIMALS),
        "end": round(utterance.end, _DECIMALS),
        "duration": round(utterance.duration, _DECIMALS),
        "score": utterance.score,
        "flags": ", ".join(utterance.flags),
    }


def _report(made: Made, source: str) -> dict[str, Any]:
    return {
        "source": source.encode("utf-8", "backslashreplace").decode(),
        "kept": {"utterances": len(made.kept), "seconds": _seconds(made.kept)},
        "dropped": {"utterances": len(made.dropped), "seconds": _seconds(made.dropped)},
        "dropped_utterances": [{**_fields(one), "reason": one.reason} for one in made.dropped],
    }


def _json(row: dict[str, Any]) -> bytes:
    """A line; the bytes of file names that are no text become escapes."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _seconds(found: Sequence[Utterance]) -> float:
    return round(sum(one.duration for one in found), _DECIMALS)


def _amount(found: Sequence[Utterance]) -> str:
    return f"{len(found)} utterance{'' if len(found) == 1 else 's'}, {_seconds(found):.1f} s"

"""``mms-jax align``: when each word of a known text is said in a recording, as JSON, subtitles, TextGrid or CTM."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mms_jax.cli.common import add_model, model_or_demo, positive, some, to_json, warn
from mms_jax.cli.segment import add_segment, check_segment, make_segments
from mms_jax.errors import AlignmentError, LanguageError, SettingError
from mms_jax.files import atomic_write
from mms_jax.pipelines.alignment import Alignment
from mms_jax.pipelines.alignment_files import FORMATS, LEVELS, to_json_fields, writer
from mms_jax.pipelines.asr import SpeechRecognizer, load_asr
from mms_jax.pipelines.dtypes import WAV2VEC2_DTYPES

_STDIN = "-"
_MOST_WARNINGS = 20  # lines; a text of another recording has a doubt about every word


def add_align(commands: Any) -> None:
    """The command and its arguments."""
    align = commands.add_parser("align", help="find when each word of a known text is said in a recording")
    add_model(align)
    align.add_argument("audio", metavar="AUDIO", help="WAV, FLAC, OGG or MP3 of any length, rate and channels")
    align.add_argument(
        "text",
        metavar="TEXT_FILE",
        help="UTF-8, a segment on each line; a word <star> stands for any speech; - is stdin",
    )
    align.add_argument("--language", metavar="CODE", help="ISO 639 code, English name, or the model's own tag")
    align.add_argument("--format", choices=FORMATS, default="json", help="of the result (json)")
    align.add_argument("--level", choices=LEVELS, help="what has a line of its own: srt (segments), ctm (words)")
    align.add_argument("--output", metavar="FILE", help="write it there instead of printing it")
    align.add_argument(
        "--star",
        choices=("start", "segments"),
        help="allow for speech that the text does not have: before it, or around all of its lines",
    )
    align.add_argument(
        "--romanize",
        action=argparse.BooleanOptionalAction,
        help="spell the text in Latin letters first (for a model without languages that knows no others)",
    )
    align.add_argument("--dtype", choices=WAV2VEC2_DTYPES, default="float32", help="of weights and products (float32)")
    align.add_argument("--batch-size", type=positive, default=8, metavar="N", help="most windows at a time (8)")
    add_segment(align)
    align.set_defaults(run=_align)


def _align(options: argparse.Namespace) -> int:
    if options.format == "json" and options.level is not None:
        raise SettingError(f"JSON has all levels, so leave out --level {options.level}")
    if options.output is not None and (not options.output or Path(options.output).is_dir()):
        raise SettingError(f"--output {options.output!r}: name a file")
    if options.output is not None and not Path(options.output).parent.is_dir():
        raise SettingError(f"--output {options.output}: there is no such folder")
    check_segment(options)
    text = _read(options.text)
    result = _load(options).align(
        options.audio,
        text,
        language=options.language,
        star=options.star,
        romanize=options.romanize,
        batch_size=options.batch_size,
    )
    content = _content(result, options)
    for warning in result.warnings[:_MOST_WARNINGS]:
        warn(f"warning: {warning}")
    if len(result.warnings) > _MOST_WARNINGS:
        warn(f"warning: {len(result.warnings) - _MOST_WARNINGS} more; --format json has them all")
    if options.segment is not None:
        make_segments(options, result)
    if options.output is None:
        print(content if options.segment is None else "", end="")
        return 0
    with atomic_write(Path(options.output)) as stream:
        stream.write(content.encode("utf-8", "surrogateescape"))  # the name of a file may be no text
    print(options.output)
    return 0


def _load(options: argparse.Namespace) -> SpeechRecognizer:
    asr = load_asr(model_or_demo(options.model), dtype=options.dtype)
    if options.language is None and len(asr.languages) > 1:
        raise LanguageError(f"--language is needed; this model knows {some(asr.languages)}")
    return asr


def _read(name: str) -> str:
    """The text of a file or of stdin, a byte order mark left out.

    Raises:
        AlignmentError: it cannot be read, or is not UTF-8.
    """
    if name == _STDIN and sys.stdin is None:
        raise AlignmentError("-: there is no stdin; name a file")
    try:
        data = sys.stdin.buffer.read() if name == _STDIN else Path(name).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise AlignmentError(f"{name}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise AlignmentError(f"{name}: not UTF-8 at byte {error.start}; save the text as UTF-8") from error


def _content(result: Alignment, options: argparse.Namespace) -> str:
    if options.format == "json":
        return to_json({"file": options.audio, **to_json_fields(result)}) + "\n"
    return writer(options.format, level=options.level, name=Path(options.audio).stem)(result)

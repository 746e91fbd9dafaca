"""``mms-jax synthesize``: text into speech."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mms_jax.cli.common import some, warn
from mms_jax.errors import AudioError, TextError
from mms_jax.pipelines.dtypes import DTYPES
from mms_jax.pipelines.speech import FORMATS, Speech
from mms_jax.pipelines.tts import load_tts

_LINES_AT_A_TIME = 16  # spoken before they are written: what is done is kept if the rest is interrupted


def add_synthesize(commands: Any) -> None:
    """The command and its arguments."""
    synthesize = commands.add_parser("synthesize", help="speak text into an audio file")
    source = synthesize.add_mutually_exclusive_group(required=True)
    source.add_argument("text", nargs="?", metavar="TEXT", help="what to say; - reads it from stdin")
    source.add_argument("--text-file", metavar="FILE", help="read it from a file (UTF-8)")
    synthesize.add_argument("--model", required=True, metavar="DIR|REPO", help="such as facebook/mms-tts-eng")
    synthesize.add_argument(
        "--output", required=True, metavar="FILE", help=".wav, .flac or .ogg; - writes WAV to stdout"
    )
    synthesize.add_argument(
        "--lines", action="store_true", help="speak every line by itself: FILE-0001.wav, FILE-0002.wav, …"
    )
    synthesize.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    synthesize.add_argument("--speaking-rate", type=float, metavar="X", help="0.1 … 10, 2 is twice as fast")
    synthesize.add_argument("--noise-scale", type=float, metavar="X", help="how much the voice varies")
    synthesize.add_argument("--noise-scale-duration", type=float, metavar="X", help="how much the rhythm varies")
    synthesize.add_argument("--speaker", type=int, metavar="N", help="of a checkpoint with several")
    synthesize.add_argument("--no-normalize", action="store_true", help="take the text as it is, drop nothing")
    synthesize.add_argument("--dtype", choices=DTYPES, default="float32", help="of flow and decoder (float32)")
    synthesize.set_defaults(run=_synthesize)


def _synthesize(options: argparse.Namespace) -> int:
    lines = _read_text(options).splitlines()
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    texts = [lines[number - 1] for number in numbers]
    outputs = _outputs(options.output, len(texts) if options.lines else None)
    if not texts:
        raise TextError(f"{options.text_file or 'the text'} is empty: nothing to say")
    tts = load_tts(options.model, dtype=options.dtype)
    settings = {
        "seed": options.seed,
        "speaking_rate": options.speaking_rate,
        "noise_scale": options.noise_scale,
        "noise_scale_duration": options.noise_scale_duration,
        "speaker": options.speaker,
        "normalize": False if options.no_normalize else None,
    }
    if not options.lines:  # a line break is no symbol, but parts words
        return 0 if _write_speech(outputs[0], tts.synthesize(" ".join(lines).strip(), **settings)) else 1
    failed = 0
    for start in range(0, len(texts), _LINES_AT_A_TIME):
        some = slice(start, start + _LINES_AT_A_TIME)
        names = [f"line {number}" for number in numbers[some]]
        for output, speech in zip(outputs[some], tts.synthesize(texts[some], names=names, **settings), strict=True):
            failed += not _write_speech(output, speech)
    return 1 if failed else 0


def _read_text(options: argparse.Namespace) -> str:
    if options.text_file is None and options.text != "-":
        return options.text
    if options.text_file in (None, "-"):
        name, data = "stdin", sys.stdin.buffer.read()
    else:
        name, data = options.text_file, Path(options.text_file).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _outputs(output: str, count: int | None) -> list[str]:
    """Where each text's speech goes, checked before anything is computed."""
    path = Path(output)
    if output != "-" and path.suffix.lower() not in FORMATS:
        raise AudioError(f"--output {output}: speech is written as {', '.join(FORMATS)}, by the name's ending")
    if not path.parent.is_dir():
        raise AudioError(f"--output {output}: there is no folder {path.parent}")
    if count is None:
        return [output]
    if output == "-":
        raise AudioError("--output -: several files do not go to stdout; leave --lines out, or name a file")
    return [str(path.with_name(f"{path.stem}-{index:04d}{path.suffix}")) for index in range(1, count + 1)]


def _write_speech(output: str, speech: Speech) -> bool:
    """Write one result and say so; False, with its reason on stderr, if there is none."""
    if speech.error is not None:
        warn(f"error: {output}: {speech.error}")
        return False
    if speech.dropped:
        warn(f"{output}: no symbol for {some([*map(repr, dict.fromkeys(speech.dropped))])}; left out")
    if output == "-":
        sys.stdout.buffer.write(speech.encode(".wav"))
    else:
        speech.save(output)
        print(f"{output}\t{speech.duration:.2f} s\t{speech.normalized_text}")
    return True

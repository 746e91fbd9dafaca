"""The ``mms-jax`` program: results on stdout, everything else on stderr, exit code 1 with a one-line reason."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from mms_jax.errors import LanguageError, MMSError
from mms_jax.languages import language_name, languages
from mms_jax.pipelines.asr import DTYPES, Transcription, load_asr
from mms_jax.pipelines.demo import DEMO_MODEL, run_demo
from mms_jax.pipelines.info import describe, model_languages

_EXAMPLES = """examples:
  mms-jax demo
  mms-jax transcribe clip.wav --language fra --model facebook/mms-1b-all --dtype bfloat16
  mms-jax transcribe *.flac --language eng --format json > texts.jsonl
  mms-jax languages --task asr
  mms-jax info facebook/mms-1b-all
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # transcripts are in any script, whatever the locale says
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()  # here, where a full disk is still an error and not lost at exit
        return code
    except MMSError as error:
        return _fail(error)
    except BrokenPipeError:  # the reader of stdout (head, less) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(error)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mms-jax",
        description="Meta's MMS speech models in JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mms-jax {metadata.version('mms-jax')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    transcribe = commands.add_parser("transcribe", help="print what is said in audio files")
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="WAV, FLAC, OGG or MP3, any rate and channels")
    _add_model(transcribe)
    transcribe.add_argument("--language", metavar="CODE", help="ISO 639 code, English name, or the model's own tag")
    transcribe.add_argument("--format", choices=("text", "json"), default="text", help="json: one object a line")
    transcribe.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and products (float32)")
    transcribe.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="most files at a time (8)")
    transcribe.set_defaults(run=_transcribe)

    info = commands.add_parser("info", help="describe a checkpoint")
    info.add_argument(
        "model", nargs="?", default=None, metavar="MODEL", help="directory or hub name (default: the demo)"
    )
    info.set_defaults(run=_info)

    languages = commands.add_parser(
        "languages", help="list languages: of a checkpoint, or all that MMS was published for"
    )
    which = languages.add_mutually_exclusive_group()
    which.add_argument("--task", choices=("asr", "tts", "lid"), help="only those the task covers")
    which.add_argument("--model", metavar="DIR|REPO", help="a checkpoint's own languages instead")
    languages.set_defaults(run=_languages)

    demo = commands.add_parser("demo", help="transcribe the bundled clips with the bundled demonstration model")
    demo.set_defaults(run=_demo)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR|REPO", help="directory or hub name (default: the bundled demo model)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _transcribe(options: argparse.Namespace) -> int:
    asr = load_asr(_model(options.model), language=options.language, dtype=options.dtype)
    if asr.language is None and len(asr.languages) > 1:
        raise LanguageError(f"--language is needed; this model knows {_some(asr.languages)}")
    results = asr.transcribe(list(options.files), batch_size=options.batch_size)
    failed = 0
    for file, result in zip(options.files, results, strict=True):
        if result.error is not None:
            failed += 1
            _warn(f"error: {result.error}")
        if options.format == "json":
            _print_json(file, result)
        elif result.error is None:
            print(result.text if len(results) == 1 else f"{file}\t{result.text}")
    return 1 if failed else 0


def _print_json(file: str, result: Transcription) -> None:
    record = {"file": file, "language": result.language, "duration": round(result.duration, 3)}
    record |= {"error": str(result.error)} if result.error is not None else {"text": result.text}
    print(json.dumps(record, ensure_ascii=False))


def _info(options: argparse.Namespace) -> int:
    print(describe(_model(options.model)))
    return 0


def _languages(options: argparse.Namespace) -> int:
    if options.model is not None:
        for tag in model_languages(options.model):
            print(f"{tag}\t{language_name(tag) or ''}")
        return 0
    for language in languages(task=options.task):
        print(f"{language.code}\t{language.name}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    return run_demo()


def _model(model: str | None) -> str | Path:
    if model is None:
        _warn(f"using the bundled demo model ({DEMO_MODEL}), which understands one speech synthesiser only")
        return DEMO_MODEL
    return model


def _some(items: Sequence[str], limit: int = 8) -> str:
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _warn(message: str) -> None:
    print(f"mms-jax: {message}", file=sys.stderr)


def _fail(error: Exception) -> int:
    _warn(f"error: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

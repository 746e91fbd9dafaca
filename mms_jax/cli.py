"""The ``mms-jax`` program: results on stdout, everything else on stderr, exit code 1 with a one-line reason."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

from mms_jax.errors import AudioError, LanguageError, MMSError, TextError
from mms_jax.languages import find_languages, language_name, languages
from mms_jax.pipelines.asr import Transcription, load_asr
from mms_jax.pipelines.compilation import program_cache
from mms_jax.pipelines.demo import DEMO_MODEL, run_demo
from mms_jax.pipelines.dtypes import DTYPES
from mms_jax.pipelines.info import describe, model_languages
from mms_jax.pipelines.lid import Identification, load_lid
from mms_jax.pipelines.speech import FORMATS, Speech
from mms_jax.pipelines.tts import load_tts

_LINES_AT_A_TIME = 16  # spoken before they are written: what is done is kept if the rest is interrupted

_WITHOUT_MODEL = ("info", "languages")  # commands that compute nothing, so compile nothing

_EXAMPLES = """examples:
  mms-jax demo
  mms-jax transcribe clip.wav --language fra --model facebook/mms-1b-all --dtype bfloat16
  mms-jax transcribe *.flac --language eng --format json > texts.jsonl
  mms-jax identify *.mp3 --model facebook/mms-lid-126 --top-k 3
  mms-jax synthesize "Hello, my dog is cute" --model facebook/mms-tts-eng --output hello.wav
  mms-jax languages --task asr
  mms-jax info facebook/mms-1b-all

Compiled programs are kept in $MMS_JAX_CACHE_DIR (~/.cache/mms_jax); set it to nothing to keep none.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Transcripts are in any script, whatever the locale says, and names of files in none that is sure.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    options = _parser().parse_args(arguments)
    try:
        with nullcontext() if options.command in _WITHOUT_MODEL else program_cache(_warn):
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
    _add_model(transcribe)
    transcribe.add_argument("--language", metavar="CODE", help="ISO 639 code, English name, or the model's own tag")
    _add_files(transcribe)
    transcribe.set_defaults(run=_transcribe)

    _add_identify(commands)
    _add_synthesize(commands)

    info = commands.add_parser("info", help="describe a checkpoint")
    info.add_argument(
        "model", nargs="?", default=None, metavar="MODEL", help="directory or hub name (default: the demo)"
    )
    info.set_defaults(run=_info)

    languages = commands.add_parser(
        "languages", help="list languages: of a checkpoint, or all that MMS was published for"
    )
    languages.add_argument("query", nargs="?", metavar="LANGUAGE", help="only what this code or name may mean")
    which = languages.add_mutually_exclusive_group()
    which.add_argument("--task", choices=("asr", "tts", "lid"), help="only those the task covers")
    which.add_argument("--model", metavar="DIR|REPO", help="a checkpoint's own languages instead")
    languages.set_defaults(run=_languages)

    demo = commands.add_parser("demo", help="transcribe the bundled clips with the bundled demonstration model")
    demo.set_defaults(run=_demo)
    return parser


def _add_synthesize(commands: Any) -> None:
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


def _add_identify(commands: Any) -> None:
    identify = commands.add_parser("identify", help="print which language is spoken in audio files")
    identify.add_argument("--model", required=True, metavar="DIR|REPO", help="such as facebook/mms-lid-126")
    identify.add_argument("--top-k", type=_positive, default=1, metavar="K", help="languages to name (1)")
    identify.add_argument(
        "--languages", metavar="CODES", help="the only ones to consider, such as eng,fra; their probabilities add to 1"
    )
    _add_files(identify)
    identify.set_defaults(run=_identify)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="WAV, FLAC, OGG or MP3, any rate and channels")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: one object a line")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and products (float32)")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="most files at a time (8)")


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
    return _print_results(options, results, line=lambda result: result.text, fields=_transcription_fields)


def _transcription_fields(result: Transcription) -> dict[str, Any]:
    text = {"error": str(result.error)} if result.error is not None else {"text": result.text}
    return {"language": result.language, "duration": round(result.duration, 3), **text}


def _print_results(
    options: argparse.Namespace,
    results: Sequence[Any],
    *,
    line: Callable[[Any], str],
    fields: Callable[[Any], Mapping[str, Any]],
) -> int:
    """Print what was found in each file, as text or JSON; returns the exit code."""
    failed = 0
    for file, result in zip(options.files, results, strict=True):
        if result.error is not None:
            failed += 1
            _warn(f"error: {result.error}")
        if options.format == "json":
            print(json.dumps({"file": file, **fields(result)}, ensure_ascii=False))
        elif result.error is None:
            print(line(result) if len(results) == 1 else f"{file}\t{line(result)}")
    return 1 if failed else 0


def _identify(options: argparse.Namespace) -> int:
    lid = load_lid(options.model, dtype=options.dtype)
    wanted = None if options.languages is None else [name for name in options.languages.split(",") if name.strip()]
    results = lid.identify(list(options.files), top_k=options.top_k, languages=wanted, batch_size=options.batch_size)
    return _print_results(options, results, line=_identification_line, fields=_identification_fields)


def _identification_line(result: Identification) -> str:
    return "\t".join(f"{language}\t{probability:.4f}" for language, probability in result.top)


def _identification_fields(result: Identification) -> dict[str, Any]:
    duration = {"duration": round(result.duration, 3)}
    if result.error is not None:
        return {**duration, "error": str(result.error)}
    top = [[language, round(probability, 6)] for language, probability in result.top]
    return {**duration, "language": result.language, "probability": round(result.probability, 6), "top": top}


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
        _warn(f"error: {output}: {speech.error}")
        return False
    if speech.dropped:
        _warn(f"{output}: no symbol for {_some([*map(repr, dict.fromkeys(speech.dropped))])}; left out")
    if output == "-":
        sys.stdout.buffer.write(speech.encode(".wav"))
    else:
        speech.save(output)
        print(f"{output}\t{speech.duration:.2f} s\t{speech.normalized_text}")
    return True


def _info(options: argparse.Namespace) -> int:
    print(describe(_model(options.model)))
    return 0


def _languages(options: argparse.Namespace) -> int:
    published = languages(task=options.task) if options.model is None else []
    checkpoints = {language.code: ",".join(language.checkpoints(options.task)) for language in published}
    tags = list(checkpoints) if options.model is None else model_languages(options.model)
    if options.query is not None:
        source = options.model or "the published checkpoints"
        tags = find_languages(options.query, tags, source=source, task=options.task)
    for tag in tags:
        print("\t".join([tag, language_name(tag) or "", *([checkpoints[tag]] if tag in checkpoints else [])]))
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

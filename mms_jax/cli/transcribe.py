"""``mms-jax transcribe``: what is said in files, as text, JSON or subtitles."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mms_jax.cli.common import add_files, add_model, codes, model_or_demo, positive, print_results, some, to_json, warn
from mms_jax.cli.decoding import add_beam_search, beam_search
from mms_jax.errors import LanguageError, SettingError
from mms_jax.files import atomic_write
from mms_jax.pipelines.asr import SpeechRecognizer, load_asr
from mms_jax.pipelines.chunks import CHUNK_LENGTH
from mms_jax.pipelines.demo import DEMO_LID
from mms_jax.pipelines.routing import AUTO
from mms_jax.pipelines.subtitles import to_srt, to_vtt
from mms_jax.pipelines.transcription import RankedLanguage, Transcription, Word

_FILES_AT_A_TIME = 128  # results of so many are printed before the next are read
_SUBTITLES = {"srt": to_srt, "vtt": to_vtt}
_SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def add_transcribe(commands: Any) -> None:
    """The command and its arguments."""
    transcribe = commands.add_parser("transcribe", help="print what is said in audio files of any length")
    add_model(transcribe)
    transcribe.add_argument(
        "--language", metavar="CODE", help="ISO 639 code, English name, or the model's own tag; auto identifies it"
    )
    transcribe.add_argument(
        "--lid-model", metavar="DIR|REPO", help="what --language auto asks, such as facebook/mms-lid-126"
    )
    transcribe.add_argument("--candidates", metavar="CODES", help="with auto: the only languages, such as eng,fra")
    transcribe.add_argument(
        "--rerank", type=positive, default=1, metavar="K", help="with auto: recognise the K likeliest languages too (1)"
    )
    transcribe.add_argument("--timestamps", choices=("word", "char"), help="when each is heard, seconds")
    transcribe.add_argument("--output-dir", metavar="DIR", help="write a file for each there instead of printing it")
    transcribe.add_argument(
        "--chunk-length-s", type=float, default=CHUNK_LENGTH, metavar="X", help="longer audio is cut into these (30)"
    )
    transcribe.add_argument(
        "--stride-length-s", type=float, metavar="X", help="of them context on each side (a sixth of the length)"
    )
    add_files(transcribe, formats=tuple(_SUFFIXES))
    add_beam_search(transcribe)
    transcribe.set_defaults(run=_transcribe)


def _transcribe(options: argparse.Namespace) -> int:
    outputs = _outputs(options)
    if options.timestamps and options.format == "text" and len(options.files) > 1:
        raise SettingError("--timestamps of several files go into --format json, or into subtitles: srt, vtt")
    search = beam_search(options)
    asr = _load(options)
    failed = 0
    for start in range(0, len(options.files), _FILES_AT_A_TIME):
        some_files = options.files[start : start + _FILES_AT_A_TIME]
        results = asr.transcribe(
            some_files,
            candidates=codes(options.candidates),
            rerank=options.rerank,
            timestamps="word" if options.format in _SUBTITLES else options.timestamps,
            batch_size=options.batch_size,
            chunk_length_s=options.chunk_length_s,
            stride_length_s=options.stride_length_s,
            **search,
        )
        if outputs is not None:
            failed += _write(outputs[start : start + _FILES_AT_A_TIME], some_files, results, options)
        elif options.format in _SUBTITLES:
            failed += _print_subtitles(results[0], options.format)
        else:
            failed += print_results(
                options, some_files, results, line=partial(_line, options), fields=partial(_fields, options)
            )
    return 1 if failed else 0


def _load(options: argparse.Namespace) -> SpeechRecognizer:
    auto, lid = options.language == AUTO, options.lid_model
    if not auto and (lid is not None or options.candidates is not None or options.rerank > 1):
        raise LanguageError("--lid-model, --candidates and --rerank are for --language auto")
    if auto and lid is None and options.model is not None:
        raise LanguageError("--language auto needs --lid-model, such as facebook/mms-lid-126")
    lid = model_or_demo(lid, demo=DEMO_LID) if auto else None
    asr = load_asr(model_or_demo(options.model), language=options.language, dtype=options.dtype, lid=lid)
    if asr.language is None and len(asr.languages) > 1:
        raise LanguageError(f"--language is needed; this model knows {some(asr.languages)}")
    return asr


def _line(options: argparse.Namespace, result: Transcription) -> str:
    if options.timestamps:
        heard = result.words if options.timestamps == "word" else result.chars
        return "\n".join(f"{one.start:.2f}\t{one.end:.2f}\t{one.text}" for one in heard)
    return f"{result.language or 'none'}\t{result.text}" if options.language == AUTO else result.text


def _fields(options: argparse.Namespace, result: Transcription) -> dict[str, Any]:
    fields: dict[str, Any] = {"language": result.language, "duration": round(result.duration, 3)}
    if result.language_probability is not None:
        fields["language_probability"] = round(result.language_probability, 6)
    if result.language_ranking:
        fields["language_ranking"] = [_ranked(one) for one in result.language_ranking]
    if result.error is not None:
        return {**fields, "error": str(result.error)}
    fields["text"] = result.text
    if options.num_best > 1:
        fields["alternatives"] = [
            {"text": one.text, "score": round(one.score, 4), "lm_score": round(one.lm_score, 4)}
            for one in result.alternatives
        ]
    if options.timestamps:
        fields["words"] = _times(result.words)
    if options.timestamps == "char":
        fields["chars"] = _times(result.chars)
    return fields


def _ranked(one: RankedLanguage) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in one._asdict().items()}


def _times(words: Iterable[Word]) -> list[dict[str, Any]]:
    return [{**word._asdict(), "score": round(word.score, 4)} for word in words]


def _outputs(options: argparse.Namespace) -> list[Path] | None:
    """The file for each result, checked before anything is computed; None: they are printed."""
    if options.output_dir is None:
        if options.format in _SUBTITLES and len(options.files) > 1:
            raise SettingError(f"--format {options.format} makes a file for each; say where: --output-dir DIR")
        return None
    if not options.output_dir:
        raise SettingError("--output-dir is empty; name a folder")
    directory = Path(options.output_dir)
    outputs = [directory / (Path(file).stem + _SUFFIXES[options.format]) for file in options.files]
    doubled = [str(output) for output, count in Counter(outputs).items() if count > 1]
    if doubled:
        raise SettingError(f"--output-dir: {some(doubled)} would be written twice; files of one name go separately")
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise SettingError(f"--output-dir {directory}: cannot be written; name a folder of your own")
    return outputs


def _write(
    outputs: Sequence[Path], files: Sequence[str], results: Sequence[Transcription], options: argparse.Namespace
) -> int:
    """Write each result into its file, and name it; returns how many failed, which have none."""
    failed = 0
    for output, file, result in zip(outputs, files, results, strict=True):
        if result.error is not None:
            failed += 1
            warn(f"error: {result.error}")
            continue
        with atomic_write(output) as stream:
            stream.write(_content(file, result, options).encode())
        print(output)
    return failed


def _content(file: str, result: Transcription, options: argparse.Namespace) -> str:
    if options.format in _SUBTITLES:
        return _SUBTITLES[options.format](result.segments)
    if options.format == "json":
        return to_json({"file": file, **_fields(options, result)}) + "\n"
    return _line(options, result) + "\n"


def _print_subtitles(result: Transcription, form: str) -> int:
    if result.error is not None:
        warn(f"error: {result.error}")
        return 1
    print(_SUBTITLES[form](result.segments), end="")
    return 0

"""The ``mms-jax`` program: results on stdout, everything else on stderr, exit code 1 with a one-line reason."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import metadata
from typing import Any

from mms_jax.cli.align import add_align
from mms_jax.cli.common import model_or_demo, own_warnings, warn
from mms_jax.cli.decoding import add_tune_lm
from mms_jax.cli.demo_train import add_demo_train
from mms_jax.cli.doctor import add_doctor
from mms_jax.cli.identify import add_identify
from mms_jax.cli.synthesize import add_synthesize
from mms_jax.cli.train import add_train
from mms_jax.cli.transcribe import add_transcribe
from mms_jax.errors import MMSError
from mms_jax.languages import find_languages, language_name, languages
from mms_jax.memory import reuse_freed_memory
from mms_jax.pipelines.compilation import program_cache
from mms_jax.pipelines.demo import run_demo
from mms_jax.pipelines.info import describe, model_languages

# Commands that compute nothing, so compile nothing; and the doctor, who looks after the cache himself.
_WITHOUT_CACHE = ("doctor", "info", "languages")

_ALIKE = 0.7  # how much of a misspelt flag must be that of another one to ask whether it was meant

_EXAMPLES = """examples:
  mms-jax demo
  mms-jax transcribe clip.wav --language fra --model facebook/mms-1b-all --dtype bfloat16
  mms-jax transcribe *.flac --language eng --format json --timestamps word > texts.jsonl
  mms-jax transcribe *.mp3 --language auto --model facebook/mms-1b-all --lid-model facebook/mms-lid-126
  mms-jax transcribe film.flac --language deu --format srt > film.srt
  mms-jax transcribe *.flac --language eng --lm eng.arpa --lm-weight 1.5
  mms-jax tune-lm --lm eng.arpa --language eng --dataset_name my-clips --split validation
  mms-jax align talk.flac talk.txt --language deu --format textgrid --output talk.TextGrid
  mms-jax identify *.mp3 --model facebook/mms-lid-126 --top-k 3
  mms-jax synthesize "Hello, my dog is cute" --model facebook/mms-tts-eng --output hello.wav
  mms-jax train --model_name_or_path facebook/mms-1b-all --dataset_name mozilla-foundation/common_voice_17_0
      --dataset_config_name tr --target_language tur --text_column_name sentence --output_dir mms-tur
      --learning_rate 1e-3 --warmup_steps 100 --num_train_epochs 4 --do_train --do_eval
  mms-jax languages --task asr
  mms-jax info facebook/mms-1b-all
  mms-jax doctor

Compiled programs are kept in $MMS_JAX_CACHE_DIR (~/.cache/mms_jax); set it to nothing to keep none.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Transcripts are in any script, whatever the locale says, and names of files in none that is sure.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    options = _parser().parse_args(arguments)
    if arguments is None:  # a process of its own
        reuse_freed_memory()
    try:
        with own_warnings(), nullcontext() if options.command in _WITHOUT_CACHE else program_cache(warn):
            code = options.run(options)
        print(end="", flush=True)  # here, where a full disk is still an error and not lost at exit
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


class _Command(argparse.ArgumentParser):
    """Options by their whole names: --language is not short for --languages. What is none, the command itself says."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] - whose overloads say no more than this
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """As argparse does, but unknown options are an error of this command, not of the whole program."""
        words = list(sys.argv[1:] if args is None else args)
        for word in words[: words.index("--")] if "--" in words else words:
            self._check_flag(word.partition("=")[0])
        found, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}; see {self.prog} --help")
        return found, unknown

    def _check_flag(self, name: str) -> None:
        """Before the rest is parsed: a flag that is misspelt may be missed there as one that is required."""
        if name.startswith("--") and " " not in name and name not in self._option_string_actions:
            names = [option.lstrip("-") for option in self._option_string_actions]
            near = difflib.get_close_matches(name.lstrip("-"), names, n=1, cutoff=_ALIKE)
            question = f" (did you mean --{near[0]}?)" if near else ""
            self.error(f"there is no {name}{question}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mms-jax",
        allow_abbrev=False,
        description="Meta's MMS speech models in JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mms-jax {metadata.version('mms-jax')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)

    add_transcribe(commands)
    add_align(commands)
    add_tune_lm(commands)
    add_identify(commands)
    add_synthesize(commands)
    add_train(commands)

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

    demo = commands.add_parser("demo", help="identify and transcribe the bundled clips with the bundled models")
    demo.set_defaults(run=_demo)
    add_demo_train(commands)
    add_doctor(commands)
    return parser


def _info(options: argparse.Namespace) -> int:
    print(describe(model_or_demo(options.model)))
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


def _fail(error: Exception) -> int:
    warn(f"error: {error}")
    return 1

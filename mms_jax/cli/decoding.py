"""The options of a beam search, for the commands that recognise speech; and ``mms-jax tune-lm``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from mms_jax.cli.common import add_model, codes, model_or_demo, positive, some, warn
from mms_jax.errors import LanguageError, SettingError
from mms_jax.pipelines.asr import load_asr
from mms_jax.pipelines.decoding.request import BEAM, DECODERS, HOTWORD_WEIGHT
from mms_jax.pipelines.decoding.tuning import LM_WEIGHTS, METRICS, WORD_SCORES, Trial
from mms_jax.pipelines.dtypes import WAV2VEC2_DTYPES

_LM = "n-gram language model: ARPA, KenLM binary, or a decoder's directory"


def add_beam_search(parser: argparse.ArgumentParser) -> None:
    """The options of ``transcribe``."""
    group = parser.add_argument_group("beam search", "any of these but the weights and scores asks for one")
    group.add_argument("--lm", metavar="FILE", help=f"{_LM}; for several languages: eng=a.arpa,deu=b.arpa,spa=")
    _add_search(group)
    group.add_argument(
        "--lm-weight", type=_number, metavar="X", help="of the language model (that stored with it, or 2)"
    )
    group.add_argument("--word-score", type=_number, metavar="X", help="for every word (that stored with it, or 0)")
    group.add_argument("--hotwords", metavar="PHRASES", help="to be favoured, separated by commas")
    group.add_argument(
        "--hotword-weight", type=_number, default=HOTWORD_WEIGHT, metavar="X", help=f"of each ({HOTWORD_WEIGHT:g})"
    )
    group.add_argument("--num-best", type=positive, default=1, metavar="N", help="alternatives, in --format json (1)")


def _add_search(group: Any) -> None:
    group.add_argument("--lexicon", metavar="FILE", help='the only words: "word" or "word  w o r d |" on each line')
    group.add_argument("--beam", type=positive, metavar="N", help=f"hypotheses that are kept ({BEAM})")
    group.add_argument("--decoder", choices=DECODERS, help="where: flashlight on the CPU, or device, the model's")


def beam_search(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``transcribe`` for them."""
    if options.num_best > 1 and options.format != "json":
        raise SettingError("--num-best needs --format json, which shows alternatives")
    return {
        "lm": _by_language(options.lm),
        "lexicon": options.lexicon,
        "beam": options.beam,
        "lm_weight": options.lm_weight,
        "word_score": options.word_score,
        "hotwords": codes(options.hotwords),
        "hotword_weight": options.hotword_weight,
        "num_best": options.num_best,
        "decoder": options.decoder,
    }


def _by_language(text: str | None) -> str | Mapping[str, str | None] | None:
    """A file, or "eng=a.arpa,deu=b.arpa,spa=" as a mapping."""
    if text is None or "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(separator and language.strip() for language, separator, _ in pairs):
        raise SettingError(f"--lm {text}: give one file, or language=file for each, separated by commas")
    return {language.strip(): file.strip() or None for language, _, file in pairs}


def _number(text: str) -> float:
    """A finite number, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas, for argparse."""
    return tuple(_number(part) for part in text.split(","))


def add_tune_lm(commands: Any) -> None:
    """The command and its arguments."""
    tune = commands.add_parser(
        "tune-lm",
        help="find the weights of a language model that make the fewest errors",
        description="Transcribes a validation set with every pair of weights, and prints the table and the best pair.",
    )
    add_model(tune)
    tune.add_argument("--language", metavar="CODE", help="of the clips")
    tune.add_argument("--dataset_name", required=True, metavar="DATA", help="as in mms-jax train: a table or a folder")
    tune.add_argument("--split", default="validation", metavar="SPLIT", help="of it (validation)")
    tune.add_argument("--audio_column_name", default="audio", metavar="COLUMN", help="(audio)")
    tune.add_argument("--text_column_name", default="text", metavar="COLUMN", help="(text)")
    tune.add_argument("--lm", required=True, metavar="FILE", help=_LM)
    _add_search(tune)
    shown = ",".join(f"{weight:g}" for weight in LM_WEIGHTS)
    tune.add_argument("--lm-weights", type=_numbers, default=LM_WEIGHTS, metavar="X,…", help=f"to try ({shown})")
    shown = ",".join(f"{score:g}" for score in WORD_SCORES)
    tune.add_argument(
        "--word-scores",
        type=_numbers,
        default=WORD_SCORES,
        metavar="X,…",
        help=f"to try ({shown}); write --word-scores=…",
    )
    tune.add_argument("--metric", choices=METRICS, default="wer", help="to be least (wer)")
    tune.add_argument("--dtype", choices=WAV2VEC2_DTYPES, default="float32", help="of weights and products (float32)")
    tune.add_argument("--batch-size", type=positive, default=8, metavar="N", help="most clips at a time (8)")
    tune.set_defaults(run=_tune_lm)


def _tune_lm(options: argparse.Namespace) -> int:
    # Not at the top: it brings datasets, which few commands need.
    from mms_jax.training.data.dataset import load_rows

    rows = load_rows(
        options.dataset_name,
        split=options.split,
        audio_column=options.audio_column_name,
        text_column=options.text_column_name,
    )
    asr = load_asr(model_or_demo(options.model), language=options.language, dtype=options.dtype)
    if asr.language is None and len(asr.languages) > 1:
        raise LanguageError(f"--language is needed; this model knows {some(asr.languages)}")
    clips = list(rows)
    texts = [row.text if isinstance(row.text, str) else "" for row in clips]
    num_trials = len(options.lm_weights) * len(options.word_scores)
    done = 0

    def told(trial: Trial) -> None:
        nonlocal done
        done += 1
        warn(
            f"{done}/{num_trials}: lm_weight {trial.lm_weight:g}, word_score {trial.word_score:g}: "
            f"WER {trial.wer:.2%}, CER {trial.cer:.2%}"
        )

    tuning = asr.tune_lm(
        [row.audio for row in clips],
        texts,
        lm=options.lm,
        lexicon=options.lexicon,
        beam=options.beam,
        lm_weights=options.lm_weights,
        word_scores=options.word_scores,
        metric=options.metric,
        decoder=options.decoder,
        batch_size=options.batch_size,
        told=told,
    )
    best = tuning.best
    print(tuning)
    print(
        f"best on {len(clips)} clips: --lm-weight {best.lm_weight:g} --word-score {best.word_score:g}   "
        f"WER {best.wer:.2%}  CER {best.cer:.2%}"
    )
    return 0

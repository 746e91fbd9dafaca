"""Write the bundled demo from trained parameters: both models in MMS's layout, and clips of words no training saw.

.venv/bin/python -m experiments.demo.bundle
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
from safetensors.numpy import load_file

from experiments.demo.batches import SPECIAL_TOKENS, vocabulary
from experiments.demo.sentences import LANGUAGES, load_lexicon
from experiments.demo.synthesize import SAMPLE_RATE, SPLIT_SEEDS, WORK, Utterance, draw_utterance, synthesize
from experiments.demo.train_demo import CONFIG
from experiments.demo.train_lid import LABELS, lid_config
from mms_jax.checkpoint import (
    adapter_filename,
    save_adapter,
    save_classifier,
    save_ctc,
    save_feature_extractor,
    save_processor,
)
from mms_jax.config import Wav2Vec2Config
from mms_jax.features import FeatureExtractor
from mms_jax.models.trees import is_adapter_path, unflatten
from mms_jax.text.ctc import CTCTokenizer

DEMO = Path("mms_jax/demo")
BASE_LANGUAGE = "eng"  # whose adapter and head the base weights hold, as in every published MMS checkpoint
CLIPS_PER_LANGUAGE = 3
CLIP_SECONDS = (2.0, 4.0)
TOKENIZER = {
    **dict(
        zip(("pad_token", "bos_token", "eos_token", "unk_token", "word_delimiter_token"), SPECIAL_TOKENS, strict=True)
    ),
    "replace_word_delimiter_char": " ",
    "do_lower_case": False,
    "target_lang": BASE_LANGUAGE,
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
}
MODEL_CARD = """---
license: apache-2.0
language: [en, fr, de, es]
---
A small wav2vec2 in the layout of MMS (shared encoder, one adapter and head per language), trained by
`experiments/demo` on speech that espeak-ng synthesised from Debian's word lists. It understands that synthesiser and
nothing else: it shows the machinery, it is not a recogniser.
"""
LID_CARD = """---
license: apache-2.0
language: [en, fr, de, es]
---
A small language identification model in the layout of MMS (wav2vec2 with a classifier) for English, French, German and
Spanish: the first layers of the demo recogniser, trained on by `experiments/demo` on the same speech, synthesised by
espeak-ng. It tells that synthesiser's languages apart and nothing else: it shows the machinery, it is not a product.
"""


def language_params(trained: dict[str, np.ndarray], *, code: str) -> tuple[Wav2Vec2Config, dict]:
    """Config and parameter tree of one language: its leaves picked from the stacks, its head cut to its vocabulary."""
    vocab_size = len(vocabulary(code))
    own = {
        path: value[list(LANGUAGES).index(code)] if is_adapter_path(path) else value for path, value in trained.items()
    }
    own |= {path: np.ascontiguousarray(own[path][..., :vocab_size]) for path in ("lm_head/kernel", "lm_head/bias")}
    return CONFIG.replace(vocab_size=vocab_size), unflatten(own)


def write_model(trained: dict[str, np.ndarray], directory: Path) -> None:
    """Write a checkpoint that this library and transformers load: base weights, adapters, vocabularies."""
    config, params = language_params(trained, code=BASE_LANGUAGE)
    save_ctc(directory, config=config, params=params)
    for code in LANGUAGES:
        config, params = language_params(trained, code=code)
        save_adapter(directory / adapter_filename(code), config=config, params=params)
    tokenizer = CTCTokenizer({code: vocabulary(code) for code in LANGUAGES}, TOKENIZER)
    save_processor(directory, FeatureExtractor(), tokenizer)
    (directory / "README.md").write_text(MODEL_CARD, encoding="utf-8")


def write_lid(trained: dict[str, np.ndarray], directory: Path) -> None:
    """Write the classifier of languages as a checkpoint that this library and transformers load."""
    config = lid_config(sum(path.endswith("/attention/q/kernel") for path in trained))
    save_classifier(directory, config=config, labels=LABELS, params=unflatten(trained))
    save_feature_extractor(directory, FeatureExtractor())
    (directory / "README.md").write_text(LID_CARD, encoding="utf-8")


def draw_clips(code: str) -> list[tuple[Utterance, np.ndarray]]:
    """The first utterances of test words that last `CLIP_SECONDS`: not chosen by how well they are recognised."""
    rng = np.random.default_rng([SPLIT_SEEDS["clips"], list(LANGUAGES).index(code)])
    lexicon = load_lexicon(code, cache=WORK)
    clips: list[tuple[Utterance, np.ndarray]] = []
    while len(clips) < CLIPS_PER_LANGUAGE:
        utterance = draw_utterance(rng, code=code, lexicon=lexicon, split="test")
        audio = synthesize(utterance)
        if CLIP_SECONDS[0] <= len(audio) / SAMPLE_RATE <= CLIP_SECONDS[1]:
            clips.append((utterance, audio))
    return clips


def write_clips(directory: Path) -> None:
    """Write clips/<language>-<n>.flac and clips.jsonl (file, language, text)."""
    (directory / "clips").mkdir(parents=True, exist_ok=True)
    records = []
    for code in LANGUAGES:
        for n, (utterance, audio) in enumerate(draw_clips(code), start=1):
            file = f"clips/{code}-{n}.flac"
            soundfile.write(directory / file, audio, SAMPLE_RATE)
            records.append({"file": file, "language": code, "text": utterance.text})
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (directory / "clips.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write all of it, or the part asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, default=WORK / "run" / "best.safetensors", help="by train_demo")
    parser.add_argument("--lid", type=Path, default=WORK / "lid" / "best.safetensors", help="by train_lid")
    parser.add_argument("--only", choices=["asr", "lid", "clips"])
    parser.add_argument("--output", type=Path, default=DEMO)
    options = parser.parse_args()
    if options.only in (None, "asr"):
        write_model(load_file(options.trained), options.output / "asr")
    if options.only in (None, "lid"):
        write_lid(load_file(options.lid), options.output / "lid")
    if options.only in (None, "clips"):
        write_clips(options.output)


if __name__ == "__main__":
    main()

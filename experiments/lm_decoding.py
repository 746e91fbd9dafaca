"""What a language model does for the demo's recogniser: errors on 200 test sentences of each language.

.venv/bin/python -m experiments.lm_decoding

n-grams of letters are estimated from the texts of the demo's training sentences (experiments/demo/ngram.py); their
weights are those with the fewest errors on the 200 dev sentences (``tune_lm``). No word of a dev or test sentence is in
any training sentence, so all that such a model knows of them is how words of the language are spelt. "word list" is a
lexicon of all words of Debian's lists that the sentences were drawn from, those of the test sentences among them, which
is what the vocabulary of a real language model is like. With a beam of 100, in brackets lm_weight and word_score:

| language | decoding (lm_weight, word_score) | CER | WER |
| --- | --- | --- | --- |
| eng | greedy | 9.78% | 56.9% |
| eng | beam 100 | 9.37% | 55.5% |
| eng | 4-gram of letters (1.5, -1) | 7.56% | 43.6% |
| eng | 6-gram of letters (1.5, 1) | 6.06% | 33.5% |
| eng | word list (54,497) | 1.50% | 6.5% |
| fra | greedy | 9.07% | 53.4% |
| fra | beam 100 | 8.68% | 50.8% |
| fra | 4-gram of letters (1.5, -1) | 7.33% | 41.5% |
| fra | 6-gram of letters (2, -1) | 6.22% | 30.8% |
| fra | word list (133,587) | 2.19% | 10.3% |
| deu | greedy | 5.31% | 42.1% |
| deu | beam 100 | 5.07% | 40.6% |
| deu | 4-gram of letters (2, -1) | 3.87% | 28.7% |
| deu | 6-gram of letters (2, 0) | 2.55% | 20.2% |
| deu | word list (162,780) | 0.74% | 6.4% |
| spa | greedy | 3.21% | 29.5% |
| spa | beam 100 | 3.19% | 29.3% |
| spa | 4-gram of letters (1.5, 0) | 2.16% | 18.3% |
| spa | 6-gram of letters (2, 1) | 2.16% | 18.5% |
| spa | word list (75,027) | 0.13% | 1.7% |
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

import mms_jax
from experiments.demo.ngram import estimate, letters
from experiments.demo.sentences import LANGUAGES, Lexicon, load_lexicon
from experiments.demo.synthesize import HELD_OUT_CLIPS, TRAIN_CLIPS, WORK, draw_corpus, load_corpus

ORDERS = (4, 6)
LM_WEIGHTS = (0.5, 1.0, 1.5, 2.0, 3.0)
WORD_SCORES = (-1.0, 0.0, 1.0, 2.0)


def language_model(code: str, *, order: int, lexicon: Lexicon) -> Path:
    """The ARPA file of the letters of a language's training sentences, kept in the demo's cache."""
    path = WORK / f"letters.{code}.{order}.arpa"
    if not path.exists():
        utterances = draw_corpus(code, split="train", lexicon=lexicon, count=TRAIN_CLIPS[code])
        sentences = [letters(utterance.text.split()) for utterance in utterances]
        path.write_text(estimate(sentences, order=order), encoding="utf-8")
    return path


def clips_of(code: str, *, split: str) -> tuple[list[np.ndarray], list[str]]:
    """Held-out clips, float32, and their texts."""
    corpus = load_corpus(code, split=split, count=HELD_OUT_CLIPS)
    return [corpus.clip(i).astype(np.float32) / 32768 for i in range(HELD_OUT_CLIPS)], list(corpus.texts)


def row(name: str, texts: Sequence[str], references: Sequence[str]) -> str:
    """A row of the table."""
    return f"{name} | {jiwer.cer(list(references), list(texts)):.2%} | {jiwer.wer(list(references), list(texts)):.1%} |"


def evaluate(asr: Any, code: str, *, beam: int, decoder: str) -> None:
    """Print one language's rows."""
    lexicon = load_lexicon(code, cache=WORK)
    clips, references = clips_of(code, split="test")
    dev_clips, dev_texts = clips_of(code, split="dev")

    def texts(**search: Any) -> list[str]:
        return [result.text for result in asr.transcribe(clips, language=code, **search)]

    print(f"| {code} | {row('greedy', texts(), references)}", flush=True)
    print(f"| {code} | {row(f'beam {beam}', texts(beam=beam, decoder=decoder), references)}", flush=True)
    for order in ORDERS:
        lm = language_model(code, order=order, lexicon=lexicon)
        best = asr.tune_lm(
            dev_clips,
            dev_texts,
            lm=lm,
            language=code,
            beam=beam,
            lm_weights=LM_WEIGHTS,
            word_scores=WORD_SCORES,
            decoder=decoder,
        ).best
        name = f"{order}-gram of letters ({best.lm_weight:g}, {best.word_score:g})"
        search = {"lm": lm, "beam": beam, "lm_weight": best.lm_weight, "word_score": best.word_score}
        print(f"| {code} | {row(name, texts(decoder=decoder, **search), references)}", flush=True)
    words = [*lexicon.train, *lexicon.dev, *lexicon.test]
    print(f"| {code} | {row(f'word list ({len(words):,})', texts(lexicon=words, beam=beam), references)}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(mms_jax.DEMO_MODEL))
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES))
    parser.add_argument("--beam", type=int, default=100)
    parser.add_argument("--decoder", choices=("flashlight", "device"), default="device")
    options = parser.parse_args()
    asr = mms_jax.load_asr(options.model)
    print("| language | decoding (lm_weight, word_score) | CER | WER |\n| --- | --- | --- | --- |")
    for code in options.languages:
        evaluate(asr, code, beam=options.beam, decoder=options.decoder)


if __name__ == "__main__":
    main()

"""How well the demo's checkpoints recognise held-out sentences, and their languages.

.venv/bin/python -m experiments.demo.evaluate
.venv/bin/python -m experiments.demo.evaluate --task asr --dtype int8
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jiwer
import numpy as np

import mms_jax
from experiments.demo.batches import BLANK, normalize, vocabulary
from experiments.demo.sentences import LANGUAGES
from experiments.demo.synthesize import HELD_OUT_CLIPS, SAMPLE_RATE, Corpus, load_corpus
from mms_jax.pipelines.lid import LanguageIdentifier

ROWS = 20
CUT_SECONDS = (1.0, 2.0)
JOINED_SECONDS = (8.0, 30.0)  # users pass longer audio than any clip
SHAPE_SECONDS = (2.0, 4.8)  # padded lengths: two compilations


def greedy_text(ids: Sequence[int], *, tokens: Sequence[str]) -> str:
    """Text of one row of best ids: repeats merged, blanks dropped, "|" to space."""
    kept = [i for n, i in enumerate(ids) if i != BLANK and (n == 0 or i != ids[n - 1])]
    return " ".join("".join(tokens[i] for i in kept).replace("|", " ").split())


def words_right(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Share of the reference words that the hypotheses hold, letter for letter and in order."""
    right = total = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        words = reference.split()
        blocks = difflib.SequenceMatcher(None, words, hypothesis.split(), autojunk=False).get_matching_blocks()
        right, total = right + sum(block.size for block in blocks), total + len(words)
    return right / total


def padded_batches(corpus: Corpus, *, count: int) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yield (clip indices, input_values [ROWS, S], mask [ROWS, S]) as inference sees them: masked zeros at the end."""
    clips = [corpus.clip(i) for i in range(count)]
    for low, high in zip((0.0, *SHAPE_SECONDS[:-1]), SHAPE_SECONDS, strict=True):
        chosen = [i for i, clip in enumerate(clips) if low < len(clip) / SAMPLE_RATE <= high]
        for first in range(0, len(chosen), ROWS):
            indices = chosen[first : first + ROWS]
            values = np.zeros((ROWS, int(high * SAMPLE_RATE)), np.float32)
            mask = np.zeros(values.shape, bool)
            for row, i in enumerate(indices):
                values[row, : len(clips[i])] = normalize(clips[i])
                mask[row, : len(clips[i])] = True
            yield indices, values, mask


def transcribe(best_ids: Callable, corpus: Corpus, *, code: str, count: int) -> list[str]:
    """Greedy transcripts of the first `count` clips; `best_ids(values, mask)` gives (ids [B, T], frame mask [B, T])."""
    tokens = list(vocabulary(code))
    texts = [""] * count
    for indices, values, mask in padded_batches(corpus, count=count):
        ids, frames = map(np.asarray, best_ids(values, mask))
        for row, i in enumerate(indices):
            texts[i] = greedy_text(ids[row][frames[row]].tolist(), tokens=tokens)
    return texts


def lid_recordings(corpus: Corpus) -> dict[str, list[np.ndarray]]:
    """What language identification is asked about, float32 in [-1, 1]: clips, their middles, clips end to end."""
    clips = [corpus.clip(i).astype(np.float32) / 32768 for i in range(len(corpus.texts))]
    cuts = {f"{seconds:g} s": middles(clips, seconds=seconds) for seconds in CUT_SECONDS}
    joined = {f"{seconds:g} s": end_to_end(clips, seconds=seconds) for seconds in JOINED_SECONDS}
    return {"whole clips": clips} | cuts | joined


def middles(clips: Sequence[np.ndarray], *, seconds: float) -> list[np.ndarray]:
    """The middle of every clip that is long enough."""
    size = int(seconds * SAMPLE_RATE)
    return [clip[(len(clip) - size) // 2 :][:size] for clip in clips if len(clip) >= size]


def end_to_end(clips: Sequence[np.ndarray], *, seconds: float) -> list[np.ndarray]:
    """All clips, one after another, cut into equal parts; what is left over is dropped."""
    audio, size = np.concatenate(clips), int(seconds * SAMPLE_RATE)
    return list(audio[: len(audio) // size * size].reshape(-1, size))


class LidScore(NamedTuple):
    """How one language's recordings are identified."""

    recordings: int
    accuracy: float
    probability: float  # mean, of the right language
    loss: float  # mean of -log of that


def lid_score(lid: LanguageIdentifier, clips: Sequence[np.ndarray], *, code: str) -> LidScore:
    """Identify recordings of one language among all of the model's."""
    results = lid.identify(list(clips), top_k=len(lid.languages), batch_size=ROWS)
    probabilities = np.array([dict(result.candidates)[code] for result in results])
    right = [result.language == code for result in results]
    losses = -np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return LidScore(len(clips), float(np.mean(right)), float(probabilities.mean()), float(losses.mean()))


def print_lid(model: str) -> None:
    """Print the table of language identification, through `mms_jax.load_lid`: accuracy, probability (recordings)."""
    lid = mms_jax.load_lid(model)
    recordings = {code: lid_recordings(load_corpus(code, split="test", count=HELD_OUT_CLIPS)) for code in LANGUAGES}
    conditions = list(recordings[next(iter(recordings))])
    print("| language |", " | ".join(conditions), "|\n|", " | ".join(["---"] * (len(conditions) + 1)), "|")
    for code, own in recordings.items():
        scores = [lid_score(lid, clips, code=code) for clips in own.values()]
        cells = [f"{score.accuracy:.1%} {score.probability:.3f} ({score.recordings})" for score in scores]
        print(f"| {code} |", " | ".join(cells), "|", flush=True)


def print_asr(model: str, *, dtype: str = "float32") -> None:
    """Print the table for the 200 test sentences of each language, transcribed through `mms_jax.load_asr`."""
    asr = mms_jax.load_asr(model, dtype=dtype)
    print("| language | sentences | minutes | CER | words right |\n| --- | --- | --- | --- | --- |")
    for code in LANGUAGES:
        corpus = load_corpus(code, split="test", count=HELD_OUT_CLIPS)
        clips = [corpus.clip(i).astype(np.float32) / 32768 for i in range(HELD_OUT_CLIPS)]
        texts = [result.text for result in asr.transcribe(clips, language=code, batch_size=ROWS)]
        rate = jiwer.cer(list(corpus.texts), list(texts))
        minutes = corpus.num_samples.sum() / SAMPLE_RATE / 60
        right = words_right(corpus.texts, texts)
        print(f"| {code} | {HELD_OUT_CLIPS} | {minutes:.1f} | {rate:.2%} | {right:.1%} |", flush=True)


def main() -> None:
    """Print one table or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mms_jax/demo/asr")
    parser.add_argument("--lid", default="mms_jax/demo/lid")
    parser.add_argument("--task", choices=["asr", "lid"], help="default both")
    parser.add_argument("--dtype", default="float32", help="of the recogniser, as load_asr takes it")
    options = parser.parse_args()
    if options.task != "lid":
        print_asr(options.model, dtype=options.dtype)
    if options.task != "asr":
        print_lid(options.lid)


if __name__ == "__main__":
    main()

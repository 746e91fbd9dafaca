"""Small n-gram models for tests: ARPA files of every kind, and what each says by the definition of back-off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

from experiments.demo.ngram import estimate

UNKNOWN_LOG10 = -100.0  # what KenLM gives unknown words, before back-off, where a model has no <unk>
SMALL = """\\data\\
ngram 1=4
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.3
-1.2\t</s>
-0.7\ta\t-0.25
-0.9\té\t-0.5

\\2-grams:
-0.4\t<s> a\t-0.1
-0.6\ta é
-0.2\té </s>

\\3-grams:
-0.15\t<s> a é

\\end\\
"""


class ByDefinition:
    """An ARPA file's probabilities by recursion: the n-gram's own, or back-off weight and less context."""

    def __init__(self, path: Path) -> None:
        self.order, self.lines = 0, {("<unk>",): (UNKNOWN_LOG10, 0.0)}
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = line.split("\t")
            if len(fields) > 1:
                words = tuple(fields[1].split(" "))
                self.lines[words] = (float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0)
                self.order = max(self.order, len(words))

    def log10(self, history: Sequence[str], word: str) -> float:
        """Of the word after the whole history, in which unknown words are <unk>."""
        known = [w if (w,) in self.lines else "<unk>" for w in (*history, word)]
        return self._log10(tuple(known[-self.order :][:-1]), known[-1])

    def _log10(self, context: tuple[str, ...], word: str) -> float:
        if (*context, word) in self.lines:
            return self.lines[(*context, word)][0]
        return self.lines.get(context, (0.0, 0.0))[1] + self._log10(context[1:], word)

    def sentence(self, words: Sequence[str]) -> list[float]:
        """Natural logarithms for each word and for the end."""
        marked = ["<s>", *words, "</s>"]
        return [math.log(10) * self.log10(marked[:i], marked[i]) for i in range(1, len(marked))]


class ByKenLM:
    """The same as flashlight's KenLM says it; of the end it gives log10, as of everything."""

    def __init__(self, path: Path, words: Sequence[str]) -> None:
        self.model, self.words = KenLM(str(path), Dictionary(list(words))), list(words)

    def sentence(self, words: Iterable[str]) -> list[float]:
        state, scores = self.model.start(False), []
        for word in words:
            state, score = self.model.score(state, self.words.index(word))
            scores.append(score)
        return [math.log(10) * score for score in (*scores, self.model.finish(state)[1])]


def random_text(rng: np.random.Generator, words: Sequence[str], *, sentences: int, longest: int) -> list[list[str]]:
    """Sentences in which some words come often and some pairs oftener than by chance."""
    weights = rng.dirichlet(np.full(len(words), 0.3), size=len(words))
    text = []
    for _ in range(sentences):
        sentence = [int(rng.integers(len(words)))]
        while len(sentence) < rng.integers(1, longest + 1):
            sentence.append(int(rng.choice(len(words), p=weights[sentence[-1]])))
        text.append([words[i] for i in sentence])
    return text


def estimated(path: Path, words: Sequence[str], *, order: int, seed: int = 0, sentences: int = 200) -> Path:
    """The ARPA file of a model of random text."""
    text = random_text(np.random.default_rng(seed), words, sentences=sentences, longest=12)
    path.write_text(estimate(text, order=order), encoding="utf-8")
    return path


def pruned(path: Path, words: Sequence[str], *, order: int, seed: int = 0, unknown: bool = True) -> Path:
    """An ARPA file as pruning leaves them: n-grams whose endings are no n-grams, and weights that sum up to nothing.

    Every n-gram has its context, though, without which KenLM takes no file.
    """
    rng = np.random.default_rng(seed)
    marks = ["<s>", "</s>", *(["<unk>"] if unknown else [])]
    sections = [[(word,) for word in (*marks, *words)]]
    for _ in range(order - 1):
        extended = itertools.product(sections[-1], [w for w in (*marks, *words) if w != "<s>"])
        sections.append([(*a, b) for a, b in extended if a[-1] != "</s>" and rng.random() < 0.4])
    text = "\\data\\\n" + "".join(f"ngram {n}={len(section)}\n" for n, section in enumerate(sections, 1))
    for n, section in enumerate(sections, 1):
        text += f"\n\\{n}-grams:\n"
        for ngram in section:
            backoff = f"\t{-rng.exponential():.5f}" if n < order and rng.random() < 0.7 else ""
            text += f"{-rng.exponential():.5f}\t{' '.join(ngram)}{backoff}\n"
    path.write_text(text + "\n\\end\\\n", encoding="utf-8")
    return path

"""n-gram language models made of plain text: interpolated, modified Kneser-Ney smoothing, written as an ARPA file.

    .venv/bin/python -m experiments.demo.ngram TEXT --order 4 --level chars -o lm.arpa

TEXT has a sentence a line. ``words`` makes a model of its words; ``chars`` one of its letters, with | for the space,
which is what decoding without a lexicon reads. Nothing is pruned. 240,000 words take 4 s at order 4, their letters 3 s.

The estimate is Chen and Goodman's (1999, section 5.2, equations 26 and 27), from counts of n-grams of the highest order
and of those that begin a sentence, and elsewhere from the number of different words before an n-gram. Orders are
interpolated with each other and, last, with the uniform distribution over the words, </s> and <unk>. Compared by hand
with KenLM 0.3.0 (``lmplz --discount_fallback``) on words at orders 3 and 4 and on letters at 2, 4 and 6: the same
n-grams, 625,000 in the largest model, and logarithms within 2.4e-6, but for <s>, which lmplz gives 0.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mms_jax.files import atomic_write

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
SPACE = "|"  # what letters of MMS vocabularies have for it
FALLBACK = (0.5, 1.0, 1.5)  # discounts of counts 1, 2 and 3 or more where too few n-grams are there to estimate them
NEVER = -99.0  # log10: what ARPA files have for a probability of 0; here of <s>, which nothing predicts

NGram = tuple[str, ...]


def main() -> None:
    """Write the ARPA file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="UTF-8, a sentence a line; empty lines are left out")
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--level", choices=("chars", "words"), required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    sentences = [line.split() for line in options.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    arpa = estimate(map(letters, sentences) if options.level == "chars" else sentences, order=options.order)
    with atomic_write(options.output) as file:
        file.write(arpa.encode())


def letters(words: Sequence[str]) -> list[str]:
    """The letters of a sentence, with | between words; ValueError if a word has a | itself."""
    if any(SPACE in word for word in words):
        raise ValueError(f"{' '.join(words)!r} has a {SPACE}, which stands for the space")
    return list(SPACE.join(words))


def estimate(sentences: Iterable[Sequence[str]], *, order: int) -> str:
    """The text of an ARPA file with the interpolated, modified Kneser-Ney model of these sentences.

    Its n-grams come in the order in which the text first has them. ValueError for an order below 1, for
    no sentences, or none as long as an n-gram, and for a word that is empty, has white space in it or is a mark.
    """
    if order < 1:
        raise ValueError(f"order is {order}; it must be at least 1")
    raw = _counted(sentences, order=order)
    if not raw[0]:
        raise ValueError("no sentences: nothing to make a language model of")
    if not raw[-1]:
        raise ValueError(f"no sentence has {order} words, its two marks included; order is too high")
    adjusted = [_adjusted(raw, n) for n in range(1, order + 1)]
    # The distribution that 1-grams are interpolated with: nothing is known, so all words are equal.
    probabilities: dict[NGram, float] = {(): 1 / (len(adjusted[0]) + 1)}  # with <unk>
    sections: list[dict[NGram, float]] = []
    backoffs: dict[NGram, float] = {}
    for counts in adjusted:
        backoffs |= (weights := _backoffs(counts))
        discounts, totals = _discounts(counts), _totals(counts)
        section = {}
        for ngram, count in counts.items():
            own = (count - discounts[min(count, 3)]) / totals[ngram[:-1]]
            section[ngram] = own + weights[ngram[:-1]] * probabilities[ngram[1:]]
        if not sections:
            section[(UNKNOWN,)] = weights[()] * probabilities[()]
        sections.append(section)
        probabilities = section
    return "".join(_arpa(sections, backoffs))


def _counted(sentences: Iterable[Sequence[str]], *, order: int) -> list[Counter[NGram]]:
    """How often each n-gram is there, for n from 1 to ``order``, sentence marks included."""
    counts: list[Counter[NGram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        bad = [word for word in sentence if word in (START, END, UNKNOWN) or word.split() != [word]]
        if bad:
            raise ValueError(f"{bad[0]!r} is no word: it is empty, has white space in it or is a mark of ARPA files")
        marked = (START, *sentence, END)
        for n, counter in enumerate(counts, 1):
            counter.update(marked[i : i + n] for i in range(len(marked) - n + 1))
    return counts


def _adjusted(raw: list[Counter[NGram]], n: int) -> dict[NGram, int]:
    """Of the highest order and at the beginning of a sentence the counts; else how many words are found before."""
    if n == len(raw):
        return {ngram: count for ngram, count in raw[n - 1].items() if ngram != (START,)}
    before = Counter(ngram[1:] for ngram in raw[n])
    counts = {ngram: count if ngram[0] == START else before[ngram] for ngram, count in raw[n - 1].items()}
    counts.pop((START,), None)  # nothing predicts it
    return counts


def _discounts(counts: dict[NGram, int]) -> tuple[float, ...]:
    """What is taken from counts of 0, 1, 2 and 3 or more."""
    how_many = Counter(counts.values())
    n = [how_many[k] for k in range(5)]
    if not all(n[1:4]):
        return (0.0, *FALLBACK)
    share = n[1] / (n[1] + 2 * n[2])
    discounts = tuple(k - (k + 1) * share * n[k + 1] / n[k] for k in (1, 2, 3))
    usable = all(0 < discount <= k for k, discount in enumerate(discounts, 1))
    return (0.0, *discounts) if usable else (0.0, *FALLBACK)


def _totals(counts: dict[NGram, int]) -> Counter[NGram]:
    """The sum of the counts of each context's n-grams."""
    totals: Counter[NGram] = Counter()
    for ngram, count in counts.items():
        totals[ngram[:-1]] += count
    return totals


def _backoffs(counts: dict[NGram, int]) -> dict[NGram, float]:
    """What discounting leaves of each context's probability, which shorter contexts distribute."""
    discounts, totals = _discounts(counts), _totals(counts)
    left: defaultdict[NGram, float] = defaultdict(float)
    for ngram, count in counts.items():
        left[ngram[:-1]] += discounts[min(count, 3)]
    return {context: discount / totals[context] for context, discount in left.items()}


def _arpa(sections: list[dict[NGram, float]], backoffs: dict[NGram, float]) -> Iterator[str]:
    """The lines of the file."""
    sections[0] = {(UNKNOWN,): sections[0].pop((UNKNOWN,)), (START,): 0.0} | sections[0]
    yield "\\data\\\n"
    yield from (f"ngram {n}={len(section)}\n" for n, section in enumerate(sections, 1))
    for n, section in enumerate(sections, 1):
        yield f"\n\\{n}-grams:\n"
        for ngram, probability in section.items():
            log_prob = NEVER if ngram == (START,) else min(math.log10(probability), 0.0)  # 1 + 2e-16 is a rounding
            backoff = f"\t{math.log10(backoffs.get(ngram, 1.0)):.7g}" if n < len(sections) else ""
            yield f"{log_prob:.7g}\t{' '.join(ngram)}{backoff}\n"
    yield "\n\\end\\\n"


if __name__ == "__main__":
    main()

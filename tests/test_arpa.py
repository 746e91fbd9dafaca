"""ARPA files: read as they are written, refused with the line where they are wrong; and made, of text."""

from __future__ import annotations

import gzip
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ngram_models import SMALL, ByDefinition, ByKenLM, estimated, pruned, random_text

from experiments.demo.ngram import estimate, letters
from experiments.demo.ngram import main as make
from mms_jax.ctc import arpa as arpa_module
from mms_jax.ctc.arpa import Arpa, read_arpa, read_counts, read_unigrams
from mms_jax.errors import LanguageModelError

SUMS = 2e-6  # of some hundred probabilities written with 7 digits, each within 1e-7 of itself
SAME = 1e-5  # natural logarithms of up to 230, in KenLM's float32


def lines_of(arpa: Arpa) -> dict[tuple[str, ...], tuple[float, float]]:
    return {
        tuple(arpa.words[i] for i in words): (log_prob, backoff)
        for ngrams in arpa.ngrams
        for words, log_prob, backoff in zip(
            ngrams.words.tolist(), ngrams.log_probs.tolist(), ngrams.backoffs.tolist(), strict=True
        )
    }


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.arpa"
    path.write_text(SMALL, encoding="utf-8")
    return path


def test_a_file_is_read_as_it_is_written(small):
    arpa = read_arpa(small)
    assert (arpa.order, arpa.words) == (3, ("<s>", "</s>", "a", "é"))
    expected = ByDefinition(small).lines
    del expected[("<unk>",)]  # which the file does not have
    assert lines_of(arpa) == {ngram: tuple(map(np.float32, numbers)) for ngram, numbers in expected.items()}
    assert {ngrams.words.dtype for ngrams in arpa.ngrams} == {np.dtype(np.int32)}
    assert {array.dtype for n in arpa.ngrams for array in (n.log_probs, n.backoffs)} == {np.dtype(np.float32)}


def test_counts_and_words_are_read_without_the_rest(small):
    small.write_text(SMALL.split("\\2-grams")[0], encoding="utf-8")
    assert read_counts(small) == (4, 3, 1)
    assert read_unigrams(small) == ["<s>", "</s>", "a", "é"]
    with pytest.raises(LanguageModelError, match="line 11: the file ends where the section"):
        read_arpa(small)


def same(one: Arpa, other: Arpa) -> bool:
    arrays = zip(itertools.chain(*one.ngrams), itertools.chain(*other.ngrams), strict=True)
    return one.words == other.words and all(np.array_equal(x, y) for x, y in arrays)


@pytest.mark.parametrize(
    "rewritten",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "# made by hand\n\n" + text.replace("\n\n", "\n\n\n") + "\n\n",
        lambda text: text.removesuffix("\n"),
        lambda text: text.replace("<s> a é", "<s>\ta\té"),
        lambda text: text.replace("\ta é\n", "\ta é\t0\n"),
        lambda text: text.replace("-0.15\t<s> a é", "-1.5e-1\t<s> a é\t0.0"),
    ],
    ids=["CRLF", "comments and empty lines", "no last newline", "tabs between words", "written zeros", "exponent"],
)
def test_what_kenlm_reads_alike_is_read_alike(small, tmp_path, rewritten):
    other = tmp_path / "other.arpa"
    other.write_bytes(rewritten(SMALL).encode())
    assert same(read_arpa(small), read_arpa(other))


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_blocks_of_any_size_and_gzip_give_the_same(tmp_path, monkeypatch, size):
    path = pruned(tmp_path / "lm.arpa", ["a", "b", "c", "ẍ", "\u3000", "e\x0b"], order=3)
    whole = read_arpa(path)
    packed = tmp_path / "lm.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(arpa_module, "_BLOCK_BYTES", size)
    assert same(whole, read_arpa(path))
    assert same(whole, read_arpa(packed))
    assert whole.words[-2:] == ("\u3000", "e\x0b")


def test_n_grams_know_their_contexts_and_are_found(tmp_path):
    arpa = read_arpa(pruned(tmp_path / "lm.arpa", ["a", "b", "c"], order=4))
    for n, ngrams in enumerate(arpa.ngrams[1:], 1):
        assert np.array_equal(arpa.ngrams[n - 1].words[ngrams.contexts], ngrams.words[:, :-1])
        assert np.array_equal(arpa_module.find(arpa.ngrams, ngrams.words), np.arange(len(ngrams.words)))
    listed = set(map(tuple, arpa.ngrams[2].words.tolist()))
    every = np.array(list(itertools.product(range(len(arpa.words)), repeat=3)))
    found = arpa_module.find(arpa.ngrams, every) >= 0
    assert found.tolist() == [tuple(words) in listed for words in every.tolist()]


FAULTS = {
    "no header": (lambda t: t.replace("\\data\\", "data"), "line 1: 'data' where"),
    "a number in words": (
        lambda t: t.replace("ngram 2=3", "ngram 2=three"),
        "line 3: 'ngram 2=three' where 'ngram 2='",
    ),
    "an order left out": (lambda t: t.replace("ngram 2=3\n", ""), "line 3: 'ngram 3=1' where 'ngram 2='"),
    "no 1-grams promised": (lambda t: t.replace("ngram 1=4", "ngram 1=0"), "promises no 1-grams"),
    "no counts": (lambda t: t.split("ngram")[0], "promises no 1-grams"),
    "too many promised": (lambda t: t.replace("ngram 2=3", "ngram 2=4"), "line 16: '' where .* another 2-gram"),
    "far too many promised": (lambda t: t.replace("ngram 3=1", "ngram 3=9" + 16 * "9"), "line 19: '' where"),
    "too few promised": (lambda t: t.replace("ngram 2=3", "ngram 2=2"), "line 15: .* or .* promises too few 2-grams"),
    "too few of the last": (lambda t: t.replace("<s> a é\n", "<s> a é\n-1\ta é </s>\n"), "line 19: .* where .*end"),
    "a section missing": (lambda t: t.replace("\\2-grams:\n", ""), "line 12: .* where the section .2-grams: should"),
    "a field missing": (
        lambda t: t.replace("\ta é\n", "\ta\n"),
        "line 14: '-0.6\\\\ta' must be a log-probability, 2 words",
    ),
    "a field too many": (lambda t: t.replace("\ta é\n", "\ta é\t0\t0\n"), "line 14: .* must be"),
    "one too few, one too many": (lambda t: t.replace("\ta é\n", "\ta é\t0\t0\n").replace("a\t-0.1", "a"), "line 14: "),
    "two tabs": (lambda t: t.replace("-0.7\ta", "-0.7\t\ta"), "line 9: .* must be"),
    "no number": (lambda t: t.replace("-0.6\ta", "x\ta"), "line 14: the log-probability 'x' is not a finite number"),
    "NaN": (lambda t: t.replace("-0.6\ta", "nan\ta"), "line 14: the log-probability 'nan' is not a finite"),
    "infinity": (lambda t: t.replace("-0.7\ta", "-inf\ta"), "line 9: the log-probability '-inf' is not a finite"),
    "beyond float32": (lambda t: t.replace("-0.7\ta", "-1e39\ta"), "line 9: the log-probability '-1e39' is not"),
    "Python's underscore": (lambda t: t.replace("-0.7\ta", "-1_0\ta"), "line 9: the log-probability '-1_0' is not"),
    "positive": (lambda t: t.replace("-0.2\té", "1e-6\té"), "line 15: the log-probability '1e-6' is positive"),
    "an infinite back-off": (lambda t: t.replace("a\t-0.1", "a\tinf"), "line 13: the back-off weight 'inf' is not"),
    "a last back-off": (
        lambda t: t.replace("<s> a é", "<s> a é\t-1"),
        "line 18: a back-off weight, '-1', at the highest",
    ),
    "an unknown word": (lambda t: t.replace("<s> a é", "<s> a e"), "line 18: the word 'e' is not among the 1-grams"),
    "a word twice": (lambda t: t.replace("\té\t", "\ta\t"), "line 10: the word 'a' is there twice"),
    "an n-gram twice": (lambda t: t.replace("é </s>", "<s> a"), "line 15: this 2-gram is there twice"),
    "no context": (lambda t: t.replace("<s> a é", "é a é"), "line 18: the first 2 words of this 3-gram are not among"),
    "no end": (lambda t: t.replace("\\end\\\n", ""), "line 19: the file ends where .*end"),
    "more than the end": (lambda t: t + "\\1-grams:\n", "line 21: .* after .*end"),
    "no sentence mark": (lambda t: t.replace("</s>", "b"), "</s> is not among the 1-grams"),
    "latin-1": (lambda t: t.encode("latin-1"), "line 10: the word .* is not UTF-8"),
    "KenLM's binary": (lambda t: "mmap lm http://kheafield.com/code format version 5\n\0" + t, "a binary KenLM file"),
    "binary": (lambda t: b"\0\1\2\xff\n", "line 1: .*no ARPA file .it is binary"),
    "empty": (lambda t: "", "empty"),
    "only empty lines": (lambda t: "\n\n", "the file ends where .*data"),
    "a cut gzip file": (lambda t: gzip.compress(t.encode())[:-12], "a damaged or cut gzip file"),
    "a damaged gzip file": (lambda t: gzip.compress(t.encode())[:40] + 80 * b"\0", "a damaged or cut gzip file"),
    "a damaged gzip header": (lambda t: b"\x1f\x8b" + t.encode(), "a damaged or cut gzip file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_with_its_line_and_reason(tmp_path, fault):
    change, message = FAULTS[fault]
    path = tmp_path / "faulty.arpa"
    changed = change(SMALL)
    path.write_bytes(changed.encode() if isinstance(changed, str) else changed)
    with pytest.raises(LanguageModelError, match=message) as error:
        read_arpa(path)
    assert str(path) in str(error.value)


def test_a_folder_or_nothing_is_refused(tmp_path):
    with pytest.raises(LanguageModelError, match="Is a directory"):
        read_arpa(tmp_path)
    with pytest.raises(LanguageModelError, match="No such file"):
        read_counts(tmp_path / "none.arpa")


def test_a_file_without_line_ends_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(arpa_module, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(arpa_module, "_MAX_LINE_BYTES", 1 << 12)
    path = tmp_path / "long.arpa"
    path.write_bytes(b"x" * (1 << 20))
    with pytest.raises(LanguageModelError, match="line 1: longer than any n-gram"):
        read_counts(path)


@pytest.mark.parametrize("cut", range(0, len(SMALL.encode()) - 2, 3))
def test_a_file_cut_anywhere_is_refused(tmp_path, cut):
    path = tmp_path / "cut.arpa"
    path.write_bytes(SMALL.encode()[:cut])
    with pytest.raises(LanguageModelError, match=str(path)):
        read_arpa(path)


def test_a_mangled_file_is_read_or_refused_but_nothing_else(tmp_path):
    rng, path, outcomes = np.random.default_rng(0), tmp_path / "mangled.arpa", Counter()
    pieces = [
        b"\t",
        b" ",
        b"\n",
        b"\r\n",
        b"-",
        b"\\",
        b"0",
        b"1e9",
        b"nan",
        b"\xff",
        b"\0",
        b"_",
        b"<s>",
        b"\n\n",
        b"\x0b",
    ]
    for _ in range(1500):
        data = SMALL.encode() if rng.random() < 0.9 else gzip.compress(SMALL.encode(), mtime=0)
        for _ in range(rng.integers(1, 4)):
            at, piece = int(rng.integers(len(data))), pieces[rng.integers(len(pieces))]
            data = data[:at] + piece + data[at + int(rng.integers(0, 6)) :]
        path.write_bytes(data)
        try:
            outcomes[type(read_arpa(path))] += 1
        except LanguageModelError:
            outcomes[LanguageModelError] += 1
    assert outcomes[Arpa] > 10 < outcomes[LanguageModelError]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("sentences", [1, 3, 300])  # few: no counts to estimate discounts from
def test_probabilities_after_every_context_sum_to_1(tmp_path, order, sentences):
    path = tmp_path / "lm.arpa"
    text = [["a", "b", "a"], *random_text(np.random.default_rng(order), "abcdefg", sentences=sentences, longest=9)]
    path.write_text(estimate(text, order=order), encoding="utf-8")
    model, arpa = ByDefinition(path), read_arpa(path)
    contexts = [(), *(ngram for ngram in model.lines if len(ngram) < order and ngram[-1] != "</s>")]
    for context in contexts:
        total = sum(10 ** model.log10(context, word) for word in arpa.words if word != "<s>")
        assert total == pytest.approx(1, abs=SUMS), context


def test_a_bigram_model_is_the_one_worked_out_by_hand(tmp_path):
    """Two sentences "a", one "b": <s> a has 2, <s> b 1, a </s> 2, b </s> 1; before a and b is 1 word, before </s> 2."""
    path = tmp_path / "lm.arpa"
    path.write_text(estimate([["a"], ["a"], ["b"]], order=2), encoding="utf-8")
    model = ByDefinition(path)
    uniform = 1 / 4  # of a, b, </s>, <unk>
    left = (0.5 + 0.5 + 1) / 4  # of the counts 1, 1 and 2, which are too few to estimate discounts from
    a = (1 - 0.5) / 4 + left * uniform
    assert 10 ** model.log10([], "a") == pytest.approx(a)
    assert 10 ** model.log10([], "<unk>") == pytest.approx(left * uniform)
    assert 10 ** model.log10(["<s>"], "a") == pytest.approx((2 - 1) / 3 + (1 + 0.5) / 3 * a)


def test_kenlm_reads_what_is_made_and_says_the_same(tmp_path):
    path = estimated(tmp_path / "lm.arpa", "abcdef", order=4)
    model, kenlm = ByDefinition(path), ByKenLM(path, "abcdef")
    for sentence in random_text(np.random.default_rng(9), "abcdef", sentences=50, longest=10):
        assert kenlm.sentence(sentence) == pytest.approx(model.sentence(sentence), abs=SAME)


def test_the_command_makes_a_model_of_letters(tmp_path, monkeypatch):
    text, output = tmp_path / "text", tmp_path / "lm.arpa"
    text.write_text("né à\n\n  là  né\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["ngram", str(text), "--order", "2", "--level", "chars", "-o", str(output)])
    make()
    assert sorted(read_unigrams(output)) == sorted({"<s>", "</s>", "<unk>", "n", "é", "|", "à", "l"})
    assert math.isclose(sum(10 ** ByDefinition(output).log10(["n"], w) for w in read_unigrams(output)), 1, abs_tol=SUMS)


@pytest.mark.parametrize(
    ("sentences", "order", "message"),
    [
        ([["a"]], 0, "order is 0"),
        ([], 2, "no sentences"),
        ([["a"]], 4, "no sentence has 4 words"),
        ([["a", "<s>"]], 2, "'<s>' is no word"),
        ([["a b"]], 2, "'a b' is no word"),
        ([[""]], 2, "'' is no word"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused(sentences, order, message):
    with pytest.raises(ValueError, match=message):
        estimate(sentences, order=order)
    with pytest.raises(ValueError, match="stands for the space"):
        letters(["a|b"])

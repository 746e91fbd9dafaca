"""n-gram models as dense arrays: the same score for every sequence as backing off word by word, and as KenLM's."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from ngram_models import SMALL, ByDefinition, ByKenLM, estimated, pruned

from mms_jax.ctc.arpa import read_arpa
from mms_jax.ctc.dense_ngram import Automaton, dense_ngram
from mms_jax.errors import LanguageModelError

SAME = 2e-6  # of a sum of up to 15 terms in float32, relative to the largest: each is within 6e-8 of itself


def scores(automaton: Automaton, sequence: list[int]) -> list[float]:
    """For each token and for the end."""
    state, result = int(automaton.start), []
    for token in sequence:
        result.append(float(automaton.scores[state, token]))
        state = int(automaton.next_states[state, token])
    return [*result, float(automaton.final_scores[state])]


def assert_all_sequences_score_alike(path: Path, tokens: list[str], *, longest: int, kenlm: bool = True) -> None:
    automaton = Automaton(*map(np.asarray, dense_ngram(read_arpa(path), tokens=tokens)))
    model = ByDefinition(path)
    peer = ByKenLM(path, tokens) if kenlm else model
    sequences = [s for n in range(longest + 1) for s in itertools.product(range(len(tokens)), repeat=n)]
    if len(sequences) > 500:
        sequences = [sequences[i] for i in np.random.default_rng(0).choice(len(sequences), 500, replace=False)]
    for sequence in sequences:
        words = [tokens[i] for i in sequence]
        ours = np.array(scores(automaton, list(sequence)))
        for expected in (model.sentence(words), peer.sentence(words)):
            assert np.allclose(ours, expected, rtol=0, atol=SAME * max(map(abs, expected))), (words, ours, expected)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_every_sequence_scores_as_by_definition_and_by_kenlm(tmp_path, order):
    path = estimated(tmp_path / "lm.arpa", "abc", order=order, sentences=40)
    if order == 1:
        assert_all_sequences_score_alike(path, ["a", "b", "c", "x"], longest=4, kenlm=False)  # KenLM's least order is 2
    else:
        assert_all_sequences_score_alike(path, ["a", "b", "c", "x"], longest=6)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("unknown", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_models_whose_endings_are_pruned_score_the_same(tmp_path, order, unknown, seed):
    path = pruned(tmp_path / "lm.arpa", ["a", "b"], order=order, seed=seed, unknown=unknown)
    assert_all_sequences_score_alike(path, ["x", "b", "a", "y"], longest=6, kenlm=False)  # has no room for so many


def test_kenlm_scores_the_same_where_some_endings_are_pruned(tmp_path):
    path = estimated(tmp_path / "lm.arpa", "abcde", order=4)
    ngrams = set(ByDefinition(path).lines)
    needed = {ngram[:-1] for ngram in ngrams}
    endings = [ngram[1:] for ngram in ngrams if len(ngram) == 4 and ngram[1:] not in needed]
    removed = [f"\t{' '.join(ngram)}\t" for ngram in sorted(set(endings))[:3]]
    text = path.read_text(encoding="utf-8")
    text = text.replace(f"ngram 3={count(text, 3)}\n", f"ngram 3={count(text, 3) - len(removed)}\n")
    path.write_text("".join(line for line in text.splitlines(True) if not any(r in line for r in removed)))
    assert len(removed) == 3
    assert_all_sequences_score_alike(path, [*"abcde", "x"], longest=6)


def test_without_an_unknown_word_in_the_model_it_is_as_improbable_as_kenlm_has_it(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(SMALL, encoding="utf-8")
    assert_all_sequences_score_alike(path, ["a", "x", "é", "y"], longest=4)


def count(text: str, order: int) -> int:
    return int(re.search(rf"ngram {order}=(\d+)", text)[1])


def test_words_that_are_no_tokens_take_no_room(tmp_path):
    path = estimated(tmp_path / "lm.arpa", "abcdefgh", order=4)
    assert_all_sequences_score_alike(path, ["b", "a"], longest=6)
    arpa = read_arpa(path)
    few, all_of_them = dense_ngram(arpa, tokens=["b", "a"]), dense_ngram(arpa, tokens=list("abcdefgh"))
    assert few.scores.shape[0] <= 1 + 1 + 2 + 2 * 3 + 4 * 3  # nothing, <s>, two letters after at most one of them …
    assert all_of_them.scores.shape[0] > 10 * few.scores.shape[0]


def test_sentence_marks_are_no_text(tmp_path):
    path = pruned(tmp_path / "lm.arpa", ["a", "b"], order=3)
    automaton = dense_ngram(read_arpa(path), tokens=["<s>", "a", "</s>", "<unk>", "nothing"])
    unknown = np.asarray(automaton.scores[:, 3])
    for token in (0, 2, 4):
        assert np.array_equal(automaton.scores[:, token], unknown)
        assert np.array_equal(automaton.next_states[:, token], automaton.next_states[:, 3])


def test_unknown_words_may_be_in_capitals(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(SMALL.replace("é", "<UNK>"), encoding="utf-8")
    automaton = dense_ngram(read_arpa(path), tokens=["a", "x"])
    assert scores(automaton, [0, 1]) == pytest.approx(np.log(10) * np.array([-0.4, -0.15, -0.2]), abs=1e-6)


def test_a_context_that_tells_nothing_is_no_state(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(SMALL, encoding="utf-8")
    automaton = dense_ngram(read_arpa(path), tokens=["a", "é"])
    assert automaton.scores.shape == (
        5,
        2,
    )  # nothing, <s>, a, é, <s> a; not a é and é </s>, with which no 3-gram begins


def test_too_large_a_model_is_refused_with_the_numbers(tmp_path):
    arpa = read_arpa(estimated(tmp_path / "lm.arpa", "abcdefgh", order=4))
    size = dense_ngram(arpa, tokens=list("abcdefgh")).scores.shape[0] * 9 * 8
    dense_ngram(arpa, tokens=list("abcdefgh"), max_bytes=size)
    with pytest.raises(LanguageModelError, match=r"lm\.arpa: [\d,]+ contexts of 8 tokens take .* MB .*; prune"):
        dense_ngram(arpa, tokens=list("abcdefgh"), max_bytes=size - 1)

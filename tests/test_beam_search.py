"""Beam search through flashlight-text's processes, against all paths enumerated; and what damaged files do to it."""

from __future__ import annotations

import itertools
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from experiments.demo.ngram import estimate, letters
from mms_jax.errors import LanguageModelError
from mms_jax.pipelines.decoding.beam import MAX_PIECE, Hypothesis, Search, Task, join, pieces
from mms_jax.pipelines.decoding.device import DeviceDecoders
from mms_jax.pipelines.decoding.files import open_language_model
from mms_jax.pipelines.decoding.plans import Plan, make_plan
from mms_jax.pipelines.decoding.pool import DecoderPool
from mms_jax.pipelines.decoding.worker import Hotwords
from mms_jax.pipelines.recognition import log_softmax
from mms_jax.text.ctc import CTCVocabulary
from tests.kenlm_binaries import write_binary
from tests.ngram_models import ByDefinition

VOCABULARY = CTCVocabulary({"<pad>": 0, "|": 1, "a": 2, "b": 3}, special_tokens=("<pad>", "|"))
SENTENCES = ("ab ba", "a b a", "ab ab", "ba", "b aa b", "abba a")
ALL = Task(
    beam_size=2000,  # more than there are hypotheses of six frames
    beam_size_token=4,
    beam_threshold=1e9,
    lm_weight=1.3,
    word_score=0.4,
    hotword_weight=2.5,
    num_best=3,
)
LONG = np.full((3000, 4), math.log(0.25), np.float32)  # with ALL a search of over 20 s
AT_ONCE = 3.0  # seconds, many times what ending takes, and less than what a search of LONG has left
CLOSE = 2e-3  # of scores of up to 40: KenLM's float32 log10, and flashlight's float log-additions of up to 4^6 paths


def emissions(rng: np.random.Generator, *, num_frames: int) -> np.ndarray:
    return log_softmax(rng.normal(size=(num_frames, 4)).astype(np.float32) * 2)


def by_text(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Every text and the log probability of all paths to it; a delimiter at the very beginning parts nothing."""
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(4), repeat=len(log_probs)):
        text = tuple(token for before, token in itertools.pairwise((1, *path)) if token != before and token != 0)
        score = sum(float(log_probs[frame, token]) for frame, token in enumerate(path))
        sums[text] = np.logaddexp(sums.get(text, -math.inf), score)
    return sums


def written(text: Sequence[int]) -> str:
    return "".join(" |ab"[token] for token in text)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "letters.arpa"
    path.write_text(estimate([letters(sentence.split()) for sentence in SENTENCES], order=3), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def words_arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    path.write_text(estimate([sentence.split() for sentence in SENTENCES], order=2), encoding="utf-8")
    return path


def lm_score(model: ByDefinition, words: Sequence[str]) -> float:
    """log10 probability of a sentence."""
    history = ["<s>"]
    total = 0.0
    for word in (*words, "</s>"):
        total += model.log10(history, word)
        history.append(word)
    return total


def plan(lm: Path | None = None, **others) -> Plan:
    model = None if lm is None else open_language_model(lm)
    arguments = {"lexicon": None, "hotwords": [], **others}
    return make_plan(VOCABULARY, vocab_size=4, lm=model, **arguments)


def check_equal_to_brute_force(one: Plan, score: Callable[[tuple[int, ...]], float]) -> None:
    """Best texts, scores and runners-up of many random emissions."""
    rng = np.random.default_rng(0)
    pool = DecoderPool([one], num_processes=2)
    cases = [emissions(rng, num_frames=int(rng.integers(1, 7))) for _ in range(40)]
    waiting = [pool.submit(0, case, ALL) for case in cases]
    for case, found in zip(cases, waiting, strict=True):
        scores = {text: acoustic + score(text) for text, acoustic in by_text(case).items()}
        best = sorted(scores.items(), key=lambda item: -item[1])
        first = found.result()[0]
        assert first.score == pytest.approx(best[0][1], abs=CLOSE)
        if len(best) > 1 and best[0][1] - best[1][1] > CLOSE:
            assert written(first.tokens).strip("|") == written(best[0][0]).strip("|")


def test_without_a_language_model_it_is_the_sum_over_all_paths():
    check_equal_to_brute_force(plan(), lambda text: ALL.word_score * text.count(1))


def test_with_letters_it_is_the_sum_over_all_paths_and_the_definition_of_back_off(arpa: Path):
    model = ByDefinition(arpa)
    check_equal_to_brute_force(
        plan(arpa), lambda text: ALL.lm_weight * lm_score(model, written(text)) + ALL.word_score * text.count(1)
    )


def test_with_words_it_is_the_sum_over_all_paths_of_the_lexicon_s_words(words_arpa: Path):
    model, lexicon = ByDefinition(words_arpa), ("ab", "ba", "a", "b")
    pool = DecoderPool([plan(words_arpa, lexicon=dict.fromkeys(lexicon, ()))], num_processes=1)
    rng = np.random.default_rng(1)
    for _ in range(40):
        case = emissions(rng, num_frames=int(rng.integers(1, 7)))
        scores: dict[tuple[str, ...], float] = {}
        for text, acoustic in by_text(case).items():
            words = tuple(word for word in written(text).split("|") if word)  # delimiters in a row part words once
            if set(words) <= set(lexicon):
                total = acoustic + ALL.lm_weight * lm_score(model, words) + ALL.word_score * len(words)
                scores[words] = np.logaddexp(scores.get(words, -math.inf), total)
        found = pool.submit(0, case, ALL).result()[0]
        best = max(scores, key=scores.__getitem__)
        assert found.score == pytest.approx(scores[best], abs=CLOSE)
        assert tuple(("", *lexicon)[index] for index in found.words) == best


def test_hypotheses_are_the_best_in_order_and_differ():
    pool = DecoderPool([plan()], num_processes=1)
    case = emissions(np.random.default_rng(2), num_frames=6)
    task = ALL._replace(word_score=0.0, num_best=5)
    found = pool.submit(0, case, task).result()
    best = sorted(by_text(case).values(), reverse=True)
    assert len({written(one.tokens).strip("|") for one in found}) == len(found) == 5
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert found[0].score == pytest.approx(best[0], abs=CLOSE)


def test_device_and_flashlight_find_the_same(arpa: Path):
    both = plan(arpa, hotwords=["ab"])
    pool, device = DecoderPool([both], num_processes=1), DeviceDecoders([both])
    rng = np.random.default_rng(3)
    cases = [emissions(rng, num_frames=6) + np.array([0, -3, 0, 0], np.float32) for _ in range(20)]
    for case in cases:  # delimiters are rare: at the beginning flashlight takes one for silence
        theirs = Search(pool, 0, both, log_softmax(case), ALL).wait().alternatives[0]
        ours = Search(device, 0, both, log_softmax(case), ALL._replace(beam_size=512)).wait().alternatives[0]
        assert ours.score == pytest.approx(theirs.score, abs=0.3)  # what the delimiter at the beginning makes
        if abs(ours.score - theirs.score) < CLOSE:
            assert ours.text == theirs.text


@pytest.mark.parametrize("boundary", [None, 1])
def test_every_occurrence_of_a_hotword_counts_once_and_a_beginning_for_nothing(boundary: int | None):
    rng = np.random.default_rng(4)
    phrases = [(2, 3), (2, 3, 1, 2), (3,), (2, 2, 3)]
    automaton = Hotwords(phrases, boundary=boundary)
    around = [] if boundary is None else [boundary]
    seen = set()
    for _ in range(500):
        text = rng.integers(1, 4, size=rng.integers(1, 12)).tolist()
        node, total = automaton.start, 0.0
        for symbol in text:
            node, change = automaton.step(node, symbol)
            total += change
        total += automaton.finish(node)
        whole = [*around, *text, *around]
        wanted = [[*around, *phrase, *around] for phrase in phrases]
        count = sum(whole[place : place + len(phrase)] == phrase for phrase in wanted for place in range(len(whole)))
        assert total == pytest.approx(count)
        seen.add(count)
    assert len(seen) > 3


def test_device_and_flashlight_count_hotwords_alike():
    both = plan(hotwords=["ab", "ab a", "b"])
    pool, device = DecoderPool([both], num_processes=1), DeviceDecoders([both])
    case = log_softmax(np.full((5, 4), -5.0, np.float32) + 9 * np.eye(4, dtype=np.float32)[[2, 3, 1, 2, 0]])
    task = ALL._replace(beam_size=128, num_best=1)
    theirs, ours = (Search(one, 0, both, case, task).wait().alternatives[0] for one in (pool, device))
    assert theirs.text == ours.text == "ab a"
    assert ours.score == pytest.approx(theirs.score, abs=CLOSE)


def test_a_failure_on_the_device_is_that_of_all_who_wait_for_the_batch(monkeypatch):
    device = DeviceDecoders([plan()])
    tickets = [device.submit(0, LONG[:5], ALL) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(DeviceDecoders, "_searched", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tickets[0].result()
    with pytest.raises(ZeroDivisionError):
        tickets[1].result()


def test_what_nobody_waits_for_any_more_is_not_searched_on_the_device(monkeypatch):
    device = DeviceDecoders([plan()])
    batches = []
    monkeypatch.setattr(DeviceDecoders, "_run_batch", lambda self, decoder, task, pieces: batches.append(len(pieces)))
    kept, _ = [device.submit(0, LONG[:5], ALL) for _ in range(2)]
    del _
    device.run()
    assert batches == [1]
    assert kept.found is None


def test_a_long_recording_is_parted_in_its_pauses():
    log_probs = np.full((2 * MAX_PIECE, 4), -10.0, np.float32)
    log_probs[:, 2] = 0
    log_probs[2000:2100] = [0, -10, -10, -10]
    log_probs[1800:1810] = [0, -10, -10, -10]
    parts = pieces(log_probs, blank_id=0)
    assert parts[0] == slice(0, 2050)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert parts[-1].stop == len(log_probs)
    assert max(part.stop - part.start for part in parts) <= MAX_PIECE


def test_pieces_join_into_the_best_combinations():
    def hypothesis(score: float, token: int) -> Hypothesis:
        return Hypothesis(score, score, np.array([token]), (token,))

    found = join([[hypothesis(-1, 1), hypothesis(-4, 2)], [hypothesis(-1, 3), hypothesis(-2, 4)]], num_best=3)
    assert [one.score for one in found] == [-2, -3, -5]
    assert [one.words for one in found] == [(1, 3), (1, 4), (2, 3)]


def test_a_damaged_binary_is_an_error_and_never_the_end_of_this_process(tmp_path: Path):
    whole = write_binary(tmp_path / "words.bin", "probing").read_bytes()
    vocabulary = CTCVocabulary({token: id_ for id_, token in enumerate(["<pad>", "|", *"acdeghlmnostuw"])})
    rng = np.random.default_rng(5)
    refused = 0
    for number in range(30):
        data = bytearray(whole[: rng.integers(1, len(whole))] if number % 3 == 0 else whole)
        for place in rng.integers(0, len(data), size=0 if number % 3 == 0 else 8):
            data[place] = rng.integers(256)
        path = tmp_path / "damaged.bin"
        path.write_bytes(data)
        try:
            model = open_language_model(path)
            one = make_plan(vocabulary, vocab_size=16, lm=model, lexicon=None, hotwords=[])
            DecoderPool([one], num_processes=1).submit(0, np.zeros((5, 16), np.float32), ALL).result()
        except LanguageModelError as error:
            refused += "damaged.bin" in str(error)
    assert refused >= 10  # all that are cut short; a flipped bit in a probability can be read


def test_processes_end_with_the_pool():
    pool = DecoderPool([plan()], num_processes=2)
    process = pool._process
    assert process.poll() is None
    pool.close()
    assert process.poll() == 0


def test_processes_end_with_the_pool_in_the_middle_of_a_search():
    pool = DecoderPool([plan()], num_processes=2)
    waiting = [pool.submit(0, LONG, ALL) for _ in range(4)]
    time.sleep(0.5)
    begun = time.monotonic()
    pool.close()
    for one in waiting:
        with pytest.raises(LanguageModelError, match="a process of the beam search ended"):
            one.result(AT_ONCE)
    assert time.monotonic() - begun < AT_ONCE
    assert pool._process.returncode == -signal.SIGIO  # by itself


def test_ctrl_c_goes_to_all_of_a_terminal_and_ends_no_process_here():
    pool = DecoderPool([plan()], num_processes=1)
    before = pool.submit(0, LONG[:5], ALL).result()
    pool._process.send_signal(signal.SIGINT)
    assert pool.submit(0, LONG[:5], ALL).result()[0].score == before[0].score


def test_a_program_that_is_interrupted_waits_for_no_search():
    script = (
        "import time; from tests.test_beam_search import ALL, LONG, DecoderPool, plan\n"
        "pool = DecoderPool([plan()], num_processes=1); found = [pool.submit(0, LONG, ALL) for _ in range(3)]\n"
        "time.sleep(0.5); print('searching', flush=True); raise KeyboardInterrupt"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"searching\n"
        begun = time.monotonic()
        program.wait()
    assert time.monotonic() - begun < AT_ONCE


def test_a_process_that_is_killed_is_an_error(arpa: Path):
    pool = DecoderPool([plan(arpa)], num_processes=1)
    pool._process.kill()
    pool._process.wait()
    with pytest.raises(LanguageModelError, match=r"letters\.arpa: a process of the beam search ended"):
        pool.submit(0, np.zeros((5, 4), np.float32), ALL).result()
    assert pool.broken

"""``rerank=k``: languages that identification takes for alike, told apart by recognising them in one mixed batch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import mms_jax
from experiments.demo.ngram import estimate, letters
from mms_jax.cli import main
from mms_jax.errors import LanguageError, MMSWarning, SettingError
from mms_jax.pipelines.demo import DEMO_LID, DEMO_MODEL
from mms_jax.pipelines.lid import Candidate, Identification
from mms_jax.pipelines.reranking import ASR_WEIGHT, SEARCH_WEIGHT, Reranker
from mms_jax.pipelines.routing import Router

CLIPS = DEMO_MODEL.parent / "clips"


def clip(code: str) -> str:
    return str(CLIPS / f"{code}-1.flac")


class Undecided:
    """An identifier with an opinion of its own on everything."""

    name = "undecided"
    languages = ("deu", "eng", "spa", "xyz")

    def __init__(self, **probabilities: float):
        self._candidates = tuple(Candidate(*item) for item in probabilities.items())

    def identify(self, audio: Sequence[Any], *, top_k: int, **others: Any) -> list[Identification]:
        return [Identification(1.0, self._candidates[:top_k]) for _ in audio]


@pytest.fixture(scope="module")
def asr() -> mms_jax.SpeechRecognizer:
    return mms_jax.load_asr(DEMO_MODEL, lid=DEMO_LID)


def reranker(asr: mms_jax.SpeechRecognizer, lid: Any, *, top_k: int) -> Reranker:
    router = Router(lid, asr.languages, asr._store.resolve, candidates=None)
    return Reranker(router, asr._recognition, asr.config, top_k=top_k)


def test_of_languages_that_are_as_likely_the_one_that_is_understood_wins(asr):
    waveforms = [mms_jax.audio.load_audio(clip(code)) for code in ("eng", "deu")]
    routes = reranker(asr, Undecided(deu=0.5, eng=0.5), top_k=2)(waveforms, batch_size=8)
    assert [route.tag for route in routes] == ["eng", "deu"]


def test_the_score_is_the_log_probability_and_what_recognition_adds(asr):
    (route,) = reranker(asr, Undecided(deu=0.6, eng=0.4), top_k=2)(
        [mms_jax.audio.load_audio(clip("eng"))], batch_size=8
    )
    logits = asr.logits(clip("eng"), language="eng")[0]
    best = np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    own = {one.language: one for one in route.ranking}["eng"]
    assert own.asr_score == pytest.approx(-np.log(best).mean(), abs=1e-4)  # float32, another batch
    assert own.score == pytest.approx(np.log(0.4) + ASR_WEIGHT * own.asr_score, abs=1e-4)
    assert own.text == asr.transcribe(clip("eng"), language="eng").text


def test_all_languages_of_all_windows_are_one_batch(asr, monkeypatch):
    calls = []
    whole = asr._recognition.calls

    def counted(*arguments, **others):
        for call in whole(*arguments, **others):
            calls.append(call)
            yield call

    monkeypatch.setattr(asr._recognition, "calls", counted)
    waveforms = [mms_jax.audio.load_audio(clip("eng"))[:16000] for _ in range(2)]
    reranker(asr, Undecided(deu=0.5, eng=0.3, spa=0.2), top_k=3)(waveforms, batch_size=8)
    assert sum(len(call._indices) for call in calls) == 6
    assert len(calls) <= 2  # rows of a batch are powers of two: 4 and 2


def test_a_likeliest_language_that_is_not_recognised_is_an_error_and_no_other_is_taken(asr):
    (route,) = reranker(asr, Undecided(xyz=0.9, eng=0.1), top_k=2)([np.ones(16000, np.float32)], batch_size=8)
    assert isinstance(route.error, LanguageError)
    (route,) = reranker(asr, Undecided(eng=0.9, xyz=0.1), top_k=2)([np.ones(16000, np.float32)], batch_size=8)
    assert [one.language for one in route.ranking] == ["eng"]


def test_transcribe_tells_how_languages_were_ranked(asr):
    found = asr.transcribe([clip("eng"), clip("fra"), np.zeros(16000, np.float32)], language="auto", rerank=3)
    assert [one.language for one in found] == ["eng", "fra", None]
    for one in found[:2]:
        scores = [ranked.score for ranked in one.language_ranking]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert one.language_ranking[0].language == one.language
        assert one.language_ranking[0].probability == one.language_probability
        assert one.text == one.language_ranking[0].text
        assert one.text == asr.transcribe(clip(one.language), language=one.language).text
    assert found[2].language_ranking == ()
    assert asr.transcribe(clip("eng"), language="auto").language_ranking == ()


def test_language_models_count_where_every_language_has_one(asr, tmp_path):
    sentences = [json.loads(line) for line in (DEMO_MODEL.parent / "clips.jsonl").read_text("utf-8").splitlines()]
    for code in ("eng", "deu"):
        alphabet = " ".join(asr.tokenizer.vocabulary(code).letters)
        own = [letters(text.split()) for text in (*(one["text"] for one in sentences), alphabet)]
        (tmp_path / f"{code}.arpa").write_text(estimate(own, order=3), encoding="utf-8")
    models = {code: tmp_path / f"{code}.arpa" for code in ("eng", "deu")}
    search = {"language": "auto", "candidates": ["eng", "deu"], "rerank": 2, "decoder": "device", "beam": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MMSWarning)  # the clips have letters of other languages
        with_both = asr.transcribe(clip("eng"), lm=models, **search)
        with_one = asr.transcribe(clip("eng"), lm={**models, "deu": None}, **search)
    for one in with_both.language_ranking:
        found = asr.logits(clip("eng"), language=one.language)[0]
        assert one.search_score is not None
        assert one.score == pytest.approx(np.log(one.probability) + SEARCH_WEIGHT * one.search_score)
        assert one.search_score * len(found) < one.asr_score * len(found)  # a language model only takes away
    assert sorted(one.search_score is None for one in with_one.language_ranking) == [False, True]
    for one in with_one.language_ranking:
        assert one.score == pytest.approx(np.log(one.probability) + ASR_WEIGHT * one.asr_score)


def test_rerank_is_a_number_from_one(asr):
    with pytest.raises(SettingError, match="rerank is 0"):
        asr.transcribe(clip("eng"), language="auto", rerank=0)


def test_the_program_shows_the_ranking(capsys):
    assert main(["transcribe", clip("eng"), "--language", "auto", "--rerank", "2", "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["language_ranking"][0]["language"] == row["language"] == "eng"
    assert main(["transcribe", clip("eng"), "--language", "eng", "--rerank", "2"]) == 1
    assert "--rerank are for --language auto" in capsys.readouterr().err

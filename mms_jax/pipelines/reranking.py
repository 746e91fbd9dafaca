"""``language="auto"`` with a second opinion: the likeliest languages are recognised, and how well that goes counts too.

After Yan, Pratap, Watanabe and Auli 2024 (arXiv 2409.18428): identification errs between languages that sound alike, of
which only one makes sense to a recogniser. All languages of a window go through the model in one mixed batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import MMSError
from mms_jax.pipelines.decoding.decoding import Decoding
from mms_jax.pipelines.decoding.request import Request
from mms_jax.pipelines.recognition import Frames, Heard, Recognition
from mms_jax.pipelines.routing import Route, Router
from mms_jax.pipelines.transcription import RankedLanguage

# Of what a frame adds, to the log probability by identification; those that did best in experiments/lid_reranking.py.
ASR_WEIGHT = 8.0
SEARCH_WEIGHT = 12.0


class Second(NamedTuple):
    """What recognition in one language adds to its identification."""

    asr_score: float  # mean log probability of the best token of each frame
    search_score: float | None  # that of the beam search's best text, language model included, by frames
    text: str


class Reranker:
    """Identifies as ``router`` does, then recognises each window in its ``top_k`` likeliest languages and ranks these.

    Args:
        router: the first opinion.
        recognition: the model.
        config: its configuration.
        top_k: languages of each window.
        decoding, request: the beam search to come, whose language models count; None: there is none.
    """

    def __init__(
        self,
        router: Router,
        recognition: Recognition,
        config: Wav2Vec2Config,
        *,
        top_k: int,
        decoding: Decoding | None = None,
        request: Request | None = None,
    ):
        self._router = router
        self._recognition = recognition
        self._config = config
        self._top_k = top_k
        self._decoding = decoding
        self._request = request

    def __call__(self, waveforms: Sequence[np.ndarray], *, batch_size: int) -> list[Route]:
        """Identify the language of each waveform, float32 [S] at 16 kHz, with speech in it."""
        routes = self._router.likeliest(waveforms, top_k=self._top_k, batch_size=batch_size)
        jobs = [(index, route) for index, found in enumerate(routes) if found[0].error is None for route in found]
        heard = self._heard([waveforms[index] for index, _ in jobs], [route for _, route in jobs], batch_size)
        ranked: list[list[RankedLanguage]] = [[] for _ in waveforms]
        for (index, route), second in zip(jobs, heard, strict=True):
            if second is not None:
                ranked[index].append(RankedLanguage(str(route.tag), route.probability, *second, 0.0))
        return [_best(own, found[0]) if own else found[0] for own, found in zip(ranked, routes, strict=True)]

    def _heard(self, waveforms: Sequence[np.ndarray], routes: Sequence[Route], batch_size: int) -> list[Second | None]:
        """What each waveform sounds like in its language; None where its adapter cannot be read or gives no numbers."""
        keeps = [slice(0, int(self._config.num_frames(len(samples)))) for samples in waveforms]
        tags = [route.tag for route in routes]
        found: list[Second | None] = [None] * len(waveforms)
        detail = "frames" if self._decoding is None else "logits"
        for call in self._recognition.calls(waveforms, tags, keeps, batch_size=batch_size, detail=detail):
            for index, result in call.results():
                if isinstance(result, Heard) and result.finite:
                    found[index] = self._second(result, tags[index])
        return found

    def _second(self, heard: Heard, tag: str | None) -> Second:
        assert isinstance(heard.what, Frames)
        asr_score = float(np.log(np.maximum(heard.what.scores, np.finfo(np.float32).tiny)).mean())
        text = heard.vocabulary.decode(heard.what.ids)
        if self._decoding is None or self._request is None or heard.what.logits is None:
            return Second(asr_score, None, text)
        try:
            plan = self._decoding.plan(tag)
        except MMSError:  # it has no language model, which the recording itself is told if this language is chosen
            return Second(asr_score, None, text)
        best = self._decoding.search(tag, heard.what.logits, self._request).wait().alternatives[0]
        frames = len(heard.what.ids)
        return Second(asr_score, best.score / frames if plan.lm is not None else None, best.text)


def _best(candidates: list[RankedLanguage], first: Route) -> Route:
    """The best of them; language models count only where each has one, or they could not be compared."""
    scored = [one._replace(score=score) for one, score in zip(candidates, _scores(candidates), strict=True)]
    scored.sort(key=lambda one: -one.score)
    return first._replace(tag=scored[0].language, probability=scored[0].probability, ranking=tuple(scored))


def _scores(candidates: list[RankedLanguage]) -> list[float]:
    by_search = [one.search_score for one in candidates if one.search_score is not None]
    if len(by_search) == len(candidates):
        recognised = [SEARCH_WEIGHT * score for score in by_search]
    else:
        recognised = [ASR_WEIGHT * one.asr_score for one in candidates]
    least = float(np.finfo(np.float32).tiny)
    return [math.log(max(one.probability, least)) + score for one, score in zip(candidates, recognised, strict=True)]

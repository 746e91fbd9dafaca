"""Beam search for a recogniser: decoders for the languages that are heard, and recordings through them."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mms_jax.errors import LanguageModelError, MMSWarning
from mms_jax.pipelines.adapters import Tag
from mms_jax.pipelines.bank import Alphabet
from mms_jax.pipelines.decoding.beam import Search, Searcher, Task
from mms_jax.pipelines.decoding.device import DeviceDecoders
from mms_jax.pipelines.decoding.files import is_binary
from mms_jax.pipelines.decoding.plans import Plan, make_plan
from mms_jax.pipelines.decoding.pool import DecoderPool
from mms_jax.pipelines.decoding.request import LM_WEIGHT, WORD_SCORE, DecoderName, Materials, Request, Resolve
from mms_jax.pipelines.recognition import log_softmax

BEAM_SIZE_TOKEN = 50  # most tokens that a frame may be, as in fairseq
BEAM_THRESHOLD = 50.0  # log probability below the best at which a hypothesis is given up, as in torchaudio
MAX_PROCESSES = 8
MAX_ORDER = 6  # as flashlight-text's KenLM is compiled


class Prepared(NamedTuple):
    """What one language is searched with."""

    decoder: int  # of the pool
    plan: Plan
    lm_weight: float
    word_score: float


class Decoding:
    """Decoders that are ready, for the requests that can share them.

    Args:
        request: what is asked for; only its files and phrases count, not its weights.
        heard: the languages that are known to be heard; those of ``request.lm`` where some are not known.
        resolve: a language as users write it to a tag.
        alphabet: of a tag.

    Raises:
        LanguageModelError: not readable, or of another alphabet.
    """

    def __init__(
        self,
        request: Request,
        heard: Iterable[Tag],
        *,
        resolve: Resolve,
        alphabet: Callable[[Tag], Alphabet],
    ):
        self._request = request
        self._resolve = resolve
        self._alphabet = alphabet
        self._lock = threading.Lock()
        self._prepared: dict[Tag, Prepared] = {}
        materials = request.materials(heard, resolve)
        plans = {tag: self._plan(tag, one) for tag, one in materials.items()}
        self._searcher = _searcher(request, list(plans.values()))
        for decoder, (tag, plan) in enumerate(plans.items()):
            self._prepared[tag] = _prepared(decoder, plan, materials[tag])

    def search(self, tag: Tag, logits: np.ndarray, request: Request) -> Search:
        """Start the search of a recording's logits, float32 [T, V], at least one frame, in the language of ``tag``."""
        prepared = self._for(tag)
        return Search(self._searcher, prepared.decoder, prepared.plan, log_softmax(logits), task(request, prepared))

    @property
    def broken(self) -> bool:
        """Whether processes that search are gone."""
        return self._searcher.broken

    def plan(self, tag: Tag) -> Plan:
        """What a language is searched with."""
        return self._for(tag).plan

    def _for(self, tag: Tag) -> Prepared:
        with self._lock:
            if tag not in self._prepared:  # one that was identified
                (materials,) = self._request.materials([tag], self._resolve).values()
                plan = self._plan(tag, materials)
                self._prepared[tag] = _prepared(self._searcher.add(plan), plan, materials)
            return self._prepared[tag]

    def _plan(self, tag: Tag, materials: Materials) -> Plan:
        if self._request.decoder == "flashlight" and materials.lm is not None and materials.lm.order > MAX_ORDER:
            raise LanguageModelError(
                f"{materials.lm.path}: n-grams of order {materials.lm.order}, but the KenLM inside flashlight-text "
                f"reads up to {MAX_ORDER}; build one of a lower order, or take decoder='device' for one of letters"
            )
        plan = _planned(self._alphabet(tag), materials)
        if plan.difference:
            warnings.warn(f"{plan.name}: {plan.difference}", MMSWarning, stacklevel=2)
        return plan


def _planned(alphabet: Alphabet, materials: Materials) -> Plan:
    return make_plan(
        alphabet.vocabulary,
        vocab_size=alphabet.vocab_size,
        lm=materials.lm,
        lexicon=materials.lexicon,
        hotwords=materials.hotwords,
    )


def _searcher(request: Request, plans: Sequence[Plan]) -> Searcher:
    if request.decoder == "device":
        return DeviceDecoders(plans)
    return DecoderPool(plans, num_processes=min(MAX_PROCESSES, os.cpu_count() or 1))


def _prepared(decoder: int, plan: Plan, materials: Materials) -> Prepared:
    stored = materials.lm
    weight = None if stored is None else stored.lm_weight
    score = None if stored is None else stored.word_score
    return Prepared(decoder, plan, LM_WEIGHT if weight is None else weight, WORD_SCORE if score is None else score)


def task(request: Request, prepared: Prepared) -> Task:
    """How to search."""
    return Task(
        beam_size=request.beam,
        beam_size_token=min(BEAM_SIZE_TOKEN, len(prepared.plan.tokens)),
        beam_threshold=BEAM_THRESHOLD,
        lm_weight=prepared.lm_weight if request.lm_weight is None else request.lm_weight,
        word_score=prepared.word_score if request.word_score is None else request.word_score,
        hotword_weight=request.hotword_weight,
        num_best=request.num_best,
    )


class DecodingCache:
    """The decoders that were used last, for the next call with the same files and phrases.

    Args:
        resolve: a language as users write it to a tag.
        alphabet: of a tag.
    """

    def __init__(self, *, resolve: Resolve, alphabet: Callable[[Tag], Alphabet]):
        self._resolve = resolve
        self._alphabet = alphabet
        self._lock = threading.Lock()
        self._kept: tuple[Hashable, Decoding] | None = None

    def get(self, request: Request, known: Iterable[Tag], *, some_unknown: bool) -> Decoding:
        """Decoders for a request.

        Args:
            request: what is asked for.
            known: the languages that will be heard.
            some_unknown: whether there are others, to be identified.
        """
        heard = heard_languages(request, known, some_unknown=some_unknown, resolve=self._resolve)
        key = request.key, *((tag, self._alphabet(tag).vocabulary.labels) for tag in heard)
        with self._lock:
            if self._kept is None or self._kept[0] != key or self._kept[1].broken:
                made = Decoding(request, heard, resolve=self._resolve, alphabet=self._alphabet)
                self._kept = key, made  # who still uses those before it holds them
            return self._kept[1]

    def fastest(self, request: Request, tag: Tag) -> DecoderName:
        """Which decoder a request is searched with fastest in a language: the device's, where it can be."""
        (materials,) = request.materials([tag], self._resolve).values()
        plan = _planned(self._alphabet(tag), materials)
        on_device = plan.spellings is None and (plan.lm is None or not is_binary(Path(plan.lm)))
        return "device" if on_device else "flashlight"


def heard_languages(request: Request, known: Iterable[Tag], *, some_unknown: bool, resolve: Resolve) -> list[Tag]:
    """The languages to prepare for: those known, and, where some are yet to be identified, all that ``lm`` names.

    Raises:
        LanguageModelError: a language model for one language, but the languages are yet to be identified.
    """
    tags = list(dict.fromkeys(known))
    if not some_unknown:
        return tags
    if isinstance(request.lm, Mapping):
        return list(dict.fromkeys([*tags, *(resolve(language) for language in request.lm)]))
    if request.lm is not None:
        raise LanguageModelError(
            f"{request.lm}: a language model of one language, but language='auto' may find any; "
            "give lm={'eng': 'eng.arpa', 'deu': None}, with None for those that need none"
        )
    return tags

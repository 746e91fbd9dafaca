"""``language="auto"``: which of a recogniser's languages is spoken, by a language identification model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mms_jax.errors import LanguageError, MMSError
from mms_jax.languages import labelled
from mms_jax.pipelines.lid import Identification, LanguageIdentifier
from mms_jax.pipelines.transcription import RankedLanguage

AUTO = "auto"


class Route(NamedTuple):
    """The language of one audio, or why there is none."""

    tag: str | None
    probability: float
    error: MMSError | None = None
    ranking: tuple[RankedLanguage, ...] = ()  # where several were compared


class Identify(Protocol):
    """Finds the language of each waveform, float32 [S] at 16 kHz, with speech in it."""

    def __call__(self, waveforms: Sequence[np.ndarray], *, batch_size: int) -> list[Route]:
        """One route for each."""
        ...


class Router:
    """Identifies, and finds the recogniser's tag for the label of the identifier.

    Args:
        lid: the identification model.
        languages: the recogniser's tags.
        resolve: a language to one of them; raises LanguageError.
        candidates: the only languages to consider; None: all that ``lid`` knows, and one of those that is not
            recognised is the item's error: the nearest that is would be another language.

    Raises:
        LanguageError: a candidate that one of the models has not, or two that ``lid`` does not tell apart.
    """

    def __init__(
        self,
        lid: LanguageIdentifier,
        languages: Sequence[str],
        resolve: Callable[[str], str | None],
        *,
        candidates: Iterable[str] | None,
    ):
        self._lid = lid
        self._languages = languages
        self._resolve = resolve
        self._tags = None if candidates is None else self._by_label(candidates)

    def __call__(self, waveforms: Sequence[np.ndarray], *, batch_size: int) -> list[Route]:
        """Identify the language of each waveform, float32 [S] at 16 kHz, with speech in it."""
        return [routes[0] for routes in self.likeliest(waveforms, top_k=1, batch_size=batch_size)]

    def likeliest(self, waveforms: Sequence[np.ndarray], *, top_k: int, batch_size: int) -> list[list[Route]]:
        """The likeliest languages of each, best first, at least one.

        If the first cannot be recognised, its error is all there is; others that cannot be are left out.
        """
        languages = None if self._tags is None else list(self._tags)
        count = min(top_k, len(self._lid.languages if languages is None else languages))
        found = self._lid.identify(list(waveforms), languages=languages, top_k=count, batch_size=batch_size)
        return [self._routes(one) for one in found]

    def _routes(self, found: Identification) -> list[Route]:
        if found.error is not None:
            return [Route(None, 0.0, found.error)]
        first, *others = [self._route(one.language, one.probability) for one in found.top]
        if first.error is not None:
            return [first]
        return [first, *(route for route in others if route.error is None)]

    def _route(self, label: str, probability: float) -> Route:
        if self._tags is not None:
            return Route(self._tags[label], probability)
        try:
            return Route(self._tag(label), probability)
        except LanguageError as error:
            return Route(None, probability, LanguageError(f"identified as {label!r} ({probability:.2f}): {error}"))

    def _tag(self, label: str) -> str | None:
        """Labels carry no script or dialect, and some are macrolanguages where tags are members."""
        tags = labelled(label, self._languages)
        if len(tags) > 1:
            raise LanguageError(
                f"it is recognised as {', '.join(tags)}; choose one of them, and others, by candidates="
            )
        return tags[0] if tags else self._resolve(label)

    def _by_label(self, candidates: Iterable[str]) -> dict[str, str | None]:
        """The recogniser's tag for every label that may be identified."""
        if isinstance(candidates, (str, bytes)) or not isinstance(candidates, Iterable):
            raise LanguageError(f"candidates is {candidates!r}; give a list of codes or names")
        tags: dict[str, str | None] = {}
        chosen = list(candidates)
        if None in chosen:
            raise LanguageError("candidates hold None; give a list of codes or names")
        for tag in dict.fromkeys(self._resolve(candidate) for candidate in chosen):
            assert tag is not None  # a checkpoint without languages resolves nothing
            labels = [label for label in self._lid.languages if tag in labelled(label, [tag])]
            if not labels:
                raise LanguageError(f"{tag!r} has no label in {self._lid.name}, so it cannot be identified")
            own = tag.split("-")[0]
            label = own if own in labels else labels[0]  # its own before its macrolanguage's
            if label in tags:
                raise LanguageError(f"{tags[label]} and {tag} are both identified as {label!r}; leave one of them out")
            tags[label] = tag
        if not tags:
            raise LanguageError("candidates is empty, so there is none to choose; leave it out to consider all")
        return tags

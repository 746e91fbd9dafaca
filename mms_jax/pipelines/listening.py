"""A recognition model that listens: audio of any length and language to what it heard in it, and its CTC logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from mms_jax.errors import LanguageError
from mms_jax.models.layers import fold_weight_norm
from mms_jax.pipelines.adapted import AdaptedModel
from mms_jax.pipelines.batching import MAX_DURATION, is_many
from mms_jax.pipelines.chunks import CHUNK_LENGTH, Chunking, make_chunking
from mms_jax.pipelines.recognition import Detail, Recognition
from mms_jax.pipelines.recordings import Reader, Recording
from mms_jax.pipelines.routing import AUTO, Identify, Router
from mms_jax.pipelines.settings import check_integer, check_number


class Listener(AdaptedModel):
    """What ``SpeechRecognizer`` is apart from turning what it heard into text."""

    @cached_property
    def _recognition(self) -> Recognition:
        extractor, dtype, scan_layers = self.feature_extractor, self._dtype, self._scan_layers
        base = fold_weight_norm(self._base)
        return Recognition(self._config, base, self._bank, extractor, dtype=dtype, scan_layers=scan_layers)

    def logits(
        self,
        audio: Any,
        *,
        language: str | Sequence[str] | None = None,
        batch_size: int = 8,
        chunk_length_s: float = CHUNK_LENGTH,
        stride_length_s: float | tuple[float, float] | None = None,
        max_duration: float = math.inf,
    ) -> list[np.ndarray]:
        """CTC logits, before the softmax: a list of float32 [T, V], one per input, padding removed.

        The arguments are those of ``transcribe``; a single item gives a list of one. Audio of less than one frame gives
        [0, V]. V is the language's vocabulary size. Those of windows are stitched together.

        Raises:
            LanguageError, AudioError: as ``transcribe``; here one bad item fails the call, and so does "auto".
        """
        items, recordings, many = self._recordings(audio, language)
        if any(recording.undecided for recording in recordings):
            raise LanguageError("logits are those of one head, so language='auto' has none; identify it first")
        chunking = make_chunking(self._config, chunk_length_s=chunk_length_s, stride_length_s=stride_length_s)
        reader = self._reader(chunking, batch_size, max_duration, detail="logits", hears_silence=True)
        complete = set(reader.read(items, recordings, many=many))
        for recording in recordings:
            if recording.error is not None:
                raise recording.error
        assert complete == set(range(len(items)))
        alphabets = [self._bank.alphabet(one.tag) for one in recordings]
        return [
            one.logits(vocab_size=alphabet.vocab_size, blank_id=alphabet.vocabulary.blank_id)
            for one, alphabet in zip(recordings, alphabets, strict=True)
        ]

    def warmup(
        self,
        *,
        languages: Iterable[str] = (),
        max_duration: float = CHUNK_LENGTH,
        batch_size: int = 8,
    ) -> int:
        """Compile for every shape of batch that audio up to a length can need, so that no call does it later.

        Args:
            languages: to bring onto the device; the widest vocabulary among them decides the shape of the head. "auto"
                compiles the identifier too and, without others, the head for the widest of all.
            max_duration: of windows, seconds: the ``chunk_length_s`` of the calls to come, or less where all audio is
                shorter.
            batch_size: that of the calls to come.

        Returns:
            How many shapes the model is compiled for.

        Raises:
            LanguageError: a language that is not here. SettingError: a length out of its range.
        """
        check_number("max_duration", max_duration, 0, MAX_DURATION)
        check_integer("batch_size", batch_size, 1)
        chosen: list[str | None] = [languages] if isinstance(languages, str) else list(languages)
        if AUTO in chosen or (not chosen and self._auto):
            self.lid.warmup(max_duration=max_duration, batch_size=batch_size)
            chosen = [one for one in chosen if one != AUTO] or [self._widest]
        tags = [self._tag(language) for language in chosen or [None]]
        self._recognition.warm_up(tags, duration=max_duration, batch_size=batch_size)
        return self._recognition.num_compiled

    def _recordings(self, audio: Any, language: str | Sequence[str] | None) -> tuple[list[Any], list[Recording], bool]:
        """Items, their languages (or why one has none), and whether there may be several."""
        many = is_many(audio)
        items = list(audio) if many else [audio]
        if language is None or isinstance(language, str):
            found = self._decided(language)
            if found.error is not None:
                raise found.error
            return items, [replace(found, parts=[]) for _ in items], many
        unordered = isinstance(language, (bytes, Mapping, Set)) or getattr(language, "ndim", 1) != 1
        if unordered or not isinstance(language, Iterable):
            raise LanguageError(f"language is {language!r}; give a code, a name, or a list of them")
        languages = list(language)
        if len(languages) != len(items):
            raise LanguageError(f"{len(items)} item(s), but {len(languages)} language(s); give one for all or one each")
        decided = {one: self._decided(one) for one in dict.fromkeys(map(_hashable, languages))}
        return items, [replace(decided[_hashable(one)], parts=[]) for one in languages], many

    def _decided(self, language: str | None) -> Recording:
        """An empty recording in a language; with its error, if it has no usable adapter here."""
        if language == AUTO or (language is None and self._auto):
            return Recording(undecided=True)
        try:
            tag = self._tag(language)
        except LanguageError as error:
            return Recording(error=error)
        error = self._recognition.unreadable(tag)  # a damaged adapter shows now, before anything is decoded
        return Recording(tag) if error is None else Recording(error=error)

    def _router(self, recordings: Sequence[Recording], candidates: Iterable[str] | None) -> Router | None:
        if any(recording.undecided for recording in recordings):
            return Router(self.lid, self.languages, self._store.resolve, candidates=candidates)
        if candidates is not None:
            raise LanguageError("candidates are those of language='auto'; here every item's language is given")
        return None

    def _reader(
        self,
        chunking: Chunking,
        batch_size: int,
        max_duration: float,
        *,
        detail: Detail,
        router: Identify | None = None,
        progress: bool | None = False,
        hears_silence: bool = False,
    ) -> Reader:
        return Reader(
            self._config,
            self._recognition,
            chunking,
            check_integer("batch_size", batch_size, 1),
            check_number("max_duration", max_duration, 0.001, math.inf),
            self._dtype,
            router=router,
            detail=detail,
            hears_silence=hears_silence,
            progress=progress,
        )


def _hashable(language: Any) -> Any:
    """An element of a list of languages as a key: str is str, whatever numpy calls it; the rest is refused later."""
    return str(language) if isinstance(language, str) else language if language is None else repr(language)

"""Language identification: load a classifier, ask which of its languages is spoken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.audio import SAMPLING_RATE
from mms_jax.checkpoint import (
    ClassifierCheckpoint,
    load_classifier,
    load_feature_extractor,
    open_source,
    save_classifier,
    save_feature_extractor,
)
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, LanguageError, NumericsError, SettingError
from mms_jax.features import FeatureExtractor
from mms_jax.languages import resolve_language
from mms_jax.models import Wav2Vec2ForSequenceClassification
from mms_jax.models.layers import fold_weight_norm
from mms_jax.models.trees import Params, unstack_layers
from mms_jax.pipelines.batching import MAX_DURATION, batch_shapes, has_speech, is_many, not_finite
from mms_jax.pipelines.dtypes import WAV2VEC2_DTYPES, check_dtype
from mms_jax.pipelines.hub import Pushable
from mms_jax.pipelines.results import Item, forward_rows, load_windows, one_or_all
from mms_jax.pipelines.settings import check_integer, check_number
from mms_jax.pipelines.waveforms import compile_for, model_input


class Candidate(NamedTuple):
    """A language, in the checkpoint's label, and how probable it is among those considered."""

    language: str
    probability: float


@dataclass(frozen=True)
class Identification:
    """Which language was heard in one item, or why none could be."""

    duration: float  # seconds of audio; 0.0 where it could not be read
    candidates: tuple[Candidate, ...] = ()  # the most probable first; empty only where there is an error
    error: AudioError | NumericsError | None = None

    @property
    def top(self) -> tuple[Candidate, ...]:
        """The ``top_k`` most probable languages; raises the item's error, so that no failure passes for a language."""
        if self.error is not None:
            raise self.error
        return self.candidates

    @property
    def language(self) -> str:
        """The most probable language; raises the item's error if it has one."""
        return self.top[0].language

    @property
    def probability(self) -> float:
        """That language's probability, 0 … 1; raises the item's error if it has one."""
        return self.top[0].probability


def load_lid(
    model: str | PathLike[str],
    *,
    dtype: Any = "float32",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    scan_layers: bool | None = None,
) -> LanguageIdentifier:
    """Load a language identification checkpoint (wav2vec2 with a classifier), such as ``facebook/mms-lid-126``.

    The arguments are those of ``load_asr``.

    Raises:
        CheckpointError: not found, wrong or incomplete; names the file and the tensor. ConfigError: config.json, for
            example an ``id2label`` with gaps.
    """
    resolved = check_dtype(dtype, WAV2VEC2_DTYPES)
    scan = jax.default_backend() != "cpu" if scan_layers is None else scan_layers
    source = open_source(model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    checkpoint = load_classifier(source, dtype=resolved, stack_layers=scan)
    return LanguageIdentifier(source.name, checkpoint, load_feature_extractor(source), resolved, scan)._from(source)


class LanguageIdentifier(Pushable):
    """A loaded language identification model; made by ``load_lid``."""

    _task = "audio-classification"

    def __init__(
        self,
        name: str,
        checkpoint: ClassifierCheckpoint,
        feature_extractor: FeatureExtractor,
        dtype: Any,
        scan_layers: bool,
    ):
        self.feature_extractor = feature_extractor
        self._name = name
        self._config, self._labels, self._params = checkpoint
        self._dtype = dtype
        self._scan_layers = scan_layers

    def __repr__(self) -> str:
        return f"LanguageIdentifier({self._name!r}, {len(self._labels)} languages, {jnp.dtype(self._dtype)})"

    @property
    def name(self) -> str:
        """Where it was loaded from."""
        return self._name

    @property
    def languages(self) -> list[str]:
        """The checkpoint's labels, in the order of ``logits``: for MMS ISO 639-3 codes without script or dialect."""
        return list(self._labels)

    @property
    def config(self) -> Wav2Vec2Config:
        """The architecture."""
        return self._config

    @property
    def module(self) -> Wav2Vec2ForSequenceClassification:
        """The Flax module of ``params``."""
        return Wav2Vec2ForSequenceClassification(self._config, len(self._labels), self._dtype, self._scan_layers)

    @property
    def params(self) -> Params:
        """The parameter tree."""
        return self._params

    def identify(
        self,
        audio: Any,
        *,
        top_k: int = 1,
        languages: Iterable[str] | None = None,
        batch_size: int = 8,
        max_duration: float = MAX_DURATION,
    ) -> Any:
        """Say which language is spoken.

        Args:
            audio: a path, bytes, a binary file object, a float array at 16 kHz, (array, rate), a ``datasets`` audio
                value, or a list of these.
            top_k: how many languages to name; all where there are fewer.
            languages: the only ones to consider, by ISO 639-1/-2/-3 code, English name or label; probabilities are
                those among them and add up to 1. None considers all.
            batch_size: most items in one forward pass.
            max_duration: longest item, seconds; what is longer is an error.

        Returns:
            An ``Identification``, or for a list a list of them in order.

        Raises:
            LanguageError: a language the checkpoint has no label for, or none at all. SettingError: ``top_k``.
            AudioError: a single item that cannot be used; audio of less than one frame (25 ms) and digital silence
                (samples within two steps of 16-bit audio of each other) are in no language, and an error too.
            NumericsError: the model's output for it is not finite. In a list an item's ``Identification`` carries the
                error instead, and the others are what they would be without it.
        """
        chosen = self._chosen(languages)
        if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
            raise SettingError(f"top_k is {top_k!r}; it must be a whole number from 1")
        many = is_many(audio)
        inputs, results = list(audio) if many else [audio], []
        for items in load_windows(inputs, many=many, max_duration=max_duration, refuse=self._speechless):
            found = [Identification(item.duration, error=item.error) for item in items]
            for index, row in self._forward(items, batch_size):
                best = _best(row["logits"][chosen], int(top_k)) if row["finite"] else []
                candidates = tuple(Candidate(self._labels[chosen[i]], probability) for i, probability in best)
                error = None if row["finite"] else not_finite(self._dtype)
                found[index] = replace(found[index], candidates=candidates, error=error)
            results += found
        return one_or_all(results, many=many)

    def logits(self, audio: Any, *, batch_size: int = 8, max_duration: float = MAX_DURATION) -> list[np.ndarray]:
        """The classifier's logits, before the softmax: a list of float32 [K], one per input, in ``languages``' order.

        The arguments are those of ``identify``; a single item gives a list of one. Silence has logits here.

        Raises:
            AudioError: as ``identify``, silence aside; here one bad item fails the call.
        """
        many = is_many(audio)
        inputs, results = list(audio) if many else [audio], []
        for items in load_windows(inputs, many=many, max_duration=max_duration, refuse=self._too_short):
            for item in items:
                if item.error is not None:
                    raise item.error
            rows = dict(self._forward(items, batch_size))
            results += [np.array(rows[index]["logits"]) for index in range(len(items))]
        return results

    def warmup(self, *, max_duration: float = 30.0, batch_size: int = 8) -> int:
        """Compile for every shape of batch that audio up to ``max_duration`` seconds can need; returns how many.

        As ``SpeechRecognizer.warmup``; models that never pad (group norm) have a shape for every length, so none here.

        Raises:
            SettingError: a length or size out of its range.
        """
        check_number("max_duration", max_duration, 0, MAX_DURATION)
        check_integer("batch_size", batch_size, 1)
        shapes = list(batch_shapes(self._config, duration=max_duration, batch_size=batch_size))
        for shape in shapes:
            compile_for(shape)
            samples, num_samples = np.zeros(shape, np.float32), np.full(shape[:1], shape[1], np.int32)
            jax.block_until_ready(self._jitted(self._folded, samples, num_samples))
        return len(shapes)

    @property
    def _spoken(self) -> list[str]:
        return self.languages

    def save_pretrained(self, directory: str | PathLike[str], *, params: Params | None = None) -> None:
        """Write a whole checkpoint that this library and transformers load.

        Args:
            directory: made if it is not there; files of the same names are replaced.
            params: trained parameters, a tree like ``params``; default those.
        """
        tree = self._params if params is None else params
        tree = unstack_layers(tree) if self._scan_layers else tree
        save_classifier(directory, config=self._config, labels=self._labels, params=tree)
        save_feature_extractor(directory, self.feature_extractor)

    def _chosen(self, languages: Iterable[str] | None) -> list[int]:
        """The ids of the labels to consider, each once, in the order of the labels."""
        if languages is None:
            return list(range(len(self._labels)))
        if isinstance(languages, (str, bytes)) or not isinstance(languages, Iterable):
            raise LanguageError(f"languages is {languages!r}; give a list of codes or names")
        wanted = {resolve_language(language, self._ids, source=self._name, task="lid") for language in languages}
        if not wanted:
            raise LanguageError("languages is empty, so there is none to choose; leave it out to consider all")
        return sorted(self._ids[label] for label in wanted)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self._labels)}

    def _too_short(self, samples: np.ndarray) -> str | None:
        if len(samples) >= self._config.min_samples:
            return None
        least = self._config.min_samples / SAMPLING_RATE
        return f"{len(samples)} samples are less than one frame ({least * 1000:g} ms), too short to be in any language"

    def _speechless(self, samples: np.ndarray) -> str | None:
        """Why no language can be heard. A model finds one in anything, so it is not asked."""
        return self._too_short(samples) or (None if has_speech(samples) else "digital silence is in no language")

    def _forward(self, items: Sequence[Item], batch_size: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield (index, {"logits": [K], "finite": bool}) of the items without an error."""
        return forward_rows(
            partial(self._jitted, self._folded),
            items,
            [index for index, item in enumerate(items) if item.error is None],
            config=self._config,
            batch_size=batch_size,
        )

    @cached_property
    def _folded(self) -> Params:
        return fold_weight_norm(self._params)

    @cached_property
    def _jitted(self):
        """The one jitted call; parameters are an argument, so that they are no constants of the executable."""
        module, extractor = self.module, self.feature_extractor

        def forward(params, samples, num_samples):
            inputs = model_input(samples, num_samples, extractor=extractor)
            output: Any = module.apply({"params": params}, *inputs)
            return {"logits": output.logits, "finite": jnp.isfinite(output.logits).all(axis=-1)}

        return jax.jit(forward)


def _best(logits: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The ``count`` most probable classes of float32 logits [K], as (index, probability); of equals the first."""
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    order = np.argsort(-logits, kind="stable")[:count]
    return [(int(index), float(probabilities[index])) for index in order]

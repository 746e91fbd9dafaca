"""Speech recognition: load a checkpoint, transcribe audio in any of its languages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.audio import SAMPLING_RATE
from mms_jax.checkpoint import (
    adapter_filename,
    check_sampling_rate,
    load_ctc,
    load_processor,
    open_source,
    require,
    save_adapter,
    save_ctc,
    save_processor,
)
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, CheckpointError, LanguageError, NumericsError
from mms_jax.features import FeatureExtractor
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import Params, merge_trees, split_adapter, unstack_layers
from mms_jax.pipelines.adapters import (
    AdapterStore,
    LanguageAdapter,
    language_tokenizer,
    merged_tokenizer,
    unpadded,
)
from mms_jax.pipelines.batching import MAX_DURATION, SILENCE, WINDOW, is_many, load_all, make_batches, not_finite
from mms_jax.pipelines.dtypes import check_dtype
from mms_jax.text.ctc import CTCTokenizer


@dataclass(frozen=True)
class Transcription:
    """What was recognised in one item, or why nothing could be."""

    language: str | None  # the checkpoint's tag; None for checkpoints without languages
    duration: float  # seconds of audio; 0.0 where it could not be read
    transcript: str | None = None
    error: AudioError | NumericsError | None = None

    @property
    def text(self) -> str:
        """The transcript; raises the item's error if it has one, so that no failure passes for an empty text."""
        if self.error is not None:
            raise self.error
        assert self.transcript is not None
        return self.transcript


def load_asr(
    model: str | PathLike[str],
    *,
    language: str | None = None,
    dtype: Any = "float32",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    scan_layers: bool | None = None,
) -> SpeechRecognizer:
    """Load a recognition checkpoint (wav2vec2 with a CTC head, MMS adapters included).

    Args:
        model: a local directory, or a hub name such as ``facebook/mms-1b-all``.
        language: what to recognise from now on: ISO 639-1/-2/-3 code, English name, or the checkpoint's own tag. None
            leaves it to each call (a checkpoint of one language needs none).
        dtype: of matrices in memory and of matrix-product operands: "float32", "bfloat16" or "float16". Products
            accumulate in float32, and everything between them is float32.
        revision, token, cache_dir, local_files_only: as in huggingface_hub.
        scan_layers: True compiles one layer for all (fast to compile), False unrolls them (1.6x faster in bfloat16 on
            CPU); None chooses for the backend.

    Raises:
        CheckpointError: not found, wrong or incomplete; names the file and the tensor. LanguageError: not in it.
    """
    resolved = check_dtype(dtype)
    scan = jax.default_backend() != "cpu" if scan_layers is None else scan_layers
    source = open_source(model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    Wav2Vec2Config.from_file(require(source, "config.json"))  # first: another architecture has other processor files
    processor = load_processor(source)
    check_sampling_rate(processor.feature_extractor, source.name)
    config, params = load_ctc(source, dtype=resolved, stack_layers=scan)
    base, leaves = split_adapter(params)
    store = AdapterStore(source, config, processor.tokenizer, leaves, dtype=resolved, stacked=scan)
    asr = SpeechRecognizer(config, processor.feature_extractor, store, base, resolved, scan)
    if language is not None:
        asr.load_adapter(language)
    return asr


class SpeechRecognizer:
    """A loaded recognition model; made by ``load_asr``."""

    def __init__(
        self,
        config: Wav2Vec2Config,
        feature_extractor: FeatureExtractor,
        store: AdapterStore,
        base: Params,
        dtype: Any,
        scan_layers: bool,
    ):
        self.feature_extractor = feature_extractor
        self._config = config
        self._store = store
        self._base = base
        self._dtype = dtype
        self._scan_layers = scan_layers
        self._current: LanguageAdapter | None = None  # chosen by load_adapter

    @property
    def languages(self) -> list[str]:
        """Tags of the languages this model recognises; empty for a checkpoint of one nameless language."""
        return self._store.languages

    @property
    def language(self) -> str | None:
        """The language recognised where a call names none; None until one is chosen."""
        return self._current.language if self._current else None

    @property
    def tokenizer(self) -> CTCTokenizer:
        """The checkpoint's vocabularies."""
        return self._store.tokenizer

    @property
    def config(self) -> Wav2Vec2Config:
        """The architecture, with the current language's vocabulary size."""
        return self._config if self._current is None else self._config.replace(vocab_size=self._current.vocab_size)

    @property
    def module(self) -> Wav2Vec2ForCTC:
        """The Flax module of ``params``."""
        return Wav2Vec2ForCTC(self.config, self._dtype, self._scan_layers)

    @property
    def params(self) -> Params:
        """The parameter tree with the current language's adapter and head (before one is chosen, those in the base)."""
        if self._current is None:
            return merge_trees(self._base, self._store.base_leaves)
        return merge_trees(self._base, unpadded(self._current))

    def load_adapter(
        self,
        adapter: str | PathLike[str],
        *,
        language: str | None = None,
        vocab: str | PathLike[str] | Mapping[str, int] | None = None,
    ) -> None:
        """Choose the language to recognise from now on; the base stays, and nothing is compiled again.

        Args:
            adapter: a language of this checkpoint, or the path of an adapter file.
            language: with a path: the tag to keep it under.
            vocab: with a path: its vocabulary, a mapping or a vocab.json; default the one beside the file.

        Raises:
            LanguageError: no such language here. CheckpointError: the file does not fit this model.
        """
        is_file = isinstance(adapter, PathLike) or str(adapter).endswith((".safetensors", ".bin"))
        if is_file and language is None:
            raise LanguageError(f"{adapter}: say which language it is, language='xyz'")
        if is_file and not Path(adapter).is_file():
            raise CheckpointError(f"{adapter}: no such file")
        if is_file:
            assert language is not None
            self._current = self._store.add(adapter, language=language, vocab=vocab)
        elif language is not None or vocab is not None:
            raise LanguageError(f"{adapter!r} is no adapter file (*.safetensors), so language= and vocab= do not apply")
        else:
            self._current = self._store.get(self._store.resolve(str(adapter)))

    def save_adapter(
        self, directory: str | PathLike[str], *, language: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write ``adapter.<language>.safetensors`` and add its vocabulary to the directory's nested vocab.json.

        The directory's other languages stay. transformers loads the result where the base's files are.

        Raises:
            LanguageError: no language chosen. FileExistsError, VocabularyError: it is there already, no ``overwrite``.
        """
        chosen = self._adapter(language)
        if chosen.language is None:
            raise LanguageError("this checkpoint's language has no tag; load its adapter under one first")
        directory = Path(directory)
        path = directory / adapter_filename(chosen.language)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; overwrite=True replaces it")
        tokenizer = merged_tokenizer(directory, chosen, self.tokenizer, overwrite=overwrite)
        leaves = unpadded(chosen)
        save_adapter(path, config=self._config, params=unstack_layers(leaves) if self._scan_layers else leaves)
        tokenizer.save(directory)
        return path

    def save_pretrained(self, directory: str | PathLike[str], *, params: Params | None = None) -> None:
        """Write a whole checkpoint, processor included, that this library and transformers load.

        Its base weights hold the current language's adapter and head, and its vocabulary is that language's.

        Args:
            directory: made if it is not there; files of the same names are replaced.
            params: trained parameters, a tree like ``params``; default those.
        """
        chosen = self._adapter(None)
        tree = merge_trees(self._base, unpadded(chosen)) if params is None else params
        tree = unstack_layers(tree) if self._scan_layers else tree
        save_ctc(directory, config=self._config.replace(vocab_size=chosen.vocab_size), params=tree)
        save_processor(directory, self.feature_extractor, language_tokenizer(chosen, self.tokenizer))

    def transcribe(
        self,
        audio: Any,
        *,
        language: str | Sequence[str] | None = None,
        batch_size: int = 8,
        max_duration: float = MAX_DURATION,
    ) -> Any:
        """Recognise speech by greedy CTC decoding.

        Args:
            audio: a path, bytes, a binary file object, a float array at 16 kHz, (array, rate), a ``datasets`` audio
                value, or a list of these.
            language: one for all items, or a list with one for each; default the one chosen by ``load_asr`` or
                ``load_adapter``.
            batch_size: most items in one forward pass.
            max_duration: longest item, seconds; what is longer is an error.

        Returns:
            A ``Transcription``, or for a list a list of them in order. Audio of less than one frame (25 ms) and digital
            silence (samples within two steps of 16-bit audio of each other) give the text "".

        Raises:
            LanguageError: a language that is not here, before anything is decoded.
            AudioError: a single item that cannot be used. NumericsError: the model's output for it is not finite. In a
                list its ``Transcription`` carries the error instead,
                and the others are what they would be without it.
        """
        items, tags, many = self._items(audio, language)
        results: list[Transcription] = []
        for start in range(0, len(items), WINDOW):
            window = slice(start, start + WINDOW)
            waveforms = load_all(items[window], max_duration=max_duration, first=start if many else None)
            results += self._transcribe(waveforms, tags[window], batch_size)
        if not many and results[0].error is not None:
            raise results[0].error
        return results if many else results[0]

    def logits(
        self,
        audio: Any,
        *,
        language: str | Sequence[str] | None = None,
        batch_size: int = 8,
        max_duration: float = MAX_DURATION,
    ) -> list[np.ndarray]:
        """CTC logits, before the softmax: a list of float32 [T, V], one per input, padding removed.

        The arguments are those of ``transcribe``; a single item gives a list of one. Audio of less than one frame gives
        [0, V]. V is the language's vocabulary size.

        Raises:
            LanguageError, AudioError: as ``transcribe``; here one bad item fails the call.
        """
        items, tags, _ = self._items(audio, language)
        waveforms = load_all(items, max_duration=max_duration)
        for waveform in waveforms:
            if isinstance(waveform, AudioError):
                raise waveform
        results = [np.zeros((0, self._store.get(tag).vocab_size), np.float32) for tag in tags]
        todo = [i for i, waveform in enumerate(waveforms) if self._has_frames(waveform)]
        for index, logits, _ in self._forward(waveforms, tags, todo, batch_size, output="logits"):
            results[index] = logits[:, : results[index].shape[1]]
        return results

    def _transcribe(
        self, waveforms: Sequence[np.ndarray | AudioError], tags: Sequence[str | None], batch_size: int
    ) -> list[Transcription]:
        results = [
            Transcription(tag, 0.0, error=waveform)
            if isinstance(waveform, AudioError)
            else Transcription(tag, len(waveform) / SAMPLING_RATE, transcript="")
            for tag, waveform in zip(tags, waveforms, strict=True)
        ]
        todo = [i for i, waveform in enumerate(waveforms) if self._has_frames(waveform) and not _is_silent(waveform)]
        for index, ids, finite in self._forward(waveforms, tags, todo, batch_size, output="ids"):
            result = results[index]
            if finite:
                text = self._store.get(result.language).vocabulary.decode(ids)
                results[index] = replace(result, transcript=text)
            else:
                results[index] = replace(result, transcript=None, error=not_finite(self._dtype))
        return results

    def _items(self, audio: Any, language: str | Sequence[str] | None) -> tuple[list[Any], list[str | None], bool]:
        """Items, their resolved languages, and whether there may be several."""
        many = is_many(audio)
        items = list(audio) if many else [audio]
        if language is None or isinstance(language, str):
            languages: list[str | None] = [language] * len(items)
        elif isinstance(language, Iterable) and not isinstance(language, bytes):
            languages = list(language)
        else:
            raise LanguageError(f"language is {language!r}; give a code, a name, or a list of them")
        if len(languages) != len(items):
            raise LanguageError(f"{len(items)} item(s), but {len(languages)} language(s); give one for all or one each")
        tags = {one: self._tag(one) for one in dict.fromkeys(languages)}
        for tag in tags.values():
            self._store.get(tag)  # a damaged adapter fails the call before anything is decoded
        return items, [tags[one] for one in languages], many

    def _tag(self, language: str | None) -> str | None:
        if language is None and self._current is not None:
            return self._current.language
        return self._store.resolve(language)

    def _adapter(self, language: str | None) -> LanguageAdapter:
        return self._store.get(self._tag(language))

    def _has_frames(self, waveform: np.ndarray | AudioError) -> bool:
        return not isinstance(waveform, AudioError) and len(waveform) >= self._config.min_samples

    def _forward(
        self,
        waveforms: Sequence[Any],
        tags: Sequence[str | None],
        todo: Sequence[int],
        batch_size: int,
        *,
        output: Literal["logits", "ids"],
    ) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Yield (index, logits [T, padded V] or greedy ids [T], whether they are finite) for the items in ``todo``."""
        for tag in dict.fromkeys(tags[index] for index in todo):
            adapter = self._store.get(tag)
            indices = [index for index in todo if tags[index] == tag]
            batches = make_batches(
                [waveforms[index] for index in indices],
                self.feature_extractor,
                batch_size=batch_size,
                max_samples=int(MAX_DURATION * SAMPLING_RATE),
                pad=self._config.feat_extract_norm == "layer",
            )
            for batch in batches:
                outputs = self._jitted(self._base, adapter.leaves, *batch.features)
                values, finite = np.asarray(outputs[output]), np.asarray(outputs["finite"])
                for row, index in enumerate(indices[i] for i in batch.indices):
                    yield index, values[row, : int(self._config.num_frames(len(waveforms[index])))], bool(finite[row])

    @cached_property
    def _jitted(self):
        """The one jitted call: base and adapter are arguments, so another language runs the same executable."""

        def forward(base, adapter, input_values, attention_mask):
            width = adapter["lm_head"]["kernel"].shape[1]
            module = Wav2Vec2ForCTC(self._config.replace(vocab_size=width), self._dtype, self._scan_layers)
            output: Any = module.apply({"params": merge_trees(base, adapter)}, input_values, attention_mask)
            finite = jnp.isfinite(jnp.where(output.frame_mask[..., None], output.logits, 0)).all(axis=(1, 2))
            return {"logits": output.logits, "ids": jnp.argmax(output.logits, axis=-1), "finite": finite}

        return jax.jit(forward)


def _is_silent(waveform: np.ndarray | AudioError) -> bool:
    """Digital silence. A model hears something in anything, so it is not asked."""
    return not isinstance(waveform, AudioError) and bool(np.ptp(waveform) <= SILENCE)

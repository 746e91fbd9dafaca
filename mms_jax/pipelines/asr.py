"""Speech recognition: load a checkpoint, transcribe audio in any of its languages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.audio import SAMPLING_RATE
from mms_jax.checkpoint import adapter_filename, load_ctc, load_processor, open_source, save_adapter
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import AudioError, ConfigError, LanguageError
from mms_jax.features import FeatureExtractor
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import Params, merge_trees, split_adapter, unstack_layers
from mms_jax.pipelines.adapters import AdapterStore, LanguageAdapter
from mms_jax.pipelines.batching import Batch, is_many, load_all, make_batches
from mms_jax.text.ctc import CTCTokenizer

MAX_DURATION = 120.0  # seconds in one pass: attention's memory grows with its square, 2.3 GB at 1B parameters
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Transcription:
    """What was recognised in one item, or why nothing could be."""

    language: str | None  # the checkpoint's tag; None for checkpoints without languages
    duration: float  # seconds of audio; 0.0 where there is an error
    transcript: str | None = None
    error: AudioError | None = None

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
    resolved = _check_dtype(dtype)
    scan = jax.default_backend() != "cpu" if scan_layers is None else scan_layers
    source = open_source(model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    processor = load_processor(source)
    _check_sampling_rate(processor.feature_extractor, source.name)
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
        return merge_trees(self._base, _unpadded(self._current))

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
        directory.mkdir(parents=True, exist_ok=True)
        self._merged_tokenizer(directory, chosen, overwrite=overwrite).save(directory)
        leaves = _unpadded(chosen)
        save_adapter(path, config=self._config, params=unstack_layers(leaves) if self._scan_layers else leaves)
        return path

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
            silence give the text "".

        Raises:
            LanguageError: a language that is not here, before anything is decoded.
            AudioError: a single item that cannot be used. In a list its ``Transcription`` carries the error instead,
                and the others are what they would be without it.
        """
        items, tags, many = self._items(audio, language)
        waveforms = load_all(items, max_duration=max_duration)
        texts = ["" if _is_silent(waveform) else None for waveform in waveforms]
        todo = [i for i, text in enumerate(texts) if text is None and self._has_frames(waveforms[i])]
        for index, _, ids in self._forward(waveforms, tags, todo, batch_size):
            texts[index] = self._store.get(tags[index]).vocabulary.decode(ids)
        results = [
            Transcription(tag, 0.0, error=waveform)
            if isinstance(waveform, AudioError)
            else Transcription(tag, len(waveform) / SAMPLING_RATE, transcript=text or "")
            for tag, waveform, text in zip(tags, waveforms, texts, strict=True)
        ]
        return results if many else _single(results[0], results[0].error)

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
        for index, logits, _ in self._forward(waveforms, tags, todo, batch_size):
            results[index] = np.asarray(logits)
        return results

    def _items(self, audio: Any, language: str | Sequence[str] | None) -> tuple[list[Any], list[str | None], bool]:
        """Items, their resolved languages, and whether there may be several."""
        many = is_many(audio)
        items = list(audio) if many else [audio]
        if language is None or isinstance(language, str):
            return items, [self._tag(language)] * len(items), many
        if len(language) != len(items):
            raise LanguageError(f"{len(items)} item(s), but {len(language)} language(s); give one for all or one each")
        return items, [self._tag(one) for one in language], many

    def _tag(self, language: str | None) -> str | None:
        if language is None and self._current is not None:
            return self._current.language
        return self._store.resolve(language)

    def _adapter(self, language: str | None) -> LanguageAdapter:
        return self._store.get(self._tag(language))

    def _has_frames(self, waveform: np.ndarray | AudioError) -> bool:
        return not isinstance(waveform, AudioError) and len(waveform) >= self._config.min_samples

    def _forward(
        self, waveforms: Sequence[Any], tags: Sequence[str | None], todo: Sequence[int], batch_size: int
    ) -> Iterator[tuple[int, jax.Array, np.ndarray]]:
        """Yield (index, logits [T, V], greedy ids [T]) for the items in ``todo``, one language at a time."""
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
                yield from self._run(batch, adapter, indices)

    def _run(
        self, batch: Batch, adapter: LanguageAdapter, indices: Sequence[int]
    ) -> Iterator[tuple[int, jax.Array, np.ndarray]]:
        logits, ids = self._jitted(self._base, adapter.leaves, *batch.features)
        ids = np.asarray(ids)
        num_samples = batch.features.attention_mask.sum(axis=1)
        for row, index in enumerate(batch.indices):
            num_frames = int(self._config.num_frames(num_samples[row]))
            yield indices[index], logits[row, :num_frames, : adapter.vocab_size], ids[row, :num_frames]

    @cached_property
    def _jitted(self):
        """The one jitted call: base and adapter are arguments, so another language runs the same executable."""

        def forward(base, adapter, input_values, attention_mask):
            width = adapter["lm_head"]["kernel"].shape[1]
            module = Wav2Vec2ForCTC(self._config.replace(vocab_size=width), self._dtype, self._scan_layers)
            output: Any = module.apply({"params": merge_trees(base, adapter)}, input_values, attention_mask)
            return output.logits, jnp.argmax(output.logits, axis=-1)

        return jax.jit(forward)

    def _merged_tokenizer(self, directory: Path, adapter: LanguageAdapter, *, overwrite: bool) -> CTCTokenizer:
        """The directory's vocabularies, or none yet, with this adapter's added."""
        assert adapter.language is not None
        tokens = dict(adapter.vocabulary.tokens)
        if (directory / "vocab.json").is_file():
            there = CTCTokenizer.from_directory(directory)
            if dict(there.vocab.get(adapter.language, {})) == tokens:
                return there
            return there.with_language(adapter.language, tokens, overwrite=overwrite)
        config = {key: value for key, value in self.tokenizer.config.items() if key != "added_tokens_decoder"}
        config["target_lang"] = adapter.language
        return CTCTokenizer({adapter.language: tokens}, config, source=str(directory / "vocab.json"))


def _unpadded(adapter: LanguageAdapter) -> Params:
    head = adapter.leaves["lm_head"]
    size = adapter.vocab_size
    return {**adapter.leaves, "lm_head": {"kernel": head["kernel"][:, :size], "bias": head["bias"][:size]}}


def _is_silent(waveform: np.ndarray | AudioError) -> bool:
    """Digital silence: every sample the same. A model hears something in anything, so it is not asked."""
    return not isinstance(waveform, AudioError) and len(waveform) > 0 and waveform.min() == waveform.max()


def _single(result: Transcription, error: AudioError | None) -> Transcription:
    if error is not None:
        raise error
    return result


def _check_dtype(dtype: Any) -> Any:
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not supported; one of {', '.join(DTYPES)}")
    return jnp.dtype(name).type


def _check_sampling_rate(extractor: FeatureExtractor, source: str) -> None:
    if extractor.sampling_rate != SAMPLING_RATE:
        raise ConfigError(f"{source}: sampling_rate {extractor.sampling_rate}; only {SAMPLING_RATE} Hz models are read")

"""The compiled recogniser: waveforms in batches, each row in a language of its own, to the best token of each frame."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.audio import SAMPLING_RATE
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, LanguageError, MMSError
from mms_jax.features import FeatureExtractor, Features
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import Params, merge_trees, stack_layers, unstack_layers
from mms_jax.pipelines.adapters import Tag
from mms_jax.pipelines.bank import AdapterBank, Alphabet, LostAdapterError
from mms_jax.pipelines.batching import MAX_DURATION, batch_shapes, make_batches, pads
from mms_jax.text.ctc import CTCVocabulary


class Frames(NamedTuple):
    """What was recognised in one waveform of T frames."""

    ids: np.ndarray  # int32 [T]: the best token of each frame
    scores: np.ndarray  # float32 [T]: its probability
    finite: bool  # whether all logits are
    logits: np.ndarray | None  # float32 [T, V]; None where nobody asked for them
    vocabulary: CTCVocabulary  # of which they are tokens

    def cut(self, keep: slice) -> Frames:
        """Those frames alone."""
        logits = None if self.logits is None else self.logits[keep]
        return self._replace(ids=self.ids[keep], scores=self.scores[keep], logits=logits)


class Recognition:
    """The model's one call, ahead-of-time compiled for every shape of batch, whatever languages are in it."""

    def __init__(
        self,
        config: Wav2Vec2Config,
        base: Params,
        bank: AdapterBank,
        feature_extractor: FeatureExtractor,
        *,
        dtype: Any,
        scan_layers: bool,
    ):
        self._config = config
        self._base = base
        self._bank = bank
        self._feature_extractor = feature_extractor
        self._dtype = dtype
        self._scan_layers = scan_layers
        self._lock = threading.Lock()
        self._compiled: dict[tuple[int, ...], Any] = {}

    @property
    def num_compiled(self) -> int:
        """Shapes the model was compiled for so far."""
        return len(self._compiled)

    def __call__(
        self, waveforms: Sequence[np.ndarray], tags: Sequence[Tag], *, batch_size: int, logits: bool = False
    ) -> Iterator[tuple[int, Frames | MMSError]]:
        """Recognise waveforms, float32 [S] of at least one frame each, each in the language of its tag.

        Args:
            waveforms: at most ``MAX_DURATION`` seconds each.
            tags: one for each.
            batch_size: most of them in one call of the model.
            logits: whether to bring them from the device too.

        Yields:
            (index, what was recognised, or why its adapter cannot be read any more), in no particular order.
        """
        batches = make_batches(
            waveforms,
            self._feature_extractor,
            batch_size=batch_size,
            max_samples=int(MAX_DURATION * SAMPLING_RATE),
            pad=pads(self._config),
        )
        for batch in batches:
            rows = list(range(len(batch.indices)))
            while rows:
                try:
                    gathered = self._bank.gather([tags[batch.indices[row]] for row in rows])
                except LostAdapterError as lost:
                    without = [row for row in rows if tags[batch.indices[row]] == lost.tag]
                    yield from ((batch.indices[row], lost.error) for row in without)
                    rows = [row for row in rows if row not in without]
                    continue
                now, rows = rows[: len(gathered.alphabets)], rows[len(gathered.alphabets) :]
                outputs = self._run(gathered.leaves, Features(*(array[now] for array in batch.features)))
                for number, row in enumerate(now):
                    index = batch.indices[row]
                    num_frames = int(self._config.num_frames(len(waveforms[index])))
                    yield index, _row(outputs, number, num_frames, gathered.alphabets[number], logits=logits)

    def unreadable(self, tag: Tag) -> MMSError | None:
        """Why a language cannot be recognised though it is one of the model's; None where it can."""
        try:
            self._bank.alphabet(tag)
        except (LanguageError, CheckpointError) as error:
            return error
        return None

    def warm_up(self, tags: Sequence[Tag], *, duration: float, batch_size: int) -> None:
        """Bring languages in and compile for every shape that waveforms up to ``duration`` seconds can need.

        Models that never pad (group norm) have a shape for every length, so for these nothing is compiled.
        """
        for tag in tags:
            self._bank.alphabet(tag)
        for num_rows, num_samples in batch_shapes(self._config, duration=duration, batch_size=batch_size):
            adapters = self._bank.gather([tags[0]] * num_rows).leaves
            self._executable(adapters, num_rows, num_samples)

    def _run(self, adapters: Params, features: Features) -> dict[str, Any]:
        return self._executable(adapters, *features.input_values.shape)(self._base, adapters, *features)

    def _executable(self, adapters: Params, num_rows: int, num_samples: int) -> Any:
        key = num_rows, num_samples, adapters["lm_head"]["kernel"].shape[-1]
        with self._lock:
            if key not in self._compiled:
                shape = num_rows, num_samples
                arguments = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.bool_)
                self._compiled[key] = jax.jit(self._forward).lower(self._base, adapters, *arguments).compile()
            return self._compiled[key]

    def _forward(self, base: Params, adapters: Params, input_values: jax.Array, attention_mask: jax.Array) -> Any:
        """Every leaf of ``adapters`` has a leading axis of rows, and layers stacked behind it."""
        width = adapters["lm_head"]["kernel"].shape[-1]
        config = self._config.replace(vocab_size=width)
        module = Wav2Vec2ForCTC(config, self._dtype, self._scan_layers, num_adapters=len(input_values))
        own = jax.vmap(unstack_layers)(adapters)
        own = stack_layers(own) if self._scan_layers else own  # the axis of layers first, then that of rows
        output: Any = module.apply({"params": merge_trees(base, own)}, input_values, attention_mask)
        logits, frame_mask = output.logits, output.frame_mask
        best = logits.max(axis=-1, keepdims=True)
        return {
            "logits": logits,
            "ids": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "scores": 1 / jnp.exp(logits - best).sum(axis=-1),
            "finite": jnp.isfinite(jnp.where(frame_mask[..., None], logits, 0)).all(axis=(1, 2)),
        }


def _row(outputs: dict[str, Any], row: int, num_frames: int, alphabet: Alphabet, *, logits: bool) -> Frames:
    """One row without its padding."""
    return Frames(
        np.asarray(outputs["ids"])[row, :num_frames],
        np.asarray(outputs["scores"])[row, :num_frames],
        bool(np.asarray(outputs["finite"])[row]),
        np.asarray(outputs["logits"])[row, :num_frames, : alphabet.vocab_size] if logits else None,
        alphabet.vocabulary,
    )

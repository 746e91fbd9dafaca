"""The compiled recogniser: waveforms in batches, each row in a language of its own, to tokens or to frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mms_jax.audio import SAMPLING_RATE
from mms_jax.config import Wav2Vec2Config
from mms_jax.errors import CheckpointError, DeviceMemoryError, LanguageError, MMSError
from mms_jax.features import FeatureExtractor
from mms_jax.models import Wav2Vec2ForCTC
from mms_jax.models.trees import Params, merge_trees, stack_layers, unstack_layers
from mms_jax.pipelines.adapters import Tag
from mms_jax.pipelines.bank import AdapterBank, Alphabet, LostAdapterError
from mms_jax.pipelines.batching import MAX_DURATION, batch_shapes, make_batches, pads
from mms_jax.pipelines.greedy import NUM_READINGS, Tokens, collapse, readings, unpacked
from mms_jax.pipelines.waveforms import Waveforms, compile_for, model_input, on_device
from mms_jax.text.ctc import CTCVocabulary

# What to bring from the device: tokens alone, the best token of every frame too, or everything there is.
Detail = Literal["tokens", "frames", "logits"]
FETCHED: dict[Detail, tuple[str, ...]] = {
    "tokens": ("tokens", "edges", "finite"),
    "frames": ("ids", "scores", "finite"),
    "logits": ("ids", "scores", "finite", "logits"),
}


class Frames(NamedTuple):
    """What was recognised in the T frames of one waveform that are kept."""

    ids: np.ndarray  # int32 [T]: the best token of each frame
    scores: np.ndarray  # float32 [T]: its probability
    logits: np.ndarray | None  # float32 [T, V]; None where nobody asked for them


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [T, V] logits to log probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class Heard(NamedTuple):
    """What was recognised in one waveform."""

    what: Frames | Tokens
    finite: bool  # whether all its logits are
    vocabulary: CTCVocabulary  # of which these are tokens


class Work(NamedTuple):
    """A batch to be computed, whose parts can be computed by themselves."""

    indices: Sequence[int]
    waveforms: Waveforms
    keeps: Sequence[slice]
    alphabets: Sequence[Alphabet]
    adapters: Params  # every leaf with a leading axis of rows

    def rows(self, start: int, stop: int) -> Work:
        """Some of it."""
        part = slice(start, stop)
        own = jax.tree.map(lambda leaf: leaf[part], self.adapters)
        waveforms = Waveforms(*(field[part] for field in self.waveforms))
        return Work(self.indices[part], waveforms, self.keeps[part], self.alphabets[part], own)


class Call:
    """A batch that the device computes, or has computed; in halves where it has no memory for the whole."""

    def __init__(
        self,
        work: Work,
        run: Callable[[Work], dict[str, jax.Array] | None],
        too_large: set[tuple[int, ...]],
        *,
        detail: Detail,
    ):
        self._work = work
        self._too_large = too_large  # shapes for which there was no memory, those found here among them
        self._run = run
        self._indices, _, self._keeps, self._alphabets, _ = work
        self._detail: Detail = detail
        outputs = run(work)
        self._outputs = None if outputs is None else {name: outputs[name] for name in FETCHED[detail]}
        for output in (self._outputs or {}).values():
            output.copy_to_host_async()

    def results(self) -> Iterator[tuple[int, Heard]]:
        """Wait for it, and yield (index, what was recognised) for each row.

        Raises:
            DeviceMemoryError: the device has no memory for a single row.
        """
        outputs = self._fetched()
        if outputs is None:
            yield from self._in_halves()
            return
        for row, (index, keep, alphabet) in enumerate(zip(self._indices, self._keeps, self._alphabets, strict=True)):
            own = {name: output[row] for name, output in outputs.items()}
            if self._detail == "tokens":
                what = unpacked(own["tokens"], own["edges"])
            else:
                what = _frames(own, keep, alphabet.vocab_size)
            yield index, Heard(what, bool(own["finite"]), alphabet.vocabulary)

    def _fetched(self) -> dict[str, np.ndarray] | None:
        """What was computed; None if it could not be, for want of memory."""
        waiting, self._outputs = self._outputs, None  # nothing of it is held while halves are computed
        try:
            return None if waiting is None else {name: np.asarray(output) for name, output in waiting.items()}
        except jax.errors.JaxRuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            self._too_large.add(self._work.waveforms.samples.shape)
            return None

    def _in_halves(self) -> Iterator[tuple[int, Heard]]:
        num_rows = len(self._indices)
        if num_rows == 1:
            seconds = self._work.waveforms.samples.shape[1] / SAMPLING_RATE
            raise DeviceMemoryError(
                f"{jax.devices()[0]}: out of memory for a single row of {seconds:g} s; take a smaller chunk_length_s, "
                "adapter_memory or dtype, or close what else uses it"
            )
        for start, stop in ((0, num_rows // 2), (num_rows // 2, num_rows)):
            yield from Call(self._work.rows(start, stop), self._run, self._too_large, detail=self._detail).results()


def _is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


class Lost(NamedTuple):
    """Waveforms whose adapter cannot be read any more."""

    indices: list[int]
    error: MMSError

    def results(self) -> Iterator[tuple[int, MMSError]]:
        """(index, why) for each."""
        return ((index, self.error) for index in self.indices)


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
        self._too_large: set[tuple[int, ...]] = set()  # shapes of batches that the device had no memory for

    @property
    def num_compiled(self) -> int:
        """Shapes the model was compiled for so far."""
        return len(self._compiled)

    def calls(
        self,
        waveforms: Sequence[np.ndarray],
        tags: Sequence[Tag],
        keeps: Sequence[slice],
        *,
        batch_size: int,
        detail: Detail = "tokens",
    ) -> Iterator[Call | Lost]:
        """Recognise waveforms, int16 or float32 [S] of at least one frame each, each in the language of its tag.

        Args:
            waveforms: at most ``MAX_DURATION`` seconds each.
            tags: one for each.
            keeps: one for each: the frames that count, at least one; the others are context.
            batch_size: most of them in one call of the model.
            detail: what to bring from the device.

        Yields:
            Calls of the model, in no particular order of waveforms. The device computes it by then; its results can
            be asked for once there is work for the device after it.
        """
        batches = make_batches(
            waveforms, batch_size=batch_size, max_samples=int(MAX_DURATION * SAMPLING_RATE), pad=pads(self._config)
        )
        for batch in batches:
            rows = list(range(len(batch.indices)))
            while rows:
                try:
                    gathered = self._bank.gather([tags[batch.indices[row]] for row in rows])
                except LostAdapterError as lost:
                    without = [row for row in rows if tags[batch.indices[row]] == lost.tag]
                    yield Lost([batch.indices[row] for row in without], lost.error)
                    rows = [row for row in rows if row not in without]
                    continue
                now, rows = rows[: len(gathered.alphabets)], rows[len(gathered.alphabets) :]
                indices = [batch.indices[row] for row in now]
                kept = [keeps[index] for index in indices]
                work = Work(indices, batch.rows(now), kept, gathered.alphabets, gathered.leaves)
                yield Call(work, self._run, self._too_large, detail=detail)

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
            compile_for((num_rows, num_samples))
            self._executable(adapters, num_rows, num_samples)

    def _run(self, work: Work) -> dict[str, jax.Array] | None:
        """The outputs of a batch; None where the device has no memory for it, now or when it was last tried."""
        shape = work.waveforms.samples.shape
        if len(work.indices) > 1 and shape in self._too_large:
            return None
        reading = readings(work.keeps, [alphabet.vocabulary for alphabet in work.alphabets])
        try:
            executable = self._executable(work.adapters, *shape)
            return executable(self._base, work.adapters, *on_device(work.waveforms), reading)
        except jax.errors.JaxRuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            self._too_large.add(shape)
            return None

    def _executable(self, adapters: Params, num_rows: int, num_samples: int) -> Any:
        key = num_rows, num_samples, adapters["lm_head"]["kernel"].shape[-1]
        with self._lock:
            if key not in self._compiled:
                arguments = (
                    jax.ShapeDtypeStruct((num_rows, num_samples), jnp.float32),
                    jax.ShapeDtypeStruct((num_rows,), jnp.int32),
                    jax.ShapeDtypeStruct((num_rows, NUM_READINGS), jnp.int32),
                )
                self._compiled[key] = jax.jit(self._forward).lower(self._base, adapters, *arguments).compile()
            return self._compiled[key]

    def _forward(
        self, base: Params, adapters: Params, samples: jax.Array, num_samples: jax.Array, reading: jax.Array
    ) -> dict[str, jax.Array]:
        """Every leaf of ``adapters`` has a leading axis of rows, and layers stacked behind it."""
        width = adapters["lm_head"]["kernel"].shape[-1]
        config = self._config.replace(vocab_size=width)
        module = Wav2Vec2ForCTC(config, self._dtype, self._scan_layers, num_adapters=len(samples))
        own = jax.vmap(unstack_layers)(adapters)
        own = stack_layers(own) if self._scan_layers else own  # the axis of layers first, then that of rows
        inputs = model_input(samples, num_samples, extractor=self._feature_extractor)
        output: Any = module.apply({"params": merge_trees(base, own)}, *inputs)
        logits, frame_mask = output.logits, output.frame_mask
        best = logits.max(axis=-1, keepdims=True)
        ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        collapsed = collapse(ids, reading, vocab_size=width)
        return {
            "logits": logits,
            "ids": ids,
            "scores": 1 / jnp.exp(logits - best).sum(axis=-1),
            "tokens": collapsed.ids,
            "edges": collapsed.edges,
            "finite": jnp.isfinite(jnp.where(frame_mask[..., None], logits, 0)).all(axis=(1, 2)),
        }


def _frames(row: dict[str, np.ndarray], keep: slice, vocab_size: int) -> Frames:
    logits = row["logits"][keep, :vocab_size] if "logits" in row else None
    return Frames(row["ids"][keep], row["scores"][keep], logits)

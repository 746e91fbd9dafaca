"""Evaluation of one slot: greedy texts and losses of all its clips, in length-grouped batches over all devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mms_jax.audio import SAMPLING_RATE
from mms_jax.features import bucketed_batches
from mms_jax.models.trees import Params
from mms_jax.parallel import shard_rows
from mms_jax.text.ctc import CTCVocabulary
from mms_jax.training.batches import BatchMaker, Item
from mms_jax.training.metrics import EvalResult, error_rates
from mms_jax.training.step import Heard

SAMPLES = 3  # pairs of reference and hypothesis that are shown


@dataclass(frozen=True)
class EvalSet:
    """The clips of one language that are evaluated, and their texts."""

    items: Sequence[Item]
    references: Sequence[str]
    vocabulary: CTCVocabulary


def evaluate(
    listen: Callable[..., Heard],
    params: Params,
    base: Params,
    slot: int,
    clips: EvalSet,
    maker: BatchMaker,
    mesh: Mesh,
    *,
    asked: Callable[[], bool],
) -> EvalResult | None:
    """Loss (mean over clips, per label), error rates and share of blanks of one slot; None if it was given up.

    Args:
        listen: from ``make_listener``.
        params: trainable, [N, …].
        base: frozen.
        slot: whose.
        clips: what is evaluated.
        maker: its ``rows`` is per_device_eval_batch_size; it does not augment.
        mesh: the devices.
        asked: before every batch, whether to give up; all processes must get the same answer.
    """
    maker = replace(maker, passes=1, augment=False, dither=0.0, reduction="mean")
    at_once = maker.rows * maker.num_shards
    lengths = [item.num_samples for item in clips.items]
    hypotheses = [""] * len(lengths)
    losses = np.zeros(len(lengths))
    blanks = frames = 0
    for indices in bucketed_batches(lengths, batch_size=at_once, bucket=maker.pad_samples):
        if asked():
            return None
        prepared = maker.make(0, [[clips.items[index] for index in indices]])
        for error in prepared.failed.values():
            raise error
        rows = jax.tree.map(lambda leaf: leaf[0], prepared.batch)
        heard = _everywhere(listen(params, base, np.int32(slot), shard_rows(rows, mesh, axis=0)))
        for row, index in enumerate(indices):
            ids = heard.ids[row]
            ids = ids[ids >= 0]
            blanks, frames = blanks + int((ids == clips.vocabulary.blank_id).sum()), frames + len(ids)
            hypotheses[index] = clips.vocabulary.decode(ids)
            losses[index] = heard.losses[row] / max(len(clips.items[index].labels), 1)
    rates = error_rates(clips.references, hypotheses=hypotheses)
    return EvalResult(
        loss=float(losses.mean()),
        wer=rates.wer,
        cer=rates.cer,
        blank_ratio=blanks / frames if frames else float("nan"),
        num_clips=len(lengths),
        seconds=sum(lengths) / SAMPLING_RATE,
        samples=tuple(zip(clips.references[:SAMPLES], hypotheses[:SAMPLES], strict=True)),
    )


def result_of_record(record: Mapping[str, Any]) -> EvalResult:
    """A result that was saved as JSON."""
    return EvalResult(**{**record, "samples": tuple((said, heard) for said, heard in record["samples"])})


def of_any_process(flags: np.ndarray) -> np.ndarray:
    """Flags that are set in any process: int32 [n] of 0 and 1, the same in all."""
    if jax.process_count() == 1:
        return flags
    return np.asarray(multihost_utils.process_allgather(flags)).max(axis=0)


def _everywhere(heard: Heard) -> Heard:
    """All rows, on every process."""
    if jax.process_count() == 1:
        return Heard(*(np.asarray(array) for array in heard))
    gathered: Any = multihost_utils.process_allgather(heard, tiled=True)
    return Heard(*gathered)

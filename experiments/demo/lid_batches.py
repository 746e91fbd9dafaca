"""Training batches for the demo's language identification: whole clips and cuts of any length, masked.

Padding can be masked zeros here, unlike in `batches`: the parameters come from a trained recogniser, whose biases give
zeros a variance, and no gradient passes through its convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments.demo.batches import LOOK_AHEAD, MARGIN, Bucket, normalize, place_in_noise
from experiments.demo.synthesize import Corpus

# About 40 s of audio each. The shortest clips hold one short word; the last bucket stands for everything longer.
BUCKETS = (Bucket(0.8, 40), Bucket(1.6, 24), Bucket(3.2, 12), Bucket(8.0, 5))
SNR_DB = (10.0, 90.0)  # up to what int16 can hold: users' files may be as clean as the synthesiser's
WHOLE = 0.5  # share of rows that hold whole clips, as users' files do; the others are cut anywhere
PAUSES = 0.1  # of a cut's speech, at most: pauses between clips


class LidBatch(NamedTuple):
    """Rows of one bucket."""

    input_values: np.ndarray  # float32 [B, S], each row normalised over its valid samples, zeros after them
    mask: np.ndarray  # bool [B, S], True = valid
    labels: np.ndarray  # int32 [B], the language's place in the mapping of corpora


def whole_clips(corpus: Corpus, *, members: np.ndarray, bucket: Bucket, rng: np.random.Generator) -> np.ndarray:
    """As many random clips as fit the bucket, whole, with at most MARGIN of noise around them: float32 [S]."""
    clips, room = [], bucket.num_samples - MARGIN
    for i in rng.choice(members, LOOK_AHEAD):
        if corpus.num_samples[i] <= room:
            clips.append(corpus.clip(i))
            room -= len(clips[-1])
    num_samples = sum(map(len, clips)) + int(rng.integers(MARGIN))
    return place_in_noise(clips, num_samples=num_samples, rng=rng, snr_db=SNR_DB)


def cut(corpus: Corpus, *, bucket: Bucket, rng: np.random.Generator) -> np.ndarray:
    """A stretch of random clips, half as long as the bucket or longer, that may start and end inside a word: [S]."""
    num_samples = int(bucket.num_samples * rng.uniform(0.5, 1.0))
    clips, total = [], 0
    while total < num_samples:
        clips.append(corpus.clip(int(rng.integers(len(corpus.texts)))))
        total += len(clips[-1])
    total += int(total * rng.uniform(0, PAUSES))
    audio = place_in_noise(clips, num_samples=total, rng=rng, snr_db=SNR_DB)
    start = int(rng.integers(total - num_samples + 1))
    return normalize(audio[start : start + num_samples])


def fitting(corpus: Corpus, *, bucket: Bucket) -> np.ndarray:
    """Indices of the clips that fit the bucket; raises ValueError where none does."""
    members = np.flatnonzero(corpus.num_samples <= bucket.num_samples - MARGIN)
    if not members.size:
        raise ValueError(f"no clip fits {bucket.seconds} s; synthesise more")
    return members


def lid_batches(corpora: Mapping[str, Corpus], *, seed: int) -> Iterator[LidBatch]:
    """Endless batches, each of a random bucket, its rows of random languages."""
    rng = np.random.default_rng(seed)
    languages = list(corpora.values())
    members = {bucket: [fitting(corpus, bucket=bucket) for corpus in languages] for bucket in BUCKETS}
    while True:
        bucket = BUCKETS[int(rng.integers(len(BUCKETS)))]
        values = np.zeros((bucket.rows, bucket.num_samples), np.float32)
        mask = np.zeros(values.shape, bool)
        labels = rng.integers(len(languages), size=bucket.rows, dtype=np.int32)
        for row, label in enumerate(labels):
            if rng.random() < WHOLE:
                audio = whole_clips(languages[label], members=members[bucket][label], bucket=bucket, rng=rng)
            else:
                audio = cut(languages[label], bucket=bucket, rng=rng)
            values[row, : len(audio)], mask[row, : len(audio)] = audio, True
        yield LidBatch(values, mask, labels)

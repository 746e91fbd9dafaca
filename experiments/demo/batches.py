"""Training batches for the demo checkpoint: fixed shapes, dithered silence instead of padding, labels per language."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from experiments.demo.sentences import LANGUAGES
from experiments.demo.synthesize import SAMPLE_RATE, Corpus

BLANK = 0
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "|")  # MMS's order; "<pad>" is the CTC blank, "|" the space
VARIANCE_EPS = 1e-7  # Wav2Vec2FeatureExtractor's
SNR_DB = (15.0, 60.0)
MARGIN = SAMPLE_RATE // 10  # samples of noise at least, around the speech of a row
LOOK_AHEAD = 8  # clips considered for a row
FRAMES_PER_SECOND = 49  # rounded down
MAX_LABELS = 72

T = TypeVar("T")


class Bucket(NamedTuple):
    """One fixed batch shape: clips of at most `seconds`, `rows` of them per slot."""

    seconds: float
    rows: int

    @property
    def num_samples(self) -> int:
        """Samples of a row."""
        return int(self.seconds * SAMPLE_RATE)


class Batch(NamedTuple):
    """Rows grouped by slot; a slot is one language (several slots may be the same one)."""

    input_values: np.ndarray  # float32 [G, B, S], normalised, every sample valid
    labels: np.ndarray  # int32 [G, B, MAX_LABELS]
    label_paddings: np.ndarray  # float32 [G, B, MAX_LABELS], 1 = padding (optax's polarity)


def vocabulary(code: str) -> dict[str, int]:
    """Token to id of one language, in MMS's layout; letters in alphabet order."""
    return {token: i for i, token in enumerate((*SPECIAL_TOKENS, *LANGUAGES[code].letters))}


def encode(text: str, *, vocab: Mapping[str, int]) -> list[int]:
    """Label ids of a text; raises KeyError for a character that the vocabulary lacks."""
    return [vocab["|" if character == " " else character] for character in text]


def normalize(audio: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the last axis, as every MMS checkpoint's feature extractor gives; float32."""
    audio = audio.astype(np.float32)
    mean = audio.mean(-1, keepdims=True)
    return (audio - mean) / np.sqrt(audio.var(-1, keepdims=True) + VARIANCE_EPS)


def place_in_noise(
    clips: Sequence[np.ndarray],
    *,
    num_samples: int,
    rng: np.random.Generator,
    snr_db: tuple[float, float] = SNR_DB,
) -> np.ndarray:
    """Clips one after another, at random distances, in `num_samples` of white noise, normalised: float32 [num_samples].

    Noise, not zeros: at initialisation zeros have no variance for the encoder's seven layer norms to divide by, and the
    gradient's norm overflows.
    """
    spare = num_samples - sum(map(len, clips))
    gaps = rng.multinomial(spare, rng.dirichlet(np.ones(len(clips) + 1)))
    level = max(float(np.sqrt(np.mean(np.square(clip.astype(np.float32))))) for clip in clips)
    audio = rng.standard_normal(num_samples, dtype=np.float32) * level * 10 ** (-rng.uniform(*snr_db) / 20)
    end = 0
    for gap, clip in zip(gaps, clips, strict=False):  # the last gap comes after the last clip
        start, end = end + gap, end + gap + len(clip)
        audio[start:end] += clip
    return normalize(audio)


def num_label_frames(text: str) -> int:
    """Frames that CTC needs for a text: one per character, and a blank between equal neighbours."""
    return len(text) + sum(a == b for a, b in itertools.pairwise(text))


def usable_clips(corpus: Corpus, *, bucket: Bucket) -> np.ndarray:
    """Indices of the clips that fit a row of the bucket and that CTC can align."""
    frames = corpus.num_samples / SAMPLE_RATE * FRAMES_PER_SECOND
    feasible = np.array([num_label_frames(text) for text in corpus.texts]) < frames
    return np.flatnonzero((corpus.num_samples <= bucket.num_samples - MARGIN) & feasible)


class Stream:
    """Endless rows of one bucket in one language: as many clips as fit each, all reshuffled every time round."""

    def __init__(self, corpus: Corpus, *, bucket: Bucket, code: str, rng: np.random.Generator):
        self.corpus, self.bucket, self.rng, self.vocab = corpus, bucket, rng, vocabulary(code)
        self.members = usable_clips(corpus, bucket=bucket)
        if self.members.size < LOOK_AHEAD:
            raise ValueError(f"{code}: only {self.members.size} clips fit {bucket.seconds} s; synthesise more")
        self.order: list[int] = []

    def next_row(self) -> list[int]:
        """Clips of one row: the next one, then those of the few after it that still fit (a fifth less is padding)."""
        if len(self.order) < LOOK_AHEAD:
            self.order = [*self.rng.permutation(self.members).tolist(), *self.order]
        row, room, num_labels = [], self.bucket.num_samples - MARGIN, 0
        for clip in self.order[: -LOOK_AHEAD - 1 : -1]:
            samples, labels = self.corpus.num_samples[clip] + MARGIN // 2, len(self.corpus.texts[clip]) + 1
            if not row or (samples <= room and num_labels + labels <= MAX_LABELS):
                row.append(clip)
                room, num_labels = room - samples, num_labels + labels
        taken = set(row)
        self.order[-LOOK_AHEAD:] = [clip for clip in self.order[-LOOK_AHEAD:] if clip not in taken]
        return row

    def rows(self) -> Batch:
        """The next `bucket.rows` rows, without the slot axis."""
        audio = np.empty((self.bucket.rows, self.bucket.num_samples), np.float32)
        labels = np.zeros((self.bucket.rows, MAX_LABELS), np.int32)
        paddings = np.ones((self.bucket.rows, MAX_LABELS), np.float32)
        for i in range(self.bucket.rows):
            row = self.next_row()
            clips = [self.corpus.clip(clip) for clip in row]
            ids = encode(" ".join(self.corpus.texts[clip] for clip in row), vocab=self.vocab)
            audio[i] = place_in_noise(clips, num_samples=self.bucket.num_samples, rng=self.rng)
            labels[i, : len(ids)], paddings[i, : len(ids)] = ids, 0
        return Batch(audio, labels, paddings)


def batches(
    corpora: Mapping[str, Corpus], *, slots: Sequence[str], warmup: Bucket, main: Bucket, warmup_steps: int, seed: int
) -> Iterator[Batch]:
    """Endless batches: of the short bucket for `warmup_steps`, then of the other one.

    Short clips first, because CTC on long ones stays at "all blank" for much longer.
    """
    rng = np.random.default_rng(seed)
    for bucket, steps in ((warmup, range(warmup_steps)), (main, itertools.count())):
        streams = {code: Stream(corpora[code], bucket=bucket, code=code, rng=rng) for code in dict.fromkeys(slots)}
        for _ in steps:
            rows = [streams[code].rows() for code in slots]
            yield Batch(*(np.stack(part) for part in zip(*rows, strict=True)))


def prefetch(iterator: Iterator[T], *, size: int = 4) -> Iterator[T]:
    """The same batches, made by a background thread; its error is raised here."""
    done: queue.Queue[T | Exception] = queue.Queue(maxsize=size)

    def work() -> None:
        try:
            for batch in iterator:
                done.put(batch)
        except Exception as error:  # handed over whole: the consumer raises it
            done.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        item = done.get()
        if isinstance(item, Exception):
            raise item
        yield item

"""Where an update's clips come from: a corpus that can be indexed, or a stream that is read as it goes."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mms_jax.errors import MMSError
from mms_jax.training.batches import Feed, Item
from mms_jax.training.data.clips import Clip, ClipRules, stream_clips
from mms_jax.training.data.corpus import Corpus
from mms_jax.training.data.report import Report
from mms_jax.training.data.rows import Row
from mms_jax.training.data.sampler import Sampler
from mms_jax.training.data.streams import RowStream

STEPS_HELD = 16  # of a stream, behind the newest: more than are prepared ahead of training


def corpus_items(corpus: Corpus, indices: Iterable[int]) -> list[Item]:
    """Clips of a corpus, to be decoded when they are due."""
    return [
        Item(
            int(corpus.num_samples[index]),
            corpus.labels[index],
            functools.partial(corpus.waveform, int(index)),
            corpus.names[index],
        )
        for index in indices
    ]


def clip_items(clips: Iterable[Clip]) -> list[Item]:
    """Clips that are decoded already."""
    return [Item(len(clip.waveform), clip.labels, functools.partial(_same, clip.waveform), clip.name) for clip in clips]


@dataclass(frozen=True)
class CorpusFeed:
    """Any step's clips, at any time: the position in the data is the step."""

    corpus: Corpus
    sampler: Sampler

    def take(self, step: int) -> Sequence[Item]:
        """The clips of an update."""
        return corpus_items(self.corpus, self.sampler.batch(step))

    def position(self, step: int) -> dict[str, int]:
        """What to save beside the step: nothing."""
        return {}


class AskedToEnd(Exception):  # noqa: N818 - no error
    """A stream was left in the middle, because the job was asked to end."""


class StreamFeed:
    """The next steps' clips, in the order of a shuffled stream that begins anew at its end.

    How many rows were read is known for every step, so training resumes with the very next row, as long as the data
    did not change. The rows of the shuffling buffer are read again then, not decoded. The report is of the first time
    through the stream: after that, every clip has been counted.
    """

    asked: Callable[[], bool] = staticmethod(lambda: False)  # whether to end, though much may be left to read

    def __init__(
        self,
        stream: RowStream,
        *,
        rules: ClipRules,
        report: Report,
        batch_size: int,
        buffer_size: int,
        seed: int,
        num_workers: int | None = None,
        start: dict[str, Any] | None = None,
        first_step: int = 0,
    ):
        self._stream = stream.watched(self._check)
        self._clips = functools.partial(stream_clips, rules=rules, num_workers=num_workers, source=stream.description)
        self._report = report
        self._batch_size = batch_size
        self._shuffle: dict[str, int] = {"buffer_size": buffer_size, "seed": seed}
        self._start = start or {"epoch": 0, "rows": 0, "clips": 0, "samples": 0, "dropped": {}}
        report.go_on(self._start["dropped"])
        self._next = first_step
        self._positions = {first_step: self._start}  # before a step
        self._held: dict[int, list[Item]] = {}
        self._failed: MMSError | None = None
        self._iterator = self._run()

    def take(self, step: int) -> Sequence[Item]:
        """The clips of an update: the next one, or one of the last few.

        Raises:
            DatasetError: the stream has no usable clip, or cannot be read. AskedToEnd: see ``asked``.
        """
        while self._next <= step:
            self._read()
        return self._held[step]

    def position(self, step: int) -> dict[str, Any]:
        """Where the stream is when ``step`` updates are done, how many clips and samples they had, and what of it was
        dropped, by reason, until then.
        """
        return self._positions[min(step, self._next)]  # where training stopped, nothing more is taken or read

    def _read(self) -> None:
        if self._failed is not None:
            raise self._failed
        try:
            read = [next(self._iterator) for _ in range(self._batch_size)]
        except MMSError as error:
            self._failed = error
            raise
        self._held[self._next] = clip_items(clip for clip, _ in read)
        self._next += 1
        self._positions[self._next] = read[-1][1]
        for old in [step for step in self._held if step < self._next - STEPS_HELD]:
            del self._held[old], self._positions[old]

    def _check(self) -> None:
        if self.asked():
            raise AskedToEnd

    def _run(self) -> Iterator[tuple[Clip, dict[str, Any]]]:
        """Clips without end, and the position behind each."""
        epoch, skipped, clips, samples = (self._start[name] for name in ("epoch", "rows", "clips", "samples"))
        while True:
            places: deque[tuple[str, int]] = deque()
            rows = self._stream.shuffled(**self._shuffle, epoch=epoch).skip(skipped)
            report = Report(f"{self._report.title}, pass {epoch + 1}") if epoch else self._report
            for clip in self._clips(_numbered(rows, places, skipped), report=report, is_whole=skipped == 0):
                clips, samples = clips + 1, samples + len(clip.waveform)
                rows_read, dropped = _place_of(clip, places) + 1, self._report.num_dropped_by_reason
                counts = {"clips": clips, "samples": samples, "dropped": dropped}
                yield clip, {"epoch": epoch, "rows": rows_read, **counts}
            epoch, skipped = epoch + 1, 0


def take_all(feeds: Sequence[Feed | None], *, step: int) -> tuple[list[Sequence[Item]], dict[int, MMSError]]:
    """The clips of an update from each feed (None: no clips), and the error of those that have none to give."""
    items: list[Sequence[Item]] = [[] for _ in feeds]
    failed: dict[int, MMSError] = {}
    for place, feed in enumerate(feeds):
        try:
            items[place] = [] if feed is None else feed.take(step)
        except MMSError as error:  # of that language alone
            failed[place] = error
    return items, failed


def _numbered(rows: Iterable[Row], places: deque[tuple[str, int]], first: int) -> Iterator[Row]:
    """The rows, whose names and numbers are noted on the way."""
    for number, row in enumerate(rows, first):
        places.append((row.name, number))
        yield row


def _place_of(clip: Clip, places: deque[tuple[str, int]]) -> int:
    """The number of a clip's row: clips come in the order of rows, of which some were dropped between them."""
    while True:
        name, number = places.popleft()
        if name == clip.name:
            return number


def _same(value: Any) -> Any:
    return value

"""Recordings that the model has heard into transcriptions: by its best tokens, or by a beam search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mms_jax.errors import MMSError
from mms_jax.pipelines.decoding.decoding import Decoding
from mms_jax.pipelines.decoding.request import Request
from mms_jax.pipelines.recognition import Detail
from mms_jax.pipelines.recordings import Recording
from mms_jax.pipelines.transcription import Times, Transcription, timed

MAX_WAITING = 32  # recordings that are searched while others are heard: 30 s of 100 tokens are 0.6 MB


class Finisher(Protocol):
    """Makes transcriptions."""

    @property
    def timestamps(self) -> str | None:
        """Whether there are to be times."""
        ...

    @property
    def detail(self) -> Detail:
        """What it needs of what was heard."""
        ...

    def __call__(self, recording: Recording) -> Callable[[], Transcription]:
        """Start on a complete recording without an error, not all silence; the result waits for it."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The best token of every frame."""

    timestamps: str | None
    seconds_per_frame: float

    @property
    def detail(self) -> Detail:
        """Frames where there are to be times."""
        return "tokens" if self.timestamps is None else "frames"

    def __call__(self, recording: Recording) -> Callable[[], Transcription]:
        """Nothing is left to wait for."""
        vocabulary = recording.vocabulary
        assert vocabulary is not None  # it is not all silence
        result = unfinished(recording)
        if self.timestamps is None:
            text, times = vocabulary.decode(recording.tokens(), group_tokens=False), None
        else:
            ids = recording.ids(blank_id=vocabulary.blank_id)
            text, times = timed(ids, recording.scores(), vocabulary, seconds_per_frame=self.seconds_per_frame)
        return lambda: replace(result, transcript=text, times=times)


@dataclass(frozen=True)
class BeamSearch:
    """The best of many hypotheses."""

    decoding: Decoding
    request: Request
    timestamps: str | None
    seconds_per_frame: float
    detail: Detail = "logits"

    def __call__(self, recording: Recording) -> Callable[[], Transcription]:
        """The search goes on in other processes."""
        vocabulary = recording.vocabulary
        assert vocabulary is not None  # it is not all silence
        result = unfinished(recording)
        try:
            plan = self.decoding.plan(recording.tag)
        except MMSError as error:  # of a language that was identified
            failed = replace(result, error=error)
            return lambda: failed
        logits = recording.logits(vocab_size=len(plan.tokens), blank_id=vocabulary.blank_id)
        search = self.decoding.search(recording.tag, logits, self.request)

        def wait() -> Transcription:
            reading = search.wait()
            times = None
            if self.timestamps is not None:
                hop = self.seconds_per_frame
                _, times = timed(*reading.frames(), vocabulary, seconds_per_frame=hop, written=reading.words)
            text = reading.alternatives[0].text
            return replace(result, transcript=text, times=times, alternatives=reading.alternatives)

        return wait


def unfinished(recording: Recording) -> Transcription:
    """What is known without looking at what was heard."""
    return Transcription(
        recording.tag,
        recording.duration,
        error=recording.error,
        language_probability=recording.probability,
        language_ranking=recording.ranking,
    )


def finished(complete: Iterable[int], recordings: Sequence[Recording], finisher: Finisher) -> list[Transcription]:
    """The transcriptions of all recordings, in order, started on as they are complete.

    Args:
        complete: the index of each that is, failed ones left out or not.
        recordings: all of them.
        finisher: how.
    """
    results: dict[int, Transcription] = {}
    waiting: dict[int, Callable[[], Transcription]] = {}
    for index in complete:
        recording = recordings[index]
        if recording.error is None and recording.vocabulary is not None:
            waiting[index] = finisher(recording)
        recording.parts = []
        while len(waiting) > MAX_WAITING:
            first = next(iter(waiting))
            results[first] = waiting.pop(first)()
    results |= {index: wait() for index, wait in waiting.items()}
    timestamps = finisher.timestamps is not None
    return [
        results[index] if index in results else _without_speech(recording, timestamps=timestamps)
        for index, recording in enumerate(recordings)
    ]


def _without_speech(recording: Recording, *, timestamps: bool) -> Transcription:
    """That of a recording that failed, or is nothing but silence."""
    result = unfinished(recording)
    if recording.error is not None:
        return result
    return replace(result, transcript="", times=Times((), ()) if timestamps else None)

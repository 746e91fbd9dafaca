"""What is kept of a data set and what is not, and why: printed before step 0."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mms_jax.training.data.transcripts import show_characters

__all__ = ["REASONS", "Drops", "Report", "UnusableError"]

CAUSES_SHOWN = 3
NAMES_KEPT = 100  # of a reason: a stream may have millions of such clips
CAUSE_CHARS = 200

REASONS = {  # why a clip is dropped: what can be done about it
    "no text": "the column holds something else; see --text_column_name",
    "empty text": "nothing is said there, or nothing but --chars_to_ignore",
    "unknown length": "the column must hold numbers of samples at 16 kHz; see --length_column_name",
    "undecodable": "mend or convert these files; the others are used",
    "too long": "--max_duration_in_seconds keeps longer clips, at the cost of memory; better, cut them",
    "too short": "--min_duration_in_seconds, where it is over one frame, keeps shorter clips",
    "infeasible": "more is written than can be said in that time: text and audio may not belong together",
}


class UnusableError(Exception):
    """A clip that is dropped: one of ``REASONS``, and in which way. It never leaves this package."""

    def __init__(self, reason: str, cause: str):
        super().__init__(reason, cause)
        self.reason = reason
        self.cause = cause if len(cause) <= CAUSE_CHARS else cause[:CAUSE_CHARS] + " …"


@dataclass
class Drops:
    """Clips dropped for one reason: ``len`` says how many, ``names`` and ``causes`` tell of the first ones only."""

    count: int = 0
    names: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count


@dataclass
class Report:
    """Counts of clips kept and dropped, by reason; ``str`` of it is what a user reads.

    ``unknown`` counts characters that the vocabulary has not.
    """

    title: str = "data"
    clips: int = 0
    seconds: float = 0.0
    shortest: float = math.inf
    longest: float = 0.0
    dropped: dict[str, Drops] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    unknown_become: str | None = None

    @property
    def hours(self) -> float:
        """Of audio kept."""
        return self.seconds / 3600

    @property
    def num_dropped(self) -> int:
        """Clips dropped, for whatever reason."""
        return sum(map(len, self.dropped.values()))

    def keep(self, seconds: float) -> None:
        """Count a clip that is kept."""
        self.clips += 1
        self.seconds += seconds
        self.shortest, self.longest = min(self.shortest, seconds), max(self.longest, seconds)

    def drop(self, name: str, why: UnusableError) -> None:
        """Count a clip that is dropped."""
        drops = self.dropped.setdefault(why.reason, Drops())
        drops.count += 1
        if len(drops.names) < NAMES_KEPT:
            drops.names.append(name)
        if len(drops.causes) < CAUSES_SHOWN:
            # the messages of audio begin with the file
            drops.causes.append(why.cause if name in why.cause else f"{name}: {why.cause}")

    @property
    def num_dropped_by_reason(self) -> dict[str, int]:
        """Clips dropped, by reason."""
        return {reason: len(drops) for reason, drops in self.dropped.items()}

    def go_on(self, dropped: Mapping[str, int]) -> None:
        """Go on from the numbers of clips that another report had dropped."""
        self.dropped = {reason: Drops(count) for reason, count in dropped.items()}

    def to_dict(self) -> dict[str, Any]:
        """The counts, ready for JSON."""
        counts = {"clips": self.clips, "hours": self.hours, "dropped": self.num_dropped_by_reason}
        return counts | {"unknown_characters": dict(self.unknown)}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        total = self.clips + self.num_dropped
        yield f"{self.title}: {self.clips:,} of {total:,} clips, {self._duration()}"
        for reason, drops in sorted(self.dropped.items(), key=lambda item: -len(item[1])):
            yield f"  {len(drops):>8,}  {reason}: {REASONS[reason]}"
            yield from (f"{'':12}{cause}" for cause in drops.causes)
            if len(drops) > len(drops.causes):
                yield f"{'':12}and {len(drops) - len(drops.causes):,} more"
        if self.unknown:
            become = f" (become {self.unknown_become})" if self.unknown_become else ""
            yield f"  characters outside the vocabulary{become}: {show_characters(self.unknown)}"

    def _duration(self) -> str:
        if not self.clips:
            return "0 h"
        mean = self.seconds / self.clips
        size = f"{self.hours:,.2f} h" if self.hours >= 0.1 else f"{self.seconds:,.1f} s"
        return f"{size} (a clip: {self.shortest:.1f} to {self.longest:.1f} s, {mean:.1f} s on average)"

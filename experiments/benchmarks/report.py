"""What benchmarks print and keep: rows of one shape, as text, as JSON, and as Markdown from that.

python -m experiments.benchmarks table RESULTS.json…
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks.device import PAUSE, measure

OURS = "mms_jax"


class DifferenceError(Exception):
    """Results are not equal, so that no timing is worth anything; the message names whose, and by how much."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work: checked and ready to be timed."""

    library: str
    setting: str  # beside the dtype, what makes it what it is; "" for a library as its users run it
    dtype: str  # of matrix products: which limit it is held against
    run: Callable[[], Any]
    difference: float  # to the first contender's results, as the benchmark measures it
    first: float = 0.0  # seconds of the first call, compilation included

    @property
    def name(self) -> str:
        """As tables say."""
        return f"{self.library} {self.setting}".strip()


@dataclass(frozen=True)
class Row:
    """What was found out about a contender; times are seconds."""

    work: str  # what all rows of a group do
    name: str
    dtype: str
    median: float
    quartiles: tuple[float, float]
    ratio: float  # of the first contender's median to this one's: > 1 is faster
    realtime: float  # seconds of audio per second
    share: float  # of the device's limit in this dtype
    first: float
    difference: float
    times: list[float]


@dataclass
class Report:
    """A run: printed line by line, and kept whole."""

    what: str
    environment: dict[str, Any]
    limits: dict[str, float]  # FLOP/s
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Print what all figures depend on."""
        about = self.environment
        print(f"{about['device']}, {about['threads']} threads, load {about['load']}, {about['date']}")
        print(", ".join(f"{name} {version}" for name, version in about["versions"].items()))
        speeds = ", ".join(f"{dtype} {value / 1e12:.2f}" for dtype, value in self.limits.items())
        print(f"limits, TFLOP/s of a large matrix product: {speeds}")
        print(HEADER)

    def note(self, text: str) -> None:
        """Say what is left out, and why."""
        if text not in self.notes:
            self.notes.append(text)
            print(f"  note: {text}", flush=True)

    def time(
        self, work: str, contenders: Sequence[Contender], *, rounds: int, audio_seconds: float, gflops: float
    ) -> list[Row]:
        """Time contenders in turn, print and keep a row for each; ratios are to the first. ``gflops``: of the work."""
        # A GPU is nobody else's meanwhile, and slows its clocks down where it waits.
        pause = PAUSE if self.environment["kind"] == "cpu" else 0.0
        times = measure([one.run for one in contenders], rounds, pause=pause)
        base = statistics.median(times[0])
        rows = []
        for one, own in zip(contenders, times, strict=True):
            median = statistics.median(own)
            share = gflops * 1e9 / median / self.limits[one.dtype]
            rows.append(
                Row(
                    work,
                    one.name,
                    one.dtype,
                    median,
                    quartiles(own),
                    base / median,
                    audio_seconds / median,
                    share,
                    one.first,
                    one.difference,
                    own,
                )
            )
            print(line(rows[-1]), flush=True)
        self.rows += rows
        return rows

    def save(self, path: Path | None) -> None:
        """Write the JSON file, if there is to be one."""
        if path:
            path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of a single time, that."""
    if len(times) < 2:
        return times[0], times[0]
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return first, third


HEADER = (
    f"{'work':<14} {'contender':<38} {'dtype':<9} {'median':>9} {'quartiles':>15} {'ratio':>6} {'x real':>7} "
    f"{'limit':>6} {'first':>7} {'max |Δ|':>8}"
)


def line(row: Row) -> str:
    """A row of the table for a terminal."""
    low, high = row.quartiles
    return (
        f"{row.work:<14} {row.name:<38} {row.dtype:<9} {row.median:>8.3f}s {low:>7.3f}-{high:<7.3f} {row.ratio:>6.2f} "
        f"{row.realtime:>7.2f} {row.share:>6.1%} {row.first:>6.1f}s {row.difference:>8.1e}"
    )


def load(paths: Iterable[Path]) -> list[Report]:
    """Reports from their JSON files."""
    reports = []
    for path in paths:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in values.pop("rows")]
        reports.append(Report(**values, rows=rows))
    return reports


def markdown(report: Report) -> Iterator[str]:
    """The lines of a table for a README, and what it depends on."""
    about = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    speeds = ", ".join(f"{dtype} {value / 1e12:.2f}" for dtype, value in report.limits.items())
    yield "| | dtype | median | quartiles | ratio | × real time | of the limit |"
    yield "|---|---|---|---|---|---|---|"
    for row in report.rows:
        low, high = row.quartiles
        ratio = f"**{row.ratio:.2f}**" if row.name.startswith(OURS) else f"{row.ratio:.2f}"
        yield (
            f"| {row.work}: {row.name} | {row.dtype} | {row.median:.3g} s | {low:.3g} to {high:.3g} s | {ratio} "
            f"| {row.realtime:.3g} | {row.share:.0%} |"
        )
    yield ""
    yield f"{about['device']}, {about['threads']} threads; {versions}; {about['date'][:10]}."
    yield f"Limits, TFLOP/s of a large matrix product in the same run: {speeds}."
    yield from (f"Left out: {note}." for note in report.notes)
    yield f"```\n{about['command']}\n```"


def main() -> None:
    """Print Markdown tables of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    for report in load(parser.parse_args().results):
        print("\n".join(markdown(report)) + "\n")


if __name__ == "__main__":
    main()

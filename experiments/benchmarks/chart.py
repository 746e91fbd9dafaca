"""Bars of how fast everybody is, from the JSON files of `asr` and `tts`, at the width of a README.

    python -m experiments.benchmarks chart asr.json tts.json --output speed.png
    python -m experiments.benchmarks chart asr.json tts.json --work "1 x 10 s" "16 x 4.9 s" --output speed.png

A panel for each file; of several kinds of work the first, unless --work names others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.benchmarks.report import OURS, Report, Row, load

TITLES = {"asr": "Speech recognition", "tts": "Speech synthesis", "mixed": "Sixteen languages"}
COLORS = {True: "#1f6feb", False: "#afb8c1"}  # ours, theirs
FAINT = "#57606a"
WIDTH, BAR, DPI = 9.0, 0.32, 150  # inches, inches a bar, dots an inch: 1350 wide, twice what a README shows
BESIDE_BARS = 0.85  # inches of a panel for its title and what is below


def main() -> None:
    """Draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--work", nargs="+", help="one for each file, as its table says; default: its first")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    reports = load(options.results)
    works = options.work or [report.rows[0].work for report in reports]
    if len(works) != len(reports):
        sys.exit(f"--work: {len(works)} for {len(reports)} file(s); give one for each")
    draw([(report, bars(report, work)) for report, work in zip(reports, works, strict=True)], options.output)


def bars(report: Report, work: str) -> list[Row]:
    """The rows of one kind of work, the slowest first; whoever was timed in two groups once."""
    found: dict[tuple[str, str], Row] = {}
    for row in report.rows:
        if row.work == work:
            found.setdefault((row.name, row.dtype), row)
    if not found:
        sys.exit(f"no {work!r} among the results of {report.what}: {sorted({row.work for row in report.rows})}")
    return sorted(found.values(), key=lambda row: row.realtime)


def draw(panels: Sequence[tuple[Report, list[Row]]], path: Path) -> None:
    """Write the picture."""
    heights = [BAR * len(rows) + BESIDE_BARS for _, rows in panels]
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08)
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(WIDTH, sum(heights)), squeeze=False, height_ratios=heights, layout=layout
        )
        for axis, (report, rows) in zip(axes[:, 0], panels, strict=True):
            panel(axis, report, rows)
        figure.savefig(path, dpi=DPI, facecolor="white")
        plt.close(figure)


def panel(axis: Axes, report: Report, rows: Sequence[Row]) -> None:
    """One file's bars, each with its figures."""
    speeds = [row.realtime for row in rows]
    mine = [row.name.startswith(OURS) for row in rows]
    drawn = axis.barh(range(len(rows)), speeds, color=[COLORS[own] for own in mine], height=0.72)
    labels = [f"{row.realtime:.3g}×  ({row.ratio:.2f})" for row in rows]
    for text, own in zip(axis.bar_label(drawn, labels, padding=4), mine, strict=True):
        text.set_fontweight("bold" if own else "normal")
    axis.set_yticks(range(len(rows)), [f"{row.name}, {row.dtype}" for row in rows])
    for tick, own in zip(axis.get_yticklabels(), mine, strict=True):
        tick.set_fontweight("bold" if own else "normal")
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, max(speeds) * 1.22)
    axis.set_xticks([])  # the bars say it
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.set_xlabel("× real time; in brackets, speed relative to transformers in float32", color=FAINT, loc="left")
    about = report.environment
    threads = "" if about["kind"] == "gpu" else f", {about['threads']} threads"
    title = f"{TITLES.get(report.what, report.what)}, {rows[0].work}"
    axis.set_title(f"{title} – {about['device'].split(' avx')[0]}{threads}", loc="left", fontweight="bold", fontsize=11)


if __name__ == "__main__":
    main()

"""The training curve: loss and error rates over the steps, drawn from metrics.jsonl."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from mms_jax.files import atomic_write
from mms_jax.training.files.logs import CURVE, read_metrics

_MAX_COLOURS = 8  # languages that can be told apart; of more, the worst few are coloured and the others grey
_NUM_WORST = 5
_MAX_MARKERS = 30  # points of a line; with more, marks hide it
_LOG_SPAN = 10  # a loss that falls by more than this is drawn on a logarithmic axis
_NAME_CHARS = 24
# Okabe and Ito's palette, which colour-blind readers can tell apart, less black, which is the training loss
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C5A2B", "#7F7F7F")
_GREY = "#BDBDBD"
_MEDIAN = "#404040"
_GRID = "#E5E5E5"
_PANEL_INCHES = (9.0, 2.9)
_DPI = 120


class Curve(NamedTuple):
    """One line: values over steps, NaN where there was none."""

    steps: list[int]
    values: list[float]


class _Panel(NamedTuple):
    label: str
    scale: float  # of the values in the log
    training: Curve  # of all languages; empty where training knows no such value
    evaluations: Mapping[str, Curve]  # of each language


def draw_curve(metrics: str | os.PathLike[str], *, picture: str | os.PathLike[str] | None = None) -> Path | None:
    """Draw the loss of training and evaluation, WER and CER over the steps, as a PNG.

    Up to eight languages have a colour each; of more, the five with the worst CER do, the others are grey, and a thick
    line is the median of all. Whole or not at all: a picture is replaced once the new one is written.

    Args:
        metrics: the metrics.jsonl of ``RunLog``; damaged lines, such as one just being written, are left out.
        picture: where to; None: training_curve.png beside it.

    Returns:
        The picture's path, or None where the log holds nothing to draw yet.

    Raises:
        OSError: ``metrics`` cannot be read or ``picture`` not be written; ``filename`` says which.
    """
    records, _ = read_metrics(metrics)
    panels = [panel for panel in _panels(records) if panel.training.steps or panel.evaluations]
    if not panels:
        return None
    path = Path(metrics).with_name(CURVE) if picture is None else Path(picture)
    with _quiet(), atomic_write(path) as file:
        _render(panels, file)
    return path


def _panels(records: Sequence[Mapping[str, Any]]) -> list[_Panel]:
    evaluations = {key: _by_language(records, key) for key in ("loss", "wer", "cer")}
    train = [record for record in records if record.get("type") == "train" and "loss" in record]
    return [
        _Panel("CTC loss (nats)", 1, _curve(train, "loss"), evaluations["loss"]),
        _Panel("Word error rate (%)", 100, Curve([], []), evaluations["wer"]),
        _Panel("Character error rate (%)", 100, Curve([], []), evaluations["cer"]),
    ]


def _by_language(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, Curve]:
    of_language: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record.get("type") == "eval":
            of_language.setdefault(str(record.get("language")), []).append(record)
    return {language: _curve(found, key) for language, found in of_language.items()}


def _curve(records: Sequence[Mapping[str, Any]], key: str) -> Curve:
    values = [record.get(key) for record in records]
    numbers = [float(value) if isinstance(value, (int, float)) else math.nan for value in values]
    return Curve([record["step"] for record in records], numbers)


def _render(panels: Sequence[_Panel], file: IO[bytes]) -> None:
    """Draw without pyplot, whose state is the user's, and without the user's style: it may need LaTeX or lack fonts."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        width, height = _PANEL_INCHES
        figure = Figure(figsize=(width, height * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        colours = _colours(panels[-1].evaluations)
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel, colours)
        axes[-1].set_xlabel("Step (updates of the weights)")
        axes[-1].set_xlim(left=0)
        FigureCanvasAgg(figure).print_figure(file, format="png", dpi=_DPI)


def _colours(evaluations: Mapping[str, Curve]) -> dict[str, str]:
    """The colour of each language that has one: all if they are few, or else those with the worst last value."""
    worst = sorted(evaluations, key=lambda language: _last(evaluations[language]), reverse=True)
    chosen = list(evaluations) if len(evaluations) <= _MAX_COLOURS else worst[:_NUM_WORST]
    return dict(zip(chosen, _COLOURS, strict=False))  # not strict: few languages leave colours over


def _last(curve: Curve) -> float:
    """The last value that is a number; infinity if there is none, which is as bad as can be."""
    return next((value for value in reversed(curve.values) if not math.isnan(value)), math.inf)


def _draw(axis: Any, panel: _Panel, colours: Mapping[str, str]) -> None:
    others = [curve for language, curve in panel.evaluations.items() if language not in colours]
    for curve in others:
        _line(axis, curve, panel.scale, color=_GREY, linewidth=0.8, marks=False)
    lines = []
    if panel.training.steps:
        lines.append(
            (_line(axis, panel.training, panel.scale, color="black", linewidth=1.2), "training", panel.training)
        )
    for language in (language for language in colours if language in panel.evaluations):
        curve = panel.evaluations[language]
        name = f"{_short(language)}, evaluation" if panel.training.steps else _short(language)
        lines.append((_line(axis, curve, panel.scale, color=colours[language], linewidth=1.6), name, curve))
    if others:
        median = _median(list(panel.evaluations.values()))
        line = _line(axis, median, panel.scale, color=_MEDIAN, linewidth=3, marks=False)
        lines.append((line, f"median of {len(panel.evaluations)}", median))
    _scale(axis, panel)
    axis.set_ylabel(panel.label)
    axis.grid(visible=True, color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    _legend(axis, panel, lines)


def _legend(axis: Any, panel: _Panel, lines: Sequence[tuple[Any, str, Curve]]) -> None:
    """Beside the axes, each line with its last value."""
    labels = [f"{name}  {_shown(_last(curve), panel.scale)}" for _, name, curve in lines]
    legend = axis.legend(
        [line for line, _, _ in lines],
        labels,
        title="last value" if len(panel.evaluations) <= _MAX_COLOURS else f"last value, worst {_NUM_WORST}",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.03),
        frameon=False,
        alignment="left",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a name is one


def _line(axis: Any, curve: Curve, scale: float, *, color: str, linewidth: float, marks: bool = True) -> Any:
    marker = "o" if (marks and len(curve.steps) <= _MAX_MARKERS) or len(curve.steps) == 1 else None
    values = [value * scale for value in curve.values]
    return axis.plot(curve.steps, values, color=color, linewidth=linewidth, marker=marker, markersize=3.5)[0]


def _median(curves: Sequence[Curve]) -> Curve:
    """Of the curves that have a value at a step, at each step that any has."""
    at_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            at_step.setdefault(step, []).extend([] if math.isnan(value) else [value])
    steps = sorted(at_step)
    return Curve(steps, [_middle(sorted(at_step[step])) for step in steps])


def _middle(values: Sequence[float]) -> float:
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2 if values else math.nan


def _scale(axis: Any, panel: _Panel) -> None:
    """Error rates from 0 on; a loss likewise, or on a logarithmic axis where it falls far."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    curves = [panel.training, *panel.evaluations.values()]
    values = [value for curve in curves for value in curve.values if not math.isnan(value)]
    if panel.scale != 1 or not values or min(values) <= 0 or max(values) <= _LOG_SPAN * min(values):
        axis.set_ylim(bottom=0)
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else f"{name[: _NAME_CHARS - 1]}…"


def _shown(value: float, scale: float) -> str:
    return f"{value * scale:.3g}{'' if scale == 1 else ' %'}" if math.isfinite(value) else "no value"


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of matplotlib's on stderr: that it makes its font cache, or lacks a glyph for some language's name."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

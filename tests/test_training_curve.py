"""The training curve: what it shows of a log, for any number of languages, and that drawing leaves nothing behind."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mms_jax.training.files.curve import draw_curve

PNG = b"\x89PNG\r\n\x1a\n"
STEPS = range(10, 101, 10)
# What must not be imported or shown by drawing, with a configuration folder that matplotlib cannot use
PROBE = """
import sys
from pathlib import Path
from mms_jax.training.files.curve import draw_curve
assert draw_curve(sys.argv[1]) == Path(sys.argv[1]).with_name("training_curve.png")
needless = {"matplotlib.pyplot", "tensorboardX", "torch"} & set(sys.modules)
sys.exit(f"imported: {needless}" if needless else 0)
"""


def train(step: int, loss: float | None) -> dict:
    return {"type": "train", "step": step, "loss": loss}


def evaluation(
    step: int, language: str, *, loss: float = 1.0, wer: float | None = 0.5, cer: float | None = 0.25
) -> dict:
    return {"type": "eval", "step": step, "language": language, "loss": loss, "wer": wer, "cer": cer}


def log_of(folder: Path, records: list[dict]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def many_languages(count: int) -> list[dict]:
    """Languages l0, l1 … whose error rates grow with their number."""
    rates = {f"l{number}": 0.1 + 0.01 * number for number in range(count)}
    return [train(step, 5 / step) for step in STEPS] + [
        evaluation(step, language, loss=rate, wer=2 * rate, cer=rate)
        for step in STEPS
        for language, rate in rates.items()
    ]


@pytest.fixture
def axes_of(tmp_path, monkeypatch):
    """Draws records and returns the axes of the figure that was saved."""
    figures = []
    save = FigureCanvasAgg.print_figure

    def spy(canvas, *arguments, **settings):
        figures.append(canvas.figure)
        return save(canvas, *arguments, **settings)

    monkeypatch.setattr(FigureCanvasAgg, "print_figure", spy)

    def draw(records: list[dict]):
        path = draw_curve(log_of(tmp_path, records))
        assert path is not None
        assert path.read_bytes().startswith(PNG)
        return figures[-1].axes

    return draw


def legend(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_there_is_a_panel_for_the_loss_and_for_each_error_rate(axes_of):
    axes = axes_of(many_languages(1))
    labels = [axis.get_ylabel() for axis in axes]
    assert labels == ["CTC loss (nats)", "Word error rate (%)", "Character error rate (%)"]
    assert axes[-1].get_xlabel() == "Step (updates of the weights)"
    assert [legend(axis) for axis in axes] == [["training  0.05", "l0, evaluation  0.1"], ["l0  20 %"], ["l0  10 %"]]
    training, evaluated = axes[0].get_lines()
    assert list(training.get_xdata()) == list(STEPS)
    assert list(training.get_ydata()) == [5 / step for step in STEPS]
    assert list(evaluated.get_ydata()) == [0.1] * len(STEPS)
    assert list(axes[1].get_lines()[0].get_ydata()) == [20.0] * len(STEPS)


def test_a_few_languages_have_a_colour_each(axes_of):
    for axis in axes_of(many_languages(8))[1:]:
        assert len({line.get_color() for line in axis.get_lines()}) == len(axis.get_lines()) == 8
        assert [label.split()[0] for label in legend(axis)] == [f"l{number}" for number in range(8)]


def test_of_many_languages_the_worst_are_named_beside_the_median(axes_of):
    axes = axes_of(many_languages(30))
    assert legend(axes[2]) == ["l29  39 %", "l28  38 %", "l27  37 %", "l26  36 %", "l25  35 %", "median of 30  24.5 %"]
    assert len(axes[2].get_lines()) == 31
    assert len({line.get_color() for line in axes[2].get_lines()}) == 7


def test_a_language_without_a_number_is_among_the_worst_and_out_of_the_median(axes_of):
    axes = axes_of([*many_languages(9), *(evaluation(step, "nan", cer=None) for step in STEPS)])
    assert legend(axes[2])[0] == "nan  no value"
    assert legend(axes[2])[-1] == "median of 10  14 %"


@pytest.mark.parametrize(
    ("losses", "scale"), [([5.0, 0.4], "log"), ([5.0, 0.6], "linear"), ([5.0, 0.0], "linear"), ([5.0, None], "linear")]
)
def test_a_loss_that_falls_far_is_on_a_logarithmic_axis(axes_of, losses, scale):
    [axis] = axes_of([train(step, loss) for step, loss in enumerate(losses, 1)])
    assert axis.get_yscale() == scale
    if scale == "linear":
        assert axis.get_ylim()[0] == 0


def test_error_rates_stay_on_a_linear_axis_from_zero(axes_of):
    axes = axes_of([evaluation(1, "a", wer=2.0, cer=1.0), evaluation(2, "a", wer=0.01, cer=0.01)])
    assert [(axis.get_yscale(), axis.get_ylim()[0]) for axis in axes[1:]] == [("linear", 0)] * 2


def test_a_missing_number_is_a_gap(axes_of):
    [axis] = axes_of([train(1, 2.0), train(2, None), train(3, 1.0)])
    values = list(axis.get_lines()[0].get_ydata())
    assert (values[0], values[2]) == (2.0, 1.0)
    assert math.isnan(values[1])


@pytest.mark.parametrize("count", [1, 9])
def test_a_single_point_is_marked(axes_of, count):
    for axis in axes_of([train(1, 2.0), *(evaluation(1, f"l{number}") for number in range(count))]):
        assert all(line.get_marker() == "o" for line in axis.get_lines())


def test_all_panels_have_the_same_steps(axes_of):
    axes = axes_of([*(train(step, 1.0) for step in range(1, 1001)), evaluation(500, "tur"), evaluation(600, "tur")])
    assert [axis.get_xlim()[0] for axis in axes] == [0] * 3
    assert len({axis.get_xlim()[1] for axis in axes}) == 1
    assert axes[2].get_xlim()[1] >= 1000


@pytest.mark.parametrize("name", ["$x_{$", "$", "_hidden", "猫語", "a" * 5000, "tab\there", ""])
def test_any_name_of_a_language_can_be_drawn(axes_of, name):
    for axis in axes_of([evaluation(step, language) for step in (1, 2) for language in (name, "tur")]):
        assert len(axis.get_lines()) == len(legend(axis)) == 2
        assert max(len(label) for label in legend(axis)) < 40  # a long name leaves room for the lines


def test_nothing_is_drawn_of_a_log_with_nothing_to_draw(tmp_path):
    metrics = log_of(tmp_path, [{"type": "event", "step": 0, "message": "8 clips"}])
    assert draw_curve(metrics) is None
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_line_just_being_written_is_left_out(tmp_path):
    metrics = log_of(tmp_path, many_languages(1))
    metrics.write_bytes(metrics.read_bytes()[:-20])
    assert draw_curve(metrics) == tmp_path / "training_curve.png"


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        draw_curve(tmp_path / "none.jsonl")
    metrics = log_of(tmp_path, many_languages(1))
    with pytest.raises(FileNotFoundError, match=r"no-folder/curve\.png") as caught:
        draw_curve(metrics, picture=tmp_path / "no-folder" / "curve.png")
    assert caught.value.filename == str(tmp_path / "no-folder" / "curve.png")


def test_an_earlier_picture_outlives_a_failure(tmp_path, monkeypatch):
    metrics, picture = log_of(tmp_path, many_languages(1)), tmp_path / "training_curve.png"
    picture.write_bytes(b"earlier")

    def full(canvas, file, **_):
        file.write(PNG)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FigureCanvasAgg, "print_figure", full)
    with pytest.raises(OSError, match="No space left") as caught:
        draw_curve(metrics)
    assert caught.value.filename == str(picture)
    assert picture.read_bytes() == b"earlier"
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "training_curve.png"]


def test_the_users_style_is_neither_used_nor_changed(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)  # needs LaTeX
    before = dict(matplotlib.rcParams)
    assert draw_curve(log_of(tmp_path, many_languages(2))) is not None
    assert dict(matplotlib.rcParams) == before


def test_drawing_is_silent_and_needs_neither_pyplot_nor_torch(tmp_path):
    metrics = log_of(tmp_path, many_languages(2))
    (tmp_path / "file").write_bytes(b"")
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, metrics],
        env=os.environ | {"MPLCONFIGDIR": str(tmp_path / "file")},  # no folder: a temporary one, its font cache empty
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")

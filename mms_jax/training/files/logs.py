"""What a run says while it goes on: progress on stderr, metrics.jsonl, and event files for TensorBoard under runs/."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from mms_jax.errors import TrainingError
from mms_jax.files import atomic_write
from mms_jax.training.files.append import AppendedFile, EventFile
from mms_jax.training.metrics import EvalResult

METRICS = "metrics.jsonl"
CURVE = "training_curve.png"  # of a run; drawn of its metrics, and kept with them
RUNS = "runs"
_SAMPLE_CHARS_SHOWN = 100
_SCALARS_OF_EVALUATION = ("loss", "wer", "cer", "blank_ratio")


class RunLog:
    """The log of one run, in its output directory and on stderr.

    metrics.jsonl has one JSON object a line with "type" and "step": "train" with what ``step`` was given, "eval" with
    "language" and the fields of ``EvalResult``, "event" with "message". A number that is NaN or infinite is null.

    A run that starts at step 0 where another one has left its log keeps that as metrics-1.jsonl, metrics-2.jsonl …, its
    training_curve.png as training_curve-1.png …, and its own event files go into runs/2, runs/3 …, so that nobody's
    curves get mixed up. A resumed run goes on with the files it finds, less what lies beyond the step it resumes from.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        total_steps: int,
        languages: Sequence[str],
        progress: bool | None = None,
        resume_step: int = 0,
        resume_run: int | None = None,
        resume_due: Collection[str] = (),
        write: bool = True,
    ) -> None:
        """Open the log.

        Args:
            output_dir: made if it is not there.
            total_steps: of the whole run, those before ``resume_step`` included.
            languages: names that evaluations are of.
            progress: a bar on stderr (True) or a plain line for each log (False); None: a bar on terminals only.
            resume_step: the step that the run goes on from; 0 is a new run.
            resume_run: its ``number``, where another run may have written there since; None: the last one's.
            resume_due: languages whose evaluation at ``resume_step`` is still to be made: lines of one are left out.
            write: False in all processes but one: then nothing is written or shown.

        Raises:
            OSError: a file cannot be read or written; ``filename`` says which.
        """
        self._languages = tuple(languages)
        self._resumed, self._begun = resume_step > 0, False
        self._step = resume_step
        self.number: int | None = None  # of the run in its directory; None where nothing is written
        self._wer: dict[str, tuple[int, float]] = {}  # the last of each language, and the step it was measured at
        self._display: _Bar | _Lines | None = None
        self._metrics: AppendedFile | None = None
        self._events: EventFile | None = None
        self._stack = ExitStack()
        if not write:
            return
        with ExitStack() as stack:
            metrics = Path(output_dir) / METRICS
            self.number, damaged = _prepare(metrics, resume_step, resume_run, resume_due)
            runs = Path(output_dir) / RUNS / str(self.number)
            self._metrics = stack.enter_context(AppendedFile(metrics))
            self._events = stack.enter_context(EventFile(runs, first_step=resume_step + 1))
            self._stack = stack.pop_all()
        self._display = _choose_display(progress, total_steps, resume_step)
        if damaged:
            self._show(f"{metrics}: {damaged} damaged line(s) left out; a run that was killed leaves such")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, step: int) -> None:
        """Move the bar to ``step``, the number of updates made so far; nothing is logged."""
        self._step, self._begun = step, True
        self._tell("advance", step)

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Log the values of a training step: numbers by name, such as "loss", "learning_rate", ``Averages.take``'s.

        Raises:
            OSError: a log cannot be written; ``filename`` says which.
        """
        self._step, self._begun = step, True
        numbers = {name: _json_value(value) for name, value in values.items()}
        self._write(dict(type="train", step=step, **numbers))
        self._write_scalars(step, {f"train/{name}": value for name, value in numbers.items()})
        self._tell("show", step, self._facts(numbers))

    def evaluation(self, step: int, language: str, result: EvalResult) -> None:
        """Log an evaluation; where the run has one language, its first sample is shown too.

        Raises:
            TrainingError: ``language`` is none of the run's.
            OSError: a log cannot be written; ``filename`` says which.
        """
        if language not in self._languages:
            raise TrainingError(
                f"{language!r} is evaluated at step {step}, but the run has {', '.join(self._languages)}"
            )
        self._step, self._begun = step, True
        self._wer[language] = step, result.wer
        fields = {name: _json_value(value) for name, value in dataclasses.asdict(result).items()}
        self._write(dict(type="eval", step=step, language=language, **fields))
        self._write_scalars(step, {f"eval/{language}/{name}": fields[name] for name in _SCALARS_OF_EVALUATION})
        self._show(_describe(step, language, result, with_sample=len(self._languages) == 1))

    def say(self, message: str) -> None:
        """Show a message, above the bar if there is one; it is not recorded."""
        self._show(message)

    def event(self, message: str) -> None:
        """Show and record a message, with the last step that was heard of.

        What a resumed run says before its first step is shown only: it was recorded when the run began.

        Raises:
            OSError: the log cannot be written; ``filename`` says which.
        """
        if self._begun or not self._resumed:
            self._write({"type": "event", "step": self._step, "message": message})
        self._show(message)

    def close(self) -> None:
        """End the display and close the files; a second call does nothing."""
        self._tell("close")
        self._display = self._metrics = self._events = None
        self._stack.close()

    def _facts(self, numbers: Mapping[str, Any]) -> str:
        """What a bar or line says of a training step."""
        facts = {
            "loss {:.4g}": numbers.get("loss"),
            "learning rate {:.3g}": numbers.get("learning_rate"),
            "{}": self._last_wer(),
            "{:.3g} audio-s/s": numbers.get("audio_seconds_per_second"),
        }
        return ", ".join(form.format(value) for form, value in facts.items() if value is not None)

    def _last_wer(self) -> str | None:
        """That of the evaluations before this step, and when they were."""
        found = [(step, wer) for step, wer in self._wer.values() if math.isfinite(wer)]
        if not found:
            return None
        first, last = min(step for step, _ in found), max(step for step, _ in found)
        when = f"step {last}" if first == last else f"steps {first} to {last}"
        mean = "mean " if len(self._languages) > 1 else ""
        return f"{mean}WER {sum(wer for _, wer in found) / len(found):.1%} ({when})"

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._metrics is not None:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
            self._metrics.write(line.encode("utf-8", "backslashreplace"))  # half a surrogate pair: as an escape

    def _write_scalars(self, step: int, values: Mapping[str, Any]) -> None:
        if self._events is not None:
            self._events.write(step, values)

    def _show(self, message: str) -> None:
        self._tell("say", _printable(message))

    def _tell(self, method: str, *arguments: Any) -> None:
        if self._display is None:
            return
        try:
            getattr(self._display, method)(*arguments)
        except (OSError, ValueError):  # a terminal that is gone, or a stream that was closed; the run goes on
            self._display = None


def read_metrics(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """The records of a metrics.jsonl, and how many damaged lines were left out (a run that was killed leaves such).

    Raises:
        OSError: it cannot be read.
    """
    records = [record for _, record in _read_lines(Path(path))]
    return [record for record in records if record is not None], records.count(None)


def best_evaluation(path: str | os.PathLike[str], language: str, *, metric: str) -> tuple[int, float] | None:
    """The step and the value of a language's evaluation with the lowest ``metric``, the first of equal ones.

    ``path`` is of a metrics.jsonl. None: no evaluation of the language has such a number, or there is no such file.

    Raises:
        OSError: it cannot be read.
    """
    if not Path(path).is_file():
        return None
    found = [
        (float(record[metric]), record["step"])
        for record in read_metrics(path)[0]
        if (record.get("type"), record.get("language")) == ("eval", language)
        and isinstance(record.get(metric), (int, float))
    ]
    value, step = min(found, default=(math.inf, 0))
    return (step, value) if found else None


def _read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    with path.open("rb") as file:
        for line in file:
            yield line, _parse(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record, or None for a damaged line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole else None


def _prepare(metrics: Path, resume_step: int, resume_run: int | None, due: Collection[str]) -> tuple[int, int]:
    """The run's number and that of damaged lines, after what was there has been cut or kept apart."""
    metrics.parent.mkdir(parents=True, exist_ok=True)
    number = _first_free(metrics)
    if resume_step and resume_run not in (None, number):  # another run's lie there, and this one's were kept apart
        for path in (metrics, metrics.with_name(CURVE)):
            _rename(path, _kept(path, number))
            _rename(_kept(path, resume_run), path)
        number = resume_run
    if resume_step:
        return number, _cut(metrics, resume_step, due) if metrics.is_file() else 0
    if metrics.is_file() and metrics.stat().st_size:
        for path in (metrics, metrics.with_name(CURVE)):
            _rename(path, _kept(path, number))
        number = _first_free(metrics)
    return number, 0


def _first_free(metrics: Path) -> int:
    return next(number for number in itertools.count(1) if not _kept(metrics, number).exists())


def _kept(metrics: Path, number: int) -> Path:
    return metrics.with_name(f"{metrics.stem}-{number}{metrics.suffix}")


def _rename(path: Path, new: Path) -> None:
    with suppress(FileNotFoundError):  # removed by the user, who need not want it
        path.rename(new)


def _cut(metrics: Path, resume_step: int, due: Collection[str]) -> int:
    """Drop the lines of what is to come again, and those that are damaged, whose number is returned."""

    def stays(record: dict[str, Any]) -> bool:
        if record["step"] == resume_step:
            return record.get("type") != "eval" or record.get("language") not in due
        return record["step"] < resume_step

    lines = list(_read_lines(metrics))
    kept = [line for line, record in lines if record is not None and stays(record)]
    if len(kept) < len(lines):
        with atomic_write(metrics) as file:
            file.writelines(kept)
    return sum(record is None for _, record in lines)


def _json_value(value: Any) -> Any:
    """A scalar of JAX's or numpy's as Python's; NaN and infinities, which JSON lacks, as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe(step: int, language: str, result: EvalResult, *, with_sample: bool) -> str:
    lines = [
        f"step {step}, {language}: loss {result.loss:.4g}, WER {result.wer:.1%}, CER {result.cer:.1%}, "
        f"blanks {result.blank_ratio:.0%} ({result.num_clips} clips, {result.seconds / 60:.1f} min)"
    ]
    if with_sample and result.samples:
        for name, text in zip(("reference: ", "hypothesis:"), result.samples[0], strict=True):
            line = " ".join(text.split())
            lines.append(f"  {name} {line[:_SAMPLE_CHARS_SHOWN]}{'…' if len(line) > _SAMPLE_CHARS_SHOWN else ''}")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Transcripts come from data sets: no control characters to the terminal."""
    return "".join(char if char == "\n" or char.isprintable() else " " for char in text)


def _choose_display(progress: bool | None, total_steps: int, resume_step: int) -> _Bar | _Lines | None:
    stream = sys.stderr
    if stream is None or stream.closed:
        return None
    wanted = stream.isatty() if progress is None else progress
    return (_Bar if wanted else _Lines)(stream, total_steps, resume_step)


class _Bar:
    """A bar of tqdm's, with messages above it."""

    def __init__(self, stream: TextIO, total_steps: int, resume_step: int) -> None:
        self._stream = stream
        self._bar = tqdm(total=total_steps, initial=resume_step, file=stream, unit="step", dynamic_ncols=True)

    def advance(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def show(self, step: int, facts: str) -> None:
        self._bar.set_postfix_str(facts, refresh=False)
        self.advance(step)
        self._bar.refresh()

    def say(self, message: str) -> None:
        tqdm.write(message, file=self._stream)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """One line for each log and message."""

    def __init__(self, stream: TextIO, total_steps: int, resume_step: int) -> None:
        self._stream, self._total_steps, self._resume_step = stream, total_steps, resume_step
        self._start = time.monotonic()

    def advance(self, step: int) -> None:
        pass

    def show(self, step: int, facts: str) -> None:
        done = step - self._resume_step
        eta = (time.monotonic() - self._start) / done * (self._total_steps - step) if done > 0 else 0
        left = f", ETA {tqdm.format_interval(eta)}" if done > 0 else ""
        self.say(f"step {step}/{self._total_steps}: {facts}{left}")

    def say(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def close(self) -> None:
        pass

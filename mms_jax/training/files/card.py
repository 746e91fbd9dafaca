"""The model card of an output directory: what was trained on what, how, and how well it does.

The facts are kept in training_results.json, to which every job adds its languages; README.md is made of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from mms_jax.checkpoint import FINGERPRINT_SHOWN
from mms_jax.checkpoint.card import CARD, TRAINED, merge_card
from mms_jax.errors import CheckpointError
from mms_jax.files import atomic_write, read_json, write_json
from mms_jax.languages import language_name

RESULTS = "training_results.json"
TAGS = ["automatic-speech-recognition", "mms", "wav2vec2", "jax"]

_METRICS = {"wer": "WER", "cer": "CER"}  # fractions, shown in percent


@dataclass(frozen=True, kw_only=True)
class LanguageReport:
    """What one language of a job (or the whole model of a full fine-tuning) was trained on, how, and with what result.

    ``metrics`` are those of the evaluation: wer and cer as fractions, loss; empty where there was none. ``dropped``
    counts clips by reason. ``best_step`` is that of the weights where they are the best evaluated, not the last.
    """

    language: str | None  # None: full fine-tuning without a tag
    dataset: str
    dataset_config: str | None = None
    dataset_on_hub: bool = False
    train_split: str
    eval_split: str | None = None
    clips: int
    hours: float
    dropped: Mapping[str, int] = field(default_factory=dict)
    eval_clips: int = 0
    steps: int
    best_step: int | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BaseReport:
    """What was trained on top of; ``licence`` as its own card states it."""

    name: str
    on_hub: bool
    fingerprint: str
    licence: str | None = None


def write_card(
    directory: str | PathLike[str], *, base: BaseReport, reports: Sequence[LanguageReport], repo_id: str | None = None
) -> Path:
    """Add a job's results to those in the directory, and write its README.md from all of them.

    Text that was added to README.md by hand stays; its front matter is made anew.

    Args:
        directory: of the model.
        base: of the job.
        reports: one for each language; they replace earlier ones of the same language.
        repo_id: the hub repository that the card is for, if there is one.

    Raises:
        CheckpointError: the results that are there are malformed. OSError: a file cannot be written.
    """
    directory = Path(directory)
    results = _merged(directory / RESULTS, base, reports)
    write_json(directory / RESULTS, results)
    path = directory / CARD
    existing = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    text = model_card(results, name=repo_id or directory.resolve().name, existing=existing)
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def _merged(path: Path, base: BaseReport, reports: Sequence[LanguageReport]) -> dict[str, Any]:
    known = read_json(path, error=CheckpointError).get("languages", {}) if path.is_file() else {}
    if not isinstance(known, dict) or not all(isinstance(value, dict) for value in known.values()):
        raise CheckpointError(f"{path}: its 'languages' are no reports; remove it to begin a new model card")
    return {"base": asdict(base), "languages": known | {report.language or "": _finite(report) for report in reports}}


def _finite(report: LanguageReport) -> dict[str, Any]:
    """A report as JSON, which has no NaN; settings of other types are told as text."""
    metrics = {name: value for name, value in report.metrics.items() if math.isfinite(value)}
    values = asdict(report) | {"metrics": metrics}
    return json.loads(json.dumps(values, default=str, allow_nan=False))


def model_card(results: Mapping[str, Any], *, name: str, existing: str = "") -> str:
    """The README.md of a directory: ``results`` as training_results.json holds them, ``existing`` as it was before."""
    languages = dict(sorted(results["languages"].items()))
    front_matter = _front_matter(results["base"], languages, name)
    body = _body(results["base"], languages, name)
    return merge_card(existing, front_matter=front_matter, mark=TRAINED, body=body)


def _front_matter(base: Mapping[str, Any], languages: Mapping[str, Mapping[str, Any]], name: str) -> str:
    import huggingface_hub  # here, because importing it takes longer than all of this

    evaluated = {tag: report for tag, report in languages.items() if report["metrics"]}
    return huggingface_hub.ModelCardData(
        language=sorted({tag.partition("-")[0] for tag in languages if tag}) or None,
        license=base["licence"],
        base_model=base["name"].partition("@")[0] if base["on_hub"] else None,
        tags=[*TAGS, *(["adapter"] if _are_adapters(languages) else [])],
        pipeline_tag=TAGS[0],
        datasets=sorted({report["dataset"] for report in languages.values() if report["dataset_on_hub"]}) or None,
        metrics=[key for key in _METRICS if any(key in report["metrics"] for report in evaluated.values())] or None,
        model_name=name,
        eval_results=[
            result
            for tag, report in evaluated.items()
            for result in _eval_results(tag, report, config=_config(tag, evaluated))
        ]
        or None,
    ).to_yaml()


def _config(tag: str, evaluated: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The configuration of a language's data set; its tag where several share one, which would become one result."""
    keys = ("dataset", "dataset_config", "eval_split")
    own = [evaluated[tag][key] for key in keys]
    alone = sum(own == [report[key] for key in keys] for report in evaluated.values()) == 1
    return evaluated[tag]["dataset_config"] if alone else tag


def _eval_results(tag: str, report: Mapping[str, Any], *, config: str | None) -> list[Any]:
    import huggingface_hub

    dataset = report["dataset"] if report["dataset_on_hub"] else Path(report["dataset"]).name
    return [
        huggingface_hub.EvalResult(
            task_type=TAGS[0],
            task_name="Automatic speech recognition",
            dataset_type=dataset,
            dataset_name=f"{dataset} ({tag})" if tag else dataset,
            dataset_config=config,
            dataset_split=report["eval_split"],
            metric_type=metric,
            metric_name=label,
            metric_value=round(report["metrics"][metric], 4),
        )
        for metric, label in _METRICS.items()
        if metric in report["metrics"]
    ]


def _body(base: Mapping[str, Any], languages: Mapping[str, Mapping[str, Any]], name: str) -> str:
    what = "adapters" if _are_adapters(languages) else "fine-tuned"
    sections = [
        f"# {name}",
        f"Speech recognition: {_listed(languages)}; {what} on `{base['name']}`, trained with mms_jax.",
        "## Results",
        _results(languages),
        "## Use",
        _usage(languages, name),
        "## Data",
        _data(languages),
        "## Training",
        *_hyperparameters(languages),
        f"Base: `{base['name']}`, fingerprint `{base['fingerprint'][:FINGERPRINT_SHOWN]}`"
        + (f", licence {base['licence']}." if base["licence"] else "; it states no licence."),
    ]
    return "\n\n".join(sections)


def _are_adapters(languages: Mapping[str, Any]) -> bool:
    return "" not in languages


def _named(tag: str) -> str:
    known = language_name(tag) if tag else None
    return f"{known} ({tag})" if known else tag or "the language of the data"


def _listed(languages: Iterable[str]) -> str:
    return ", ".join(map(_named, languages))


def _results(languages: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            _named(tag),
            *(f"{100 * report['metrics'][key]:.2f} %" if key in report["metrics"] else "–" for key in _METRICS),
            f"{report['metrics']['loss']:.4f}" if "loss" in report["metrics"] else "–",
            f"{report['eval_clips']:,}" if report["metrics"] else "not evaluated",
            _steps(report),
        ]
        for tag, report in languages.items()
    ]
    return _table(["Language", *_METRICS.values(), "Loss", "Clips evaluated", "Steps trained"], rows)


def _steps(report: Mapping[str, Any]) -> str:
    best = report.get("best_step")  # which earlier releases did not note
    return f"{report['steps']:,}" if best is None else f"best of step {best:,} of {report['steps']:,}"


def _data(languages: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for tag, report in languages.items():
        source = [report["dataset"] if report["dataset_on_hub"] else Path(report["dataset"]).name]
        source += [report["dataset_config"]] if report["dataset_config"] else []
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items() if count)
        splits = [report["train_split"], *([report["eval_split"]] if report["eval_split"] else [])]
        numbers = [f"{report['clips']:,}", f"{report['hours']:.2f}"]
        rows.append([_named(tag), " / ".join(source), ", ".join(splits), *numbers, dropped or "none"])
    return _table(["Language", "Data set", "Splits", "Clips", "Hours", "Dropped"], rows)


def _hyperparameters(languages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every set of settings once, with the languages that were trained with it."""
    sets: dict[str, list[str]] = {}
    for tag, report in languages.items():
        lines = [f"- `{name}`: {_shown(value)}" for name, value in sorted(report["hyperparameters"].items())]
        sets.setdefault("\n".join(lines), []).append(tag)
    known = [(lines, tags) for lines, tags in sets.items() if lines]
    return [lines if len(sets) == 1 else f"{_listed(tags)}:\n\n{lines}" for lines, tags in known]


def _shown(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _usage(languages: Mapping[str, Any], name: str) -> str:
    tag = next(iter(languages))
    quoted = json.dumps(name, ensure_ascii=False)
    ours = f'{quoted}, language="{tag}"' if tag else quoted
    theirs = f'{quoted}, target_lang="{tag}"' if tag else quoted
    fits = ", ignore_mismatched_sizes=True" if tag else ""  # the head is that of another vocabulary until it is loaded
    return "\n".join(
        [
            "```python",
            "import mms_jax",
            "",
            f"asr = mms_jax.load_asr({ours})",
            'print(asr.transcribe("clip.wav").text)',
            "```",
            "",
            "```python",
            "from transformers import AutoProcessor, Wav2Vec2ForCTC",
            "",
            f"processor = AutoProcessor.from_pretrained({theirs})",
            f"model = Wav2Vec2ForCTC.from_pretrained({theirs}{fits})",
            "```",
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that cannot break out of its cell: names come from users and their files."""
    return " ".join(text.split()).replace("|", "\\|")

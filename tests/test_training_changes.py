"""A job that is resumed on other data than it was begun with: refused, with everything as it was."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from tests.test_training_resume import SIZES, stopped
from tests.training_jobs import done, quick_jobs, run, settings, write_data
from tests.training_outputs import contents


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    with quick_jobs():
        yield


def change_rows(table: Path, change) -> None:
    """Rewrite a table's rows."""
    with table.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *change(rows)])


def without_first(rows):
    return rows[1:]


def with_another_letter(rows):
    """Its place in the vocabulary is before all others'."""
    return [[name, f"aaa {text}", samples] for name, text, samples in rows]


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("train.csv", without_first, "clips"),
        ("train.csv", lambda rows: [*rows[1:], rows[0]], "clips"),
        ("train.csv", lambda rows: [[name, text[::-1], samples] for name, text, samples in rows], "clips"),
        ("test.csv", with_another_letter, "vocabulary"),
    ],
)
def test_a_job_does_not_go_on_with_other_data(table, change, what, tmp_path, monkeypatch):
    data, output = write_data(tmp_path / "data", "fin", count=6, sizes=SIZES), tmp_path / "out"
    flags = settings(data, output, target_language="fin", do_eval=True, max_steps=6, save_steps=2)
    stopped(monkeypatch, after=3, **flags)
    before = contents(output)
    kept = shutil.copytree(data, tmp_path / "kept")
    change_rows(data / table, change)
    code, said = run(**flags)
    assert code == 1
    assert f"the {what}" in said
    assert "of fin changed since this job was begun" in said
    assert "--overwrite_output_dir" in said
    assert contents(output) == before
    shutil.copy(kept / table, data / table)
    assert "4 steps were done before; goes on from there" in done(**flags)

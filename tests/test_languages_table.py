"""What MMS was published for: the packaged tables are complete, reproducible and read only when needed."""

import subprocess
import sys

import pytest

from mms_jax.errors import LanguageError
from mms_jax.languages import CHECKPOINTS, COLUMNS, TASKS, languages
from tests.languages_table import DATA, ROWS

GZIP_WITHOUT_NAME_AND_TIME = bytes.fromhex("1f8b0800 00000000")


def test_the_table_is_what_the_columns_say():
    cells = {"1": True, "0": False, "": None}
    table = languages()
    assert [language.code for language in table] == [row["code"] for row in ROWS]
    for language, row in zip(table, ROWS, strict=True):
        assert tuple(getattr(language, column) for column in COLUMNS) == tuple(cells[row[column]] for column in COLUMNS)
        assert (language.name, language.iso639_1) == (row["name"], row["iso639_1"] or None)
    for task, columns in TASKS.items():
        covered = {row["code"] for row in ROWS if any(row[column] == "1" for column in columns)}
        assert {language.code for language in languages(task=task)} == covered
    for checkpoint, column in CHECKPOINTS.items():
        covered = [row["code"] for row in ROWS if row[column] == "1"]
        assert [language.code for language in languages(checkpoint=f"facebook/{checkpoint}")] == covered


def test_the_counts_are_the_published_ones():
    counts = {"mms-1b-all": 1198, "mms-1b-fl102": 102, "mms-1b-l1107": 1142, "mms-tts": 1143}
    counts |= {"mms-lid-126": 126, "mms-lid-256": 256, "mms-lid-4017": 4017}
    assert {checkpoint: len(languages(checkpoint=checkpoint)) for checkpoint in counts} == counts


def test_unknown_coverage_is_neither_yes_nor_no():
    table = {language.code: language for language in languages()}
    assert table["cmn-script_simplified"].asr_1b_l1107 is None
    assert table["cmn-script_simplified"].tts is False
    assert table["aaa"].lid_512 is None
    assert table["cmn-script_simplified"] in languages(task="asr")
    assert table["cmn-script_simplified"] not in languages(task="tts")


def test_an_unknown_task_or_checkpoint_is_an_error():
    with pytest.raises(LanguageError, match="no task 'translate'; known are asr, tts, lid"):
        languages(task="translate")
    with pytest.raises(LanguageError, match="no checkpoint 'whisper'; known are mms-1b-all"):
        languages(checkpoint="whisper")
    assert languages(task="asr", checkpoint="mms-lid-126")  # both: what speech recognition and that model share


def test_a_language_names_the_checkpoints_that_are_known_to_cover_it():
    table = {language.code: language for language in languages()}
    assert table["cmn-script_simplified"].checkpoints() == ("mms-1b-all", "mms-1b-fl102")  # l1107: unknown
    assert table["cmn-script_simplified"].checkpoints("tts") == ()
    assert table["aaa"].checkpoints() == ("mms-lid-4017",)  # 512, 1024 and 2048: unknown
    assert table["eng"].checkpoints("asr") == ("mms-1b-all", "mms-1b-l1107", "mms-1b-fl102")
    assert table["eng"].checkpoints("tts") == ("mms-tts",)
    for language in table.values():
        listed = {CHECKPOINTS[name] for name in language.checkpoints()}
        assert listed == {column for column in COLUMNS if getattr(language, column)}
        assert [*language.checkpoints()] == [name for task in TASKS for name in language.checkpoints(task)]


def test_the_tables_are_packed_without_name_or_time():
    packed = [path for path in DATA.iterdir() if path.name.endswith(".gz")]
    assert len(packed) == 3
    for path in packed:
        assert path.read_bytes()[:8] == GZIP_WITHOUT_NAME_AND_TIME
    assert [path.name for path in DATA.iterdir() if path.name.endswith(".tsv")] == []


def test_importing_the_package_reads_no_table():
    probe = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import mms_jax.languages, mms_jax.cli
found = [path for path in opened if path.endswith(".tsv.gz")]
sys.modules["mms_jax.languages"].languages()
assert [path for path in opened if path.endswith(".tsv.gz")], "the probe sees no file"
sys.exit(1 if found else 0)
"""
    assert subprocess.run([sys.executable, "-c", probe], check=False, timeout=60).returncode == 0

"""`mms-jax languages`: what MMS covers, all of it or what a search finds, without a network."""

import pytest

from mms_jax import cli
from tests.checkpoints import LETTERS, many_languages
from tests.languages_table import ROWS

COLUMNS = {
    "mms-1b-all": "asr_1b_all",
    "mms-1b-l1107": "asr_1b_l1107",
    "mms-1b-fl102": "asr_fl102",
    "mms-tts": "tts",
    "mms-lid-126": "lid_126",
    "mms-lid-256": "lid_256",
    "mms-lid-512": "lid_512",
    "mms-lid-1024": "lid_1024",
    "mms-lid-2048": "lid_2048",
    "mms-lid-4017": "lid_4017",
}
PREFIXES = {"asr": "mms-1b-", "tts": "mms-tts", "lid": "mms-lid-"}
NUM_TAGS = {(): 4094, ("--task", "asr"): 1198, ("--task", "tts"): 1143, ("--task", "lid"): 4017}  # as published


def listed(capsys, *arguments):
    assert cli.main(["languages", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [line.split("\t") for line in out.splitlines()]


@pytest.mark.parametrize("arguments", NUM_TAGS)
def test_every_row_is_a_code_a_name_and_the_checkpoints_known_to_cover_it(capsys, arguments):
    rows = listed(capsys, *arguments)
    assert len(rows) == NUM_TAGS[arguments]
    prefix = PREFIXES[arguments[1]] if arguments else "mms-"
    columns = {name: its for name, its in COLUMNS.items() if name.startswith(prefix)}
    known = {row["code"]: (row["name"], [name for name, its in columns.items() if row[its] == "1"]) for row in ROWS}
    for code, name, checkpoints in rows:
        assert (name, checkpoints.split(",")) == known[code]
    assert {row[0] for row in rows} == {code for code, (_, names) in known.items() if names}


def test_a_language_can_be_searched_for(capsys):
    assert listed(capsys, "cmn", "--task", "asr") == [
        ["cmn-script_simplified", "Chinese, Mandarin", "mms-1b-all,mms-1b-fl102"]
    ]
    mandarin = ["cmn", "Chinese, Mandarin", "mms-lid-126,mms-lid-256,mms-lid-512,mms-lid-2048,mms-lid-4017"]
    for asked in ("zh", "Chinese"):
        rows = listed(capsys, asked)
        assert mandarin in rows
        assert {"cmn-script_simplified", "hak", "yue-script_traditional"} < {row[0] for row in rows}


def test_a_search_in_a_checkpoint_lists_its_own(capsys, tmp_path):
    directory = str(many_languages(tmp_path))
    assert {row[0] for row in listed(capsys, "--model", directory)} == {*LETTERS}
    assert listed(capsys, "fr", "--model", directory) == [["fra", "French"]]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["cmn", "--task", "tts"], "no synthesis for cmn; recognition exists as cmn-script_simplified"),
        (["frensh"], "nearest: fra (French)"),
        ([""], "a language must be a code, tag or name"),
        (["\ud800"], "'\\ud800' is not available"),
    ],
)
def test_a_search_without_result_is_one_line_and_exit_code_1(capsys, arguments, reason):
    assert cli.main(["languages", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert len(err.splitlines()) == 1

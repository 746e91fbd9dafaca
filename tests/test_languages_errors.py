"""Errors about languages: what is there instead, in one short line, whatever was asked."""

import gc
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mms_jax.errors import LanguageError
from mms_jax.languages import TASKS, elsewhere, find_languages, languages, nearest, resolve_language
from tests.languages_table import MMS_1B_ALL, ROWS

MAX_MESSAGE = 800  # a dozen tags with names fit; ten lines of a terminal


@pytest.mark.parametrize(
    ("asked", "available", "message"),
    [
        (
            "nep",
            [tag for tag in MMS_1B_ALL if tag != "nep"],
            f"'nep' (Nepali) has no adapter in mine; nearest: npi (Nepali); {len(MMS_1B_ALL):,} languages available: "
            "mms-jax languages --model mine",
        ),
        (
            "fra",
            ["eng"],
            "'fra' (French) has no adapter in mine; mms-1b-all recognises it as fra; available: eng (English)",
        ),
        ("npi", ["eng", "nep"], "nearest: nep (Nepali)"),
        ("sr-Arab", ["srp-script_latin", "hrv"], "nearest: srp-script_latin (Serbian), hrv (Croatian); 2 languages"),
        ("zh-Hant", ["cmn-script_simplified"], "nearest: cmn-script_simplified (Chinese, Mandarin)"),
        ("tw", ["eng", "aka"], "'tw' (Twi) has no adapter in mine; nearest: aka (Akan)"),
        ("Frensh", ["eng", "fra", "deu"], "nearest: fra (French)"),
        ("engl", ["eng", "fra"], "'engl' has no adapter in mine; nearest: eng (English)"),
        ("azj-klingon", ["azj-script_latin", "eng"], "nearest: azj-script_latin (Azerbaijani, North);"),
        ("xxx", [], "'xxx' has no adapter in mine; 0 languages available"),
        ("cac-dialect_other", ["cac-dialect_sanmateoixtatan"], "nearest: cac-dialect_sanmateoixtatan (Chuj)"),
        ("zz", ["eng"], "'zz' has no adapter in mine"),
        ("x" * 1_000_000, ["eng"], "… has no adapter in mine"),
    ],
)
def test_an_absent_language_is_an_error_with_the_nearest_ones(asked, available, message):
    with pytest.raises(LanguageError) as caught:
        resolve_language(asked, available, source="mine", task="asr")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("asked", "task", "source", "hint"),
    [
        (
            "cmn",
            "tts",
            "",
            "no synthesis for cmn; recognition exists as cmn-script_simplified; identification exists as cmn",
        ),
        (
            "Chinese",
            "tts",
            "",
            "no synthesis for cmn; recognition exists as cmn-script_simplified; identification exists as cmn",
        ),
        ("cmn-Hant", "tts", "", "no synthesis for 'cmn-Hant'; identification exists as cmn"),
        ("ko", "asr", "facebook/mms-1b-l1107", "mms-1b-all recognises it as kor"),
        ("ko", "asr", "/models/mms-1b-all", "mms-1b-l1107 recognises it as kor"),  # not there, so say no such thing
        ("hak", "asr", "facebook/mms-1b-fl102@main (offline: only cached files)", "mms-1b-all recognises it as hak"),
        ("sr", "asr", "", "mms-1b-all recognises it as srp-script_cyrillic, srp-script_latin"),
        ("qu", "asr", "", "mms-1b-all recognises it as qub, quf, quh and 19 more"),
        ("gsw", "asr", "", "no recognition for gsw; identification exists as gsw"),
        ("hak", "lid", "facebook/mms-lid-126", "mms-lid-256 identifies it as hak"),
        ("aaa", "lid", "facebook/mms-lid-4017", ""),
        ("xgf", "asr", "", ""),  # nobody covers it
        ("fr", "tts", "facebook/mms-tts-fr", "synthesis exists as mms-tts-fra"),
        ("fra", "tts", "facebook/mms-tts-fra", ""),
        ("Dan", "asr", "", ""),  # which of the two?
        ("que", "asr", "", ""),  # a macrolanguage is none of its members
        ("", "asr", "", ""),
    ],
)
def test_a_hint_says_what_is_published_for_the_language_and_nothing_else(asked, task, source, hint):
    assert elsewhere(asked, task=task, source=source) == hint


def test_unknown_coverage_is_not_called_none():
    dialect = "cac-dialect_sanmateoixtatan"
    assert elsewhere(dialect, task="lid") == (
        f"no known identification for '{dialect}'; recognition exists as {dialect}; "
        f"synthesis exists as mms-tts-{dialect}"
    )


@pytest.mark.parametrize(("task", "lacking"), [("asr", "adapter"), ("tts", "voice"), ("lid", "label")])
def test_an_error_is_in_the_words_of_its_task(task, lacking):
    with pytest.raises(LanguageError, match=f"^'jpn' .Japanese. has no {lacking} in mine; "):
        resolve_language("jpn", ["eng"], source="mine", task=task)
    with pytest.raises(LanguageError, match=f"^'jpn' .Japanese. has no {lacking} in mine; "):
        find_languages("jpn", ["eng"], source="mine", task=task)
    with pytest.raises(LanguageError, match=r"^'jpn' .Japanese. is not available in this checkpoint; available: eng"):
        resolve_language("jpn", ["eng"])


def test_an_unknown_task_is_an_error():
    for call in (resolve_language, find_languages):
        with pytest.raises(LanguageError, match="no task 'translate'; known are asr, tts, lid"):
            call("eng", ["eng"], task="translate")


PUBLISHED = {task: [language.code for language in languages(task=task)] for task in TASKS}


@given(
    asked=st.text() | st.from_regex(r"[A-Za-z]{2,3}([-_.@](script_)?\w+)*", fullmatch=True),
    task=st.sampled_from([*TASKS]),
    own=st.lists(st.text(max_size=200), max_size=20),
    published=st.booleans(),
)
@example(asked="zho-script_\n", task="tts", own=[], published=True)
@example(asked="\ud800", task="lid", own=["a\nb"], published=False)
@example(asked="qu", task="asr", own=[], published=True)
def test_whatever_is_asked_is_a_tag_or_one_short_line(asked, task, own, published):
    available = PUBLISHED[task] if published else own
    for call in (resolve_language, find_languages):
        try:
            found = call(asked, available, source="mine", task=task)
            assert found in available if isinstance(found, str) else set(found) <= {*available}
        except LanguageError as error:
            message = str(error)
            assert message.isprintable()
            assert len(message) < MAX_MESSAGE


@given(tag=st.sampled_from([row["code"] for row in ROWS]), task=st.sampled_from([*TASKS]))
def test_the_error_for_a_published_language_says_where_it_is(tag, task):
    with pytest.raises(LanguageError) as caught:
        resolve_language(tag, ["other", "tags"], source="mine", task=task)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < MAX_MESSAGE
    hint = message.split("; ", 1)[1]
    assert any(word in hint for word in ("recognises", "identifies", "exists as"))
    assert tag.split("-")[0] in hint


@pytest.mark.parametrize("asked", ["", "  \n", None, 7, b"fra", ["fra"]])
def test_what_is_no_language_at_all_is_a_language_error(asked):
    with pytest.raises(LanguageError, match="a language must be a code, tag or name"):
        resolve_language(asked, ["fra"])


def test_a_huge_request_is_not_kept():
    asked = "huge" * 250_000  # not equal to any string seen before: a cache would hold that one instead
    before = sys.getrefcount(asked)
    for _ in range(3):
        with pytest.raises(LanguageError):
            resolve_language(asked, ["eng"])
    gc.collect()
    assert sys.getrefcount(asked) == before


def test_the_nearest_are_few_sorted_and_available():
    assert nearest("zh", MMS_1B_ALL) == ["cmn-script_simplified", "hak", "nan", "yue-script_traditional"]
    assert nearest("zho", ["cdo", "yue", "cmn"]) == ["cmn", "cdo", "yue"]  # Mandarin is what Chinese mostly means
    assert nearest("que", MMS_1B_ALL, limit=3) == ["qub", "quf", "quh"]
    assert nearest("Frensh", MMS_1B_ALL, limit=1) == ["fra"]
    assert nearest("?!", MMS_1B_ALL) == []
    assert nearest("fra", []) == []

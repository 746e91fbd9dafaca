"""Language names, codes and tags: the right tag or a LanguageError, never another language."""

import csv
import gc
import re
import subprocess
import sys
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.errors import LanguageError
from mms_jax.languages import CHECKPOINTS, COLUMNS, TASKS, language_name, languages, nearest, resolve_language


def read(name: str) -> list[dict[str, str]]:
    text = (files("mms_jax") / "data" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


ROWS = read("mms_languages.tsv")
ISO = read("iso639.tsv")
MACRO = {row["code"]: row["macrolanguage"] for row in ISO if row["macrolanguage"]}
MMS_1B_ALL = [row["code"] for row in ROWS if row["asr_1b_all"] == "1"]

# ISO 639-2 has two codes for twenty languages: bibliographic and terminological (= ISO 639-3).
BIBLIOGRAPHIC = (
    "alb:sqi arm:hye baq:eus bur:mya chi:zho cze:ces dut:nld fre:fra geo:kat ger:deu "
    "gre:ell ice:isl mac:mkd mao:mri may:msa per:fas rum:ron slo:slk tib:bod wel:cym"
)


@pytest.mark.parametrize(
    ("asked", "tag"),
    [
        ("fr", "fra"),
        ("fra", "fra"),
        ("FRA", "fra"),
        ("fre", "fra"),
        ("French", "fra"),
        ("  french ", "fra"),
        ("fr-FR", "fra"),
        ("fr_CA", "fra"),
        ("fr-Latn-419", "fra"),
        ("ar", "ara"),
        ("ar-EG", "ara"),
        ("iw", "heb"),
        ("de", "deu"),
        ("ger", "deu"),
        ("zh-Hans", "cmn-script_simplified"),
        ("zh_hans_cn", "cmn-script_simplified"),
        ("zh-cmn", "cmn-script_simplified"),
        ("cmn", "cmn-script_simplified"),
        ("Mandarin Chinese", "cmn-script_simplified"),
        ("Mandarin", "cmn-script_simplified"),
        ("yue-Hant-HK", "yue-script_traditional"),
        ("Cantonese", "yue-script_traditional"),
        ("az-Latn", "azj-script_latin"),
        ("azj-Cyrl", "azj-script_cyrillic"),
        ("AZJ_Script-Latin", "azj-script_latin"),
        ("azj-latin", "azj-script_latin"),
        ("ku-Latn", "kmr-script_latin"),
        ("sr-Cyrl-RS", "srp-script_cyrillic"),
        ("ur-Deva", "urd-script_devanagari"),
        ("ne", "npi"),
        ("Nepali", "npi"),
        ("NEPALI", "npi"),
        ("sw", "swh"),
        ("Swahili", "swh"),
        ("Farsi", "fas"),
        ("Norwegian bokmal", "nob"),
        ("bokmål norwegian", "nob"),
        ("cak-dialect_santamaríadejesús", "cak-dialect_santamariadejesus"),
        ("South Azerbaijani", "azb"),
        ("gof", "gof-script_latin"),
        ("quc-Dialect-East", "quc-dialect_east"),
    ],
)
def test_every_usual_way_to_name_a_language_finds_its_tag(asked, tag):
    assert resolve_language(asked, MMS_1B_ALL) == tag


@pytest.mark.parametrize("checkpoint", list(CHECKPOINTS))
def test_every_published_tag_and_its_name_mean_itself(checkpoint):
    covered = languages(checkpoint=checkpoint)
    tags = [language.code for language in covered]
    for language in covered[:: max(1, len(covered) // 60)]:  # exact matches return at once; 60 names cover the rest
        assert resolve_language(language.code, tags) == language.code
        assert resolve_language(language.code.replace("_", "-").upper(), tags) == language.code
        try:
            answer = resolve_language(language.name, tags)
        except LanguageError as error:  # shared with another script, dialect or language: this one is offered too
            answer = str(error).split(language.name, 1)[1]
        assert answer == language.code or (
            answer not in tags and re.search(rf"\b{language.code.split('-')[0]}\b", answer)
        )


@pytest.mark.parametrize("pair", BIBLIOGRAPHIC.split())
def test_bibliographic_codes_mean_the_terminological_ones(pair):
    bibliographic, terminological = pair.split(":")
    assert resolve_language(bibliographic, ["eng", terminological]) == terminological
    assert resolve_language(bibliographic.upper(), ["eng", terminological]) == terminological


def test_all_two_letter_codes_find_their_language():
    pairs = [(row["iso639_1"], row["code"]) for row in ISO if row["iso639_1"]]
    assert len(pairs) == 184
    for two, three in pairs:
        assert resolve_language(two, ["xyz", three]) == three
        assert resolve_language(three, ["xyz", two]) == two  # a user's tag may be the short one
    assert {row["iso639_1"] for row in ROWS if row["iso639_1"]} <= {two for two, _ in pairs}


def test_macrolanguages_agree_with_the_list_the_coverage_came_with():
    two = {row["code"]: row["iso639_1"] for row in ISO}
    for row in read("macro_iso639_1.tsv"):
        code = row["code"].split("-")[0]
        assert (MACRO[code], two[MACRO[code]]) == (row["macrolanguage"], row["iso639_1_of_macrolanguage"])
        assert resolve_language(row["iso639_1_of_macrolanguage"], ["eng", row["code"]]) == row["code"]


@pytest.mark.parametrize(
    ("asked", "candidates"),
    [
        ("azj", ["azj-script_cyrillic", "azj-script_latin"]),
        ("az", ["azb", "azj-script_cyrillic", "azj-script_latin"]),
        ("Azerbaijani, North", ["azj-script_cyrillic", "azj-script_latin"]),
        ("sr", ["srp-script_cyrillic", "srp-script_latin"]),
        ("zh", ["cmn-script_simplified", "hak", "nan", "yue-script_traditional"]),
        ("zh-Hant", ["cmn-script_simplified", "hak", "nan", "yue-script_traditional"]),  # Mandarin, but not as here
        ("no", ["nno", "nob"]),
        ("K'iche'", ["quc-dialect_central", "quc-dialect_east", "quc-dialect_north"]),
    ],
)
def test_several_candidates_are_listed_not_chosen_from(asked, candidates):
    with pytest.raises(LanguageError, match="is ambiguous in mms-1b-all") as caught:
        resolve_language(asked, MMS_1B_ALL, source="mms-1b-all")
    listed = str(caught.value).split("pass one of ")[1]
    assert listed == ", ".join(f"{tag} ({language_name(tag)})" for tag in candidates)
    for tag in candidates:  # alone it is clear, unless the script contradicts
        if asked != "zh-Hant":
            assert resolve_language(asked, ["eng", tag]) == tag


def test_a_name_that_is_another_language_code_is_not_guessed():
    assert resolve_language("dan", ["dan", "dnj-dialect_blowowest"]) == "dan"
    assert resolve_language("DAN", ["dan", "dnj-dialect_blowowest"]) == "dan"
    for available in (["dan"], ["dnj-dialect_blowowest"], ["dan", "dnj-dialect_blowowest"]):
        with pytest.raises(LanguageError, match=r"'Dan' is several languages: dan \(Danish\), dnj \(Dan\)"):
            resolve_language("Dan", available)


def test_a_name_shared_by_languages_is_not_guessed():
    with pytest.raises(LanguageError, match=r"'Atong' is several languages: aot \(Atong\), ato \(Atong\)"):
        resolve_language("Atong", ["aot", "eng"])


@pytest.mark.parametrize(
    ("asked", "available", "message"),
    [
        (
            "nep",
            [tag for tag in MMS_1B_ALL if tag != "nep"],
            f"'nep' (Nepali) has no adapter in mine; nearest: npi (Nepali); {len(MMS_1B_ALL):,} languages available: "
            "mms-jax languages",
        ),
        ("fra", ["eng"], "'fra' (French) has no adapter in mine; available: eng (English)"),
        ("npi", ["eng", "nep"], "nearest: nep (Nepali)"),
        ("sr-Arab", ["srp-script_latin", "hrv"], "nearest: srp-script_latin (Serbian), hrv (Croatian); 2 languages"),
        ("zh-Hant", ["cmn-script_simplified"], "nearest: cmn-script_simplified (Chinese, Mandarin)"),
        ("tw", ["aka", "eng"], "'tw' (Twi) has no adapter in mine; nearest: aka (Akan)"),
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


@pytest.mark.parametrize("asked", ["", "  \n", None, 7, b"fra", ["fra"]])
def test_what_is_no_language_at_all_is_a_language_error(asked):
    with pytest.raises(LanguageError, match="a language must be a code, tag or name"):
        resolve_language(asked, ["fra"])


def test_a_tag_in_the_script_asked_for_comes_before_one_that_states_none():
    assert resolve_language("ku-Latn", ["kmr", "kmr-script_arabic", "kmr-script_latin"]) == "kmr-script_latin"
    assert resolve_language("ku-Cyrl", ["kmr", "kmr-script_arabic", "kmr-script_latin"]) == "kmr"


def test_a_huge_request_is_not_kept():
    asked = "huge" * 250_000  # not equal to any string seen before: a cache would hold that one instead
    before = sys.getrefcount(asked)
    for _ in range(3):
        with pytest.raises(LanguageError):
            resolve_language(asked, ["eng"])
    gc.collect()
    assert sys.getrefcount(asked) == before


def test_tags_of_ones_own_are_matched_exactly_and_never_read_as_a_language():
    own = ["xyz", "tr_demo", "fra2", "My Dialect"]
    for tag in own:
        assert resolve_language(tag, own) == tag
        assert resolve_language(tag.upper(), own) == tag
    for asked in ("tr", "tur", "Turkish", "fra", "fr"):
        with pytest.raises(LanguageError, match="is not available in this checkpoint"):
            resolve_language(asked, own)


CODES = sorted({row["code"].split("-")[0] for row in ROWS} | {row["code"] for row in ISO})
TWO = {row["iso639_1"]: row["code"] for row in ISO if row["iso639_1"]}


@given(
    asked=st.sampled_from([*CODES, *TWO]) | st.text(max_size=8) | st.sampled_from([row["name"] for row in ROWS]),
    suffix=st.sampled_from(["", "-Latn", "-script_latin", "-US", "_Cyrl", "-Hant"]),
    available=st.lists(st.sampled_from([row["code"] for row in ROWS]), min_size=1, max_size=60, unique=True),
)
def test_no_request_ever_finds_another_language(asked, suffix, available):
    try:
        tag = resolve_language(asked + suffix, available)
    except LanguageError:
        return
    assert tag in available
    code = tag.split("-")[0]
    if asked in CODES:
        assert code == asked
    elif asked in TWO:
        assert TWO[asked] in (code, MACRO.get(code))
    else:
        names = {language_name(tag), *(name for row in ISO if row["code"] == code for name in row["names"].split(";"))}
        names |= {row["names"] for row in ISO if row["code"] == MACRO.get(code)}
        assert asked.strip().casefold() in {code, tag, *(name.casefold() for name in names if name)}
    script = {"-Latn": "latin", "-script_latin": "latin", "_Cyrl": "cyrillic", "-Hant": "traditional"}.get(suffix)
    if script and "script_" in tag:
        assert tag.endswith(script)


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


def test_names_are_known_for_tags_codes_and_macrolanguages():
    names = {"fra": "French", "fr-FR": "French", "azj-script_latin": "Azerbaijani, North", "azj": "Azerbaijani, North"}
    names |= {"nep": "Nepali", "zh": "Chinese", "pes": "Iranian Persian", "xyz": None, "tr_demo": None, "": None}
    assert {tag: language_name(tag) for tag in names} == names


def test_the_nearest_are_few_sorted_and_available():
    assert nearest("zh", MMS_1B_ALL) == ["cmn-script_simplified", "hak", "nan", "yue-script_traditional"]
    assert nearest("zho", ["cdo", "yue", "cmn"]) == ["cmn", "cdo", "yue"]  # Mandarin is what Chinese mostly means
    assert nearest("que", MMS_1B_ALL, limit=3) == ["qub", "quf", "quh"]
    assert nearest("Frensh", MMS_1B_ALL, limit=1) == ["fra"]
    assert nearest("?!", MMS_1B_ALL) == []
    assert nearest("fra", []) == []


def test_importing_the_module_reads_no_table():
    probe = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import mms_jax.languages
found = [path for path in opened if path.endswith(".tsv")]
sys.modules["mms_jax.languages"].languages()
assert [path for path in opened if path.endswith(".tsv")], "the probe sees no file"
sys.exit(1 if found else 0)
"""
    assert subprocess.run([sys.executable, "-c", probe], check=False, timeout=60).returncode == 0

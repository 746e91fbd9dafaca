"""Language names, codes and tags: the right tag or a LanguageError, never another language."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_jax.errors import LanguageError
from mms_jax.languages import CHECKPOINTS, TASKS, find_languages, language_name, languages, resolve_language
from tests.languages_table import ISO, MACRO, MMS_1B_ALL, ROWS, TWO, read

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
        ("zh", "cmn-script_simplified"),
        ("ZH", "cmn-script_simplified"),
        ("Chinese", "cmn-script_simplified"),
        ("chinese", "cmn-script_simplified"),
        ("zh-CN", "cmn-script_simplified"),
        ("zh-Hans", "cmn-script_simplified"),
        ("zh_hans_cn", "cmn-script_simplified"),
        ("zh-cmn", "cmn-script_simplified"),
        ("cmn", "cmn-script_simplified"),
        ("Mandarin Chinese", "cmn-script_simplified"),
        ("Mandarin", "cmn-script_simplified"),
        ("zh-yue-HK", "yue-script_traditional"),
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


def answer_or_error(asked: str, tags: list[str], *, task: str) -> str:
    try:
        return resolve_language(asked, tags, task=task)
    except LanguageError as error:
        return str(error)


TASK_OF = {name: task for name, column in CHECKPOINTS.items() for task in TASKS if column in TASKS[task]}


@pytest.mark.parametrize("checkpoint", list(CHECKPOINTS))
def test_every_published_tag_and_its_name_mean_itself(checkpoint):
    covered = languages(checkpoint=checkpoint)
    tags = [language.code for language in covered]
    every = set(tags)
    assert [resolve_language(tag, every, task=TASK_OF[checkpoint]) for tag in tags] == tags
    for language in covered[:: max(1, len(covered) // 60)]:  # these look at every tag; 60 are enough
        assert resolve_language(language.code.replace("_", "-").upper(), tags) == language.code
        answer = answer_or_error(language.name, tags, task=TASK_OF[checkpoint])
        if answer not in tags:  # shared with another script, dialect or language: this one is offered too
            answer = answer.split(language.name, 1)[1]
        assert answer == language.code or (
            answer not in tags and re.search(rf"\b{language.code.split('-')[0]}\b", answer)
        )


@pytest.mark.parametrize("pair", BIBLIOGRAPHIC.split())
def test_bibliographic_codes_mean_the_terminological_ones(pair):
    bibliographic, terminological = pair.split(":")
    assert resolve_language(bibliographic, ["eng", terminological]) == terminological
    assert resolve_language(bibliographic.upper(), ["eng", terminological]) == terminological


def test_all_two_letter_codes_find_their_language():
    assert len(TWO) == 184
    for two, three in TWO.items():
        assert resolve_language(two, ["xyz", three]) == three
        assert resolve_language(three, ["xyz", two]) == two  # a user's tag may be the short one
    assert {row["iso639_1"] for row in ROWS if row["iso639_1"]} <= TWO.keys()


@pytest.mark.parametrize("checkpoint", [name for name in CHECKPOINTS if languages(checkpoint=name)])
def test_every_two_letter_code_finds_its_tag_or_is_told_of_every_tag_there_is(checkpoint):
    tags = [language.code for language in languages(checkpoint=checkpoint)]
    for two, three in TWO.items():
        family = [tag for tag in tags if three in (tag.split("-")[0], MACRO.get(tag.split("-")[0]))]
        answer = answer_or_error(two, tags, task=TASK_OF[checkpoint])
        if answer not in tags:
            listed = [tag for tag in family if re.search(rf"\b{tag}\b", answer)]
            assert len(listed) >= min(4, len(family))  # some have 30: a dozen, or the nearest, are named
        else:
            assert answer in family


@pytest.mark.parametrize("checkpoint", ["mms-1b-all", "mms-1b-fl102", "mms-lid-126", "mms-lid-256", "mms-lid-4017"])
@pytest.mark.parametrize("asked", ["zh", "Chinese", "cmn", "zh-Hans", "cmn-script_simplified"])
def test_chinese_is_mandarin_wherever_mandarin_is(checkpoint, asked):
    tags = [language.code for language in languages(checkpoint=checkpoint)]
    assert resolve_language(asked, tags) == ("cmn" if "lid" in checkpoint else "cmn-script_simplified")


@pytest.mark.parametrize("asked", ["zh", "Chinese", "zh-Hans", "zh-Hant"])
def test_chinese_is_no_other_language_where_mandarin_is_not(asked):
    for available in (["hak"], ["yue-script_traditional", "eng"], ["hak", "nan"], ["yue"]):
        with pytest.raises(LanguageError, match=rf"'{asked}' .*is not available .*nearest: {available[0]}"):
            resolve_language(asked, available)
    assert resolve_language(asked, ["zho", "cmn"]) == "zho"  # a user's own


@pytest.mark.parametrize("region", ["HK", "MO", "TW"])
def test_where_chinese_may_be_cantonese_or_written_otherwise_nothing_is_chosen(region):
    for available in (MMS_1B_ALL, ["cmn", "yue"], ["yue"]):
        with pytest.raises(LanguageError, match=r"nearest: .*yue"):
            resolve_language(f"zh-{region}", available)
    assert resolve_language(f"zh-{region}", [f"zh-{region}", "cmn"]) == f"zh-{region}"
    assert resolve_language(f"yue-{region}", MMS_1B_ALL) == "yue-script_traditional"


def test_macrolanguages_agree_with_the_list_the_coverage_came_with():
    two = {row["code"]: row["iso639_1"] for row in ISO}
    for row in read("macro_iso639_1"):
        code = row["code"].split("-")[0]
        assert (MACRO[code], two[MACRO[code]]) == (row["macrolanguage"], row["iso639_1_of_macrolanguage"])
        if row["macrolanguage"] != "zho" or code == "cmn":  # "zh" is Mandarin, and none of the others
            assert resolve_language(row["iso639_1_of_macrolanguage"], ["eng", row["code"]]) == row["code"]


@pytest.mark.parametrize(
    ("asked", "candidates"),
    [
        ("azj", ["azj-script_cyrillic", "azj-script_latin"]),
        ("az", ["azb", "azj-script_cyrillic", "azj-script_latin"]),
        ("Azerbaijani, North", ["azj-script_cyrillic", "azj-script_latin"]),
        ("sr", ["srp-script_cyrillic", "srp-script_latin"]),
        ("az-Arab", ["azb", "azj-script_cyrillic", "azj-script_latin"]),  # azb is, but does not say so
        ("ku", ["ckb", "kmr-script_arabic", "kmr-script_cyrillic", "kmr-script_latin"]),
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
        if asked != "az-Arab" or tag == "azb":
            assert resolve_language(asked, ["eng", tag]) == tag


def test_a_name_that_is_another_language_code_is_not_guessed():
    assert resolve_language("dan", ["dan", "dnj-dialect_blowowest"]) == "dan"
    assert resolve_language("DAN", ["dan", "dnj-dialect_blowowest"]) == "dan"
    for available in (["dan"], ["dnj-dialect_blowowest"], ["dan", "dnj-dialect_blowowest"]):
        with pytest.raises(LanguageError, match=r"'Dan' is several languages: dan \(Danish\), dnj \(Dan\)"):
            resolve_language("Dan", available)


@pytest.mark.parametrize("asked", ["?", "!!", "—", "'", "（）"])
def test_signs_are_no_name_of_the_language_that_has_none(asked):
    assert language_name("xdn") is None
    with pytest.raises(LanguageError, match="is not available"):
        resolve_language(asked, ["xdn", "eng"])


def test_a_name_shared_by_languages_is_not_guessed():
    with pytest.raises(LanguageError, match=r"'Atong' is several languages: aot \(Atong\), ato \(Atong\)"):
        resolve_language("Atong", ["aot", "eng"])


def test_a_tag_in_the_script_asked_for_comes_before_one_that_states_none():
    assert resolve_language("ku-Latn", ["kmr", "kmr-script_arabic", "kmr-script_latin"]) == "kmr-script_latin"
    assert resolve_language("ku-Cyrl", ["kmr", "kmr-script_arabic", "kmr-script_latin"]) == "kmr"


def test_tags_of_ones_own_are_matched_exactly_and_never_read_as_a_language():
    own = ["xyz", "tr_demo", "fra2", "My Dialect"]
    for tag in own:
        assert resolve_language(tag, own) == tag
        assert resolve_language(tag.upper(), own) == tag
    for asked in ("tr", "tur", "Turkish", "fra", "fr"):
        with pytest.raises(LanguageError, match="is not available in this checkpoint"):
            resolve_language(asked, own)


CODES = sorted({row["code"].split("-")[0] for row in ROWS} | {row["code"] for row in ISO})


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


def test_names_are_known_for_tags_codes_and_macrolanguages():
    names = {"fra": "French", "fr-FR": "French", "azj-script_latin": "Azerbaijani, North", "azj": "Azerbaijani, North"}
    names |= {"nep": "Nepali", "zh": "Chinese", "pes": "Iranian Persian", "xyz": None, "tr_demo": None, "": None}
    assert {tag: language_name(tag) for tag in names} == names


@pytest.mark.parametrize(
    ("asked", "tags"),
    [
        ("zh", ["cmn-script_simplified", "hak", "nan", "yue-script_traditional"]),
        ("Chinese", ["cmn-script_simplified", "hak", "nan", "yue-script_traditional"]),
        ("cmn", ["cmn-script_simplified"]),
        ("zh-Hans", ["cmn-script_simplified"]),
        ("srp", ["srp-script_cyrillic", "srp-script_latin"]),
        ("SR-latn", ["srp-script_latin"]),
        ("Dan", ["dan", "dnj-dialect_blowowest", "dnj-dialect_gweetaawueast"]),
        ("kurdish", ["ckb", "kmr-script_arabic", "kmr-script_cyrillic", "kmr-script_latin"]),
        ("farsi", ["fas"]),
        ("Northern Azerbaijani", None),
        ("Bokmål", ["nob"]),
        ("cac_dialect-sanmateoixtatán", ["cac-dialect_sanmateoixtatan"]),
    ],
)
def test_a_search_finds_all_that_may_be_meant_and_nothing_else(asked, tags):
    if tags is None:
        with pytest.raises(LanguageError, match=r"'Northern Azerbaijani' .*nearest: azj-script_cyrillic"):
            find_languages(asked, MMS_1B_ALL)
    else:
        assert find_languages(asked, MMS_1B_ALL) == tags


@given(
    asked=st.sampled_from([*CODES, *TWO]) | st.sampled_from([row["name"] for row in ROWS]),
    available=st.lists(st.sampled_from([row["code"] for row in ROWS]), min_size=1, max_size=60, unique=True),
)
def test_a_search_finds_what_resolving_finds(asked, available):
    try:
        tag = resolve_language(asked, available)
    except LanguageError:
        return
    assert tag in find_languages(asked, available)

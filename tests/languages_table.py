"""The language tables as rows of strings, read by hand: what the tests of mms_jax.languages compare with."""

import csv
import gzip
from importlib.resources import files

DATA = files("mms_jax") / "data"


def read(name: str) -> list[dict[str, str]]:
    text = gzip.decompress((DATA / f"{name}.tsv.gz").read_bytes()).decode("utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


ROWS = read("mms_languages")
ISO = read("iso639")
TWO = {row["iso639_1"]: row["code"] for row in ISO if row["iso639_1"]}
MACRO = {row["code"]: row["macrolanguage"] for row in ISO if row["macrolanguage"]}
MMS_1B_ALL = [row["code"] for row in ROWS if row["asr_1b_all"] == "1"]

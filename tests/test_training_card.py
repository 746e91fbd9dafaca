"""The model card tells the hub's tools and people what was trained, keeps what others wrote, and its code runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import mms_jax
from mms_jax.checkpoint import find_licence, open_source
from mms_jax.errors import CheckpointError
from mms_jax.training.files.card import CARD, RESULTS, BaseReport, LanguageReport, write_card
from tests.sounds import noise
from tests.test_lid_parity import compiling_quickly
from tests.training_outputs import mms, trained

BASE = BaseReport(name="facebook/mms-1b-all", on_hub=True, fingerprint="0123456789abcdef" * 4, licence="cc-by-nc-4.0")
SETTINGS = {"learning_rate": 1e-3, "num_train_epochs": 4, "bf16": True, "chars_to_ignore": [",", "?"]}


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly() -> Iterator[None]:
    with compiling_quickly():
        yield


def report(language: str | None = "tur", **changes: Any) -> LanguageReport:
    values: dict[str, Any] = {
        "language": language,
        "dataset": "org/common_voice",
        "dataset_config": "tr",
        "dataset_on_hub": True,
        "train_split": "train+validation",
        "eval_split": "test",
        "clips": 3478,
        "hours": 3.5149,
        "dropped": {"too long": 12, "undecodable": 1, "empty text": 0},
        "eval_clips": 1647,
        "steps": 436,
        "hyperparameters": SETTINGS,
        "metrics": {"wer": 0.34567, "cer": 0.0812, "loss": 0.2871},
    }
    return LanguageReport(**values | changes)


def card(directory: Path) -> huggingface_hub.ModelCard:
    """As the hub's tools read it."""
    return huggingface_hub.ModelCard.load(directory / CARD)


def test_the_hub_s_tools_read_what_it_says(tmp_path):
    data = card_data = card(write_card(tmp_path, base=BASE, reports=[report()], repo_id="user/mms-tur").parent).data
    assert (data.language, data.license, data.base_model) == (["tur"], "cc-by-nc-4.0", "facebook/mms-1b-all")
    assert {"automatic-speech-recognition", "mms", "wav2vec2", "adapter", "jax"} <= set(data.tags)
    assert (data.datasets, data.metrics, data.model_name) == (["org/common_voice"], ["wer", "cer"], "user/mms-tur")
    assert card_data.eval_results is not None
    wer, cer = card_data.eval_results
    assert (wer.metric_type, wer.metric_value, cer.metric_type, cer.metric_value) == ("wer", 0.3457, "cer", 0.0812)
    assert (wer.task_type, wer.dataset_type, wer.dataset_config) == (
        "automatic-speech-recognition",
        "org/common_voice",
        "tr",
    )
    assert wer.dataset_split == "test"


def test_people_read_results_data_settings_and_the_base(tmp_path):
    text = write_card(tmp_path, base=BASE, reports=[report()]).read_text()
    assert "| Turkish (tur) | 34.57 % | 8.12 % | 0.2871 | 1,647 | 436 |" in text
    assert "| Turkish (tur) | org/common_voice / tr | train+validation, test | 3,478 | 3.51 |" in text
    assert "| 12 too long, 1 undecodable |" in text
    assert "empty text" not in text
    assert "- `learning_rate`: 0.001\n- `num_train_epochs`: 4" in text
    assert "`facebook/mms-1b-all`, fingerprint `0123456789ab`, licence cc-by-nc-4.0" in text
    assert tmp_path.name in text


def test_weights_of_an_earlier_step_do_not_claim_all_that_were_trained(tmp_path):
    text = write_card(
        tmp_path, base=BASE, reports=[report(best_step=10, steps=20), report("swe", steps=20)]
    ).read_text()
    rows = [line.split(" | ")[-1] for line in text.splitlines() if " | 1,647 | " in line]
    assert rows == ["20 |", "best of step 10 of 20 |"]


def test_a_second_language_keeps_the_rows_of_the_first_and_replaces_its_own(tmp_path):
    write_card(tmp_path, base=BASE, reports=[report("tur"), report("swe", metrics={"wer": 0.9})])
    other = {**SETTINGS, "learning_rate": 5e-4}
    changed = [report("swe", metrics={"wer": 0.2}, hyperparameters=other), report("azj-script_latin")]
    text = write_card(tmp_path, base=BASE, reports=changed).read_text()
    results = text[text.index("## Results") : text.index("## Use")]
    rows = re.findall(r"^\| ([^|]*\([\w-]+\)) \| ([\d.]+) %", results, re.MULTILINE)
    assert [name.partition("(")[2] for name, _ in rows] == ["azj-script_latin)", "swe)", "tur)"]
    assert dict(rows)["Swedish (swe)"] == "20.00"
    assert text.count("`learning_rate`: 0.001") == text.count("`learning_rate`: 0.0005") == 1
    assert card(tmp_path).data.language == ["azj", "swe", "tur"]
    assert set(json.loads((tmp_path / RESULTS).read_text())["languages"]) == {"azj-script_latin", "swe", "tur"}


def test_languages_of_one_data_set_have_results_of_their_own(tmp_path):
    write_card(tmp_path, base=BASE, reports=[report("tur"), report("swe", metrics={"wer": 0.9}), report("fra")])
    write_card(tmp_path, base=BASE, reports=[report("fra", dataset_config="fr")])
    results = card(tmp_path).data.to_dict()["model-index"][0]["results"]
    found = {result["dataset"]["config"]: [metric["value"] for metric in result["metrics"]] for result in results}
    assert found == {"tur": [0.3457, 0.0812], "swe": [0.9], "fr": [0.3457, 0.0812]}


def test_the_card_is_made_of_the_results_alone(tmp_path):
    odd = report("tur", dataset=r"a\1|b")
    first = write_card(tmp_path, base=BASE, reports=[odd, report("swe")]).read_text()
    assert write_card(tmp_path, base=BASE, reports=[report("swe")]).read_text() == first
    (tmp_path / CARD).unlink()
    assert write_card(tmp_path, base=BASE, reports=[]).read_text() == first


def test_what_others_wrote_stays(tmp_path):
    (tmp_path / CARD).write_text("---\nlicense: mit\n---\n# Our model\n\nThanks to \\1 and $& everybody.\n")
    text = write_card(tmp_path, base=BASE, reports=[report()]).read_text()
    assert text.count("Thanks to \\1 and $& everybody.") == text.count("# Our model") == 1
    (tmp_path / CARD).write_text(text + "\nAdded below.\n")
    again = write_card(tmp_path, base=BASE, reports=[report("swe")]).read_text()
    assert again.count("Added below.") == again.count("# Our model") == again.count("## Results") == 1
    assert again.count("---\n") == text.count("---\n") == 2
    assert card(tmp_path).data.license == "cc-by-nc-4.0"


def test_what_is_not_known_is_left_out_or_said(tmp_path):
    local = {"dataset": "/home/me/clips/data.csv", "dataset_config": None, "dataset_on_hub": False}
    base = BaseReport(name="my-base", on_hub=False, fingerprint="ab" * 32)
    nothing = report(**local, eval_split=None, eval_clips=0, metrics={}, hyperparameters={}, dropped={})
    text = write_card(tmp_path, base=base, reports=[nothing]).read_text()
    data = card(tmp_path).data
    assert (data.license, data.base_model, data.datasets, data.metrics) == (None, None, None, None)
    assert data.eval_results is None
    assert "/home/me" not in text
    assert "| data.csv | train+validation | 3,478 | 3.51 | none |" in text
    assert "| – | – | – | not evaluated | 436 |" in text
    assert "states no licence" in text


def test_numbers_that_are_none_and_settings_of_any_type_are_no_trouble(tmp_path):
    odd = {"path": Path("a|b"), "text": "two\nlines | x", "none": None}
    metrics = {"wer": float("nan"), "cer": float("inf"), "loss": 1.5}
    text = write_card(tmp_path, base=BASE, reports=[report(metrics=metrics, hyperparameters=odd)]).read_text()
    assert "NaN" not in (tmp_path / RESULTS).read_text()
    assert "| Turkish (tur) | – | – | 1.5000 | 1,647 | 436 |" in text
    assert "- `none`: null\n- `path`: a|b\n- `text`: two lines | x" in text
    assert card(tmp_path).data.eval_results is None


def test_a_name_cannot_break_out_of_its_cell_or_the_front_matter(tmp_path):
    evil = report(dataset='x | y\n---\nlicense: "mit"', train_split="a|b")
    text = write_card(tmp_path, base=BASE, reports=[evil]).read_text()
    assert r"| x \| y --- license: \"mit\" / tr | a\|b, test |".replace(r"\"", '"') in text
    assert card(tmp_path).data.license == "cc-by-nc-4.0"


def test_a_whole_model_needs_no_language(tmp_path):
    text = write_card(tmp_path, base=BASE, reports=[report(None)], repo_id="user/model").read_text()
    data = card(tmp_path).data
    assert (data.language, "adapter" in data.tags) == (None, False)
    assert 'mms_jax.load_asr("user/model")' in text
    assert 'from_pretrained("user/model")' in text
    assert "| the language of the data | 34.57 %" in text


def test_a_base_s_licence_is_found_in_the_card_we_write(tmp_path):
    """A model trained on a model that was trained here inherits it."""
    write_card(tmp_path, base=BASE, reports=[report()])
    assert find_licence(open_source(tmp_path)) == "cc-by-nc-4.0"


def test_malformed_results_are_named(tmp_path):
    (tmp_path / RESULTS).write_text('{"languages": ["tur"]}')
    with pytest.raises(CheckpointError, match=rf"{RESULTS}.*remove it"):
        write_card(tmp_path, base=BASE, reports=[report()])


def test_the_code_on_the_card_runs(tmp_path, capsys, monkeypatch):
    base = Path(shutil.copytree(mms(), tmp_path / "base"))
    trained(tmp_path / "out", base, "tur")
    text = write_card(tmp_path / "out", base=BASE, reports=[report()], repo_id=str(tmp_path / "out")).read_text()
    ours, theirs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    transcribe = mms_jax.pipelines.asr.SpeechRecognizer.transcribe
    monkeypatch.setattr(
        mms_jax.pipelines.asr.SpeechRecognizer, "transcribe", lambda self, _: transcribe(self, noise(8000))
    )
    names: dict[str, Any] = {}
    exec(ours, names)
    exec(theirs, names)
    assert names["asr"].language == "tur"
    assert names["model"].lm_head.out_features == len(names["processor"].tokenizer)
    assert capsys.readouterr().out.strip()

"""Models and adapters go to a hub (on this machine, behind the real client) in one commit, and break nothing there."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import constants

import mms_jax
from mms_jax.checkpoint.card import PUSHED, TRAINED
from mms_jax.checkpoint.publish import Target, open_target
from mms_jax.errors import CheckpointError, TrainingError
from mms_jax.training.files.output import push_to_hub
from tests import tts_checkpoints
from tests.checkpoints import many_languages, one_vocabulary
from tests.hub_server import READER, WRITER, HubServer
from tests.test_hub_server import use
from tests.test_lid_parity import SHORT, save_lid

# The client's own upload without Xet (huggingface_hub 2.4, lfs.py) calls its HTTP library as that one warns not to.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

BASE, REPO = "org/mms-tiny", "user/mms-mine"
LICENCE = b"---\nlicense: cc-by-nc-4.0\n---\n# MMS\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return many_languages(tmp_path_factory.mktemp("mms"))


@pytest.fixture
def hub(directory, monkeypatch, tmp_path) -> Iterator[HubServer]:
    """A hub that holds the base, and the client in this process."""
    with HubServer() as hub:
        hub.add(BASE, {path.name: path.read_bytes() for path in directory.iterdir()} | {"README.md": LICENCE})
        yield from use(hub, monkeypatch, tmp_path)


@pytest.fixture
def asr(hub) -> mms_jax.SpeechRecognizer:
    return mms_jax.load_asr(BASE, language="fra")


def front_matter(readme: bytes) -> dict:
    return yaml.safe_load(readme.decode().split("---\n")[1])


def refused(pushes, *words: str) -> str:
    with pytest.raises(CheckpointError) as raised:
        pushes()
    message = str(raised.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert "hf_" not in message
    return message


# ------------------------------------------------------------------------------------------------ whole models


def test_a_pushed_recogniser_loads_under_its_new_name_in_one_commit_with_a_card(hub, asr):
    info = asr.push_to_hub(REPO, token=WRITER, private=True, commit_message="French")
    repo = hub.repos[REPO]
    assert repo.private
    assert list(repo.messages.values()) == ["", "French"]
    assert info.commit_url == f"{hub.endpoint}/{REPO}/commit/{repo.branches['main']}"
    again = mms_jax.load_asr(REPO, language="fra", token=WRITER)
    np.testing.assert_array_equal(again.params["lm_head"]["kernel"], asr.params["lm_head"]["kernel"])
    card = front_matter(repo.files["README.md"])
    assert card == {
        "language": ["fra"],
        "license": "cc-by-nc-4.0",
        "base_model": BASE,
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["jax", "mms"],
    }
    assert f'load_asr("{REPO}", language="fra")'.encode() in repo.files["README.md"]


def test_parameters_that_were_trained_are_those_that_are_pushed(hub, asr):
    params = asr.params | {"lm_head": {name: leaf * 2 for name, leaf in asr.params["lm_head"].items()}}
    asr.push_to_hub(REPO, token=WRITER, params=params)
    again = mms_jax.load_asr(REPO, language="fra")
    np.testing.assert_array_equal(again.params["lm_head"]["kernel"], params["lm_head"]["kernel"])


def test_a_model_without_a_language_or_a_licence_is_pushed_without_either(hub, tmp_path):
    asr = mms_jax.load_asr(one_vocabulary(tmp_path / "secret place" / "mine"))
    asr.push_to_hub(REPO, token=WRITER)
    readme = hub.repos[REPO].files["README.md"]
    assert not {"language", "license", "base_model"} & front_matter(readme).keys()
    assert b"secret place" not in readme
    mms_jax.load_asr(REPO)


def test_an_identifier_and_a_voice_are_pushed_and_load_again(hub, tmp_path):
    lid = mms_jax.load_lid(save_lid(tmp_path / "lid", **SHORT))
    lid.push_to_hub("user/lid", token=WRITER)
    assert mms_jax.load_lid("user/lid").languages == lid.languages
    card = front_matter(hub.repos["user/lid"].files["README.md"])
    assert (card["pipeline_tag"], card["language"]) == ("audio-classification", sorted(lid.languages))
    mms_jax.load_tts(tts_checkpoints.directory("english")).push_to_hub("user/voice", token=WRITER)
    assert mms_jax.load_tts("user/voice").language == "eng"
    assert front_matter(hub.repos["user/voice"].files["README.md"])["pipeline_tag"] == "text-to-speech"


def test_another_model_is_not_pushed_over_the_base_of_adapters(hub, asr):
    before = dict(hub.repos[BASE].files)
    refused(lambda: asr.push_to_hub(BASE, token=WRITER), BASE, "adapter.", "push_adapter_to_hub")
    assert hub.repos[BASE].files == before


def test_a_branch_and_a_pull_request_leave_main_alone(hub, asr):
    asr.push_to_hub(REPO, token=WRITER, revision="french")
    assert set(hub.repos[REPO].files) == {".gitattributes"}
    assert mms_jax.load_asr(REPO, revision="french", language="fra").language == "fra"
    info = asr.push_to_hub(REPO, token=WRITER, create_pr=True)
    assert info.pr_url is not None
    assert set(hub.repos[REPO].files) == {".gitattributes"}


# ------------------------------------------------------------------------------------------------ adapters


def test_an_adapter_joins_those_that_are_there_and_all_load(hub, asr):
    files = {name: content for name, content in hub.repos[BASE].files.items() if name != "adapter.fra.safetensors"}
    vocab = {tag: own for tag, own in json.loads(files["vocab.json"]).items() if tag != "fra"}
    repo = hub.add(REPO, files | {"vocab.json": json.dumps(vocab).encode()})
    asr.push_adapter_to_hub(REPO, token=WRITER)
    assert len(repo.commits) == 2
    assert json.loads(repo.files["vocab.json"]).keys() == vocab.keys() | {"fra"}
    assert {name: repo.files[name] for name in files if "vocab" not in name and "token" not in name} == {
        name: content for name, content in files.items() if "vocab" not in name and "token" not in name
    }
    for language in ("fra", "eng", "azj-script_latin"):
        expected = mms_jax.load_asr(BASE, language=language).params["lm_head"]["kernel"]
        found = mms_jax.load_asr(REPO, language=language).params["lm_head"]["kernel"]
        np.testing.assert_array_equal(found, expected)


def test_adapters_alone_make_a_repository_whose_card_says_how_to_use_them(hub, asr):
    asr.push_adapter_to_hub(REPO, token=WRITER)
    asr.push_adapter_to_hub(REPO, language="azj-script_latin", token=WRITER)
    repo = hub.repos[REPO]
    assert json.loads(repo.files["vocab.json"]).keys() == {"fra", "azj-script_latin"}
    assert {name for name in repo.files if name.endswith("safetensors")} == {
        "adapter.fra.safetensors",
        "adapter.azj-script_latin.safetensors",
    }
    card = front_matter(repo.files["README.md"])
    assert (card["language"], card["base_model"]) == (["azj", "fra"], BASE)
    assert "adapter" in card["tags"]
    folder = huggingface_hub.snapshot_download(REPO, allow_patterns=["adapter.fra.safetensors", "vocab.json"])
    other = mms_jax.load_asr(BASE)
    other.load_adapter(f"{folder}/adapter.fra.safetensors", language="fra")
    np.testing.assert_array_equal(other.params["lm_head"]["kernel"], asr.params["lm_head"]["kernel"])


def test_a_language_that_is_there_is_replaced_only_when_asked(hub, asr):
    asr.push_adapter_to_hub(REPO, token=WRITER)
    refused(
        lambda: asr.push_adapter_to_hub(REPO, token=WRITER), REPO, "adapter.fra.safetensors is there", "overwrite=True"
    )
    asr.push_adapter_to_hub(REPO, token=WRITER, overwrite=True)


def test_an_adapter_is_not_added_to_another_base(hub, asr, tmp_path):
    other = one_vocabulary(tmp_path / "other", hidden_size=48, num_attention_heads=2, adapter_attn_dim=4)
    hub.add(REPO, {"config.json": (other / "config.json").read_bytes()})
    refused(lambda: asr.push_adapter_to_hub(REPO, token=WRITER), REPO, "not this adapter's base", "another repository")
    assert set(hub.repos[REPO].files) == {"config.json"}


FLAT = b'{"a": 0, "<pad>": 1, "<s>": 2, "</s>": 3, "<unk>": 4, "|": 5}'


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("vocab.json", FLAT, "a flat vocabulary; 'fra' cannot be added"),
        ("vocab.json", b"", "not valid JSON"),
        ("vocab.json", b"{}", "a non-empty JSON object"),
        ("vocab.json", b'{"fra": {"a": 0}, "b": 1}', "neither flat nor nested"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("added_tokens.json", b"[]", "expected an object"),
    ],
)
def test_a_vocabulary_that_no_adapter_joins_is_named_by_its_repository_with_what_to_do(hub, asr, name, content, why):
    nested = {"vocab.json": json.dumps({"deu": json.loads(FLAT)}).encode()}
    before = dict(hub.add(REPO, nested | {name: content}).files)
    helps = "push to another repository, or the whole model with push_to_hub"
    message = refused(lambda: asr.push_adapter_to_hub(REPO, token=WRITER), f"{REPO}: {name}: ", why, helps)
    assert "mms_jax_push" not in message
    assert hub.repos[REPO].files == before


def test_a_base_that_cannot_be_read_is_named_by_its_repository_with_what_to_do(hub, asr):
    hub.add(REPO, {"config.json": b""})
    message = refused(lambda: asr.push_adapter_to_hub(REPO, token=WRITER), "not valid JSON", "another repository")
    assert message.startswith(f"{REPO}: its config.json")


def test_parameters_that_cannot_be_saved_are_not_said_to_lie_in_a_file_that_is_gone(hub, asr):
    params = asr.params | {"lm_head": {name: leaf * np.nan for name, leaf in asr.params["lm_head"].items()}}
    message = refused(lambda: asr.push_to_hub(REPO, token=WRITER, params=params), f"{REPO}: model.safetensors", "NaN")
    assert "mms_jax_push" not in message


def test_a_change_made_meanwhile_is_an_error_and_not_a_loss(hub, asr, monkeypatch):
    asr.push_adapter_to_hub(REPO, token=WRITER)
    repo, save = hub.repos[REPO], type(asr).save_adapter

    def save_late(self, *args, **options):
        if len(repo.commits) == 2:
            repo.commit(repo.files | {"vocab.json": b"somebody else's"})
        return save(self, *args, **options)

    monkeypatch.setattr(type(asr), "save_adapter", save_late)
    refused(lambda: asr.push_adapter_to_hub(REPO, language="eng", token=WRITER), REPO, "meanwhile", "push again")
    assert repo.files["vocab.json"] == b"somebody else's"


@pytest.mark.parametrize("exists", [True, False])
def test_of_two_that_push_at_once_one_is_told_that_the_other_was_first_and_may_push_again(
    hub, asr, monkeypatch, exists
):
    if exists:
        hub.add(REPO, {"vocab.json": json.dumps({"deu": json.loads(FLAT)}).encode()})
    both, commit = threading.Barrier(2, timeout=30), Target.commit

    def commit_together(self, *args, **options):
        both.wait()
        return commit(self, *args, **options)

    def push(language: str) -> str | None:
        try:
            asr.push_adapter_to_hub(REPO, language=language, token=WRITER)
        except CheckpointError as error:
            return f"{language}: {error}"

    open_target(REPO, token=WRITER)
    monkeypatch.setattr(Target, "commit", commit_together)
    with ThreadPoolExecutor(2) as pool:
        (lost,) = filter(None, pool.map(push, ["fra", "eng"]))
    assert f": {REPO}: not pushed (" in lost
    assert "somebody else pushed meanwhile, and nothing of this was: push again" in lost
    assert len(hub.repos[REPO].commits) == 2
    monkeypatch.setattr(Target, "commit", commit)
    assert push(lost.partition(":")[0]) is None
    assert {"fra", "eng"} <= json.loads(hub.repos[REPO].files["vocab.json"]).keys()


# ------------------------------------------------------------------------------------------------ cards


def test_a_card_that_is_not_ours_stays_to_the_byte(hub, asr, tmp_path):
    hub.add(REPO, {"README.md": b"my own words"})
    asr.push_to_hub(REPO, token=WRITER)
    assert hub.repos[REPO].files["README.md"] == b"my own words"
    shutil.copytree(Path(huggingface_hub.snapshot_download(REPO)), tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("another text")
    push_to_hub(tmp_path / "out", REPO, token=WRITER)
    assert hub.repos[REPO].files["README.md"] == b"my own words"


def test_what_was_added_to_our_card_by_hand_stays(hub, asr):
    asr.push_adapter_to_hub(REPO, token=WRITER)
    repo = hub.repos[REPO]
    mine = repo.files["README.md"].replace(b"library_name", b"thumbnail: me.png\nlibrary_name") + b"\nMy own words.\n"
    repo.commit(repo.files | {"README.md": mine})
    asr.push_adapter_to_hub(REPO, language="eng", token=WRITER)
    readme = repo.files["README.md"]
    assert front_matter(readme)["thumbnail"] == "me.png"
    assert front_matter(readme)["language"] == ["eng", "fra"]
    assert readme.endswith(b"My own words.\n")
    assert readme.decode().count(PUSHED) == 1


def test_the_results_of_a_training_stay_in_its_card(hub, asr):
    trained = f"---\nlanguage: tur\nlicense: mit\n---\n\n{TRAINED}\n# Turkish\n\n| WER |\n".encode()
    hub.add(REPO, {"README.md": trained})
    asr.push_adapter_to_hub(REPO, token=WRITER)
    readme = hub.repos[REPO].files["README.md"]
    assert (front_matter(readme)["language"], front_matter(readme)["license"]) == (["fra", "tur"], "mit")
    assert readme.endswith(trained.partition(b"---\n\n")[2])


def test_a_card_whose_front_matter_is_no_yaml_is_named(hub, asr):
    hub.add(REPO, {"README.md": f"---\na: [\n---\n{PUSHED}".encode()})
    refused(lambda: asr.push_to_hub(REPO, token=WRITER), REPO, "README.md", "no YAML")


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("token", [None, READER, "hf_notOneOfOurs"])
def test_without_the_right_to_write_the_message_says_how_to_get_it(hub, asr, token):
    refused(lambda: asr.push_to_hub(REPO, token=token or False), f"{REPO}: not pushed", "log in", "token=")
    hub.add(REPO, {"config.json": b"{}"})
    refused(lambda: asr.push_to_hub(REPO, token=token or False), f"{REPO}: not pushed", "log in", "token=")
    assert set(hub.repos[REPO].files) == {"config.json"}


def test_a_token_is_stripped_and_one_that_cannot_be_sent_is_refused_and_not_shown(hub, asr, tmp_path, monkeypatch):
    asr.push_to_hub(REPO, token=f"{WRITER}\n")
    assert "model.safetensors" in hub.repos[REPO].files
    refused(lambda: asr.push_to_hub(REPO, token="hf_é"), REPO, "token= is empty, or not one word", "hf auth login")
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainingError, match=rf"{REPO}: token= .*; everything is in {tmp_path}"):
        push_to_hub(tmp_path / "out", REPO, token="hf_é")
    monkeypatch.setenv("HF_TOKEN", "hf_é")
    refused(lambda: asr.push_to_hub(REPO), REPO, "the token of this machine (HF_TOKEN", "set it again")


@pytest.mark.parametrize("name", ["a b", "a/b/c", "", "user/--"])
def test_a_name_that_is_none_is_refused(hub, asr, name):
    refused(lambda: asr.push_to_hub(name, token=WRITER), "not the name of a hub repository")


def test_a_revision_that_is_none_is_refused_before_anything_is_made(hub, asr):
    refused(lambda: asr.push_to_hub(REPO, token=WRITER, revision=""), REPO, "revision='' is no revision", "a branch")
    assert REPO not in hub.repos


def test_offline_by_choice_is_named(hub, asr, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    refused(lambda: asr.push_to_hub(REPO, token=WRITER), f"{REPO}: not pushed", "HF_HUB_OFFLINE")


def test_a_hub_that_does_not_answer_is_an_error(hub, asr):
    hub.stop()
    refused(lambda: asr.push_to_hub(REPO, token=WRITER), f"{REPO}: not pushed", "check the connection")


def test_a_large_file_that_does_not_arrive_is_an_error_and_no_half_commit(hub, asr):
    hub.fault("*", method="PUT", status=500, times=99)
    refused(lambda: asr.push_to_hub(REPO, token=WRITER), f"{REPO}: not pushed", "500", "try again later")
    assert set(hub.repos[REPO].files) == {".gitattributes"}


def test_a_trained_directory_goes_the_same_way_and_says_where_it_is_if_it_does_not(hub, tmp_path):
    (tmp_path / "out" / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "1" / "state").write_text("large")
    (tmp_path / "out" / "model.safetensors").write_bytes(bytes(100_000))
    assert push_to_hub(tmp_path / "out", REPO, token=WRITER) == f"{hub.endpoint}/{REPO}"
    assert set(hub.repos[REPO].files) == {".gitattributes", "model.safetensors"}
    with pytest.raises(TrainingError, match=rf"not pushed .*log in.*everything is in {tmp_path}"):
        push_to_hub(tmp_path / "out", REPO, token=READER)
    assert "hf_" not in repr(open_target(REPO, token=WRITER))

"""Where checkpoints come from: directories, a hub (on this machine, behind the real client) and the hub's cache."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
from huggingface_hub import constants

from mms_jax.checkpoint import Directory, find_adapter, load_adapter, load_ctc, open_source, require, save_ctc
from mms_jax.checkpoint.hub import Repository
from mms_jax.errors import CheckpointError, LanguageError
from mms_jax.models.trees import flatten
from tests.fake_hub import TOKEN, FakeHub, FakeRepository, Server
from tests.parity import random_model, small_config

REPO, OLD, NEW = "org/model", "0" * 39 + "a", "0" * 39 + "b"  # two commits
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@functools.cache
def checkpoint_files(max_shard_size: str = "1GB") -> dict[str, bytes]:
    """A small checkpoint of transformers with one adapter file."""
    model = random_model(small_config())
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name, max_shard_size=max_shard_size)
        safetensors.torch.save_file(model._get_adapters(), Path(name) / "adapter.eng.safetensors", {"format": "pt"})
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name not in names}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.hub.repositories[REPO] = FakeRepository({NEW: dict(checkpoint_files())}, {"main": NEW})
    yield server
    server.stop()


@pytest.fixture
def hub(server, monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """The real client, online, with the server on this machine for a hub and a cache of its own."""
    download = functools.partial(huggingface_hub.hf_hub_download, endpoint=server.hub.endpoint)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its retries
    for name in ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    yield server.hub
    huggingface_hub.close_session()


def test_only_the_files_that_are_needed_are_fetched_and_each_once(hub):
    source = open_source(REPO)
    loaded = load_ctc(source)
    assert hub.fetched() == ["config.json", WEIGHTS]
    load_adapter(find_adapter(source, "eng"), loaded.config)
    load_ctc(source)
    assert hub.fetched() == ["config.json", WEIGHTS, "adapter.eng.safetensors"]
    assert source.filenames() == ["adapter.eng.safetensors", "config.json", WEIGHTS]
    load_ctc(open_source(REPO))
    assert len(hub.fetched()) == 3  # another session finds them in the cache


def test_a_sharded_repository_loads_as_the_whole_one(hub):
    whole = load_ctc(open_source(REPO))
    hub.repositories[REPO] = FakeRepository({OLD: dict(checkpoint_files("9KB"))}, {"main": OLD})
    shards = load_ctc(open_source(REPO))
    assert INDEX in hub.fetched()
    assert [name for name in checkpoint_files("9KB") if name.startswith("model-") and name not in hub.fetched()] == []
    for path, leaf in flatten(whole.params).items():
        np.testing.assert_array_equal(flatten(shards.params)[path], leaf)


def test_pickled_weights_are_not_even_fetched(hub):
    files = without(checkpoint_files(), WEIGHTS, "adapter.eng.safetensors") | {
        "pytorch_model.bin": b"",
        "adapter.eng.bin": b"",
    }
    hub.repositories[REPO] = FakeRepository({NEW: files}, {"main": NEW})
    with pytest.raises(CheckpointError, match=rf"{REPO}: neither {WEIGHTS} nor .*pytorch_model\.bin is a pickle"):
        load_ctc(open_source(REPO))
    with pytest.raises(LanguageError, match=rf"'eng' has no adapter\.eng\.safetensors in {REPO}"):
        find_adapter(open_source(REPO), "eng")
    assert hub.fetched() == ["config.json"]


def test_an_absent_file_is_none_and_asked_for_once(hub):
    source = open_source(REPO)
    assert source.find("added_tokens.json") is None
    num_requests = len(hub.requests)
    assert num_requests > 0
    assert source.find("added_tokens.json") is None
    assert len(hub.requests) == num_requests
    with pytest.raises(CheckpointError, match=rf"{REPO}: no added_tokens\.json there \(found: nothing\)"):
        require(source, "added_tokens.json")


def test_all_files_come_from_one_commit_even_if_the_branch_moves_meanwhile(hub):
    source = open_source(REPO)
    assert require(source, "config.json").parent.name == NEW
    hub.repositories[REPO].commits[OLD] = {"vocab.json": b"{}"}
    hub.repositories[REPO].revisions["main"] = OLD
    assert require(source, WEIGHTS).parent.name == NEW
    assert source.find("vocab.json") is None
    assert require(open_source(REPO), "vocab.json").parent.name == OLD


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_a_revision_is_a_branch_a_tag_or_a_commit(revision, hub):
    hub.repositories[REPO].commits[OLD] = {"config.json": b"old"}
    hub.repositories[REPO].revisions["v1"] = OLD
    source = open_source(REPO, revision=revision)
    assert require(source, "config.json").read_bytes() == b"old"
    assert source.name == f"{REPO}@{revision}"


@pytest.mark.parametrize("revision", ["", " ", "a b", "a\n", "../../x", "/etc/hostname", "\udcff", "a\\b", 7, b"main"])
def test_what_cannot_be_a_revision_is_said_to_be_none_before_the_hub_is_asked(revision, hub):
    with pytest.raises(CheckpointError, match=rf"{REPO}: revision=.* is no revision; .*branch or a tag, or a whole"):
        load_ctc(open_source(REPO, revision=revision))
    assert hub.requests == []


def test_a_token_opens_a_private_repository_and_is_shown_nowhere(hub):
    hub.repositories[REPO].private = True
    with pytest.raises(CheckpointError, match=f"{REPO}: neither a local directory nor a hub repository.*log in"):
        load_ctc(open_source(REPO))
    source = open_source(REPO, token=TOKEN)
    load_ctc(source)
    with pytest.raises(CheckpointError) as raised:
        require(source, "vocab.json")
    assert TOKEN not in f"{source!r} {source.name} {raised.value}"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("org/other", None, "org/other: neither a local directory nor a hub repository"),
        (f"{REPO}@v9", None, f"{REPO}@v9: the repository has no revision 'v9'"),
        (REPO, (403, "GatedRepo", "ask for access"), f"{REPO}: gated; accept its terms"),
        (REPO, (403, "", "Access to this resource is disabled."), f"{REPO}: .*config.json.*disabled"),
        (REPO, (401, "", "Invalid credentials in Authorization header"), f"{REPO}: .*config.json.*401"),
        (REPO, (500, "", ""), f"{REPO}: .*config.json is not in the local cache, and the hub did not give it.*500"),
        (REPO, (503, "", ""), f"{REPO}: .*config.json is not in the local cache, and the hub did not give it.*503"),
        (REPO, (429, "", ""), f"{REPO}: .*config.json is not in the local cache, and the hub did not give it.*429"),
    ],
)
def test_a_hub_that_refuses_gives_a_typed_error_that_says_why(name, error, message, hub):
    name, _, revision = name.partition("@")
    hub.repositories[REPO].error = error
    with pytest.raises(CheckpointError, match=message) as raised:
        load_ctc(open_source(name, revision=revision or None))
    assert raised.value.__cause__ is not None
    assert "\n" not in str(raised.value)


def test_a_download_that_breaks_off_is_an_error_and_leaves_no_half_file(hub):
    hub.cut_downloads = True
    with pytest.raises(CheckpointError, match=rf"{REPO}: config\.json cannot be fetched"):
        load_ctc(open_source(REPO))
    hub.cut_downloads = False
    load_ctc(open_source(REPO))


def test_an_answer_without_a_commit_is_an_error(hub):
    hub.without_metadata = True
    with pytest.raises(CheckpointError, match=rf"{REPO}: .*config\.json is not in the local cache"):
        load_ctc(open_source(REPO))


def test_a_cache_that_cannot_be_written_is_a_typed_error(hub, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=rf"{REPO}: config\.json cannot be fetched"):
        load_ctc(open_source(REPO, cache_dir=tmp_path / "file"))


def test_without_an_answer_only_what_is_known_counts(hub, server):
    first = open_source(REPO)
    expected = load_ctc(first)
    assert first.find("added_tokens.json") is None
    server.stop()
    source = open_source(REPO)
    assert load_ctc(source).config == expected.config
    assert source.find("added_tokens.json") is None  # this the hub has said before
    with pytest.raises(CheckpointError, match=r"vocab\.json is not in the local cache, and the hub did not give it"):
        source.find("vocab.json")  # this it has not: it may be there, and change what is computed
    with pytest.raises(
        CheckpointError, match=r"no local directory of that name, config\.json is not in the local cache"
    ):
        load_ctc(open_source("org/other"))


# ------------------------------------------------------------------------------------------------ the cache, offline


def make_cache(cache: Path, files: dict[str, bytes], *, revision: str = "main", commit: str = NEW) -> None:
    """What the hub's client leaves behind: blobs by hash, links to them by commit, commits by revision."""
    folder = cache / f"models--{REPO.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / digest).write_bytes(content)
        (folder / "snapshots" / commit / name).symlink_to(Path("..", "..", "blobs", digest))


@pytest.fixture(params=["local_files_only", "HF_HUB_OFFLINE"])
def offline(request, tmp_path) -> dict:
    """Options of ``open_source`` for either way to stay offline; tests run with HF_HUB_OFFLINE=1."""
    assert constants.is_offline_mode()
    return {"cache_dir": tmp_path / "cache", "local_files_only": request.param == "local_files_only"}


@pytest.mark.parametrize("max_shard_size", ["1GB", "9KB"], ids=["whole", "sharded"])
def test_a_cached_checkpoint_loads_offline_without_its_optional_files(max_shard_size, offline):
    make_cache(offline["cache_dir"], checkpoint_files(max_shard_size))
    source = open_source(REPO, **offline)
    loaded = load_ctc(source)
    load_adapter(find_adapter(source, "eng"), loaded.config)
    assert source.find("added_tokens.json") is None
    with pytest.raises(LanguageError, match=rf"'fra' has no adapter.* in {REPO} \(offline: only cached files\)"):
        find_adapter(source, "fra")


def test_an_optional_file_may_be_asked_for_first(offline):
    make_cache(offline["cache_dir"], checkpoint_files())
    source = open_source(REPO, **offline)
    assert source.find("processor_config.json") is None
    load_ctc(source)


@pytest.mark.parametrize("cached", [{}, {"README.md": b""}])
def test_offline_without_the_checkpoint_in_the_cache_is_an_error_that_says_so(cached, offline):
    if cached:
        make_cache(offline["cache_dir"], cached)
    with pytest.raises(CheckpointError, match=rf"{REPO}: .*config\.json is not in the local cache.*offline by choice"):
        load_ctc(open_source(REPO, **offline))


@pytest.mark.parametrize("revision", ["v1", NEW])
def test_offline_a_revision_is_looked_up_in_the_cache(revision, offline):
    make_cache(offline["cache_dir"], checkpoint_files(), revision="v1")
    load_ctc(open_source(REPO, revision=revision, **offline))
    with pytest.raises(CheckpointError, match="is not in the local cache"):
        load_ctc(open_source(REPO, **offline))  # main is not cached


def test_a_broken_link_in_the_cache_is_a_missing_file(offline):
    make_cache(offline["cache_dir"], checkpoint_files())
    for blob in offline["cache_dir"].rglob("blobs/*"):
        if blob.stat().st_size == len(checkpoint_files()[WEIGHTS]):
            blob.unlink()
    with pytest.raises(CheckpointError, match=f"neither {WEIGHTS} nor"):
        load_ctc(open_source(REPO, **offline))


def test_a_new_process_loads_from_the_cache_that_the_environment_names(tmp_path):
    make_cache(tmp_path / "hub", checkpoint_files())
    program = f"from mms_jax.checkpoint import *; print(load_ctc(open_source({REPO!r})).config.vocab_size)"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr, run.returncode) == ("23\n", "", 0)


# ------------------------------------------------------------------------------------------------ local or not


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """The current directory, a home beside it, and a checkpoint in either under the name of a repository."""
    for folder in (tmp_path / "here" / REPO, tmp_path / "home" / REPO):
        folder.mkdir(parents=True)
        for name, content in checkpoint_files().items():
            (folder / name).write_bytes(content)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("name", [REPO, f"./{REPO}", f"{REPO}/", f"~/{REPO}", f"../here/{REPO}", "{absolute}"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_directory_wins_whatever_its_name_looks_like(name, kind, workplace):
    source = open_source(kind(name.format(absolute=workplace / "here" / REPO)))
    assert isinstance(source, Directory)
    assert source.path.resolve() == workplace / ("home" if name.startswith("~") else "here") / REPO
    load_ctc(source)
    assert source.filenames() == sorted(checkpoint_files())


@pytest.mark.parametrize(
    "name",
    [
        "./models/x",
        "../x",
        "/no/such/place",
        "nowhere",
        "a/b/c",
        "org/mo..del",
        "org/mo--del",
        "/model",
        "org/modèle",
        "org/model:v1",
        "org/model name",
        "https://hub.example/org/model",
        "",
        "~nobody-of-that-name/model",
        "x" * 5000,
        "a\0b",
    ],
)
def test_what_is_neither_a_directory_nor_a_hub_name_is_an_error_that_says_both(name, workplace):
    with pytest.raises(CheckpointError, match=r"directory.* hub name"):
        open_source(name)


@pytest.mark.parametrize("name", ["org/other", "./x"])
def test_a_path_object_is_never_a_hub_name(name, workplace):
    with pytest.raises(CheckpointError, match="neither a local directory nor a hub name"):
        open_source(Path(name))


@pytest.mark.parametrize("name", ["org/model-", "org/model.git", "org/" + "x" * 97, "a/x-"])
def test_a_name_that_only_the_hub_knows_to_be_wrong_is_a_typed_error_too(name, workplace, offline):
    with pytest.raises(CheckpointError, match="not a hub name"):
        load_ctc(open_source(name, **offline))


def test_a_file_is_not_a_checkpoint_and_the_error_says_what_is(workplace):
    with pytest.raises(CheckpointError, match=r"is a file; a checkpoint is a directory with config\.json"):
        open_source(f"{REPO}/{WEIGHTS}")


@pytest.mark.parametrize(
    "filename", ["../secret", "/etc/passwd", "a/b", "..", ".", ".hidden", "", "a\0", "a\n", "é", "a\\b"]
)
def test_no_name_leads_out_of_a_checkpoint(filename, workplace, hub):
    (workplace / "here" / "org" / "secret").touch()
    for source in (open_source(REPO), Repository(REPO)):
        with pytest.raises(CheckpointError, match="is not the name of a checkpoint's file"):
            source.find(filename)
    assert hub.requests == []


def test_a_folder_is_not_a_file_of_a_checkpoint(workplace):
    (workplace / "here" / REPO / "vocab.json").mkdir()
    assert open_source(REPO).find("vocab.json") is None
    assert "vocab.json" not in open_source(REPO).filenames()


def test_a_checkpoint_may_be_saved_over_links_into_the_cache_without_touching_it(tmp_path):
    make_cache(tmp_path, checkpoint_files())
    snapshot = tmp_path / f"models--{REPO.replace('/', '--')}" / "snapshots" / NEW
    blobs = {path: path.read_bytes() for path in tmp_path.rglob("blobs/*")}
    config, params = load_ctc(open_source(snapshot))
    save_ctc(snapshot, config=config, params=params)
    assert {path: path.read_bytes() for path in tmp_path.rglob("blobs/*")} == blobs
    assert not (snapshot / WEIGHTS).is_symlink()
    load_ctc(open_source(snapshot))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("facebook/mms-tts-cmn", "; no synthesis for cmn; recognition exists as cmn-script_simplified; identification"),
        ("facebook/mms-tts-zh", "; no synthesis for cmn; recognition exists as cmn-script_simplified; identification"),
        ("facebook/mms-tts-fr", "; synthesis exists as mms-tts-fra"),
        ("facebook/mms-tts-fra", "; check the spelling"),  # it was published, so that is not why
        ("facebook/mms-tts-nonsense", "; check the spelling"),
        ("somebody/mms-tts-cmn", "; check the spelling"),
    ],
)
def test_a_synthesis_checkpoint_that_was_never_published_says_what_was(hub, model, reason):
    with pytest.raises(CheckpointError) as caught:
        open_source(model).find("config.json")
    assert str(caught.value).startswith(
        f"{model}: neither a local directory nor a hub repository that can be read{reason}"
    )

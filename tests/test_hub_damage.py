"""A cache of the hub's client that is damaged: what lies there is named, and deleting it as the message says helps."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import mms_jax
from mms_jax.errors import CheckpointError
from mms_jax.files import fetched_again, read_json
from tests.checkpoints import many_languages
from tests.hub_server import HubServer
from tests.test_hub_server import use

REPO = "org/mms-tiny"
OFFLINE = {"local_files_only": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    directory = many_languages(tmp_path_factory.mktemp("mms"))
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def folder(files, monkeypatch, tmp_path) -> Iterator[Path]:
    """A repository's folder in the client's cache, into which it was loaded from a hub that still answers."""
    with HubServer() as hub:
        hub.add(REPO, files)
        for _ in use(hub, monkeypatch, tmp_path):
            mms_jax.load_asr(REPO, language="fra")
            yield tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"


def cached(folder: Path, name: str) -> Path:
    (path,) = folder.glob(f"snapshots/*/{name}")
    return path


def refused(**options) -> str:
    with pytest.raises(CheckpointError) as raised:
        mms_jax.load_asr(REPO, language="fra", **options)
    return str(raised.value)


# ------------------------------------------------------------------------------------------------ branches


@pytest.mark.parametrize("text", [b"../../evil", b"\xff\xfe", b"/etc"], ids=["path", "bytes", "root"])
def test_offline_a_branch_that_leads_nowhere_is_named_with_what_to_do(folder, text):
    shutil.copytree(cached(folder, "config.json").parent, folder.parent / "evil")
    (folder / "refs" / "main").write_bytes(text)
    assert f"cache is damaged ({folder}/refs/main names no commit); delete {folder}, then load onl" in refused(
        **OFFLINE
    )


def test_online_a_branch_that_is_no_text_is_named_and_what_the_message_says_helps(folder):
    (folder / "refs" / "main").write_bytes(b"\xff\xfe")
    message = refused()
    assert f"{REPO}: its copy in the hub's cache is damaged" in message
    shutil.rmtree(re.search(r"delete (.*), then load online", message)[1])
    mms_jax.load_asr(REPO, language="fra")


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("options", [{}, OFFLINE], ids=["online", "offline"])
@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("config.json", 0),
        ("config.json", 9),
        ("vocab.json", 0),
        ("tokenizer_config.json", 9),
        ("model.safetensors", 0),
        ("model.safetensors", 5000),
        ("adapter.fra.safetensors", 100),
    ],
)
def test_a_file_that_is_cut_off_in_the_cache_is_fetched_again_after_what_the_message_says(
    folder, files, name, length, options
):
    blob = cached(folder, name).resolve()
    assert blob.parent == folder / "blobs"
    blob.write_bytes(files[name][:length])
    message = refused(**options)
    assert name in message
    Path(re.search(r"; delete (.*), the copy in the hub's cache, then load it online", message)[1]).unlink()
    mms_jax.load_asr(REPO, language="fra")
    assert cached(folder, name).read_bytes() == files[name]


def test_without_links_in_the_cache_the_file_itself_is_to_be_deleted(folder):
    path = cached(folder, "config.json")
    path.unlink()
    path.touch()
    assert f"; delete {path}, the copy in the hub's cache" in refused()
    path.unlink()
    mms_jax.load_asr(REPO, language="fra")


@pytest.mark.parametrize("name", ["snapshots/x/config.json", "models--a--b/other/x/config.json", "config.json"])
def test_a_file_elsewhere_is_not_said_to_lie_in_the_cache(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(CheckpointError, match=r"not valid JSON .*; mend it, or put a copy there$"):
        read_json(path)
    assert [fetched_again(short) for short in ("/", "/x", "x", "/a/b/c")] == [""] * 4

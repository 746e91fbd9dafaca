"""Names on a hub: the real client against a server on this machine that does as the real one does, faults included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
from huggingface_hub import constants

import mms_jax
from mms_jax.checkpoint import load_ctc, open_source, require
from mms_jax.checkpoint.hub import Repository
from mms_jax.errors import CheckpointError, LanguageError
from tests.checkpoints import many_languages
from tests.hub_server import READER, HubServer, RefusedError, sha256

REPO = "org/mms-tiny"
WEIGHTS, ADAPTER = "model.safetensors", "adapter.fra.safetensors"
NEVER = {"pytorch_model.bin", "adapter.fra.bin", "flax_model.large", "README.md"}
BIG = bytes(np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8))  # of several pieces
RACES = 6

FETCH = """
import sys
from mms_jax.checkpoint import open_source, require
for name in sys.argv[2:]:
    print(require(open_source(sys.argv[1]), name))
"""

RACER = """
import sys
import huggingface_hub
from mms_jax.checkpoint import open_source, require
print("ready", flush=True)
for line in sys.stdin:
    print(require(open_source(line.strip()), sys.argv[1]), flush=True)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """A tiny checkpoint in the MMS layout, and what no one is to fetch."""
    directory = many_languages(tmp_path_factory.mktemp("mms"))
    return {path.name: path.read_bytes() for path in directory.iterdir()} | dict.fromkeys(NEVER, b"not to be fetched")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture
def client(hub, monkeypatch, tmp_path) -> Iterator[HubServer]:
    """The client in this process, online, with an empty cache and no token of the user's."""
    yield from use(hub, monkeypatch, tmp_path)


def use(hub: HubServer, monkeypatch, home: Path) -> Iterator[HubServer]:
    """Make the client in this process take ``hub`` for the hub."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no token"))
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))
    for name in ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()


def blobs(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("blobs/*"))


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=os.environ | environment, capture_output=True, text=True, check=False
    )


# ------------------------------------------------------------------------------------------------ what is fetched


def test_recognition_in_one_language_fetches_its_adapter_and_nothing_that_is_not_needed(client, files):
    client.add(REPO, files)
    asr = mms_jax.load_asr(REPO, language="fra")
    assert sorted(client.fetched()) == sorted({*client.fetched()}), "each once"
    assert {ADAPTER, WEIGHTS, "config.json", "vocab.json", "tokenizer_config.json"} <= set(client.fetched())
    assert [name for name in client.fetched() if name.startswith("adapter.")] == [ADAPTER]
    assert not NEVER & set(client.fetched())
    asr.load_adapter("eng")
    assert [name for name in client.fetched() if name.startswith("adapter.")] == [ADAPTER, "adapter.eng.safetensors"]


def test_the_branch_may_move_between_calls_and_one_model_is_still_of_one_commit(client, files):
    repo = client.add(REPO, files)
    asr = mms_jax.load_asr(REPO, language="eng")
    expected = mms_jax.load_asr(REPO, language="fra").params["lm_head"]["kernel"]
    changed = files | {ADAPTER: files["adapter.eng.safetensors"], "vocab.json": b"{}"}
    first, _ = repo.branches["main"], repo.commit(changed)
    client.requests.clear()
    asr.load_adapter("fra")
    np.testing.assert_array_equal(asr.params["lm_head"]["kernel"], expected)
    assert all(f"/resolve/{first}/" in request.path for request in client.requests if "/resolve/" in request.path)
    np.testing.assert_array_equal(
        mms_jax.load_asr(REPO, language="fra", revision=first).params["lm_head"]["kernel"], expected
    )


def test_a_language_without_an_adapter_is_an_error_that_names_those_that_are_there(client, files):
    client.add(REPO, files)
    with pytest.raises(LanguageError, match=r"'deu'.*(eng|fra)"):
        mms_jax.load_asr(REPO, language="deu")
    client.add(REPO, {name: content for name, content in files.items() if name != ADAPTER})
    with pytest.raises(LanguageError, match=rf"'fra' has no {ADAPTER} in {REPO}"):
        mms_jax.load_asr(REPO, language="fra")


# ------------------------------------------------------------------------------------------------ transfers


def test_a_transfer_that_is_cut_off_goes_on_where_it_was(client, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 18)  # 10 MiB; what is not a whole one is asked for again
    client.add(REPO, {WEIGHTS: BIG})
    client.fault(WEIGHTS, cut_after=1 << 20, times=2)
    assert require(open_source(REPO), WEIGHTS).read_bytes() == BIG
    assert [request.start for request in client.requests if "/cdn/" in request.path] == [0, 1 << 20, 2 << 20]


@pytest.mark.parametrize("reset", [False, True])
def test_a_transfer_that_always_breaks_is_an_error_with_a_remedy_and_the_next_call_fetches_it(client, tmp_path, reset):
    client.add(REPO, {WEIGHTS: BIG})
    fault = client.fault(WEIGHTS, cut_after=0 if not reset else 1 << 20, times=99, reset=reset)
    with pytest.raises(CheckpointError, match=rf"{REPO}: {WEIGHTS} cannot be fetched .*; check the connection"):
        require(open_source(REPO), WEIGHTS)
    assert blobs(tmp_path) == []
    fault.times = 0
    assert require(open_source(REPO), WEIGHTS).read_bytes() == BIG


@pytest.mark.parametrize("name", [WEIGHTS, "vocab.json"], ids=["large", "small"])
def test_a_body_with_a_wrong_byte_is_no_file_of_the_cache(client, tmp_path, name):
    client.add(REPO, {name: BIG})
    client.fault(name, corrupt=2_000_000)
    with pytest.raises(CheckpointError, match=rf"{REPO}: {name} came damaged .* removed from the cache; load again"):
        require(open_source(REPO), name)
    assert blobs(tmp_path) == []
    with pytest.raises(CheckpointError, match="not in the local cache"):
        require(open_source(REPO, local_files_only=True), name)
    assert require(open_source(REPO), name).read_bytes() == BIG


def test_without_links_in_the_cache_a_wrong_byte_shows_too(client, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda cache_dir=None: False)
    client.add(REPO, {WEIGHTS: BIG})
    client.fault(WEIGHTS, corrupt=2_000_000)
    with pytest.raises(CheckpointError, match="came damaged"):
        require(open_source(REPO), WEIGHTS)
    path = require(open_source(REPO), WEIGHTS)
    assert not path.is_symlink()
    assert path.read_bytes() == BIG


def test_checksums_are_compared_when_a_file_comes_and_not_when_it_is_found(client, monkeypatch):
    client.add(REPO, {WEIGHTS: BIG, "config.json": b"{}"})
    require(open_source(REPO), WEIGHTS)
    monkeypatch.setattr("mms_jax.checkpoint.integrity._digest", lambda file, digest: pytest.fail("hashed again"))
    require(open_source(REPO), WEIGHTS)
    require(open_source(REPO, local_files_only=True), WEIGHTS)


def test_a_process_killed_before_its_comparison_leaves_nothing_that_is_trusted(client, hub, tmp_path):
    client.add(REPO, {WEIGHTS: BIG})
    client.fault(WEIGHTS, corrupt=7)
    killed = (
        f"import os, mms_jax.checkpoint.integrity as i; i._compare = lambda *a, **k: os.kill(os.getpid(), 9)\n{FETCH}"
    )
    ended = run(["-c", killed, REPO, WEIGHTS], hub.environment(tmp_path))
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(blobs(tmp_path)) == 1, "the damaged file is in the cache"
    with pytest.raises(CheckpointError, match="came damaged"):
        require(open_source(REPO, local_files_only=True), WEIGHTS)
    assert require(open_source(REPO), WEIGHTS).read_bytes() == BIG


def test_a_mirror_that_names_files_otherwise_is_not_blamed(client, monkeypatch):
    client.add(REPO, {"vocab.json": b"{}"})
    monkeypatch.setattr("tests.hub_server.git_hash", lambda content: "a-name-of-its-own")
    assert require(open_source(REPO), "vocab.json").read_bytes() == b"{}"


def test_the_hub_s_own_tools_find_nothing_wrong_with_the_cache(client, tmp_path):
    client.add(REPO, {WEIGHTS: BIG})
    require(open_source(REPO), WEIGHTS)
    assert open_source(REPO).find("absent.json") is None
    found = huggingface_hub.scan_cache_dir(tmp_path / "hub")
    assert (len(found.repos), found.warnings) == (1, [])
    assert list((tmp_path / "hub").rglob("*.unverified")) == []


def test_processes_that_fetch_the_same_at_once_all_get_it(hub, tmp_path):
    command, environment = [sys.executable, "-c", RACER, WEIGHTS], os.environ | hub.environment(tmp_path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, env=environment, **pipes) as one,
        subprocess.Popen(command, env=environment, **pipes) as other,
    ):
        for process in (one, other):
            assert process.stdout.readline() == "ready\n"
        for race in range(RACES):
            content = BIG + bytes([race])
            hub.add(f"org/race{race}", {WEIGHTS: content})
            hub.faults.clear()
            hub.fault(WEIGHTS, delay=0.002, times=2)
            for process in (one, other):
                process.stdin.write(f"org/race{race}\n")
                process.stdin.flush()
            for process in (one, other):
                assert sha256(Path(process.stdout.readline().strip()).read_bytes()) == sha256(content)
    assert (one.returncode, other.returncode) == (0, 0)
    assert len(blobs(tmp_path)) == RACES


# ------------------------------------------------------------------------------------------------ offline, refused


def test_offline_a_cached_model_needs_no_request_and_another_is_an_error_that_says_so(client, files, monkeypatch):
    client.add(REPO, files)
    mms_jax.load_asr(REPO, language="fra")
    client.requests.clear()
    mms_jax.load_asr(REPO, language="fra", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    mms_jax.load_asr(REPO, language="fra")
    with pytest.raises(CheckpointError, match=r"org/other: .*config\.json is not in the local cache.*HF_HUB_OFFLINE"):
        mms_jax.load_asr("org/other")
    with pytest.raises(LanguageError, match=r"azj-script_latin.*offline: only cached files"):
        mms_jax.load_asr(REPO, language="azj-script_latin")
    assert client.requests == []


def test_a_hub_that_is_down_is_no_hindrance_to_what_is_cached(client, files):
    client.add(REPO, files)
    mms_jax.load_asr(REPO, language="fra")
    client.stop()
    mms_jax.load_asr(REPO, language="fra")
    with pytest.raises(CheckpointError, match=r"org/other: .*config\.json.*did not give it.*check the connection"):
        mms_jax.load_asr("org/other")


def test_a_token_is_shown_to_the_hub_and_not_to_the_store_of_large_files_and_never_to_people(client, files):
    client.add(REPO, files, private=True)
    with pytest.raises(CheckpointError, match=rf"{REPO}: .*log in .*token="):
        load_ctc(open_source(REPO))
    client.requests.clear()
    asr = mms_jax.load_asr(REPO, language="fra", token=READER)
    shown = {"/cdn/" in request.path: request.token for request in client.requests}
    assert shown == {False: READER, True: None}
    with pytest.raises(CheckpointError) as raised:
        require(Repository(REPO, token=READER), "absent.json")
    assert READER not in f"{asr!r} {raised.value} {Repository(REPO, token=READER)!r}"


def test_a_wrong_token_is_said_to_be_wrong(client):
    client.add(REPO, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=rf"{REPO}: config\.json cannot be fetched .*401.*log in") as raised:
        require(open_source(REPO, token="hf_notOneOfOurs"), "config.json")
    assert "hf_notOneOfOurs" not in str(raised.value)


@pytest.mark.parametrize("written", [f"{READER}\n", f"  {READER}\r\n", f"\u00a0{READER}"])
def test_a_token_may_be_a_file_s_content(client, written):
    client.add(REPO, {"config.json": b"{}"}, private=True)
    assert require(open_source(REPO, token=written), "config.json").read_bytes() == b"{}"
    assert {request.token for request in client.requests} == {READER}


@pytest.mark.parametrize(
    "token", ["hf_é", "hf_secret\nhf_other", "hf_sec ret", "hf_sec\x7fret", "\udcff", "", " ", b"hf_"]
)
def test_a_token_that_cannot_be_sent_is_refused_before_anything_is_sent_and_not_shown(client, token):
    client.add(REPO, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=rf"{REPO}: token= is empty, or not one word .*hf auth login") as raised:
        mms_jax.load_asr(REPO, token=token)
    assert "hf_" not in str(raised.value)
    assert client.requests == []


@pytest.mark.parametrize("token", ["hf_é", "hf_secret\x01", "hf_sec ret"])
def test_a_token_of_the_environment_that_cannot_be_sent_is_refused_and_not_shown(client, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    client.add(REPO, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=rf"{REPO}: the token of this machine \(HF_TOKEN, .*; set it") as raised:
        mms_jax.load_asr(REPO)
    assert "hf_" not in str(raised.value)
    assert client.requests == []
    assert require(open_source(REPO, token=False), "config.json").read_bytes() == b"{}"


def test_a_file_with_a_token_that_is_no_text_is_refused(client, tmp_path):
    (tmp_path / "no token").write_bytes(b"hf_\xff\xfe")
    client.add(REPO, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=rf"{REPO}: the token of this machine .*hf auth login"):
        open_source(REPO).find("config.json")


def test_a_token_that_must_be_there_and_is_not_is_asked_for(client):
    client.add(REPO, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=rf"{REPO}: .*; log in \(hf auth login\), or give the token itself"):
        open_source(REPO, token=True).find("config.json")


def test_a_hub_that_repeats_the_token_it_was_sent_does_not_get_it_into_a_message(client, monkeypatch):
    tokens = {"given": "a.word.of.a.mirror", "HF_TOKEN": "another.word", "of the hub": "hf_" + "aB3" * 12}
    monkeypatch.setenv("HF_TOKEN", tokens["HF_TOKEN"])
    repeated = RefusedError(403, message=f"no access with {', '.join(tokens.values())}.")
    monkeypatch.setattr("tests.hub_server._Handler._repo", lambda self, repo: (_ for _ in ()).throw(repeated))
    with pytest.raises(CheckpointError, match=r"no access with \*\*\*, \*\*\*, \*\*\*") as raised:
        open_source(REPO, token=tokens["given"]).find("config.json")
    assert not [token for token in tokens.values() if token in str(raised.value)]


def test_a_gated_repository_says_how_to_be_let_in(client):
    client.add(REPO, {"config.json": b"{}"}, gated=True)
    with pytest.raises(CheckpointError, match=rf"{REPO}: gated; accept its terms .*log in .*config\.json"):
        require(open_source(REPO), "config.json")


@pytest.mark.parametrize(
    ("status", "helps"), [(403, "log in"), (429, "wait"), (500, "try again later"), (503, "try again later")]
)
def test_a_hub_that_refuses_names_the_repository_the_file_and_the_remedy(client, status, helps):
    client.add(REPO, {"config.json": b"{}"})
    client.fault("config.json", status=status, method="HEAD", times=99)
    with pytest.raises(CheckpointError, match=rf"{REPO}: .*config\.json.*{status}.*{helps}"):
        require(open_source(REPO), "config.json")


def test_a_hub_that_hiccups_is_asked_again(client):
    client.add(REPO, {"config.json": b"{}"})
    client.fault("config.json", status=503, method="HEAD", times=2)
    assert require(open_source(REPO), "config.json").read_bytes() == b"{}"


# ------------------------------------------------------------------------------------------------ as a user would


def test_the_command_line_transcribes_with_a_model_of_the_hub_and_then_without_the_hub(hub, files, tmp_path):
    hub.add(REPO, files, private=True)
    sounds = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(tmp_path / "clip.wav", sounds, 16_000)
    command = ["-m", "mms_jax.cli", "transcribe", str(tmp_path / "clip.wav"), "--model", REPO, "--language", "fra"]
    online = run(command, hub.environment(tmp_path, token=READER))
    assert online.returncode == 0, online.stderr
    assert READER not in online.stdout + online.stderr
    assert not NEVER & set(hub.fetched())
    assert [name for name in hub.fetched() if name.startswith("adapter.")] == [ADAPTER]
    hub.stop()
    offline = run(command, hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "1"})
    assert (offline.returncode, offline.stdout) == (0, online.stdout)

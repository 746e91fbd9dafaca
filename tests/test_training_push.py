"""An output directory goes to a hub (on this machine, behind the real client) without checkpoints, or says why not."""

from __future__ import annotations

import base64
import functools
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from mms_jax.errors import TrainingError
from mms_jax.training.files.output import push_to_hub
from tests.fake_hub import TOKEN

REPO = "user/mms-tur"


@dataclass
class Hub:
    """What a hub was told; every file is taken as a regular one, whatever its size."""

    endpoint: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    error: tuple[int, str] | None = None  # of commits
    refuses_card: bool = False


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.0"

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            faults = [{"message": "no such licence"}] if self.hub.refuses_card else []
            return self._answer({"errors": faults, "warnings": []}, status=400 if faults else 200)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, status=401)
        if self.path == "/api/repos/create":
            return self._create(json.loads(content))
        if self.path == f"/api/models/{REPO}/preupload/main":
            names = [file["path"] for file in json.loads(content)["files"]]
            return self._answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if self.path == f"/api/models/{REPO}/commit/main":
            return self._commit([json.loads(line) for line in content.splitlines()])
        return self._answer({"error": f"not expected: {self.path}"}, status=404)

    def do_GET(self):
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, status=401)
        return self._answer({"id": REPO, "sha": "0" * 40, "siblings": []})

    def log_message(self, format, *args):
        pass

    def _create(self, asked: dict[str, Any]) -> None:
        exists = bool(self.hub.created)
        self.hub.created.append(asked)
        self._answer({"url": f"{self.hub.endpoint}/{REPO}"}, status=409 if exists else 200)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        if self.hub.error is not None:
            status, message = self.hub.error
            return self._answer({"error": message}, status=status)
        for line in lines:
            if line["key"] == "header":
                self.hub.messages.append(line["value"]["summary"])
            else:
                self.hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._answer({"commitUrl": f"{self.hub.endpoint}/{REPO}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def _answer(self, value: Any, *, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **options: real(endpoint=hub.endpoint, **options))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    huggingface_hub.close_session()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
    huggingface_hub.close_session()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    files = {
        "README.md": "---\nlicense: apache-2.0\n---\n# A model\n",
        "model.safetensors": "weights",
        "adapter.tur.safetensors": "adapter",
        "runs/events.out": "events",
        "checkpoints/100/state/d/0": "state",
        "checkpoints/100/info/info.json": "{}",
        ".cache/anything": "hidden",
        ".model.safetensors.0a1b2c3d": "half a file that a killed job left",
    }
    for name, content in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    return tmp_path / "out"


def test_everything_but_checkpoints_and_hidden_files_is_pushed(hub, directory):
    url = push_to_hub(directory, REPO, token=TOKEN, private=True, commit_message="Turkish")
    assert url == f"{hub.endpoint}/{REPO}"
    assert set(hub.files) == {"README.md", "model.safetensors", "adapter.tur.safetensors", "runs/events.out"}
    assert hub.files["model.safetensors"] == b"weights"
    assert hub.messages == ["Turkish"]
    assert hub.created[0]["name"] == "mms-tur"
    assert {hub.created[0].get("private"), hub.created[0].get("visibility")} & {True, "private"}


def test_a_repository_that_is_there_is_added_to(hub, directory):
    push_to_hub(directory, REPO, token=TOKEN)
    (directory / "adapter.swe.safetensors").write_text("another")
    push_to_hub(directory, REPO, token=TOKEN)
    assert hub.files["adapter.swe.safetensors"] == b"another"
    assert len(hub.created) == 2


def refused(directory: Path, repo_id: str = REPO, token: str | None = TOKEN) -> str:
    before = sorted(directory.rglob("*"))
    with pytest.raises(TrainingError) as raised:
        push_to_hub(directory, repo_id, token=token)
    assert sorted(directory.rglob("*")) == before
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_without_the_right_to_write_the_message_says_so_and_how_to_go_on(hub, directory):
    message = refused(directory, token="hf_anotherOne")
    assert re.match(rf"{REPO}: not pushed .*log in", message)
    assert f"hf upload {REPO} {directory} --exclude 'checkpoints/**'" in message
    hub.error = (403, "Forbidden: you need write access")
    assert "log in" in refused(directory)
    assert hub.files == {}


@pytest.mark.parametrize("repo_id", ["a b", "a/b/c", "", "user/--"])
def test_a_name_that_is_none_is_refused(hub, directory, repo_id):
    with pytest.raises(TrainingError, match="not the name of a hub repository"):
        push_to_hub(directory, repo_id, token=TOKEN)
    assert hub.created == []


def test_a_hub_that_fails_or_refuses_is_quoted(hub, directory):
    hub.error = (413, "Too large for this plan")
    assert "Too large for this plan" in refused(directory)
    hub.refuses_card = True
    assert "no such licence" in refused(directory)


def test_a_hub_that_does_not_answer_is_an_error(hub, directory, monkeypatch):
    dead = functools.partial(huggingface_hub.hf_api.HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", dead)
    assert refused(directory).startswith(f"{REPO}: not pushed (")


def test_offline_by_choice_is_named(hub, directory, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert "HF_HUB_OFFLINE" in refused(directory)

"""A hub on this machine that speaks what huggingface_hub 2.4 asks of the real one, for reading and for writing.

Small files come from the endpoint, named by their git blob; large ones (git LFS) by a redirect to a "CDN", which is
the same server under another host name (so the client must not show it the token), named by their SHA-256. No header
mentions Xet, so the client downloads by plain HTTP; for uploads HF_HUB_DISABLE_XET=1 says so. Faults can be ordered by
file, and requests are noted.

    with HubServer() as hub:
        hub.add("org/model", {"config.json": b"{}"})
        subprocess.run(command, env=os.environ | hub.environment(tmp_path))
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER, READER = "hf_mayWriteEverywhere", "hf_mayOnlyRead"  # tokens
LARGE = re.compile(r".*\.(safetensors|bin|onnx)|.*\.large")  # as the hub's .gitattributes has it
_AT_ONCE = 1 << 16  # bytes sent


class Request(NamedTuple):
    """What was asked for: ``filename`` of downloads, ``start`` of a range; ``token`` that was shown."""

    method: str
    path: str
    filename: str = ""
    start: int = 0
    token: str | None = None


@dataclass
class Fault:
    """What goes wrong ``times`` times with requests for a file."""

    times: int = 1
    method: str = "GET"
    status: int | None = None  # instead of an answer
    cut_after: int | None = None  # bytes of the body, then the connection ends
    reset: bool = False  # it ends with a reset, not politely
    corrupt: int | None = None  # the byte at this place comes out wrong
    delay: float = 0.0  # seconds before each 64 KiB


@dataclass
class Repo:
    """One repository: commits by id, the newest of each branch, who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], *, branch: str = "main", message: str = "") -> str:
        """Add a commit whose files are exactly these; returns its id."""
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch], self.messages[oid] = files, oid, message
        return oid

    @property
    def files(self) -> dict[str, bytes]:
        """Those of main."""
        return self.commits[self.branches["main"]]

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch or of itself."""
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None


class HubServer:
    """Serves ``repos`` from its making until ``stop``, or in a ``with`` block."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, list[Fault]] = {}
        self.stored: dict[str, bytes] = {}  # large files that were uploaded, by SHA-256
        self.lock = threading.Lock()
        methods = {f"do_{method}": _Handler.dispatch for method in ("HEAD", "GET", "POST", "PUT")}
        handler = type("BoundHandler", (_Handler,), {"hub": self, **methods})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}/cdn"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering; calling it again does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], **settings: Any) -> Repo:
        """A repository with one commit on main."""
        self.repos[repo_id] = Repo(**settings)
        self.repos[repo_id].commit(dict(files))
        return self.repos[repo_id]

    def fault(self, filename: str, **settings: Any) -> Fault:
        """Order a ``Fault`` for a file, or for whatever is asked for ("*")."""
        self.faults.setdefault(filename, []).append(Fault(**settings))
        return self.faults[filename][-1]

    def fetched(self) -> list[str]:
        """Files whose bodies were sent or begun, in order."""
        return [request.filename for request in self.requests if request.method == "GET" and request.filename]

    def environment(self, home: Path, *, token: str | None = None) -> dict[str, str]:
        """The environment variables of a process for which this is the hub, and ``home`` holds cache and token."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def next_fault(self, filename: str, method: str) -> Fault | None:
        """The fault that this request has."""
        with self.lock:
            for fault in (*self.faults.get(filename, ()), *self.faults.get("*", ())):
                if fault.times > 0 and fault.method == method:
                    fault.times -= 1
                    return fault
        return None


def sha256(content: bytes) -> str:
    """The name of a large file."""
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    """The name of a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class RefusedError(Exception):
    """An answer that is an error: status, the hub's code for it, a message, and headers."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str):
        self.status, self.code, self.message, self.headers = status, code, message, headers


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.0"  # a connection per request: nothing is left open at the end

    def log_message(self, format, *args):
        pass

    def dispatch(self) -> None:
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        bearer = self.headers["Authorization"]
        self.token = bearer.removeprefix("Bearer ") if bearer else None
        start = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "bytes=0-")
        self.start = int(start[1]) if start else 0
        try:
            for pattern, answer in _ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    name = match.groupdict().get("file", "")
                    self.hub.requests.append(Request(self.command, path, name, self.start, self.token))
                    self.fault = self.hub.next_fault(name, self.command)
                    if self.fault is not None and self.fault.status is not None:
                        raise RefusedError(self.fault.status, message="ordered by the test")
                    return answer(self, **match.groupdict())
            raise RefusedError(404, message=f"not known to this server: {self.command} {path}")
        except RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message, **refused.headers}
            self._send({"error": refused.message}, refused.status, **{k: v for k, v in headers.items() if v})

    def _send(self, value: Any, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self._write(content)

    def _write(self, content: bytes) -> None:
        fault = self.fault or Fault()
        if fault.corrupt is not None and self.start <= fault.corrupt < self.start + len(content):
            place = fault.corrupt - self.start
            content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        for at in range(0, len(content[: fault.cut_after]), _AT_ONCE):
            time.sleep(fault.delay)
            self.wfile.write(content[: fault.cut_after][at : at + _AT_ONCE])
        if fault.reset:
            self.wfile.flush()
            time.sleep(0.1)  # so that the client has read what came before the reset, which would discard it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    # ------------------------------------------------------------------------------------------------ who may what

    def _repo(self, repo: str) -> Repo:
        found = self.hub.repos.get(repo)
        if self.token not in (None, WRITER, READER):
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        if found is None or (found.private and self.token is None):
            raise RefusedError(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        return found

    def _may_write(self) -> None:
        if self.token != WRITER:
            raise RefusedError(401 if self.token != READER else 403, message="You don't have the rights to write here")

    def _commit_of(self, repo: str, revision: str) -> tuple[Repo, str]:
        found = self._repo(repo)
        oid = found.resolve(revision)
        if oid is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, oid

    # ------------------------------------------------------------------------------------------------ reading

    def resolve(self, repo: str, revision: str, file: str) -> None:
        found, oid = self._commit_of(repo, revision)
        if found.gated and self.token is None:
            raise RefusedError(401, "GatedRepo", "Access to this model is restricted. Please log in.")
        content = found.commits[oid].get(file)
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if content is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found", **headers)
        if not LARGE.fullmatch(file):
            return self._send_range(content, ETag=f'"{git_hash(content)}"', **headers)
        digest = sha256(content)
        self.hub.stored[digest] = content
        headers |= {"Location": f"{self.hub.cdn}/{digest}/{file}", "X-Linked-Size": str(len(content))}
        self._send(b"", 302, **headers, **{"X-Linked-ETag": f'"{digest}"'})

    def cdn(self, oid: str, file: str) -> None:
        self._send_range(self.hub.stored[oid], ETag='"the-cdn-has-names-of-its-own"')

    def _send_range(self, content: bytes, **headers: str) -> None:
        if self.start == 0:  # or no range at all
            return self._send(content, **headers)
        if self.start >= len(content):
            raise RefusedError(416, message="Range Not Satisfiable")
        headers["Content-Range"] = f"bytes {self.start}-{len(content) - 1}/{len(content)}"
        self._send(content[self.start :], 206, **headers)

    def info(self, repo: str, revision: str | None) -> None:
        found, oid = self._commit_of(repo, revision or "main")
        siblings = [{"rfilename": name} for name in found.commits[oid]]
        self._send({"id": repo, "sha": oid, "private": found.private, "gated": found.gated, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        found, oid = self._commit_of(repo, revision)
        self._send([_entry(name, content) for name, content in found.commits[oid].items()])

    def paths_info(self, repo: str, revision: str) -> None:
        found, oid = self._commit_of(repo, revision)
        asked = parse_qs(self.body.decode())["paths"]
        self._send([_entry(name, content) for name, content in found.commits[oid].items() if name in asked])

    def whoami(self) -> None:
        if self.token not in (WRITER, READER):
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        self._send({"type": "user", "name": "user", "orgs": [], "auth": {"type": "access_token"}})

    # ------------------------------------------------------------------------------------------------ writing

    def create(self) -> None:
        self._may_write()
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or 'user'}/{asked['name']}"
        if repo in self.hub.repos:
            return self._send({"error": "You already created it", "url": f"{self.hub.endpoint}/{repo}"}, 409)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self._send({"url": f"{self.hub.endpoint}/{repo}"})

    def branch(self, repo: str, revision: str) -> None:
        self._may_write()
        found = self._repo(repo)
        if revision in found.branches:
            raise RefusedError(409, message="Reference already exists")
        found.branches[revision] = found.branches["main"]
        self._send({})

    def validate_yaml(self) -> None:
        front_matter = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        values = yaml.safe_load(front_matter[1]) if front_matter else {}
        wrong = values.get("license") == "none such"
        fault = [{"message": '"license" must be one of a list'}] if wrong else []
        self._send({"errors": fault, "warnings": []}, 400 if wrong else 200)

    def preupload(self, repo: str, revision: str) -> None:
        self._may_write()
        found, oid = self._commit_of(repo, revision)
        files = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            large, content = LARGE.fullmatch(name) is not None, found.commits[oid].get(name)
            known = None if content is None else sha256(content) if large else git_hash(content)
            mode = "lfs" if large else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self._send({"files": files})

    def lfs_batch(self, repo: str) -> None:
        self._may_write()
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.cdn}/upload/{asked['oid']}"}
            verify = {"href": f"{self.hub.endpoint}/{repo}.git/info/lfs/verify"}
            actions = {} if asked["oid"] in self.hub.stored else {"actions": {"upload": upload, "verify": verify}}
            objects.append({**asked, **actions})
        self._send({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if sha256(self.body) != oid:
            raise RefusedError(400, message="the content is not what its name says")
        self.hub.stored[oid] = self.body
        self._send(b"")

    def lfs_verify(self, repo: str) -> None:
        asked = json.loads(self.body)
        if len(self.hub.stored.get(asked["oid"], b"")) != asked["size"]:
            raise RefusedError(404, message="no such object")
        self._send({})

    def commit(self, repo: str, revision: str) -> None:
        self._may_write()
        found, oid = self._commit_of(repo, revision)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        with self.hub.lock:
            oid = found.branches[revision]
            if header["value"].get("parentCommit", oid) != oid:
                raise RefusedError(412, message="The branch has moved since the parent commit")
            files = dict(found.commits[oid])
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = self.hub.stored[value["oid"]]
                else:
                    raise RefusedError(400, message=f"not known to this server: {operation['key']}")
            target = f"refs/pr/{len(found.branches)}" if "create_pr" in self.query else revision
            new = found.commit(files, branch=target, message=header["value"]["summary"])
        pull = {"pullRequestUrl": f"{self.hub.endpoint}/{repo}/discussions/{target[8:]}"} if target != revision else {}
        self._send({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{new}", "commitOid": new, **pull})


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
    if LARGE.fullmatch(name):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry


_REPO, _REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
_MODEL = rf"/api/models/{_REPO}"
_ROUTES = (
    (rf"(?:HEAD|GET) /{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
    (r"(?:HEAD|GET) /cdn/(?P<oid>[0-9a-f]+)/(?P<file>.+)", _Handler.cdn),
    (rf"GET {_MODEL}(?:/revision/{_REVISION})?", _Handler.info),
    (rf"GET {_MODEL}/tree/{_REVISION}", _Handler.tree),
    (rf"POST {_MODEL}/paths-info/{_REVISION}", _Handler.paths_info),
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"POST {_MODEL}/branch/{_REVISION}", _Handler.branch),
    (rf"POST {_MODEL}/preupload/{_REVISION}", _Handler.preupload),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (rf"POST /{_REPO}\.git/info/lfs/verify", _Handler.lfs_verify),
    (r"PUT /cdn/upload/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    (rf"POST {_MODEL}/commit/{_REVISION}", _Handler.commit),
)

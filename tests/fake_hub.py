"""A hub on this machine: it speaks enough of the protocol that the real huggingface_hub fetches files from it."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_ourOwnToken"


@dataclass
class FakeRepository:
    """One repository; a revision is a branch or a tag, and names a commit."""

    commits: dict[str, dict[str, bytes]]  # files by commit
    revisions: dict[str, str]
    error: tuple[int, str, str] | None = None  # status, code and message that every request gets
    private: bool = False  # for those who show TOKEN


@dataclass
class FakeHub:
    """The server's state, changed by tests while it runs."""

    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, revision, file
    cut_downloads: bool = False  # end every file early
    without_metadata: bool = False  # as a proxy that strips headers
    endpoint: str = ""

    def fetched(self) -> list[str]:
        """The files whose contents were asked for, in order."""
        return [filename for method, _, filename in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.0"  # a connection per request: nothing is left open at the end

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def log_message(self, format, *args):
        pass

    def _answer(self, *, with_body: bool) -> None:
        repo_id, _, place = self.path.lstrip("/").partition("/resolve/")
        revision, _, filename = place.partition("/")
        self.hub.requests.append((self.command, revision, filename))
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.headers["Authorization"] != f"Bearer {TOKEN}"):
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        if repository.error is not None:
            return self._refuse(*repository.error)
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repository.commits[commit].get(filename)
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found", commit=commit)
        return self._send(content, commit, with_body=with_body)

    def _refuse(self, status: int, code: str, message: str, *, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, commit: str, *, with_body: bool) -> None:
        self.send_response(200)
        if not self.hub.without_metadata:
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content[: len(content) // 2] if self.hub.cut_downloads else content)


class Server:
    """Serves a ``FakeHub`` on a free port of this machine, until ``stop``."""

    def __init__(self) -> None:
        self.hub = FakeHub()
        handler = type("Handler", (_Handler,), {"hub": self.hub})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.hub.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Stop answering; calling it again does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

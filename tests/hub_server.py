"""A hub on loopback: the part of the Hugging Face hub's protocol that downloading a model takes, over HTTP.

The real client talks to it. What is here was written from the client's source and from what the hub answers:
https://huggingface.co/docs/hub/api, and `hf_raise_for_status` in huggingface_hub for the error codes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import servers

LARGE = (".gguf", ".safetensors")  # in Git LFS


@dataclass
class Repo:
    """A repository: its commits in order, the newest of which is `main`, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    readers: set[str] = field(default_factory=set)  # tokens

    def find(self, revision: str) -> str | None:
        if revision == "main":
            return next(reversed(self.commits))
        return self.tags.get(revision, revision if revision in self.commits else None)


@dataclass
class HubServer:
    """The hub.

    Attributes:
        url: of the hub.
        repos: by name.
        requests: everything that was asked for, in order: "GET /path".
        broken: a status that every request is answered with.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: int | None = None

    def add(self, name: str, files: dict[str, bytes | Path], tag: str = "") -> None:
        """Add a repository, or a commit to one, whose newest commit it is then."""
        whole = {name: data if isinstance(data, bytes) else data.read_bytes() for name, data in files.items()}
        content = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(whole.items())]
        repo = self.repos.setdefault(name, Repo())
        commit = hashlib.sha1(json.dumps([len(repo.commits), content]).encode()).hexdigest()
        repo.commits[commit] = whole
        repo.tags |= {tag: commit} if tag else {}

    @property
    def downloads(self) -> list[str]:
        """Names of the files that were sent, in order."""
        found = (re.fullmatch(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.+)", request) for request in self.requests)
        return [match[1] for match in found if match is not None]


@contextmanager
def serve() -> Iterator[HubServer]:
    hub = HubServer()

    class Handler(_Handler):
        state = hub

    with servers.running(Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub


class _Handler(BaseHTTPRequestHandler):
    state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        if self.state.broken is not None:
            self._send(self.state.broken)
        elif (match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)) is not None:
            self._of_commit(self._list, match[1], match[2] or "main")
        elif (match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)) is not None:
            self._of_commit(self._resolve, match[1], match[2], match[3])
        else:
            self._send(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _of_commit(self, answer: Callable[..., None], name: str, revision: str, *rest: str) -> None:
        repo = self.state.repos.get(name)
        if repo is None:
            self._send(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif (commit := repo.find(revision)) is None:
            message = f"Invalid rev id: {revision}"
            self._send(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message})
        else:
            answer(name, repo, commit, *rest)

    def _list(self, name: str, repo: Repo, commit: str) -> None:
        files = sorted(repo.commits[commit].items())
        siblings = [{"rfilename": file, "size": len(data)} for file, data in files]
        body = {"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _resolve(self, name: str, repo: Repo, commit: str, file: str) -> None:
        if repo.gated:
            token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
            if token not in repo.readers:
                message = f"Access to model {name} is restricted."
                status = 403 if token else 401
                self._send(status, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
                return
        data = repo.commits[commit].get(file)
        if data is None:
            error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(404, error | {"X-Repo-Commit": commit})
            return
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data)  # as git names it
        digest = (hashlib.sha256(data) if file.endswith(LARGE) else blob).hexdigest()
        self._send(200, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}, data)

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

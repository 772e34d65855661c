"""A hub over HTTP on this machine: the few routes by which `huggingface_hub` lists, reads, commits.

Large files go to the LFS store first and are named by their sha256 in the commit; of others the
commit holds the bytes. A commit is seen whole or not at all, as in `fake_hub`, whose repos these
are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from fake_hub import LARGE, FakeHub
from threads import serving

Answer = tuple[int, dict[str, str], bytes]
TOKEN = "hf_test-token-canary"
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = (
    ("GET", rf"/api/datasets/{_REPO}(/revision/(?P<rev>\w+))?", "info"),
    ("GET", rf"/api/datasets/{_REPO}/tree/(?P<rev>\w+)(/(?P<path>.*?))?/?", "tree"),
    ("POST", rf"/api/datasets/{_REPO}/paths-info/(?P<rev>\w+)", "paths"),
    ("GET|HEAD", rf"/datasets/{_REPO}/resolve/(?P<rev>\w+)/(?P<path>.*)", "resolve"),
    ("POST", r"/api/repos/create", "make"),
    ("POST", r"/api/validate-yaml", "card"),
    ("POST", rf"/api/datasets/{_REPO}/preupload/(?P<rev>\w+)", "modes"),
    ("POST", rf"/datasets/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
    ("POST", rf"/api/datasets/{_REPO}/commit/(?P<rev>\w+)", "commit"),
)


class HubServer(ThreadingHTTPServer):
    """Dataset repos in memory.

    Attributes:
        hub: the repos.
        token: what every request must show, or None.
        lfs: large files by their sha256.
        asked: method, route and path of each request that was answered.
    """

    daemon_threads = True

    def __init__(self, hub: FakeHub, token: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.token, self.lfs = hub, token, dict[str, bytes]()
        self.asked: list[tuple[str, str, str]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server."""

    def files(self, repo: str, rev: str | None) -> tuple[str, dict[str, bytes]]:
        """A commit's id and its files; `KeyError` where there is none."""
        commits = self.hub.repos[repo]
        number = len(commits) if rev in (None, "main") else int(str(rev), 16)
        if not 1 <= number <= len(commits):
            raise KeyError(rev)
        return f"{number:040x}", commits[number - 1]

    def info(self, body: bytes, repo: str, rev: str | None) -> Answer:
        sha, files = self.files(repo, rev)
        siblings = [{"rfilename": name} for name in files]
        return _json({"id": repo, "sha": sha, "private": True, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, repo: str, rev: str, path: str | None, query: str) -> Answer:
        """The entries of a folder; all below it if it is asked so."""
        _, files = self.files(repo, rev)
        below = f"{path}/" if path else ""
        inside = [name for name in files if name.startswith(below)]
        if not inside:
            return _lacks("EntryNotFound")
        folders = {
            name[:end]
            for name in inside
            for end in range(len(below) + 1, len(name))
            if name[end] == "/"
        }
        if "recursive=true" not in query.lower():
            inside = [name for name in inside if "/" not in name[len(below) :]]
            folders = {name for name in folders if "/" not in name[len(below) :]}
        listed = [{"type": "directory", "path": one, "oid": "0" * 40} for one in sorted(folders)]
        return _json([*listed, *(_entry(name, files[name]) for name in inside)])

    def paths(self, body: bytes, repo: str, rev: str) -> Answer:
        _, files = self.files(repo, rev)
        wanted = json.loads(body)["paths"] if body[:1] == b"{" else _form(body)
        found = [_entry(name, files[name]) for name in wanted if name in files]
        folders = [name for name in wanted if any(one.startswith(f"{name}/") for one in files)]
        return _json(
            [*found, *({"type": "directory", "path": f, "oid": "0" * 40} for f in folders)]
        )

    def resolve(self, body: bytes, repo: str, rev: str, path: str) -> Answer:
        sha, files = self.files(repo, rev)
        if path not in files:
            return _lacks("EntryNotFound")
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": sha}, files[path]

    def make(self, body: bytes) -> Answer:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        status = 409 if repo in self.hub.repos else 200
        self.hub.create_repo(repo, repo_type=asked["type"], private=True, exist_ok=True)
        return _json({"url": f"{self.url}/datasets/{repo}"}, status)

    def card(self, body: bytes) -> Answer:
        _, block, _ = json.loads(body)["content"].split("---\n", 2)
        told = yaml.safe_load(block)
        wrong = [] if isinstance(told, dict) else [{"message": "the metadata is no mapping"}]
        return _json({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def modes(self, body: bytes, repo: str, rev: str) -> Answer:
        names = [one["path"] for one in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
        told = [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]
        return _json({"files": told})

    def batch(self, body: bytes, repo: str) -> Answer:
        objects = json.loads(body)["objects"]
        told = []
        for one in objects:
            upload = {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}
            told.append(one if one["oid"] in self.lfs else {**one, "actions": upload})
        return _json({"transfer": "basic", "objects": told})

    def store(self, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return _json({"error": "other bytes"}, 400)
        self.lfs[oid] = body
        return _json({})

    def commit(self, body: bytes, repo: str, rev: str) -> Answer:
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        commits = self.hub.repos[repo]
        if int(header.get("parentCommit") or f"{len(commits):x}", 16) != len(commits):
            return _json({"error": "another commit has happened since"}, 412)
        added = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.lfs[value["oid"]]
        commits.append({**commits[-1], **added})
        self.hub.messages.append(header["summary"])
        sha = f"{len(commits):040x}"
        return _json({"commitUrl": f"{self.url}/datasets/{repo}/commit/{sha}", "commitOid": sha})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        asked = urlsplit(self.path)
        self._send(*self._answer(unquote(asked.path), asked.query, body))

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self, path: str, query: str, body: bytes) -> Answer:
        token, shown = self.server.token, self.headers.get("authorization")
        signed = token is None or shown == f"Bearer {token}"
        for methods, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split("|"):
                if not signed and name != "store":
                    return _lacks("RepoNotFound", 401)  # as the hub says of what is private
                given = found.groupdict() | ({"query": query} if name == "tree" else {})
                with self.server.lock:
                    self.server.asked.append((self.command, name, path))
                    try:
                        return getattr(self.server, name)(body, **given)  # type: ignore[no-any-return]
                    except KeyError:
                        return _lacks("RepoNotFound")
        return _json({"error": f"no such route: {self.command} {path}"}, 501)

    def _send(self, status: int, headers: dict[str, str], data: bytes) -> None:
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if part and status == 200:
            size, end = len(data), int(part[2] or len(data) - 1)
            data, status = data[int(part[1]) : end + 1], 206
            headers = {**headers, "Content-Range": f"bytes {part[1]}-{end}/{size}"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    told: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": oid}
    if name.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        told["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return told


def _form(body: bytes) -> list[str]:
    pairs = [part.partition("=") for part in body.decode().split("&")]
    return [unquote(value) for name, _, value in pairs if name == "paths"]


def _json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _lacks(code: str, status: int = 404) -> Answer:
    status, headers, data = _json({"error": code}, status)
    return status, {**headers, "X-Error-Code": code}, data


@contextmanager
def hub_server(hub: FakeHub | None = None, token: str | None = TOKEN) -> Iterator[HubServer]:
    """Within: a hub, empty where none is given."""
    server = HubServer(hub or FakeHub(), token)
    with serving(server, threading.Event()):
        yield server


def hub_environment(url: str, home: str) -> dict[str, str]:
    """Environment variables with which `huggingface_hub` of a process goes to a server."""
    return {
        "HF_ENDPOINT": url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": home,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }

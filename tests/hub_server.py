"""The routes of a hub over HTTP by which datasets are read, over the repos of a `FakeHub`."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from fake_hub import LARGE, FakeHub
from threads import serving

_ROUTES = re.compile(
    r"/api/datasets/(?P<repo>[^/]+/[^/]+)(?:/revision/[^/]+)?(?:/(?P<tree>tree)/[^/]+/?(?P<folder>.*))?"
    r"|/datasets/(?P<of>[^/]+/[^/]+)/resolve/[^/]+/(?P<name>.+)"
)


class HubServer(ThreadingHTTPServer):
    """Serves the newest commit of each repo.

    Attributes:
        asked: method and path of each request.
        token: what every request must show, or None.
    """

    daemon_threads = True

    def __init__(self, hub: FakeHub, token: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.token = hub, token
        self.asked: list[str] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        shown, found = self.headers.get("authorization"), _ROUTES.fullmatch(path)
        if self.server.token and shown != f"Bearer {self.server.token}":
            return self._send(401, b"{}", "RepoNotFound")  # as the hub says of what is private
        repo = found and self.server.hub.repos.get(found["repo"] or found["of"])
        if not found or not repo:
            return self._send(404, b"{}", "RepoNotFound")
        if found["name"]:
            return self._file(repo[-1].get(found["name"]))
        if found["tree"]:
            return self._tree(repo[-1], found["folder"])
        about = {"id": found["repo"], "sha": f"{len(repo):040x}", "siblings": [], "private": False}
        self._send(200, json.dumps(about).encode())

    do_HEAD = do_GET

    def _file(self, data: bytes | None) -> None:
        if data is None:
            return self._send(404, b"", "EntryNotFound")
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        if part is None:
            return self._send(200, data)
        self._send(206, data[int(part[1]) : int(part[2]) + 1])

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        """The entries of one folder."""
        below = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, data in files.items():
            base, inside, _ = path.removeprefix(below).partition("/")
            if path.startswith(below) and inside:
                entries[base] = {"type": "directory", "path": below + base, "oid": "0", "size": 0}
            elif path.startswith(below):
                entries[base] = {"type": "file", "path": path, "oid": "0", "size": len(data)}
                if path.endswith(LARGE):
                    oid = hashlib.sha256(data).hexdigest()
                    entries[base]["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        if not entries:
            return self._send(404, b"{}", "EntryNotFound")
        self._send(200, json.dumps(list(entries.values())).encode())

    def _send(self, status: int, data: bytes, error: str | None = None) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.send_header("content-type", "application/json")
        if error:
            self.send_header("x-error-code", error)
            self.send_header("x-error-message", "not here")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_server(hub: FakeHub, token: str | None = None) -> Iterator[HubServer]:
    """Within: a hub that is read over HTTP."""
    server = HubServer(hub, token)
    with serving(server, server.ended):
        yield server

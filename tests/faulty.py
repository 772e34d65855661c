"""A proxy that does to some answers what networks do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
from threads import reset, serving

FAULTS = ("503", "502", "reset", "cut", "flip", "stall", "empty", "lost")


class Proxy(ThreadingHTTPServer):
    """Hands requests on; each takes the next fault of ``plan``, or none."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = upstream
        self.plan: list[str | None] = []
        self.seen: list[str] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request of a `Proxy`."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        self.hand_on(b"")

    def do_POST(self) -> None:
        self.hand_on(self.rfile.read(int(self.headers["content-length"])))

    def log_message(self, *args: Any) -> None:
        pass

    def hand_on(self, body: bytes) -> None:
        fault = self.server.plan.pop(0) if self.server.plan else None
        self.server.seen.append(fault or "good")
        if fault in ("502", "503"):
            return self.answer(int(fault), b'{"error": "come again"}')
        if fault == "reset":
            return self.reset()
        if fault == "stall":
            self.server.ended.wait(2)
            return self.reset()
        reply = httpx2.request(
            self.command,
            self.server.upstream + self.path,
            content=body,
            headers={"authorization": self.headers.get("authorization", "")},
            trust_env=False,
        )
        if fault == "lost":  # the work was done, the answer is not told
            return self.reset()
        data = bytearray(reply.content)
        if fault == "flip":
            data[len(data) // 2] ^= 16
        if fault == "empty":
            data = bytearray()
        self.answer(reply.status_code, bytes(data), len(data) // 2 if fault == "cut" else None)

    def answer(self, status: int, data: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:sent])
        self.close_connection = sent is not None

    def reset(self) -> None:
        """End the connection with RST."""
        self.close_connection = True
        reset(self.connection)


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    server = Proxy(upstream)
    with serving(server, server.ended):
        yield server

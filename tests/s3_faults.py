"""A proxy that does to some requests and answers what networks and servers do.

Each request that a fault of the proxy's plan fits takes it; all others are handed on as they are.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from s3 import make_bucket, objects, put_object
from threads import reset, serving

CODES = {
    403: "InvalidAccessKeyId",
    404: "NoSuchKey",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    500: "InternalError",
    503: "SlowDown",
}
_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")
_TIMEOUT_SECONDS = 30


@dataclass(slots=True)
class Fault:
    """What happens to some requests.

    Attributes:
        kind: a status (``503``), which the server never sees; ``reset``: the connection ends after
            ``at`` bytes of the body came, none is handed on; ``lost``: it is done, the answer is
            not told; ``twice``: it is delivered twice, the second answer is told; ``cut``: the
            answer ends after ``at`` bytes, its length says otherwise; ``short``: the same with
            that length; ``flip``: a bit of the answer's body is another; ``slow``: ``at`` bytes a
            second; ``stall``: no answer for ``at`` seconds, then the end; ``stale``: a listing as
            it was when it was first asked for; ``plain``: a range is not heeded, as servers do
            that know none.
        method: GET, PUT, ...; None: any.
        match: what the path with its query must hold, a regular expression.
        times: how many requests take it; None: all.
        at: see ``kind``.
    """

    kind: str
    method: str | None = None
    match: str = ""
    times: int | None = 1
    at: int = 0

    def fits(self, method: str, path: str) -> bool:
        """Whether a request takes it."""
        wanted = self.method in (None, method) and re.search(self.match, path) is not None
        return wanted and (self.times is None or self.times > 0)


@dataclass(slots=True)
class Seen:
    """A request that came, and the fault that it took."""

    method: str
    path: str
    fault: str | None
    headers: dict[str, str] = field(default_factory=dict)


class FaultProxy(ThreadingHTTPServer):
    """Hands requests on; each takes the first fault of ``plan`` that fits it, or none."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.plan: list[Fault] = []
        self.seen: list[Seen] = []
        self.listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self.ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, method: str, path: str, headers: dict[str, str]) -> Fault | None:
        """The fault of a request; it is noted."""
        with self._lock:
            fault = next((one for one in self.plan if one.fits(method, path)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
            self.seen.append(Seen(method, path, fault.kind if fault else None, headers))
        return fault

    def faults(self) -> Counter[str]:
        """How often each kind was met."""
        return Counter(one.fault for one in self.seen if one.fault)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the proxy."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.server.take(self.command, self.path, headers)
        kind = fault.kind if fault else None
        if fault is not None and kind == "reset":
            self._body(fault.at)
            return self._reset()
        body = self._body()
        if kind and kind.isdigit():
            return self._refuse(int(kind))
        if fault is not None and kind == "stall":
            self.server.ended.wait(fault.at)
            return self._reset()
        answer = self._handed_on(body, kind)
        if kind == "twice":
            answer = self._handed_on(body, kind)
        if kind == "lost":
            return self._reset()
        self._answer(answer, fault)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _body(self, most: int | None = None) -> bytes:
        """The body as it came, chunks joined; or so many bytes of it."""
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            size = int(self.headers.get("content-length") or 0)
            return self.rfile.read(size if most is None else min(size, most))
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if most is not None and sum(map(len, parts)) >= most:
                break
        else:
            while self.rfile.readline().strip():
                pass
        return b"".join(parts)

    def _handed_on(self, body: bytes, kind: str | None) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=_TIMEOUT_SECONDS)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in (*_HOP, "expect")}
        if kind == "plain":
            headers = {k: v for k, v in headers.items() if k.lower() != "range"}
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        try:
            upstream.request(self.command, self.path, body, headers)
            reply = upstream.getresponse()
            told = reply.getheaders()
            answer = reply.status, told, reply.read()
        finally:
            upstream.close()
        if "list-type" in self.path:
            listed = self.server.listings.setdefault(self.path, answer)
            return listed if kind == "stale" else answer
        return answer

    def _answer(
        self, answer: tuple[int, list[tuple[str, str]], bytes], fault: Fault | None
    ) -> None:
        status, headers, data = answer
        kind, at = (fault.kind, fault.at) if fault else (None, 0)
        if kind == "flip" and data:
            changed = bytearray(data)
            changed[len(changed) // 2] ^= 16
            data = bytes(changed)
        sent = data[:at] if kind in ("cut", "short") else data
        length = str(len(sent if kind == "short" else data))
        if self.command == "HEAD":
            length = next((v for k, v in headers if k.lower() == "content-length"), "0")
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP and not (
                kind == "plain" and name.lower() == "accept-ranges"
            ):
                self.send_header(name, value)
        self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self._send(sent, at if kind == "slow" else None)
        if kind == "cut":
            self._reset()

    def _send(self, data: bytes, rate: int | None) -> None:
        """Send all at once, or so many bytes a second."""
        if rate is None:
            self.wfile.write(data)
            return
        step = max(1, rate // 20)
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            time.sleep(step / rate)

    def _refuse(self, status: int) -> None:
        code = CODES.get(status, "InternalError")
        data = f"<Error><Code>{code}</Code><Message>injected {status}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """End the connection with RST."""
        self.wfile.flush()
        self.close_connection = True
        reset(self.connection)


@contextmanager
def faulty(upstream: str) -> Iterator[FaultProxy]:
    """Within: a proxy before a server, without any fault at first."""
    server = FaultProxy(upstream)
    with serving(server, server.ended):
        yield server


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of a test, reached through a proxy of its own.

    Attributes:
        name: of the bucket.
        server: URL of the server itself.
        proxy: what clients talk to.
    """

    name: str
    server: str
    proxy: FaultProxy

    def url(self, path: str = "cache") -> str:
        """A location in it."""
        return f"s3://{self.name}/{path}"

    def objects(self) -> dict[str, int]:
        """Size of each object, by its key."""
        return objects(self.server, self.name)

    def put(self, key: str, data: bytes) -> None:
        """Write an object over whatever has its key."""
        put_object(self.server, self.name, key, data)


@contextmanager
def bucket_of(server: str) -> Iterator[Bucket]:
    """Within: an empty bucket, and a proxy before its server without any fault."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    make_bucket(server, name)
    with faulty(server) as proxy:
        yield Bucket(name, server, proxy)

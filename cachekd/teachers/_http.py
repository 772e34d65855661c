"""A server that is asked until it answers: what teachers over HTTP have in common.

Comes in: a `RemoteConfig` and requests. Goes out: replies, or a `TeacherError` when the server's
patience is spent. What may pass is tried again with growing, jittered pauses: no connection, no
answer in time, a damaged answer, and the states 502, 503 and 504. The token is in no message.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cachekd.errors import ConfigError, DataError, TeacherError
from cachekd.teachers import RemoteConfig

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
SMALL_ANSWER = 1 << 20
_PASSING = (502, 503, 504)
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_START = 5.0
"""Seconds that a server may fail to answer when a run starts: a wrong URL shows soon."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def message(self) -> str:
        """Its error as text: the field ``error`` of JSON, or how it begins."""
        try:
            value = json.loads(self.data)
            found = value["error"] if "error" in value else value["message"]
            text = found["message"] if isinstance(found, dict) else found
        except (ValueError, KeyError, TypeError, RecursionError):
            text = self.data[:200].decode(errors="replace")
        return " ".join(str(text).split())[:1000]

    def value(self) -> Any:
        """Its JSON.

        Raises:
            DataError: it is none.
        """
        try:
            return json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected JSON; found {self.data[:80]!r}") from error


class Connection:
    """A server and how long it is waited for. Every process has a connection of its own.

    ``was_silent`` is set when a request had to be sent again.
    """

    def __init__(self, config: RemoteConfig, *, advice: str, below: str = "") -> None:
        try:
            import httpx2
        except ImportError as error:
            raise ConfigError(
                "httpx2 is not installed; run: pip install 'cachekd[serve]'"
            ) from error
        parts = urlsplit(config.url)
        secret = "@" in parts.netloc or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or secret:
            raise ConfigError(
                "teacher_url: expected http://host:port, with the token in --teacher-token or "
                f"CACHEKD_TEACHER_TOKEN; found {parts.scheme}://{parts.hostname or ''}"
            )
        self.url = config.url.rstrip("/").removesuffix(below)
        self.was_silent = False
        self._httpx2 = httpx2
        self._config = config
        self._advice = advice
        self._clients: dict[int, httpx2.Client] = {}
        weakref.finalize(self, _close, self._clients)

    def ask(
        self,
        path: str,
        read: Callable[[Reply], T],
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        limit: int = SMALL_ANSWER,
        starting: bool = False,
    ) -> T:
        """Get, or with a body post, until there is an answer.

        Args:
            path: below the URL.
            read: makes something of a reply; a `DataError` says that the reply is damaged.
            body: what is posted.
            content_type: of the body.
            limit: most bytes of an answer.
            starting: whether this is the first request of a run, which waits a few seconds only.

        Raises:
            TeacherError: the server did not answer for too long; says why, and what to do.
        """
        patience = min(self._config.patience, _START) if starting else self._config.patience
        started, pause, tries = time.monotonic(), _FIRST_PAUSE, 0
        while True:
            tries += 1
            least = 0.0
            try:
                reply = self._once(path, body, content_type, limit)
                if reply.status not in _PASSING:
                    return read(reply)
                reason = f"{reply.status} {reply.message()}"
                least = _seconds(reply.headers.get("retry-after"))
            except (self._httpx2.TransportError, self._httpx2.DecodingError, DataError) as error:
                reason = f"{type(error).__name__}: {error}"
            wait = max(least, pause * random.SystemRandom().uniform(0.5, 1.5))
            if time.monotonic() - started + wait > patience:
                raise TeacherError(self._silent(path, tries, time.monotonic() - started, reason))
            if tries == 1 and not starting:
                _log.warning("%s: %s; it is asked again for %g s", self.url, reason, patience)
            self.was_silent = True
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(self, path: str, body: bytes | None, content_type: str, limit: int) -> Reply:
        """One request, whose whole answer must come in time."""
        deadline = time.monotonic() + self._config.timeout
        method, headers = ("GET", {}) if body is None else ("POST", {"content-type": content_type})
        chunks, size = [], 0
        with self._client().stream(
            method, self.url + path, content=body, headers=headers
        ) as response:
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise TeacherError(
                        f"{self.url}{path}: expected at most {limit} bytes; the server sent more"
                    )
                if time.monotonic() > deadline:
                    raise self._httpx2.ReadTimeout("the answer took longer than the timeout")
        headers = dict(response.headers)
        return Reply(status=response.status_code, headers=headers, data=b"".join(chunks))

    def _client(self) -> httpx2.Client:
        """The client of this process; a forked one shares no socket with its parent."""
        own = os.getpid()
        if own not in self._clients:
            token = self._config.token
            self._clients[own] = self._httpx2.Client(
                timeout=self._config.timeout,
                headers={"authorization": f"Bearer {token}"} if token else {},
                trust_env=False,
            )
        return self._clients[own]

    def _silent(self, path: str, tries: int, seconds: float, reason: str) -> str:
        return (
            f"no answer from {self.url}{path} after {tries} tries in {seconds:.1f} s; the last "
            f"one: {reason}. {self._advice}"
        )


def _close(clients: Mapping[int, httpx2.Client]) -> None:
    for client in clients.values():
        client.close()


def _seconds(value: str | None) -> float:
    """What Retry-After asks for, at most the longest pause."""
    return min(float(value), _LONGEST_PAUSE) if value and value.isdigit() else 0.0

"""``cachekd serve-teacher``: a socket, the endpoints behind it, and an end in good order.

Comes in: a `ServeConfig`. The address is taken before the teacher is loaded, but refuses
connections until it can answer. At the end, what was accepted is answered.
"""

from __future__ import annotations

import importlib.util
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from cachekd.config import ServeConfig
from cachekd.errors import ConfigError, TeacherError
from cachekd.serving.hosted import Hosted, load_hosted
from cachekd.signals import stop_on_signals

_POLL = 0.02


def serve(config: ServeConfig, *, ready: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Load a teacher and answer until SIGINT or SIGTERM.

    Args:
        config: the teacher, and where to listen.
        ready: called once with the URL and who the teacher is, when requests are answered.

    Returns:
        plain JSON types: requests that were answered.

    Raises:
        ConfigError: an extra is not installed, or the address cannot be had.
        TeacherError: the teacher cannot be loaded, or the server ended by itself.
    """
    _check_extra()
    with bind(config) as listener:
        hosted = load_hosted(config)
        with (
            stop_on_signals(patience=None) as stop,  # what was accepted is answered
            TeacherServer(hosted, config, listener) as server,
        ):
            ready(
                {
                    "url": server.url,
                    "teacher": hosted.name,
                    "source_id": hosted.source_id,
                    "context_length": hosted.context_length,
                    "vocab_size": hosted.vocab_size,
                }
            )
            while server.alive and not stop.asked:
                time.sleep(_POLL)
            if not stop.asked:
                raise TeacherError(f"the server at {server.url} ended by itself; see its log")
        return {"answered": server.answered}


def bind(config: ServeConfig) -> socket.socket:
    """A socket at the address, which does not listen yet.

    Raises:
        ConfigError: the address is in use, or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {config.host}:{config.port}: {error}. Choose another --port (0: a "
            "free one) or --host"
        ) from error
    return listener


class TeacherServer:
    """Answers from a thread of its own; leaving it ends in good order."""

    def __init__(self, hosted: Hosted, config: ServeConfig, listener: socket.socket) -> None:
        import uvicorn

        from cachekd.serving.app import Service
        from cachekd.serving.batches import Batches

        self._batches = Batches(
            hosted.teacher, batch_tokens=config.batch_tokens, max_wait=config.max_wait_ms / 1000
        )
        self._service = Service(hosted, self._batches, config)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._service.app(),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="serve-teacher"
        )
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it takes no more requests."""
        return self._service.stopping

    @property
    def answered(self) -> int:
        """Requests for scores that were answered."""
        return self._service.answered

    @property
    def queued(self) -> int:
        """Requests that no batch has taken yet."""
        return self._batches.waiting

    @property
    def held(self) -> int:
        """Requests that are under way."""
        return self._service.held

    def __enter__(self) -> TeacherServer:
        """Answer; returns when the socket listens."""
        self._thread.start()
        while self.alive and not self._server.started:
            time.sleep(_POLL)
        if not self._server.started:
            self._batches.stop()
            raise TeacherError(f"the server at {self.url} did not start; see its log")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Refuse what is new, answer what was accepted, end."""
        self._service.stopping = True
        self._server.should_exit = True
        self._thread.join()
        self._batches.stop()


def _check_extra() -> None:
    for module in ("starlette", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{module} is not installed; run: pip install 'cachekd[serve]'")

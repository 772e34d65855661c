"""Processes of their own, each with a peak of memory of its own, and what they answer.

In: a `Job`. Out: messages; a process that fails or dies is a `ChildFailed` that says why. Whatever
happens to the benchmark, its processes end: they are killed, and they notice that it is gone.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Protocol, Self, TypeVar

from cachekd.costs.comparison.jobs import Failure, Job, Message, Scoring, Started
from cachekd.costs.comparison.processor import cpu_seconds
from cachekd.engines._fresh import environment, interpreter
from cachekd.errors import WorkerError

_PATIENCE = 10.0
_MODULE = "cachekd.costs.comparison.process"
M = TypeVar("M", bound=Message)


class ChildFailed(Exception):
    """A process could not do its work."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Running(Protocol):
    """A process, as `subprocess.Popen` is one."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative where a signal ended it; `TimeoutExpired` where it runs on."""


def launch() -> tuple[Running, Connection]:
    """A fresh interpreter that waits for a job: this Python and import path, no terminal signals.

    Nothing of this process's memory counts into its own.
    """
    own, other = socket.socketpair()
    with other:
        process = subprocess.Popen(
            interpreter(_MODULE, str(other.fileno())),
            pass_fds=(other.fileno(),),
            stdin=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
    return process, Connection(own.detach())


def _unheard(scoring: Scoring) -> None:
    """Nobody listens."""


class Child:
    """A process that does a job; leaving the context ends it.

    Args:
        job: what it is to do.
        listen: called with how far a capture is.

    Attributes:
        started: what it said when it had its libraries.
        import_seconds: that this took, from its launch.
        seconds: that its first answer took.
        exit_seconds: from its last answer until it had ended.
        cpu: processor time of all of it, once it has ended.
    """

    def __init__(self, job: Job, listen: Callable[[Scoring], None] = _unheard) -> None:
        self.job, self.started = job, Started(peak_bytes=0)
        self.import_seconds = self.seconds = self.exit_seconds = self.cpu = 0.0
        self._listen, self._launched = listen, time.monotonic()
        self._process, self._connection = launch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def begin(self, expected: type[M]) -> M:
        """Send the job; the answer to it. What imports and this take is kept.

        Raises:
            ChildFailed: it failed, or died.
            WorkerError: it did not even start, so that nothing can be measured here.
        """
        try:
            self.started = self.hear(Started)
        except ChildFailed as error:
            raise WorkerError(
                f"a process that is to be measured did not start: {error}; what it printed above "
                "says why"
            ) from error
        begun = time.monotonic()
        self.import_seconds = begun - self._launched
        answer = self.ask(self.job, expected)
        self.seconds = time.monotonic() - begun
        return answer

    def ask(self, what: Job | str, expected: type[M]) -> M:
        """Send a job or a word; the answer to it.

        Raises:
            ChildFailed: it failed, or died.
        """
        try:
            self._connection.send(what)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._dead() from error
        return self.hear(expected)

    def hear(self, expected: type[M]) -> M:
        """The next message that is not of how far a capture is, which is passed on.

        Raises:
            ChildFailed: it is a failure, or the process died.
        """
        try:
            while isinstance(message := self._connection.recv(), Scoring):
                self._listen(message)
        except (EOFError, ConnectionResetError) as error:
            raise self._dead() from error
        if isinstance(message, Failure):
            raise ChildFailed(message)
        assert isinstance(message, expected), f"expected {expected.__name__}; found {message!r}"
        return message

    def finish(self) -> None:
        """Wait until it ends by itself after its last answer; what that takes is kept."""
        begun, cpu = time.monotonic(), cpu_seconds()
        with suppress(subprocess.TimeoutExpired):  # `close` ends it then
            self._process.wait(timeout=_PATIENCE)
        self.exit_seconds, self.cpu = time.monotonic() - begun, cpu_seconds() - cpu

    def close(self) -> None:
        """End the process, whatever it does; a capture ends its writers first."""
        self._connection.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _dead(self) -> ChildFailed:
        """The process is gone, or going: a closed socket comes a moment before its end."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 1
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        hint = ", as a system does that is out of memory" if code == -signal.SIGKILL else ""
        kind = "killed" if hint else "died"
        return ChildFailed(Failure(kind=kind, text=f"its process was ended {how}{hint}"))

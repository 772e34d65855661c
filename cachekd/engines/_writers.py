"""Who encodes and writes scored units: the teacher's own process, or a few beside it.

The teacher hands a unit over and goes on; it waits only while as many units as there are writers,
and one more, are not yet committed. So memory is bounded whatever is slower. Writers are processes
of their own (encoding holds the interpreter's lock), started as a module so that the user's script
is not run again, and they import no torch.
"""

from __future__ import annotations

import queue
import subprocess
import threading
from types import TracebackType
from typing import Any, Protocol, Self

from cachekd.codecs._priors import Prior
from cachekd.engines._frames import Done, receive_answer, send_sink, send_unit
from cachekd.engines._fresh import environment, interpreter
from cachekd.errors import StoreError
from cachekd.store.commit import ScoredUnit, Sink, write_unit
from cachekd.store.io import Location
from cachekd.store.retries import count
from cachekd.store.settings import handed_on


class Writers(Protocol):
    """Takes scored units and commits them."""

    def open(self, sink: Sink, prior: Prior | None) -> None:
        """Say where units go, and what they are packed with; before the first of them."""

    def submit(self, unit: ScoredUnit) -> None:
        """Hand a unit over; waits while too many are not committed.

        Raises:
            CachekdError: writing it, or one before, failed.
        """

    def check(self) -> None:
        """Raise what went wrong so far."""

    def backlog_seconds(self) -> float:
        """Time that what was handed over and one unit more will still take, by the pace so far."""

    def finish(self) -> None:
        """Wait until everything is committed.

        Raises:
            CachekdError: writing a unit failed.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class OwnProcess:
    """Encodes and writes at once, in this process."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._sink: Sink | None = None
        self._prior: Prior | None = None

    def open(self, sink: Sink, prior: Prior | None) -> None:
        """See `Writers`."""
        self._sink, self._prior = sink, prior

    def submit(self, unit: ScoredUnit) -> None:
        """See `Writers`."""
        assert self._sink is not None, "opened before the first unit"
        write_unit(self._sink, self._location, unit, self._prior)

    def check(self) -> None:
        """Nothing can be left over."""

    def backlog_seconds(self) -> float:
        """None: a unit's own time holds its writing."""
        return 0.0

    def finish(self) -> None:
        """Nothing can be left over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class WriterPool:
    """Writers in processes of their own.

    Leaving the context after an error lets the writers finish what they have, so that a unit that
    was scored is not lost; after an interruption (`KeyboardInterrupt`) they are killed, and what
    has no record yet does not exist.
    """

    def __init__(self, count: int) -> None:
        self._sink: Sink | None = None
        self._slots = threading.Semaphore(count + 1)
        self._units: queue.SimpleQueue[ScoredUnit | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._waiting, self._done, self._seconds = 0, 0, 0.0
        self._lock = threading.Lock()
        self._processes = [_start() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._feed, args=(process,), daemon=True)
            for process in self._processes
        ]
        for thread in self._threads:
            thread.start()

    def open(self, sink: Sink, prior: Prior | None) -> None:
        """See `Writers`; the processes read the prior from the cache."""
        self._sink = sink

    def submit(self, unit: ScoredUnit) -> None:
        """See `Writers`."""
        self._slots.acquire()
        self.check()
        with self._lock:
            self._waiting += 1
        self._units.put(unit)

    def check(self) -> None:
        """See `Writers`."""
        if self._failure is not None:
            raise self._failure

    def backlog_seconds(self) -> float:
        """See `Writers`."""
        with self._lock:
            each = self._seconds / self._done if self._done else 0.0
            return each * (self._waiting + 1) / len(self._processes)

    def finish(self) -> None:
        """See `Writers`."""
        for _ in self._threads:
            self._units.put(None)
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.wait()
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            for process in self._processes:
                process.kill()
        try:
            self.finish()
        except Exception:
            if error is None:
                raise

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Give one process its units, one after another, until there are no more."""
        assert process.stdin is not None and process.stdout is not None
        greeted = False
        with process.stdout as answers, process.stdin as stream:
            while (unit := self._units.get()) is not None:
                if self._failure is None:
                    try:
                        if not greeted:
                            assert self._sink is not None, "opened before the first unit"
                            send_sink(stream, self._sink)
                            greeted = True
                        send_unit(stream, unit)
                        self._note(receive_answer(answers))
                    except (OSError, EOFError):
                        self._failure = self._failure or _died(process, unit.number)
                    except Exception as error:  # the teacher's thread must learn of it
                        self._failure = self._failure or error
                del unit
                with self._lock:
                    self._waiting -= 1
                self._slots.release()
            _close(stream)

    def _note(self, answer: Done | Exception) -> None:
        if isinstance(answer, Exception):
            self._failure = self._failure or answer
            return
        for kind, number in answer.happened.items():
            count(kind, number)
        with self._lock:
            self._done += 1
            self._seconds += answer.seconds


def _start() -> subprocess.Popen[bytes]:
    """A writer's process: this interpreter and import path, one thread, no terminal signals."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(
        interpreter("cachekd.engines._writer_process"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(**single, **handed_on()),
        start_new_session=True,
    )


def _died(process: subprocess.Popen[bytes], number: int) -> StoreError:
    try:
        code: int | str = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        code = "unknown"
    return StoreError(
        f"a writer's process ended (code {code}) before unit {number} was committed; was it out of "
        "memory? What was committed before is whole: run the same command again, with "
        "--writers 0 to write in the teacher's process"
    )


def _close(stream: Any) -> None:
    try:
        stream.close()
    except OSError:  # the process was killed with bytes of ours unread
        return

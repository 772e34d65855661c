"""The command line in a process forked from the tests', which has imported everything already."""

from __future__ import annotations

import atexit
import os
import pty
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

HANG_SECONDS = 120.0  # nothing here takes long; what does, hangs


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of stderr that are not empty."""
        return [line for line in self.err.splitlines() if line.strip()]


def command(*args: object) -> Callable[[], None]:
    """The command line with these arguments."""
    (point,) = entry_points(group="console_scripts", name="cachekd")
    main = point.load()

    def run() -> None:
        sys.argv = ["cachekd", *map(str, args)]
        main()

    return run


def handles_signals(pid: int) -> bool:
    """Whether a process handles SIGTERM by now, or is gone: before, it is Python's start."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
    gone = any(line.startswith("State:\tZ") for line in lines)
    return gone or bool(caught[0] >> (signal.SIGTERM - 1) & 1)


class Forked:
    """A process that runs a function; it leads a group of its own.

    Args:
        run: what it runs.
        folder: takes what it prints.
        terminal: whether it has a terminal of its own, ``self.terminal``, and prints there.
    """

    def __init__(self, run: Callable[[], None], folder: Path, *, terminal: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        sys.stdout.flush()
        sys.stderr.flush()
        for name in ("out", "err"):
            (folder / name).write_text("")
        self.pid, self.terminal = pty.fork() if terminal else (os.fork(), -1)
        if self.pid == 0:
            _child(run, None if terminal else folder)

    def send(self, number: int) -> None:
        """Send a signal to it alone."""
        os.kill(self.pid, number)

    def children(self) -> list[int]:
        """Processes that it has started and that live."""
        with suppress(FileNotFoundError):
            path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
            return [int(pid) for pid in path.read_text().split()]
        return []

    def ended(self) -> bool:
        """Whether it is gone; its code is kept for `end`."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that must come while it runs."""
        deadline = time.monotonic() + HANG_SECONDS
        while not condition():
            if self.ended() or time.monotonic() > deadline:
                raise AssertionError(f"it did not come; {self.end()}")
            time.sleep(0.002)

    def end(self, seconds: float = HANG_SECONDS) -> Ended:
        """Wait for its end; a process that hangs is killed with all its own, and fails the test."""
        deadline = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(0.005)
        hung = not self.ended()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        assert not hung, f"it hangs; {err[-3000:]}"
        return Ended(os.waitstatus_to_exitcode(status), out, err)


def _child(run: Callable[[], None], folder: Path | None) -> None:
    code = 1
    atexit._clear()  # what was registered is the tests' own
    warnings.simplefilter("ignore", ResourceWarning)  # as Python does outside of tests
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if folder is not None:
            os.setsid()
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / name, os.O_WRONLY), number)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

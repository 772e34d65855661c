"""Ending by a signal: at once, or in good order where long work looks at a flag.

In: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (a terminal that was closed) unless the process was started
to ignore it, as by nohup. Out: a `KeyboardInterrupt`, or a flag that is set. Outside the main
thread, where Python allows no handlers, signals keep their meaning.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

PATIENCE = 3.0  # seconds that work which was told to stop may take for what it has begun
_AGAIN = 1.0
_MOMENT = 1.0
_Handler = Callable[[int, FrameType | None], Any]


class StopFlag:
    """Whether somebody asked for an end."""

    def __init__(self) -> None:
        self.asked = False

    def soon(self) -> bool:
        """Whether somebody asks by now or in a moment: several processes are not told as one."""
        deadline = time.monotonic() + _MOMENT
        while not self.asked and time.monotonic() < deadline:
            time.sleep(_MOMENT / 100)
        return self.asked


def end_on_signals() -> StopFlag:
    """From now on a signal sets the flag and raises `KeyboardInterrupt`: for a whole process.

    It is raised again until `ignore_signals`: code that may not raise (a callback of an import, a
    destructor) swallows what a handler raises.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        return flag

    def end(number: int, _frame: FrameType | None) -> None:
        flag.asked = True
        _leave_terminal(number)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
        raise KeyboardInterrupt

    def unraisable(found: UnraisableHookArgs) -> None:
        if not isinstance(found.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(found)

    sys.unraisablehook = unraisable
    for number in [*_ending(), signal.SIGALRM]:
        signal.signal(number, end)
    return flag


def ignore_signals() -> None:
    """From now on nothing but its own end ends the process: all is done, what is left is short."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ending():
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def stop_on_signals(
    flag: StopFlag | None = None, *, patience: float | None = PATIENCE
) -> Iterator[StopFlag]:
    """Within, a signal sets the flag; a second SIGINT raises `KeyboardInterrupt`.

    Args:
        flag: what is set; None for a new one.
        patience: seconds after which the first signal raises it too; None: never. After
            `end_on_signals` they count on when this block is left: what follows may take long.
    """
    flag = flag or StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if flag.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        _leave_terminal(number)
        if not flag.asked and patience is not None:
            signal.setitimer(signal.ITIMER_REAL, patience, _AGAIN)
        flag.asked = True

    with _handled(ask):
        yield flag


@contextmanager
def _handled(ask: _Handler) -> Iterator[None]:
    """Within, signals go to a handler, and the timer interrupts; what was before is put back."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {n: signal.signal(n, ask) for n in _ending()}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, late)
    counts_on = getattr(before[signal.SIGALRM], "__module__", None) == __name__
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        yield
    finally:
        if not counts_on:
            signal.setitimer(signal.ITIMER_REAL, *timer)
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending() -> list[signal.Signals]:
    """Signals that ask for an end; a process that nohup started keeps its SIGHUP ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def _leave_terminal(number: int) -> None:
    """Where the terminal is gone, write no more to it: that would be an error."""
    if number != signal.SIGHUP:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        with suppress(OSError):  # it may be closed
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)

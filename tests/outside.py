"""Signals from outside while a command runs in the tests' own process.

A command takes all signals for its own. One that no test sent (``timeout``, Ctrl-C, the time limit
of a test) is meant for the tests: it is sent to them again when the command is over. Else a test
fails because its command was interrupted, and the others go on as if nobody had asked.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextmanager
def passed_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, a command owns the process; what it changed of signals is put back."""
    own: list[int] = []
    heard, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.getsignal(number) for number in HANDLED}
    (left, every), started = signal.getitimer(signal.ITIMER_REAL), time.monotonic()
    wakeup = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    try:
        with monkeypatch.context() as patch:
            _note(patch, own)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        if left:  # a limit that is reached by now is told at once
            left = max(left - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, every)
        found = _read(heard)
        for end in (heard, tell):
            os.close(end)
    for number in found:
        if number in HANDLED[:-1] and number not in own:
            os.kill(os.getpid(), number)


def _note(patch: pytest.MonkeyPatch, own: list[int]) -> None:
    """Note signals that this process sends itself."""
    kill, raise_signal = os.kill, signal.raise_signal

    def killed(pid: int, number: int) -> None:
        if pid == os.getpid():
            own.append(number)
        kill(pid, number)

    def raised(number: int) -> None:
        own.append(number)
        raise_signal(number)

    patch.setattr(os, "kill", killed)
    patch.setattr(signal, "raise_signal", raised)


def _read(heard: int) -> list[Any]:
    """Numbers of the signals that came."""
    try:
        return list(os.read(heard, 4096))
    except BlockingIOError:
        return []

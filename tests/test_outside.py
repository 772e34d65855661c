"""A command in the tests' process does not take signals from them that were meant for them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from forking import Forked
from outside import passed_on

from cachekd.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_from_outside_ends_the_tests_once_the_command_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def tests() -> None:
        with passed_on(monkeypatch), stop_on_signals(patience=None) as stop:
            (tmp_path / "begun").touch()
            while not stop.asked:
                time.sleep(0.01)
            (tmp_path / "over").touch()
        (tmp_path / "next").touch()

    process = Forked(tests, tmp_path / "said")
    process.until((tmp_path / "begun").exists)
    process.send(number)
    assert process.end().code == -number
    assert (tmp_path / "over").exists() and not (tmp_path / "next").exists()


def test_a_signal_of_a_test_is_the_command_s(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with passed_on(monkeypatch), stop_on_signals(patience=None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked
    with passed_on(monkeypatch), stop_on_signals(patience=None) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_time_limit_that_a_command_took_is_told_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def limit(*_: object) -> None:
        raise TimeoutError

    before, timer = signal.signal(signal.SIGALRM, limit), signal.getitimer(signal.ITIMER_REAL)
    try:
        with pytest.raises(TimeoutError):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with passed_on(monkeypatch):
                signal.signal(signal.SIGALRM, lambda *_: None)  # as an interrupted command
                time.sleep(0.1)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)

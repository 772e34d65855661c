"""A function in a forked process that may be killed, may hang and may crash, and how it ended.

A fork, not a new interpreter: hundreds of trials would else spend their time in imports.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Ending = Literal["done", "error", "died", "killed", "hang"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended, and what it returned, or the text of its error."""

    ending: Ending
    value: Any = None


class Child:
    """A function that runs in a fork of this process, silent on standard error."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._answer, write = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._answer)
            _run(write, function, arguments)
        os.close(write)

    def kill(self) -> Outcome:
        """End it now, unless it is done already."""
        os.kill(self._pid, signal.SIGKILL)
        outcome = self.wait(60)
        return outcome if outcome.ending != "died" else Outcome("killed")

    def wait(self, limit: float) -> Outcome:
        """How it ended; it is killed when it has not after so many seconds."""
        parts, end = [], time.monotonic() + limit
        while select.select([self._answer], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(self._answer, 1 << 20)
            if not part:
                break
            parts.append(part)
        else:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._answer)
            return Outcome("hang")
        os.waitpid(self._pid, 0)
        os.close(self._answer)
        return pickle.loads(b"".join(parts)) if parts else Outcome("died")


def _run(write: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The child's whole life."""
    null = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(null, output)
    try:
        outcome = Outcome("done", function(*arguments))
    except BaseException as error:  # whatever it is, the parent counts it
        outcome = Outcome("error", f"{type(error).__name__}: {error}"[:300])
    data = pickle.dumps(outcome)
    while data:
        data = data[os.write(write, data) :]
    os._exit(0)


def in_fork(function: Callable[..., Any], *arguments: Any, limit: float = 60) -> Outcome:
    """How a function ends in a process of its own."""
    return Child(function, *arguments).wait(limit)

"""Files on their way into the local cache: whether they go on, and which were given up.

Comes in: the folder, open. Goes out: what a process can tell of those that others fetch. A part is
locked while its writer lives, and written to as its bytes come; where a filesystem knows no locks,
one that nobody wrote to for long is taken for that of a process that is gone.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from cachekd.store import disk
from cachekd.store.temporary import clock

PART = ".part-"
STALLED_SECONDS = 300.0  # above the time for which one request is tried again


class Parts:
    """Parts of a folder as a process has seen them go on."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}  # last change, and when that was, for us

    def given_up(self, folder: int, name: str) -> bool:
        """Take away what a process that is gone had begun to fetch."""
        try:
            file = disk.open_old(name, folder)
        except FileNotFoundError:
            return True
        try:
            free = disk.is_free(file)
            if free is None:
                free = self._stalled(folder, name, os.fstat(file).st_mtime_ns)
            if free:
                with suppress(FileNotFoundError):
                    disk.unlink(name, folder)
            return free
        finally:
            disk.close(file)

    def _stalled(self, folder: int, name: str, changed: int) -> bool:
        now, seen = time.monotonic(), self._seen.get(name)
        if seen is None:
            self._seen[name] = changed, now - max(0.0, clock(folder) - changed / 1e9)
        elif seen[0] != changed:
            self._seen[name] = changed, now
        return now - self._seen[name][1] > STALLED_SECONDS


class Waiting:
    """How long a process has waited for others without any of them having come further."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._since, self._parts = time.monotonic(), _changed(folder)

    def seconds(self) -> float:
        """Since the last part grew, came or went."""
        now, parts = time.monotonic(), _changed(self._folder)
        if parts != self._parts:
            self._since, self._parts = now, parts
        return now - self._since


def _changed(folder: int) -> dict[str, int]:
    """When each part was last written to."""
    found = {}
    for name in disk.names(folder):
        if name.startswith(PART):
            with suppress(FileNotFoundError):
                found[name] = disk.look(name, folder).st_mtime_ns
    return found

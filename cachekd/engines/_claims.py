"""Whose a unit is, when a process wants to begin it."""

from __future__ import annotations

from enum import Enum, auto

POLL_SECONDS = 0.2


class Claim(Enum):
    """Whose a unit is, when this process wants to begin it."""

    OURS = auto()
    BUSY = auto()  # another process works on it
    DONE = auto()  # it was committed meanwhile

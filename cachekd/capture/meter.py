"""How far a run is, and whether it is time to stop.

Comes in: tokens as they are done, a flag that signals set, the hours a run may take. Goes out: a
`Progress` after each batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cachekd.signals import StopFlag


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage of a run is: tokens of what is still missing.

    Attributes:
        tokens_done, tokens_total: where responses are written the total is an upper bound, which
            falls as they end.
        seconds: since the stage began.
        stage: teacher (scores documents) or responses (are written).
    """

    tokens_done: int
    tokens_total: int
    seconds: float
    stage: str = "teacher"


Show = Callable[[Progress], None]


class Meter:
    """Tokens that are done, and whether it is time to stop.

    Args:
        total: tokens to do, at most.
        flag: set by signals.
        started: when the run began, on the monotonic clock.
        hours: what the whole run may take, or None.
        progress: called after each batch, or None.
        stage: see `Progress`.
    """

    def __init__(
        self,
        total: int,
        flag: StopFlag,
        started: float,
        hours: float | None,
        progress: Show | None,
        stage: str = "teacher",
    ) -> None:
        self.flag = flag
        self.total = total
        self._done = 0
        self._begun = time.monotonic()
        self._deadline = started + 3600 * hours if hours is not None else float("inf")
        self._progress = progress
        self._stage = stage

    def begin(self) -> None:
        """From now on the time counts: teachers are loaded."""
        self._begun = time.monotonic()

    def scored(self, tokens: int, spared: int = 0) -> None:
        """So many tokens more are done, and so many of the total need not be."""
        self._done += tokens
        self.total -= spared
        if self._progress:
            self._progress(Progress(self._done, self.total, self.seconds(), self._stage))

    def spare(self, tokens: int) -> None:
        """So many tokens of the total are another process's."""
        self.total -= tokens

    def over(self) -> bool:
        """Whether a signal or the time limit asks for an end."""
        return self.flag.asked or self.left() <= 0

    def left(self) -> float:
        """Seconds that remain."""
        return self._deadline - time.monotonic()

    def seconds(self) -> float:
        """Seconds since the first batch."""
        return time.monotonic() - self._begun

"""The local engine: units one after another in this process, until done or told to stop.

Other processes may work on the same units: what one of them has is left to it, and looked at again
when nothing else is left to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cachekd.config import PrecomputeConfig
from cachekd.engines import Crew, Kit, Orders, Outcome, Worker
from cachekd.engines._claims import POLL_SECONDS, Claim
from cachekd.errors import Incomplete
from cachekd.signals import PATIENCE


def run_units(
    units: Sequence[tuple[int, int]],
    run_unit: Callable[[int], None],
    *,
    claim: Callable[[int], Claim],
    stop_asked: Callable[[], bool],
    seconds_left: Callable[[], float],
) -> int:
    """Run units in order.

    Args:
        units: number and tokens of each unit that is missing.
        run_unit: does the unit of this number and hands it to be committed.
        claim: asked before each unit.
        stop_asked: whether somebody wants an end; asked between units.
        seconds_left: time that remains; a unit that would not fit, by the pace so far, is not
            begun.

    Returns:
        units left undone.
    """
    left, pace = list(units), _Pace()
    while left:
        busy: list[tuple[int, int]] = []
        for place, (number, tokens) in enumerate(left):
            if stop_asked() or not pace.allows(tokens, seconds_left()):
                return len(busy) + len(left) - place
            found = claim(number)
            if found is Claim.BUSY:
                busy.append((number, tokens))
            elif found is Claim.OURS:
                with pace:
                    run_unit(number)
                pace.tokens += tokens
        if len(busy) == len(left):
            time.sleep(POLL_SECONDS)
        left = busy
    return 0


class _Pace:
    """Seconds a token takes, by the units done so far."""

    def __init__(self) -> None:
        self.tokens = 0
        self._seconds = self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.monotonic() - self._begun

    def allows(self, tokens: int, seconds: float) -> bool:
        """Whether so many tokens more fit into these seconds."""
        each = self._seconds / self.tokens if self.tokens else 0.0
        return seconds > 0 and each * tokens <= seconds


class _Alone:
    """One worker, in this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def try_teacher(self, job: Any) -> Any:
        """See `Crew`."""
        return self._worker.try_teacher(job)

    def run(self, job: Any, orders: Orders) -> Outcome:
        """See `Crew`; a unit's tokens are told batch by batch."""
        worker = self._worker
        worker.begin(job)
        try:
            left = run_units(
                orders.units,
                worker.do,
                claim=orders.claim,
                stop_asked=orders.stop_asked,
                seconds_left=lambda: orders.seconds_left() - worker.backlog_seconds(),
            )
        except Incomplete:
            left = len(orders.units)
        worker.finish()
        return Outcome(left=left)


class LocalEngine:
    """Every process that runs the command does units itself."""

    patience: float | None = PATIENCE
    divides = True

    def __init__(self, config: PrecomputeConfig) -> None:
        """Nothing can be wrong."""

    @contextmanager
    def crew(self, kit: Kit) -> Iterator[Crew]:
        """See `Engine`."""
        with kit.here() as worker:
            yield _Alone(worker)


PLUGIN = LocalEngine

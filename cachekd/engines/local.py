"""The local engine: units one after another in this process, until done or told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def run_units(
    units: Sequence[tuple[int, int]],
    run_unit: Callable[[int], None],
    *,
    stop_asked: Callable[[], bool],
    seconds_left: Callable[[], float],
) -> int:
    """Run units in order.

    Args:
        units: number and tokens of each unit that is missing.
        run_unit: does the unit of this number and hands it to be committed.
        stop_asked: whether somebody wants an end; asked between units.
        seconds_left: time that remains; a unit that would not fit, by the pace so far, is not
            begun.

    Returns:
        units done.
    """
    started, tokens_done = time.monotonic(), 0
    for done, (number, tokens) in enumerate(units):
        pace = (time.monotonic() - started) / tokens_done if tokens_done else 0.0
        left = seconds_left()
        if stop_asked() or left <= 0 or pace * tokens > left:
            return done
        run_unit(number)
        tokens_done += tokens
    return len(units)

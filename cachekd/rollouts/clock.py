"""Clocks of the parts of a step. In: calls. Out: seconds by name."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Clock:
    """Seconds spent in each part."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time within counts for this part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def of(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, its time counted for this part."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.timed(name):
                return function(*args, **kwargs)

        return timed

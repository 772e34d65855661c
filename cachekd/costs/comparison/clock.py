"""Seconds of work on whatever device it runs, and the most memory that a process has had.

In: a device. Out: seconds that wait for the device where a step ends and nowhere else, and bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cachekd.training.meter import peak_cuda_bytes, peak_resident_bytes


def now(device: torch.device) -> float:
    """Seconds on a steady clock, after all work that was given to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: allocated, each GPU by itself and then added up; else resident."""
    if device.type != "cuda":
        return peak_resident_bytes()
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return sum(map(peak_cuda_bytes, devices))


class Stopwatch:
    """Seconds of some parts of a step. On a GPU parts are marked in its stream: nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time within counts."""
        begun = self._mark()
        try:
            yield
        finally:
            self._marks.append((begun, self._mark()))

    def taken(self) -> float:
        """Seconds since the last call; on a GPU after `now`."""
        marks, self._marks = self._marks, []
        if self._on_gpu:
            return float(sum(begun.elapsed_time(ended) for begun, ended in marks)) / 1e3
        return float(sum(ended - begun for begun, ended in marks))

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

"""What a run used: time, tokens, memory, and how long it waited for data.

In: events of a Trainer and its batches. Out: `Meter.figures`, as plain JSON types.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cachekd.types import Batch


class Meter:
    """Clocks and counters of one call of ``train``; a resumed run counts from where it resumed.

    Attributes:
        steps: optimizer steps.
        training: seconds of training, without evaluations.
        waiting: seconds of these in which the next batch was awaited.
        tokens: tokens that went through the student; of packed rows with what fills them up.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.training = self.waiting = 0.0
        self.tokens: int | Tensor = 0
        self._begun: float | None = None
        self._paused, self._pauses = 0.0, 0
        self._working = 0.0

    def begin(self) -> None:
        """Start the clock."""
        self._begun, self._paused = time.perf_counter(), 0.0

    def end(self) -> None:
        """Stop the clock."""
        assert self._begun is not None
        self.training += time.perf_counter() - self._begun - self._paused
        self._begun = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within is not of training; pauses may be nested."""
        start = time.perf_counter()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._paused += time.perf_counter() - start

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time within is work of the run, though a batch is awaited meanwhile."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._working += time.perf_counter() - start

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time that each is waited for."""
        while True:
            start, self._working = time.perf_counter(), 0.0
            batch = next(batches, None)
            self.waiting += time.perf_counter() - start - self._working
            if batch is None:
                return
            self._count(batch)
            yield batch

    def figures(self, accelerator: Any) -> dict[str, Any]:
        """Rates over all processes; memory is that of the process with most.

        Args:
            accelerator: of the Trainer; every process must call.
        """
        device = accelerator.device
        tokens = torch.as_tensor(self.tokens, dtype=torch.float64, device=device)
        most = torch.tensor(
            [
                self.waiting / max(self.training, 1e-9),
                peak_resident_bytes(),
                peak_cuda_bytes(device),
            ],
            dtype=torch.float64,
            device=device,
        )
        if accelerator.num_processes > 1:
            tokens = accelerator.reduce(tokens, "sum")
            most = accelerator.gather(most[None]).max(0).values
        share, resident, cuda = most.tolist()
        seconds = max(self.training, 1e-9)
        return {
            "training_seconds": self.training,
            "trained_tokens": int(tokens.item()),
            "tokens_per_second": tokens.item() / seconds,
            "steps_per_second": self.steps / seconds,
            "data_wait_share": min(share, 1.0),
            "peak_memory_bytes": int(resident),
            "peak_cuda_memory_bytes": int(cuda) if device.type == "cuda" else None,
            "processes": accelerator.num_processes,
        }

    def _count(self, batch: Batch) -> None:
        """Add the tokens of a batch; a sum on a device is not waited for."""
        mask = batch["attention_mask"]
        self.tokens = self.tokens + (batch["input_ids"].numel() if mask is None else mask.sum())


def peak_resident_bytes() -> int:
    """Most memory that this process has had.

    Linux counts into ``ru_maxrss`` what the process held that started this one; its own status
    does not.
    """
    try:
        with open("/proc/self/status") as lines:
            found = next((line for line in lines if line.startswith("VmHWM")), None)
    except OSError:
        found = None
    if found is not None:
        return int(found.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_cuda_bytes(device: torch.device) -> int:
    """Most memory that was allocated on a device; 0 for one that is no GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

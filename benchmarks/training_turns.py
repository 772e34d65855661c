"""Trainers that take a step when it is their turn.

In: a `transformers.Trainer`, whatever it trains. Out: the seconds of a step of its own loop, from
the end of one step to the end of the next: next batch, forward, backward, clip, optimiser, logs.
Each trainer's loop stands in a thread of its own, of which one runs at a time.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from transformers import TrainerCallback

Times = tuple[float, float]


class Turns(TrainerCallback):  # type: ignore[misc]
    """A trainer's loop, step by step.

    Args:
        trainer: not yet training.
        threads: of torch.
    """

    def __init__(self, trainer: Any, threads: int) -> None:
        self._trainer, self._threads = trainer, threads
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._failure: BaseException | None = None
        self._over = False
        self._started: Times = (0.0, 0.0)
        self._took: Times = (0.0, 0.0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        trainer.add_callback(self)

    def step(self) -> Times:
        """Wall and processor seconds of the next step; the first holds what starting takes."""
        if self._thread.ident is None:
            self._started = _now()
            self._thread.start()
        self._go.release()
        self._done.acquire()
        if self._failure is not None:
            raise self._failure
        return self._took

    def end(self) -> None:
        """Leave the loop."""
        self._over = True
        self._go.release()
        self._thread.join()

    @property
    def first_loss(self) -> float:
        """Training loss of the first step."""
        return float(self._trainer.state.log_history[0]["loss"])

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        self._go.acquire()
        try:
            self._trainer.train()
        except BaseException as error:
            self._failure = error
            self._done.release()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time, and wait for the next turn."""
        wall, cpu = _now()
        self._took = wall - self._started[0], cpu - self._started[1]
        self._done.release()
        self._go.acquire()
        control.should_training_stop = self._over
        self._started = _now()


def _now() -> Times:
    return time.perf_counter(), time.process_time()

"""A process that is measured: ``python -m cachekd.costs.comparison.process FD``.

In: a `Job` over a socket, then a word for each step. Out: messages of `jobs`, of which the first
says that everything is imported. A side's Trainer runs its own loop, which waits at the end of each
step until it is told to go on, so that several processes take steps in turn and each has its own
peak of memory. Loader workers, where there are any, go on meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from cachekd.capture.meter import Progress
from cachekd.config import PrecomputeConfig, precompute_config
from cachekd.costs.comparison.clock import now, peak_bytes
from cachekd.costs.comparison.energy import Counter, counter, spent
from cachekd.costs.comparison.jobs import (
    GO,
    Capture,
    Ended,
    Failure,
    Job,
    Ready,
    ScoredBatch,
    Scoring,
    Started,
    Step,
)
from cachekd.costs.comparison.live_step import LiveTrainer
from cachekd.costs.comparison.processor import cpu_seconds
from cachekd.costs.comparison.sides import side_of
from cachekd.training.meter import peak_resident_bytes


def main() -> None:
    """Serve the socket of this number."""
    os.dup2(2, 1)  # what a library prints is no result
    serve(Connection(int(sys.argv[1])))


def serve(connection: Connection) -> None:
    """Do the job that comes first; tell what came of it."""
    from cachekd.teachers._memory import one_memory_error

    logging.disable_progress_bar()
    try:
        connection.send(Started(peak_bytes=peak_resident_bytes()))
        job: Job = connection.recv()
        try:
            with one_memory_error():
                _do(job, connection)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # whatever it is, the benchmark tells it
            connection.send(_failure(error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the benchmark is gone


def _do(job: Job, connection: Connection) -> None:
    import torch

    if job.config.threads:
        torch.set_num_threads(job.config.threads)
    if job.side == "capture":
        connection.send(_capture(job, connection.send))
        return
    side = side_of(job)
    arguments, trainer = side.trainer.args, side.trainer
    energy = counter()
    turns = Turns(connection, trainer, energy)
    trainer.add_callback(turns)
    connection.send(
        Ready(
            tokens=side.tokens,
            batch=arguments.train_batch_size * arguments.gradient_accumulation_steps,
            device=arguments.device.type,
        )
    )
    if connection.recv() == GO:
        turns.begin(arguments.device)  # making an optimizer is of the first step
        trainer.train()
    peak = peak_bytes(arguments.device)
    connection.send(_ended(trainer, peak, energy))


def _ended(trainer: Any, peak: int, energy: Counter) -> Ended:
    """Save the student, as a run does at its end."""
    begun = now(trainer.args.device)
    trainer.save_model(trainer.args.output_dir)
    return Ended(
        peak_bytes=peak,
        no_joules=energy.why,
        save_seconds=now(trainer.args.device) - begun,
    )


def _capture(job: Job, tell: Callable[[Scoring], None]) -> Capture:
    """Run precompute on the sample, as its command does; tell of each batch."""
    import torch

    from cachekd.capture import precompute

    settings, energy = _capture_settings(job), counter()
    batches = Batches(settings.unit_tokens, energy, tell)
    before, cpu = energy.joules(), cpu_seconds()
    report = precompute(settings, progress=batches)
    after = energy.joules()
    gpu = torch.cuda.is_available() and job.config.device != "cpu"
    return Capture(
        tokens=int(report["tokens_to_score"]),
        score_seconds=float(report["score_seconds"]),
        batches=batches.taken(),
        cpu_seconds=cpu_seconds() - cpu,
        bytes=sum(path.stat().st_size for path in job.cache.rglob("*") if path.is_file()),
        peak_bytes=peak_bytes(torch.device("cuda" if gpu else "cpu")),
        device="cuda" if gpu else "cpu",
        joules=spent(before, after),
        first_joules=spent(before, batches.first_joules),
        no_joules=energy.why,
    )


def _capture_settings(job: Job) -> PrecomputeConfig:
    """Settings of precompute: the sample is tokenised already, and none of it may be missing."""
    plain: dict[str, Any] = {"columns": {}, "split": "train", "on_long": "fail", "on_bad": "fail"}
    plain |= dict.fromkeys(("dataset_config", "domain_column", "max_samples"))
    return precompute_config(job.config, cache=str(job.cache), data=(str(job.sample),), **plain)


class Batches:
    """Keeps the batches of a capture's first unit, and tells how far the capture is.

    Args:
        unit_tokens: budget of a unit.
        energy: counter of energy.
        tell: called after each batch.

    Attributes:
        first_joules: reading of the counter when the first batch was done, or None.
    """

    def __init__(self, unit_tokens: int, energy: Counter, tell: Callable[[Scoring], None]) -> None:
        self.first_joules: float | None = None
        self._unit_tokens, self._energy, self._tell = unit_tokens, energy, tell
        self._marks = [(0, 0.0, cpu_seconds())]

    def __call__(self, progress: Progress) -> None:
        """A batch is done."""
        done, first = progress.tokens_done, len(self._marks) == 1
        if first:
            self.first_joules = self._energy.joules()
        if first or done <= self._unit_tokens:
            self._marks.append((done, progress.seconds, cpu_seconds()))
        self._tell(Scoring(tokens=done, of=progress.tokens_total))

    def taken(self) -> tuple[ScoredBatch, ...]:
        """What each batch took."""
        return tuple(
            ScoredBatch(tokens=end[0] - begin[0], seconds=end[1] - begin[1], cpu=end[2] - begin[2])
            for begin, end in pairwise(self._marks)
        )


def _failure(error: Exception) -> Failure:
    short = isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)
    short = short or "out of memory" in str(error).lower()
    return Failure(kind="memory" if short else "error", text=str(error), error=type(error).__name__)


class Turns(TrainerCallback):  # type: ignore[misc]
    """Tells of each step, and waits for the word to take the next one."""

    def __init__(self, connection: Connection, trainer: Any, energy: Counter) -> None:
        self._connection, self._trainer, self._energy = connection, trainer, energy
        self._begun, self._cpu = time.perf_counter(), cpu_seconds()
        self._joules: float | None = None
        self._tokens, self._waited = 0, 0.0
        self._opens = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next step is the first of an epoch."""
        self._opens = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell, wait, begin anew."""
        meter = self._trainer.meter
        seconds, cpu = now(args.device) - self._begun, cpu_seconds() - self._cpu
        live = self._trainer.live.watch if isinstance(self._trainer, LiveTrainer) else None
        tokens, waited, joules = int(meter.tokens), meter.waiting, self._energy.joules()
        self._connection.send(
            Step(
                seconds=seconds,
                tokens=tokens - self._tokens,
                wait=waited - self._waited,
                teacher=live.taken() if live is not None else 0.0,
                cpu=cpu,
                joules=spent(self._joules, joules),
                opens=self._opens,
            )
        )
        self._opens = False
        self._tokens, self._waited = tokens, waited
        control.should_training_stop = self._connection.recv() != GO
        self.begin(args.device)

    def begin(self, device: Any) -> None:
        """A step begins."""
        self._joules, self._cpu = self._energy.joules(), cpu_seconds()
        self._begun = now(device)


if __name__ == "__main__":
    main()

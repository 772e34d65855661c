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
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from cachekd.capture.meter import Progress
from cachekd.costs.comparison.clock import cpu_seconds, now, peak_bytes
from cachekd.costs.comparison.energy import Counter, counter, spent
from cachekd.costs.comparison.jobs import GO, Capture, Ended, Failure, Job, Ready, Started, Step
from cachekd.costs.comparison.live_step import LiveTrainer
from cachekd.costs.comparison.sides import side_of


def main() -> None:
    """Serve the socket of this number."""
    os.dup2(2, 1)  # what a library prints is no result
    serve(Connection(int(sys.argv[1])))


def serve(connection: Connection) -> None:
    """Do the job that comes first; tell what came of it."""
    from cachekd.teachers._memory import one_memory_error

    logging.disable_progress_bar()
    try:
        connection.send(Started())
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
        connection.send(_capture(job))
        return
    side = side_of(job)
    arguments, trainer = side.trainer.args, side.trainer
    energy = counter()
    trainer.add_callback(Turns(connection, trainer, energy))
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
    kind = arguments.device.type
    connection.send(Ready(tokens=side.tokens, batch=batch, device=kind))
    if connection.recv() == GO:
        trainer.train()
    connection.send(Ended(peak_bytes=peak_bytes(arguments.device), no_joules=energy.why))


def _capture(job: Job) -> Capture:
    """Run precompute on the sample, as its command does."""
    import torch

    from cachekd.capture import precompute
    from cachekd.config import precompute_config

    energy = counter()
    plain: dict[str, Any] = {"columns": {}, "split": "train", "on_long": "fail", "on_bad": "fail"}
    plain |= dict.fromkeys(("dataset_config", "domain_column", "max_samples"))
    settings = precompute_config(job.config, cache=str(job.cache), data=(str(job.sample),), **plain)
    done: list[Progress] = []
    readings: list[float | None] = []

    def told(progress: Progress) -> None:
        if progress.tokens_done <= settings.unit_tokens or not done:
            done.append(progress)
        if not readings:
            readings.append(energy.joules())

    before, cpu = energy.joules(), cpu_seconds()
    report = precompute(settings, progress=told)
    after = energy.joules()
    gpu = torch.cuda.is_available() and job.config.device != "cpu"
    return Capture(
        tokens=int(report["tokens_to_score"]),
        score_seconds=float(report["score_seconds"]),
        batches=_batches(done),
        cpu_seconds=cpu_seconds() - cpu,
        bytes=sum(path.stat().st_size for path in job.cache.rglob("*") if path.is_file()),
        peak_bytes=peak_bytes(torch.device("cuda" if gpu else "cpu")),
        device="cuda" if gpu else "cpu",
        joules=spent(before, after),
        first_joules=spent(before, readings[0]),
        no_joules=energy.why,
    )


def _batches(done: Sequence[Progress]) -> tuple[tuple[int, float], ...]:
    """Tokens and seconds of each batch."""
    marks = [(0, 0.0), *((one.tokens_done, one.seconds) for one in done)]
    return tuple((end[0] - begin[0], end[1] - begin[1]) for begin, end in pairwise(marks))


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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step begins."""
        self._begin(args.device)

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
            )
        )
        self._tokens, self._waited = tokens, waited
        control.should_training_stop = self._connection.recv() != GO
        self._begin(args.device)

    def _begin(self, device: Any) -> None:
        self._joules, self._cpu = self._energy.joules(), cpu_seconds()
        self._begun = now(device)


if __name__ == "__main__":
    main()

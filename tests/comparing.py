"""Processes of a comparison that are forked: nothing is imported again. And made-up measures."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison.documents import Documents
from cachekd.costs.comparison.jobs import (
    Capture,
    Ended,
    Failure,
    Ready,
    ScoredBatch,
    Started,
    Step,
)
from cachekd.costs.comparison.measures import Measures
from cachekd.costs.comparison.parameters import Parameters
from cachekd.costs.comparison.process import serve
from cachekd.costs.comparison.rounds import Captured, Taken


class Forked:
    """A forked process, ended and waited for as `subprocess.Popen` is."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0.0)
        return int(self.process.exitcode)


def forked(serving: Callable[[Connection], None] = serve) -> tuple[Forked, Connection]:
    """In place of `children.launch`."""
    context = multiprocessing.get_context("fork")
    own, other = context.Pipe()

    def run() -> None:
        own.close()
        serving(other)

    process = context.Process(target=run, daemon=True)
    process.start()
    other.close()
    return Forked(process), own


def config(**changes: Any) -> BenchmarkConfig:
    """Settings that nothing is loaded for."""
    settings: dict[str, Any] = {"teacher": "t", "student": "s", "data": ("d.jsonl",)}
    return BenchmarkConfig(**{**settings, **changes})


STARTED = Started(peak_bytes=4 * 10**8)


def step(seconds: float, **changes: Any) -> Step:
    """A step of 100 tokens, within an epoch."""
    made: dict[str, Any] = {
        "seconds": seconds,
        "tokens": 100,
        "wait": seconds / 4,
        "teacher": 0.0,
        "cpu": 2 * seconds,
        "joules": None,
        "opens": False,
    }
    return Step(**{**made, **changes})


def taken(seconds: float, *, teacher: float = 0.0, load: float = 0.0, joules: Any = None) -> Taken:
    """A side whose steps of 100 tokens all took the same, and whose libraries took no time."""
    usual = step(seconds, teacher=teacher, joules=joules)
    return Taken(
        started=STARTED,
        import_seconds=0.0,
        load_seconds=load,
        ready=Ready(tokens=1000, batch=4, device="cpu"),
        warmup=(usual,),
        steps=(usual,) * 4,
        ended=Ended(
            peak_bytes=10**9,
            no_joules="" if joules is not None else "no counter",
            save_seconds=0.0,
        ),
        exit_seconds=0.0,
        cpu=0.875 + 5 * 2 * seconds,
        alternated=True,
    )


def batches(*seconds: float) -> tuple[ScoredBatch, ...]:
    """Batches of 200 tokens; the processor works twice as long as the clock goes."""
    return tuple(ScoredBatch(tokens=200, seconds=one, cpu=2 * one) for one in seconds)


def measures(**changes: Any) -> Measures:
    """Whole data: 10 000 tokens in 100 documents, each in one sample, so 100 steps an epoch.

    Capture: 2 s of reading, 3 s of loading of which 1 s within the second batch, 1000 tokens/s, so
    15 s; 50 bytes a token. Steps: cached
    0.1 s, live 0.3 s of which 0.15 s are the teacher's, so epochs of 10 s and 30 s; live loads
    4 s, cached 1 s. Active parameters: 80 and 10.
    """
    documents = Documents(
        path=Path("sample.jsonl"),
        drawn=10,
        drawn_tokens=1000,
        samples=400,
        sample_tokens=10_000,
        documents=100,
        tokens=10_000,
        skipped={},
        seconds=2.0,
        cpu=1.5,
    )
    capture = Capture(
        tokens=1000,
        score_seconds=2.0,
        batches=batches(0.18, 1.18, 0.18, 0.18, 0.18),  # and 0.1 s of writing
        cpu_seconds=4.0,
        bytes=50_000,
        peak_bytes=2 * 10**9,
        device="cpu",
        joules=None,
        first_joules=None,
        no_joules="no counter",
    )
    made: dict[str, Any] = {
        "config": config(),
        "documents": documents,
        "teacher": Parameters(total=100, active=80, experts=1, chosen=None),
        "student": Parameters(total=12, active=10, experts=1, chosen=None),
        "captured": Captured(
            started=STARTED,
            import_seconds=0.0,
            load_seconds=2.0,
            capture=capture,
            exit_seconds=0.0,
            cpu=4.25,
        ),
        "sides": {
            "cached": taken(0.1, load=1.0),
            "live": taken(0.3, teacher=0.15, load=4.0),
            "sft": taken(0.05),
        },
    }
    return Measures(**{**made, **changes})


def value(report: dict[str, Any], *names: str) -> Any:
    """A figure of a report, by its path."""
    for name in names:
        report = report[name]
    return report["value"]


PRICED = {"price_per_hour": 3600.0, "price_per_gb_month": 1e9, "months": 2e-6}
"""Prices of a second and of half a megabyte that are 1."""
SHORT = Failure(kind="memory", text="CUDA out of memory. Tried 2 GiB\nmore", error="MemoryError")

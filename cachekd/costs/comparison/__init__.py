"""Cached against live distillation, measured on the user's own teacher, student and data.

Comes in: a `BenchmarkConfig`. Goes out: a report of plain JSON types, an HTML page and a PNG of
each plot if asked for. Everything is done on a random sample, in processes of their own, in a
temporary folder that is gone afterwards.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cachekd import errors
from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison import rounds
from cachekd.costs.comparison.checks import checked
from cachekd.costs.comparison.documents import draw
from cachekd.costs.comparison.jobs import SIDES, Failure, Job
from cachekd.costs.comparison.ledger import report_of
from cachekd.costs.comparison.measures import Measures
from cachekd.costs.comparison.page import write_outputs
from cachekd.costs.comparison.parameters import counted
from cachekd.costs.comparison.rounds import Tell

__all__ = ["benchmark"]


def benchmark(config: BenchmarkConfig, *, progress: Tell | None = None) -> dict[str, Any]:
    """Measure capture, cached, live and plain steps, and tell when a cache pays.

    Args:
        config: see `BenchmarkConfig`.
        progress: called with what is done ("capture": tokens; "steps": rounds), how many of it,
            and of how many.

    Returns:
        the report; each figure in it is a mapping of ``value``, ``kind`` (measured, extrapolated,
        never, gap) and ``how``. A side that cannot be run is a gap, and the rest stands.

    Raises:
        MismatchError: teacher and student have different tokenizers.
        CachekdError: whatever else is wrong with settings, data or models.
    """
    pair = checked(config)
    with tempfile.TemporaryDirectory(prefix="cachekd-benchmark-") as name:
        job = Job(side="capture", config=config, folder=Path(name))
        documents = draw(config, pair.facts, job.sample)
        code = config.trust_remote_code
        teacher = counted(pair.facts.folder, trust_remote_code=code)
        student = counted(pair.student, trust_remote_code=code)
        tell = progress or _untold
        tell("capture", 0, documents.drawn_tokens)
        captured, sides = _measured(job, tell)
        report = report_of(
            Measures(
                config=config,
                documents=documents,
                teacher=teacher,
                student=student,
                captured=captured,
                sides=sides,
            )
        )
    write_outputs(config, report)
    return report


def _measured(
    job: Job, tell: Tell
) -> tuple[rounds.Captured | Failure, dict[str, rounds.Taken | Failure]]:
    """The capture, and the steps of all sides on what was captured."""
    captured = rounds.capture(job, tell)
    if isinstance(captured, Failure):
        _raise_if_wrong(captured)
        return captured, {}
    jobs = [Job(side=side, config=job.config, folder=job.folder) for side in SIDES]
    sides = rounds.take_turns(jobs, tell)
    for found in sides.values():
        if isinstance(found, Failure):
            _raise_if_wrong(found)
    return captured, sides


def _raise_if_wrong(failure: Failure) -> None:
    """An error that cachekd knows is the user's to mend; anything else leaves a gap."""
    kind = getattr(errors, failure.error, None)
    if failure.kind != "error" or not isinstance(kind, type):
        return
    if issubclass(kind, errors.CachekdError):
        raise kind(failure.text)


def _untold(what: str, done: int, of: int) -> None:
    """Nobody listens."""

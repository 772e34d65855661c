"""Precompute: write responses if asked to, plan, run the missing units, seal. The first stage.

Comes in: a `PrecomputeConfig`. Goes out: a sealed cache, and a report of what was done.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from cachekd.capture.generate import write_missing
from cachekd.capture.job import Job
from cachekd.capture.meter import Meter, Progress, Show
from cachekd.capture.planning import default_threads
from cachekd.capture.prepare import complete_job, prepare_job
from cachekd.capture.reusing import with_reused
from cachekd.capture.scoring import Run, score_all, write_plan
from cachekd.capture.unit import describe
from cachekd.capture.worker import load_teacher
from cachekd.config import PrecomputeConfig
from cachekd.engines import Engine
from cachekd.engines._ranks import Share, share_of
from cachekd.plugins import find
from cachekd.signals import stop_on_signals
from cachekd.store.claims import unrepaired
from cachekd.store.io import Location
from cachekd.store.layout import FOLDERS
from cachekd.store.retries import counted, since
from cachekd.store.seal import seal
from cachekd.store.settings import using
from cachekd.teachers import Teacher
from cachekd.teachers._split import check_launched, follow, joined

__all__ = ["Progress", "precompute"]

_log = logging.getLogger(__name__)


def precompute(config: PrecomputeConfig, *, progress: Show | None = None) -> dict[str, Any]:
    """Run a teacher over data once and store its targets; continue what was begun.

    Args:
        config: see `PrecomputeConfig`.
        progress: called after each teacher batch.

    Returns:
        a report of plain JSON types: counts, bytes, seconds, ids, and the seal's root digest.

    Raises:
        Incomplete: stopped by a signal or by ``max_hours``; the same call continues.
        CachekdError: anything else that is wrong; what was committed before stays whole.
    """
    started, before = time.monotonic(), counted()
    with using(config):
        report = _in_its_share(config, started, progress)
        happened = since(before)
        return {**report, **({"network": happened} if happened else {})}


def _in_its_share(
    config: PrecomputeConfig, started: float, progress: Show | None
) -> dict[str, Any]:
    """What this process is to do of a run: all, a share, or to follow a teacher that is split."""
    engine: Engine = find("engines", config.engine)(config)
    if config.tp_plan is not None:
        check_launched(config)
        with joined() as rank:
            if rank:
                threads = config.threads or default_threads()
                return {"rank": rank, "batches_followed": follow(config, threads)}
            return _precompute(config, engine, Share(), started, progress)
    share = share_of(config, os.environ) if engine.divides else Share()
    return _precompute(config, engine, share, started, progress)


def _precompute(
    config: PrecomputeConfig,
    engine: Engine,
    share: Share,
    started: float,
    progress: Show | None,
) -> dict[str, Any]:
    job = prepare_job(config)
    report, location = describe(job), job.location
    if config.dry_run:
        return {**report, "dry_run": True}
    with unrepaired(location):
        location.sweep(FOLDERS)
        job, reused = with_reused(job)
        report = {**describe(job), **reused} if reused else report
        run = Run(engine=engine, share=share, started=started, progress=progress)
        report |= _capture(job, run)
        del job  # a seal needs nothing of it, and memory of its own
        return {**report, **_sealed(location, config, run, report)}


def _capture(job: Job, run: Run) -> dict[str, Any]:
    """Write and score what is to do; what a report says of it."""
    told: dict[str, Any] = {}
    teacher = None
    if job.writing is not None and len(job.writing.missing()):
        job, teacher, written = _write_all(job, run)
        told = {**describe(job), **written}
    if job.todo:
        told |= score_all(job, teacher, run)
    elif job.files or job.restored:
        write_plan(job)
    return told


def _sealed(
    location: Location, config: PrecomputeConfig, run: Run, report: dict[str, Any]
) -> dict[str, Any]:
    """Seal what is committed, unless others are still at work; what a report says of it."""
    told: dict[str, Any] = {}
    left = report.get("units_left_to_others")
    sealed = config.seal and not left
    if sealed:
        newest = seal(location, leave_out=True)
        told = {"root": newest.root, "generation": newest.generation, **newest.totals}
    elif config.seal:
        _log.warning(
            "the share of rank %d is done; %d units are those of other ranks, the last of which "
            "seals the cache",
            *(run.share.rank, left),
        )
    return {**told, "sealed": sealed, "seconds": time.monotonic() - run.started}


def _write_all(job: Job, run: Run) -> tuple[Job, Teacher, dict[str, Any]]:
    """The job with all its responses, its teacher, and what a report says of it."""
    assert job.writing is not None, "there are responses to write"
    teacher, missing = load_teacher(job), job.writing.missing()
    total = int(job.writing.budgets(missing).sum())
    with stop_on_signals() as flag:
        meter = Meter(total, flag, run.started, job.config.max_hours, run.progress, "responses")
        write_missing(job, teacher, meter, run.share)
        told = {"generate_seconds": meter.seconds(), "tokens_generated": meter.total}
    return complete_job(job), teacher, {"responses_generated": len(missing), **told}

"""Precompute: write responses if asked to, plan, run the missing units, seal. The first stage.

Comes in: a `PrecomputeConfig`. Goes out: a sealed cache, and a report of what was done.
"""

from __future__ import annotations

import time
from typing import Any

from cachekd.capture.attention import AttendingTeacher
from cachekd.capture.generate import write_missing
from cachekd.capture.identify import check_same
from cachekd.capture.job import Job
from cachekd.capture.meter import Meter, Progress, Show
from cachekd.capture.prepare import complete_job, prepare_job
from cachekd.capture.reusing import with_reused
from cachekd.capture.together import Division, agree
from cachekd.capture.trial import try_teacher
from cachekd.capture.unit import describe, score_unit
from cachekd.config import PrecomputeConfig
from cachekd.engines.local import run_units
from cachekd.engines.writers import OwnProcess, WriterPool, Writers
from cachekd.errors import Incomplete
from cachekd.plugins import find
from cachekd.signals import StopFlag, stop_on_signals
from cachekd.store.claims import Claims, unrepaired
from cachekd.store.identity_files import has_cache, read_identity, write_identity
from cachekd.store.layout import FOLDERS, plan_name, samples_name
from cachekd.store.priors import write_prior
from cachekd.store.retries import counted, since
from cachekd.store.seal import seal
from cachekd.store.settings import using
from cachekd.store.state import read_state
from cachekd.teachers import Teacher, TeacherBackend

__all__ = ["Progress", "precompute"]

# Fewer tokens are encoded sooner than a process starts.
_WORTH_A_PROCESS = 1 << 17


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
        job = prepare_job(config)
        report = describe(job)
        if config.dry_run:
            return {**report, "dry_run": True}
        with unrepaired(job.location):
            job.location.sweep(FOLDERS)
            job, reused = with_reused(job)
            report = {**describe(job), **reused} if reused else report
            report |= _capture(job, started, progress)
        happened = since(before)
        return {**report, **({"network": happened} if happened else {})}


def _capture(job: Job, started: float, progress: Show | None) -> dict[str, Any]:
    """Write and score what is to do, and seal; what a report says of it."""
    told: dict[str, Any] = {}
    teacher = None
    if job.writing is not None and len(job.writing.missing()):
        job, teacher, written = _write_all(job, started, progress)
        told = {**describe(job), **written}
    if job.todo:
        told |= _score_all(job, teacher, started, progress)
    elif job.files or job.restored:
        _write_plan(job)
    if job.config.seal:
        sealed = seal(job.location, leave_out=True)
        told |= {"root": sealed.root, "generation": sealed.generation, **sealed.totals}
    return {**told, "sealed": job.config.seal, "seconds": time.monotonic() - started}


def _write_plan(job: Job) -> None:
    """Make the job known in the cache: identity, samples, prior, then the plan that names them."""
    write_identity(job.location, job.identity)
    check_same(read_identity(job.location), job.identity, job.location)  # another may be first
    for digest, data in job.files.items():
        job.location.keep(samples_name(digest), data, digest)
    if job.prior is not None:
        write_prior(job.location, job.prior)
    job.location.keep(plan_name(job.plan_digest), job.plan_data, job.plan_digest)


def _load(job: Job) -> Teacher:
    plugin: TeacherBackend = find("teachers", job.config.backend)
    return plugin.load(job.config, job.facts, job.plan.threads)


def _write_all(
    job: Job, started: float, progress: Show | None
) -> tuple[Job, Teacher, dict[str, Any]]:
    """The job with all its responses, its teacher, and what a report says of it."""
    assert job.writing is not None, "there are responses to write"
    teacher, missing = _load(job), job.writing.missing()
    total = int(job.writing.budgets(missing).sum())
    with stop_on_signals() as flag:
        meter = Meter(total, flag, started, job.config.max_hours, progress, "responses")
        write_missing(job, teacher, meter)
        told = {"generate_seconds": meter.seconds(), "tokens_generated": meter.total}
    return complete_job(job), teacher, {"responses_generated": len(missing), **told}


def _score_all(
    job: Job, loaded: Teacher | None, started: float, progress: Show | None
) -> dict[str, Any]:
    with Claims(job.location, job.plan.run) as claims, _writers(job) as writers:
        # Writers start while the teacher is loaded.
        teacher = loaded or _load(job)
        if job.attention is not None:
            teacher = AttendingTeacher(teacher, job.attention, job.attention_wanted)
        with stop_on_signals() as flag:
            total = sum(map(job.unit_tokens, job.todo))
            meter = Meter(total, flag, started, job.config.max_hours, progress)

            def make(job: Job) -> Job:
                job = try_teacher(job, teacher, stop_asked=meter.over, scored=meter.scored)
                _write_plan(job)
                return job

            try:
                job = agree(job, claims, meter, make)
            except Incomplete:
                raise _incomplete(job, flag) from None
            writers.open(job.sink, job.prior)
            return _run(job, teacher, writers, meter, Division(job, claims, meter))


def _writers(job: Job) -> Writers:
    """Processes where there is something to do meanwhile, and where they see the same files."""
    worth = len(job.todo) > 1 and sum(map(job.unit_tokens, job.todo)) >= _WORTH_A_PROCESS
    if not (job.config.writers and worth) or job.location.private:
        return OwnProcess(job.location)
    return WriterPool(min(job.config.writers, len(job.todo)))


def _run(
    job: Job, teacher: Teacher, writers: Writers, meter: Meter, division: Division
) -> dict[str, Any]:
    def scored(tokens: int) -> None:
        writers.check()
        meter.scored(tokens)

    def do(number: int) -> None:
        writers.submit(score_unit(job, teacher, number, stop_asked=meter.over, scored=scored))

    try:
        left = run_units(
            [(number, job.unit_tokens(number)) for number in job.todo],
            do,
            claim=division.claim,
            stop_asked=meter.over,
            seconds_left=lambda: meter.left() - writers.backlog_seconds(),
        )
    except Incomplete:
        left = len(job.todo)
    writers.finish()
    if left:
        raise _incomplete(job, meter.flag)
    seconds = meter.seconds()
    return {"score_seconds": seconds, "tokens_per_second": meter.total / max(seconds, 1e-9)}


def _incomplete(job: Job, flag: StopFlag) -> Incomplete:
    committed = 0
    if has_cache(job.location):
        state = read_state(job.location, skip_broken_units=True)
        committed = sum(plan == job.plan_digest for plan, _ in state.units)
    why = "by a signal" if flag.asked else f"before --max-hours {job.config.max_hours}"
    return Incomplete(
        f"stopped {why}: {committed} of {len(job.plan.units)} units are committed "
        f"in {job.location.url}. Run the same command again to continue"
    )

"""The units of a run: given to the workers of an engine, until all are committed.

Comes in: a frozen job. Goes out: its units in the cache, and what a report says of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from cachekd.capture import remote, trial
from cachekd.capture.identify import check_same
from cachekd.capture.job import Job
from cachekd.capture.meter import Meter, Show
from cachekd.capture.together import Division, agree, others_left, write_first
from cachekd.capture.worker import UnitWorker, worker_here
from cachekd.codecs._priors import Prior
from cachekd.engines import Crew, Engine, Orders, Outcome
from cachekd.engines._ranks import Share, tell
from cachekd.errors import Incomplete
from cachekd.signals import StopFlag, stop_on_signals
from cachekd.store.claims import Claims
from cachekd.store.identity_files import has_cache, read_identity, write_identity
from cachekd.store.layout import plan_name, samples_name
from cachekd.store.priors import write_prior
from cachekd.store.state import read_state
from cachekd.teachers import Teacher

_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What scores the units of a job.

    Attributes:
        engine: where.
        share: of this process.
        started: when the whole run began, on the monotonic clock.
        progress: told of each step, or None.
    """

    engine: Engine
    share: Share
    started: float
    progress: Show | None


def score_all(job: Job, loaded: Teacher | None, run: Run) -> dict[str, Any]:
    """Score what is to do; what a report says of it.

    Args:
        job: what is to be run.
        loaded: its teacher, if it is loaded already.
        run: by whom.

    Raises:
        Incomplete: stopped, or some units failed; the rest is committed.
        CachekdError: anything else that is wrong.
    """
    with Claims(job.location, job.plan.run) as claims:
        own = _own(job, claims, run)
        if not own:
            return _left_to_others(job)
        flag = StopFlag()
        total = sum(map(job.unit_tokens, own))
        meter = Meter(total, flag, run.started, job.config.max_hours, run.progress)
        kit = _Kit(job, loaded, meter)
        # The engine comes first: what it starts may set handlers of signals.
        with run.engine.crew(kit) as crew, stop_on_signals(flag, patience=run.engine.patience):
            meter.begin()
            return _score(job, own, crew, claims, meter)


def write_plan(job: Job, *, locks: bool = True) -> None:
    """Make the job known in the cache: identity, samples, prior, then the plan that names them.

    Args:
        job: whose plan it is.
        locks: whether these tell that no other process makes a plan of this run now; else the
            plan of another may be written instead.
    """
    write_identity(job.location, job.identity)
    check_same(read_identity(job.location), job.identity, job.location)  # another may be first
    for digest, data in job.files.items():
        job.location.keep(samples_name(digest), data, digest)
    if job.prior is not None:
        write_prior(job.location, job.prior)
    if locks:
        job.location.keep(plan_name(job.plan_digest), job.plan_data, job.plan_digest)
    else:
        write_first(job)


def _own(job: Job, claims: Claims, run: Run) -> list[int]:
    """Units that this process is to try, in order: all that are missing where locks divide them."""
    share, alone = run.share, run.share.world_size == 1
    order = share.order(job.todo)
    own = [number for number in order if share.owns(number)]
    known, takes_over = claims.known(), job.config.take_over
    tell(share, len(own), len(order), locks=known, takes_over=takes_over)
    return order if alone or known or takes_over else own


def _score(
    job: Job, own: Sequence[int], crew: Crew, claims: Claims, meter: Meter
) -> dict[str, Any]:
    def make(job: Job) -> Job:
        job = crew.try_teacher(job)
        write_plan(job, locks=claims.known())
        return job

    try:
        job = agree(job, claims, meter, make)
    except Incomplete:
        raise _incomplete(job, meter.flag, Outcome(left=len(job.todo))) from None
    todo = frozenset(job.todo)
    outcome = crew.run(
        job,
        Orders(
            units=[(number, job.unit_tokens(number)) for number in own if number in todo],
            claim=Division(job, claims, meter).claim,
            stop_asked=meter.over,
            seconds_left=meter.left,
            scored=meter.scored,
        ),
    )
    if outcome.left or outcome.failed:
        raise _incomplete(job, meter.flag, outcome)
    seconds = meter.seconds()
    rate = meter.total / max(seconds, 1e-9)
    told = {"score_seconds": seconds, "tokens_per_second": rate}
    return told | (_left_to_others(job) if len(own) < len(job.todo) else {})


def _left_to_others(job: Job) -> dict[str, Any]:
    left = others_left(job)
    return {"units_left_to_others": left} if left else {}


def _incomplete(job: Job, flag: StopFlag, outcome: Outcome) -> Incomplete:
    """Why units are left, and which ones failed, whatever else ended the run."""
    failed, reasons = outcome.failed, []
    if outcome.left:
        asked = "by a signal" if flag.asked else f"before --max-hours {job.config.max_hours}"
        reasons.append(f"stopped {f'as {outcome.ended}' if outcome.ended else asked}")
    if failed:
        units = "1 unit failed each time it was" if len(failed) == 1 else ""
        reasons.append(f"{units or f'{len(failed)} units failed each time they were'} tried")
    named = [f"unit {number}: {why}" for number, why in sorted(failed.items())]
    more = [f"... and {len(named) - _NAMED} more"] if len(named) > _NAMED else []
    first = f"{'; '.join(reasons)}: {_committed(job)}. Run the same command again to continue"
    return Incomplete("\n".join([first + (":" if named else ""), *named[:_NAMED], *more]))


def _committed(job: Job) -> str:
    committed = 0
    if has_cache(job.location):
        state = read_state(job.location, skip_broken_units=True)
        committed = sum(plan == job.plan_digest for plan, _ in state.units)
    return f"{committed} of {len(job.plan.units)} units are committed in {job.location.url}"


class _Kit:
    """See `cachekd.engines.Kit`."""

    def __init__(self, job: Job, loaded: Teacher | None, meter: Meter) -> None:
        self._job, self._loaded, self._meter = job, loaded, meter

    def here(self) -> AbstractContextManager[UnitWorker]:
        meter = self._meter
        return worker_here(self._job, self._loaded, meter.over, meter.scored)

    def maker(self) -> Callable[[], remote.SentWorker]:
        return remote.SentWorker

    def stop_asked(self) -> bool:
        return self._meter.over()

    def units(self) -> int:
        return len(self._job.todo)

    def threads(self) -> int:
        return self._job.plan.threads

    def opening(self, job: Job) -> remote.Opening:
        return remote.opening_of(job)

    def samples(self, job: Job, numbers: Sequence[int]) -> remote.Samples:
        return remote.samples_of(job, numbers)

    def first_units(self, job: Job) -> Sequence[int]:
        return trial.first_units(job)

    def learned(self, job: Job, answer: Prior | None) -> Job:
        return trial.learned(job, answer)

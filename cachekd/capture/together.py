"""Several processes that run the same command: one plan for all, each unit done by one of them.

Comes in: a frozen job and the claims of its run. Goes out: the job under the plan that counts, and
whose each unit is. Whatever goes wrong here costs work that is done twice, never a record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from cachekd.capture.job import Job
from cachekd.capture.meter import Meter
from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Places
from cachekd.engines._claims import POLL_SECONDS, Claim
from cachekd.errors import CorruptCache, Incomplete
from cachekd.store.claims import Claims
from cachekd.store.identity_files import has_cache
from cachekd.store.layout import most_bytes, plan_name, proposal_name
from cachekd.store.names import altered
from cachekd.store.plan import load_plan
from cachekd.store.priors import Priors
from cachekd.store.state import is_committed, read_state

_PLAN = 0  # what stands for the plan; unit n is n + 1
_log = logging.getLogger(__name__)


def agree(job: Job, claims: Claims, meter: Meter, make: Callable[[Job], Job]) -> Job:
    """The job under the plan that counts: one that is there, or that one process makes.

    Args:
        job: what is to be run.
        claims: of its run.
        meter: tells when to stop.
        make: tries the teacher, writes the plan of a job and gives it back.

    Raises:
        Incomplete: a stop was asked for while another process made the plan.
    """
    if job.known:
        return make(job)
    while not claims.take(_PLAN):
        if meter.over():
            raise Incomplete("stopped while another process made the plan")
        time.sleep(POLL_SECONDS)
    try:
        job = settle(job)  # the other may have made it
        return settle(make(job))
    finally:
        claims.release(_PLAN)


def settle(job: Job) -> Job:
    """The job under the first plan of its run that the cache holds, if any.

    Plans of one run differ where their teachers' numbers do, by the prior learned from these. Of
    several the first counts, as for a run that is continued; so that no unit is done twice.
    """
    if job.known or not has_cache(job.location):
        return job
    state = read_state(job.location, skip_broken_units=True)
    found = next((item for item in state.plans.items() if item[1].run == job.plan.run), None)
    if found is None:
        return job
    digest, plan = found
    if digest == job.plan_digest:
        return replace(job, known=True)
    done = Places(state.done_keys())
    todo = [n for n in state.missing_units(digest) if (done.find(plan.packed_keys(n)) < 0).any()]
    return replace(
        job,
        plan=plan,
        plan_digest=digest,
        todo=todo,
        known=True,
        prior=Priors(job.location).get(plan.prior) if plan.prior and job.prior else None,
        prior_digest=plan.prior if job.prior else None,
        scored=job.scored if plan.units == job.plan.units else {},
    )


def write_first(job: Job) -> None:
    """Write the plan of a job, or that of another process which was first: a run has one alone.

    Without locks several processes may learn priors at once, or have other numbers of threads.
    Who makes the file that proposes a plan is first: the others, and whoever continues after its
    death, write what stands there. The proposal goes when there is a plan, and none of later ones
    counts, for whoever makes one looks for a plan then.

    Raises:
        CorruptCache: the proposal was altered.
    """
    location, name = job.location, proposal_name(job.plan.run)
    data = job.plan_data
    if not job.known and not location.create(name, data):
        data = _proposed(job, name) or data
    if job.known or not settle(job).known:  # a plan that is known may be lost, and written again
        digest = bytes_digest(data)
        location.keep(plan_name(digest), data, digest)
    location.remove(name)


def _proposed(job: Job, name: str) -> bytes | None:
    """The plan that another process proposes; None where it is taken away, and there is a plan."""
    try:
        data = job.location.read(name, most_bytes("plan"))
    except CorruptCache:
        if job.location.exists(name):
            raise
        return None
    try:
        same = load_plan(plan_name(bytes_digest(data)), data).run == job.plan.run
    except CorruptCache:
        same = False
    if not same:
        raise altered(job.location.path(name), "it proposes no plan of this run")
    return data


def others_left(job: Job) -> int:
    """Units of which somebody's share has keys that are not committed."""
    if not has_cache(job.location):
        return len(job.todo)
    done = Places(read_state(job.location, skip_broken_units=True).done_keys())
    return sum(bool((done.find(job.plan.packed_keys(n)) < 0).any()) for n in job.todo)


class Division:
    """Whose each unit of a job is.

    Args:
        job: under the plan that counts.
        claims: of its run.
        meter: told of what others do.
    """

    def __init__(self, job: Job, claims: Claims, meter: Meter) -> None:
        self._job, self._claims, self._meter = job, claims, meter
        self._waits = False

    def claim(self, number: int) -> Claim:
        """See `Claim`; what is ours stays ours until the claims are closed."""
        ours = self._claims.take(number + 1)
        if is_committed(self._job.location, self._job.plan_digest, number):
            self._meter.spare(self._job.unit_tokens(number))
            return Claim.DONE
        if not ours and not self._waits:
            self._waits = True
            _log.warning("another process works on this run; its units are left to it")
        return Claim.OURS if ours else Claim.BUSY

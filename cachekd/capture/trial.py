"""The trial before a run writes anything: does the teacher give targets, and what are they like?

A teacher that gives NaN or does not fit its tokenizer must not leave a cache behind. A new run
scores its first batches here and learns from them the prior that its shards are packed with; they
are kept and not scored again.
"""

from __future__ import annotations

from dataclasses import replace

from cachekd.capture.job import Job
from cachekd.capture.unit import score_batch
from cachekd.codecs._learn import rows_to_learn
from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Places
from cachekd.plugins import find
from cachekd.store.priors import Priors, best_prior
from cachekd.store.state import read_state
from cachekd.teachers import Teacher
from cachekd.types import TopKLogits

_MAX_BYTES = 1 << 20
_MAX_ROWS = 16_384
_TOKENS_PER_BYTE = 2


def try_teacher(job: Job, teacher: Teacher) -> Job:
    """Score the first batches of a run.

    Returns:
        the job, with the prior of its plan, or one learned of these batches, and the scores.

    Raises:
        TeacherError: the teacher gave what cannot be stored.
        CorruptCache: the prior of a run that is continued is missing or altered.
    """
    batches = [batch for number in job.todo for batch in job.plan.units[number]]
    if job.known or not find("codecs", job.config.codec).uses_prior:
        scored = {batches[0]: score_batch(job, teacher, batches[0])}
        prior = Priors(job.location).get(job.plan.prior) if job.plan.prior else None
        return replace(job, prior=prior, scored=scored)
    budget, wanted = prior_budget(sum(map(job.unit_tokens, job.todo)))
    scored, records = {}, list[TopKLogits]()
    for batch in batches:
        scored[batch] = score_batch(job, teacher, batch)
        records += scored[batch][0]
        if sum(record.rows for record in records) >= wanted:
            break
    prior = best_prior(records, job.header, sum(map(job.unit_tokens, job.todo)), budget)
    packed = job.packed_with(bytes_digest(prior.dump()))
    return replace(packed, prior=prior, scored=scored)


def settle(job: Job) -> Job:
    """The job under the plan that counts, where another process began the same run meanwhile.

    Their plans differ where their teachers' numbers do, by the prior learned from these. Of several
    plans of one run the first counts, as for a run that is continued; so that none is done twice.
    """
    if job.known:
        return job
    state = read_state(job.location, skip_broken_units=True)
    digest, plan = next(item for item in state.plans.items() if item[1].run == job.plan.run)
    if digest == job.plan_digest:
        return job
    done = Places(state.done_keys())
    todo = [n for n in state.missing_units(digest) if (done.find(plan.packed_keys(n)) < 0).any()]
    prior = Priors(job.location).get(plan.prior) if plan.prior else None
    again = replace(job, plan=plan, plan_digest=digest, plan_data=plan.dump()[1])
    return replace(
        again, todo=todo, prior=prior, scored={} if plan.units != job.plan.units else job.scored
    )


def prior_budget(tokens: int) -> tuple[int, int]:
    """For a run of so many tokens: bytes that a prior may take, and rows to learn it from."""
    budget = min(_MAX_BYTES, tokens // _TOKENS_PER_BYTE)
    return budget, min(_MAX_ROWS, rows_to_learn(budget))

"""The trial before a run writes anything: does the teacher give targets, and what are they like?

A teacher that gives NaN or does not fit its tokenizer must not leave a cache behind. A new run
scores its first batches here and learns from them the prior that its shards are packed with; they
are kept and not scored again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cachekd.capture.job import Job
from cachekd.capture.unit import score_batch
from cachekd.codecs._learn import rows_to_learn
from cachekd.data.packed import Places
from cachekd.errors import Incomplete, TeacherError
from cachekd.plugins import find
from cachekd.store.layout import prior_name
from cachekd.store.plan import PlannedBatch
from cachekd.store.priors import Priors, best_prior
from cachekd.store.state import read_state
from cachekd.teachers import Teacher
from cachekd.types import TopKLogits

_MAX_BYTES = 1 << 20
_MAX_ROWS = 16_384
_TOKENS_PER_BYTE = 2
_MOST_ROWS = 4  # rows scored for one that is captured, at most


def try_teacher(
    job: Job, teacher: Teacher, *, stop_asked: Callable[[], bool], scored: Callable[[int], None]
) -> Job:
    """Score the first batches of a run.

    Args:
        job: what is to be run.
        teacher: loaded teacher.
        stop_asked: looked at between batches.
        scored: told the tokens of each batch that is done.

    Returns:
        the job, with the prior of its plan, or one learned of these batches, and the scores.

    Raises:
        Incomplete: a stop was asked for; nothing was written.
        TeacherError: the teacher gave what cannot be stored.
        CorruptCache: the prior of a run that is continued was altered.
    """
    batches = [batch for number in job.todo for batch in job.plan.units[number]]
    tokens = sum(map(job.unit_tokens, job.todo))
    learns = find("codecs", job.config.codec).uses_prior
    named = job.plan.prior if learns else None
    lost = named is not None and not job.location.exists(prior_name(named))
    learns = learns and (lost or not job.known)
    budget, wanted = prior_budget(tokens) if learns else (0, 0)
    kept: dict[PlannedBatch, tuple[list[TopKLogits], int]] = {}
    rows = captured = 0
    for batch in batches:
        if stop_asked():
            raise Incomplete("stopped in the first batches")
        kept[batch] = score_batch(job, teacher, batch)
        records = kept[batch][0]
        scored(sum(record.rows + 1 for record in records))
        rows += sum(record.rows for record in records)
        captured += sum(int(np.count_nonzero(np.diff(record.offsets))) for record in records)
        if captured and (captured >= wanted or rows >= _MOST_ROWS * wanted):
            break
    if batches and not captured and not job.known:
        raise _nothing(rows)
    job = replace(job, scored=kept)
    if learns:
        everything = [record for records, _ in kept.values() for record in records]
        return job.packed_with(best_prior(everything, job.header, tokens, budget))
    prior = Priors(job.location).get(named) if named else None
    return replace(job, prior=prior, prior_digest=named)


def _nothing(rows: int) -> TeacherError:
    return TeacherError(
        f"the teacher gives no distribution of any of the {rows} rows that it was asked for; "
        "nothing was stored. Check the teacher's weights and dtype"
    )


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
    prior = Priors(job.location).get(plan.prior) if plan.prior and job.prior else None
    again = replace(job, plan=plan, plan_digest=digest, plan_data=plan.dump()[1], todo=todo)
    scored = job.scored if plan.units == job.plan.units else {}
    named = plan.prior if prior else None
    return replace(again, prior=prior, prior_digest=named, scored=scored)


def prior_budget(tokens: int) -> tuple[int, int]:
    """For a run of so many tokens: bytes that a prior may take, and rows to learn it from."""
    budget = min(_MAX_BYTES, tokens // _TOKENS_PER_BYTE)
    return budget, min(_MAX_ROWS, rows_to_learn(budget))

"""The trial before a run writes anything: does the teacher give targets, and what are they like?

A teacher that gives NaN or does not fit its tokenizer must not leave a cache behind. A new run
scores its first batches here and learns from them the prior that its shards are packed with; they
are kept and not scored again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from cachekd.capture.healing import whole_prior
from cachekd.capture.job import Job
from cachekd.capture.unit import score_batch
from cachekd.codecs._learn import rows_to_learn
from cachekd.codecs._priors import Prior
from cachekd.errors import Incomplete, TeacherError
from cachekd.plugins import find
from cachekd.store.layout import prior_name
from cachekd.store.plan import PlannedBatch
from cachekd.store.priors import Priors, best_prior
from cachekd.teachers import Teacher
from cachekd.types import TopKLogits

_MAX_BYTES = 1 << 20
_MAX_ROWS = 16_384
_TOKENS_PER_BYTE = 2
_MOST_ROWS = 4  # rows scored for one that is captured, at most
_log = logging.getLogger(__name__)


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
        the job with the prior of its plan, or one learned of these batches.

    Raises:
        Incomplete: a stop was asked for; nothing was written.
        TeacherError: the teacher gave what cannot be stored.
        StoreError: the prior of a run that is continued cannot be read.
    """
    units = _tried_units(job)
    prior = None
    if units:
        job, prior = learn(job, teacher, units, stop_asked=stop_asked, scored=scored)
    return learned(job, prior)


def learned(job: Job, prior: Prior | None) -> Job:
    """The job with what `learn` learned of its `first_units`, if there are any."""
    if not _tried_units(job):
        return _continued(job)
    return job if prior is None else _with_learned(job, prior)


def first_units(job: Job) -> Sequence[int]:
    """Units of which `learn` looks at batches; none where the run was begun, and nothing is lost.

    Of many units the first few: until it has rows enough, whatever it finds in them.
    """
    rows, (_, _, wanted) = 0, _budget(job)
    found = []
    for number in _tried_units(job):
        found.append(number)
        rows += job.unit_tokens(number) - len(job.plan.packed_keys(number))
        if rows >= _MOST_ROWS * wanted:
            break
    return found


def _continued(job: Job) -> Job:
    """A run that was begun: its teacher gave targets; a unit that it cannot score says so."""
    _take_away(job, job.damaged_priors)
    named = job.plan.prior if _learns(job) else None
    prior = Priors(job.location).get(named) if named else None
    return replace(job, prior=prior, prior_digest=named)


def learn(
    job: Job,
    teacher: Teacher,
    units: Sequence[int],
    *,
    stop_asked: Callable[[], bool],
    scored: Callable[[int], None],
) -> tuple[Job, Prior | None]:
    """The job with the first batches of units scored, and what is learned of them.

    Errors are those of `try_teacher`.
    """
    tokens, budget, wanted = _budget(job)
    job = replace(job, scored=_first_batches(job, teacher, units, wanted, stop_asked, scored))
    if not _learns(job):
        return job, None
    everything = [record for records, _ in job.scored.values() for record in records]
    return job, best_prior(everything, job.header, tokens, budget)


def _budget(job: Job) -> tuple[int, int, int]:
    """Tokens that are to be scored, and what `prior_budget` says of them."""
    tokens = sum(map(job.unit_tokens, _tried_units(job)))
    return tokens, *(prior_budget(tokens) if _learns(job) else (0, 0))


def _with_learned(job: Job, prior: Prior) -> Job:
    """The job packed with a prior that was learned; the one that is lost is given up."""
    named = job.plan.prior
    job = job.packed_with(prior)
    if named is not None and job.prior_digest != named:
        _log.warning(
            "the prior %s is lost, and this teacher's numbers give another one: all units that "
            "need it are scored again",
            named,
        )
    _take_away(job, {*job.damaged_priors, *filter(None, [named])})
    return job


def _learns(job: Job) -> bool:
    return bool(find("codecs", job.config.codec).uses_prior)


def _tried_units(job: Job) -> Sequence[int]:
    """Units whose first batches are scored; none where the run was begun, and nothing is lost.

    A prior that is lost was learned from the first of all units, whichever are done.
    """
    named = job.plan.prior if _learns(job) else None
    lost = named is not None and not whole_prior(job.location, named)
    if job.known and not lost:
        return ()
    return range(len(job.plan.units)) if lost else job.todo


def _first_batches(
    job: Job,
    teacher: Teacher,
    units: Sequence[int],
    wanted: int,
    stop_asked: Callable[[], bool],
    scored: Callable[[int], None],
) -> dict[PlannedBatch, tuple[list[TopKLogits], int]]:
    """Targets of the first batches of these units, until so many rows are captured."""
    kept: dict[PlannedBatch, tuple[list[TopKLogits], int]] = {}
    rows = captured = 0
    for batch in (batch for number in units for batch in job.plan.units[number]):
        if stop_asked():
            raise Incomplete("stopped in the first batches")
        kept[batch] = score_batch(job, teacher, batch)
        records = kept[batch][0]
        scored(sum(record.rows + 1 for record in records))
        rows += sum(record.rows for record in records)
        captured += sum(int(np.count_nonzero(np.diff(record.offsets))) for record in records)
        if captured and (captured >= wanted or rows >= _MOST_ROWS * wanted):
            break
    if kept and not captured and not job.known:
        raise TeacherError(
            f"the teacher gives no distribution of any of the {rows} rows that it was asked for; "
            "nothing was stored. Check the teacher's weights and dtype"
        )
    return kept


def _take_away(job: Job, priors: Iterable[str]) -> None:
    """Take damaged priors away: a unit of which a file is missing is made anew.

    One that was learned again as it was is written over the damaged one instead.
    """
    for digest in priors:
        if digest != job.prior_digest and not whole_prior(job.location, digest):
            job.location.remove(prior_name(digest))


def prior_budget(tokens: int) -> tuple[int, int]:
    """For a run of so many tokens: bytes that a prior may take, and rows to learn it from."""
    budget = min(_MAX_BYTES, tokens // _TOKENS_PER_BYTE)
    return budget, min(_MAX_ROWS, rows_to_learn(budget))

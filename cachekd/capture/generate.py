"""The teacher writes: batches of prompts of like length, committed a minute's worth at a time.

Comes in: a job whose responses are still to be written, and its teacher. Goes out: responses in
the cache. What was committed is not written again, however the run ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from cachekd.capture.identify import check_same
from cachekd.capture.job import Job
from cachekd.capture.meter import Meter
from cachekd.capture.writing import Writing
from cachekd.data.digests import bytes_digest, json_id
from cachekd.engines._ranks import Share
from cachekd.errors import Incomplete, TeacherError
from cachekd.store.claims import Claims
from cachekd.store.generated import Response, generated_files, write_responses
from cachekd.store.identity_files import read_identity, write_identity
from cachekd.store.plan import cut
from cachekd.teachers import PromptDraw, Teacher, WritingTeacher
from cachekd.teachers._memory import MOST_FAILURES, in_pieces, one_memory_error
from cachekd.types import Int32, Int64, Sample

COMMIT_SECONDS = 60.0
_POLL_SECONDS = 2.0


@dataclass(slots=True)
class _Waiting:
    """Responses that are written and not committed."""

    responses: list[Response] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


def write_missing(job: Job, teacher: Teacher, meter: Meter, share: Share) -> None:
    """Write what is missing, windows of this process's share first.

    Raises:
        Incomplete: a stop was asked for; what was written is committed.
        TeacherError: the teacher cannot write, has no memory for one prompt, or gave no numbers.
    """
    writing = job.writing
    assert writing is not None, "there are responses to write"
    if not isinstance(teacher, WritingTeacher):
        raise TeacherError(
            f"the backend {job.config.backend} loads a teacher that writes no text; use --backend "
            "hf, or leave --generate out"
        )
    draws = bytes_digest(writing.draws.data)
    with Claims(job.location, json_id({"recipe": writing.recipe_id, "draws": draws})) as claims:
        while len(missing := writing.missing()):
            busy = _write_ours(job, writing, missing, teacher, meter, claims, share)
            if not busy:
                return
            time.sleep(_POLL_SECONDS)
            if meter.over():
                raise _incomplete(job, meter, busy)
            writing = writing.reloaded(job.location)


def _write_ours(
    job: Job,
    writing: Writing,
    missing: Int64,
    teacher: WritingTeacher,
    meter: Meter,
    claims: Claims,
    share: Share,
) -> int:
    """Write window after window, as no other process has them; tells how many are left to others.

    Raises:
        Incomplete: a stop was asked for; what was written is committed.
    """
    waiting, done, busy, slowest = _Waiting(), 0, 0, 0.0
    windows = missing // job.config.sort_window
    known = set(generated_files(job.location))
    try:
        for window in share.order(map(int, np.unique(windows))):
            own = missing[windows == window]
            if not claims.take(window) or generated_files(job.location).keys() - known:
                busy += len(own)  # another has it, or others wrote: it is looked at again
                continue
            for part in _batches(writing, own, job):
                begun = time.monotonic()
                if meter.over() or slowest > meter.left():
                    raise _incomplete(job, meter, len(missing) - done)
                waiting.responses += _write(writing, part, teacher, meter)
                done += len(part)
                slowest = max(slowest, time.monotonic() - begun)
                if time.monotonic() - waiting.since >= COMMIT_SECONDS:
                    waiting = _commit(job, writing, waiting, known)
    finally:
        _commit(job, writing, waiting, known)
    return busy


def _incomplete(job: Job, meter: Meter, left: int) -> Incomplete:
    assert job.writing is not None, "there are responses to write"
    why = "by a signal" if meter.flag.asked else f"before --max-hours {job.config.max_hours}"
    every = len(np.unique(job.writing.draws.array))
    return Incomplete(
        f"stopped {why}: {every - left} of {every} responses are written in {job.location.url}. "
        "Run the same command again to continue"
    )


def _batches(writing: Writing, missing: Int64, job: Job) -> Iterator[Int64]:
    """Places of responses that are written together: within the budget, of one number of tokens.

    A row that may have fewer tokens than its neighbours would be led beyond the teacher's context.
    """
    budgets = writing.budgets(missing)
    lengths = writing.prompts.samples.lengths()[missing // writing.copies] + budgets
    order, units = cut(
        lengths,
        batch_tokens=job.config.batch_tokens,
        sort_window=job.config.sort_window,
        unit_tokens=job.config.unit_tokens,
        bytes_per_token=1,
    )
    for batch in (batch for unit in units for batch in unit):
        own = order[batch.first : batch.first + batch.rows]
        for _, same in groupby(own, key=lambda i: int(budgets[i])):
            yield missing[list(same)]


def _write(
    writing: Writing, places: Int64, teacher: WritingTeacher, meter: Meter
) -> list[Response]:
    """Responses of a batch, with what they are found by."""
    budget = int(writing.budgets(places[:1])[0])
    rows, numbers = places // writing.copies, places % writing.copies
    prompts = [writing.prompts.samples[int(p)] for p in rows]
    draws = [
        PromptDraw(input_ids=prompt.input_ids, number=int(number))
        for prompt, number in zip(prompts, numbers, strict=True)
    ]
    spec = replace(writing.spec, max_new_tokens=budget)

    def write(part: slice) -> list[Int32]:
        try:
            with one_memory_error():
                return teacher.write(draws[part], spec)
        except TeacherError as error:
            raise TeacherError(
                f"{_named(prompts[part])}: the response was not written: {error}. Check the "
                "teacher's weights and dtype"
            ) from error

    def given_up(part: slice, failure: str) -> TeacherError:
        return TeacherError(
            f"{_named(prompts[part])}: the response was not written: out of memory "
            f"{MOST_FAILURES} times in a row: {failure}. Use a smaller --batch-tokens, "
            "--max-new-tokens or --dtype, or --device-map auto"
        )

    written, _ = in_pieces(len(draws), write, given_up)
    assert all(1 <= len(ids) <= budget for ids in written), "a response has tokens, not too many"
    tokens = sum(map(len, written))
    meter.scored(tokens, spared=budget * len(written) - tokens)
    return [
        Response(prompt=writing.prompt_keys[int(p)], number=draw.number, input_ids=ids)
        for p, draw, ids in zip(rows, draws, written, strict=True)
    ]


def _named(prompts: Sequence[Sample]) -> str:
    return ", ".join(f"{prompt.source} row {prompt.row}" for prompt in prompts[:3])


def _commit(job: Job, writing: Writing, waiting: _Waiting, known: set[str]) -> _Waiting:
    """Put them into the cache, which exists from now on: its clock belongs to the prompts."""
    if waiting.responses:
        write_identity(job.location, job.identity)
        check_same(read_identity(job.location), job.identity, job.location)
        known.add(write_responses(job.location, writing.recipe_id, waiting.responses))
    return _Waiting()

"""One unit: its batches to the teacher, tried again and split where memory is short.

Comes in: a job and its teacher. Goes out: all that is stored of a unit, every row of it checked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachekd.capture.attention import AttendingTeacher, describe_attention
from cachekd.capture.faults import checked, left_out, positions
from cachekd.capture.job import Job
from cachekd.capture.writing import Writing
from cachekd.errors import BadTargets, Incomplete, TeacherError
from cachekd.store.commit import ScoredUnit
from cachekd.store.plan import PlannedBatch
from cachekd.teachers import Teacher
from cachekd.teachers._memory import MOST_FAILURES, in_pieces, one_memory_error
from cachekd.types import TopKLogits

_NAMED = 3
_log = logging.getLogger(__name__)


def score_unit(
    job: Job,
    teacher: Teacher,
    number: int,
    *,
    stop_asked: Callable[[], bool],
    scored: Callable[[int], None],
) -> ScoredUnit:
    """Score a unit.

    Args:
        job: what it is a part of.
        teacher: loaded teacher.
        number: which unit.
        stop_asked: looked at between batches.
        scored: told the tokens of each batch that is done.

    Raises:
        Incomplete: a stop was asked for; nothing of the unit is kept.
        TeacherError: the teacher gave what cannot be stored, or has no memory for one document.
    """
    started = time.monotonic()
    targets, splits = _score_unit(job, teacher, number, stop_asked, scored)
    keys = job.plan.unit_keys(number)
    return ScoredUnit(
        number=number,
        keys=keys,
        documents=[job.documents[key] for key in keys],
        targets=targets,
        attention=teacher.take(keys) if isinstance(teacher, AttendingTeacher) else None,
        numerics={**teacher.numerics, "threads": job.plan.threads, "split": splits},
        skipped=_skipped(job, keys, targets),
        seconds=time.monotonic() - started,
    )


def _score_unit(
    job: Job,
    teacher: Teacher,
    number: int,
    stop_asked: Callable[[], bool],
    scored: Callable[[int], None],
) -> tuple[list[TopKLogits], dict[str, int]]:
    """Targets of a unit in the order of its keys, and the batches that had to be split."""
    targets: list[TopKLogits] = []
    splits: dict[str, int] = {}
    for place, batch in enumerate(job.plan.units[number]):
        if stop_asked():
            raise Incomplete("stopped between two batches")
        done = job.scored.pop(batch, None)
        scores, pieces = done if done is not None else score_batch(job, teacher, batch)
        targets += scores
        if pieces > 1:
            splits[str(place)] = pieces
        if done is None:  # the trial told its own tokens
            scored(sum(target.rows + 1 for target in scores))
    return targets, splits


def score_batch(job: Job, teacher: Teacher, batch: PlannedBatch) -> tuple[list[TopKLogits], int]:
    """Targets of a planned batch, and into how many pieces lack of memory split it.

    Pieces keep the padded length, so a document sees the same shape of everything but the batch.

    Raises:
        TeacherError: it gave what cannot be stored, or has no memory; names the documents.
    """
    keys = job.plan.keys[batch.first : batch.first + batch.rows]

    def given_up(part: slice, failure: str) -> TeacherError:
        count = part.stop - part.start
        what = "one document" if count == 1 else f"{count} documents"
        return TeacherError(
            f"out of memory for {what} of {batch.padded_length} tokens "
            f"({job.documents.names(keys[part])}), {MOST_FAILURES} times in a row: {failure}. Use "
            "a smaller --batch-tokens or --dtype, --max-length with --on-long, or --device-map auto"
        )

    return in_pieces(
        batch.rows,
        lambda part: _score(job, teacher, keys[part], batch.padded_length),
        given_up,
    )


def _score(
    job: Job, teacher: Teacher, keys: Sequence[bytes], padded_length: int
) -> list[TopKLogits]:
    documents = [job.documents[key] for key in keys]
    wanted = [job.wanted[key] if job.wanted is not None else None for key in keys]
    try:
        with one_memory_error():
            scores = teacher.score(documents, padded_length, job.selection, wanted)
        return checked(scores, documents, wanted, job.selection)
    except BadTargets as error:
        raise TeacherError(
            f"{_named(job, keys, error.rows)}: {error}. Nothing of it was stored; check the "
            "teacher's weights and dtype, or leave such rows out with --on-bad-targets skip"
        ) from error
    except TeacherError as error:
        if len(keys) == 1:
            raise TeacherError(
                f"{job.documents.names(keys)}: {error}. Nothing of it was stored; check the "
                "teacher's weights and dtype"
            ) from error
        for key in keys:  # which document is it?
            _score(job, teacher, [key], padded_length)
        raise


def _named(job: Job, keys: Sequence[bytes], rows: Mapping[int, Sequence[int]]) -> str:
    """The first documents with bad rows, and the positions of these."""
    parts = [
        f"{job.documents.names([keys[place]])} at {positions(own)} of "
        f"{len(job.documents[keys[place]])} tokens"
        for place, own in list(rows.items())[:_NAMED]
    ]
    more = f", and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return ", ".join(parts) + more


def _skipped(
    job: Job, keys: Sequence[bytes], targets: Sequence[TopKLogits]
) -> dict[bytes, tuple[int, ...]]:
    """Rows by key that the teacher gave no distribution of, and that were let go."""
    if not job.selection.skip_bad:
        return {}
    every = {
        key: left_out(target, job.wanted[key] if job.wanted is not None else None)
        for key, target in zip(keys, targets, strict=True)
    }
    found = {key: rows for key, rows in every.items() if rows}
    if found:
        places = {place: found[key] for place, key in enumerate(keys) if key in found}
        _log.warning(
            "%d rows are left out, for the teacher gives no distribution of them: %s",
            sum(map(len, found.values())),
            _named(job, keys, places),
        )
    return found


def describe(job: Job) -> dict[str, Any]:
    """What a run will do, in counts: the dry run."""
    spec, documents = job.attention, job.documents
    lengths = documents.lengths[documents.firsts]
    return {
        "cache": job.location.url,
        "source_id": job.identity.source_id,
        "capture_id": job.identity.capture_id,
        "samples": len(documents.samples),
        "new_samples": job.new_samples,
        "tokens": int(documents.lengths.sum()),
        "documents": len(lengths),
        "documents_cached": job.cached,
        "documents_to_score": sum(len(job.plan.packed_keys(n)) for n in job.todo),
        "tokens_to_score": sum(map(job.unit_tokens, job.todo)),
        "shards_to_write": len(job.todo),
        **(describe_attention(spec, lengths) if spec else {}),
        "bytes_at_most": job.bytes_at_most(),
        "skipped": dict(job.plan.skipped),
        "changed": dict(job.plan.changed),
        **(_describe_writing(job.writing) if job.writing else {}),
    }


def _describe_writing(writing: Writing) -> dict[str, Any]:
    """While responses are missing, all other counts are upper bounds."""
    missing = writing.missing()
    return {
        "responses": len(writing.draws),
        "responses_to_generate": len(missing),
        "responses_unfinished": writing.unfinished(),
        "tokens_to_generate_at_most": int(writing.budgets(missing).sum()),
    }

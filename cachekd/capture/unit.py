"""One unit: its batches to the teacher, tried again and split where memory is short."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from cachekd.capture.attention import AttendingTeacher, describe_attention
from cachekd.capture.job import Job
from cachekd.capture.writing import Writing
from cachekd.errors import Incomplete, TeacherError
from cachekd.store.commit import ScoredUnit
from cachekd.store.plan import PlannedBatch
from cachekd.teachers import Teacher
from cachekd.types import TopKLogits


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

    The planned shape is tried twice before it is split; pieces keep the padded length, so a
    document sees the same shape of everything but the batch.
    """
    keys = job.plan.keys[batch.first : batch.first + batch.rows]
    for attempt in range(2):
        try:
            return _score(job, teacher, keys, batch.padded_length), 1
        except MemoryError as error:
            if attempt and batch.rows == 1:
                name = job.documents.names(keys)
                raise TeacherError(
                    f"out of memory for one document of {batch.padded_length} tokens "
                    f"({name}): {error}. Use --max-length with --on-long, a smaller "
                    "dtype, or --device-map auto"
                ) from error
        gc.collect()
    half = batch.rows // 2
    left, left_pieces = score_batch(
        job, teacher, PlannedBatch(batch.first, half, batch.padded_length)
    )
    right, right_pieces = score_batch(
        job, teacher, PlannedBatch(batch.first + half, batch.rows - half, batch.padded_length)
    )
    return left + right, left_pieces + right_pieces


def _score(
    job: Job, teacher: Teacher, keys: Sequence[bytes], padded_length: int
) -> list[TopKLogits]:
    documents = [job.documents[key] for key in keys]
    wanted = [job.wanted[key] if job.wanted is not None else None for key in keys]
    try:
        scores = teacher.score(documents, padded_length, job.selection, wanted)
    except TeacherError as error:
        if len(keys) == 1:
            raise TeacherError(
                f"{job.documents.names(keys)}: {error}. Nothing of it was stored; check the "
                "teacher's weights and dtype"
            ) from error
        for key in keys:  # which document is it?
            _score(job, teacher, [key], padded_length)
        raise
    for target, document in zip(scores, documents, strict=True):
        assert target.rows == len(document) - 1, "a teacher must give L-1 rows for L tokens"
    return scores


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

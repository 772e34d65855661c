"""How fast a teacher scores, as precompute would ask it: planned batches, a sparse selection."""

from __future__ import annotations

import time

from cachekd.costs.sample import DataSample, Document
from cachekd.store.plan import cut
from cachekd.teachers import Selection, Teacher

_SECONDS = 10.0
_BATCHES = 8


def tokens_per_second(
    teacher: Teacher, sample: DataSample, selection: Selection, batch_tokens: int
) -> float:
    """Tokens a second, padding not counted, over a few batches after one that is not timed.

    Args:
        teacher: loaded teacher.
        sample: its documents are batched as precompute batches them.
        selection: what the teacher is asked to keep.
        batch_tokens: token budget of a batch.

    Raises:
        TeacherError, MemoryError: see `Teacher.score`.
    """
    batches = _batches(sample, batch_tokens)
    # From the longest to the shortest documents, which are batched by length.
    step = max(1, len(batches) // _BATCHES)
    tokens, seconds = 0, 0.0
    for place, (chosen, length) in enumerate([batches[0], *batches[::step]]):
        begun = time.perf_counter()
        teacher.score(
            [one.input_ids for one in chosen], length, selection, [one.rows for one in chosen]
        )
        if place:
            seconds += time.perf_counter() - begun
            tokens += sum(len(one.input_ids) for one in chosen)
        if seconds > _SECONDS:
            break
    return tokens / max(seconds, 1e-9)


def _batches(sample: DataSample, batch_tokens: int) -> list[tuple[list[Document], int]]:
    """Documents of each batch with its padded length, as precompute batches them."""
    documents = [*sample.learned, *sample.measured]
    order, units = cut(
        [len(document.input_ids) for document in documents],
        batch_tokens=batch_tokens,
        sort_window=len(documents),
        unit_tokens=1 << 62,
        bytes_per_token=1,
    )
    return [
        ([documents[i] for i in order[one.first : one.first + one.rows]], one.padded_length)
        for unit in units
        for one in unit
    ]

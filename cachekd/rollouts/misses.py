"""What the score cache lacks: found, cut into batches, and scored.

In: documents with their blocks and the keys that are held. Out: `Miss`es, batches of them, and the
teacher's targets; where memory is short, of one piece of a batch after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cachekd.errors import TeacherError
from cachekd.rollouts.blocks import Block
from cachekd.rollouts.teacher import LiveTeacher
from cachekd.store.plan import cut
from cachekd.teachers._memory import MOST_FAILURES, in_pieces, one_memory_error
from cachekd.types import Int32, TopKLogits

_SHOWN_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Miss:
    """A document that is to be scored, from a row on.

    Attributes:
        ids_L: its tokens.
        first_row: first row that is scored.
        given: ids [L-1 - first_row, J], or None.
        blocks: its blocks from that row on.
    """

    ids_L: Int32
    first_row: int
    given: Int32 | None
    blocks: Sequence[Block]


def misses(
    documents: Sequence[Int32],
    first_rows: Sequence[int],
    given: Sequence[Int32 | None],
    asked: Sequence[Sequence[Block]],
    held: set[bytes],
) -> list[Miss]:
    """What is to be scored: each block once, with the longest document of those that share it.

    Args:
        documents: token ids of each.
        first_rows: first row that is wanted of each.
        given: for each ids [L-1 - first_row, J], or None.
        asked: blocks of each.
        held: keys that the store has.
    """
    found, known = [], set(held)
    for i in sorted(range(len(documents)), key=lambda i: -len(documents[i])):
        blocks, ids = asked[i], given[i]
        first = next((n for n, block in enumerate(blocks) if block.key not in known), None)
        if first is None:
            continue
        known.update(block.key for block in blocks[first:])
        start = blocks[first].start
        found.append(
            Miss(
                ids_L=documents[i],
                first_row=start,
                given=None if ids is None else ids[start - first_rows[i] :],
                blocks=blocks[first:],
            )
        )
    return found


def batches(found: Sequence[Miss], batch_tokens: int) -> Iterator[tuple[list[Miss], int]]:
    """Batches of alike lengths within a token budget, and the length that each is padded to."""
    order, units = cut(
        [len(item.ids_L) for item in found],
        batch_tokens=batch_tokens,
        sort_window=max(1, len(found)),
        unit_tokens=batch_tokens,
        bytes_per_token=1,
    )
    for batch in (batch for unit in units for batch in unit):
        places = order[batch.first : batch.first + batch.rows]
        yield [found[i] for i in places], batch.padded_length


def score_batch(
    teacher: LiveTeacher, batch: Sequence[Miss], padded_length: int
) -> list[TopKLogits]:
    """Targets of a batch.

    Raises:
        TeacherError: the teacher cannot be reached, gave NaN, or has no memory for one document;
            of a teacher in this process it names the document.
    """

    def given_up(part: slice, failure: str) -> TeacherError:
        count = part.stop - part.start
        what = "one document" if count == 1 else f"{count} documents"
        return TeacherError(
            f"the live teacher has no memory for {what} of {padded_length} tokens "
            f"({shown(batch[part][0].ids_L)}), {MOST_FAILURES} times in a row: {failure}. Lower "
            "--max-new-tokens, or choose a smaller --teacher-dtype or --teacher-device-map auto"
        )

    found, _ = in_pieces(
        len(batch), lambda part: _score(teacher, batch[part], padded_length), given_up
    )
    return found


def _score(teacher: LiveTeacher, batch: Sequence[Miss], padded_length: int) -> list[TopKLogits]:
    given = [item.given for item in batch]
    try:
        with one_memory_error():
            return teacher.teacher.score(
                [item.ids_L for item in batch],
                padded_length,
                teacher.selection,
                [np.arange(len(item.ids_L) - 1) >= item.first_row for item in batch],
                given if any(ids is not None for ids in given) else None,
            )
    except TeacherError as error:
        if teacher.remote:
            raise
        _name_document(teacher, batch, padded_length, error)
        raise


def _name_document(
    teacher: LiveTeacher, batch: Sequence[Miss], padded_length: int, error: TeacherError
) -> None:
    """Say of which document the teacher gave what cannot be stored: each is scored alone.

    Raises:
        TeacherError: names it.
    """
    if len(batch) > 1:
        for item in batch:
            _score(teacher, [item], padded_length)
        return
    ids_L = batch[0].ids_L
    raise TeacherError(
        f"the live teacher, of a document of {len(ids_L)} tokens ({shown(ids_L)}): {error}. "
        "Nothing of it was stored; check the teacher's weights and --teacher-dtype"
    ) from error


def shown(ids_L: Int32) -> str:
    """The first tokens of a document."""
    more = ", ..." if len(ids_L) > _SHOWN_TOKENS else ""
    return f"token ids {', '.join(map(str, ids_L[:_SHOWN_TOKENS].tolist()))}{more}"

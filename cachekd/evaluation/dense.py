"""Whole distributions of a teacher, a bounded number of rows at a time.

Comes in: any teacher and token ids. Goes out: tiles of rows over the whole vocabulary. A capture
that keeps the whole vocabulary is dense, so every backend can be asked. Rows that do not fit one
answer are asked for in further passes over the same batch: the shape, and so the numbers, stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachekd.teachers import Selection, Teacher
from cachekd.types import Float32, Int32, Int64, TopKLogits

Float64 = NDArray[np.float64]
Rows = NDArray[np.bool_]

# Entries (8 bytes each) of one answer of the teacher, and elements of a tile: 1 GiB and 32 MiB.
_ANSWER = 1 << 27
_TILE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseRows:
    """N rows of one document.

    Attributes:
        document: place of the document in the batch.
        rows: row numbers in the document, int64 [N].
        p_NV: probabilities at temperature 1, float64, summing to 1.
        best_NK: token ids, most probable first, equal ones by id; the first K, -1 where a row has
            fewer possible tokens.
        next_logprob, entropy: as the teacher gives them, float32 [N].
        lognorm: log-normaliser for each temperature asked for, float32 [N].
    """

    document: int
    rows: Int64
    p_NV: Float64
    best_NK: Int32
    next_logprob: Float32
    entropy: Float32
    lognorm: Mapping[float, Float32]


def dense_rows(
    teacher: Teacher,
    documents: Sequence[Int32],
    padded_length: int,
    *,
    vocab_size: int,
    temperatures: tuple[float, ...],
    wanted: Sequence[Rows | None],
    best: int,
) -> Iterator[DenseRows]:
    """Tiles of the wanted rows of a batch, document after document, rows ascending.

    Args:
        teacher: loaded teacher.
        documents: token ids of each, int32 [L].
        padded_length: length that every document is padded to.
        vocab_size: real vocabulary V.
        temperatures: temperatures other than 1 whose log-normaliser is wanted.
        wanted: rows of each document, bool [L-1], or None for all.
        best: K of ``best_NK``; at most V are given.

    Raises:
        TeacherError, MemoryError: see `Teacher.score`.
    """
    masks = [
        np.ones(len(ids) - 1, bool) if rows is None else rows
        for ids, rows in zip(documents, wanted, strict=True)
    ]
    whole = Selection(
        k=vocab_size, p=1.0, min_k=1, vocab_size=vocab_size, temperatures=temperatures
    )
    total, step = sum(int(mask.sum()) for mask in masks), max(1, _ANSWER // vocab_size)
    for first in range(0, total, step):
        window = _window(masks, first, first + step)
        records = teacher.score(documents, padded_length, whole, window)
        for document, (record, mask) in enumerate(zip(records, window, strict=True)):
            yield from _tiles(document, record, mask.nonzero()[0], best)


def _window(masks: Sequence[Rows], first: int, last: int) -> list[Rows]:
    """The wanted rows from number ``first`` to before ``last``, counted over the batch."""
    windows, seen = [], 0
    for mask in masks:
        number = np.cumsum(mask) - 1 + seen
        windows.append(mask & (number >= first) & (number < last))
        seen += int(mask.sum())
    return windows


def _tiles(document: int, record: TopKLogits, rows: Int64, best: int) -> Iterator[DenseRows]:
    step = max(1, _TILE // record.vocab_size)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        low, high = record.offsets[part], record.offsets[part + 1]
        counts = high - low
        entries = slice(int(low[0]), int(high[-1]))  # rows between two wanted ones hold none
        p_NV = np.zeros((len(part), record.vocab_size))
        row_n = np.repeat(np.arange(len(part)), counts)
        p_NV[row_n, record.ids[entries]] = np.exp(record.logprobs[entries].astype(np.float64))
        p_NV /= p_NV.sum(1, keepdims=True)
        places = np.arange(min(best, record.vocab_size))
        at = np.minimum(low[:, None] + places, high[:, None] - 1)
        yield DenseRows(
            document=document,
            rows=part,
            p_NV=p_NV,
            best_NK=np.where(places < counts[:, None], record.ids[at], -1).astype(np.int32),
            next_logprob=record.next_logprob[part],
            entropy=record.entropy[part],
            lognorm={t: values[part] for t, values in record.lognorm.items()},
        )


def joined(parts: Sequence[TopKLogits], captured: Rows) -> TopKLogits:
    """Targets of a document from those of its captured rows, in order; other rows stay empty.

    Args:
        parts: targets of the captured rows, piece after piece.
        captured: which rows they are, bool [L-1].
    """

    def placed(values: Sequence[Float32]) -> Float32:
        whole = np.zeros(len(captured), np.float32)
        whole[captured] = np.concatenate(values)
        return whole

    counts = np.zeros(len(captured), np.int64)
    counts[captured] = np.concatenate([np.diff(part.offsets) for part in parts])
    weights = [part.weights for part in parts if part.weights is not None]
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        ids=np.concatenate([part.ids for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        weights=np.concatenate(weights) if weights else None,
        tail=placed([part.tail for part in parts]),
        next_logprob=placed([part.next_logprob for part in parts]),
        lognorm={t: placed([part.lognorm[t] for part in parts]) for t in parts[0].lognorm},
        entropy=placed([part.entropy for part in parts]),
        vocab_size=parts[0].vocab_size,
    )


def take(targets: TopKLogits, rows: Int64) -> TopKLogits:
    """Some rows of a document's targets, ascending: what `joined` puts together again."""
    low, high = targets.offsets[rows], targets.offsets[rows + 1]
    ends = np.cumsum(high - low)
    entries = np.repeat(high - ends, high - low) + np.arange(ends[-1] if len(ends) else 0)
    return TopKLogits(
        offsets=np.concatenate([[0], ends]).astype(np.int64),
        ids=targets.ids[entries],
        logprobs=targets.logprobs[entries],
        weights=None if targets.weights is None else targets.weights[entries],
        tail=targets.tail[rows],
        next_logprob=targets.next_logprob[rows],
        lognorm={t: values[rows] for t, values in targets.lognorm.items()},
        entropy=targets.entropy[rows],
        vocab_size=targets.vocab_size,
    )

"""Figures of the rows of a cache, over a random sample of its records.

In: an open cache. Out: flat arrays of what is stored of each captured row, and the passages where
the teacher is least and most certain. Records are read a few at a time; of a row six numbers stay.
Where a cache has many shards, records are drawn from a random part of them: a shard is checked in
whole when it is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.packed import Labels
from cachekd.overview.passages import Extremes, Window
from cachekd.store.reader import Cache
from cachekd.types import Float32, Int32, Int64, Record

MOST_SHARDS = 64
_AT_ONCE = 32
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """Which records are looked at: their numbers in the order of their shards, and the shards."""

    numbers: Int64
    shards: tuple[str, ...]
    all_shards: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """What is stored of N captured rows.

    Attributes:
        entries: kept token ids, int32 [N].
        tail: mass outside the exact head, float32 [N].
        entropy: nats, float32 [N].
        next_logprob: log-probability of the text's own next token, float32 [N].
        domains: of each row's record [N].
        records: records that the rows are of.
        uncaptured: their rows that were not captured, or that the teacher could not give.
        responses: captured rows that a loss on responses alone counts.
        least, most: passages of lowest and of highest mean entropy, the extreme one first.
    """

    entries: Int32
    tail: Float32
    entropy: Float32
    next_logprob: Float32
    domains: Labels
    records: int
    uncaptured: int
    responses: int
    least: tuple[Window, ...]
    most: tuple[Window, ...]


def draw(cache: Cache, sample: int, seed: int) -> Drawn:
    """A random sample of records, without repetition."""
    random = np.random.default_rng(seed)
    pool = np.arange(len(cache), dtype=np.int32)
    digests, shards_P = cache.shards_of(pool)
    there = np.unique(shards_P)
    if len(there) > MOST_SHARDS:
        chosen = random.choice(there, MOST_SHARDS, replace=False)
        pool = pool[np.isin(shards_P, chosen)]
    numbers = random.choice(pool, min(sample, len(pool)), replace=False).astype(np.int64)
    numbers = numbers[np.lexsort((numbers, shards_P[numbers]))]
    used = np.unique(shards_P[numbers])
    return Drawn(
        numbers=numbers,
        shards=tuple(digests[int(shard)] for shard in used),
        all_shards=len(there),
    )


def read_rows(cache: Cache, numbers: Sequence[int], progress: Progress | None = None) -> Rows:
    """Figures of all captured rows of these records.

    Args:
        cache: open, without its attention.
        numbers: of the records.
        progress: called with records done and records in all.

    Raises:
        CorruptCache: a shard is missing or altered; names the file.
    """
    parts: list[tuple[Int32, Float32, Float32, Float32]] = []
    domains: list[str] = []
    least, most = Extremes(lowest=True), Extremes(lowest=False)
    uncaptured = responses = 0
    for number, record in _records(cache, numbers, progress):
        counts = np.diff(record.logits.offsets)
        captured = counts > 0
        parts.append(_columns(record, counts, captured))
        domains.append(record.domain)
        uncaptured += int((~captured).sum())
        counted = trained_rows(record.roles, record.prompt_length, LossMask.AUTO)
        responses += int((captured & counted).sum())
        for extremes in (least, most):
            extremes.add(number, record, captured)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [_NONE] * 4
    lengths = [len(part[0]) for part in parts]
    return Rows(
        entries=columns[0].astype(np.int32),
        tail=columns[1],
        entropy=columns[2],
        next_logprob=columns[3],
        domains=_repeated(domains, lengths),
        records=len(parts),
        uncaptured=uncaptured,
        responses=responses,
        least=least.windows(),
        most=most.windows(),
    )


_NONE = np.empty(0, np.float32)


def _records(
    cache: Cache, numbers: Sequence[int], progress: Progress | None
) -> Iterator[tuple[int, Record]]:
    for start in range(0, len(numbers), _AT_ONCE):
        part = [int(number) for number in numbers[start : start + _AT_ONCE]]
        yield from zip(part, cache.read(part), strict=True)
        if progress:
            progress(start + len(part), len(numbers))


def _columns(
    record: Record, counts: Int64, captured: np.ndarray
) -> tuple[Int32, Float32, Float32, Float32]:
    logits = record.logits
    return (
        counts[captured].astype(np.int32),
        np.exp(np.minimum(logits.tail[captured], 0)).astype(np.float32),
        logits.entropy[captured],
        logits.next_logprob[captured],
    )


def _repeated(domains: Sequence[str], lengths: Sequence[int]) -> Labels:
    """The domain of each row from that of each record."""
    names = sorted(set(domains))
    place = {name: number for number, name in enumerate(names)}
    codes = np.array([place[name] for name in domains], np.int32)
    return Labels(np.repeat(codes, lengths).astype(np.int32), names)

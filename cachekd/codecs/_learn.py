"""Learning a prior from targets: the unigram, and contexts by clustering rows.

Rows are clustered like k-means with the Bhattacharyya affinity sum_v sqrt(p_v c_v) on their most
probable entries; a context's distribution is the mean of its rows, drawn towards the unigram.
Plain numpy, no randomness: the same rows give the same prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachekd.codecs._priors import Prior
from cachekd.data import limits
from cachekd.types import Float32, Int32, Int64, TopKLogits

_ROUNDS = 8
_ROWS_PER_CONTEXT = 48
_ENTRIES = 32
_PULL = 4.0
_LIST_PULL = 1.0
_CHUNK = 1 << 23


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Entries of rows, flat: row numbers int64 [n], token ids int32 [n], probabilities [n]."""

    rows: Int64
    ids: Int32
    p: Float32
    count: int


def learn_prior(records: Sequence[TopKLogits], vocab_size: int, *, budget: int) -> Prior:
    """A prior of the rows of these records.

    Args:
        records: targets to learn from.
        vocab_size: real vocabulary V.
        budget: about how many bytes the lists of contexts may take; 0 learns a unigram only.
    """
    rows = _flatten(records)
    unigram = _unigram(rows, vocab_size)
    none = np.zeros((0, 0), np.int32)
    contexts = min(rows.count // _ROWS_PER_CONTEXT, limits.CONTEXTS, int((budget / 8) ** 0.5))
    width = min(vocab_size, budget // (2 * max(1, contexts)))
    lists = _contexts(rows, unigram, contexts, width) if contexts > 1 else none
    return Prior(np.log(unigram).astype(np.float16), lists)


def rows_to_learn(budget: int) -> int:
    """Rows that `learn_prior` makes full use of."""
    return _ROWS_PER_CONTEXT * max(1, min(limits.CONTEXTS, int((budget / 8) ** 0.5)))


def _flatten(records: Sequence[TopKLogits]) -> _Rows:
    """All entries; a sampled entry counts with its weight, which its log-prob is."""
    counts = [np.diff(record.offsets) for record in records]
    rows = np.concatenate([np.zeros(0, np.int64), *counts])
    rows = rows[rows > 0]
    p = np.exp(np.concatenate([np.zeros(0, np.float32), *(r.logprobs for r in records)]))
    ids = np.concatenate([np.zeros(0, np.int32), *(r.ids for r in records)])
    return _Rows(np.repeat(np.arange(len(rows)), rows), ids, p.astype(np.float32), len(rows))


def _unigram(rows: _Rows, vocab_size: int) -> NDArray[np.float64]:
    """Mean of the rows; what they leave out is spread evenly, so that nothing is impossible."""
    seen = np.bincount(rows.ids, rows.p, vocab_size)
    rest = max(rows.count - float(seen.sum()), 0.01 * rows.count, 1.0)
    total = seen + rest / vocab_size
    return np.asarray(total / total.sum(), np.float64)


def _contexts(rows: _Rows, unigram: NDArray[np.float64], contexts: int, width: int) -> Int32:
    """Lists of the likely tokens of each context that has rows, int32 [K, width]."""
    top = _best(rows)
    members, compact = np.unique(top.ids, return_inverse=True)
    base = unigram[members]
    root, begins = np.sqrt(top.p), np.flatnonzero(np.diff(top.rows, prepend=-1))
    first = np.linspace(0, rows.count - 1, contexts).astype(np.int64)
    seed = np.full(rows.count, -1, np.int64)
    seed[first] = np.arange(contexts)
    assigned = seed
    for _ in range(_ROUNDS):
        centres = _root_centres(top, compact, assigned, contexts, base)
        assigned = _nearest(centres, compact, root, begins)
        del centres  # the largest array by far: never two of them
    used, assigned = np.unique(assigned, return_inverse=True)
    # Lists are ranked by all entries of the rows, not only by those that chose the context.
    return _lists(rows, assigned, len(used), unigram, width)


def _best(rows: _Rows) -> _Rows:
    """The first entries of each row."""
    begins = np.flatnonzero(np.diff(rows.rows, prepend=-1))
    place = np.arange(len(rows.rows)) - begins[rows.rows]
    keep = place < _ENTRIES
    return _Rows(rows.rows[keep], rows.ids[keep], rows.p[keep], rows.count)


def _root_centres(
    top: _Rows, compact: Int64, assigned: Int64, contexts: int, base: NDArray[np.float64]
) -> Float32:
    """Root of the mean distribution of contexts over U members, drawn to the unigram; [U, K]."""
    of_entry = assigned[top.rows]
    there = of_entry >= 0
    centres = np.zeros(len(base) * contexts, np.float32)
    np.add.at(centres, compact[there] * contexts + of_entry[there], top.p[there])
    counts = np.bincount(assigned[assigned >= 0], minlength=contexts)
    mass: Float32 = centres.reshape(len(base), contexts)
    mass += (_PULL * base).astype(np.float32)[:, None]
    mass /= (counts + _PULL).astype(np.float32)
    return np.sqrt(mass, out=mass)


def _nearest(root_UK: Float32, compact: Int64, root_p: Float32, begins: Int64) -> Int64:
    """The context of the greatest affinity for each row."""
    ends = np.append(begins[1:], len(compact))
    step = max(1, _CHUNK // (root_UK.shape[1] * _ENTRIES))
    nearest = []
    for start in range(0, len(begins), step):
        low, high = begins[start], ends[min(start + step, len(begins)) - 1]
        part = root_UK[compact[low:high]]
        part *= root_p[low:high, None]
        nearest.append(np.add.reduceat(part, begins[start : start + step] - low, 0).argmax(1))
    return np.concatenate(nearest)


def _lists(
    rows: _Rows, assigned: Int64, contexts: int, unigram: NDArray[np.float64], width: int
) -> Int32:
    """Each context's tokens by falling mean probability, as many as fit."""
    order = np.argsort(assigned, kind="stable")
    bounds = np.searchsorted(assigned[order], np.arange(contexts + 1))
    by_row = np.append(np.flatnonzero(np.diff(rows.rows, prepend=-1)), len(rows.rows))
    lists = np.empty((contexts, width), np.int32)
    for context in range(contexts):
        own = order[bounds[context] : bounds[context + 1]]
        spans = by_row[own + 1] - by_row[own]
        at = np.repeat(by_row[own] - (np.cumsum(spans) - spans), spans) + np.arange(spans.sum())
        mass = np.bincount(rows.ids[at], rows.p[at], len(unigram)) + _LIST_PULL * unigram
        best = _largest(mass, width)
        lists[context] = best[np.lexsort((best, -mass[best]))]
    return lists


def _largest(mass: NDArray[np.float64], count: int) -> Int64:
    """Places of the largest values, of equal ones the first: the same on every machine."""
    least = np.partition(mass, len(mass) - count)[len(mass) - count]
    above, equal = np.flatnonzero(mass > least), np.flatnonzero(mass == least)
    return np.concatenate([above, equal[: count - len(above)]])

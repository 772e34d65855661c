"""How many rows of each sample are trained, and whether all of them were captured.

In: chosen samples, the loss mask and the length that they are cut to. Out: counts; a refusal where
only responses were captured and more is to be trained. Whole tables at a time: no row is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cachekd.data.alignment import LossMask, trained_spans
from cachekd.data.packed import Places
from cachekd.errors import MismatchError
from cachekd.training.choose import Chosen
from cachekd.types import Int32, Int64

if TYPE_CHECKING:
    from cachekd.store.reader import Cache
    from cachekd.store.samples import SampleTable

_BLOCK = 4096


def trained_counts(
    caches: Sequence[Cache],
    chosen: Chosen,
    data: SampleTable | None,
    loss_mask: LossMask,
    limit: int,
) -> Int64:
    """Trained rows of each chosen sample within its first tokens, int64 [P].

    Args:
        caches: where samples are read from.
        chosen: the samples.
        data: samples of the data file, whose roles count where there is one.
        loss_mask: which rows are trained.
        limit: tokens that samples are cut to.

    Raises:
        MismatchError: rows are to be trained that were not captured.
    """
    counts = np.zeros(len(chosen.caches), np.int64)
    for number, cache in enumerate(caches):
        own = np.flatnonzero(chosen.caches == number)
        if not len(own):
            continue
        held = _taken(cache.samples, chosen.rows[0, own])
        table = held if data is None or chosen.of_data is None else data.take(chosen.of_data[own])
        starts_S, stops_S = (np.minimum(part, limit) for part in trained_spans(table, loss_mask))
        counts[own] = np.add.reduceat(stops_S - starts_S, table.span_offsets[:-1])
        if cache.identity.capture.get("rows") == "response":
            if loss_mask is LossMask.ALL:
                raise _not_captured(cache, loss_mask)
            _check_captured(cache, table, held, loss_mask, limit)
    return counts


def skipped_counts(
    caches: Sequence[Cache],
    chosen: Chosen,
    data: SampleTable | None,
    loss_mask: LossMask,
    limit: int,
) -> Int64:
    """Rows of `trained_counts` that a teacher gave no distribution of, int64 [P].

    Of a mixture those that any member lacks; arguments as there.
    """
    counts = np.zeros(len(chosen.caches), np.int64)
    marked: dict[int, set[int]] = {}
    for member, rows_P in enumerate(chosen.rows):
        for number, cache in enumerate(caches):
            # The rows behind the first are those of the further members of a mixture, in order.
            own = np.flatnonzero(chosen.caches == number) if member == 0 else np.arange(len(rows_P))
            if not cache.skipped or (member and member != number) or not len(own):
                continue
            places = Places(cache.samples.keys.take(rows_P[own]))
            for key, rows in cache.skipped.items():
                for place in places.all_of(key).tolist():
                    marked.setdefault(int(own[place]), set()).update(rows)
    for place, lost in marked.items():
        table, at = caches[int(chosen.caches[place])].samples, int(chosen.rows[0, place])
        if data is not None and chosen.of_data is not None:
            table, at = data, int(chosen.of_data[place])
        trained = _mask(table.take(np.array([at])), loss_mask, limit)[1:]
        counts[place] = sum(bool(trained[row]) for row in lost)
    return counts


def _taken(samples: SampleTable, rows: Int32) -> SampleTable:
    everything = len(rows) == len(samples.lengths) and bool((np.diff(rows) == 1).all())
    return samples if everything else samples.take(rows)


def _check_captured(
    cache: Cache, table: SampleTable, held: SampleTable, loss_mask: LossMask, limit: int
) -> None:
    """Of documents captured with response rows only those are trained."""
    for at in range(0, len(table.lengths), _BLOCK):
        part = np.arange(at, min(at + _BLOCK, len(table.lengths)))
        wanted = _mask(table.take(part), loss_mask, limit)
        if (wanted & ~_mask(held.take(part), LossMask.AUTO, limit)).any():
            raise _not_captured(cache, loss_mask)


def _mask(table: SampleTable, loss_mask: LossMask, limit: int) -> np.ndarray:
    """Which tokens are trained, those of all samples one after another."""
    starts_S, stops_S = (np.minimum(part, limit) for part in trained_spans(table, loss_mask))
    first_P = np.concatenate([[0], np.cumsum(table.lengths, dtype=np.int64)])
    first_S = np.repeat(first_P[:-1], np.diff(table.span_offsets))
    steps = np.zeros(first_P[-1] + 1, np.int64)
    np.add.at(steps, first_S + starts_S, 1)
    np.add.at(steps, first_S + stops_S, -1)
    return np.cumsum(steps) > 0


def _not_captured(cache: Cache, loss_mask: LossMask) -> MismatchError:
    """The error for rows that are to be trained and were not captured."""
    wanted = "all tokens" if loss_mask is LossMask.ALL else f"{loss_mask} tokens"
    return MismatchError(
        f"cache {cache.name!r} was captured with --rows response, but {wanted} are to be "
        "trained. Train on completions, or capture again with --rows all"
    )

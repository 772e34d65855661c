"""Tiles of picked rows to records: from the device's padded tensors to ragged numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cachekd.errors import BadTargets
from cachekd.teachers import Selection
from cachekd.teachers._selection import Picked, Workspace, pick
from cachekd.types import Float32, Int32, Int64, TopKLogits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """Targets of N rows: counts [N], ids, logprobs and weights (or None) [n], scalars [S, N].

    The scalars are tail, next_logprob, entropy, then a log-normaliser for each temperature. Rows
    that are ``bad`` (NaN, +inf, or nothing but -inf, bool [N]) have no entries, and scalars of 0.
    """

    counts: Int64
    ids: Int32
    logprobs: Float32
    weights: Float32 | None
    scalars: Float32
    bad: NDArray[np.bool_]


def select(
    logits_NV: Tensor,
    next_ids_N: Tensor,
    selection: Selection,
    uniform_N: Tensor | None = None,
    given_NJ: Tensor | None = None,
) -> Tile:
    """Sparse targets of N rows; see `cachekd.teachers._selection.pick` for the arguments."""
    picked = pick(logits_NV, next_ids_N, uniform_N, selection, Workspace(), given_NJ)
    return tile_of(picked, selection)


def tile_of(picked: Picked, selection: Selection) -> Tile:
    """Picked rows as ragged arrays."""
    bad_N = picked.bad.cpu().numpy()
    head_NK, ids_NK = picked.head.cpu().numpy(), picked.ids.cpu().numpy()
    logprobs_NK = picked.logprobs.cpu().numpy()
    scalars = picked.scalars.cpu().numpy()
    if bad_N.any():
        head_NK, scalars = head_NK & ~bad_N[:, None], np.where(bad_N, np.float32(0), scalars)
    counts = head_NK.sum(axis=1)
    if not (selection.tau or selection.samples):
        return Tile(
            counts=counts.astype(np.int64),
            ids=ids_NK[head_NK].astype(np.int32),
            logprobs=logprobs_NK[head_NK],
            weights=None,
            scalars=scalars,
            bad=bad_N,
        )
    row_m, ids_m, weights_m = _sampled(picked, ids_NK, logprobs_NK, selection)
    sampled = np.bincount(row_m, minlength=len(counts))
    # A row's samples stand behind its head: at the end of the head, before the next row's.
    place_m = np.cumsum(counts)[row_m]
    return Tile(
        counts=(counts + sampled).astype(np.int64),
        ids=np.insert(ids_NK[head_NK].astype(np.int32), place_m, ids_m),
        logprobs=np.insert(logprobs_NK[head_NK], place_m, np.log(weights_m)),
        weights=np.insert(np.zeros(int(counts.sum()), dtype=np.float32), place_m, weights_m),
        scalars=scalars,
        bad=bad_N,
    )


def _sampled(
    picked: Picked, ids_NK: Int64, logprobs_NK: Float32, selection: Selection
) -> tuple[Int64, Int32, Float32]:
    """Rows, ids and weights of sampled entries, by row and then by id."""
    good_N1 = ~picked.bad.cpu().numpy()[:, None]
    drawn_NJ = np.where(good_N1, picked.drawn.cpu().numpy(), -1)
    row_j, place_j = (drawn_NJ >= 0).nonzero()
    width = np.int64(1) << 32
    met, times = np.unique(row_j * width + drawn_NJ[row_j, place_j], return_counts=True)
    if selection.samples:
        weights = (times / selection.samples).astype(np.float32)
        return met // width, (met % width).astype(np.int32), weights
    sure_NK = picked.sure.cpu().numpy() & good_N1
    sure = sure_NK.nonzero()[0] * width + ids_NK[sure_NK]
    weights = np.concatenate(
        [np.full(len(met), selection.tau, dtype=np.float32), np.exp(logprobs_NK[sure_NK])]
    )
    met = np.concatenate([met, sure])
    order = np.argsort(met)
    met = met[order]
    return met // width, (met % width).astype(np.int32), weights[order]


def assemble(
    tiles: Sequence[Tile], captured: Sequence[NDArray[np.bool_]], selection: Selection
) -> list[TopKLogits]:
    """Put the tiles of a batch together again, a record for each document.

    Args:
        tiles: in the order of the captured rows, document after document.
        captured: for each document bool [L-1]; the other rows get an empty support.
        selection: what was kept.

    Raises:
        BadTargets: rows hold NaN or +inf, or nothing but -inf, and the selection does not skip
            them; names them.
    """
    whole = _joined(tiles, selection)
    if not selection.skip_bad:
        _refuse_bad(whole.bad, captured)
    ends = np.concatenate([[0], np.cumsum(whole.counts)])
    records, row = [], 0
    for mask in captured:
        rows = slice(row, row + int(mask.sum()))
        entries = slice(ends[rows.start], ends[rows.stop])
        records.append(_record(whole, mask, rows, entries, selection))
        row = rows.stop
    return records


def _record(
    whole: Tile, mask: NDArray[np.bool_], rows: slice, entries: slice, selection: Selection
) -> TopKLogits:
    """Targets of the document whose captured rows are these, with these entries."""
    counts = np.zeros(len(mask), dtype=np.int64)
    counts[mask] = whole.counts[rows]
    scalars = np.zeros((len(whole.scalars), len(mask)), dtype=np.float32)
    scalars[:, mask] = whole.scalars[:, rows]
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=whole.ids[entries],
        logprobs=whole.logprobs[entries],
        weights=None if whole.weights is None else whole.weights[entries],
        tail=scalars[0],
        next_logprob=scalars[1],
        entropy=scalars[2],
        lognorm={1.0: np.zeros(len(mask), dtype=np.float32)}
        | {t: scalars[3 + i] for i, t in enumerate(selection.temperatures)},
        vocab_size=selection.vocab_size,
    )


def _refuse_bad(bad_N: NDArray[np.bool_], captured: Sequence[NDArray[np.bool_]]) -> None:
    if not bad_N.any():
        return
    parts = np.split(bad_N, np.cumsum([int(mask.sum()) for mask in captured])[:-1])
    rows = {
        place: mask.nonzero()[0][part].tolist()
        for place, (mask, part) in enumerate(zip(captured, parts, strict=True))
        if part.any()
    }
    raise BadTargets(f"NaN or infinite logits in {int(bad_N.sum())} of {len(bad_N)} rows", rows)


def _joined(tiles: Sequence[Tile], selection: Selection) -> Tile:
    if not tiles:
        samples = bool(selection.tau or selection.samples)
        nothing = np.empty(0, dtype=np.float32)
        return Tile(
            counts=np.empty(0, dtype=np.int64),
            ids=np.empty(0, dtype=np.int32),
            logprobs=nothing,
            weights=nothing if samples else None,
            scalars=np.empty((3 + len(selection.temperatures), 0), dtype=np.float32),
            bad=np.empty(0, dtype=np.bool_),
        )
    weights = [tile.weights for tile in tiles if tile.weights is not None]
    return Tile(
        counts=np.concatenate([tile.counts for tile in tiles]),
        ids=np.concatenate([tile.ids for tile in tiles]),
        logprobs=np.concatenate([tile.logprobs for tile in tiles]),
        weights=np.concatenate(weights) if weights else None,
        scalars=np.concatenate([tile.scalars for tile in tiles], axis=1),
        bad=np.concatenate([tile.bad for tile in tiles]),
    )

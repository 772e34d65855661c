"""Sparse targets of a setting, taken from dense rows: what a teacher would have kept.

Comes in: dense rows. Goes out: `TopKLogits` of these rows. One scoring so serves every setting.
Heads follow `cachekd.teachers.Selection`. Draws are made here with a generator of the plan's own:
their number and bytes are those of a capture in expectation, not the same draws.
"""

from __future__ import annotations

import numpy as np

from cachekd.evaluation.dense import DenseRows, Float64
from cachekd.evaluation.fidelity import summed
from cachekd.teachers import Selection
from cachekd.types import Float32, Int64, TopKLogits


def keep(dense: DenseRows, selection: Selection, random: np.random.Generator) -> TopKLogits:
    """Targets of N dense rows; a document of N + 1 tokens, so to say."""
    row_h, ids_h, p_h = _head(dense, selection)
    rest_NV = dense.p_NV
    if selection.tau:
        rest_NV = dense.p_NV.copy()
        rest_NV[row_h, ids_h] = 0
    row_s, ids_s, weight_s = _draws(rest_NV, selection, random)
    rows, ids = np.concatenate([row_h, row_s]), np.concatenate([ids_h, ids_s])
    p, weights = np.concatenate([p_h, weight_s]), np.concatenate([0 * p_h, weight_s])
    order = np.lexsort((weights > 0, rows))  # stable: the head stays best first
    counts = np.bincount(rows, minlength=len(dense.rows))
    heads = np.bincount(row_h, minlength=len(dense.rows))
    sampled = selection.tau > 0 or selection.samples > 0
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=ids[order].astype(np.int32),
        logprobs=np.log(p[order]).astype(np.float32),
        weights=weights[order].astype(np.float32) if sampled else None,
        tail=_log_tail(dense.p_NV, summed(row_h, p_h, len(heads)), heads),
        next_logprob=dense.next_logprob,
        lognorm={1.0: np.zeros(len(heads), np.float32)}
        | {t: dense.lognorm[t] for t in selection.temperatures},
        entropy=dense.entropy,
        vocab_size=selection.vocab_size,
    )


def _log_tail(p_NV: Float64, mass_N: Float64, counts_N: Int64) -> Float32:
    """Log of what heads of this mass and number of entries leave; -inf where nothing is left."""
    possible = np.count_nonzero(p_NV, axis=1)
    rest = np.where(counts_N < possible, np.maximum(1 - mass_N, 1e-30), 0.0)
    with np.errstate(divide="ignore"):
        tail: Float32 = np.log(rest).astype(np.float32)
    return tail


def variance(dense: DenseRows, selection: Selection) -> Float64:
    """E sum_v (p^_v - p_v)^2 of each row of a sampled setting, [N].

    Draws: (1 - sum p^2) / N. A token of probability p below tau is kept with probability p / tau
    at weight tau: p (tau - p). No draw has to be made for it.
    """
    if selection.samples:
        squares: Float64 = np.einsum("nv,nv->n", dense.p_NV, dense.p_NV)
        return (1 - squares) / selection.samples
    rest: Float64 = np.maximum(selection.tau - dense.p_NV, 0.0)
    kept: Float64 = np.einsum("nv,nv->n", dense.p_NV, rest)
    return kept


def _head(dense: DenseRows, selection: Selection) -> tuple[Int64, Int64, Float64]:
    """Row, token and probability of the entries of the exact heads, best first."""
    best = dense.best_NK[:, : selection.k]
    p_NK = np.take_along_axis(dense.p_NV, np.maximum(best, 0), 1)
    place = np.arange(best.shape[1])
    kept = best >= 0
    if selection.p < 1:
        kept &= (np.cumsum(p_NK, 1) - p_NK < selection.p) | (place < selection.min_k)
    if selection.min_prob:
        kept &= (p_NK >= selection.min_prob) | (place == 0)
    if selection.tau:
        kept &= p_NK >= selection.tau
    row_n, place_n = kept.nonzero()
    return row_n, best[row_n, place_n].astype(np.int64), p_NK[row_n, place_n]


def _draws(
    rest_NV: Float64, selection: Selection, random: np.random.Generator
) -> tuple[Int64, Int64, Float64]:
    """Row, token and weight of sampled entries."""
    if selection.tau:
        kept = random.random(rest_NV.shape) * selection.tau < rest_NV
        row_n, ids_n = kept.nonzero()
        return row_n, ids_n, np.maximum(rest_NV[row_n, ids_n], selection.tau)
    if selection.samples:
        totals = np.cumsum(rest_NV, 1)
        uniform = random.random((len(rest_NV), selection.samples)) * totals[:, -1:]
        drawn = [np.searchsorted(row, u, "right") for row, u in zip(totals, uniform, strict=True)]
        flat = np.arange(len(drawn))[:, None] * rest_NV.shape[1] + np.array(drawn)
        tokens, times = np.unique(flat, return_counts=True)
        return (*np.divmod(tokens, rest_NV.shape[1]), times / selection.samples)
    none = np.zeros(0, np.int64)
    return none, none, np.zeros(0)

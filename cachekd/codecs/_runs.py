"""Entries to runs: what a row's entries share, and the gaps between their ranks.

A run is of entries of one row with one code, all in its context's list or all outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachekd.codecs import CodecHeader
from cachekd.codecs._grids import Grid
from cachekd.codecs._priors import Prior
from cachekd.types import Int64, TopKLogits

SAMPLED = 2
"""Deltas below it are runs of sampled entries, in captures that have them beside a head."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """A document's runs: number of each row and context [R], delta and length [X], gaps [n]."""

    of_row: Int64
    contexts: Int64
    deltas: Int64
    lengths: Int64
    gaps: Int64


def runs_of(targets: TopKLogits, header: CodecHeader, prior: Prior) -> Runs:
    """The runs of a document's entries."""
    counts = np.diff(targets.offsets)
    rows_n = np.repeat(np.arange(len(counts)), counts)
    codes = _codes(targets, header)
    contexts = prior.choose(targets.offsets, targets.ids)
    outside, ranks = prior.rank(contexts[rows_n], targets.ids)
    order = np.lexsort((ranks, outside, codes, rows_n))
    rows_n, codes, outside, ranks = rows_n[order], codes[order], outside[order], ranks[order]
    new_row = np.diff(rows_n, prepend=-1) != 0
    starts = np.flatnonzero(
        new_row | (np.diff(codes, prepend=-1) != 0) | (np.diff(outside, prepend=False) != 0)
    )
    before = np.where(new_row[starts], 0, codes[np.maximum(starts - 1, 0)])
    deltas = 2 * (codes[starts] - before)
    if header.tau:
        sampled = codes[starts] == Grid(header).sampled_code
        deltas = np.where(sampled, 0, deltas + SAMPLED)
    gaps = np.diff(ranks, prepend=0) - 1
    gaps[starts] = ranks[starts]
    return Runs(
        of_row=np.bincount(rows_n[starts], minlength=len(counts)),
        contexts=contexts,
        deltas=deltas + outside[starts],
        lengths=np.diff(np.append(starts, len(rows_n))),
        gaps=gaps,
    )


def _codes(targets: TopKLogits, header: CodecHeader) -> Int64:
    """The code of each entry, int64 [n]."""
    samples = header.samples
    if samples:
        weights = np.exp(targets.logprobs.astype(np.float64))
        draws: Int64 = np.rint(weights * samples).astype(np.int64)
        return samples - draws
    codes = Grid(header).encode(targets.logprobs)
    if targets.weights is None:
        return codes
    return np.where(targets.weights > 0, Grid(header).sampled_code, codes)

"""Ragged rows in formats whose rows all have k entries, and what of a cache such a format loses.

Comes in: targets of a record. Goes out: ids and log-probabilities [R, k]; a short row is filled
with ids that it does not hold, at a log-probability of no mass, so that readers that scatter by id
overwrite nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cachekd.errors import ConfigError
from cachekd.store.reader import Cache
from cachekd.types import Float32, Int64, TopKLogits

FILLER = -100.0
_READ = 64


def refuse_draws(cache: Cache, name: str) -> None:
    """Refuse sampled entries, whose values are weights and no probabilities.

    Raises:
        ConfigError: the cache holds some.
    """
    selection = cache.identity.capture["selection"]
    if "sampled" in str(selection.get("kind")):
        raise ConfigError(
            f"export: {cache.name} holds sampled entries ({selection['kind']}): their values are "
            f"weights of an estimate, which {name} has no place for. Export a capture of top_k, "
            "top_p or full, or --format arrow, which keeps the weights"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How long the rows of a cache are.

    Attributes:
        k: entries of a row that are written.
        least: entries of the shortest row that has some, at most k.
        cut: rows that have more than k.
        empty: rows that have none: not captured, or left out.
    """

    k: int
    least: int
    cut: int
    empty: int


def extent_of(cache: Cache, asked: int | None, name: str) -> Extent:
    """What a format with k entries a row writes: at most as many as asked, or as there are.

    Raises:
        ConfigError: the cache holds no exact heads, or no entries.
    """
    refuse_draws(cache, name)
    rows_K = np.zeros(1, np.int64)
    for start in range(0, len(cache), _READ):
        for record in cache.read(range(start, min(start + _READ, len(cache)))):
            own_K = np.bincount(np.diff(record.logits.offsets), minlength=len(rows_K))
            own_K[: len(rows_K)] += rows_K
            rows_K = own_K
    lengths = np.flatnonzero(rows_K[1:]) + 1
    if not len(lengths):
        raise ConfigError(f"export: {cache.name} holds no entries")
    k = min(int(lengths[-1]), asked or int(lengths[-1]))
    return Extent(
        k=k,
        least=min(k, int(lengths[0])),
        cut=int(rows_K[k + 1 :].sum()),
        empty=int(rows_K[0]),
    )


def rectangle(logits: TopKLogits, k: int, filler: float = FILLER) -> tuple[Int64, Float32]:
    """The k best entries of each row, best first: ids int64 [R, k], log-probs float32 [R, k]."""
    rows = logits.rows
    counts_R = np.minimum(np.diff(logits.offsets), k)
    ids_RK = np.zeros((rows, k), np.int64)
    logs_RK = np.full((rows, k), filler, np.float32)
    held_RK = np.arange(k) < counts_R[:, None]
    place_n = (logits.offsets[:-1, None] + np.arange(k))[held_RK]
    ids_RK[held_RK] = logits.ids[place_n]
    logs_RK[held_RK] = logits.logprobs[place_n]
    for row in np.flatnonzero(counts_R < k):
        own = ids_RK[row, : counts_R[row]]
        ids_RK[row, counts_R[row] :] = _others(own, k - len(own), logits.vocab_size)
    return ids_RK, logs_RK


def _others(own: Int64, count: int, vocab_size: int) -> Int64:
    """The lowest ids that a row does not hold."""
    free = np.ones(min(vocab_size, count + len(own)), np.bool_)
    free[own[own < len(free)]] = False
    return np.flatnonzero(free)[:count]


def lost_of(cache: Cache, extent: Extent, lacks: Sequence[str]) -> list[str]:
    """What of this cache a format cannot hold."""
    lost = list(lacks)
    if "log-normalisers" in lost and {*cache.identity.capture["temperatures"]} <= {1.0}:
        lost.remove("log-normalisers")
    cut = [f"entries beyond the first {extent.k} of {extent.cut} rows"] if extent.cut else []
    return [*lost, *cut]

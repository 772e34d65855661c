"""Several teachers at the same positions: the weighted mixture of their sparse targets.

In: the targets of one document in several caches, and a weight for each. Out: targets of the same
kind. With w_c the weights (they add up to 1) and p_c the targets as decoded,

    p(v) = sum_c w_c p_c(v)      on the union U of the supports S_c
    tail = sum_c w_c tail_c * b(outside U) / b(outside S_c)

A teacher says p_c(v) = tail_c * b_v / b(outside S_c) of a token outside its own support, with b_v 1
(``flat``) or the square root of the unigram (``unigram``, the mean of the members', weighed as they
are): the tail models of `cachekd.losses.tails`. Outside U every member is proportional to b, so the
mixture is too, and a loss with the same tail model sees exactly the mixture of its members. The
entropy is that of the mixture so spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cachekd.errors import ConfigError
from cachekd.objectives import unknown
from cachekd.types import Float32, Int64, TopKLogits

if TYPE_CHECKING:
    from cachekd.store.reader import Cache

TAILS = ("flat", "unigram")
Float64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What is asked: a weight for each cache by name, and the model of their tails."""

    weights: Mapping[str, float]
    tail: str = "flat"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixing:
    """A mixture of opened caches.

    Attributes:
        members: places of the caches.
        weights: float64 [M], adding up to 1.
        shape: b, how a tail is spread, float64 [V].
        unigram: mean of the members' unigrams, float32 [V]; None where none holds one.
    """

    members: tuple[int, ...]
    weights: Float64
    shape: Float64
    unigram: Float32 | None


def mixing(mixture: Mixture, caches: Sequence[Cache]) -> Mixing:
    """A mixture over these caches.

    Raises:
        ConfigError: names, weights or tail are wrong, or a cache cannot be mixed.
    """
    names = [cache.name for cache in caches]
    _check(mixture, names)
    for cache in caches:
        kind = cache.identity.capture["selection"]["kind"]
        if "sampled" in kind:
            raise ConfigError(
                f"mixture: cache {cache.name!r} holds sampled entries ({kind}), whose weights are "
                "estimates and no probabilities of their tokens; a union of supports would count "
                "them as exact. Capture again with --logits-selection top_p"
            )
    weights = np.array([mixture.weights[name] for name in names], np.float64)
    weights /= weights.sum()
    held = [
        (w, u) for w, u in zip(weights, (c.unigram() for c in caches), strict=True) if u is not None
    ]
    unigram = sum(w * u for w, u in held) / sum(w for w, _ in held) if held else None
    vocab = int(caches[0].identity.source["vocab_size"])
    shape = np.ones(vocab)
    if mixture.tail == "unigram":
        if unigram is None:
            raise ConfigError(
                "mixture_tail unigram: no cache holds a unigram; they were captured with a codec "
                "that learns none. Give one to them with cachekd merge --recode, or mix with "
                "--mixture-tail flat"
            )
        shape = np.sqrt(np.maximum(unigram, 1e-30))
    return Mixing(
        members=tuple(range(len(caches))),
        weights=weights,
        shape=shape,
        unigram=None if unigram is None else np.asarray(unigram, np.float32),
    )


def mixed_logits(parts: Sequence[TopKLogits], mixing: Mixing) -> TopKLogits:
    """Targets of one document, mixed; a row that a member did not capture is not captured."""
    rows, vocab = parts[0].rows, len(mixing.shape)
    counts = [np.diff(part.offsets) for part in parts]
    row_n = [np.repeat(np.arange(rows), count) for count in counts]
    captured = np.all([count > 0 for count in counts], 0)
    keys = [row * vocab + part.ids for row, part in zip(row_n, parts, strict=True)]
    union = np.unique(np.concatenate(keys))
    union = union[captured[union // vocab]]
    at_row, at_id = np.divmod(union, vocab)
    mass_n, density_N = np.zeros(len(union)), np.zeros(rows)
    for weight, part, row, key in zip(mixing.weights, parts, row_n, keys, strict=True):
        head_n, own_N = _decoded(part, row, mixing.shape)
        value_n = own_N[at_row] * mixing.shape[at_id]
        kept = captured[row]
        value_n[np.searchsorted(union, key[kept])] = head_n[kept]
        mass_n += weight * value_n
        density_N += weight * own_N
    tail_N = np.where(captured, density_N * _outside(at_row, at_id, rows, mixing.shape), 1.0)
    with np.errstate(divide="ignore"):
        logprobs, log_tail_N = np.log(mass_n).astype(np.float32), np.log(tail_N)
    order = np.lexsort((at_id, -logprobs, at_row))
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(np.bincount(at_row, minlength=rows))]),
        ids=at_id[order].astype(np.int32),
        logprobs=logprobs[order],
        weights=None,
        tail=log_tail_N.astype(np.float32),
        next_logprob=_log_mean([part.next_logprob for part in parts], mixing.weights),
        lognorm={1.0: np.zeros(rows, np.float32)},
        entropy=_entropy(mass_n, at_row, at_id, tail_N, mixing.shape),
        vocab_size=vocab,
    )


def any_of(marks: Sequence[Mask | None], rows: int) -> Mask | None:
    """Rows that any member marks, bool [L-1]; None where none does."""
    held = [mark for mark in marks if mark is not None]
    return np.any([np.zeros(rows, np.bool_), *held], axis=0) if held else None


def _check(mixture: Mixture, names: Sequence[str]) -> None:
    if mixture.tail not in TAILS:
        raise ConfigError(f"mixture_tail: expected one of {', '.join(TAILS)}; got {mixture.tail!r}")
    check_weights("mixture", mixture.weights, names)
    missing = [name for name in names if name not in mixture.weights]
    if missing or len(names) < 2:
        raise ConfigError(
            "mixture: expected a weight for each of two or more caches; found "
            f"{dict(mixture.weights)} for {', '.join(map(repr, names))}"
        )


def check_weights(what: str, weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Refuse weights of no cache, or that are not above 0.

    Raises:
        ConfigError: names the cache.
    """
    for name, weight in weights.items():
        if name not in names:
            raise ConfigError(f"{what}: " + unknown(name, list(names), "the name of a cache"))
        if not 0 < weight < math.inf:
            raise ConfigError(f"{what}: expected {name} to be a number above 0; found {weight}")


def _decoded(part: TopKLogits, row_n: Int64, shape: Float64) -> tuple[Float64, Float64]:
    """Probabilities of a teacher's head [n], and of a unit of b outside of it [N].

    By the decode law the tail is authoritative and the head is scaled to the rest; without a token
    outside the head there is no tail.
    """
    rest_N = _outside(row_n, part.ids, part.rows, shape)
    tail_N = np.where(rest_N > 0, np.exp(part.tail.astype(np.float64)), 0.0)
    head_n = np.exp(part.logprobs.astype(np.float64))
    sums_N = np.bincount(row_n, head_n, part.rows)
    scale_N = np.divide(1 - tail_N, sums_N, out=np.zeros_like(sums_N), where=sums_N > 0)
    own_N = np.divide(tail_N, rest_N, out=np.zeros_like(tail_N), where=rest_N > 0)
    return head_n * scale_N[row_n], own_N


def _outside(row_n: Int64, ids: NDArray[np.integer], rows: int, shape: Float64) -> Float64:
    """Sum of b over the tokens of each row that are no entries, [N]."""
    count_N = len(shape) - np.bincount(row_n, minlength=rows)
    rest_N = shape.sum() - np.bincount(row_n, shape[ids], rows)
    # Where few tokens are left the difference is rounding; it is at least this.
    return np.where(count_N > 0, np.maximum(rest_N, count_N * shape.min()), 0.0)


def _log_mean(logs: Sequence[Float32], weights: Float64) -> Float32:
    """Log of the weighted mean of probabilities."""
    parts = [
        np.log(weight) + log_N.astype(np.float64)
        for weight, log_N in zip(weights, logs, strict=True)
    ]
    mean_N: Float32 = np.logaddexp.reduce(parts, 0).astype(np.float32)
    return mean_N


def _entropy(mass_n: Float64, row_n: Int64, ids: Int64, tail_N: Float64, shape: Float64) -> Float32:
    """Entropy of each row, its tail spread like b over the tokens that are no entries, [N]."""
    log_n = np.log(np.maximum(mass_n, np.finfo(np.float64).tiny))
    head_N = -np.bincount(row_n, mass_n * log_n, len(tail_N))
    weighed = shape * np.log(shape)
    rest_N = _outside(row_n, ids, len(tail_N), shape)
    sum_N = weighed.sum() - np.bincount(row_n, weighed[ids], len(tail_N))
    safe_N = np.where(rest_N > 0, rest_N, 1.0)
    count_N = np.maximum(len(shape) - np.bincount(row_n, minlength=len(tail_N)), 1)
    inside_N = np.clip(np.log(safe_N) - sum_N / safe_N, 0, np.log(count_N))
    log_tail_N = np.log(np.maximum(tail_N, np.finfo(np.float64).tiny))
    spread_N = np.where(tail_N < 1, tail_N * (inside_N - log_tail_N), 0.0)
    return (head_N + spread_N).astype(np.float32)

"""Made-up targets of every kind that a codec may meet, and what must come back of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from cachekd.codecs import Codec, CodecHeader, Encoded
from cachekd.codecs._priors import Prior
from cachekd.types import TopKLogits

DIGEST = "d" * 64
SCALARS = ("tail", "next_logprob", "entropy")
STEPS = {"float16": None, "float32": None, "sqrt": 1 / 24, "log": 1 / 8}


def header(vocab: int, values: str = "sqrt", **changes: Any) -> CodecHeader:
    """A header of the packed codec."""
    fields = {"temperatures": (2.0,), "step": STEPS[values], **changes}
    return CodecHeader(codec="packed", vocab_size=vocab, values=values, **fields)


def made_up(head: CodecHeader, counts: list[int], seed: int = 0, style: str = "zipf") -> TopKLogits:
    """Targets with these numbers of entries a row, of the kind that the header names.

    Styles: zipf, a true distribution; equal, all entries of a row the same; extreme, the first is
    0 and others as low as float32 goes; close, tiny differences.
    """
    rng = np.random.default_rng(seed)
    rows = [_row(rng, head, min(k, head.vocab_size), style) for k in counts]
    counts_R = np.array([len(ids) for ids, *_ in rows])
    sampled = head.samples or head.tau
    scalars = {t: rng.normal(0, 3, len(rows)).astype(np.float32) for t in head.temperatures}
    captured = counts_R > 0
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(counts_R)]).astype(np.int64),
        ids=np.concatenate([row[0] for row in rows]).astype(np.int32),
        logprobs=np.concatenate([row[1] for row in rows]).astype(np.float32),
        weights=np.concatenate([row[2] for row in rows]).astype(np.float32) if sampled else None,
        tail=np.float32([row[3] for row in rows]),
        next_logprob=np.where(captured, -rng.exponential(3, len(rows)), 0).astype(np.float32),
        lognorm={1.0: np.zeros(len(rows), np.float32), **scalars},
        entropy=np.where(captured, rng.exponential(2, len(rows)), 0).astype(np.float32),
        vocab_size=head.vocab_size,
    )


def _row(rng: np.random.Generator, head: CodecHeader, k: int, style: str) -> tuple[Any, ...]:
    vocab = head.vocab_size
    ids = vocab - 1 - rng.permutation(min(vocab, 4 * k))[:k]
    if head.samples:
        draws = np.bincount(rng.integers(0, max(k, 1), head.samples if k else 0), minlength=k)
        order = np.argsort(-draws, kind="stable")
        ids, weights = ids[order][draws[order] > 0], draws[order][draws[order] > 0] / head.samples
        return ids, np.log(weights), weights, 0.0
    if k == 0:
        return ids, np.zeros(0), np.zeros(0), 0.0
    sampled = int(rng.integers(0, k + 1)) if head.tau else 0
    logs, tail = _head(rng, k - sampled, style, whole=k == vocab)
    logs = np.append(logs, np.full(sampled, np.log(head.tau or 1)))
    weights = np.append(np.zeros(k - sampled), np.full(sampled, head.tau))
    return ids, logs, weights, tail


def _head(rng: np.random.Generator, k: int, style: str, whole: bool) -> tuple[Any, float]:
    if k == 0:
        return np.zeros(0), 0.0
    p = np.sort(rng.pareto(0.9, k) + 1e-9)[::-1]
    mass = 1.0 if whole else float(rng.choice([0.999999, 0.9, 0.3, 0.01]))
    tail = -np.inf if whole else np.log1p(-mass)
    if style == "equal":
        p = np.ones(k)
    if style == "close":
        p = 1 + np.sort(rng.normal(0, 1e-3, k))[::-1]
    logs = np.log(p / p.sum() * mass)
    if style == "extreme":
        logs = -np.sort(rng.choice([0.0, 1e-7, 30.0, 1e4, 7e4, 3e38], k))
        logs[0] = 0.0
    return logs, tail


def entries(targets: TopKLogits, t: int) -> dict[int, tuple[float, float | None]]:
    """Log-prob and weight of each token of a row: there is no order among equal values."""
    span = slice(*targets.offsets[t : t + 2])
    ids, logs = targets.ids[span].tolist(), targets.logprobs[span].tolist()
    weights = [None] * len(ids) if targets.weights is None else targets.weights[span].tolist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, zip(logs, weights, strict=True), strict=True))


def assert_same(left: TopKLogits, right: TopKLogits) -> None:
    """Equal to the last bit, but for the order of entries of a row."""
    assert np.array_equal(left.offsets, right.offsets)
    for name in ("tail", "next_logprob", "entropy"):
        assert getattr(left, name).tobytes() == getattr(right, name).tobytes(), name
    assert left.lognorm.keys() == right.lognorm.keys()
    assert all(left.lognorm[t].tobytes() == right.lognorm[t].tobytes() for t in left.lognorm)
    assert left.vocab_size == right.vocab_size
    assert all(entries(left, t) == entries(right, t) for t in range(left.rows))


def clusters(vocab: int, kinds: int, rows: int, k: int = 24, seed: int = 0) -> list[TopKLogits]:
    """Records whose rows are noisy copies of a few distributions with tokens of their own."""
    rng = np.random.default_rng(seed)
    head = header(vocab, temperatures=())
    tokens = rng.permutation(vocab)[: kinds * k].reshape(kinds, k)
    records = []
    for start in range(0, rows, 64):
        count = min(64, rows - start)
        record = made_up(head, [k] * count, seed + start)
        which = rng.integers(0, kinds, count)
        records.append(replace(record, ids=tokens[which].ravel().astype(np.int32)))
    return records


def prior_of(vocab: int, contexts: int, width: int, seed: int = 0) -> Prior:
    """A random unigram, and lists of random tokens."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(vocab, 0.5)) + 1e-6
    lists = [rng.permutation(vocab)[: min(width, vocab)] for _ in range(contexts)]
    listed = np.array(lists, np.int32) if lists else np.zeros((0, 0), np.int32)
    return Prior(np.log(p / p.sum()).astype(np.float16), listed)


def encoded(codec: Codec, record: TopKLogits) -> Encoded:
    """A record as a shard keeps it."""
    return codec.encode(record), record.rows, len(record.ids)


def rows_of(targets: Any) -> dict[str, Any]:
    """Targets of cachekd in the shape that the reference decoder gives."""
    starts = targets.offsets.tolist()
    cuts = list(pairwise(starts))
    return {
        "ids": [targets.ids[a:b].tolist() for a, b in cuts],
        "logprobs": [targets.logprobs[a:b].tolist() for a, b in cuts],
        "weights": targets.weights
        if targets.weights is None
        else [targets.weights[a:b].tolist() for a, b in cuts],
        **{name: getattr(targets, name).tolist() for name in SCALARS},
        "lognorm": {t: values.tolist() for t, values in targets.lognorm.items()},
    }


def assert_agree(left: dict[str, Any], right: dict[str, Any], values: str) -> None:
    """Ids and exact values to the bit; levels to what float32 and another logarithm can differ."""
    assert left["ids"] == right["ids"] and left.keys() == right.keys()
    drawn = left["weights"] is not None  # then scalars are in fixed point
    tolerance = 0.0 if values in ("float16", "float32") and not drawn else 3e-6
    for name in ("tail", "next_logprob", "entropy"):
        assert np.allclose(left[name], right[name], tolerance, tolerance, equal_nan=True), name
    assert left["lognorm"].keys() == right["lognorm"].keys()
    for t, norms in left["lognorm"].items():
        assert np.allclose(norms, right["lognorm"][t], tolerance, tolerance, equal_nan=True)
    assert (left["weights"] is None) == (right["weights"] is None)
    for name in ("logprobs", "weights"):
        if left["weights"] is not None:
            tolerance = 3e-6  # logarithms of weights
        for mine, theirs in zip(left[name] or [], right[name] or [], strict=True):
            assert np.allclose(mine, theirs, tolerance, tolerance, equal_nan=True), name

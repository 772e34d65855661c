"""Sampled entries: exact marginals, no bias, the same draws whatever the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cachekd.teachers import Selection
from cachekd.teachers._assembly import Tile, select
from cachekd.teachers._sampling import row_uniforms, systematic
from cachekd.teachers.dummy import DummyTeacher, dummy_logits
from cachekd.types import TopKLogits


def kind(vocab: int, k: int = 0, tau: float = 0.0, samples: int = 0, seed: int = 0) -> Selection:
    return Selection(
        k=k,
        p=1.0,
        min_k=1,
        vocab_size=vocab,
        temperatures=(2.0,),
        tau=tau,
        samples=samples,
        seed=seed,
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of each row in float64."""
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def draw(logits: np.ndarray, selection: Selection, uniform: np.ndarray) -> Tile:
    rows = np.zeros(len(logits), dtype=np.int64)
    return select(
        torch.from_numpy(logits), torch.from_numpy(rows), selection, torch.from_numpy(uniform)
    )


def estimates(tile: Tile, vocab: int) -> np.ndarray:
    """What each row's entries say of p: the exact head, and the weights of the samples."""
    assert tile.weights is not None
    found = np.zeros((len(tile.counts), vocab))
    rows = np.repeat(np.arange(len(tile.counts)), tile.counts)
    assert len(np.unique(rows * vocab + tile.ids)) == len(rows), "no id stands twice in a row"
    found[rows, tile.ids] = np.where(tile.weights > 0, tile.weights, np.exp(tile.logprobs))
    return found


def expected_sample(p: np.ndarray, selection: Selection, uniform: float) -> dict[int, float]:
    """Ids and weights of one row's samples, by the words of `Selection`, in float64."""
    if selection.samples:
        at = (uniform + np.arange(selection.samples)) / selection.samples
        ids = np.searchsorted(np.cumsum(p) / p.sum(), at, side="right")
        found, times = np.unique(ids, return_counts=True)
        return dict(zip(found.tolist(), (times / selection.samples).tolist(), strict=True))
    order = np.argsort(-p, kind="stable")
    head = [v for v in order[: selection.k] if p[v] >= selection.tau]
    sure = {int(v): p[v] for v in order if p[v] >= selection.tau and v not in head}
    mass = p.copy()
    mass[[*head, *sure]] = 0
    ends = np.cumsum(mass / selection.tau)
    at = uniform + np.arange(int(1 / selection.tau) + 1)
    ids = np.searchsorted(ends, at[at < ends[-1]], side="right")
    return dict(sorted((sure | dict.fromkeys(ids.tolist(), selection.tau)).items()))


KINDS = [
    kind(5000, k=40, tau=0.03),
    kind(5000, k=3, tau=0.01),
    kind(5000, k=64, tau=0.0005),
    kind(5000, samples=50),
    kind(5000, samples=1),
]


@pytest.mark.parametrize("selection", KINDS)
def test_a_draw_is_what_a_dense_reference_says(selection: Selection) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, (24, 5000)).astype(np.float32)
    uniform = rng.random(24)
    tile = draw(logits, selection, uniform)
    assert tile.weights is not None
    table, place, neighbours = softmax(logits), 0, 0
    for p, count, u, tail in zip(table, tile.counts, uniform, tile.scalars[0], strict=True):
        part = slice(place, place + count)
        ids, logprobs, weights = tile.ids[part], tile.logprobs[part], tile.weights[part]
        place += count
        head = int((weights == 0).sum())
        assert (weights[:head] == 0).all(), "the head comes first"
        assert (np.diff(logprobs[:head]) <= 0).all() and (np.diff(ids[head:]) > 0).all()
        assert (p[ids[:head]] >= selection.tau * (1 - 1e-6)).all() and head <= selection.k
        np.testing.assert_allclose(logprobs[:head], np.log(p[ids[:head]]), atol=2e-6)
        want = expected_sample(p, selection, u)
        if ids[head:].tolist() != list(want):  # a point on an edge to float32: the neighbour
            neighbours += 1
            assert len(set(ids[head:].tolist()) ^ set(want)) <= 2
        else:
            np.testing.assert_allclose(weights[head:], list(want.values()), rtol=1e-5)
        np.testing.assert_allclose(logprobs[head:], np.log(weights[head:]), atol=1e-6)
        rest = np.delete(p, ids[:head]).sum()
        np.testing.assert_allclose(tail, np.log(rest) if head else 0.0, atol=1e-5)
    assert neighbours <= 2


@pytest.mark.parametrize(
    "selection",
    [kind(37, k=8, tau=0.06), kind(37, k=2, tau=0.02), kind(37, samples=7)],
)
def test_inclusion_has_the_right_probability_for_every_token(selection: Selection) -> None:
    """Integrated over u: the mean over a fine grid is exact to the width of one step of it."""
    p = softmax(np.random.default_rng(1).normal(0, 1.5, (1, 37)).astype(np.float32))
    steps = 20_000
    uniform = (np.arange(steps) + 0.5) / steps
    logits = np.repeat(np.log(p).astype(np.float32), steps, axis=0)
    found = estimates(draw(logits, selection, uniform), 37)
    # Each token's estimate changes at two values of u at most (for every draw that can hit it).
    hits = max(selection.samples, 1)
    assert np.abs(found.mean(axis=0) - p[0]).max() < 2 * hits / steps
    if selection.tau:
        want = np.minimum(1, p[0] / selection.tau)
        assert np.abs((found > 0).mean(axis=0) - want).max() < 2 / steps + 1e-6


@pytest.mark.parametrize("selection", [kind(3000, k=30, tau=0.02), kind(3000, samples=50)])
def test_many_seeds_have_no_bias_and_less_variance_than_independent_draws(
    selection: Selection,
) -> None:
    ids = np.int32([5, 9])
    p = softmax(dummy_logits(ids, 3000)[:1] * 2)[0]
    seeds = 4000
    uniform = np.concatenate([row_uniforms(seed, ids) for seed in range(seeds)])
    logits = np.repeat((dummy_logits(ids, 3000)[:1] * 2), seeds, axis=0)
    found = np.zeros(3000)
    squares = 0.0
    for start in range(0, seeds, 500):
        part = estimates(draw(logits[start : start + 500], selection, uniform[start:][:500]), 3000)
        found += part.sum(axis=0)
        squares += ((part - p) ** 2).sum()
    weight = selection.tau or 1 / selection.samples
    # A kept or dropped token of weight w has variance p (w - p) at most; five deviations of each.
    deviation = np.sqrt(np.maximum(p * (weight - p), 0) / seeds) if selection.tau else None
    if deviation is None:  # counts are the integers beside N p: variance at most 1 / 4 of a count
        share = np.modf(p / weight)[0]
        deviation = weight * np.sqrt(share * (1 - share) / seeds)
    # Rare tokens have no normal distribution: three hits more are allowed. Groups of 100 have one.
    gap = found / seeds - p
    assert (np.abs(gap) <= 5 * deviation + 3 * weight / seeds).all()
    groups = np.abs(gap.reshape(-1, 100).sum(axis=1))
    assert (groups <= 5 * np.sqrt((deviation**2).reshape(-1, 100).sum(axis=1)) + 1e-6).all()
    independent = (1 - (p**2).sum()) * weight
    assert squares / seeds < independent


def test_a_large_vocabulary_is_summed_without_drift() -> None:
    """150k tokens of nearly equal mass: each point falls where float64 says, to the last token."""
    vocab = 151_936
    logits = np.random.default_rng(2).normal(0, 0.01, (1, vocab)).astype(np.float32)
    p = softmax(logits)[0]
    ends = np.cumsum(p)
    for u in (0.0, 0.25, 0.999999):
        tile = draw(logits, kind(vocab, samples=1000), np.array([u]))
        at = (u + np.arange(1000)) / 1000
        want = np.searchsorted(ends, at, side="right")
        assert len(tile.ids) == 1000
        # a neighbour where the point lies within 1e-8 of an edge: a part in 1000 of a token's mass
        off = tile.ids != want
        assert off.sum() <= 3 and (np.abs(tile.ids - want) <= 1).all()


def test_points_stay_on_tokens_that_have_mass() -> None:
    mass = torch.zeros(2, 3, 4)
    mass[0, 1, 2], mass[1, 0, 0], mass[1, 2, 3] = 1.0, 0.25, 0.75
    for u in (0.0, 0.5, 1 - 2.0**-32):
        found = systematic(
            mass,
            mass.sum(-1),
            torch.full((2,), u, dtype=torch.float64),
            torch.full((2,), 0.25, dtype=torch.float64),
            6,
        )
        assert found.tolist() == [[6, 6, 6, 6, -1, -1], [0, 11, 11, 11, -1, -1]]


def test_uniforms_are_a_function_of_seed_tokens_and_row_alone() -> None:
    ids = np.int32([3, 1, 4, 1, 5])
    first = row_uniforms(7, ids)
    assert first.shape == (4,) and (first >= 0).all() and (first < 1).all()
    assert first.tobytes() == row_uniforms(7, ids).tobytes()
    assert len({row_uniforms(s, ids)[0] for s in (-1, 0, 7, 8)}) == 4
    other = ids.copy()
    other[-1] = 9
    assert row_uniforms(7, other)[0] != first[0]
    written = [0.542508735, 0.819844949, 0.452450510, 0.076969076]
    np.testing.assert_allclose(row_uniforms(0, ids), written, atol=1e-6)


def same(left: TopKLogits, right: TopKLogits) -> bool:
    names = ("offsets", "ids", "logprobs", "weights", "tail", "next_logprob", "entropy")
    return all(getattr(left, n).tobytes() == getattr(right, n).tobytes() for n in names)


@pytest.mark.parametrize("selection", [kind(300, k=20, tau=0.04, seed=3), kind(300, samples=20)])
def test_batches_and_order_do_not_change_a_draw(selection: Selection) -> None:
    teacher, rng = DummyTeacher(), np.random.default_rng(0)
    documents = [rng.integers(0, 300, n).astype(np.int32) for n in (9, 2, 14, 5)]
    together = teacher.score(documents, 14, selection, [None] * 4)
    for ids, targets in zip(documents[::-1], together[::-1], strict=True):
        (alone,) = teacher.score([ids], 20, selection, [None])
        assert same(alone, targets)
    rows = np.zeros(8, dtype=bool)
    rows[[2, 5]] = True
    (some,) = teacher.score(documents[:1], 9, selection, [rows])
    assert np.diff(some.offsets)[rows].min() > 0 and np.diff(some.offsets)[~rows].max() == 0
    part = slice(*together[0].offsets[5:7])
    assert some.ids[some.offsets[5] :].tobytes() == together[0].ids[part].tobytes()
    (other,) = teacher.score(documents[:1], 9, replace(selection, seed=4), [None])
    assert other.ids.tobytes() != together[0].ids.tobytes()


def test_a_row_is_never_without_entries() -> None:
    """A row without entries means "not captured", so a flat row under tau must hold some."""
    logits = np.zeros((50, 400), dtype=np.float32)
    tile = draw(logits, kind(400, k=64, tau=0.3), np.random.default_rng(0).random(50))
    assert tile.counts.min() >= 3 and tile.counts.max() <= 4
    assert (tile.scalars[0] == 0).all(), "no head: all of the mass is tail"

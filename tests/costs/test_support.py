"""Sparse targets from dense rows: the same as a teacher's own, and draws without bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cachekd.costs.support import keep, variance
from cachekd.evaluation.dense import DenseRows, dense_rows
from cachekd.teachers import Selection
from cachekd.teachers.dummy import DummyTeacher
from cachekd.types import TopKLogits

VOCAB = 60
IDS = np.array([7, 2, 50, 11, 3, 3, 8, 21, 40], np.int32)
BASE = Selection(k=VOCAB, p=1.0, min_k=1, vocab_size=VOCAB, temperatures=(2.0,))


@pytest.fixture
def tile() -> DenseRows:
    (found,) = dense_rows(
        DummyTeacher(),
        [IDS],
        len(IDS),
        vocab_size=VOCAB,
        temperatures=(2.0,),
        wanted=[None],
        best=VOCAB,
    )
    return found


def kept(tile: DenseRows, seed: int = 0, **changes: float) -> TopKLogits:
    return keep(tile, replace(BASE, **changes), np.random.default_rng(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"k": 5}, {"p": 0.8}, {"p": 0.5, "min_k": 4}, {"k": 3, "p": 0.99}, {}]
)
def test_heads_are_those_of_the_teacher(tile: DenseRows, changes: dict[str, float]) -> None:
    chosen = replace(BASE, **changes)  # type: ignore[arg-type]
    (own,) = DummyTeacher().score([IDS], len(IDS), chosen, [None])
    found = kept(tile, **changes)
    assert np.array_equal(found.offsets, own.offsets)
    assert np.array_equal(found.ids, own.ids)
    assert found.logprobs == pytest.approx(own.logprobs, abs=1e-5)
    assert np.exp(found.tail) == pytest.approx(np.exp(own.tail), abs=1e-6)
    assert np.array_equal(found.next_logprob, own.next_logprob)
    assert np.array_equal(found.lognorm[2.0], own.lognorm[2.0])


def test_a_floor_keeps_what_is_above_it_and_always_the_best(tile: DenseRows) -> None:
    found = kept(tile, min_prob=0.9)
    expected = np.maximum((tile.p_NV >= 0.9).sum(1), 1)
    assert np.diff(found.offsets).tolist() == expected.tolist()


@pytest.mark.parametrize("changes", [{"tau": 0.05}, {"k": 0, "samples": 25}])
def test_draws_have_no_bias_and_the_variance_that_is_said(
    tile: DenseRows, changes: dict[str, float]
) -> None:
    total, squares, times = np.zeros_like(tile.p_NV), np.zeros(len(tile.p_NV)), 1500
    for seed in range(times):
        found = kept(tile, seed, **changes)
        row_n = np.repeat(np.arange(found.rows), np.diff(found.offsets))
        estimate = np.zeros_like(tile.p_NV)
        estimate[row_n, found.ids] = np.exp(found.logprobs.astype(np.float64))
        total += estimate
        squares += ((estimate - tile.p_NV) ** 2).sum(1)
    expected = variance(tile, replace(BASE, **changes))  # type: ignore[arg-type]
    assert squares / times == pytest.approx(expected, rel=0.15)
    assert np.abs(total / times - tile.p_NV).max() < 6 * np.sqrt(expected.max() / times)


def test_weights_tell_the_head_from_draws(tile: DenseRows) -> None:
    found = kept(tile, tau=0.05)
    assert found.weights is not None
    head = found.weights == 0
    p = tile.p_NV[np.repeat(np.arange(found.rows), np.diff(found.offsets)), found.ids]
    assert (p[head] >= 0.05).all() and (p[~head] < 0.05).all()
    assert found.weights[~head] == pytest.approx(0.05)
    draws = kept(tile, k=0, samples=25)
    assert draws.weights is not None
    sums = np.add.reduceat(draws.weights, draws.offsets[:-1])
    assert sums == pytest.approx(1) and (draws.tail == 0).all()

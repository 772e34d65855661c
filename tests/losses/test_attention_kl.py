"""The chunked loss of ragged rows against whole maps in float64: values, gradients, expectation."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from cachekd.losses.attention import HeadGroups, map_heads
from cachekd.losses.attention_kl import ScoreRule, TeacherRows, attention_kl, log_maps
from cachekd.losses.reference import dense_attention_kl, dense_attention_maps

HEADS, KEY_HEADS, LENGTH, WIDTH = 4, 2, 11, 6
RULE = ScoreRule(scaling=0.7)
ONE_TO_ONE = map_heads(HEADS, HEADS, range(HEADS))


def _student(heads: int = HEADS, key_heads: int = KEY_HEADS, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, LENGTH, WIDTH), (key_heads, LENGTH, WIDTH))
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    )


def _teacher(heads: int = HEADS, window: int | None = None, seed: int = 1) -> Tensor:
    query, key = _student(heads, heads, seed)
    return dense_attention_maps(query.detach(), key.detach(), 0.9, window)


def _best(maps_HTT: Tensor, most: int) -> Tensor:
    """The first key of each row and the most probable others, as a capture keeps them."""
    ranked = maps_HTT.clone()
    ranked[..., 0] = 2
    threshold = ranked.topk(most, -1).values[..., -1:]
    return (ranked >= threshold).tril()


def _ragged(maps_HTT: Tensor, kept_HTT: Tensor, rows: Any, weights: Tensor) -> TeacherRows:
    maps_HRT, kept_HRT = maps_HTT[:, rows], kept_HTT[:, rows]
    counts = kept_HRT.sum(-1).flatten()
    return TeacherRows(
        positions=torch.tensor(rows),
        weights=weights[rows],
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        keys=kept_HRT.nonzero()[:, -1].int(),
        probs=maps_HRT[kept_HRT],
        rest=maps_HRT.masked_fill(kept_HRT, 0).sum(-1),
    )


def _every(maps_HTT: Tensor) -> Tensor:
    return torch.ones_like(maps_HTT, dtype=torch.bool).tril()


def _weights(seed: int = 2) -> Tensor:
    return torch.rand(LENGTH, generator=torch.Generator().manual_seed(seed)).double() + 0.5


def _assert_equal(found: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    """Values and gradients; the rows that come in are whole, so gradients reach all queries."""
    assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(3 * found, leaves),
        torch.autograd.grad(3 * expected, leaves, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3 * HEADS * LENGTH, 1 << 22])
@pytest.mark.parametrize("most", [3, LENGTH])
@pytest.mark.parametrize(
    "rule", [RULE, replace(RULE, softcap=1.5), replace(RULE, window=4)], ids=lambda r: str(r)
)
def test_rows_equal_whole_maps(chunk: int, most: int, rule: ScoreRule) -> None:
    query, key = _student()
    teacher, weights = _teacher(window=rule.window), _weights()
    kept = _best(teacher, most) if most < LENGTH else _every(teacher)
    rows = [0, 1, 4, 5, 8, 10]
    taught = _ragged(teacher, kept, rows, weights)
    found = attention_kl(query[:, rows], key, taught, rule, ONE_TO_ONE, chunk=chunk)
    student = dense_attention_maps(query, key, rule.scaling, rule.window, rule.softcap)
    only = torch.zeros(LENGTH).double().index_copy(0, torch.tensor(rows), weights[rows])
    _assert_equal(found, dense_attention_kl(teacher, student, only, kept), (query, key))


def test_all_keys_give_the_plain_kl() -> None:
    query, key = _student()
    teacher, weights = _teacher(), _weights()
    taught = _ragged(teacher, _every(teacher), list(range(LENGTH)), weights)
    expected = dense_attention_kl(teacher, dense_attention_maps(query, key, 0.7), weights)
    _assert_equal(attention_kl(query, key, taught, RULE, ONE_TO_ONE), expected, (query, key))


@pytest.mark.parametrize(("own", "theirs"), [(4, 2), (2, 4), (4, 3), (6, 6)])
def test_heads_of_unequal_number_are_averaged_as_probabilities(own: int, theirs: int) -> None:
    query, key = _student(own, 2)
    teacher, weights = _teacher(theirs), _weights()
    groups = map_heads(own, theirs, range(theirs))
    taught = _ragged(teacher, _every(teacher), list(range(LENGTH)), weights)
    student = dense_attention_maps(query, key, 0.7)
    means = [
        torch.stack([maps[list(group)].mean(0) for group in side])
        for maps, side in ((teacher, groups.teacher), (student, groups.student))
    ]
    expected = dense_attention_kl(*means, weights)
    _assert_equal(attention_kl(query, key, taught, RULE, groups), expected, (query, key))


def test_some_heads_and_heads_in_another_order() -> None:
    query, key = _student()
    teacher, weights = _teacher(), _weights()
    student = dense_attention_maps(query, key, 0.7)
    for heads, places in (((3, 1), (0, 2)), ((1, 0, 3, 2), (0, 1, 3, 2))):
        groups = HeadGroups(
            student=tuple((head,) for head in heads), teacher=tuple((place,) for place in places)
        )
        taught = _ragged(teacher, _best(teacher, 4), list(range(LENGTH)), weights)
        found = attention_kl(query, key, taught, RULE, groups)
        kept = _best(teacher, 4)[list(places)]
        sides = teacher[list(places)], student[list(heads)]
        _assert_equal(found, dense_attention_kl(*sides, weights, kept), (query, key))


def test_averaged_places_tell_apart_the_keys_that_all_of_them_kept() -> None:
    query, key = _student(2, 1)
    teacher, weights = _teacher(4), _weights()
    kept = _best(teacher, 5)
    groups = map_heads(2, 4, range(4))
    taught = _ragged(teacher, kept, list(range(LENGTH)), weights)
    shared = torch.stack([kept[:2].all(0), kept[2:].all(0)])
    assert (shared.sum() < kept[::2].sum()) and shared.any()
    means = torch.stack([teacher[:2].mean(0), teacher[2:].mean(0)])
    expected = dense_attention_kl(means, dense_attention_maps(query, key, 0.7), weights, shared)
    _assert_equal(attention_kl(query, key, taught, RULE, groups), expected, (query, key))


def test_the_mean_of_heads_of_a_capture() -> None:
    query, key = _student()
    teacher, weights = _teacher().mean(0, keepdim=True), _weights()
    kept = _best(teacher, 4)
    taught = _ragged(teacher, kept, list(range(LENGTH)), weights)
    student = dense_attention_maps(query, key, 0.7).mean(0, keepdim=True)
    found = attention_kl(query, key, taught, RULE, map_heads(HEADS, 8, (-1,)))
    _assert_equal(found, dense_attention_kl(teacher, student, weights, kept), (query, key))


@pytest.mark.parametrize("most", [3, LENGTH])
@pytest.mark.parametrize("groups", [ONE_TO_ONE, map_heads(HEADS, 3, range(3))], ids=["1:1", "mean"])
def test_nothing_is_learned_from_oneself(most: int, groups: HeadGroups) -> None:
    query, key = _student()
    maps = dense_attention_maps(query, key, 0.7).detach()
    if len(groups.teacher) == 1:
        maps = maps.mean(0, keepdim=True).expand(3, -1, -1)
    taught = _ragged(maps, _best(maps, most), list(range(LENGTH)), _weights())
    loss = attention_kl(query, key, taught, RULE, groups)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss, (query, key)))


def test_rows_that_are_drawn_are_unbiased() -> None:
    """All subsets of two of three groups of rows, weighed by the inverse of their probability."""
    query, key = _student()
    teacher, weights = _teacher(), _weights()
    kept = _best(teacher, 3)

    def loss(rows: list[int], scale: float) -> Tensor:
        taught = _ragged(teacher, kept, rows, weights * scale)
        return attention_kl(query[:, rows], key, taught, RULE, ONE_TO_ONE)

    parts = [list(range(start, LENGTH, 3)) for start in range(3)]
    draws = [loss(sorted(a + b), 1.5) for a, b in combinations(parts, 2)]
    _assert_equal(torch.stack(draws).mean(), loss(list(range(LENGTH)), 1.0), (query, key))


def test_a_window_rescales_a_teacher_that_looks_further() -> None:
    query, key = _student()
    teacher, weights = _teacher(), _weights()
    window = 3
    seen = _every(teacher) & ~_every(teacher).tril(-window)
    inside = teacher * seen / (teacher * seen).sum(-1, keepdim=True)
    rule = replace(RULE, window=window)
    taught = _ragged(teacher, _every(teacher), list(range(LENGTH)), weights)
    student = dense_attention_maps(query, key, 0.7, window)
    expected = dense_attention_kl(inside, student, weights)
    _assert_equal(attention_kl(query, key, taught, rule, ONE_TO_ONE), expected, (query, key))
    blind = _ragged(teacher, _best(teacher, 1), [LENGTH - 1], weights)  # keeps key 0 alone
    blind = replace(blind, rest=torch.zeros_like(blind.rest))
    alone = attention_kl(query[:, -1:], key, blind, rule, ONE_TO_ONE)
    assert alone.item() == 0 and all(g.isfinite().all() for g in torch.autograd.grad(alone, key))


def test_half_precision_is_scored_in_float32() -> None:
    query, key = (4 * side.detach().bfloat16() for side in _student())
    query.requires_grad_()
    teacher, weights = _teacher(), _weights()
    taught = _ragged(teacher, _every(teacher), list(range(LENGTH)), weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_kl(query, key, taught, RULE, ONE_TO_ONE)
    expected = dense_attention_kl(teacher, dense_attention_maps(query, key, 0.7), weights)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, query)
    assert gradient.dtype == torch.bfloat16
    (true,) = torch.autograd.grad(expected, query)
    torch.testing.assert_close(gradient, true, rtol=2e-2, atol=1e-3)


def test_scores_far_apart_stay_finite() -> None:
    query, key = (80 * side.detach().float() for side in _student())
    maps = log_maps(query, key, torch.arange(LENGTH), RULE)
    assert (maps.exp().sum(-1) - 1).abs().max() < 1e-5
    taught = _ragged(_teacher(), _every(_teacher()), list(range(LENGTH)), _weights())
    loss = attention_kl(query.requires_grad_(), key, taught, RULE, ONE_TO_ONE)
    assert loss.isfinite() and loss > 1000
    assert torch.autograd.grad(loss, query)[0].isfinite().all()


def test_nothing_of_the_size_of_a_map_waits_for_the_backward_pass() -> None:
    query, key = _student()
    taught = _ragged(_teacher(), _every(_teacher()), list(range(LENGTH)), _weights())
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention_kl(query, key, taught, RULE, ONE_TO_ONE)
    assert [tensor.shape for tensor in saved] == [query.shape, key.shape]

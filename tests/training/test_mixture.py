"""Mixtures of teachers at the same positions, against dense mixtures in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import VOCAB, FakeCache, documents, record, sparse, topk_logits, without_targets
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.errors import ConfigError, DataError
from cachekd.losses.targets import decode_targets
from cachekd.objectives import Needs
from cachekd.store.shards import impossible
from cachekd.training import checks
from cachekd.training.collate import collate_targets
from cachekd.training.loader import CacheDataset
from cachekd.training.mixture import Mixing, Mixture, mixed_logits
from cachekd.training.order import Order
from cachekd.types import TopKLogits

ROWS = 7


def _mixing(weights: list[float], unigram: Any = None) -> Mixing:
    shape = np.ones(VOCAB) if unigram is None else np.sqrt(unigram)
    total = np.array(weights) / sum(weights)
    return Mixing(members=tuple(range(len(weights))), weights=total, shape=shape, unigram=unigram)


def _teachers(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        2.5 * torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]


def _dense(logits: TopKLogits, shape: Any) -> torch.Tensor:
    """The decoded distribution: the losses' own decoder, the tail spread by the shape."""
    item = replace(record(range(ROWS + 1)), logits=logits)
    targets = collate_targets([(item, np.arange(ROWS))])
    targets["logprobs"], targets["tail"] = targets["logprobs"].double(), targets["tail"].double()
    head_n, tail_N = decode_targets(targets, 1.0)
    row_n = torch.repeat_interleave(torch.arange(ROWS), targets["offsets"].diff())
    at = (row_n, targets["ids"])
    outside = torch.tensor(shape).repeat(ROWS, 1).index_put_(at, torch.zeros(()).double())
    p = tail_N.exp()[:, None] * outside / outside.sum(1, keepdim=True).clamp_min(1e-300)
    return p.index_put_(at, head_n.exp())


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 99),
    st.lists(st.floats(0.05, 5), min_size=2, max_size=3),
    st.lists(st.sampled_from([0.3, 0.8, 0.999, 1.0]), min_size=3, max_size=3),
    st.booleans(),
)
def test_mixture_of_sparse_members_is_that_of_the_members_made_dense(
    seed: int, weights: list[float], kept: list[float], learned: bool
) -> None:
    unigram = np.random.default_rng(seed).dirichlet(np.ones(VOCAB)) if learned else None
    mixing = _mixing(weights, unigram)
    parts = [
        topk_logits(sparse(logits, top_p=p), VOCAB)
        for logits, p in zip(_teachers(len(weights), seed), kept, strict=False)
    ]
    found = mixed_logits(parts, mixing)
    members = [_dense(part, mixing.shape) for part in parts]
    expected = sum(w * p for w, p in zip(mixing.weights, members, strict=True))
    assert impossible(found) is None  # best first, no token twice, mass 1
    assert torch.allclose(_dense(found, mixing.shape), expected, rtol=2e-5, atol=1e-9)
    entropy = -(expected * expected.clamp_min(1e-300).log()).sum(1)
    assert np.allclose(found.entropy, entropy, rtol=1e-5, atol=1e-5)


def test_whole_vocabularies_mix_exactly_and_leave_no_tail() -> None:
    teachers = _teachers(2, 3)
    parts = [topk_logits(sparse(logits), VOCAB) for logits in teachers]
    found = mixed_logits(parts, _mixing([0.7, 0.3]))
    expected = 0.7 * teachers[0].softmax(1) + 0.3 * teachers[1].softmax(1)
    assert found.tail.tolist() == [-np.inf] * ROWS
    dense = np.zeros((ROWS, VOCAB))
    np.put_along_axis(
        dense,
        found.ids.reshape(ROWS, VOCAB).astype(np.int64),
        np.exp(found.logprobs.reshape(ROWS, VOCAB).astype(np.float64)),
        1,
    )
    assert np.allclose(dense, expected, rtol=1e-6, atol=0)


def test_next_token_is_exact_though_no_member_stores_it() -> None:
    teachers, next_ids = _teachers(2, 4), torch.arange(ROWS)
    parts = []
    for logits in teachers:
        log_p = logits.log_softmax(1)[torch.arange(ROWS), next_ids].numpy().astype(np.float32)
        parts.append(replace(topk_logits(sparse(logits, top_p=0.2), VOCAB), next_logprob=log_p))
    found = mixed_logits(parts, _mixing([1.0, 3.0]))
    p = 0.25 * teachers[0].softmax(1) + 0.75 * teachers[1].softmax(1)
    assert np.allclose(found.next_logprob, p[torch.arange(ROWS), next_ids].log(), rtol=1e-6)


def test_a_row_that_a_member_lacks_is_not_captured() -> None:
    full = record(range(ROWS + 1), top_p=0.9)
    lacking = without_targets(record(range(ROWS + 1), top_p=0.9, shift=1), 3)
    found = mixed_logits([full.logits, lacking.logits], _mixing([1.0, 1.0]))
    assert np.diff(found.offsets)[:3].tolist() == [0, 0, 0]
    assert (np.diff(found.offsets)[3:] > 0).all() and found.tail[:3].tolist() == [0, 0, 0]
    assert not np.isnan(found.entropy).any()


TEXTS = documents(9, seed=6)


def _cache(name: str, places: Any = range(9), **facts: Any) -> FakeCache:
    shift = int(name == "b")
    own = [record(TEXTS[i], top_p=0.9, shift=shift) for i in places]
    return FakeCache(own, name=name, capture_id=name, **facts)


def test_dataset_gives_mixed_records_whatever_order_the_caches_are_in() -> None:
    caches = [_cache("a"), _cache("b", reversed(range(9)))]
    mixture = Mixture(weights={"a": 3.0, "b": 1.0})
    dataset = CacheDataset(caches, mixture=mixture, max_length=12)
    assert len(dataset) == 9
    for i in range(9):
        item, text = dataset.record(i), TEXTS[i]
        parts = [record(text[:], top_p=0.9, shift=s).logits for s in (0, 1)]
        expected = mixed_logits(parts, _mixing([0.75, 0.25]))
        rows = min(len(text), 12) - 1
        assert item.logits.rows == rows == len(item.input_ids) - 1
        assert item.logits.ids.tolist() == expected.ids[: expected.offsets[rows]].tolist()
        assert np.array_equal(item.logits.tail, expected.tail[:rows])


def test_samples_that_a_member_lacks_are_an_error_or_counted() -> None:
    mixture = Mixture(weights={"a": 1.0, "b": 1.0})
    for caches in (
        [_cache("a"), _cache("b", range(2, 9))],
        [_cache("a", range(2, 9)), _cache("b")],
    ):
        with pytest.raises(DataError, match=r"2 of 9 samples.*--on-missing skip"):
            CacheDataset(caches, mixture=mixture)
        assert len(CacheDataset(caches, mixture=mixture, on_missing="skip")) == 7


def test_what_cannot_be_mixed_is_refused() -> None:
    caches = [_cache("a"), _cache("b")]
    for weights, text in (
        ({"a": 1.0, "c": 1.0}, "'c' is not the name of a cache"),
        ({"a": 1.0}, "weight for each"),
        ({"a": 1.0, "b": 0.0}, "above 0"),
        ({"a": 1.0, "b": float("nan")}, "above 0"),
    ):
        with pytest.raises(ConfigError, match=text):
            CacheDataset(caches, mixture=Mixture(weights=weights))
    both = {"a": 1.0, "b": 1.0}
    with pytest.raises(ConfigError, match=r"sampled entries.*top_p"):
        CacheDataset([_cache("a"), _cache("b", kind="sampled")], mixture=Mixture(weights=both))
    with pytest.raises(ConfigError, match="recode"):
        CacheDataset(caches, mixture=Mixture(weights=both, tail="unigram"))
    with pytest.raises(ConfigError, match="leave one of the two out"):
        CacheDataset(caches, mixture=Mixture(weights=both), order=Order(mix={"a": 2.0}))


def test_objectives_that_a_mixture_cannot_serve_are_refused() -> None:
    caches: Any = [_cache("a"), _cache("b", weights="other")]
    checks.check_needs(Needs(), caches, mixture=True)
    with pytest.raises(ConfigError, match="Train at temperature 1"):
        checks.check_needs(Needs(temperatures=(1.0, 2.0)), caches, mixture=True)
    with pytest.raises(ConfigError, match="attention"):
        checks.check_needs(Needs(attention=0.5), caches, mixture=True)

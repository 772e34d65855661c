"""What an epoch is made of: mixes of caches by weight, and windows of shards."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise
from typing import Any

import pytest
from fakes import FakeCache, documents, record
from torch.utils.data import DataLoader

from cachekd.errors import ConfigError
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset
from cachekd.training.order import EpochSampler, Order

RECORDS = [record(ids) for ids in documents(60)]
A, B = RECORDS[:40], RECORDS[40:]


def _two(order: Order) -> CacheDataset:
    caches = [FakeCache(A, name="a"), FakeCache(B, name="b", capture_id="b")]
    return CacheDataset(caches, order=order)


def _epoch(sampler: EpochSampler, epoch: int) -> list[tuple[int, ...]]:
    sampler.set_epoch(epoch)
    return [item if isinstance(item, tuple) else (item,) for item in sampler]


@pytest.mark.parametrize("capacity", [None, 40])
def test_samples_are_seen_as_often_as_the_mix_says(capacity: int | None) -> None:
    sampler = EpochSampler(_two(Order(mix={"a": 0.3, "b": 2.0})), 7, capacity)
    total: Counter[int] = Counter()
    for epoch in range(20):
        rows = _epoch(sampler, epoch)
        assert len(rows) == len(sampler)
        seen = Counter(i for row in rows for i in row)
        assert all(seen[i] == 2 for i in range(40, 60))
        assert all(seen[i] <= 1 for i in range(40))
        assert all(len({i >= 40 for i in row}) == 1 for row in rows)  # packed for itself
        total += seen
    assert min(total[i] for i in range(40)) >= 5 and max(total[i] for i in range(40)) <= 7


def test_parts_of_successive_epochs_cover_all_before_any_comes_again() -> None:
    sampler = EpochSampler(_two(Order(mix={"a": 0.25, "b": 1.5})), 3)
    parts = [[i for row in _epoch(sampler, epoch) for i in row] for epoch in range(4)]
    assert len(sampler) == 10 + 30
    from_a = [i for part in parts for i in part if i < 40]
    assert sorted(from_a) == list(range(40))
    again = [Counter(i for i in part if i >= 40) for part in parts[:2]]
    assert sorted((again[0] + again[1]).values()) == [3] * 20


def test_copies_of_a_sample_do_not_come_one_after_another() -> None:
    sampler = EpochSampler(_two(Order(mix={"a": 3.0})), 3)
    order = [row[0] for row in _epoch(sampler, 0)]
    assert sum(left == right for left, right in pairwise(order)) < len(order) // 10


def test_a_mix_of_one_each_is_no_mix() -> None:
    plain, mixed = (EpochSampler(_two(Order(mix=mix)), 5) for mix in ({}, {"a": 1.0}))
    assert [_epoch(plain, e) for e in range(3)] == [_epoch(mixed, e) for e in range(3)]


@pytest.mark.parametrize(
    ("order", "text"),
    [
        (Order(mix={"c": 1.0}), "'c' is not the name of a cache"),
        (Order(mix={"a": 0.0}), "above 0"),
        (Order(mix={"a": -1.0}), "above 0"),
        (Order(mix={"a": float("inf")}), "above 0"),
        (Order(shuffle_shards=-1), "0 or more"),
    ],
)
def test_impossible_orders_are_refused(order: Order, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        _two(order)


def _shards_of(dataset: CacheDataset, rows: list[tuple[int, ...]]) -> list[int]:
    _, shard_P = dataset.shards()
    return [int(shard_P[i]) for row in rows for i in row]


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("capacity", [None, 40])
def test_a_pass_needs_each_shard_once(window: int, capacity: int | None) -> None:
    dataset = _two(Order(shuffle_shards=window))
    sampler = EpochSampler(dataset, 7, capacity)
    orders = [_epoch(sampler, epoch) for epoch in range(3)]
    for rows in orders:
        assert sorted(i for row in rows for i in row) == list(range(60))
        shards = _shards_of(dataset, rows)
        # Shards of a window come among each other, and never again after its last sample.
        spans = {s: (shards.index(s), 59 - shards[::-1].index(s)) for s in set(shards)}
        windows: list[set[int]] = []
        for at, shard in enumerate(shards):
            if at == 0 or all(spans[s][1] < at for s in windows[-1]):
                windows.append(set())
            windows[-1].add(shard)
        assert len(spans) == 12 and all(len(part) <= window for part in windows)
        assert sum(map(len, windows)) == 12
    assert len({tuple(rows) for rows in orders}) == 3
    if window == 1:
        firsts = [[s for s, _ in groupby(_shards_of(dataset, rows))] for rows in orders]
        assert firsts[0] != firsts[1]


def test_samples_are_shuffled_within_a_window() -> None:
    sampler = EpochSampler(_two(Order(shuffle_shards=12)), 7)
    order = [row[0] for row in _epoch(sampler, 0)]
    assert order != sorted(order)
    assert sum(i < 40 for i in order[:30]) < 30


def test_windows_do_not_depend_on_the_place_of_a_cache() -> None:
    ids = []
    for turned in (False, True):
        caches: list[Any] = [FakeCache(A, name="a"), FakeCache(B, name="b", capture_id="b")]
        dataset = CacheDataset(caches[::-1] if turned else caches, order=Order(shuffle_shards=2))
        sampler = EpochSampler(dataset, 7)
        ids.append([dataset.sample_ids[i] for row in _epoch(sampler, 4) for i in row])
    assert ids[0] == ids[1]


@pytest.mark.parametrize("order", [Order(), Order(mix={"b": 1.5}), Order(shuffle_shards=2)])
@pytest.mark.parametrize("capacity", [None, 40])
def test_workers_do_not_change_a_batch(order: Order, capacity: int | None) -> None:
    def batches(workers: int) -> list[Any]:
        dataset = _two(order)
        sampler = EpochSampler(dataset, 3, capacity)
        sampler.set_epoch(2)
        loader = DataLoader(
            dataset, batch_size=7, sampler=sampler, collate_fn=Collator(), num_workers=workers
        )
        return [
            (b["input_ids"].tolist(), b["targets"]["ids"].tolist(), b["targets"]["tail"].tolist())
            for b in loader
        ]

    alone = batches(0)
    assert alone == batches(1) == batches(2)

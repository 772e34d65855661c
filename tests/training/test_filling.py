"""Epochs that several processes share: as many places for each, and no sample that counts twice."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from fakes import VOCAB, FakeCache, documents, record, student

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loader import CacheDataset
from cachekd.training.loss import batch_loss
from cachekd.training.order import EpochSampler, Filler, Order

RECORDS = [record(ids, weight=1.0 + i % 2) for i, ids in enumerate(documents(17))]


def _members(item: Any) -> tuple[int, ...]:
    return item if isinstance(item, tuple) else (item,)


@pytest.mark.parametrize("capacity", [None, 40])
@pytest.mark.parametrize("order", [Order(), Order(mix={"fake": 1.5}), Order(shuffle_shards=2)])
def test_an_epoch_is_filled_up_behind_its_samples(capacity: int | None, order: Order) -> None:
    dataset = CacheDataset(FakeCache(RECORDS), order=order)
    plain, filled = (EpochSampler(dataset, 7, capacity, n) for n in (1, 8))
    assert len(filled) % 8 == 0 and 0 <= len(filled) - len(plain) < 8
    for epoch in range(2):
        plain.set_epoch(epoch)
        filled.set_epoch(epoch)
        places = list(filled)
        assert len(places) == len(filled)
        assert places[: len(plain)] == list(plain)
        fillers = [_members(item) for item in places[len(plain) :]]
        assert all(len(own) == 1 and isinstance(own[0], Filler) for own in fillers)
        assert not any(isinstance(i, Filler) for item in plain for i in _members(item))


@pytest.mark.parametrize("capacity", [None, 40])
def test_batches_of_two_processes_hold_the_sums_of_one(capacity: int | None) -> None:
    """Also a batch of nothing but fillers, which must be one that a model takes."""
    dataset, model = CacheDataset(FakeCache(RECORDS)), student()
    head, objective = StudentHead(model, model), build("kd", {})

    def sums(places: Any, size: int) -> list[torch.Tensor]:
        chosen = list(places)
        cuts = [chosen[at : at + size] for at in range(0, len(chosen), size)]
        batches = [Collator()(dataset.__getitems__(cut)) for cut in cuts]
        parts = [batch_loss(model, head, batch, objective, VOCAB) for batch in batches]
        assert all(torch.isfinite(part.loss_sum) for part in parts)
        return [sum(getattr(p, name) for p in parts) for name in ("loss_sum", "weight_sum")]

    one = sums(EpochSampler(dataset, 7, capacity), 4)
    filled = list(EpochSampler(dataset, 7, capacity, 16))
    assert all(isinstance(_members(item)[0], Filler) for item in filled[-2:])
    for left, right in zip(sums(filled, 2), one, strict=True):
        torch.testing.assert_close(left, right)


def test_a_filler_reaches_a_loader_worker_as_one() -> None:
    dataset = CacheDataset(FakeCache(RECORDS))
    (again,) = pickle.loads(pickle.dumps((Filler(3),)))
    found, whole = dataset.__getitems__([again, 3])
    assert isinstance(found, type(whole)) and found.logits.rows == 0
    assert len(found.input_ids) == 1 and len(whole.input_ids) > 1
    assert found.sample_id == whole.sample_id

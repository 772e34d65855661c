"""Which prompts are answered together, by whom, and how often."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from fakes import FakeCache, record

from cachekd.errors import ConfigError, DataError
from cachekd.training.loader import CacheDataset
from cachekd.training.prompts import Prompts
from cachekd.training.visits import VisitSampler


def prompts(count: int = 10, **further: Any) -> Prompts:
    records = [record([20 + i, *range(1, 8 + i % 3)], prompt_length=3) for i in range(count)]
    return Prompts(CacheDataset(FakeCache(records)), room=4, limit=64, on_long="fail", **further)


def dealt(sampler: VisitSampler, batch: int, world: int) -> list[list[list[Any]]]:
    """Batches of each process, as a loader deals them out in turn."""
    visits = list(sampler)
    batches = [visits[at : at + batch] for at in range(0, len(visits), batch)]
    return [batches[rank::world] for rank in range(world)]


def test_an_epoch_of_batches_visits_every_prompt() -> None:
    sampler = VisitSampler(prompts(), seed=3, batch=2, world=2)
    visits = list(sampler)
    assert len(visits) == len(sampler) == 12
    seen = Counter(visit.sample for visit in visits)
    assert set(seen) == set(range(10))
    assert sorted(seen.values()) == [1] * 8 + [2] * 2  # what fills the last group comes twice


def test_a_process_trains_on_what_it_answered() -> None:
    sampler = VisitSampler(prompts(16), seed=3, batch=2, world=2, collect=8, turns=3)
    for rank, batches in enumerate(dealt(sampler, 2, 2)):
        for group in range(2):
            own = sampler.own(batches[0][0]._replace(group=group), rank)
            for turn in range(3):
                met = [v.sample for b in batches for v in b if (v.group, v.turn) == (group, turn)]
                assert sorted(met) == sorted(own) and len(own) == 4


def test_rounds_are_alike_in_all_processes() -> None:
    sampler = VisitSampler(prompts(16), seed=3, batch=2, world=2, collect=8, turns=2)
    first, second = dealt(sampler, 2, 2)
    assert [[v.round for v in b] for b in first] == [[v.round for v in b] for b in second]
    assert [b[0].round for b in first] == list(range(len(first)))


def test_turns_are_in_other_orders_and_epochs_too() -> None:
    sampler = VisitSampler(prompts(16), seed=3, batch=2, collect=16, turns=2)
    first = [v.sample for v in sampler]
    assert first[:16] != first[16:] and sorted(first[:16]) == sorted(first[16:])
    sampler.set_epoch(1)
    assert [v.sample for v in sampler] != first
    sampler.set_epoch(0)
    assert [v.sample for v in sampler] == first


def test_a_group_is_whole_batches() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 4.*batch_size 2 x 2\); found 6"):
        VisitSampler(prompts(), seed=0, batch=2, world=2, collect=6)


def test_prompts_without_room_are_refused_or_counted() -> None:
    samples = CacheDataset(FakeCache([record(range(1, 9), prompt_length=5), record([1, 2, 3])]))
    with pytest.raises(DataError, match=r"prompt of 5 and 60 new ones.*--on-long skip"):
        Prompts(samples, room=60, limit=64, on_long="fail")
    samples = CacheDataset(FakeCache([record(range(1, 9), prompt_length=5), record([1, 2, 3, 4])]))
    with pytest.raises(ConfigError, match="none has a prompt"):
        Prompts(samples, room=60, limit=64, on_long="skip")


def test_samples_without_a_prompt_are_left_out() -> None:
    records = [record(range(1, 9), prompt_length=5), record([1, 2, 3, 4])]
    found = Prompts(CacheDataset(FakeCache(records)), room=4, limit=64, on_long="fail")
    places = sorted(found.starts.tolist())
    assert places == [-1, 5] and found.left_out == {"no prompt": 1}
    visits = list(VisitSampler(found, seed=0, batch=1))
    assert [found.starts[v.sample] for v in visits] == [5]

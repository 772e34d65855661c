"""Datasets over caches: what is held, cut and left out; and the order of an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fakes import FakeCache, documents, record
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cachekd.data.alignment import LossMask
from cachekd.errors import ConfigError, MismatchError
from cachekd.training.collate import Collator
from cachekd.training.cut import truncate
from cachekd.training.loader import CacheDataset, summary
from cachekd.training.order import EpochSampler

RECORDS = [record(ids) for ids in documents(40)]


def _order(dataset: CacheDataset, epoch: int, capacity: int | None = None) -> list[object]:
    sampler = EpochSampler(dataset, 7, capacity)
    sampler.set_epoch(epoch)
    places = [item if isinstance(item, tuple) else (item,) for item in sampler]
    return [tuple(dataset.sample_ids[i] for i in items) for items in places]


@settings(deadline=None, max_examples=25)
@given(
    st.permutations(range(40)),
    st.integers(1, 39),
    st.integers(0, 3),
    st.sampled_from([None, 40]),
)
def test_order_does_not_depend_on_how_samples_are_split(
    order: list[int], cut: int, epoch: int, capacity: int | None
) -> None:
    shuffled = [RECORDS[i] for i in order]
    overlap = shuffled[: cut + 3]
    halves = [FakeCache(shuffled[cut:], name="a"), FakeCache(overlap, name="b")]
    whole = CacheDataset(FakeCache(RECORDS))
    united = CacheDataset(halves)
    assert len(united) == len(whole) == 40
    assert united.digest() == whole.digest()
    assert _order(united, epoch, capacity) == _order(whole, epoch, capacity)


def test_epochs_and_seeds_give_other_orders_of_the_same_samples() -> None:
    dataset = CacheDataset(FakeCache(RECORDS))
    first, second = _order(dataset, 0), _order(dataset, 1)
    assert first != second
    assert sorted(first) == sorted(second)
    assert list(EpochSampler(dataset, 1)) != list(EpochSampler(dataset, 2))
    assert sorted(EpochSampler(dataset, 1)) == list(range(40))


def test_packed_rows_stay_the_same_and_change_places() -> None:
    dataset = CacheDataset(FakeCache(RECORDS))
    first, second = _order(dataset, 0, 40), _order(dataset, 1, 40)
    assert Counter(first) == Counter(second) and first != second
    assert len(first) == len(EpochSampler(dataset, 7, 40)) < 40
    sampler = EpochSampler(dataset, 7, 40)
    assert sorted(i for items in sampler for i in items) == list(range(40))
    assert all(sum(dataset.lengths[i] for i in items) <= 40 for items in sampler)


def test_too_small_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_length"):
        EpochSampler(CacheDataset(FakeCache(RECORDS)), 0, 5)


def test_samples_of_other_captures_are_all_kept() -> None:
    caches = [FakeCache(RECORDS, name=name, capture_id=name) for name in "ab"]
    dataset = CacheDataset(caches)
    assert len(dataset) == 80
    assert not dataset.dropped


def test_union_counts_what_it_holds_once() -> None:
    dataset = CacheDataset([FakeCache(RECORDS), FakeCache(RECORDS[:4], name="b")])
    assert dataset.dropped == {"held more than once": 4}


def test_samples_without_a_trained_row_are_left_out_and_counted() -> None:
    long_prompt = record(list(range(20)), prompt_length=15)
    short_prompt = record(list(range(20)), prompt_length=4)
    dataset = CacheDataset(FakeCache([long_prompt, short_prompt]), max_length=10)
    assert len(dataset) == 1
    facts = summary(dataset)
    assert facts["dropped"] == {"no trained row": 1}
    assert (facts["samples"], facts["tokens"], facts["trained_rows"]) == (1, 10, 6)
    assert facts["truncated"] == 1
    with pytest.raises(ConfigError, match="nothing to train on"):
        CacheDataset(FakeCache([long_prompt]), max_length=10)


@pytest.mark.parametrize("length", [2, 5, 19, 20, 50])
def test_truncated_record_is_the_record_of_a_prefix(length: int) -> None:
    full = record(list(range(20)), prompt_length=8, top_p=0.9)
    cut = truncate(full, length)
    kept = min(length, 20)
    assert cut.input_ids.tolist() == list(range(kept))
    assert len(cut.roles) == kept and cut.logits.rows == kept - 1
    assert cut.logits.offsets.tolist() == full.logits.offsets[:kept].tolist()
    assert len(cut.logits.ids) == len(cut.logits.logprobs) == cut.logits.offsets[-1]
    assert np.array_equal(cut.logits.tail, full.logits.tail[: kept - 1])
    assert np.array_equal(cut.logits.lognorm[2.0], full.logits.lognorm[2.0][: kept - 1])


def test_works_in_a_plain_loop() -> None:
    dataset = CacheDataset(FakeCache(RECORDS))
    for capacity in (None, 40):
        sampler = EpochSampler(dataset, 3, capacity)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=Collator())
        rows = sum(len(batch["rows"]) for batch in loader)
        assert rows == dataset.trained == sum(len(item.input_ids) - 1 for item in RECORDS)


def test_response_capture_cannot_train_everything() -> None:
    cache = FakeCache(RECORDS, rows="response")
    with pytest.raises(MismatchError, match="--rows all"):
        CacheDataset(cache, loss_mask=LossMask.ALL)
    assert len(CacheDataset(cache)) == 40


def test_caches_of_other_tokenizers_are_refused() -> None:
    caches = [FakeCache(RECORDS, name="a"), FakeCache(RECORDS, name="b", tokenizer="other")]
    with pytest.raises(MismatchError, match="'a' and 'b'"):
        CacheDataset(caches)

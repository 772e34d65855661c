"""Attention of records in batches: trained rows, truncation, packing, workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from fakes import FakeCache, attention_maps, record, with_attention
from torch.utils.data import DataLoader

from cachekd.data.alignment import LossMask
from cachekd.errors import MismatchError
from cachekd.training.attention_targets import cut_attention
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset, truncate
from cachekd.types import AttentionDocument, Record

COLLATE = Collator(attention=True)


def _dense(document: AttentionDocument) -> np.ndarray:
    """Kept probabilities, [A, H, R, L]."""
    shape = (*document["rest"].shape, document["length"])
    counts = document["offsets"].diff()
    dense = torch.zeros(len(counts), document["length"])
    row = torch.repeat_interleave(torch.arange(len(counts)), counts)
    dense[row, document["keys"].long()] = document["probs"]
    return dense.reshape(shape).numpy()


def _plain(ids: list[int], **further: Any) -> Record:
    return with_attention(record(ids, weight=further.pop("sample_weight", 1.0)), **further)


def test_documents_of_a_packed_batch_know_their_place() -> None:
    first, second = _plain([5, 6, 7, 8]), _plain([9, 10, 11], sample_weight=2.0)
    found = COLLATE([[first, second], [second]])["attention"]
    places = [(doc["batch_row"], doc["start"], doc["length"]) for doc in found]
    assert places == [(0, 0, 3), (0, 4, 2), (1, 0, 2)]
    assert [doc["positions"].tolist() for doc in found] == [[0, 1, 2], [0, 1], [0, 1]]
    assert [doc["weights"].tolist() for doc in found] == [[1.0] * 3, [2.0] * 2, [2.0] * 2]
    for doc, length in zip(found, (3, 2, 2), strict=True):
        assert _dense(doc) == pytest.approx(attention_maps(length, 2, 2).numpy(), abs=1e-6)


def test_only_captured_rows_that_are_trained_come_along() -> None:
    item = record(list(range(5, 14)), prompt_length=4, weight=0.5)
    rows = [1, 3, 4, 7]
    drawn = with_attention(item, rows=rows, weight=4.0, most=2)
    (found,) = Collator(LossMask.COMPLETION, attention=True)([drawn])["attention"]
    assert found["positions"].tolist() == [3, 4, 7]
    assert found["weights"].tolist() == [2.0] * 3
    maps = attention_maps(8, 2, 2).numpy()[:, :, [3, 4, 7]]
    assert (_dense(found) > 0).sum(-1).tolist() == np.full((2, 2, 3), 2).tolist()
    assert _dense(found).sum(-1) + found["rest"].numpy() == pytest.approx(1, abs=1e-6)
    assert _dense(found)[_dense(found) > 0] == pytest.approx(maps[_dense(found) > 0], abs=1e-6)


def test_a_document_without_such_a_row_is_left_out() -> None:
    none = _plain([5, 6, 7], rows=[])
    untrained = with_attention(record([5, 6, 7, 8], prompt_length=4))
    batch = Collator(LossMask.COMPLETION, attention=True)([none, untrained])
    assert batch["attention"] == []
    assert "attention" not in Collator()([none])


def test_a_cut_record_has_the_attention_of_its_first_rows() -> None:
    item = _plain([5, 6, 7, 8, 9, 10], rows=[0, 2, 3, 4], weight=2.0, most=2)
    cut = truncate(item, 4)
    assert cut.attention is not None and item.attention is not None
    assert (cut.attention.rows.tolist(), cut.attention.length) == ([0, 2], 3)
    for place in (0, 1):
        whole = item.attention.dense(place)[:, :2]
        assert (cut.attention.dense(place) == whole[:, :, :3]).all()
        assert not whole[:, :, 3:].any()
    assert len(cut_attention(item.attention, 0).rows) == 0
    (found,) = COLLATE([cut])["attention"]
    assert found["length"] == 3 and int(found["keys"].max()) <= 2


def test_records_without_the_attention_that_is_trained_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"without attention.*--attention maps or qk"):
        COLLATE([_plain([5, 6, 7]), record([5, 6, 7])])
    response = _plain([5, 6, 7, 8], rows=[2])
    with pytest.raises(MismatchError, match="--attention-rows all"):
        COLLATE([response])


def test_attention_travels_from_a_worker_to_a_device() -> None:
    records = [_plain(list(range(5, 9 + i))) for i in range(4)]
    dataset = CacheDataset(FakeCache(records), max_length=6)
    loader = DataLoader(dataset, batch_size=2, collate_fn=COLLATE, num_workers=1)
    batches = [send_to_device(batch, torch.device("meta")) for batch in loader]
    documents = [doc for batch in batches for doc in batch["attention"]]
    assert [doc["length"] for doc in documents] == [3, 4, 5, 5]
    tensors = [value for doc in documents for value in doc.values() if torch.is_tensor(value)]
    assert len(tensors) == 4 * 6 and all(tensor.is_meta for tensor in tensors)

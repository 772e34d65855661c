"""Attention of records in batches: trained rows, truncation, packing, workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from fakes import FakeCache, attention_maps, record, with_attention
from torch.utils.data import DataLoader

from cachekd.data.alignment import LossMask
from cachekd.errors import MismatchError
from cachekd.training.attention_targets import cut_attention
from cachekd.training.collate import Collator
from cachekd.training.cut import truncate
from cachekd.training.loader import CacheDataset
from cachekd.types import AttentionDocument, AttentionTargets, Record

COLLATE = Collator(attention=True)


def _each(targets: AttentionTargets) -> list[tuple[AttentionDocument, Any, Any, Any, Any]]:
    """Of each document its place, positions, weights, kept probabilities [A, H, R, L] and rest."""
    found, first = [], 0
    layers, heads, _ = targets["rest"].shape
    for document in targets["documents"]:
        rows = slice(first, first + document["rows"])
        own = targets["offsets"][layers * heads * rows.start : layers * heads * rows.stop + 1]
        counts = own.diff()
        entries = slice(int(own[0]), int(own[-1]))
        dense = torch.zeros(len(counts), document["length"])
        row = torch.repeat_interleave(torch.arange(len(counts)), counts)
        dense[row, targets["keys"][entries].long()] = targets["probs"][entries]
        shape = (layers, heads, document["rows"], document["length"])
        positions, weights = (targets[name][rows].tolist() for name in ("positions", "weights"))
        rest = targets["rest"][:, :, rows].numpy()
        found.append((document, positions, weights, dense.reshape(shape).numpy(), rest))
        first = rows.stop
    assert first == len(targets["positions"])
    return found


def _plain(ids: list[int], **further: Any) -> Record:
    return with_attention(record(ids, weight=further.pop("sample_weight", 1.0)), **further)


def test_documents_of_a_packed_batch_know_their_place() -> None:
    first, second = _plain([5, 6, 7, 8]), _plain([9, 10, 11], sample_weight=2.0)
    found = _each(COLLATE([[first, second], [second]])["attention"])
    places = [(doc["batch_row"], doc["start"], doc["length"]) for doc, *_ in found]
    assert places == [(0, 0, 3), (0, 4, 2), (1, 0, 2)]
    assert [positions for _, positions, *_ in found] == [[0, 1, 2], [0, 1], [0, 1]]
    assert [weights for _, _, weights, *_ in found] == [[1.0] * 3, [2.0] * 2, [2.0] * 2]
    for (*_, dense, rest), length in zip(found, (3, 2, 2), strict=True):
        assert dense == pytest.approx(attention_maps(length, 2, 2).numpy(), abs=1e-6)
        assert not rest.any()


def test_only_captured_rows_that_are_trained_come_along() -> None:
    item = record(list(range(5, 14)), prompt_length=4, weight=0.5)
    rows = [1, 3, 4, 7]
    drawn = with_attention(item, rows=rows, weight=4.0, most=2)
    batch = Collator(LossMask.COMPLETION, attention=True)([drawn])
    ((_, positions, weights, dense, rest),) = _each(batch["attention"])
    assert (positions, weights) == ([3, 4, 7], [2.0] * 3)
    maps = attention_maps(8, 2, 2).numpy()[:, :, [3, 4, 7]]
    assert ((dense > 0).sum(-1) == 2).all()
    assert dense.sum(-1) + rest == pytest.approx(1, abs=1e-6)
    assert dense[dense > 0] == pytest.approx(maps[dense > 0], abs=1e-6)


def test_a_document_without_such_a_row_is_left_out() -> None:
    none = _plain([5, 6, 7], rows=[])
    untrained = with_attention(record([5, 6, 7, 8], prompt_length=4))
    collate = Collator(LossMask.COMPLETION, attention=True)
    assert _each(collate([none, untrained])["attention"]) == []
    item = with_attention(record([5, 6], prompt_length=1))
    ((place, *_),) = _each(collate([[none, untrained, item]])["attention"])
    assert place == {"batch_row": 0, "start": 7, "length": 1, "rows": 1}
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
    ((place, *_),) = _each(COLLATE([cut])["attention"])
    assert (place["length"], place["rows"]) == (3, 2)


def test_records_without_the_attention_that_is_trained_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"without attention.*--attention maps or qk"):
        COLLATE([_plain([5, 6, 7]), record([5, 6, 7])])
    response = _plain([5, 6, 7, 8], rows=[2])
    with pytest.raises(MismatchError, match="--attention-rows all"):
        COLLATE([response])
    with pytest.raises(MismatchError, match="different layers or heads"):
        COLLATE([_plain([5, 6, 7]), _plain([5, 6, 7], heads=1)])


def test_attention_travels_from_a_worker_to_a_device() -> None:
    records = [_plain(list(range(5, 9 + i))) for i in range(4)]
    dataset = CacheDataset(FakeCache(records), max_length=6)
    loader = DataLoader(dataset, batch_size=2, collate_fn=COLLATE, num_workers=1)
    batches = [send_to_device(batch, torch.device("meta")) for batch in loader]
    lengths = [doc["length"] for batch in batches for doc in batch["attention"]["documents"]]
    assert lengths == [3, 4, 5, 5]
    tensors = [value for value in batches[0]["attention"].values() if torch.is_tensor(value)]
    assert len(tensors) == 6 and all(tensor.is_meta for tensor in tensors)

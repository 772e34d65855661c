"""Batches: shift, mask, padding and packing together give what the documents give alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import VOCAB, record, student, teacher_of, without_targets
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.data.alignment import LossMask
from cachekd.errors import ConfigError, MismatchError
from cachekd.losses.reference import dense_forward_kl
from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss
from cachekd.types import Record

MODEL = student()
HEAD = StudentHead(MODEL, MODEL)

ids = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=9)


@st.composite
def _records(draw: st.DrawFn) -> Record:
    tokens = draw(ids)
    prompt = draw(st.none() | st.integers(0, len(tokens)))
    weight = draw(st.sampled_from([1.0, 0.5, 2.0]))
    return record(
        tokens, prompt_length=prompt, weight=weight, top_p=draw(st.sampled_from([0.9, 1]))
    )


def _loss(batch: Any) -> tuple[float, float]:
    with torch.no_grad():
        output = batch_loss(MODEL, HEAD, batch, build("kd", {"temperature": 2.0}), VOCAB)
    return output.loss_sum.item(), output.weight_sum.item()


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.lists(_records(), min_size=1, max_size=3), min_size=1, max_size=3),
    mask=st.sampled_from(LossMask),
    multiple=st.sampled_from([None, 8]),
)
def test_packed_and_padded_losses_are_the_sum_over_documents(
    rows: list[list[Record]], mask: LossMask, multiple: int | None
) -> None:
    collate = Collator(mask, pad_to_multiple_of=multiple)
    alone = [_loss(collate([item])) for row in rows for item in row]
    expected = [sum(loss) for loss in zip(*alone, strict=True)]
    packed = collate(rows)
    assert packed["attention_mask"] is None
    assert packed["input_ids"].shape[1] % (multiple or 1) == 0
    assert _loss(packed) == pytest.approx(expected, abs=1e-9)
    padded = collate([item for row in rows for item in row])
    assert _loss(padded) == pytest.approx(expected, abs=1e-9)


def _dense_loss(item: Record, prompt: int) -> float:
    """KL over the completion, written with shifts by hand: p of token t+1 is in row t."""
    tokens = torch.tensor(item.input_ids, dtype=torch.int64)[None]
    with torch.no_grad():
        logits = MODEL(input_ids=tokens).logits[0, :, :VOCAB]
    teacher = teacher_of(item.input_ids.tolist())
    rows = range(prompt - 1, len(item.input_ids) - 1)
    return float(sum(dense_forward_kl(teacher[[t]], logits[[t]]).item() for t in rows))


def _kd_loss(item: Record) -> float:
    batch = Collator(LossMask.COMPLETION)([item])
    with torch.no_grad():
        output = batch_loss(MODEL, HEAD, batch, build("kd", {"loss": {"kd": 1.0}}), VOCAB)
    return output.loss_sum.item()


@pytest.mark.parametrize("response", [1, 2, 5])
def test_sparse_equals_dense_over_a_completion(response: int) -> None:
    tokens = list(range(3, 8 + response))
    item = record(tokens, prompt_length=5)
    assert _kd_loss(item) == pytest.approx(_dense_loss(item, 5), rel=1e-5)


def test_targets_off_by_one_fail_that_comparison() -> None:
    item = record(list(range(3, 13)), prompt_length=5)
    logits = item.logits
    shifted = replace(
        logits, ids=np.roll(logits.ids, VOCAB), logprobs=np.roll(logits.logprobs, VOCAB)
    )
    found = _kd_loss(replace(item, logits=shifted))
    assert found != pytest.approx(_dense_loss(item, 5), rel=1e-2)


def test_layout_of_a_packed_batch() -> None:
    first, second = record([5, 6, 7], prompt_length=2), record([8, 9])
    batch = Collator(pad_token_id=1)([[first, second], [second]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [8, 9, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100, 9], [-100, 9, -100, -100, -100]]
    assert batch["rows"].tolist() == [1, 3, 5]
    assert batch["targets"]["next_ids"].tolist() == [7, 9, 9]


def test_layout_of_a_padded_batch() -> None:
    batch = Collator(LossMask.ALL, pad_token_id=1)([record([5, 6, 7], weight=2.0), record([8, 9])])
    assert batch["attention_mask"] is not None
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert batch["rows"].tolist() == [0, 1, 3]
    assert batch["targets"]["weights"].tolist() == [2.0, 2.0, 1.0]
    assert batch["targets"]["offsets"].tolist() == [0, VOCAB, 2 * VOCAB, 3 * VOCAB]


def test_batch_without_a_trained_row() -> None:
    batch = Collator(LossMask.COMPLETION)([record([5, 6, 7], prompt_length=3)])
    assert batch["rows"].tolist() == []
    assert batch["targets"]["offsets"].tolist() == [0]
    assert batch["labels"].eq(-100).all()
    assert _loss(batch) == (0.0, 0.0)


def test_rows_that_were_not_captured_are_refused_only_when_trained() -> None:
    item = without_targets(record(list(range(8)), prompt_length=4), 3)
    assert len(Collator(LossMask.COMPLETION)([item])["rows"]) == 4
    with pytest.raises(MismatchError, match=f"{item.sample_id.hex()}.*--rows all"):
        Collator(LossMask.ALL)([item])


def test_weights_of_sampled_entries_come_along_but_not_beside_exact_heads() -> None:
    item = record([5, 6, 7])
    weights = np.linspace(0, 1, len(item.logits.ids)).astype(np.float32)
    sampled = replace(item, logits=replace(item.logits, weights=weights))
    found = Collator()([sampled, sampled])["targets"]
    assert found["entry_weights"].tolist() == [*weights.tolist(), *weights.tolist()]
    assert "entry_weights" not in Collator()([item])["targets"]
    with pytest.raises(ConfigError, match="some do not"):
        Collator()([item, sampled])


def test_a_unigram_rides_along_where_it_was_given() -> None:
    unigram = np.full(4, 0.25, np.float32)
    assert (
        Collator(unigram=unigram)([record([5, 6, 7])])["targets"]["unigram"].tolist() == [0.25] * 4
    )
    assert "unigram" not in Collator()([record([5, 6, 7])])["targets"]


def test_only_shared_temperatures_are_kept() -> None:
    item = record([5, 6, 7])
    fewer = replace(item, logits=replace(item.logits, lognorm={1.0: item.logits.lognorm[1.0]}))
    assert set(Collator()([item, fewer])["targets"]["lognorm"]) == {1.0}

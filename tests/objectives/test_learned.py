"""Objectives that learn beside the student, through a model, its head and a collator."""

from __future__ import annotations

import pytest
import torch
from fakes import VOCAB, record, student

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss


@pytest.mark.parametrize("name", ["dac_kl", "skd"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_step_moves_student_and_what_is_learned(name: str, packed: bool) -> None:
    model = student(double=False)
    head = StudentHead(model, model)
    records = [record([5, 6, 7, 3], top_p=0.9), record([8, 9, 2], top_p=0.9)]
    batch = Collator()([records] if packed else records)
    objective = build(name, {"hidden": 8})
    net = objective.learned()
    torch.nn.init.normal_(net.outer.weight, std=0.2)
    assert head.facts is not None, "the loss is fused with the head"
    output = batch_loss(model, head, batch, objective, VOCAB)
    (output.loss_sum / output.weight_sum).backward()
    assert output.weight_sum.item() == 5
    for parameter in [*net.parameters(), model.lm_head.weight]:
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["dac_kl", "clipping", "dkd", "skd"])
def test_packed_and_padded_batches_have_the_same_loss(name: str) -> None:
    model = student()
    head = StudentHead(model, model)
    records = [record([5, 6, 7, 3, 1], top_p=0.9), record([8, 9, 2], weight=0.5)]
    objective = build(name, {})
    losses = [
        batch_loss(model, head, Collator()(items), objective, VOCAB).loss_sum.item()
        for items in (records, [records])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)

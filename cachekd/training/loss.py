"""The loss of a batch: an objective at the trained rows of a student, fused with its head.

In: a student, a `Batch`, an objective. Out: an `ObjectiveOutput`, differentiable. This is where
objectives meet models; the same for training, evaluation, cached and live targets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cachekd.losses.fused import Reading, RowLoss, fused_loss, logits_loss
from cachekd.losses.head import Head
from cachekd.training.forward import run_student
from cachekd.types import Batch, ObjectiveOutput, TargetTensors

if TYPE_CHECKING:
    from cachekd.objectives import Objective
    from cachekd.training.attention import StudentAttention
    from cachekd.training.head import StudentHead


def reading_of(objective: Objective, vocab_size: int) -> Reading:
    """What an objective reads of a student."""
    needs, module = objective.needs(), objective.learned(vocab_size)
    learned = [] if module is None else [p for p in module.parameters() if p.requires_grad]
    return Reading(
        temperatures=needs.temperatures,
        dense=needs.dense,
        next_row=needs.next_row,
        learned=tuple(learned),
    )


def batch_loss(
    model: Any,
    head: StudentHead,
    batch: Batch,
    objective: Objective,
    vocab_size: int,
    attention: StudentAttention | None = None,
) -> ObjectiveOutput:
    """Sums over the trained rows of a batch.

    Args:
        model: the student, wrapped as it is trained.
        head: of the same student.
        batch: from a collator.
        objective: what is minimised.
        vocab_size: real vocabulary.
        attention: of the same student, where the objective gives attention a weight.
    """
    if attention is None:
        return _prediction_loss(model, head, batch, objective, vocab_size)
    with attention.watching(batch):
        output = _prediction_loss(model, head, batch, objective, vocab_size)
    attention_sum = attention.output()
    weighted = objective.needs().attention * attention_sum
    return replace(
        output,
        loss_sum=output.loss_sum + weighted.to(output.loss_sum.dtype),
        metrics={**output.metrics, "attention": attention_sum.detach()},
    )


def _prediction_loss(
    model: Any, head: StudentHead, batch: Batch, objective: Objective, vocab_size: int
) -> ObjectiveOutput:
    with torch.autocast(batch["input_ids"].device.type, enabled=False):
        targets = objective.prepare(batch["targets"], vocab_size)
    return row_loss(
        model, head, batch, targets, objective, reading_of(objective, vocab_size), vocab_size
    )


def row_loss(
    model: Any,
    head: StudentHead,
    batch: Batch,
    targets: TargetTensors,
    loss: RowLoss,
    reading: Reading,
    vocab_size: int,
) -> ObjectiveOutput:
    """What a function of chunks of rows makes of the trained rows of a batch; one forward pass.

    Args:
        model: the student, wrapped as it is trained.
        head: of the same student.
        batch: from a collator.
        targets: of the batch, prepared.
        loss: sums over a chunk of rows.
        reading: what it reads of the student.
        vocab_size: real vocabulary.
    """
    rows_N = batch["rows"]
    if head.facts is None:
        logits_NV = run_student(model, batch).logits.flatten(0, 1)[rows_N]
        return logits_loss(logits_NV, targets, loss, reading, vocab_size)
    found: list[ObjectiveOutput] = []

    def fused(hidden_BTD: Tensor, weights: Head) -> Tensor:
        hidden_ND = hidden_BTD.flatten(0, 1)[rows_N]
        found.append(fused_loss(hidden_ND, weights, targets, loss, reading, vocab_size))
        return found[-1].loss_sum

    with head.replaced(fused):
        run_student(model, batch)
    (output,) = found
    return output

"""Losses row by row, differentiable with a weight for each row, to compare with references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cachekd.losses.choice import Divergence
from cachekd.losses.divergences import divergence, student_tail_mass
from cachekd.losses.fused import logits_loss
from cachekd.losses.sparse import shaped
from cachekd.losses.student import LogitChunk, StudentRows
from cachekd.training.loss import reading_of
from cachekd.types import ObjectiveOutput, TargetTensors

Rows = Callable[[StudentRows, TargetTensors], Tensor]


def _chunk(logits_NV: Tensor, targets: TargetTensors, spec: Divergence) -> LogitChunk:
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    copy_NV = logits_NV.detach().to(dtype, copy=True)
    return LogitChunk(copy_NV, targets, (spec.temperature,), dense=spec.dense)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, loss: Rows, targets: Any, spec: Divergence) -> Tensor:
        ctx.settings = (logits_NV, loss, targets, spec)
        return loss(_chunk(logits_NV, targets, spec), targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, loss, targets, spec = ctx.settings
        with torch.enable_grad():
            chunk = _chunk(logits_NV, targets, spec)
            total = (loss(chunk, targets) * grads[0]).sum()
        return chunk.gradient(total)[0].to(logits_NV.dtype), None, None, None


def divergence_rows(logits_NV: Tensor, targets: TargetTensors, spec: Divergence) -> Tensor:
    """`divergence` of each row, [N]."""
    return _Rows.apply(
        logits_NV,
        lambda student, rows: divergence(student, rows, spec),
        shaped(targets, logits_NV.shape[1], spec),
        spec,
    )


def cross_entropy_rows(logits_NV: Tensor, targets: TargetTensors) -> Tensor:
    """-log q of the next token of each row, [N]."""
    return _Rows.apply(logits_NV, lambda student, _: -student.next_log_q(), targets, Divergence())


def tail_mass_rows(logits_NV: Tensor, targets: TargetTensors, temperature: float = 1.0) -> Tensor:
    """The student's probability outside the teacher's exact head, [N]."""
    chunk = _chunk(logits_NV, targets, Divergence(temperature=temperature))
    return student_tail_mass(chunk, targets, temperature)


def run_objective(objective: Any, logits_NV: Tensor, targets: TargetTensors) -> ObjectiveOutput:
    """An objective's sums of whole logits, as training takes them."""
    prepared = objective.prepare(targets, logits_NV.shape[1])
    return logits_loss(logits_NV, prepared, objective, reading_of(objective, logits_NV.shape[1]))

"""Losses fused with the head: hidden states in, one sum out, and never all logits at once.

Rows are worked on in chunks. A chunk's logits are made, the objective says its loss of them, and
the gradient by hidden states, matrix and bias is added up at once, while the logits are there: a
step costs the three products of the head and little else, and memory does not grow with the rows
(Hsu et al., "Liger Kernel", 2024; Wijmans et al., "Cut Your Losses", 2024, for cross entropy). For
that the weight of every row must be known beforehand: `TargetTensors` holds them, and all that may
follow is one factor for the whole sum.

Whatever else carries a gradient (parameters of the objective, targets that it prepared) gets it
exactly too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from cachekd.losses.head import Head, HeadRows, LogitRows, chunk_rows
from cachekd.losses.student import LogitChunk, StudentRows
from cachekd.losses.targets import take_rows
from cachekd.types import ObjectiveOutput, TargetTensors

RowLoss = Callable[[StudentRows, TargetTensors], ObjectiveOutput]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What a loss reads of the student.

    Attributes:
        temperatures: at which it asks for outcomes, beside 1.
        dense: whether it asks for whole logits.
        next_row: whether a row looks at the one after it.
        learned: tensors beside the student's that its loss depends on.
        chunk: rows at a time; None: what suits the device.
    """

    temperatures: tuple[float, ...] = ()
    dense: bool = False
    next_row: bool = False
    learned: tuple[Tensor, ...] = ()
    chunk: int | None = None


def fused_loss(
    hidden_ND: Tensor,
    head: Head,
    targets: TargetTensors,
    loss: RowLoss,
    reading: Reading,
    vocab_size: int | None = None,
) -> ObjectiveOutput:
    """A loss of N rows from their last hidden states.

    Args:
        hidden_ND: last hidden states of the rows, in any float dtype.
        head: what makes logits of them.
        targets: targets of the same rows.
        loss: sums over a chunk of rows.
        reading: what it reads of the student.
        vocab_size: real vocabulary; default: the rows of the matrix.

    Returns:
        ``loss_sum`` is differentiable once, by hidden states, matrix, bias, what ``learned`` names
        and targets that carry a gradient. Metrics are detached.
    """
    vocab = vocab_size or len(head.weight_VD)
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    inputs = (hidden_ND, head.weight_VD, head.bias_V)

    def rows_of(wanted: Sequence[bool]) -> HeadRows:
        of = (wanted[0], wanted[1], wanted[2])
        return HeadRows(hidden_ND.detach(), _detached(head), vocab, of, dtype)

    return _apply(rows_of, inputs, targets, loss, reading)


def logits_loss(
    logits_NV: Tensor,
    targets: TargetTensors,
    loss: RowLoss,
    reading: Reading,
    vocab_size: int | None = None,
) -> ObjectiveOutput:
    """A loss of N rows from whole logits; the rest as in `fused_loss`."""
    vocab = vocab_size or logits_NV.shape[1]
    inputs = (logits_NV,)
    return _apply(
        lambda wanted: LogitRows(logits_NV.detach(), vocab, wanted[0]),
        inputs,
        targets,
        loss,
        reading,
    )


Source = HeadRows | LogitRows


def _apply(
    rows_of: Callable[[Sequence[bool]], Source],
    inputs: Sequence[Tensor | None],
    targets: TargetTensors,
    loss: RowLoss,
    reading: Reading,
) -> ObjectiveOutput:
    further = [name for name, value in targets.items() if _carries_gradient(value)]
    work = _Work(rows_of, targets, further, loss, reading)
    tensors = (*(cast(Any, targets)[name] for name in further), *reading.learned)
    loss_sum: Tensor = _Fused.apply(  # type: ignore[no-untyped-call]
        work, torch.is_grad_enabled(), *inputs, *tensors
    )
    assert work.output is not None, "there is at least one chunk"
    return replace(work.output, loss_sum=loss_sum)


class _Work:
    """One pass over the chunks: sums of the loss and of metrics, and gradients on the way."""

    def __init__(
        self,
        rows_of: Callable[[Sequence[bool]], Source],
        targets: TargetTensors,
        further: Sequence[str],
        loss: RowLoss,
        reading: Reading,
    ) -> None:
        self._rows_of = rows_of
        self._loss = loss
        self._reading = reading
        self._leaves = {name: _leaf(cast(Any, targets)[name]) for name in further}
        self._targets = cast(TargetTensors, {**targets, **self._leaves})
        self.output: ObjectiveOutput | None = None

    def run(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of the sum by the inputs, the targets that carry one, and what is learned."""
        source, by = self._rows_of(wanted), [*self._leaves.values(), *self._reading.learned]
        of_others: list[Tensor | None] = [None] * len(by)
        for rows, entries, counted in self._chunks(source):
            logits_RV = source.logits(rows)
            with torch.set_grad_enabled(any(wanted)):
                targets = take_rows(self._targets, rows, entries, counted)
                student = LogitChunk(
                    logits_RV, targets, self._reading.temperatures, dense=self._reading.dense
                )
                output = self._loss(student, targets)
            if output.loss_sum.requires_grad:
                grad_RV, found = student.gradient(output.loss_sum, by)
                source.accept(rows, grad_RV)
                of_others = [_plus(a, b) for a, b in zip(of_others, found, strict=True)]
            self.output = _added(self.output, output)
        return [*source.gradients(), *of_others]

    def _chunks(self, source: Source) -> Iterator[tuple[slice, slice, int]]:
        """Slices of rows, all about as long, of the entries that they own, and rows that count."""
        offsets, rows = self._targets["offsets"], source.rows
        most = self._reading.chunk or chunk_rows(source.device.type, source.width)
        step = math.ceil(rows / max(1, math.ceil(rows / most)))
        starts = list(range(0, rows, max(step, 1))) or [0]
        ends = [min(start + step + self._reading.next_row, rows) for start in starts]
        bounds = offsets[torch.tensor([starts, ends], device=offsets.device)].tolist()
        for start, end, first, last in zip(starts, ends, *bounds, strict=True):
            yield slice(start, end), slice(first, last), min(step, end - start)


class _Fused(torch.autograd.Function):
    """A sum whose gradients were found on the way forward."""

    @staticmethod
    def forward(ctx: Any, work: _Work, trained: bool, *tensors: Tensor | None) -> Tensor:
        wanted = [trained and tensor is not None and tensor.requires_grad for tensor in tensors]
        device = next(tensor.device.type for tensor in tensors if tensor is not None)
        with torch.autocast(device, enabled=False):
            ctx.found = work.run(wanted)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        assert work.output is not None, "there is at least one chunk"
        return work.output.loss_sum.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found, ctx.found = ctx.found, None
        if found is None:
            raise RuntimeError("a fused loss can be differentiated once")
        scaled = [
            None if grad is None else grad.mul_(grads[0].to(grad.dtype)).to(dtype)
            for grad, dtype in zip(found, ctx.dtypes, strict=True)
        ]
        return None, None, *scaled


def _carries_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def _detached(head: Head) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return replace(head, weight_VD=head.weight_VD.detach(), bias_V=bias_V)


def _plus(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    return right if left is None else left if right is None else left + right


def _added(left: ObjectiveOutput | None, right: ObjectiveOutput) -> ObjectiveOutput:
    """Sums of two chunks, detached."""
    if left is None:
        return ObjectiveOutput(
            loss_sum=right.loss_sum.detach(),
            weight_sum=right.weight_sum,
            metrics=right.metrics,
            counts=right.counts,
        )
    return ObjectiveOutput(
        loss_sum=left.loss_sum + right.loss_sum.detach(),
        weight_sum=left.weight_sum + right.weight_sum,
        metrics={name: left.metrics[name] + value for name, value in right.metrics.items()},
        counts={name: left.counts[name] + value for name, value in right.counts.items()},
    )

"""A step without a cache: the teacher's forward within it, then dense forward KL, fused.

In: a student, a teacher of transformers, batches without targets. Out: a Trainer whose step is the
cheapest that we know with a live teacher: its body runs once over the batch, its head on a few
hundred rows at a time, beside the student's, and no logits of a whole batch exist.

    KL(p || q) = sum_v p_v (t_v - z_v) - log sum exp t + log sum exp z

of teacher logits t and student logits z over the whole vocabulary, at temperature 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cachekd.costs.comparison.clock import Stopwatch
from cachekd.losses.student import StudentRows
from cachekd.objectives import Needs
from cachekd.teachers._head import LogitRows
from cachekd.training.trainer import DistillTrainer
from cachekd.types import Batch, ObjectiveOutput, TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """What is compared is fixed."""


class LiveKL:
    """Forward KL over the vocabulary, of teacher logits that exist for a chunk of rows at a time.

    Targets hold ``teacher``, what `LiveTeacher.states` gave of the rows.

    Args:
        teacher: makes logits of it.
    """

    Options: ClassVar[type] = NoOptions

    def __init__(self, teacher: LiveTeacher) -> None:
        self._teacher = teacher

    def needs(self) -> Needs:
        """Whole logits of a chunk."""
        return Needs(dense=True)

    def learned(self, vocab_size: int = 0) -> None:
        """Nothing."""

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """As they are."""
        return targets

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Sum over the rows of a chunk."""
        own_RV = student.logits()
        with torch.no_grad():
            states_RX: Tensor = targets["teacher"]  # type: ignore[typeddict-item]
            teacher_RV = self._teacher.logits(states_RX, own_RV.shape[1]).to(own_RV.dtype)
            norm_R = teacher_RV.logsumexp(1)
            p_RV = (teacher_RV - norm_R[:, None]).exp_()
            # A token that the teacher rules out adds nothing, where 0 * -inf would be NaN.
            fixed_R = teacher_RV.masked_fill_(p_RV == 0, 0.0).mul_(p_RV).sum(1) - norm_R
        kl_R = fixed_R - (p_RV * own_RV).sum(1) + student.outcomes(1.0).log_norm_R
        weights_R = targets["weights"]
        loss_sum = (weights_R * kl_R).sum()
        return ObjectiveOutput(loss_sum=loss_sum, weight_sum=weights_R.sum(), metrics={})


class LiveTeacher:
    """A teacher's forward in two parts: its body over a batch, its head on some rows at a time.

    Args:
        model: of transformers, on its device, in evaluation mode.

    Attributes:
        watch: seconds of both parts.
    """

    def __init__(self, model: Any) -> None:
        self._device = model.get_input_embeddings().weight.device
        self._rows = LogitRows(model, self._device)
        self._kind: type | None = None
        self.watch = Stopwatch(self._device)

    def states(self, batch: Batch) -> Tensor:
        """What `logits` takes, [N, X]: hidden states; or logits, where the head is not apart."""
        tokens_BT = batch["input_ids"].to(self._device)
        mask_BT = batch["attention_mask"]
        assert mask_BT is not None, "batches are padded, not packed"
        device = tokens_BT.device.type
        with self.watch.running(), torch.no_grad(), torch.autocast(device, enabled=False):
            if self._rows.chunked:
                states_BTX, self._kind = self._rows.body(tokens_BT, mask_BT.to(self._device))
            else:
                states_BTX = self._rows.whole(tokens_BT, mask_BT.to(self._device))
            return states_BTX.flatten(0, 1)[batch["rows"].to(states_BTX.device)]

    def logits(self, states_RX: Tensor, vocab: int) -> Tensor:
        """Logits [R, V] over the real vocabulary."""
        with self.watch.running(), torch.no_grad():
            if self._kind is None:
                return states_RX[:, :vocab].clone()
            return self._rows.head(states_RX, self._kind)[:, :vocab]


class LiveTrainer(DistillTrainer):
    """A student of a live teacher.

    Args:
        teacher: a causal model of transformers, which is not trained.
        **kwargs: of `DistillTrainer`, but the objective.
    """

    def __init__(self, *, teacher: Any, **kwargs: Any) -> None:
        self.live = LiveTeacher(teacher)
        super().__init__(objective=LiveKL(self.live), **kwargs)

    def _objective_output(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        states_NX = self.live.states(batch).to(batch["input_ids"].device)
        targets: Any = {**batch["targets"], "teacher": states_NX}
        return super()._objective_output(model, {**batch, "targets": targets}, dataset)

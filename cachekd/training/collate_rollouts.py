"""Records of an on-policy batch to tensors: text of the student, and of the data beside it.

In: records, of which those with ``rollout`` were written by the student. Out: a `Batch` as any
other, whose targets say of each row whose text it is and what was known when it was written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cachekd.data.alignment import LossMask, response_rows
from cachekd.errors import MismatchError
from cachekd.rollouts import Rollout
from cachekd.training.collate import Collator, rows_of
from cachekd.types import Batch, Float32, Int64, Record, Role, RolloutRows, TargetTensors

_NAMES = ("old_logprob", "behaviour_logprob", "advantage")


class RolloutCollator(Collator):
    """Collates text of the student (its response rows) and of the data (by the loss mask).

    Args:
        unscored: whether text of the data may come without targets.
        **kwargs: of `Collator`.
    """

    def __init__(self, loss_mask: LossMask, *, unscored: bool, **kwargs: object) -> None:
        super().__init__(loss_mask, **kwargs)  # type: ignore[arg-type]
        self.unscored = unscored

    def rows(self, record: Record) -> Int64:
        """Rows of a record that are trained, whether or not they have targets."""
        if record.rollout is not None:
            assert record.prompt_length is not None, "a rollout has a prompt"
            n = len(record.input_ids) - record.prompt_length
            return np.array(response_rows(record.prompt_length, n), np.int64)
        return rows_of(record, self.loss_mask)

    def _trained(self, record: Record) -> Int64:
        if record.rollout is None and not self.unscored:
            return super()._trained(record)
        return self.rows(record)

    def _targets(self, chosen: Sequence[tuple[Record, Int64]]) -> TargetTensors:
        targets = super()._targets(chosen)
        if all(record.rollout is None for record, _ in chosen):
            return targets
        own = [np.full(len(rows), record.rollout is not None) for record, rows in chosen]
        targets["student_text"] = torch.from_numpy(np.concatenate(own))
        for name in _NAMES:
            parts = [_rows(record, rows, name) for record, rows in chosen]
            targets[name] = torch.from_numpy(np.concatenate(parts))  # type: ignore[literal-required]
        targets["part_scale"] = torch.ones_like(targets["weights"])
        return targets


def _rows(record: Record, rows: Int64, name: str) -> Float32:
    if record.rollout is None:
        return np.zeros(len(rows), np.float32)
    values: Float32 = getattr(record.rollout, name)[rows]
    return values


def record_of(rollout: Rollout, weight: float) -> Record:
    """A rollout as a record; of its prompt nothing is trained, so that its roles do not matter.

    Raises:
        MismatchError: it has no response.
    """
    length, prompt = len(rollout.input_ids), rollout.prompt_length
    if length == prompt:
        raise MismatchError(f"sample {rollout.sample}: expected a response of 1 token or more")
    roles = np.full(length, Role.TEMPLATE, np.uint8)
    roles[prompt:] = Role.ASSISTANT

    def padded(values_n: Float32) -> Float32:
        return np.concatenate([np.zeros(prompt - 1, np.float32), values_n]).astype(np.float32)

    return Record(
        key=b"",
        sample_id=b"",
        input_ids=rollout.input_ids,
        roles=roles,
        prompt_length=prompt,
        domain="",
        weight=weight,
        logits=rollout.logits,
        rollout=RolloutRows(
            old_logprob=padded(rollout.old_logprob),
            behaviour_logprob=padded(rollout.behaviour_logprob),
            advantage=padded(rollout.advantage),
        ),
    )


def part_weights(batches: Sequence[Batch]) -> Tensor:
    """Sums of row weights over batches: of the student's text, and of the data's, [2]."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        targets = batch["targets"]
        weights = targets["weights"].double()
        own = targets.get("student_text")
        mine = torch.zeros_like(weights, dtype=torch.bool) if own is None else own
        sums += torch.stack([weights[mine].sum(), weights[~mine].sum()])
    return sums


def scale_parts(batches: Sequence[Batch], sums_2: Tensor) -> None:
    """Set ``part_scale`` where text of both kinds is: the sum of all weights over the part's own.

    Args:
        batches: of a step.
        sums_2: what `part_weights` gave, over all processes.
    """
    total = sums_2.sum()
    scales_2 = torch.where(sums_2 > 0, total / sums_2.clamp(min=1e-12), 0.0).float()
    for batch in batches:
        targets = batch["targets"]
        own = targets.get("student_text")
        if own is not None:
            targets["part_scale"] = torch.where(own, scales_2[0], scales_2[1])

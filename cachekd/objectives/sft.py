"""Supervised fine-tuning: cross entropy with the tokens themselves, on the rows of a cache.

The teacher's targets are not used: the baseline that distillation is compared with, on the same
samples, mask, order and code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.objectives import Needs
from cachekd.types import ObjectiveOutput

if TYPE_CHECKING:
    from cachekd.losses.student import StudentRows
    from cachekd.types import TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTOptions:
    """``--objective sft`` has no options."""


class SFT:
    """Cross entropy."""

    Options: ClassVar[type] = SFTOptions

    def __init__(self, options: Any) -> None: ...

    def needs(self) -> Needs:
        """Nothing of a teacher; of whom the targets are does not matter."""
        return Needs(sampled=True, one_teacher=False)

    def learned(self, vocab_size: int = 0) -> None:
        """Nothing beside the student."""

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """Targets without entries: none is looked at."""
        import torch

        ids, logprobs = targets["ids"][:0], targets["logprobs"][:0]
        rest = {key: value for key, value in targets.items() if key != "entry_weights"}
        bare = {"offsets": torch.zeros_like(targets["offsets"]), "ids": ids, "logprobs": logprobs}
        return {**rest, **bare}  # type: ignore[typeddict-item]

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Weighted sums over some rows; ``ce`` is the loss."""
        ce_R = -student.next_log_q()
        weights_R = targets["weights"].to(ce_R.dtype)
        loss_sum = (weights_R * ce_R).sum()
        return ObjectiveOutput(
            loss_sum=loss_sum, weight_sum=weights_R.sum(), metrics={"ce": loss_sum.detach()}
        )


PLUGIN = SFT

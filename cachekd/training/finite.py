"""A loss or gradient that is no finite number ends a run before it reaches a weight.

In: the sums of each batch of a step, and the norm of its gradient. Out: `NonFiniteLoss` in all
processes at once; where a scaler of fp16 leaves such steps out by itself, their count. A Trainer
alone would log the losses before in their place, and go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from torch import Tensor

from cachekd.errors import NonFiniteLoss

SKIPS = 32
"""Steps that a scaler may leave out one after another: it halves its scale at each, from 2^16."""


class FiniteCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Looks at every step before its optimizer does.

    Args:
        accelerator: of the Trainer.

    Attributes:
        skipped: steps without a finite gradient that a scaler of fp16 left out.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self.skipped = self._in_a_row = 0

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Take in figures of a batch, ``loss`` among them; nothing waits for them."""
        for name, value in figures.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_gradient(self, norm: Any) -> None:
        """Take in the norm of the step's gradient, of all processes."""
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self._sums["gradient"] = torch.as_tensor(whole).double()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse the step where it would spoil the weights.

        Raises:
            NonFiniteLoss: loss or gradient of a process is nan or infinite.
        """
        sums, self._sums = self._sums, {}
        told = [sums[name].to(args.device) for name in ("loss", "gradient") if name in sums]
        bad = (~torch.isfinite(torch.stack(told)).all()).int()
        if args.world_size > 1:
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        if not bad.item():
            self._in_a_row = 0
            return
        # A scaler looks at gradients alone: a loss that is nan may well have finite ones.
        gradient, before = sums.get("gradient"), self._in_a_row
        left_out = gradient is None or not torch.isfinite(gradient).item()
        if self._accelerator.mixed_precision == "fp16" and left_out:
            self.skipped += 1
            self._in_a_row += 1
            if self._in_a_row < SKIPS:
                return
        raise NonFiniteLoss(_message(state.global_step + 1, _figures(sums, args), before))


def _figures(sums: Mapping[str, Tensor], args: Any) -> dict[str, float]:
    """Figures that are no finite numbers, of any process."""
    own = {name: value.item() for name, value in sums.items() if not torch.isfinite(value)}
    every = gather_object([own]) if args.world_size > 1 else [own]
    return {name: value for found in every for name, value in found.items()}


def _message(step: int, figures: Mapping[str, float], before: int) -> str:
    found = ", ".join(f"{name} {value}" for name, value in figures.items())
    tried = f", as in the {before} before, which the scaler of fp16 left out" if before else ""
    return (
        f"step {step}: expected a finite loss and gradient; found {found}{tried}. The step was not "
        "taken, and the checkpoints before are whole. If the losses before grew, lower "
        "--learning-rate or set a --max-grad-norm, and go on from a checkpoint with "
        "--resume-from-checkpoint; if they did not, look at the targets: cachekd verify CACHE "
        "--teacher TEACHER scores a sample of them again"
    )

"""An objective that learns: how much its loss counts, as one log-variance and one shift."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from cachekd.objectives.kd import KD, KDOptions


class Weighing(KD):
    """exp(-a) * loss + a, after "Multi-Task Learning Using Uncertainty" (Kendall et al.), Eq. 7."""

    Options = KDOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.module = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.tensor(0.25))})

    def learned(self, vocab_size: int = 0) -> torch.nn.Module:
        return self.module

    def __call__(self, student: Any, targets: Any) -> Any:
        output = super().__call__(student, targets)
        a = self.module["a"].to(output.loss_sum.dtype)
        loss_sum = torch.exp(-a) * output.loss_sum + a * output.weight_sum
        return replace(output, loss_sum=loss_sum)

"""GKD: generalised Jensen-Shannon divergence on the student's own text or the data's.

Of "On-Policy Distillation of Language Models" (Agarwal et al., ICLR 2024), Algorithm 1. One coin a
batch: with probability ``lmbda`` the student answers its prompts, else the data does. The
divergence is that of ``--objective jsd``; sampling is not differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cachekd.config import option
from cachekd.objectives._rollouts import RolloutOptions, Rollouts, Share
from cachekd.objectives._student_text import (
    OnPolicyDivergence,
    check_share,
    loss_option,
    sampled_by,
)
from cachekd.objectives.jsd import JSD, JSDOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class GKDOptions(JSDOptions, RolloutOptions):
    """Options of ``--objective gkd``."""

    lmbda: float = option(
        0.5, "Share of batches whose text the student writes, 0 to 1.", group="Rollouts"
    )
    loss: Mapping[str, float] = loss_option()

    def __post_init__(self) -> None:
        JSDOptions.__post_init__(self)
        RolloutOptions.__post_init__(self)
        check_share("lmbda", self.lmbda)


class GKD(OnPolicyDivergence, JSD):
    """See the module's text."""

    Options: ClassVar[type] = GKDOptions

    def rollouts(self, options: Any) -> Rollouts | None:
        """One coin a batch."""
        return sampled_by(options, Share(lmbda=float(options.lmbda)))


PLUGIN = GKD

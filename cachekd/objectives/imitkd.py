"""ImitKD: forward KL on the student's own text.

(Lin et al., "Autoregressive Knowledge Distillation through Imitation Learning", EMNLP 2020.) By
default all text is the student's, as the papers that compare with it do. In the original each
sample has a coin, and the data's share falls over the run: ``lmbda_schedule`` linear, to 0, or
exponential, 200^(-t/T); ``lmbda`` is the student's share at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cachekd.config import option
from cachekd.objectives._divergence import DivergenceOptions
from cachekd.objectives._rollouts import RolloutOptions, Rollouts, Share
from cachekd.objectives._student_text import (
    OnPolicyDivergence,
    check_share,
    loss_option,
    sampled_by,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImitKDOptions(DivergenceOptions, RolloutOptions):
    """Options of ``--objective imitkd``."""

    lmbda: float = option(
        1.0, "Share of samples whose text the student writes, 0 to 1.", group="Rollouts"
    )
    lmbda_schedule: str = option(
        "constant",
        "How the share goes. constant: always lmbda; linear and exponential: from 0 to lmbda over "
        "the run.",
        choices=("constant", "linear", "exponential"),
        group="Rollouts",
    )
    loss: Mapping[str, float] = loss_option()

    def __post_init__(self) -> None:
        DivergenceOptions.__post_init__(self)
        RolloutOptions.__post_init__(self)
        check_share("lmbda", self.lmbda)


class ImitKD(OnPolicyDivergence):
    """See the module's text."""

    Options: ClassVar[type] = ImitKDOptions

    def rollouts(self, options: Any) -> Rollouts | None:
        """One coin a sample."""
        share = Share(kind=options.lmbda_schedule, lmbda=float(options.lmbda), per="sample")
        return sampled_by(options, share)


PLUGIN = ImitKD

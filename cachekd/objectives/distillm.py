"""DistiLLM: skew KL, an adaptive share of the student's text, and a replay buffer of it.

Of "DistiLLM: Towards Streamlined Distillation for Large Language Models" (Ko et al., ICML 2024),
Algorithm 1. The divergence is that of ``--objective skew``; who writes a batch is said in
`cachekd.rollouts.schedule`. Paper and released code differ:

                                paper                    code (the defaults here)
    phi grows when held-out     exceeds the last one     reaches that of the last growth
    loss + margin               last_eval                last_trigger
    a batch just written        goes to the buffer       is trained on
    trains                      buffer                   fresh
    phi at the start            0                        0

With phi = 0 no text is written before the held-out loss has grown, which short runs do not see:
here it starts at 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.objectives._rollouts import RolloutOptions, Rollouts, Share
from cachekd.objectives._student_text import (
    OnPolicyDivergence,
    check_share,
    loss_option,
    sampled_by,
)
from cachekd.objectives.skew import Skew, SkewOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class DistiLLMOptions(SkewOptions, RolloutOptions):
    """Options of ``--objective distillm``."""

    lmbda: float = option(
        0.2, "phi at the start: share of batches of student text, new or old.", group="Rollouts"
    )
    phi_step: float = option(0.1, "What phi grows by, up to 1.", group="Rollouts")
    phi_margin: float = option(
        0.1, "How much worse the held-out loss must be for phi to grow.", group="Rollouts"
    )
    phi_compare: str = option(
        "last_trigger",
        "Worse than which. last_eval: the evaluation before; last_trigger: the one at which phi "
        "grew last, or else the first; best: the lowest.",
        choices=("last_eval", "last_trigger", "best"),
        group="Rollouts",
    )
    phi_rate: str = option(
        "decreasing",
        "Share of phi that is written anew, the rest coming from the buffer: decreasing 1 - t/T, "
        "constant 1/2, increasing t/T.",
        choices=("decreasing", "constant", "increasing"),
        group="Rollouts",
    )
    replay: int = option(
        1000, "Sequences that the replay buffer of a process holds.", group="Rollouts"
    )
    replay_trains: str = option(
        "fresh",
        "What a batch that was just written trains. fresh: itself, and batches are written until "
        "the buffer is full; buffer: it is put there, and one drawn from it is trained on.",
        choices=("fresh", "buffer"),
        group="Rollouts",
    )
    loss: Mapping[str, float] = loss_option()

    def __post_init__(self) -> None:
        SkewOptions.__post_init__(self)
        RolloutOptions.__post_init__(self)
        check_share("lmbda", self.lmbda)
        check_share("phi_step", self.phi_step)
        if not 0 <= self.phi_margin < float("inf"):
            raise ConfigError(f"phi_margin: expected a number >= 0; found {self.phi_margin}")
        if self.replay < 1:
            raise ConfigError(f"replay: expected 1 or more; found {self.replay}")


class DistiLLM(OnPolicyDivergence, Skew):
    """See the module's text."""

    Options: ClassVar[type] = DistiLLMOptions

    def rollouts(self, options: Any) -> Rollouts | None:
        """An adaptive share, and a buffer."""
        share = Share(
            kind="adaptive",
            lmbda=float(options.lmbda),
            rate=options.phi_rate,
            step=float(options.phi_step),
            margin=float(options.phi_margin),
            compare=options.phi_compare,
            fresh_trains=options.replay_trains == "fresh",
        )
        return sampled_by(options, share, replay=int(options.replay))


PLUGIN = DistiLLM

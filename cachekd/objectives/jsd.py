"""Generalised Jensen-Shannon divergence on cached contexts, plus cross entropy.

Of "On-Policy Distillation of Language Models" (Agarwal et al., ICLR 2024):

    D = beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q

beta 0 is forward KL and beta 1 reverse KL, as in other trainers: at the ends the formula itself is
0, so that the scale jumps there. Its error with a tail bucket is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.losses.choice import Divergence
from cachekd.objectives._divergence import DivergenceObjective, DivergenceOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class JSDOptions(DivergenceOptions):
    """Options of ``--objective jsd``."""

    beta: float = option(
        0.5,
        "0: forward KL; 1: reverse KL; between: the mixture's share of the teacher.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        DivergenceOptions.__post_init__(self)
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta: expected 0 to 1; found {self.beta}")


class JSD(DivergenceObjective):
    """Generalised JSD, with both KLs at its ends."""

    Options: ClassVar[type] = JSDOptions

    def divergence(self, options: Any) -> Divergence:
        """By beta."""
        beta = float(options.beta)
        name = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jsd")
        return Divergence(
            name=name,
            weight=beta,
            temperature=float(options.temperature),
            tail=options.tail,
        )


PLUGIN = JSD

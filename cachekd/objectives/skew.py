"""Skew KL, forward or reverse, plus cross entropy (Ko et al., "DistiLLM", ICML 2024).

    forward   D = KL(p || alpha p + (1 - alpha) q)
    reverse   D = KL(q || (1 - alpha) p + alpha q)

Both are bounded by log(1 / alpha), and so is their error with a tail bucket: the safest losses for
a sparse cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.losses.choice import Divergence
from cachekd.objectives._divergence import DivergenceObjective, DivergenceOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewOptions(DivergenceOptions):
    """Options of ``--objective skew``."""

    direction: str = option(
        "reverse",
        "Whose KL to the mixture: forward, the teacher's; reverse, the student's.",
        choices=("forward", "reverse"),
        group="Objective",
    )
    alpha: float = option(
        0.1, "Share of the own side in the mixture, between 0 and 1.", group="Objective"
    )

    def __post_init__(self) -> None:
        DivergenceOptions.__post_init__(self)
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha: expected between 0 and 1 (exclusive); found {self.alpha}")


class Skew(DivergenceObjective):
    """Skew KL of one direction."""

    Options: ClassVar[type] = SkewOptions

    def divergence(self, options: Any) -> Divergence:
        """By direction and share."""
        name = {"forward": "skew_kl", "reverse": "skew_reverse_kl"}[options.direction]
        return Divergence(
            name=name,
            weight=float(options.alpha),
            temperature=float(options.temperature),
            tail=options.tail,
        )


PLUGIN = Skew

"""Symmetric KL: D = (1 - beta) KL(teacher || student) + beta KL(student || teacher), plus CE.

A baseline of "Multi-Granularity Semantic Revision for Large Language Model Distillation", Table 3c,
which does not give the weight; beta = 0.5 is half the Jeffreys divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.losses.choice import Divergence
from cachekd.objectives._divergence import DivergenceObjective, DivergenceOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SymmetricOptions(DivergenceOptions):
    """Options of ``--objective symmetric``."""

    beta: float = option(
        0.5, "Weight of reverse KL, 0 to 1; the rest is forward.", group="Objective"
    )

    def __post_init__(self) -> None:
        DivergenceOptions.__post_init__(self)
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta: expected 0 to 1; found {self.beta}")


class Symmetric(DivergenceObjective):
    """Both KLs, weighted."""

    Options: ClassVar[type] = SymmetricOptions

    def divergence(self, options: Any) -> Divergence:
        """By beta."""
        return Divergence(
            name="jeffreys",
            weight=float(options.beta),
            temperature=float(options.temperature),
            tail=options.tail,
        )


PLUGIN = Symmetric

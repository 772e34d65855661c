"""What objectives with soft targets have in common: temperature, weights of the terms, defaults.

    loss = ce * CE(next token, T = 1)  +  kd * T^2 * (what the method says at temperature T)

The factor T^2 keeps the size of the gradient of soft targets level when T changes (Hinton, Vinyals
and Dean, "Distilling the Knowledge in a Neural Network", section 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cachekd.config import check_choices, option
from cachekd.errors import ConfigError
from cachekd.objectives import unknown

if TYPE_CHECKING:
    from torch import nn

    from cachekd.types import TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftOptions:
    """Options of every objective with soft targets."""

    temperature: float = option(
        1.0,
        "Temperature of the divergence; a cache must hold it, a live teacher gives any.",
        group="Objective",
    )
    loss: Mapping[str, float] = option(
        {"ce": 0.1, "kd": 0.9},
        "Weights of cross entropy and divergence, as ce=0.1 kd=0.9; a term left out counts 0.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_terms(self.loss, ("ce", "kd"))
        if not self.temperature > 0:
            raise ConfigError(f"temperature: expected above 0; found {self.temperature}")


def check_terms(loss: Mapping[str, float], known: tuple[str, ...]) -> None:
    """Refuse weights of a loss that cannot be used.

    Raises:
        ConfigError: a term that the objective does not have, a weight that is no number >= 0, or
            no weight above 0.
    """
    for name, weight in loss.items():
        if name not in known:
            raise ConfigError(unknown(name, list(known), "a term of the loss"))
        if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ConfigError(f"loss: expected {name} to be a number >= 0; found {weight!r}")
    if not any(loss.values()):
        raise ConfigError(f"loss: expected a weight above 0; found {dict(loss)}")


class SoftObjective:
    """Defaults of an objective: nothing is learned beside the student, targets stay as they are.

    Attributes:
        options: as given.
        temperature: T.
        ce: weight of cross entropy.
        kd: weight of what the method says.
    """

    def __init__(self, options: Any) -> None:
        self.options = options
        self.temperature = float(options.temperature)
        self.ce = float(options.loss.get("ce", 0.0))
        self.kd = float(options.loss.get("kd", 0.0))

    def learned(self, vocab_size: int = 0) -> nn.Module | None:
        """Nothing beside the student."""
        return None

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """The targets as they are."""
        return targets

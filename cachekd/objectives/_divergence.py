"""What objectives of one divergence have in common: options, needs, and the weighted sum.

    loss = ce * CE(next token, T = 1)  +  kd * T^2 * D(teacher_T, student_T)

The factor T^2 keeps the size of the gradient of soft targets level when T changes (Hinton, Vinyals
and Dean, "Distilling the Knowledge in a Neural Network", section 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.config import check_choices, option
from cachekd.errors import ConfigError
from cachekd.losses.choice import TAILS, Divergence
from cachekd.objectives import Needs, unknown

if TYPE_CHECKING:
    from cachekd.losses.student import StudentRows
    from cachekd.types import ObjectiveOutput, TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceOptions:
    """Options of every objective that is one divergence."""

    temperature: float = option(
        1.0, "Temperature of the divergence; it must have been captured.", group="Objective"
    )
    tail: str = option(
        "bucket",
        "What is said of the mass outside the stored head: bucket keeps it as one outcome; flat, "
        "unigram and log_rank spread it over the other tokens; renormalised compares within the "
        "head alone and teaches nothing of what the student puts outside.",
        choices=TAILS,
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
        Divergence(temperature=self.temperature, tail=self.tail)


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


class DivergenceObjective:
    """One divergence and cross entropy; a method is a sub-class that says which divergence.

    Attributes:
        spec: the divergence.
        metric: name of the divergence in logs.
    """

    Options: ClassVar[type] = DivergenceOptions

    def __init__(self, options: Any) -> None:
        self.spec = self.divergence(options)
        self.metric = "kl" if self.spec.name == "forward_kl" else self.spec.name
        self.ce = float(options.loss.get("ce", 0.0))
        self.kd = float(options.loss.get("kd", 0.0))

    def divergence(self, options: Any) -> Divergence:
        """Which divergence these options mean."""
        return Divergence(temperature=float(options.temperature), tail=options.tail)

    def needs(self) -> Needs:
        """The log-normaliser of the temperature, unless it is 1; a unigram for some tails."""
        return Needs(
            temperatures=(self.spec.temperature,),
            unigram=self.spec.unigram,
            sampled=self.spec.linear,
            dense=self.spec.dense,
        )

    def learned(self, vocab_size: int = 0) -> None:
        """Nothing beside the student."""

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """The shape of the tail model, where there is one."""
        from cachekd.losses.sparse import shaped

        return shaped(targets, vocab_size, self.spec)

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Loss and metrics of some rows.

        Returns:
            Weighted sums. Metrics, each a mean when divided by the weight sum: the divergence at
            the temperature, without T^2; ``ce`` at T = 1; ``tail_mass``, the student's probability
            outside the teacher's head at the temperature.

        Raises:
            ConfigError: the targets do not serve the divergence.
        """
        from cachekd.losses.sparse import weighted_sum

        return weighted_sum(student, targets, self.spec, kd=self.kd, ce=self.ce, name=self.metric)

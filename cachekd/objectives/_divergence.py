"""What objectives of one divergence have in common: options, needs, and the weighted sum.

loss = ce * CE(next token, T = 1)  +  kd * T^2 * D(teacher_T, student_T)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.config import option
from cachekd.losses.choice import TAILS, Divergence
from cachekd.objectives import Needs
from cachekd.objectives._soft import SoftObjective, SoftOptions

if TYPE_CHECKING:
    from cachekd.losses.student import StudentRows
    from cachekd.types import ObjectiveOutput, TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceOptions(SoftOptions):
    """Options of every objective that is one divergence."""

    tail: str = option(
        "bucket",
        "What is said of the mass outside the stored head: bucket keeps it as one outcome; flat, "
        "unigram and log_rank spread it over the other tokens; renormalised compares within the "
        "head alone and teaches nothing of what the student puts outside.",
        choices=TAILS,
        group="Objective",
    )

    def __post_init__(self) -> None:
        SoftOptions.__post_init__(self)
        Divergence(temperature=self.temperature, tail=self.tail)


class DivergenceObjective(SoftObjective):
    """One divergence and cross entropy; a method is a sub-class that says which divergence.

    Attributes:
        spec: the divergence.
        metric: name of the divergence in logs.
    """

    Options: ClassVar[type] = DivergenceOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.spec = self.divergence(options)
        self.metric = "kl" if self.spec.name == "forward_kl" else self.spec.name

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

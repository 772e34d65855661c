"""Decoupled KD: forward KL taken apart at a target class, with a weight for each part.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022; a baseline of "Multi-Granularity
Semantic Revision for Large Language Model Distillation", Table 7.

    loss = ce * CE  +  kd * T^2 * (alpha * TCKD + beta * NCKD)

KL(teacher || student) is TCKD + (1 - p_g) NCKD: where the teacher is sure of the target g, KL all
but ignores how it orders the other classes, and DKD does not. NCKD of a stored head has one class
for all tokens outside it; TCKD is exact, for a capture always stores the next token's probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.objectives import Needs
from cachekd.objectives._soft import SoftObjective, SoftOptions
from cachekd.objectives._sums import summed

if TYPE_CHECKING:
    from cachekd.losses.decoupled import Target
    from cachekd.losses.paired import Paired
    from cachekd.losses.student import StudentRows
    from cachekd.types import ObjectiveOutput, TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class DKDOptions(SoftOptions):
    """Options of ``--objective dkd``.

    In KL the weight of NCKD is 1 - p_g, so never above 1: with beta = 1 a row in which the teacher
    gives the target nothing weighs as in KL, and other rows more. The default 2 is above KL on
    every row, which is what the method is for, and stays far from the 8 of the paper: that is for
    image classes, of which a teacher is nearly sure. The metric ``target_p`` is the mean of p_g.
    """

    alpha: float = option(1.0, "Weight of target against rest (TCKD).", group="Objective")
    beta: float = option(
        2.0, "Weight of the rest (NCKD); in KL it is 1 - p of the target.", group="Objective"
    )
    target: str = option(
        "gold",
        "Target class of a row: gold, the actual next token; argmax, the teacher's most probable "
        "one (for text that a student wrote).",
        choices=("gold", "argmax"),
        group="Objective",
    )

    def __post_init__(self) -> None:
        SoftOptions.__post_init__(self)
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected a number >= 0; found {getattr(self, name)}")
        if not (self.alpha or self.beta):
            raise ConfigError("alpha and beta: expected one of them above 0; found 0 and 0")


class DKD(SoftObjective):
    """See the module's text."""

    Options: ClassVar[type] = DKDOptions

    def needs(self) -> Needs:
        """The log-normaliser of the temperature, exact heads, and of gold what it is worth."""
        gold = self.options.target == "gold"
        return Needs(temperatures=(self.temperature,), next_known=gold)

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Weighted sums over some rows.

        Returns:
            Metrics: ``tckd`` and ``nckd`` without weights and T^2; ``ce``; ``tail_mass`` of the
            student; ``target_p``, the teacher's probability of the target.
        """
        from cachekd.losses.decoupled import decoupled
        from cachekd.losses.paired import paired

        sides = paired(student, targets, self.temperature)
        target = self._target(student, targets, sides)
        tckd_R, nckd_R = decoupled(sides, target)
        ce_R, scale = -student.next_log_q(), self.kd * self.temperature**2
        terms = [
            (scale * float(self.options.alpha), tckd_R),
            (scale * float(self.options.beta), nckd_R),
            (self.ce, ce_R),
        ]
        metrics = {
            "tckd": tckd_R,
            "nckd": nckd_R,
            "ce": ce_R,
            "tail_mass": sides.rest_R.exp(),
            "target_p": target.log_p_R.exp(),
        }
        return summed(targets, terms, metrics)

    def _target(self, student: StudentRows, targets: TargetTensors, sides: Paired) -> Target:
        from cachekd.losses.decoupled import argmax_target, gold_target

        if self.options.target == "argmax":
            return argmax_target(sides, targets)
        return gold_target(student, sides, targets, self.temperature)


PLUGIN = DKD

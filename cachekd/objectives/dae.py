"""Domain alignment from an expert ("A Teacher Is Worth A Million Instructions", Eq. 6).

    loss = kd * T^2 * KL(target_T || student_T)  +  ce * CE
    target = the expert on samples of its domain, the student as it started on all others

Samples of the domain are read from the cache ``expert``, others from ``reference``, which was
captured with the student as it starts: there the loss begins at 0, up to what the cache lost, and
what the student could do before is held. Predictions only, as in the paper; its form is kd = 1,
ce = 0, the default. Each row counts alike, so that the domain's share of the loss is its share of
rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cachekd.config import option
from cachekd.objectives import Needs
from cachekd.objectives._divergence import DivergenceObjective, DivergenceOptions

if TYPE_CHECKING:
    from cachekd.losses.student import StudentRows
    from cachekd.types import ObjectiveOutput, TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class DAEOptions(DivergenceOptions):
    """Options of ``--objective dae``."""

    loss: Mapping[str, float] = option(
        {"kd": 1.0},
        "Weights of cross entropy and KL, as ce=0.1 kd=0.9; a term left out counts 0.",
        group="Objective",
    )


class DAE(DivergenceObjective):
    """Forward KL of every row to the teacher that its sample is routed to."""

    Options: ClassVar[type] = DAEOptions

    def needs(self) -> Needs:
        """Two teachers, one of them the student as it starts."""
        return replace(super().needs(), one_teacher=False, routed=True, start="reference")

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """As of every divergence.

        Where ``targets["expert"]`` says which rows are the expert's (an evaluation cache is not
        routed), there are further metrics ``kl_expert`` and ``kl_reference``, means over the rows
        of each.
        """
        from cachekd.losses.divergences import divergence
        from cachekd.losses.sparse import mixed_sum

        kl_R = divergence(student, targets, self.spec)
        output = mixed_sum(
            student, targets, kl_R, self.spec, kd=self.kd, ce=self.ce, name=self.metric
        )
        expert_R = targets.get("expert")
        if expert_R is None:
            return output
        weights_R = targets["weights"].to(kl_R.dtype)
        metrics, counts = dict(output.metrics), dict(output.counts)
        for name, own_R in (("kl_expert", expert_R), ("kl_reference", ~expert_R)):
            metrics[name] = (weights_R * kl_R.detach())[own_R].sum()
            counts[name] = weights_R[own_R].sum()
        return replace(output, metrics=metrics, counts=counts)


PLUGIN = DAE

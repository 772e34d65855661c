"""What on-policy objectives of one divergence have in common: contexts that the student writes.

    loss = kd * T^2 * D(teacher_T, student_T)  +  ce * CE(next token, T = 1) on the data's own rows

The mean is over all rows of a batch, whoever wrote them. Cross entropy with what the student wrote
itself would teach it nothing but to be sure, so that it is taken of the data's rows alone. A batch
that does not say who wrote it is the data's own: a cache, or held-out samples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.objectives import Needs
from cachekd.objectives._divergence import DivergenceObjective
from cachekd.objectives._rollouts import RolloutOptions, Rollouts, Share, correction_of

if TYPE_CHECKING:
    from torch import Tensor

    from cachekd.losses.student import StudentRows
    from cachekd.types import ObjectiveOutput, TargetTensors


def loss_option() -> Any:
    """The option ``loss`` of objectives that take cross entropy of the data's own text alone."""
    return option(
        {"kd": 1.0},
        "Weights of cross entropy (on the data's own text) and divergence, as ce=0.1 kd=0.9; a "
        "term left out counts 0.",
        group="Objective",
    )


def check_share(name: str, value: float) -> None:
    """Refuse a share outside 0 to 1.

    Raises:
        ConfigError: names it.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}: expected 0 to 1; found {value}")


def sampled_by(options: RolloutOptions, share: Share, **further: Any) -> Rollouts | None:
    """What options of a divergence ask of the student's text; None where it never writes."""
    if share.kind != "adaptive" and not share.lmbda:
        return None
    return Rollouts(
        max_new_tokens=options.max_new_tokens,
        temperature=options.rollout_temperature,
        top_p=options.rollout_top_p,
        top_k=options.rollout_top_k,
        support=options.support,
        correction=correction_of(options),
        share=share,
        **further,
    )


def written_by_student(targets: TargetTensors) -> Tensor:
    """Which rows are of text that the student wrote, bool [R]; none where it is not said."""
    import torch

    found = targets.get("student_text")
    return torch.zeros_like(targets["weights"], dtype=torch.bool) if found is None else found


class OnPolicyDivergence(DivergenceObjective):
    """A divergence on the student's text and the data's; a sub-class says which and how often."""

    def rollouts(self, options: Any) -> Rollouts | None:
        """What these options ask of the student's text."""
        raise NotImplementedError

    def needs(self) -> Needs:
        """As any divergence, and text of the student."""
        return replace(super().needs(), rollouts=self.rollouts(self.options))

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Loss and metrics of some rows.

        Returns:
            Weighted sums. Metrics: as those of other divergences, ``ce`` a mean over the data's
            rows; ``student_share``, the share of rows that the student wrote.

        Raises:
            ConfigError: the targets do not serve the divergence.
        """
        import torch

        from cachekd.losses.divergences import divergence, student_tail_mass
        from cachekd.objectives._sums import summed

        written_R = written_by_student(targets)
        kd_R = divergence(student, targets, self.spec)
        ce_R = -student.next_log_q()
        ce_R = torch.where(written_R, torch.zeros_like(ce_R), ce_R)
        mass_R = student_tail_mass(student, targets, self.temperature)
        terms = [(self.kd * self.temperature**2, kd_R), (self.ce, ce_R)]
        metrics = {self.metric: kd_R, "ce": ce_R, "tail_mass": mass_R, "student_share": written_R}
        output = summed(targets, terms, metrics)
        data = output.weight_sum - output.metrics["student_share"]
        return replace(output, counts={"ce": data})

"""A weighted sum of objectives on the same samples and one forward pass of the student.

    loss = sum over terms of weight * loss of the term

In YAML, where a name is the objective unless ``objective`` says another:

    objective: sum
    terms:
      sft: {weight: 1.0}
      span: {weight: 1.0, chunker: adjacent}
      soft: {objective: kd, weight: 0.5, temperature: 2.0}

With sft, dac_kl and span at weight 1 it is the total loss of "Multi-Granularity Semantic Revision
for Large Language Model Distillation", Eq. 11. Each term sees the targets that it prepared itself;
what a term says of its rows is logged under its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.objectives import Needs
from cachekd.objectives._terms import Term, merged, terms_of
from cachekd.types import ObjectiveOutput

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cachekd.losses.student import StudentRows
    from cachekd.types import TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class SumOptions:
    """Options of ``--objective sum``."""

    terms: Mapping[str, Any] = option(
        {},
        "Objectives and their weights, as sft=1; options of a term are given in YAML.",
        group="Objective",
    )


class Sum:
    """Several objectives as one."""

    Options: ClassVar[type] = SumOptions

    def __init__(self, options: Any) -> None:
        self.terms: tuple[Term, ...] = terms_of(options.terms)
        self._learned: nn.Module | None = None

    def needs(self) -> Needs:
        """What any term needs, or all of them together."""
        return merged(self.terms)

    def learned(self, vocab_size: int = 0) -> nn.Module | None:
        """What the terms learn, each under its name."""
        from torch import nn

        if self._learned is None:
            modules = {term.name: term.objective.learned(vocab_size) for term in self.terms}
            found = {name: module for name, module in modules.items() if module is not None}
            taken = sorted(name for name in found if hasattr(nn.ModuleDict, name))
            if taken:
                raise ConfigError(f"terms: {taken[0]!r} cannot name a term that learns; rename it")
            self._learned = nn.ModuleDict(found) if found else None
        return self._learned

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """The targets, and beside them what each term prepared, under its name."""
        from cachekd.losses.terms import joined

        prepared = {t.name: t.objective.prepare(targets, vocab_size) for t in self.terms}
        return joined(targets, prepared)

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Weighted sums over some rows.

        Returns:
            Metrics and counts of the terms as ``term/metric``; ``term/loss`` is what a term adds to
            the loss, its weight included. A term of weight 0 is measured and not trained.
        """
        from cachekd.losses.terms import of_term

        metrics: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        weight_sum = targets["weights"].sum()
        loss_sum = weight_sum.new_zeros(())
        for term in self.terms:
            output = term.objective(student, of_term(targets, term.name))
            added = term.weight * output.loss_sum if term.weight else loss_sum.new_zeros(())
            loss_sum = loss_sum + added
            own = {"loss": added.detach(), **output.metrics}
            metrics |= {f"{term.name}/{key}": value for key, value in own.items()}
            counts |= {f"{term.name}/{key}": value for key, value in output.counts.items()}
        return ObjectiveOutput(
            loss_sum=loss_sum, weight_sum=weight_sum, metrics=metrics, counts=counts
        )


PLUGIN = Sum

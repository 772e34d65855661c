"""Consistency within phrases: the student relates neighbouring tokens as the teacher does.

("Multi-Granularity Semantic Revision for Large Language Model Distillation", Eq. 10.)

    loss(x) = 1 / n_s  sum over phrases s of x  1 / |s|  sum over neighbours j, j + 1 in s
              || q_j * q_{j+1} - p_j * p_{j+1} ||_2

A phrase of one token adds 0 and counts in n_s. Over samples it is the mean that rows are weighed
for: a sample counts as much as in other losses of the same run. In the paper it is one of three
terms (``--objective sum``); alone it leaves tokens outside phrases untaught.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.config import option
from cachekd.objectives import Needs
from cachekd.plugins import find
from cachekd.types import ObjectiveOutput

if TYPE_CHECKING:
    from cachekd.losses.student import StudentRows
    from cachekd.types import TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanOptions:
    """Options of ``--objective span``."""

    chunker: str = option(
        "phrases",
        "How a response is cut into phrases: phrases, by punctuation and English function words; "
        "adjacent, not at all; random, as a control; nltk, by parts of speech; or module:Class.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        find("chunkers", self.chunker)


class Span:
    """The span loss alone."""

    Options: ClassVar[type] = SpanOptions

    def __init__(self, options: Any) -> None:
        self.chunker = str(options.chunker)

    def needs(self) -> Needs:
        """Phrases, and of the student whole logits of neighbouring rows."""
        return Needs(dense=True, next_row=True, spans=self.chunker)

    def learned(self, vocab_size: int = 0) -> None:
        """Nothing beside the student."""

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """As they are."""
        return targets

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Sum over the pairs that begin in some rows.

        Returns:
            Sums; metrics: ``span``, the loss; ``pair_share``, the share of rows in which a pair
            begins.
        """
        from cachekd.losses.span import pair_distances

        first_P, d_P = pair_distances(student.logits(), targets)
        factor_P = targets["span_factor"][first_P].to(d_P.dtype)
        weights_R = targets["weights"].to(d_P.dtype)
        loss_sum = (factor_P * d_P).sum()
        return ObjectiveOutput(
            loss_sum=loss_sum,
            weight_sum=weights_R.sum(),
            metrics={
                "span": loss_sum.detach(),
                "pair_share": weights_R[first_P].sum(),
            },
        )


PLUGIN = Span

"""Clipping at a fixed threshold: forward KL on the teacher's most probable classes, plus CE.

The baselines "fixed clipping threshold" (95 % of the mass), Raman et al. (the first 5 % of classes)
and "target only" of "Multi-Granularity Semantic Revision for Large Language Model Distillation",
Tables 3b and 7. The paper does not say what becomes of the student's side, and three losses hide
behind the name (``student_support``):

    full        sum_S p^ log(p^/q): the student's best answer is the clipped teacher, so it sharpens
    restricted  sum_S p^ log(p^/q^): what the student puts outside S is not judged
    tail        S and one outcome for all the rest: mass is matched

with p^ and q^ the teacher and student divided by their mass in S. S is chosen by the teacher at
temperature 1. Where the stored head holds less than was asked for, S is all of it and the row
counts in ``short_rows``: such a row is clipped at its head's mass in place of the threshold, which
sharpens ``full`` more and judges less of the student in ``restricted``; ``tail`` stays a lower
bound of the full KL either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.objectives import Needs
from cachekd.objectives._soft import SoftObjective, SoftOptions
from cachekd.objectives._sums import summed

if TYPE_CHECKING:
    from cachekd.losses.student import StudentRows
    from cachekd.types import ObjectiveOutput, TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippingOptions(SoftOptions):
    """Options of ``--objective clipping``."""

    keep: str = option(
        "top_p",
        "Which classes are kept. top_p: the fewest that hold clip-p of the mass; top_share: the "
        "first clip-share of the vocabulary; argmax: the most probable one.",
        choices=("top_p", "top_share", "argmax"),
        group="Objective",
    )
    clip_p: float = option(
        0.95, "top_p: teacher mass that the kept classes hold.", group="Objective"
    )
    clip_share: float = option(0.05, "top_share: share of the vocabulary.", group="Objective")
    student_support: str = option(
        "full",
        "What the student is compared on: full, its whole softmax; restricted, the kept classes "
        "alone, renormalised; tail, the kept classes and one bucket for the rest.",
        choices=("full", "restricted", "tail"),
        group="Objective",
    )

    def __post_init__(self) -> None:
        SoftOptions.__post_init__(self)
        if not 0 < self.clip_p <= 1:
            raise ConfigError(f"clip_p: expected above 0, at most 1; found {self.clip_p}")
        if not 0 < self.clip_share <= 1:
            raise ConfigError(f"clip_share: expected above 0, at most 1; found {self.clip_share}")
        if self.keep == "argmax" and self.student_support == "restricted":
            raise ConfigError(
                "student_support restricted: with keep argmax both sides are 1 on one class and "
                "nothing is learned. Use full or tail"
            )


class Clipping(SoftObjective):
    """See the module's text."""

    Options: ClassVar[type] = ClippingOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._vocab = 0

    def needs(self) -> Needs:
        """Exact heads, of the mass that is clipped at; the temperature's normaliser."""
        mass = float(self.options.clip_p) if self.options.keep == "top_p" else 0.0
        return Needs(temperatures=(self.temperature,), mass=mass)

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """The same targets; the vocabulary says how many classes a share is."""
        self._vocab = vocab_size
        return targets

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Weighted sums over some rows.

        Returns:
            Metrics: ``clipped_kl`` without T^2; ``ce``; ``tail_mass``, the student's probability
            outside the stored head; ``kept``, classes kept in a row; ``short_rows``, the share of
            rows whose head does not hold what was asked.
        """
        from cachekd.losses.clipping import best, clipped_kl
        from cachekd.losses.paired import paired, ranks
        from cachekd.losses.ragged import segment_sum

        sides = paired(student, targets, self.temperature)
        rank_n = ranks(targets["logprobs"], targets["offsets"])
        kept = best(
            targets,
            rank_n,
            self._vocab,
            keep=self.options.keep,
            mass=float(self.options.clip_p),
            share=float(self.options.clip_share),
        )
        kl_R = clipped_kl(sides, kept.keep_n, self.options.student_support)
        ce_R = -student.next_log_q()
        metrics = {
            "clipped_kl": kl_R,
            "ce": ce_R,
            "tail_mass": sides.rest_R.exp(),
            "kept": segment_sum(kept.keep_n.to(ce_R.dtype), sides.row_n, len(ce_R)),
            "short_rows": kept.short_R,
        }
        return summed(targets, [(self.kd * self.temperature**2, kl_R), (self.ce, ce_R)], metrics)


PLUGIN = Clipping

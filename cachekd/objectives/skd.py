"""SKD-like distillation: forward KL to a teacher that a small attention network made simpler.

After "student-friendly knowledge distillation" (SKD), a baseline of "Multi-Granularity Semantic
Revision for Large Language Model Distillation", Table 7. Of its method only this is known here: the
teacher is softened by a temperature, passed through an attention network that is trained with the
student by the distillation loss, and the loss stays a KL. What the attention runs over, its size
and the settings for language models are choices of this file, so results are to be called SKD-like.

    loss = ce * CE  +  kd * T^2 * (KL(p' || q) + anchor * KL(p || p')),   p' = simplifier(p)

p' that is trained to please the student alone would become the student: the anchor holds it to the
teacher, and the best p' lies between both, nearer to the teacher for a larger weight. The residual
starts at 0, so that training starts as plain KD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.objectives import Needs
from cachekd.objectives._soft import SoftObjective, SoftOptions
from cachekd.objectives._sums import summed

if TYPE_CHECKING:
    from cachekd.losses.simplifier import Simplifier
    from cachekd.losses.student import StudentRows
    from cachekd.types import ObjectiveOutput, TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class SKDOptions(SoftOptions):
    """Options of ``--objective skd``."""

    temperature: float = option(
        2.0, "Temperature of both sides; it must have been captured.", group="Objective"
    )
    inputs: int = option(
        64, "Best classes of a row that the simplifier sees and changes.", group="Objective"
    )
    hidden: int = option(64, "Width of the simplifier's attention.", group="Objective")
    anchor: float = option(
        1.0,
        "Weight of KL(teacher || simplified teacher), above 0: without it the simplified teacher "
        "becomes the student.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        SoftOptions.__post_init__(self)
        for name in ("inputs", "hidden", "anchor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected above 0; found {getattr(self, name)}")


class SKD(SoftObjective):
    """See the module's text."""

    Options: ClassVar[type] = SKDOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._net: Simplifier | None = None

    def needs(self) -> Needs:
        """The log-normaliser of the temperature, and exact heads."""
        return Needs(temperatures=(self.temperature,))

    def learned(self, vocab_size: int = 0) -> Simplifier:
        """The simplifier."""
        from cachekd.losses.simplifier import Simplifier

        if self._net is None:
            self._net = Simplifier(self.options.inputs, self.options.hidden)
        return self._net

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """Targets whose ``logprobs`` and ``tail`` are the simplified teacher's at the temperature.

        ``anchor`` [N] is KL(teacher || simplified). All three carry a gradient to `learned`.

        Raises:
            ConfigError: the targets are sampled, or do not say which rows are of one document.
        """
        from cachekd.losses.paired import refuse_sampled
        from cachekd.losses.simplifier import simplify
        from cachekd.losses.targets import decode_targets

        refuse_sampled(targets)
        document_N = targets.get("document")
        if document_N is None:
            raise ConfigError(
                "the targets do not say which rows are of one document ('document', int64 [N]); "
                "make them with cachekd.Collator"
            )
        log_p_n, tail_N = decode_targets(targets, self.temperature)
        away_N = tail_N
        if len(tail_N):
            log_p_n, tail_N, away_N = simplify(
                self.learned(), log_p_n, tail_N, targets["offsets"], document_N
            )
        simple = {"logprobs": log_p_n, "tail": tail_N, "anchor": away_N}
        return cast("TargetTensors", {**targets, **simple})

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Weighted sums over some rows of prepared targets.

        Returns:
            Metrics: ``kl`` to the simplified teacher without T^2; ``ce``; ``tail_mass`` of the
            student; ``anchor``, KL(teacher || simplified) without its weight.
        """
        from cachekd.losses.paired import kl_part
        from cachekd.losses.ragged import entry_rows, segment_sum

        outcomes, ce_R = student.outcomes(self.temperature), -student.next_log_q()
        dtype, row_n = ce_R.dtype, entry_rows(targets["offsets"])
        parts_n = kl_part(targets["logprobs"].to(dtype), outcomes.log_q_n)
        kl_R = segment_sum(parts_n, row_n, len(ce_R))
        kl_R = kl_R + kl_part(targets["tail"].to(dtype), outcomes.log_rest_R)
        away_R = cast(Any, targets)["anchor"].to(dtype)
        scale = self.kd * self.temperature**2
        terms = [(scale, kl_R), (scale * float(self.options.anchor), away_R), (self.ce, ce_R)]
        metrics = {
            "kl": kl_R,
            "ce": ce_R,
            "tail_mass": outcomes.log_rest_R.exp(),
            "anchor": away_R,
        }
        return summed(targets, terms, metrics)


PLUGIN = SKD

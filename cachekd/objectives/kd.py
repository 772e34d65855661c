"""Prediction-layer distillation: forward KL to the teacher, plus cross entropy.

    loss = ce * CE(next token, T = 1)  +  kd * T^2 * KL(teacher_T || student_T)

The factor T^2 keeps the size of the gradient of soft targets level when T changes (Hinton, Vinyals
and Dean, "Distilling the Knowledge in a Neural Network", section 2). With T = 1, ce = 0 and kd = 1
it is the prediction loss of "A Teacher Is Worth A Million Instructions", Eq. 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cachekd.config import check_choices, option
from cachekd.errors import ConfigError
from cachekd.objectives import Needs, unknown
from cachekd.types import ObjectiveOutput

if TYPE_CHECKING:
    from torch import Tensor

    from cachekd.types import TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class KDOptions:
    """Options of ``--objective kd``."""

    temperature: float = option(
        1.0, "Temperature of the KL; it must have been captured.", group="Objective"
    )
    tail: str = option(
        "bucket",
        "What is said of the mass outside the stored head: bucket keeps it as one outcome; flat, "
        "unigram and log_rank spread it over the other tokens.",
        choices=("bucket", "flat", "unigram", "log_rank"),
        group="Objective",
    )
    loss: Mapping[str, float] = option(
        {"ce": 0.1, "kd": 0.9},
        "Weights of cross entropy and KL, as ce=0.1 kd=0.9; a term left out counts 0.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.temperature > 0:
            raise ConfigError(f"temperature: expected above 0; found {self.temperature}")
        for name, weight in self.loss.items():
            if name not in ("ce", "kd"):
                raise ConfigError(unknown(name, ["ce", "kd"], "a term of the loss of kd"))
            if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ConfigError(f"loss: expected {name} to be a number >= 0; found {weight!r}")
        if not any(self.loss.values()):
            raise ConfigError(f"loss: expected a weight above 0; found {dict(self.loss)}")


class KD:
    """Forward KL and cross entropy."""

    Options: ClassVar[type] = KDOptions

    def __init__(self, options: KDOptions) -> None:
        self.temperature = float(options.temperature)
        self.tail = options.tail
        self.ce = float(options.loss.get("ce", 0.0))
        self.kd = float(options.loss.get("kd", 0.0))

    def needs(self) -> Needs:
        """The log-normaliser of the temperature, unless it is 1; a unigram for some tails."""
        linear = self.temperature == 1.0 and self.tail == "bucket"
        return Needs(
            temperatures=(self.temperature,),
            unigram=self.tail in ("unigram", "log_rank"),
            sampled=linear,
        )

    def __call__(self, logits_NV: Tensor, targets: TargetTensors) -> ObjectiveOutput:
        """Loss and metrics of N rows.

        Returns:
            Weighted sums over the rows. Metrics, each a mean when divided by the weight sum: ``kl``
            at the temperature, without T^2; ``ce`` at T = 1; ``tail_mass``, the student's
            probability outside the teacher's head at the temperature.

        Raises:
            ConfigError: the temperature was not captured.
        """
        import torch

        from cachekd.losses.divergences import cross_entropy
        from cachekd.losses.teacher_kl import teacher_kl

        with torch.set_grad_enabled(torch.is_grad_enabled() and self.kd > 0):
            divergence = teacher_kl(logits_NV, targets, self.temperature, self.tail)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.ce > 0):
            ce_N = cross_entropy(logits_NV, targets["next_ids"])
        weights_N = targets["weights"].to(ce_N.dtype)
        kl_sum, ce_sum = (weights_N * divergence.kl_N).sum(), (weights_N * ce_N).sum()
        # A term without weight is left out, not multiplied by 0: that would turn inf into nan.
        loss_sum = torch.zeros_like(kl_sum)
        if self.kd:
            loss_sum = loss_sum + self.kd * self.temperature**2 * kl_sum
        if self.ce:
            loss_sum = loss_sum + self.ce * ce_sum
        mass_sum = (weights_N * divergence.student_tail_mass_N).sum()
        return ObjectiveOutput(
            loss_sum=loss_sum,
            weight_sum=weights_N.sum(),
            metrics={"kl": kl_sum.detach(), "ce": ce_sum.detach(), "tail_mass": mass_sum},
        )


PLUGIN = KD

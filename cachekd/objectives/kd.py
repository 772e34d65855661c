"""Distillation of predictions, and of attention: forward KL to the teacher, plus cross entropy.

    loss = ce * CE  +  kd * T^2 * KL(teacher_T || student_T)  +  attention * L_attn

With T = 1, ce = 0 and kd = 1 it is the prediction loss of "A Teacher Is Worth A Million
Instructions", Eq. 2; L_attn is its Eq. 4, KL(teacher || student) of rows of attention maps, a mean
over heads and mapped layers, and both together with weights 1 are its Eq. 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from cachekd.config import check_choices, option
from cachekd.losses.choice import Divergence
from cachekd.objectives import Needs
from cachekd.objectives._divergence import DivergenceObjective, DivergenceOptions
from cachekd.objectives._soft import check_terms


@dataclass(frozen=True, slots=True, kw_only=True)
class KDOptions(DivergenceOptions):
    """Options of ``--objective kd``."""

    loss: Mapping[str, float] = option(
        {"ce": 0.1, "kd": 0.9},
        "Weights of cross entropy, KL and attention, as ce=0 kd=1 attention=1; a term left out "
        "counts 0. Attention takes a cache that was captured with --attention.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_terms(self.loss, ("ce", "kd", "attention"))
        Divergence(temperature=self.temperature, tail=self.tail)


class KD(DivergenceObjective):
    """Forward KL and cross entropy; the trainer takes attention from the forward pass."""

    Options: ClassVar[type] = KDOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.attention = float(options.loss.get("attention", 0.0))

    def needs(self) -> Needs:
        """As every divergence, and attention where it has a weight."""
        return replace(super().needs(), attention=self.attention)


PLUGIN = KD

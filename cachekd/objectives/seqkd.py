"""Sequence-level distillation: cross entropy with text that the teacher wrote (Kim & Rush, 2016).

    loss = ce * CE(teacher's text)  +  kd * T^2 * KL(teacher_T || student_T)

The paper's form is ce = 1, kd = 0, the default; with ce = 0.5, kd = 0.5 it is the form of MiniLLM's
code, which adds the teacher's distributions over its own text. The cache must be of responses that
the teacher generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from cachekd.config import option
from cachekd.objectives import Needs
from cachekd.objectives._divergence import DivergenceObjective, DivergenceOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SeqKDOptions(DivergenceOptions):
    """Options of ``--objective seqkd``."""

    loss: Mapping[str, float] = option(
        {"ce": 1.0, "kd": 0.0},
        "Weights of cross entropy with the teacher's text and of KL, as ce=0.5 kd=0.5; a term left "
        "out counts 0.",
        group="Objective",
    )


class SeqKD(DivergenceObjective):
    """Cross entropy on generated responses, and forward KL where it has a weight."""

    Options: ClassVar[type] = SeqKDOptions

    def needs(self) -> Needs:
        """As every divergence, on text of the teacher's."""
        return replace(super().needs(), generated=True)


PLUGIN = SeqKD

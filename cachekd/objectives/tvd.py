"""Total variation: D = 1/2 sum |p - q|, plus cross entropy.

A divergence of "f-Divergence Minimization for Sequence-Level Knowledge Distillation" (Wen et al.,
ACL 2023). The error of a tail bucket is at most the smaller of both sides' tail masses.
"""

from __future__ import annotations

from typing import Any

from cachekd.losses.choice import Divergence
from cachekd.objectives._divergence import DivergenceObjective


class TVD(DivergenceObjective):
    """See the module's text."""

    def divergence(self, options: Any) -> Divergence:
        """TVD at the temperature."""
        return Divergence(name="tvd", temperature=float(options.temperature), tail=options.tail)


PLUGIN = TVD

"""Reverse KL: D = KL(student || teacher) on cached contexts, plus cross entropy.

Mode-seeking: the student is charged for what it says and the teacher would not (MiniLLM's
single-step term, Eq. 3, on fixed contexts). With a tail bucket it is a lower bound whose gap is the
student's mass in the tail times the KL inside it: watch ``tail_mass``.
"""

from __future__ import annotations

from typing import Any

from cachekd.losses.choice import Divergence
from cachekd.objectives._divergence import DivergenceObjective


class ReverseKL(DivergenceObjective):
    """See the module's text."""

    def divergence(self, options: Any) -> Divergence:
        """ReverseKL at the temperature."""
        return Divergence(
            name="reverse_kl", temperature=float(options.temperature), tail=options.tail
        )


PLUGIN = ReverseKL

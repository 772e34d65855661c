"""What a loss may see of the student at some rows: log-probabilities at entries, tails, logits.

A loss with a tail bucket depends on a row's V logits through few numbers: log q of the entries, log
of the mass outside them, and log q of the next token. `StudentRows` gives exactly these, as leaves
of autograd: a loss is plain torch on small tensors, and `cachekd.losses.fused` turns its gradient
to that of the logits. What needs more (a divergence over the whole vocabulary) asks for ``logits``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """Log-probabilities of the student at the entries of R rows, and outside them.

    Attributes:
        log_q_n: of each entry, [n].
        log_rest_R: of all tokens of a row that are no entry of it, [R]; -inf where there are none.
    """

    log_q_n: Tensor
    log_rest_R: Tensor


class StudentRows(Protocol):
    """The student at the R rows of a chunk; tensors are float32, or float64 for a float64 model."""

    def outcomes(self, temperature: float = 1.0) -> Outcomes:
        """Log-probabilities at the entries of the targets and outside, at a temperature."""
        ...

    def next_log_q(self) -> Tensor:
        """Log-probability of the actual next token at temperature 1, [R]."""
        ...

    def logits(self) -> Tensor:
        """Logits over the real vocabulary, [R, V]; an objective that asks says ``Needs.dense``."""
        ...

"""What a loss may see of the student at some rows: log-probabilities at entries, tails, logits.

A loss with a tail bucket depends on a row's V logits through few numbers: log q of the entries, log
of the mass outside them, and log q of the next token. `StudentRows` gives exactly these, as leaves
of autograd: a loss is plain torch on small tensors. `LogitChunk` makes them of logits in one pass
of exponentials, and turns the gradient by them to that of the logits: with g_v by log q_v of the
entries, g_r by the log of the rest r, and G the sum of them all,

    dL/dz_v = (g_v - G q_v) / T  on an entry,     q_v (g_r / r - G) / T  elsewhere.

What needs more (a divergence over the whole vocabulary) asks for ``logits``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.ragged import entry_rows, segment_logsumexp, segment_sum
from cachekd.types import TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """Log-probabilities of the student at the entries of R rows, and outside them.

    Attributes:
        log_q_n: of each entry, [n].
        log_rest_R: of all tokens of a row that are no entry of it, [R]; -inf where there are none.
        log_norm_R: log-normaliser: log sum of exp(z_v / T) over the vocabulary, [R].
    """

    log_q_n: Tensor
    log_rest_R: Tensor
    log_norm_R: Tensor


class StudentRows(Protocol):
    """The student at the R rows of a chunk; tensors are float32, or float64 for a float64 model."""

    def outcomes(self, temperature: float = 1.0) -> Outcomes:
        """Log-probabilities at the entries of the targets and outside, at a temperature."""
        ...

    def next_log_q(self) -> Tensor:
        """Log-probability of the actual next token at temperature 1, [R]."""
        ...

    def tail_dot(self, name: str) -> Tensor:
        """Sum of s_v z_v over the tokens that are no entry of a row, [R].

        s is the one of this name in ``targets["shapes"]``, where `prepare` leaves it.
        """
        ...

    def logits(self) -> Tensor:
        """Logits over the real vocabulary, [R, V]; an objective that asks says ``Needs.dense``."""
        ...


class LogitChunk:
    """`StudentRows` of logits, which are used up: their memory becomes that of their gradient.

    Args:
        logits_RV: float32 or float64.
        targets: targets of these rows; the ids of a row are distinct.
        temperatures: at which `outcomes` will be asked for, beside 1.
        dense: whether whole logits will be asked for.
    """

    def __init__(
        self,
        logits_RV: Tensor,
        targets: TargetTensors,
        temperatures: Sequence[float] = (),
        *,
        dense: bool = False,
    ) -> None:
        flat, row_n = logits_RV.view(-1), entry_rows(targets["offsets"])
        entry_n = row_n * logits_RV.shape[1] + targets["ids"]
        self._next_R1 = targets["next_ids"][:, None]
        next_z_R = logits_RV.gather(1, self._next_R1)[:, 0]
        z_n = flat.index_select(0, entry_n)
        self._dense_RV = _leaf(logits_RV.clone()) if dense else None
        self._dots = _dots(logits_RV, entry_n, targets.get("shapes", {}))
        flat.index_fill_(0, entry_n, -torch.inf)
        whole = bool((targets["offsets"].diff() == logits_RV.shape[1]).any())
        ordered = sorted({*temperatures, 1.0})
        self._parts = {
            t: _Tempered(logits_RV if t == ordered[-1] else logits_RV.clone(), z_n, row_n, t, whole)
            for t in ordered
        }
        self._entry_n = entry_n
        self._next_log_q_R = _leaf(next_z_R - self._parts[1.0].outcomes.log_norm_R.detach())

    def outcomes(self, temperature: float = 1.0) -> Outcomes:
        """See `StudentRows.outcomes`."""
        if temperature not in self._parts:
            raise ConfigError(
                f"the objective reads the student at temperature {temperature:g}, which its "
                "needs() do not name"
            )
        return self._parts[temperature].outcomes

    def next_log_q(self) -> Tensor:
        """See `StudentRows.next_log_q`."""
        return self._next_log_q_R

    def tail_dot(self, name: str) -> Tensor:
        """See `StudentRows.tail_dot`."""
        return self._dots[name][1]

    def logits(self) -> Tensor:
        """See `StudentRows.logits`."""
        if self._dense_RV is None:
            raise ConfigError("the objective reads whole logits, which its needs() do not say")
        return self._dense_RV

    def gradient(
        self, loss: Tensor, learned: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of a scalar by the logits, [R, V], and by further tensors.

        May be asked for once: the logits' memory is what the gradient is written to.
        """
        leaves = [self._next_log_q_R, *(dot for _, dot in self._dots.values())]
        for part in self._parts.values():
            leaves += part.leaves
        if self._dense_RV is not None:
            leaves.append(self._dense_RV)
        found: list[Tensor | None] = list(
            torch.autograd.grad(loss, [*leaves, *learned], allow_unused=True)
        )
        of_next, *of_leaves = found[: len(leaves)]
        of_next_R = torch.zeros_like(self._next_log_q_R) if of_next is None else of_next
        return self._logit_gradient(of_next_R, of_leaves), found[len(leaves) :]

    def _logit_gradient(self, next_R: Tensor, of_leaves: list[Tensor | None]) -> Tensor:
        of_dots = [of_leaves.pop(0) for _ in self._dots]
        total_RV, total_n = None, None
        for t, part in self._parts.items():
            own = [of_leaves.pop(0) for _ in part.leaves]
            grad_RV, grad_n = part.gradient(own, next_R if t == 1.0 else None)
            total_RV = grad_RV if total_RV is None else total_RV.add_(grad_RV)
            total_n = grad_n if total_n is None else total_n + grad_n
        assert total_RV is not None and total_n is not None, "1 is always among the temperatures"
        for (shape_V, _), of_dot_R in zip(self._dots.values(), of_dots, strict=True):
            if of_dot_R is not None:
                total_RV.addr_(of_dot_R, shape_V)
        flat = total_RV.view(-1)
        flat.index_copy_(0, self._entry_n, total_n)
        total_RV.scatter_add_(1, self._next_R1, next_R[:, None])
        if self._dense_RV is not None and of_leaves[0] is not None:
            total_RV += of_leaves[0]
        return total_RV


class _Tempered:
    """A chunk at one temperature, made in place of masked logits.

    Kept of them is what the student's distribution is inside the tail; logarithms of masses are
    taken from the largest logit of the tail and those of the entries, so that a tail may be as
    small as it likes.
    """

    def __init__(
        self, masked_RV: Tensor, z_n: Tensor, row_n: Tensor, temperature: float, whole: bool
    ) -> None:
        self._temperature, self._row_n = temperature, row_n
        if temperature != 1.0:
            masked_RV /= temperature
            z_n = z_n / temperature
        rest_R = _softmax_(masked_RV, whole)
        self._inside_RV = masked_RV
        norm_R = torch.logaddexp(rest_R, segment_logsumexp(z_n, row_n, len(rest_R)))
        self.leaves = [_leaf(z_n - norm_R[row_n]), _leaf(rest_R - norm_R), _leaf(norm_R)]
        log_q_n, log_rest_R, log_norm_R = self.leaves
        self.outcomes = Outcomes(log_q_n=log_q_n, log_rest_R=log_rest_R, log_norm_R=log_norm_R)

    def gradient(
        self, of_leaves: Sequence[Tensor | None], further_R: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """By the logits outside entries, in place [R, V], and by those of entries, [n].

        Args:
            of_leaves: gradient by log q of entries, log of the rest, and log-normaliser.
            further_R: gradient by other log q of these rows, without their own logits' share.
        """
        of_entry, of_rest, of_norm = of_leaves
        log_q_n, rest_R = self.outcomes.log_q_n.detach(), self.outcomes.log_rest_R.detach()
        of_rest_R = torch.zeros_like(rest_R) if of_rest is None else of_rest
        sum_R = of_rest_R if further_R is None else of_rest_R + further_R
        sum_R = sum_R if of_norm is None else sum_R - of_norm
        if of_entry is not None:
            sum_R = sum_R + segment_sum(of_entry, self._row_n, len(rest_R))
        scale_R = (of_rest_R - sum_R * rest_R.exp()) / self._temperature
        grad_n = -sum_R[self._row_n] * log_q_n.exp()
        if of_entry is not None:
            grad_n = grad_n + of_entry
        return self._inside_RV.mul_(scale_R[:, None]), grad_n / self._temperature


def _softmax_(masked_RV: Tensor, whole: bool) -> Tensor:
    """Softmax in place; returns the log of the sums of exponentials, -inf for a row of -inf."""
    top_R = masked_RV.amax(1) if masked_RV.numel() else masked_RV.new_zeros(len(masked_RV))
    if masked_RV.device.type == "cpu":  # one pass a row, which stays in the processor's cache
        torch.softmax(masked_RV, 1, out=masked_RV)
        sum_R = masked_RV.amax(1).reciprocal() if masked_RV.numel() else torch.ones_like(top_R)
    else:
        masked_RV.sub_(top_R[:, None]).exp_()
        sum_R = masked_RV.sum(1)
        masked_RV.mul_(sum_R.reciprocal()[:, None])
    if whole:
        empty_R = top_R == -torch.inf
        masked_RV.masked_fill_(empty_R[:, None], 0)
        sum_R = torch.where(empty_R, torch.ones_like(sum_R), sum_R)
    return top_R + sum_R.log()


def _dots(
    logits_RV: Tensor, entry_n: Tensor, shapes: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Each shape, and its product with the logits outside entries; the entries are spoilt."""
    if not shapes:
        return {}
    logits_RV.view(-1).index_fill_(0, entry_n, 0)
    shapes = {name: shape_V.to(logits_RV.dtype) for name, shape_V in shapes.items()}
    return {name: (shape_V, _leaf(logits_RV @ shape_V)) for name, shape_V in shapes.items()}


def _leaf(value: Tensor) -> Tensor:
    return value.requires_grad_(torch.is_grad_enabled())

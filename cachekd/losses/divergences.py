"""Divergences of a student from a cached teacher, row by row; plain torch on small tensors.

Every one is a sum over outcomes of a function phi(log p, log q). The outcomes of a row are its
entries and, as one more, all other tokens together: the tail bucket. By the data-processing
inequality such a divergence is at most the dense one, equal to it when the head is the vocabulary,
and 0 when the student equals the decoded target. p is the teacher, q the student:

    forward_kl        p log(p/q)                                        KL(p || q)
    reverse_kl        q log(q/p)                                        KL(q || p)
    jeffreys          (1-w) forward + w reverse                         symmetric KL
    jsd               w p log(p/m) + (1-w) q log(q/m), m = w p + (1-w) q    generalised JSD (GKD)
    skew_kl           p log(p/m), m = w p + (1-w) q                     skew forward KL (DistiLLM)
    skew_reverse_kl   q log(q/m), m = (1-w) p + w q                     skew reverse KL (DistiLLM)
    tvd               |p - q| / 2                                       total variation

What is 0 for the teacher counts nothing in `reverse_kl` and `jeffreys`, which would be infinite.
Mixtures are formed in log space.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.choice import NAMES, Divergence
from cachekd.losses.paired import paired
from cachekd.losses.ragged import entry_rows, log1mexp, segment_logsumexp, segment_sum, times
from cachekd.losses.student import StudentRows
from cachekd.losses.tails import dense_tail, linear_tail
from cachekd.losses.targets import estimate
from cachekd.types import TargetTensors

Phi = Callable[[Tensor, Tensor, float], Tensor]


def divergence(student: StudentRows, targets: TargetTensors, spec: Divergence) -> Tensor:
    """The divergence of each row in nats, [R], without the factor T^2.

    Args:
        student: the student at these rows.
        targets: the teacher at these rows; with ``entry_weights`` (sampled entries) the result is
            the unbiased estimate -sum p_hat log q - H(p), for what is linear in p only.
        spec: which divergence.

    Raises:
        ConfigError: the targets do not serve it; says what would.
    """
    if targets.get("entry_weights") is not None:
        return _sampled(student, targets, spec)
    phi, sides = _PHI[spec.name], paired(student, targets, spec.temperature)
    head_n, tail_R, row_n = sides.log_p_n, sides.tail_R, sides.row_n
    log_q_n, rows = sides.log_q_n, len(sides.tail_R)
    if spec.tail == "renormalised":
        head_n = head_n - log1mexp(tail_R)[row_n]
        log_q_n = log_q_n - segment_logsumexp(log_q_n, row_n, rows)[row_n]
    head_R = segment_sum(phi(head_n, log_q_n, spec.weight), row_n, rows)
    if spec.tail == "renormalised":
        return head_R
    if spec.tail == "bucket":
        return head_R + bucket(phi, tail_R, sides.rest_R, spec.weight)
    if not spec.dense:
        return head_R + linear_tail(student, targets, tail_R, spec.temperature, spec.tail)
    inside = dense_tail(student, targets, tail_R, spec.temperature, spec.tail)
    return head_R + _sum_dense(phi, *inside, spec.weight)


def bucket(phi: Phi, tail_R: Tensor, rest_R: Tensor, weight: float) -> Tensor:
    """What the tail as one outcome adds to each row, [R]; 0 where there is no other token."""
    none_R = (tail_R == -torch.inf) & (rest_R == -torch.inf)
    zeros_R = torch.zeros_like(rest_R)
    parts_R = phi(
        torch.where(none_R, zeros_R, tail_R), torch.where(none_R, zeros_R, rest_R), weight
    )
    return torch.where(none_R, zeros_R, parts_R)


def student_tail_mass(
    student: StudentRows, targets: TargetTensors, temperature: float = 1.0
) -> Tensor:
    """The student's probability outside the teacher's exact head, [R], detached."""
    outcomes = student.outcomes(temperature)
    mass_R = outcomes.log_rest_R.detach().exp()
    weights_n = targets.get("entry_weights")
    if weights_n is None:
        return mass_R
    q_n = torch.where(weights_n > 0, outcomes.log_q_n.detach().exp(), torch.zeros_like(weights_n))
    return mass_R + segment_sum(q_n, entry_rows(targets["offsets"]), len(mass_R))


def _sampled(student: StudentRows, targets: TargetTensors, spec: Divergence) -> Tensor:
    if not spec.linear:
        raise ConfigError(
            f"{spec.name} at temperature {spec.temperature:g} with tail {spec.tail}: sampled "
            "entries estimate forward_kl at temperature 1 with tail bucket, and nothing else "
            "without bias. Train on that, or capture again with --logits-selection top_p"
        )
    log_q_n = student.outcomes(1.0).log_q_n
    with torch.no_grad():
        p_n = estimate(targets).to(log_q_n.dtype)
    row_n, rows = entry_rows(targets["offsets"]), len(targets["tail"])
    cross_R = segment_sum(-p_n * log_q_n, row_n, rows)
    return cross_R - targets["entropy"].to(cross_R.dtype)


def _sum_dense(phi: Phi, log_p_RV: Tensor, log_q_RV: Tensor, weight: float) -> Tensor:
    """Sum over the tokens that have a modelled probability; the others have -inf."""
    inside_RV = log_p_RV > -torch.inf
    zeros = torch.zeros_like(log_p_RV)
    parts = phi(
        torch.where(inside_RV, log_p_RV, zeros), torch.where(inside_RV, log_q_RV, zeros), weight
    )
    return torch.where(inside_RV, parts, zeros).sum(1)


def _forward_kl(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    return times(log_p.exp(), log_p - log_q)


def _reverse_kl(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    known = log_p > -torch.inf
    log_p = torch.where(known, log_p, torch.zeros_like(log_p))
    log_q = torch.where(known, log_q, torch.zeros_like(log_q))
    return times(log_q.exp(), log_q - log_p)


def _jeffreys(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    forward, reverse = _forward_kl(log_p, log_q, 0.0), _reverse_kl(log_p, log_q, 0.0)
    return (1 - weight) * forward + weight * reverse


def _jsd(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    log_m = _mixture(log_p, log_q, weight)
    of_p, of_q = times(log_p.exp(), log_p - log_m), times(log_q.exp(), log_q - log_m)
    return weight * of_p + (1 - weight) * of_q


def _skew_kl(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    return times(log_p.exp(), log_p - _mixture(log_p, log_q, weight))


def _skew_reverse_kl(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    return times(log_q.exp(), log_q - _mixture(log_p, log_q, 1 - weight))


def _tvd(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    return (log_p.exp() - log_q.exp()).abs() / 2


def _mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q) for shares strictly between 0 and 1."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


_FUNCTIONS: tuple[Phi, ...] = (
    _forward_kl,
    _reverse_kl,
    _jeffreys,
    _jsd,
    _skew_kl,
    _skew_reverse_kl,
    _tvd,
)
_PHI = dict(zip(NAMES, _FUNCTIONS, strict=True))

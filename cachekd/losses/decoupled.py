"""Forward KL taken apart at one class of each row: the target against the rest, and the rest.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, Eq. 7. With g the target of a row,

    TCKD = KL((p_g, 1 - p_g) || (q_g, 1 - q_g))
    NCKD = KL(p_{not g} / (1 - p_g) || q_{not g} / (1 - q_g))
    KL(p || q) = TCKD + (1 - p_g) NCKD

over the entries, the target where it is no entry, and one bucket for all other tokens. Masses of
what is not the target are summed from their parts, and a q_g above a half is taken from them, so
that nothing is lost where q_g is nearly 1; only of a target outside the entries the rest of the
tail is a difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cachekd.losses.clipping import logaddexp
from cachekd.losses.paired import Paired, kl_part, ranks
from cachekd.losses.ragged import log1mexp, segment_logsumexp, segment_sum
from cachekd.losses.student import StudentRows
from cachekd.types import TargetTensors

_HALF = math.log(0.5)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """The target class of each row, and both sides' log-probability of it.

    Attributes:
        is_target_n: whether an entry is it, [n]; in a row whose target is no entry, none is.
        log_p_R: the teacher's, [R].
        log_q_R: the student's, [R].
    """

    is_target_n: Tensor
    log_p_R: Tensor
    log_q_R: Tensor


def gold_target(
    student: StudentRows, sides: Paired, targets: TargetTensors, temperature: float
) -> Target:
    """The actual next token, entry or not; the teacher's probability of it is the exact one."""
    log_p_R = targets["next_logprob"].to(sides.log_q_n.dtype)
    log_q_R = student.next_log_q()
    if temperature != 1.0:
        log_p_R = log_p_R / temperature - targets["lognorm"][temperature].to(log_p_R.dtype)
        z_R = log_q_R + student.outcomes(1.0).log_norm_R
        log_q_R = z_R / temperature - student.outcomes(temperature).log_norm_R
    return Target(
        is_target_n=targets["ids"] == targets["next_ids"][sides.row_n],
        log_p_R=log_p_R.clamp(max=0.0),
        log_q_R=log_q_R,
    )


def argmax_target(sides: Paired, targets: TargetTensors) -> Target:
    """The teacher's most probable class; every row has entries."""
    is_target_n = ranks(sides.log_p_n, targets["offsets"]) == 1
    row_n = sides.row_n[~is_target_n]
    others_R = segment_logsumexp(sides.log_p_n[~is_target_n], row_n, len(sides.tail_R))
    log_p_R = sides.log_p_n[is_target_n].clamp(max=0.0)
    return Target(
        is_target_n=is_target_n,
        log_p_R=_near_one(log_p_R, logaddexp(others_R, sides.tail_R)),
        log_q_R=sides.log_q_n[is_target_n],
    )


def decoupled(sides: Paired, target: Target) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each row, [R]."""
    other_n, rows = ~target.is_target_n, len(sides.tail_R)
    row_n = sides.row_n[other_n]
    inside_R = torch.zeros(rows, dtype=torch.bool, device=row_n.device)
    inside_R[sides.row_n[target.is_target_n]] = True
    log_p_n, log_q_n = sides.log_p_n[other_n], sides.log_q_n[other_n]
    tail_R = torch.where(inside_R, sides.tail_R, _teacher_left(sides.tail_R, target.log_p_R))
    rest_R = torch.where(inside_R, sides.rest_R, _student_left(sides.rest_R, target.log_q_R))
    not_p_R = logaddexp(segment_logsumexp(log_p_n, row_n, rows), tail_R)
    not_p_R = not_p_R.masked_fill(not_p_R == -torch.inf, 0.0)
    not_q_R = logaddexp(segment_logsumexp(log_q_n, row_n, rows), rest_R)
    tckd_R = kl_part(target.log_p_R, _near_one(target.log_q_R, not_q_R))
    tckd_R = tckd_R + kl_part(log1mexp(target.log_p_R), not_q_R)
    given_n = kl_part(log_p_n - not_p_R[row_n], log_q_n - not_q_R[row_n])
    nckd_R = segment_sum(given_n, row_n, rows) + kl_part(tail_R - not_p_R, rest_R - not_q_R)
    return tckd_R, nckd_R


def _near_one(log_R: Tensor, log_others_R: Tensor) -> Tensor:
    """Log of a probability, of one above a half from what the others hold: it has more digits."""
    near_R = log_others_R < _HALF
    return torch.where(near_R, log1mexp(log_others_R.clamp(max=_HALF)), log_R)


def _teacher_left(tail_R: Tensor, part_R: Tensor) -> Tensor:
    """Log of a tail less a part of it; -inf where rounding of stored values leaves nothing."""
    share_R = part_R - tail_R
    left_R = share_R < -torch.finfo(share_R.dtype).eps
    less_R = tail_R + log1mexp(share_R.clamp(max=-1e-30))
    return torch.where(left_R, less_R, torch.full_like(less_R, -torch.inf))


def _student_left(rest_R: Tensor, part_R: Tensor) -> Tensor:
    """The same of the student; where rounding leaves nothing, as much as it cannot tell from it."""
    share_R = (part_R - rest_R).clamp(max=-torch.finfo(rest_R.dtype).eps)
    return rest_R + log1mexp(share_R)

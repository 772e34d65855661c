"""Policy gradient on text that the student wrote, token by token (MiniLLM, Algorithm 1).

In: log-probabilities of the tokens that were drawn: under the student now (q), under the student
that wrote them (q_old), and those that they were drawn with (p~, a mixture with the teacher where
there is one); and advantages A, which are constants. Out: numbers a row.

    rho = q / p~        pg = max(-A rho, -A clip(rho, 1 - eps, 1 + eps))        w = q_old / p~

The gradient of -A rho by q at q = p~ is that of -A log q: REINFORCE. The maximum is PPO's: a token
whose ratio has gone past the limit in the direction of its advantage teaches nothing any more, and
with a negative advantage too. Rows that no student wrote have rho = w = 1 before anything is
multiplied, so that 0 never meets inf.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyRows:
    """What a policy gradient says of some rows, each [R].

    Attributes:
        loss_R: pg, differentiable; 0 on rows that the student did not write.
        ratio_R: rho, detached; 1 there.
        cut_R: whether the clipped branch is the one that counts, so that there is no gradient.
    """

    loss_R: Tensor
    ratio_R: Tensor
    cut_R: Tensor


def policy_gradient(
    log_q_R: Tensor, behaviour_R: Tensor, advantage_R: Tensor, written_R: Tensor, clip: float
) -> PolicyRows:
    """The clipped surrogate of each row.

    Args:
        log_q_R: log q of the next token, with a gradient.
        behaviour_R: log p~ of it.
        advantage_R: A.
        written_R: whether the student wrote the row's document.
        clip: eps, above 0; inf for no limit.
    """
    ratio_R = ratio(log_q_R, behaviour_R, written_R)
    advantage_R = torch.where(written_R, advantage_R.to(ratio_R.dtype), torch.zeros_like(ratio_R))
    plain_R = -advantage_R * ratio_R
    held_R = -advantage_R * ratio_R.clamp(1 - clip, 1 + clip)
    return PolicyRows(
        loss_R=torch.maximum(plain_R, held_R),
        ratio_R=ratio_R.detach(),
        cut_R=(held_R > plain_R).detach(),
    )


def ratio(log_of_R: Tensor, log_by_R: Tensor, written_R: Tensor) -> Tensor:
    """exp(log_of - log_by) of the rows that the student wrote, 1 elsewhere, [R]."""
    zeros_R = torch.zeros_like(log_of_R)
    log_of_R = torch.where(written_R, log_of_R, zeros_R)
    log_by_R = torch.where(written_R, log_by_R.to(zeros_R.dtype), zeros_R)
    return (log_of_R - log_by_R).exp()

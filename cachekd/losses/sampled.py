"""Forward KL and its gradient from sampled entries: unbiased, for what is linear in p only.

Random-sampling distillation (ACL 2025, arXiv 2503.16870) keeps draws of the teacher's distribution
instead of its head. With p_hat the stored estimate (the exact head, and weights w with expectation
p on sampled entries) the cross term is linear in p_hat, so

    loss = -sum_v p_hat_v log q_v - H(p),      d loss / d z_v = (sum_u p_hat_u) q_v - p_hat_v

have the dense values as their expectation. H(p) is stored with every row. Divergences that are not
linear in p (reverse KL, JSD, TVD), and temperatures other than 1, have no such estimate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.divergences import (
    ForwardKL,
    chunks,
    entry_rows,
    segment_sum,
)
from cachekd.types import TargetTensors


def estimate(targets: TargetTensors) -> Tensor:
    """p_hat of each entry, float32 [n]: exact heads and weights as they are.

    The stored tail mass is coarse beside sampled entries: to scale a head by it would bias it.
    """
    weights_n = targets["entry_weights"]
    return torch.where(weights_n == 0, targets["logprobs"].exp(), weights_n)


def sampled_forward_kl(logits_NV: Tensor, targets: TargetTensors, temperature: float) -> ForwardKL:
    """An unbiased estimate of KL(teacher || student) of each row at temperature 1.

    Args:
        logits_NV: student logits over the real vocabulary.
        targets: ragged targets with ``entry_weights``.
        temperature: must be 1.

    Raises:
        ConfigError: another temperature.
    """
    if temperature != 1.0:
        raise ConfigError(
            f"temperature {temperature:g}: sampled entries estimate the teacher at temperature 1 "
            "only. Train at 1, or capture again with --logits-selection top_p"
        )
    with torch.no_grad():
        p_n = estimate(targets)
    ce_N: Tensor = _CrossTerm.apply(  # type: ignore[no-untyped-call]
        logits_NV, targets["offsets"], targets["ids"], p_n
    )
    with torch.no_grad():
        mass_N = _outside_head(logits_NV, targets)
    return ForwardKL(kl_N=ce_N - targets["entropy"].to(ce_N.dtype), student_tail_mass_N=mass_N)


def _outside_head(logits_NV: Tensor, targets: TargetTensors) -> Tensor:
    """Student's probability outside the exact head, [N]."""
    row_n = entry_rows(targets["offsets"])
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    mass_N = torch.ones(len(targets["tail"]), dtype=dtype, device=logits_NV.device)
    for rows, entries in chunks(targets["offsets"], logits_NV.shape[1]):
        z_RV = logits_NV[rows].to(dtype)
        at = (row_n[entries] - rows.start, targets["ids"][entries])
        q_n = (z_RV[at] - torch.logsumexp(z_RV, 1)[at[0]]).exp()
        q_n = torch.where(targets["entry_weights"][entries] == 0, q_n, torch.zeros_like(q_n))
        mass_N[rows] -= segment_sum(q_n, at[0], len(z_RV))
    return mass_N


class _CrossTerm(torch.autograd.Function):
    """-sum p_hat log q over entries, with d/dz written out."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, offsets: Tensor, ids: Tensor, p_n: Tensor) -> Tensor:
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        p_n, row_n = p_n.to(dtype), entry_rows(offsets)
        sum_N = segment_sum(p_n, row_n, len(offsets) - 1)
        norm_N, loss_N = torch.empty_like(sum_N), torch.empty_like(sum_N)
        for rows, entries in chunks(offsets, logits_NV.shape[1]):
            z_RV = logits_NV[rows].to(dtype)
            at = (row_n[entries] - rows.start, ids[entries])
            norm_N[rows] = torch.logsumexp(z_RV, 1)
            gap_n = norm_N[rows][at[0]] - z_RV[at]
            loss_N[rows] = segment_sum(p_n[entries] * gap_n, at[0], len(z_RV))
        ctx.save_for_backward(logits_NV, offsets, ids, p_n, sum_N, norm_N)
        return loss_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, offsets, ids, p_n, sum_N, norm_N = ctx.saved_tensors
        row_n, grad_NV = entry_rows(offsets), torch.empty_like(logits_NV)
        for rows, entries in chunks(offsets, logits_NV.shape[1]):
            at = (row_n[entries] - rows.start, ids[entries])
            grad_RV = (logits_NV[rows].to(p_n.dtype) - norm_N[rows, None]).exp_()
            grad_RV.mul_(sum_N[rows, None]).index_put_(at, -p_n[entries], accumulate=True)
            grad_NV[rows] = grad_RV.mul_(grads[0][rows, None]).to(grad_NV.dtype)
        return grad_NV, None, None, None

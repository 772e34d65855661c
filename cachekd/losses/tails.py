"""Tail models: how the mass outside a stored head is spread over the tokens that are not in it.

A bucket keeps the tail as one outcome: nothing is said of its inside. A model says something:

    flat       evenly
    unigram    like the square root of the teacher's mean distribution (a prior of the cache)
    log_rank   as a power law of the unigram rank r: log p falls by a for each step of log r, the
               exponent a of a row being what carries its head's last probability to its tail mass

With b_v = 0, log(unigram_v) / 2, or -log(rank_v), and a = 1 but for log_rank, a tail token has

    p_v = tail * exp(a b_v) / sum_{u outside the head} exp(a b_u)

at temperature 1. At another T the tail mass that the decode law gives is spread with a / T. The
divergence is 0 when the student equals the decoded target, head and tail. A capture at k = V has no
tail, and every model is then exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.divergences import (
    ForwardKL,
    chunks,
    decode_targets,
    entry_rows,
    segment_sum,
    times,
)
from cachekd.types import TargetTensors

TAILS = ("bucket", "flat", "unigram", "log_rank")
_STEEPEST, _HALVINGS = 8.0, 40


def modelled_forward_kl(
    logits_NV: Tensor, targets: TargetTensors, temperature: float, tail: str
) -> ForwardKL:
    """KL(teacher || student) of each row, the tail spread by a model; without the factor T^2.

    Args:
        logits_NV: student logits over the real vocabulary.
        targets: ragged targets; with ``unigram`` [V] for the models that rest on it.
        temperature: T above 0.
        tail: flat, unigram or log_rank.

    Raises:
        ConfigError: there is no such model, the temperature was not captured, or the targets come
            without a unigram.
    """
    with torch.no_grad():
        shape_V, steepness_N = _shape(targets, logits_NV.shape[1], tail)
        head_n, tail_N = decode_targets(targets, temperature)
    kl_N, mass_N = _ModelledKL.apply(  # type: ignore[no-untyped-call]
        logits_NV,
        (targets["offsets"], targets["ids"], head_n, tail_N),
        (shape_V, steepness_N / temperature),
        temperature,
    )
    return ForwardKL(kl_N=kl_N, student_tail_mass_N=mass_N)


def log_tail(
    shape_V: Tensor, steepness_N: Tensor, tail_N: Tensor, rows: slice, at: tuple[Tensor, Tensor]
) -> Tensor:
    """Log-probabilities of the tail of some rows, [R, V]; -inf on their heads ``at``."""
    log_p_RV = steepness_N[rows, None] * shape_V
    log_p_RV.index_put_(at, log_p_RV.new_tensor(-torch.inf))
    norm_R = torch.logsumexp(log_p_RV, 1)
    # A row whose head is the whole vocabulary has no tail to spread.
    shift_R = torch.where(norm_R == -torch.inf, torch.zeros_like(norm_R), tail_N[rows] - norm_R)
    return log_p_RV.add_(shift_R[:, None])


def _shape(targets: TargetTensors, vocab: int, tail: str) -> tuple[Tensor, Tensor]:
    """B [V] and a [N] of the module's text."""
    tail_N = targets["tail"]
    ones_N = torch.ones_like(tail_N)
    if tail == "flat":
        return torch.zeros(vocab, dtype=tail_N.dtype, device=tail_N.device), ones_N
    if tail not in TAILS:
        raise ConfigError(f"tail: expected one of {', '.join(TAILS)}; found {tail!r}")
    unigram = targets.get("unigram")
    if unigram is None:
        raise ConfigError(
            f"tail {tail!r} needs the teacher's unigram, which the targets come without. Use a "
            "cache with a prior (cachekd merge --recode gives it one), or --tail flat"
        )
    if tail == "unigram":
        return 0.5 * unigram.to(tail_N.dtype).clamp_min(1e-30).log(), ones_N
    rank_V = torch.empty_like(unigram, dtype=tail_N.dtype)
    order = torch.argsort(unigram, descending=True, stable=True)
    rank_V[order] = torch.arange(1, vocab + 1, dtype=tail_N.dtype, device=tail_N.device)
    return -rank_V.log(), log_rank_exponent(targets, vocab)


def log_rank_exponent(targets: TargetTensors, vocab: int) -> Tensor:
    """The exponent a of each row's power law, [N], 0 to 8.

    The law p(r) = p_K (r / K)^-a goes through the last of the K head entries and has the stored
    mass over ranks K+1 to V, taken as the integral from K + 1/2 to V + 1/2; found by bisection.
    """
    counts_N = targets["offsets"].diff()
    last_N = targets["logprobs"].double()[(targets["offsets"][1:] - 1).clamp_min(0)]
    k_N, v = counts_N.double().clamp_min(1), float(vocab)

    def log_mass(a_N: Tensor) -> Tensor:
        low, high = (k_N + 0.5).log(), torch.full_like(k_N, v + 0.5).log()
        power_N = 1 - a_N
        safe_N = torch.where(power_N.abs() < 1e-9, torch.full_like(power_N, 1e-9), power_N)
        gap_N = ((safe_N * high).exp() - (safe_N * low).exp()) / safe_N
        return last_N + a_N * k_N.log() + gap_N.clamp_min(1e-300).log()

    low_N, high_N = torch.zeros_like(k_N), torch.full_like(k_N, _STEEPEST)
    for _ in range(_HALVINGS):
        middle_N = (low_N + high_N) / 2
        too_much_N = log_mass(middle_N) > targets["tail"].double()
        low_N = torch.where(too_much_N, middle_N, low_N)
        high_N = torch.where(too_much_N, high_N, middle_N)
    return ((low_N + high_N) / 2).to(targets["tail"].dtype)


Head = tuple[Tensor, Tensor, Tensor, Tensor]
Shape = tuple[Tensor, Tensor]


class _ModelledKL(torch.autograd.Function):
    """Sum over all tokens of p (log p - log q), p dense in the tail, with d/dz = (q - p) / T."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, head: Head, shape: Shape, temperature: float
    ) -> tuple[Tensor, Tensor]:
        offsets, ids, head_n, tail_N = head
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        head_n, tail_N, row_n = head_n.to(dtype), tail_N.to(dtype), entry_rows(offsets)
        shape_V, steepness_N = (part.to(dtype) for part in shape)
        kl_N, mass_N = torch.empty_like(tail_N), torch.ones_like(tail_N)
        for rows, entries in chunks(offsets, logits_NV.shape[1]):
            log_q_RV = torch.log_softmax(logits_NV[rows].to(dtype) / temperature, 1)
            at = (row_n[entries] - rows.start, ids[entries])
            log_p_RV = log_tail(shape_V, steepness_N, tail_N, rows, at)
            p_RV = log_p_RV.exp()
            gap_RV = torch.where(p_RV > 0, log_p_RV - log_q_RV, torch.zeros_like(p_RV))
            kl_N[rows] = (p_RV * gap_RV).sum(1)
            gap_n = head_n[entries] - log_q_RV[at]
            kl_N[rows] += segment_sum(times(head_n[entries].exp(), gap_n), at[0], len(p_RV))
            mass_N[rows] -= segment_sum(log_q_RV[at].exp(), at[0], len(p_RV))
        ctx.temperature = temperature
        ctx.save_for_backward(logits_NV, offsets, ids, head_n, tail_N, shape_V, steepness_N)
        ctx.mark_non_differentiable(mass_N)
        return kl_N, mass_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, offsets, ids, head_n, tail_N, shape_V, steepness_N = ctx.saved_tensors
        row_n, grad_NV = entry_rows(offsets), torch.empty_like(logits_NV)
        scale_N = grads[0] / ctx.temperature
        for rows, entries in chunks(offsets, logits_NV.shape[1]):
            at = (row_n[entries] - rows.start, ids[entries])
            grad_RV = torch.softmax(logits_NV[rows].to(head_n.dtype) / ctx.temperature, 1)
            grad_RV -= log_tail(shape_V, steepness_N, tail_N, rows, at).exp_()
            grad_RV.index_put_(at, -head_n[entries].exp(), accumulate=True)
            grad_NV[rows] = grad_RV.mul_(scale_N[rows, None]).to(grad_NV.dtype)
        return grad_NV, None, None, None

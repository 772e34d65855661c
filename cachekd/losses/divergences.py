"""Exact sparse divergences: student logits and ragged teacher targets in, one number a row out.

The teacher's distribution p of a row is known on its head (the K most probable tokens) and, as one
number, on everything else: the tail bucket. With the student's q summed the same way,

    KL(p_bar || q_bar) = sum_head p log(p / q)  +  p_tail log(p_tail / q_tail)

is the KL of the bucketed distributions. It is the dense KL when the head is the vocabulary, and
lies below it by exactly p_tail * KL(p inside the tail || q inside the tail) otherwise.

Decode law: the stored tail mass is authoritative and the stored head is rescaled to 1 - tail, so
that a divergence is 0, up to rounding, when the student equals the decoded target.

The gradient is written out rather than traced: nothing but the logits themselves is kept for the
backward pass, and no 0 * inf can appear in it. Rows are worked on in chunks, so the extra memory is
bounded whatever the number of rows. Works on plain tensors; needs nothing of the rest of cachekd
but the target type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.types import TargetTensors

CHUNK_ELEMENTS = 1 << 24
"""Elements of a [rows, V] working tensor: 64 MiB in float32."""

_LN2 = 0.6931471805599453


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForwardKL:
    """Result of `forward_kl`.

    Attributes:
        kl_N: divergence of each row in nats, differentiable, without the factor T^2.
        student_tail_mass_N: student's probability outside the teacher's head, detached.
    """

    kl_N: Tensor
    student_tail_mass_N: Tensor


def decode_targets(targets: TargetTensors, temperature: float) -> tuple[Tensor, Tensor]:
    """Teacher log-probabilities at a temperature, by the decode law.

    At T = 1 the head is scaled to 1 - exp(tail). At another T the head is that one raised to 1/T
    and divided by the stored normaliser, and the tail is what is left to 1. Where the tail at T = 1
    is empty, or where rounding of stored values makes the head reach 1, the head is renormalised
    and the tail is empty.

    Args:
        targets: ragged targets of N rows with n entries.
        temperature: T above 0.

    Returns:
        Head log-probabilities [n] and tail log-masses [N], float32 (float64 if the stored ones
        are); a row's head and tail sum to 1.

    Raises:
        ConfigError: the normaliser of this temperature was not captured.
    """
    tail_N = targets["tail"].to(torch.promote_types(targets["tail"].dtype, torch.float32))
    head_n, row_n = targets["logprobs"].to(tail_N.dtype), entry_rows(targets["offsets"])
    with torch.no_grad():
        shift_N = log1mexp(tail_N) - segment_logsumexp(head_n, row_n, len(tail_N))
        head_n = head_n + shift_N[row_n]
        if temperature == 1.0:
            return head_n, tail_N
        head_n = head_n / temperature - _lognorm(targets, temperature).to(tail_N.dtype)[row_n]
        mass_N = segment_logsumexp(head_n, row_n, len(tail_N))
        full_N = (tail_N == -torch.inf) | (mass_N >= 0)
        head_n = torch.where(full_N[row_n], head_n - mass_N[row_n], head_n)
        rest_N = log1mexp(mass_N.clamp(max=0))
        return head_n, torch.where(full_N, torch.full_like(rest_N, -torch.inf), rest_N)


def forward_kl(logits_NV: Tensor, targets: TargetTensors, temperature: float = 1.0) -> ForwardKL:
    """KL(teacher || student) of each row with a tail bucket, both at a temperature.

    Args:
        logits_NV: student logits over the real vocabulary (padding columns cut off), any float
            dtype; work is done in float32, or float64 for float64 logits.
        targets: ragged targets of the same N rows.
        temperature: T above 0; the result does not carry the factor T^2.

    Raises:
        ConfigError: the normaliser of this temperature was not captured.
    """
    head_n, tail_N = decode_targets(targets, temperature)
    kl_N, mass_N = _SparseKL.apply(  # type: ignore[no-untyped-call]
        logits_NV, targets["offsets"], targets["ids"], head_n, tail_N, temperature
    )
    return ForwardKL(kl_N=kl_N, student_tail_mass_N=mass_N)


def cross_entropy(logits_NV: Tensor, next_ids: Tensor) -> Tensor:
    """-log q of the actual next token, [N]: the forward KL to a teacher that is sure of it."""
    rows = len(next_ids)
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    offsets = torch.arange(rows + 1, device=next_ids.device)
    head_n = torch.zeros(rows, dtype=dtype, device=next_ids.device)
    tail_N = torch.full_like(head_n, -torch.inf)
    loss_N: Tensor = _SparseKL.apply(  # type: ignore[no-untyped-call]
        logits_NV, offsets, next_ids, head_n, tail_N, 1.0
    )[0]
    return loss_N


def entry_rows(offsets: Tensor) -> Tensor:
    """Row number of each entry of a ragged array, int64 [n]."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff())


class _SparseKL(torch.autograd.Function):
    """Sum over head and tail of p (log p - log q), with d/dz written out.

    dKL/dz_v = (q_v - p_v) / T on the head, and (q_v - p_tail q_v / q_tail) / T in the tail.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        offsets: Tensor,
        ids: Tensor,
        head_n: Tensor,
        tail_N: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        head_n, tail_N, row_n = head_n.to(dtype), tail_N.to(dtype), entry_rows(offsets)
        all_N, rest_N = torch.empty_like(tail_N), torch.empty_like(tail_N)
        kl_N = torch.zeros_like(tail_N)
        for rows, entries in chunks(offsets, logits_NV.shape[1]):
            at = (row_n[entries] - rows.start, ids[entries])
            z_RV = logits_NV[rows].to(dtype) / temperature
            all_N[rows] = torch.logsumexp(z_RV, 1)
            gap_n = head_n[entries] - (z_RV[at] - all_N[rows][at[0]])
            parts_n = times(head_n[entries].exp(), gap_n)
            kl_N[rows] = segment_sum(parts_n, at[0], len(z_RV))
            rest_N[rows] = torch.logsumexp(z_RV.index_put_(at, z_RV.new_tensor(-torch.inf)), 1)
        kl_N += times(tail_N.exp(), tail_N - (rest_N - all_N))
        mass_N = (rest_N - all_N).exp()
        ctx.temperature = temperature
        ctx.save_for_backward(logits_NV, offsets, ids, head_n, tail_N, all_N, rest_N)
        ctx.mark_non_differentiable(mass_N)
        return kl_N, mass_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, offsets, ids, head_n, tail_N, all_N, rest_N = ctx.saved_tensors
        scale_N, row_n = grads[0] / ctx.temperature, entry_rows(offsets)
        known_N = (tail_N > -torch.inf) & (rest_N > -torch.inf)
        share_N = torch.where(known_N, tail_N - rest_N, torch.full_like(tail_N, -torch.inf))
        grad_NV = torch.empty_like(logits_NV)
        for rows, entries in chunks(offsets, logits_NV.shape[1]):
            at = (row_n[entries] - rows.start, ids[entries])
            z_RV = logits_NV[rows].to(head_n.dtype) / ctx.temperature
            grad_RV = (z_RV - all_N[rows, None]).exp_()
            grad_RV.index_put_(at, -head_n[entries].exp(), accumulate=True)
            # With the head at -inf only tail columns are left; adding a log keeps p_tail / q_tail
            # from overflowing where the student has all but left the tail.
            z_RV.index_put_(at, z_RV.new_tensor(-torch.inf))
            grad_RV -= z_RV.add_(share_N[rows, None]).exp_()
            grad_NV[rows] = grad_RV.mul_(scale_N[rows, None]).to(grad_NV.dtype)
        return grad_NV, None, None, None, None, None


def times(mass: Tensor, log_ratio: Tensor) -> Tensor:
    """Product in which 0 times anything is 0."""
    return torch.where(mass > 0, mass * log_ratio, torch.zeros_like(mass))


def chunks(offsets: Tensor, width: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows, and of the entries they own, of at most `CHUNK_ELEMENTS` logits."""
    step, rows = max(1, CHUNK_ELEMENTS // width), len(offsets) - 1
    starts = [*range(0, rows, step), rows]
    bounds = offsets[torch.tensor(starts, device=offsets.device)].tolist()
    for i in range(len(starts) - 1):
        yield slice(starts[i], starts[i + 1]), slice(bounds[i], bounds[i + 1])


def segment_logsumexp(values_n: Tensor, row_n: Tensor, rows: int) -> Tensor:
    """Log of the summed exponentials of each row's entries, [N]; -inf for a row without any."""
    top_N = torch.full((rows,), -torch.inf, dtype=values_n.dtype, device=values_n.device)
    top_N = top_N.scatter_reduce(0, row_n, values_n, "amax")
    top_N = torch.where(top_N == -torch.inf, torch.zeros_like(top_N), top_N)
    return segment_sum((values_n - top_N[row_n]).exp(), row_n, rows).log() + top_N


def segment_sum(values_n: Tensor, row_n: Tensor, rows: int) -> Tensor:
    """Sum of each row's entries, [N].

    Entries come largest first, the worst order for a running sum: where the device has float64, it
    carries the sum.
    """
    dtype = values_n.dtype if values_n.device.type == "mps" else torch.float64
    sum_N = torch.zeros(rows, dtype=dtype, device=values_n.device)
    return sum_N.index_add_(0, row_n, values_n.to(dtype)).to(values_n.dtype)


def log1mexp(log_mass: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends."""
    near_one = log_mass > -_LN2
    return torch.where(
        near_one,
        torch.log(-torch.expm1(torch.where(near_one, log_mass, -torch.ones_like(log_mass)))),
        torch.log1p(-torch.exp(log_mass)),
    )


def _lognorm(targets: TargetTensors, temperature: float) -> Tensor:
    if temperature not in targets["lognorm"]:
        captured = ", ".join(f"{value:g}" for value in sorted(targets["lognorm"])) or "none"
        raise ConfigError(
            f"temperature {temperature:g} was not captured: the targets hold {captured}. "
            f"Train at one of these, or capture again with --temperatures {temperature:g}"
        )
    return targets["lognorm"][temperature]

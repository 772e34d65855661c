"""The same divergences in slow, obvious float64 code: what the fast ones are measured against.

Dense in, dense out: full teacher logits or maps, full student ones, one loop a row where that is
clearer. Used by tests and by reports that compare a sparse loss with the dense one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cachekd.types import TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseTargets:
    """Decoded targets over the whole vocabulary, float64.

    Attributes:
        head_NV: teacher probability on the head, 0 elsewhere.
        in_head_NV: whether a token belongs to the head.
        tail_N: teacher probability outside the head.
    """

    head_NV: Tensor
    in_head_NV: Tensor
    tail_N: Tensor


def dense_forward_kl(teacher_NV: Tensor, student_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each row over the whole vocabulary, [N], without T^2.

    Args:
        teacher_NV: teacher logits or log-probabilities; -inf is a token of probability 0.
        student_NV: student logits over the same vocabulary.
        temperature: divides both.
    """
    log_p = torch.log_softmax(teacher_NV.double() / temperature, -1)
    log_q = torch.log_softmax(student_NV.double() / temperature, -1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum(-1)


def dense_divergence(name: str, p_NV: Tensor, q_NV: Tensor, weight: float = 0.5) -> Tensor:
    """A divergence of `cachekd.losses.divergences` of two dense distributions, row by row, [N].

    Written from the formulas, with probabilities; what is 0 on its left counts nothing.

    Args:
        name: which.
        p_NV: teacher.
        q_NV: student, differentiable.
        weight: w of the formulas.
    """
    m = weight * p_NV + (1 - weight) * q_NV
    if name == "forward_kl":
        return _kl(p_NV, q_NV)
    if name == "reverse_kl":
        return _kl(torch.where(p_NV > 0, q_NV, torch.zeros_like(q_NV)), p_NV)
    if name == "jeffreys":
        of = [dense_divergence(one, p_NV, q_NV) for one in ("forward_kl", "reverse_kl")]
        return (1 - weight) * of[0] + weight * of[1]
    if name == "jsd":
        return weight * _kl(p_NV, m) + (1 - weight) * _kl(q_NV, m)
    if name == "skew_kl":
        return _kl(p_NV, m)
    if name == "skew_reverse_kl":
        return _kl(q_NV, (1 - weight) * p_NV + weight * q_NV)
    assert name == "tvd", name
    return (p_NV - q_NV).abs().sum(-1) / 2


def _kl(left: Tensor, right: Tensor) -> Tensor:
    """Sum of left log(left / right), which need not be distributions, [N]."""
    some = left > 0
    ratio = torch.where(some, left, torch.ones_like(left)) / torch.where(
        some, right, torch.ones_like(right)
    )
    return (left * ratio.log()).sum(-1)


def densify(targets: TargetTensors, vocab_size: int, temperature: float = 1.0) -> DenseTargets:
    """Targets decoded row by row into dense arrays [N, V]."""
    offsets, rows = targets["offsets"].tolist(), len(targets["offsets"]) - 1
    head = torch.zeros(rows, vocab_size, dtype=torch.float64)
    inside = torch.zeros(rows, vocab_size, dtype=torch.bool)
    tails = targets["tail"].double().exp()
    for row in range(rows):
        entries = slice(offsets[row], offsets[row + 1])
        p = torch.softmax(targets["logprobs"][entries].double(), 0) * (1 - tails[row])
        if temperature != 1.0:
            norm = targets["lognorm"][temperature][row].double()
            p = p ** (1 / temperature) / norm.exp()
            full = tails[row] == 0 or p.sum() >= 1
            p = p / p.sum() if full else p
            tails[row] = 0 if full else 1 - p.sum()
        head[row, targets["ids"][entries]] = p
        inside[row, targets["ids"][entries]] = True
    return DenseTargets(head_NV=head, in_head_NV=inside, tail_N=tails)


def bucket_forward_kl(targets: DenseTargets, student_NV: Tensor, temperature: float) -> Tensor:
    """KL of the bucketed distributions, head and one tail, [N], differentiable in the student."""
    q = torch.softmax(student_NV.double() / temperature, -1)
    p = targets.head_NV
    head = torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.log()), torch.zeros_like(p)).sum(1)
    rest = torch.where(targets.in_head_NV, torch.zeros_like(q), q).sum(1)
    known = targets.tail_N > 0
    safe = torch.where(known, rest, torch.ones_like(rest))
    tail = targets.tail_N * (targets.tail_N.clamp(min=1e-300).log() - safe.log())
    return head + torch.where(known, tail, torch.zeros_like(tail))


def kl_inside_tail(
    teacher_NV: Tensor, student_NV: Tensor, in_head_NV: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL of both distributions renormalised outside the head, [N]: what a bucket leaves out."""
    hidden = torch.full_like(teacher_NV.double(), -torch.inf)
    log_p = torch.where(in_head_NV, hidden, teacher_NV.double() / temperature)
    log_q = torch.where(in_head_NV, hidden, student_NV.double() / temperature)
    log_p, log_q = torch.log_softmax(log_p, -1), torch.log_softmax(log_q, -1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum(-1)


def dense_attention_maps(
    query_HTD: Tensor,
    key_GTD: Tensor,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Whole causal attention maps of one document, float64 [H, T, T]."""
    heads, length, _ = query_HTD.shape
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if window is not None:
        seen &= ~torch.ones_like(seen).tril(-window)
    maps = []
    for head in range(heads):
        key = key_GTD[head * len(key_GTD) // heads]
        scores = query_HTD[head].double() @ key.double().T * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        maps.append(torch.softmax(scores.masked_fill(~seen, -torch.inf), -1))
    return torch.stack(maps)


def dense_attention_kl(
    teacher_HTT: Tensor, student_HTT: Tensor, weights_T: Tensor, kept_HTT: Tensor | None = None
) -> Tensor:
    """Sum over rows of weight times the mean over heads of KL(teacher || student).

    Args:
        teacher_HTT: causal maps.
        student_HTT: causal maps.
        weights_T: weight of each row.
        kept_HTT: keys that are told apart; the others of a row are one outcome. None: all are.
    """
    total = torch.zeros((), dtype=torch.float64)
    for head, (teacher, student) in enumerate(zip(teacher_HTT, student_HTT, strict=True)):
        for row in range(len(weights_T)):
            p, q = teacher[row, : row + 1].double(), student[row, : row + 1].double()
            if kept_HTT is not None:
                kept = kept_HTT[head, row, : row + 1]
                p = torch.cat([p[kept], p[~kept].sum()[None]])
                q = torch.cat([q[kept], q[~kept].sum()[None]])
            some = p > 0
            total = total + weights_T[row] * (p[some] * (p[some] / q[some]).log()).sum()
    return total / len(teacher_HTT)

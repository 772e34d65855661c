"""The same divergences in slow, obvious float64 code: what the fast ones are measured against.

Dense in, dense out: full teacher logits, full student logits, one loop a row where that is clearer.
Used by tests and by reports that compare a sparse loss with the dense one.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def dense_span(teacher_NV: Tensor, student_NV: Tensor, spans: Sequence[Sequence[int]]) -> Tensor:
    """The span loss of one document over the whole vocabulary, as its formula is printed.

    Args:
        teacher_NV: teacher logits or log-probabilities.
        student_NV: student logits.
        spans: the rows of each phrase, neighbours in order.
    """
    p, q = torch.softmax(teacher_NV.double(), 1), torch.softmax(student_NV.double(), 1)
    total = torch.zeros((), dtype=torch.float64)
    for rows in spans:
        pairs = [(j, j + 1) for j in rows if j + 1 in rows]
        norms = [((q[j] * q[k] - p[j] * p[k]).square().sum() + 1e-12).sqrt() for j, k in pairs]
        total = total + sum(norms, torch.zeros_like(total)) / len(rows)
    return total / len(spans)


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

"""KL between a teacher's attention rows and a student's, from queries and keys; never T x T.

In: queries of some rows and all keys of one document and layer, as they enter the softmax of the
student, and the teacher's ragged rows. Out: the weighted sum over rows of the mean over heads of
KL(A^t || A^s) ("A Teacher Is Worth A Million Instructions", Eq. 4), differentiable in both.

Keys that a row of the teacher dropped are one outcome, the rest, on both sides: a proper KL, equal
to that of whole rows where nothing was dropped. Scores are float32 and only a chunk of rows exists
at a time: its gradient is taken at once, so that what waits for the backward pass is as large as
queries and keys, whatever the length. A second derivative is not to be had.

Where heads are averaged, they are so as probabilities, on both sides; a key that one of the
averaged places dropped belongs to the rest. Where a window hides keys from the student, the
teacher's row is scaled to the keys that the student sees, as no student could follow it further.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cachekd.losses.attention import HeadGroups

# Scores of a chunk of rows, over all heads: few for the caches of a CPU, many for other devices.
_CHUNK_CPU, _CHUNK = 1 << 20, 1 << 24
_HIDDEN = -1e30  # finite, so that a gradient is 0 where a probability is


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRule:
    """How a layer turns queries and keys into what its softmax takes.

    Attributes:
        scaling: factor of the products.
        window: a row sees this many keys up to its own position; None: all of them.
        softcap: scores become ``softcap * tanh(score / softcap)``; None: they stay.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherRows:
    """Rows of one captured layer of a document: H places of heads, R query rows, ragged.

    Attributes:
        positions: query positions, int64 [R].
        weights: what each row counts, float32 [R].
        offsets: row r of place h owns the entries ``offsets[i]:offsets[i + 1]`` of the two below,
            i = h * R + r; integers [H * R + 1].
        keys: positions of the kept keys, integers [n].
        probs: their probabilities, float32 [n].
        rest: mass of the other keys, float32 [H, R].
    """

    positions: Tensor
    weights: Tensor
    offsets: Tensor
    keys: Tensor
    probs: Tensor
    rest: Tensor


def attention_kl(
    query_HRD: Tensor,
    key_GLD: Tensor,
    teacher: TeacherRows,
    rule: ScoreRule,
    groups: HeadGroups,
    *,
    chunk: int | None = None,
) -> Tensor:
    """Sum over rows of weight times the mean over groups of heads of KL(teacher || student).

    Args:
        query_HRD: queries of the rows in ``teacher.positions``, after RoPE.
        key_GLD: keys of the document from its first position on; head h reads key head h * G // H.
        teacher: what is learned from.
        rule: what the student's layer does with products of the two.
        groups: which heads are compared with which places of the teacher.
        chunk: scores that may exist at a time; default: what suits the device.
    """
    if chunk is None:
        chunk = _CHUNK_CPU if query_HRD.device.type == "cpu" else _CHUNK
    loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
        query_HRD, key_GLD, teacher, rule, groups, chunk
    )
    return loss


def log_maps(query_HRD: Tensor, key_GLD: Tensor, positions_R: Tensor, rule: ScoreRule) -> Tensor:
    """Log-probabilities of the student's rows, [H, R, L], about -1e30 where a key is not seen.

    float32 (of float64 inputs float64), from scores, so that none is the log of a rounded 0.
    """
    dtype = torch.promote_types(query_HRD.dtype, torch.float32)
    scores_HRL = _scores(query_HRD.to(dtype), key_GLD.to(dtype), rule)
    seen_RL = _seen(positions_R, key_GLD.shape[1], rule)
    return scores_HRL.masked_fill(~seen_RL, _HIDDEN).log_softmax(-1)


class _Chunked(torch.autograd.Function):
    """The loss and, at once, its gradient, a chunk of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        query_HRD: Tensor,
        key_GLD: Tensor,
        teacher: TeacherRows,
        rule: ScoreRule,
        groups: HeadGroups,
        chunk: int,
    ) -> Tensor:
        dtype = torch.promote_types(query_HRD.dtype, torch.float32)
        key = key_GLD.to(dtype)
        total = torch.zeros((), dtype=dtype, device=key.device)
        grad_query, grad_key = torch.zeros_like(query_HRD, dtype=dtype), torch.zeros_like(key)
        with torch.autocast(key.device.type, enabled=False):
            for rows in _chunks(query_HRD, key, chunk):
                # Rows ascend: the last one sees all that any of the chunk sees.
                length = int(teacher.positions[rows.stop - 1]) + 1
                query, seen = query_HRD[:, rows].to(dtype), key[:, :length]
                loss, grad_HRL = _loss(query, seen, teacher, rows, rule, groups)
                total += loss
                if any(ctx.needs_input_grad):
                    of_query, of_key = _product_gradient(grad_HRL * rule.scaling, query, seen)
                    grad_query[:, rows] = of_query
                    grad_key[:, :length] += of_key
        # In the precision of the scores: a gradient of half precision may only then be scaled up.
        ctx.save_for_backward(grad_query, grad_key)
        ctx.dtype = query_HRD.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_query, of_key = ((grad * saved).to(ctx.dtype) for saved in ctx.saved_tensors)
        return of_query, of_key, *(None,) * 4


def _chunks(query_HRD: Tensor, key_GLD: Tensor, chunk: int) -> Iterator[slice]:
    heads, rows, _ = query_HRD.shape
    size = max(1, chunk // (heads * key_GLD.shape[1]))
    return (slice(at, min(at + size, rows)) for at in range(0, rows, size))


def _loss(
    query_HRD: Tensor,
    key_GLD: Tensor,
    teacher: TeacherRows,
    rows: slice,
    rule: ScoreRule,
    groups: HeadGroups,
) -> tuple[Tensor, Tensor]:
    """The sum over a chunk of rows, and its gradient with respect to products of queries and keys.

    P is the number of groups. With q the mean of the heads of a group, p the teacher's kept keys
    and r its rest, of which the student gives q_r, dKL/d log q is -p on kept keys and -r q / q_r on
    the others.
    """
    scores_HRL = _scores(query_HRD, key_GLD, rule)
    seen_RL = _seen(teacher.positions[rows], key_GLD.shape[1], rule)
    log_a_HRL = scores_HRL.masked_fill(~seen_RL, _HIDDEN).log_softmax(-1)
    log_q_PRL = _mean_of_heads(log_a_HRL, groups)
    p_PRL, kept_PRL, rest_PR = _targets(teacher, rows, seen_RL, groups, log_q_PRL.dtype)
    log_rest_PR = log_q_PRL.masked_fill(kept_PRL | ~seen_RL, _HIDDEN).logsumexp(-1)
    heads_PR = (torch.special.xlogy(p_PRL, p_PRL) - p_PRL * log_q_PRL).sum(-1)
    rests_PR = torch.special.xlogy(rest_PR, rest_PR) - rest_PR * log_rest_PR
    weights_R = teacher.weights[rows].to(p_PRL.dtype) / len(p_PRL)
    loss = ((heads_PR + rests_PR).sum(0) * weights_R).sum()
    others_PRL = (log_q_PRL + (rest_PR.log() - log_rest_PR)[..., None]).exp()
    grad_PRL = torch.where(kept_PRL, p_PRL, others_PRL).mul_(-weights_R[:, None])
    grad_HRL = _head_gradient(grad_PRL, log_q_PRL, log_a_HRL, groups)
    grad_HRL = grad_HRL - log_a_HRL.exp() * grad_HRL.sum(-1, keepdim=True)
    if rule.softcap is not None:
        grad_HRL = grad_HRL * (1 - (scores_HRL / rule.softcap).square())
    return loss, grad_HRL


def _head_gradient(
    grad_PRL: Tensor, log_q_PRL: Tensor, log_a_HRL: Tensor, groups: HeadGroups
) -> Tensor:
    """From log-probabilities of means of heads to those of the heads: each has its share in it."""
    if _is_identity(groups.student, len(log_a_HRL)):
        return grad_PRL
    size = len(groups.student[0])
    grad_HRL = torch.zeros_like(log_a_HRL)
    for group, heads in enumerate(groups.student):
        for head in heads:
            share_RL = (log_a_HRL[head] - log_q_PRL[group]).exp() / size
            grad_HRL[head] = grad_PRL[group] * share_RL
    return grad_HRL


def _product_gradient(
    grad_HRL: Tensor, query_HRD: Tensor, key_GLD: Tensor
) -> tuple[Tensor, Tensor]:
    """From products to queries [H, R, D] and keys [G, L, D]; heads of a key head add up."""
    grad_GML = grad_HRL.reshape(len(key_GLD), -1, grad_HRL.shape[-1])
    query_GMD = query_HRD.reshape(len(key_GLD), -1, query_HRD.shape[-1])
    of_query_HRD = (grad_GML @ key_GLD).reshape(query_HRD.shape)
    return of_query_HRD, grad_GML.transpose(1, 2) @ query_GMD


def _scores(query_HRD: Tensor, key_GLD: Tensor, rule: ScoreRule) -> Tensor:
    """What the softmax takes, [H, R, L], of keys that a row does not see as well."""
    heads, rows, width = query_HRD.shape
    query_GMD = query_HRD.reshape(len(key_GLD), -1, width) * rule.scaling
    scores_HRL = (query_GMD @ key_GLD.transpose(1, 2)).reshape(heads, rows, -1)
    if rule.softcap is None:
        return scores_HRL
    return rule.softcap * torch.tanh(scores_HRL / rule.softcap)


def _seen(positions_R: Tensor, length: int, rule: ScoreRule) -> Tensor:
    """Whether a row sees a key, bool [R, L]."""
    before_RL = positions_R[:, None] - torch.arange(length, device=positions_R.device)
    seen_RL = before_RL >= 0
    return seen_RL if rule.window is None else seen_RL & (before_RL < rule.window)


def _is_identity(side: tuple[tuple[int, ...], ...], heads: int) -> bool:
    """Whether the groups are all heads, each by itself."""
    return side == tuple((head,) for head in range(heads))


def _mean_of_heads(log_a_HRL: Tensor, groups: HeadGroups) -> Tensor:
    """Log of the mean probability of each group of heads, [P, R, L]."""
    if _is_identity(groups.student, len(log_a_HRL)):
        return log_a_HRL
    chosen_PMRL = log_a_HRL[torch.tensor(groups.student, device=log_a_HRL.device)]
    return chosen_PMRL.logsumexp(1) - math.log(chosen_PMRL.shape[1])


def _targets(
    teacher: TeacherRows, rows: slice, seen_RL: Tensor, groups: HeadGroups, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of kept keys and whether a key is one, [P, R, L]; mass of the rest, [P, R]."""
    p_PRL, kept_PRL = _dense(teacher, rows, seen_RL.shape[1], dtype)
    rest_PR = teacher.rest[:, rows].to(dtype)
    if not _is_identity(groups.teacher, len(rest_PR)):
        index = torch.tensor(groups.teacher, device=p_PRL.device)
        p_PRL, kept_PRL = p_PRL[index].mean(1), kept_PRL[index].all(1)
        rest_PR = rest_PR[index].mean(1) + p_PRL.masked_fill(kept_PRL, 0).sum(-1)
    # A rest without a key that the student sees in it has nowhere to be.
    rest_PR = rest_PR * (seen_RL & ~kept_PRL).any(-1)
    p_PRL = p_PRL * (kept_PRL & seen_RL)
    sum_PR = (p_PRL.sum(-1) + rest_PR).clamp(min=torch.finfo(p_PRL.dtype).tiny)
    return p_PRL / sum_PR[..., None], kept_PRL, rest_PR / sum_PR


def _dense(
    teacher: TeacherRows, rows: slice, length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Kept probabilities and whether a key was kept, of the rows of a chunk, [H, R, L]."""
    heads, every = teacher.rest.shape
    device = teacher.rest.device
    own_N = torch.arange(heads, device=device)[:, None] * every
    own_N = (own_N + torch.arange(rows.start, rows.stop, device=device)).flatten()
    offsets = teacher.offsets.long()
    starts_N, counts_N = offsets[own_N], offsets[own_N + 1] - offsets[own_N]
    place_n = torch.repeat_interleave(torch.arange(len(own_N), device=device), counts_N)
    first_N = counts_N.cumsum(0) - counts_N
    entry_n = torch.arange(len(place_n), device=device) + (starts_N - first_N)[place_n]
    at_n = place_n * length + teacher.keys[entry_n].long()
    p_N = torch.zeros(len(own_N) * length, dtype=dtype, device=device)
    kept_N = torch.zeros_like(p_N, dtype=torch.bool)
    p_N[at_n], kept_N[at_n] = teacher.probs[entry_n].to(dtype), True
    shape = (heads, rows.stop - rows.start, length)
    return p_N.reshape(shape), kept_N.reshape(shape)

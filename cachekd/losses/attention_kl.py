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
from torch.autograd.graph import saved_tensors_hooks

from cachekd.losses.attention import HeadGroups

# Scores of a chunk of rows, over all heads.
CHUNK = 1 << 22
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
    chunk: int = CHUNK,
) -> Tensor:
    """Sum over rows of weight times the mean over groups of heads of KL(teacher || student).

    Args:
        query_HRD: queries of the rows in ``teacher.positions``, after RoPE.
        key_GLD: keys of the document from its first position on; head h reads key head h * G // H.
        teacher: what is learned from.
        rule: what the student's layer does with products of the two.
        groups: which heads are compared with which places of the teacher.
        chunk: scores that may exist at a time.
    """
    loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
        query_HRD, key_GLD, teacher, rule, groups, chunk
    )
    return loss


def log_maps(query_HRD: Tensor, key_GLD: Tensor, positions_R: Tensor, rule: ScoreRule) -> Tensor:
    """Log-probabilities of the student's rows, [H, R, L], about -1e30 where a key is not seen.

    float32 (of float64 inputs float64), from scores, so that none is the log of a rounded 0.
    """
    dtype = torch.promote_types(query_HRD.dtype, torch.float32)
    heads, rows, _ = query_HRD.shape
    query_GMD = query_HRD.to(dtype).reshape(len(key_GLD), -1, query_HRD.shape[-1])
    scores_HRL = query_GMD @ key_GLD.to(dtype).transpose(1, 2) * rule.scaling
    scores_HRL = scores_HRL.reshape(heads, rows, -1)
    if rule.softcap is not None:
        scores_HRL = rule.softcap * torch.tanh(scores_HRL / rule.softcap)
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
        wanted = any(ctx.needs_input_grad[:2])
        dtype = torch.promote_types(query_HRD.dtype, torch.float32)
        key = key_GLD.detach().to(dtype).requires_grad_(wanted)
        total = torch.zeros((), dtype=dtype, device=key.device)
        grad_query, grad_key = torch.zeros_like(query_HRD, dtype=dtype), torch.zeros_like(key)
        with (
            torch.autocast(key.device.type, enabled=False),
            torch.set_grad_enabled(wanted),
            # What a chunk saves is used at once: it is not for gradient checkpointing to drop.
            saved_tensors_hooks(_same, _same),
        ):
            for rows in _chunks(query_HRD, key_GLD, chunk):
                query = query_HRD.detach()[:, rows].to(dtype).requires_grad_(wanted)
                loss = _loss(query, key, teacher, rows, rule, groups)
                total += loss.detach()
                if wanted:
                    of_query, of_key = torch.autograd.grad(loss, (query, key))
                    grad_query[:, rows] = of_query
                    grad_key += of_key
        # In the precision of the scores: a gradient of half precision may only then be scaled up.
        ctx.save_for_backward(grad_query, grad_key)
        ctx.dtype = query_HRD.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_query, of_key = ((grad * saved).to(ctx.dtype) for saved in ctx.saved_tensors)
        return of_query, of_key, *(None,) * 4


def _same(tensor: Tensor) -> Tensor:
    return tensor


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
) -> Tensor:
    """The sum over a chunk of rows; P is the number of groups that are compared."""
    positions_R = teacher.positions[rows]
    log_q_PRL = _mean_of_heads(log_maps(query_HRD, key_GLD, positions_R, rule), groups)
    seen_RL = _seen(positions_R, key_GLD.shape[1], rule)
    p_PRL, kept_PRL, rest_PR = _targets(teacher, rows, seen_RL, groups)
    p_PRL, rest_PR = p_PRL.to(log_q_PRL.dtype), rest_PR.to(log_q_PRL.dtype)
    heads_PR = (torch.special.xlogy(p_PRL, p_PRL) - p_PRL * log_q_PRL).sum(-1)
    log_rest_PR = log_q_PRL.masked_fill(kept_PRL | ~seen_RL, _HIDDEN).logsumexp(-1)
    rests_PR = torch.special.xlogy(rest_PR, rest_PR) - rest_PR * log_rest_PR
    loss_R: Tensor = (heads_PR + rests_PR).mean(0) * teacher.weights[rows].to(heads_PR.dtype)
    return loss_R.sum()


def _seen(positions_R: Tensor, length: int, rule: ScoreRule) -> Tensor:
    """Whether a row sees a key, bool [R, L]."""
    before_RL = positions_R[:, None] - torch.arange(length, device=positions_R.device)
    seen_RL = before_RL >= 0
    return seen_RL if rule.window is None else seen_RL & (before_RL < rule.window)


def _mean_of_heads(log_q_HRL: Tensor, groups: HeadGroups) -> Tensor:
    """Log of the mean probability of each group of heads, [P, R, L]."""
    index = torch.tensor(groups.student, device=log_q_HRL.device)
    chosen_PMRL = log_q_HRL[index]
    size = chosen_PMRL.shape[1]
    return chosen_PMRL[:, 0] if size == 1 else chosen_PMRL.logsumexp(1) - math.log(size)


def _targets(
    teacher: TeacherRows, rows: slice, seen_RL: Tensor, groups: HeadGroups
) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of kept keys and whether a key is one, [P, R, L]; mass of the rest, [P, R]."""
    p_HRL, kept_HRL = _dense(teacher, rows, seen_RL.shape[1])
    index = torch.tensor(groups.teacher, device=p_HRL.device)
    p_PRL, kept_PRL = p_HRL[index].mean(1), kept_HRL[index].all(1)
    rest_PR = teacher.rest[:, rows][index].mean(1)
    rest_PR = rest_PR + p_PRL.masked_fill(kept_PRL, 0).sum(-1)
    # A rest without a key that the student sees in it has nowhere to be.
    rest_PR = rest_PR * (seen_RL & ~kept_PRL).any(-1)
    p_PRL = p_PRL * (kept_PRL & seen_RL)
    sum_PR = (p_PRL.sum(-1) + rest_PR).clamp(min=torch.finfo(p_PRL.dtype).tiny)
    return p_PRL / sum_PR[..., None], kept_PRL, rest_PR / sum_PR


def _dense(teacher: TeacherRows, rows: slice, length: int) -> tuple[Tensor, Tensor]:
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
    p_N = torch.zeros(len(own_N) * length, dtype=teacher.probs.dtype, device=device)
    kept_N = torch.zeros_like(p_N, dtype=torch.bool)
    p_N[at_n], kept_N[at_n] = teacher.probs[entry_n], True
    shape = (heads, rows.stop - rows.start, length)
    return p_N.reshape(shape), kept_N.reshape(shape)

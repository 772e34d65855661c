"""Teacher and student side by side at the entries of some rows, and the order within a row.

What losses that choose entries, weigh them or take them apart begin with. In: a `StudentRows` and
the targets of its rows. Out: `Paired`; ranks, and the best entries of each row as a rectangle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.ragged import entry_rows, times
from cachekd.losses.student import StudentRows
from cachekd.losses.targets import decode_targets
from cachekd.types import TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paired:
    """Both sides at the n entries of R rows, at one temperature; the teacher is constant.

    Attributes:
        log_p_n: teacher's log-probability of each entry, [n].
        tail_R: log of the teacher's mass outside the entries, [R].
        log_q_n: student's log-probability of each entry, [n].
        rest_R: log of the student's mass outside the entries, [R].
        row_n: number of each entry's row, [n].
    """

    log_p_n: Tensor
    tail_R: Tensor
    log_q_n: Tensor
    rest_R: Tensor
    row_n: Tensor


def paired(student: StudentRows, targets: TargetTensors, temperature: float) -> Paired:
    """Both sides, the teacher by the decode law, in the student's dtype.

    Raises:
        ConfigError: the entries are sampled, or the temperature was not captured.
    """
    refuse_sampled(targets)
    outcomes = student.outcomes(temperature)
    dtype = outcomes.log_q_n.dtype
    log_p_n, tail_R = decode_targets(targets, temperature)
    return Paired(
        log_p_n=log_p_n.to(dtype),
        tail_R=tail_R.to(dtype),
        log_q_n=outcomes.log_q_n,
        rest_R=outcomes.log_rest_R,
        row_n=entry_rows(targets["offsets"]),
    )


def refuse_sampled(targets: TargetTensors) -> None:
    """Refuse sampled entries.

    Raises:
        ConfigError: says which captures serve.
    """
    if targets.get("entry_weights") is not None:
        raise ConfigError(
            "the targets hold sampled entries, which serve forward KL at temperature 1 and cross "
            "entropy: an objective that chooses among entries has no unbiased estimate from them. "
            "Train on a capture with --logits-selection top_p, top_k or full"
        )


def ranks(values_n: Tensor, offsets: Tensor) -> Tensor:
    """Rank of each entry in its row, from 1 for the largest, int64 [n].

    Of equal values the one that comes first is before.
    """
    row_n = entry_rows(offsets)
    by_value_n = torch.argsort(values_n, descending=True, stable=True)
    order_n = by_value_n[torch.argsort(row_n[by_value_n], stable=True)]
    rank_n = torch.empty_like(row_n)
    rank_n[order_n] = torch.arange(1, len(row_n) + 1, device=row_n.device) - offsets[row_n]
    return rank_n


def by_rank(values_n: Tensor, rank_n: Tensor, offsets: Tensor) -> Tensor:
    """Values of entries, each row in the order of its ranks, [n]."""
    place_n = offsets[entry_rows(offsets)] + rank_n - 1
    return torch.empty_like(values_n).index_copy_(0, place_n, values_n)


def at_ranks(values_n: Tensor, offsets: Tensor, ranks_W: Tensor, fill_R: Tensor) -> Tensor:
    """Values at some ranks (from 1) of rows whose entries are in order, [R, W].

    Args:
        values_n: of entries, see `by_rank`.
        offsets: of the rows.
        ranks_W: the ranks.
        fill_R: what stands where a row has fewer entries.
    """
    place_RW = offsets[:-1, None] + (ranks_W - 1)[None]
    held_RW = ranks_W[None] <= offsets.diff()[:, None]
    padded = torch.cat([values_n, values_n.new_zeros(1)])
    return torch.where(held_RW, padded[place_RW.clamp(max=len(values_n))], fill_R[:, None])


def kl_part(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Each outcome of a KL, p (log p - log q); 0 where p is 0, in value and in gradient."""
    known = log_p > -torch.inf
    zeros = torch.zeros_like(log_q)
    log_p, log_q = torch.where(known, log_p, zeros), torch.where(known, log_q, zeros)
    return times(torch.where(known, log_p.exp(), zeros), log_p - log_q)

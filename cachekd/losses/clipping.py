"""Divergences of a part of the teacher's distribution: a soft window, or a fixed set of classes.

The window of DAC-KL ("Multi-Granularity Semantic Revision for Large Language Model Distillation",
section 4.2, Eq. 6-8): limits l <= u of each row, and of each entry a mask

    m = s((x - l') / w) s((u' - x) / w),   s the logistic function,

where x, l', u' and the width w are, by space,

    logrank    x = log(rank) / log V, l' = l, u' = u, w = tau: 0 is the most probable class
    quantile   x = p, l' and u' the quantiles of the row at levels l and u, w = 1e-7
    value      x = p, l' = l, u' = u, w = 1e-7: as the equation is printed

The most probable class has mask 1 whatever the limits, and counts once. With P = m p and Q = m q:

    tail      sum P log(P/Q) + B_p log(B_p/B_q), B the mass that the mask leaves out: a KL >= 0,
              at most that of all entries and a bucket, equal to it for m = 1
    sum       sum P log(P/Q): can be negative
    renorm    both divided by their sums
    literal   sum m log(m/q), and once more p log(p/q) for the most probable class: as printed

As a function of the window alone every one of these is smallest where the window holds least that
differs; `coverage_penalty` is what keeps it open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.paired import Paired, by_rank, kl_part
from cachekd.losses.ragged import entry_rows, segment_logsumexp, segment_sum, times
from cachekd.losses.targets import decode_targets
from cachekd.types import TargetTensors

_SHARP = 1e-7
_ROUNDING = 1e-4  # of stored masses


def logrank_mask(
    rank_n: Tensor, vocab: int, upper_n: Tensor, lower_n: Tensor, tau: float
) -> Tensor:
    """Mask in the space of log(rank) / log(vocab), [n].

    Args:
        rank_n: ranks from 1.
        vocab: V, at least 2.
        upper_n: u of each entry's row.
        lower_n: l of each entry's row.
        tau: width.
    """
    place_n = rank_n.to(upper_n.dtype).log() / math.log(vocab)
    return _window(place_n, upper_n, lower_n, tau)


def value_mask(p_n: Tensor, upper_n: Tensor, lower_n: Tensor) -> Tensor:
    """Mask in the space of probabilities, [n]."""
    return _window(p_n, upper_n, lower_n, _SHARP)


def quantile_mask(
    sides: Paired, offsets: Tensor, vocab: int, upper_R: Tensor, lower_R: Tensor
) -> Tensor:
    """Mask in the space of probabilities between two quantiles of each row, [n].

    Raises:
        ConfigError: a row does not have all of the vocabulary.
    """
    if bool((offsets.diff() != vocab).any()):
        raise ConfigError(
            f"space quantile: expected targets of all {vocab} classes; found rows with fewer. "
            "Train on a capture with --logits-selection full, or use --space logrank"
        )
    p_RV = sides.log_p_n.exp().view(len(upper_R), vocab)
    sorted_RV = p_RV.sort(1).values
    upper_R, lower_R = quantile(sorted_RV, upper_R), quantile(sorted_RV, lower_R)
    return _window(p_RV, upper_R[:, None], lower_R[:, None], _SHARP).view(-1)


def quantile(sorted_RV: Tensor, level_R: Tensor) -> Tensor:
    """Quantile of each row at its level, linear between neighbours, differentiable in it, [R].

    Args:
        sorted_RV: values, smallest first.
        level_R: 0 to 1.
    """
    place_R = level_R * (sorted_RV.shape[1] - 1)
    below_R = place_R.detach().floor().long().clamp(0, max(sorted_RV.shape[1] - 2, 0))
    above_R = (below_R + 1).clamp(max=sorted_RV.shape[1] - 1)
    low_R = sorted_RV.gather(1, below_R[:, None])[:, 0]
    high_R = sorted_RV.gather(1, above_R[:, None])[:, 0]
    return low_R + (place_R - below_R) * (high_R - low_R)


def window_kl(sides: Paired, mask_n: Tensor, combine: str, top_n: Tensor) -> Tensor:
    """The divergence within a mask of each row, [R].

    Args:
        sides: both sides.
        mask_n: mask of each entry, differentiable.
        combine: tail, sum, renorm or literal; see the module's text.
        top_n: whether an entry is the most probable class of its row.
    """
    row_n, rows = sides.row_n, len(sides.tail_R)
    parts_n = kl_part(sides.log_p_n, sides.log_q_n)
    if combine == "literal":
        bare_n = times(mask_n, mask_n.clamp_min(1e-30).log() - sides.log_q_n)
        return segment_sum(bare_n + torch.where(top_n, parts_n, 0), row_n, rows)
    mask_n = mask_n.masked_fill(top_n, 1.0)
    inside_R = segment_sum(mask_n * parts_n, row_n, rows)
    if combine == "sum":
        return inside_R
    if combine == "tail":
        out_p_R = _log_masked(1 - mask_n, sides.log_p_n, sides.tail_R, row_n)
        out_q_R = _log_masked(1 - mask_n, sides.log_q_n, sides.rest_R, row_n)
        return inside_R + kl_part(out_p_R, out_q_R)
    none_R = torch.full_like(sides.tail_R, -torch.inf)
    in_p_R = _log_masked(mask_n, sides.log_p_n, none_R, row_n)
    in_q_R = _log_masked(mask_n, sides.log_q_n, none_R, row_n)
    held_R = in_p_R > -torch.inf
    zeros_R = torch.zeros_like(in_p_R)
    in_p_R, in_q_R = torch.where(held_R, in_p_R, zeros_R), torch.where(held_R, in_q_R, zeros_R)
    return inside_R * (-in_p_R).exp() - in_p_R + in_q_R


def _log_masked(mask_n: Tensor, log_n: Tensor, outside_R: Tensor, row_n: Tensor) -> Tensor:
    """Log of the masked mass of each row and of what is outside its entries, [R]."""
    tiny = torch.finfo(mask_n.dtype).tiny
    masked_n = mask_n.clamp_min(tiny).log() + log_n
    return logaddexp(segment_logsumexp(masked_n, row_n, len(outside_R)), outside_R)


def coverage(sides: Paired, mask_n: Tensor) -> Tensor:
    """Teacher mass within a mask, [R]."""
    return segment_sum(mask_n * sides.log_p_n.exp(), sides.row_n, len(sides.tail_R))


def coverage_penalty(coverage_R: Tensor, tail_R: Tensor, least: float) -> Tensor:
    """Squared coverage that is missing to ``least``, or to the head's mass where that is less."""
    least_R = (-torch.expm1(tail_R)).clamp(max=least)
    return (least_R - coverage_R).clamp_min(0).square()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """A set of entries of each row, and what it lacks.

    Attributes:
        keep_n: whether an entry belongs to it, bool [n].
        short_R: whether the row's entries do not hold what was asked, bool [R].
    """

    keep_n: Tensor
    short_R: Tensor


def best(
    targets: TargetTensors, rank_n: Tensor, vocab: int, *, keep: str, mass: float, share: float
) -> Kept:
    """The classes that a fixed rule keeps, by the teacher at temperature 1.

    Args:
        targets: of the rows.
        rank_n: rank of each entry, from 1.
        vocab: V.
        keep: top_p, the fewest that hold ``mass``; top_share, the first ``share`` of the
            vocabulary; argmax, the first.
        mass: of top_p.
        share: of top_share.
    """
    offsets = targets["offsets"]
    row_n = entry_rows(offsets)
    if keep != "top_p":
        most = 1 if keep == "argmax" else math.ceil(share * vocab)
        return Kept(keep_n=rank_n <= most, short_R=offsets.diff() < most)
    log_p_n, tail_R = decode_targets(targets, 1.0)
    sums_n = torch.cumsum(by_rank(log_p_n, rank_n, offsets).double().exp(), 0)
    before_n = torch.cat([sums_n.new_zeros(1), sums_n])
    better_n = before_n[offsets[row_n] + rank_n - 1] - before_n[offsets[row_n]]
    keep_n = (better_n < mass) | (rank_n == 1)
    return Kept(keep_n=keep_n, short_R=tail_R.exp() > 1 - mass + _ROUNDING)


def clipped_kl(sides: Paired, keep_n: Tensor, support: str) -> Tensor:
    """Forward KL of the teacher clipped to a set of entries, [R].

    Args:
        sides: both sides.
        keep_n: the set; at least one entry in each row that has any.
        support: of the student. full: all classes, so that its optimum is the clipped teacher
            and nothing else; restricted: the set, and no gradient outside it; tail: the set and
            one bucket for all that is left, on both sides.
    """
    row_n, rows = sides.row_n[keep_n], len(sides.tail_R)
    log_p_n, log_q_n = sides.log_p_n[keep_n], sides.log_q_n[keep_n]
    if support == "tail":
        inside_R = segment_sum(kl_part(log_p_n, log_q_n), row_n, rows)
        return inside_R + _kl_of_rests(sides, keep_n)
    log_p_n = log_p_n - segment_logsumexp(log_p_n, row_n, rows)[row_n]
    if support == "restricted":
        log_q_n = log_q_n - segment_logsumexp(log_q_n, row_n, rows)[row_n]
    return segment_sum(kl_part(log_p_n, log_q_n), row_n, rows)


def _kl_of_rests(sides: Paired, keep_n: Tensor) -> Tensor:
    """What all that is not kept adds as one outcome, [R]."""
    row_n, rows = sides.row_n[~keep_n], len(sides.tail_R)
    rests = []
    for of_entry_n, outside_R in ((sides.log_p_n, sides.tail_R), (sides.log_q_n, sides.rest_R)):
        left_R = segment_logsumexp(of_entry_n[~keep_n], row_n, rows)
        rests.append(logaddexp(left_R, outside_R))
    return kl_part(rests[0], rests[1])


def logaddexp(left: Tensor, right: Tensor) -> Tensor:
    """Log of a sum of two masses, without a gradient where there is neither."""
    none = (left == -torch.inf) & (right == -torch.inf)
    zeros = torch.zeros_like(left)
    total = torch.logaddexp(torch.where(none, zeros, left), torch.where(none, zeros, right))
    return torch.where(none, torch.full_like(total, -torch.inf), total)


def _window(place_n: Tensor, upper_n: Tensor, lower_n: Tensor, width: float) -> Tensor:
    above_n = torch.sigmoid((place_n - lower_n) / width)
    return above_n * torch.sigmoid((upper_n - place_n) / width)

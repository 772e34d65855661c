"""Dense logits to sparse targets on the device: selection, exact tail, normalisers, entropy.

Comes in: logits of a tile of rows. Goes out: ragged numpy arrays (see `cachekd.types.TopKLogits`).
One exponential of the tile serves all sums: normaliser, entropy, tail, T = 2 (its square root) and
the samples. Terms are float32; sums run over blocks of a row first, whose totals are added in
float64. Results have fixed shapes until they are on the host, so that a GPU is not waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cachekd.teachers import Selection
from cachekd.teachers._sampling import systematic
from cachekd.teachers._topk import BLOCK, best_entries, merged, searches_all_blocks, take_blocks

# Elements of a tile: on a CPU its buffers should stay in the cache through all passes over it.
_TILE_ELEMENTS = {"cpu": 1 << 20}
_TILE_ELEMENTS_DEVICE = 1 << 25
_LOWEST = torch.finfo(torch.float32).min
# Below this share of the peak, sums of exponentials relative to the peak lose their digits.
_FAINT = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picked:
    """Targets of N rows on the device, padded to fixed shapes.

    Attributes:
        logprobs, ids: best entries and given ones, best first, float32 and int64 [N, K].
        head: entries of the exact head, or given, bool [N, K].
        sure: entries outside the head that a sample holds in every draw, bool [N, K].
        drawn: ids under the sampling points, int64 [N, J]; -1: none.
        scalars: float32 [S, N]: tail, next_logprob, entropy, a log-normaliser each temperature.
        bad: rows that hold NaN or +inf, or nothing but -inf, bool [N].
    """

    logprobs: Tensor
    ids: Tensor
    head: Tensor
    sure: Tensor
    drawn: Tensor
    scalars: Tensor
    bad: Tensor


class Workspace:
    """Buffers of a tile that the next one uses again: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def buffer(self, name: str, like: Tensor, shape: tuple[int, int]) -> Tensor:
        """Float32 of this shape on the device of ``like``; what it holds is left from before."""
        size = shape[0] * shape[1]
        held = self._held.get(name)
        if held is None or held.numel() < size or held.device != like.device:
            held = self._held[name] = like.new_empty(size, dtype=torch.float32)
        return held[:size].view(shape)


def tile_rows(device_type: str, vocab_size: int) -> int:
    """Rows of a tile on this kind of device."""
    return max(1, _TILE_ELEMENTS.get(device_type, _TILE_ELEMENTS_DEVICE) // vocab_size)


def candidates(selection: Selection) -> int:
    """Best entries K that are looked at: the head, and all that are sure to be in a sample."""
    sure = int(1 / selection.tau) + 1 if selection.tau else 0
    return min(max(selection.k, sure), selection.vocab_size)


def pick(
    logits_NV: Tensor,
    next_ids_N: Tensor,
    uniform_N: Tensor | None,
    selection: Selection,
    work: Workspace,
    given_NJ: Tensor | None = None,
) -> Picked:
    """Targets of N rows, still on their device.

    Args:
        logits_NV: any float dtype; columns from ``vocab_size`` on are padding.
        next_ids_N: ids of the actual next tokens, int64.
        uniform_N: float64, a number in [0, 1) for each row where the selection samples.
        selection: what is kept.
        work: buffers; nothing of the result lies in them.
        given_NJ: ids that are kept beside the head, int64; -1: none. Not where it samples.
    """
    logits_NV = logits_NV[:, : selection.vocab_size]
    sums = _sums(logits_NV, selection, work)
    best = best_entries(sums.shifted, sums.maxima, sums.log_total, max(candidates(selection), 1))
    head_NK, sure_NK = _kept(best, logits_NV, selection)
    removed_NK = head_NK
    if given_NJ is not None:
        best, head_NK = _joined(best, head_NK, given_NJ, sums, logits_NV)
        sure_NK = torch.zeros_like(head_NK)
        removed_NK = head_NK[:, :1].expand_as(head_NK)  # empty places have the first one's id
    _remove(sums.mass, sums.blocks, best[1], removed_NK)
    tail_N = _log_tail(logits_NV, sums, best[1], head_NK)
    if selection.tau:
        _remove(sums.mass, sums.blocks, best[1], sure_NK)
    next_N = sums.shifted.flatten(1).gather(1, next_ids_N[:, None]).squeeze(1) - sums.log_total
    scalars = [
        torch.where(head_NK.any(dim=-1), tail_N, 0.0).float(),
        torch.where(_at(logits_NV, next_ids_N) > -torch.inf, next_N, -torch.inf),
        sums.entropy,
        *sums.lognorms,
    ]
    return Picked(
        logprobs=best[0],
        ids=best[1],
        head=head_NK,
        sure=sure_NK,
        drawn=_drawn(sums, uniform_N, selection),
        scalars=torch.stack(scalars),
        bad=~torch.isfinite(sums.total) | ~torch.isfinite(sums.peak),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sums:
    """A tile relative to the largest logit of each row, and what is summed over it.

    Attributes:
        shifted, mass: logits less ``peak``, and their exponentials, float32 [N, B, W].
        maxima, blocks: maximum of the first and sum of the second in each block, float32 [N, B].
        peak: largest logit, float32 [N].
        total: sum of the mass, float64 [N]; log_total: its logarithm in float32.
        entropy: nats, float32 [N].
        lognorms: log sum p^(1/T) for each temperature, float32 [N].
    """

    shifted: Tensor
    mass: Tensor
    maxima: Tensor
    blocks: Tensor
    peak: Tensor
    total: Tensor
    log_total: Tensor
    entropy: Tensor
    lognorms: list[Tensor]


def _sums(logits_NV: Tensor, selection: Selection, work: Workspace) -> _Sums:
    """One exponential of the tile, and all sums over it."""
    shifted_NBW, maxima_NB, peak_N = _shifted(logits_NV, work)
    flat = (shifted_NBW.shape[0], shifted_NBW[:1].numel())
    mass_NBW = work.buffer("mass", logits_NV, flat).view_as(shifted_NBW)
    terms_NBW = work.buffer("terms", logits_NV, flat).view_as(shifted_NBW)
    torch.exp(shifted_NBW, out=mass_NBW)
    blocks_NB = mass_NBW.sum(dim=-1)
    total_N = blocks_NB.double().sum(dim=-1)
    log_total_N = total_N.log().float()
    weighted_N = _sum(torch.mul(mass_NBW, shifted_NBW, out=terms_NBW))
    return _Sums(
        shifted=shifted_NBW,
        mass=mass_NBW,
        maxima=maxima_NB,
        blocks=blocks_NB,
        peak=peak_N,
        total=total_N,
        log_total=log_total_N,
        entropy=(total_N.log() - weighted_N / total_N).float(),
        lognorms=[
            _lognorm(t, shifted_NBW, mass_NBW, terms_NBW, log_total_N)
            for t in selection.temperatures
        ],
    )


def _shifted(logits_NV: Tensor, work: Workspace) -> tuple[Tensor, Tensor, Tensor]:
    """Logits less the row's largest, float32 in blocks; maxima of the blocks; the largest.

    What is impossible, padding of the last block included, becomes the lowest finite number: its
    exponential is 0, and 0 times it as well.
    """
    rows, vocab = logits_NV.shape
    blocks = -(-vocab // BLOCK)
    values_NM = work.buffer("shifted", logits_NV, (rows, blocks * BLOCK))
    values_NM[:, vocab:] = -torch.inf
    values_NM[:, :vocab] = logits_NV
    values_NBW = values_NM.view(rows, blocks, BLOCK)
    maxima_NB = values_NBW.amax(dim=-1)
    peak_N = maxima_NB.amax(dim=-1)
    values_NM.sub_(peak_N[:, None]).clamp_(min=_LOWEST)
    return values_NBW, (maxima_NB - peak_N[:, None]).clamp_(min=_LOWEST), peak_N


def _lognorm(
    t: float, shifted_NBW: Tensor, mass_NBW: Tensor, terms_NBW: Tensor, log_total_N: Tensor
) -> Tensor:
    """Log of the sum of p^(1/t).

    At t = 2 a root is cheaper than an exponential; what underflowed in the mass has roots below
    1e-19, beside a largest one of 1.
    """
    if t == 2.0:
        torch.sqrt(mass_NBW, out=terms_NBW)
    else:
        torch.div(shifted_NBW, t, out=terms_NBW).exp_()
    return (_sum(terms_NBW).log() - log_total_N.double() / t).float()


def _sum(terms_NBW: Tensor) -> Tensor:
    """Sums of rows: float32 within blocks, float64 over them; the same whatever rows are beside."""
    return terms_NBW.sum(dim=-1).double().sum(dim=-1)


def _at(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    return logits_NV.gather(1, ids_N[:, None]).squeeze(1)


def _kept(
    best: tuple[Tensor, Tensor], logits_NV: Tensor, selection: Selection
) -> tuple[Tensor, Tensor]:
    """Which of the best entries are the head, and which outside of it are sure to be sampled."""
    best_NK, ids_NK = best
    in_row_NK = ids_NK.clamp(max=selection.vocab_size - 1)
    possible_NK = logits_NV.gather(1, in_row_NK) > -torch.inf
    rank_K = torch.arange(best_NK.shape[1], device=best_NK.device)
    head_NK = possible_NK & (rank_K < selection.k)
    p_NK = best_NK.exp()
    if selection.p < 1.0:
        mass_NK = p_NK.cumsum(dim=-1)
        before_NK = torch.cat([torch.zeros_like(mass_NK[:, :1]), mass_NK[:, :-1]], dim=-1)
        head_NK &= (before_NK < selection.p) | (rank_K < selection.min_k)
    if selection.min_prob:
        head_NK &= (p_NK >= selection.min_prob) | (rank_K == 0)
    if not selection.tau:
        return head_NK, torch.zeros_like(head_NK)
    likely_NK = possible_NK & (p_NK >= selection.tau)
    head_NK &= likely_NK
    return head_NK, likely_NK & ~head_NK


def _joined(
    best: tuple[Tensor, Tensor], head_NK: Tensor, given_NJ: Tensor, sums: _Sums, logits_NV: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Head and given entries in one order; of the given ones those that are possible.

    Their log-probabilities are made as those of the best, so that an entry of both is the same.
    """
    ids_NJ = given_NJ.clamp(min=0)
    values_NJ = sums.shifted.flatten(1).gather(1, ids_NJ) - sums.log_total[:, None]
    possible_NJ = (given_NJ >= 0) & (logits_NV.gather(1, ids_NJ) > -torch.inf)
    values_NK, ids_NK, kept_NK = merged(
        torch.cat([best[0], values_NJ], dim=1),
        torch.cat([best[1], ids_NJ], dim=1),
        torch.cat([head_NK, possible_NJ], dim=1),
    )
    return (values_NK, ids_NK), kept_NK


def _remove(mass_NBW: Tensor, sums_NB: Tensor, ids_NK: Tensor, chosen_NK: Tensor) -> None:
    """Take the chosen entries out of the mass; sums of touched blocks are taken anew."""
    mass_NM = mass_NBW.flatten(1)
    mass_NM.scatter_(1, ids_NK, torch.where(chosen_NK, 0.0, mass_NM.gather(1, ids_NK)))
    if searches_all_blocks(ids_NK.shape[1], sums_NB.shape[1]):
        torch.sum(mass_NBW, dim=-1, out=sums_NB)
        return
    block_NK = ids_NK // BLOCK
    sums_NB.scatter_(1, block_NK, take_blocks(mass_NBW, block_NK).sum(dim=-1))


def _log_tail(logits_NV: Tensor, sums: _Sums, ids_NK: Tensor, head_NK: Tensor) -> Tensor:
    """Log mass that is left, summed over itself: exact where 1 - head would cancel.

    Where it is so faint that its terms lose their digits beside the row's peak, it is summed again
    relative to its own.
    """
    tail_N = sums.blocks.double().sum(dim=-1).log() - sums.total.log()
    faint_N = tail_N < math.log(_FAINT)
    if not bool(faint_N.any()):
        return tail_N
    faint_n = faint_N.nonzero().squeeze(1)
    rest_nV = logits_NV[faint_n].float() - sums.peak[faint_n, None]
    row_m, column_m = head_NK[faint_n].nonzero(as_tuple=True)
    rest_nV[row_m, ids_NK[faint_n][row_m, column_m]] = -torch.inf
    exact_n = torch.logsumexp(rest_nV, dim=-1) - sums.log_total[faint_n]
    return tail_N.index_copy(0, faint_n, exact_n.double())


def _drawn(sums: _Sums, uniform_N: Tensor | None, selection: Selection) -> Tensor:
    """Ids under the sampling points of the mass that is left."""
    if not (selection.tau or selection.samples):
        return sums.total.new_empty((len(sums.total), 0), dtype=torch.int64)
    assert uniform_N is not None, "a selection that samples needs a uniform for each row"
    if selection.samples:
        step_N, points = sums.total / selection.samples, selection.samples
    else:
        step_N, points = sums.total * selection.tau, int(1 / selection.tau) + 1
    return systematic(sums.mass, sums.blocks, uniform_N, step_N, points)

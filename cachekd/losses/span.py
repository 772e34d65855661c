"""The span loss: what neighbouring tokens of a phrase have to do with each other, for both models.

("Multi-Granularity Semantic Revision for Large Language Model Distillation", Eq. 10.) For rows j
and j + 1 of one phrase, with p the teacher and q the student,

    d_j = || q_j * q_{j+1} - p_j * p_{j+1} ||_2        product and norm over the vocabulary

Of the teacher's products those are known whose token both rows store; the others count as 0. With
K + 1 entries stored they would be at most p_j's (K+1)-th probability, so that what is left out of
the square is below the sum of the squares of both rows' (K+1)-th probabilities. The student's
products are taken over the whole vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cachekd.losses.ragged import entry_rows
from cachekd.losses.targets import decode_targets
from cachekd.types import TargetTensors

_SMALLEST = 1e-12
"""Under the root: the norm has no gradient at 0."""


def pair_distances(logits_RV: Tensor, targets: TargetTensors) -> tuple[Tensor, Tensor]:
    """Distances d of the pairs of neighbours that begin in some rows.

    Args:
        logits_RV: of the student.
        targets: of the same rows, with ``span_factor``: above 0 where a pair begins. A pair that
            begins in the last row is not there.

    Returns:
        First rows of the P pairs, int64 [P], and d [P], differentiable once in the logits.
    """
    begins_R = targets["span_factor"][:-1] > 0
    first_P = begins_R.nonzero()[:, 0]
    if not len(first_P):
        return first_P, logits_RV.new_zeros(0)
    pair_n, ids_n, product_n = _shared(targets, begins_R, logits_RV.shape[1])
    d_P: Tensor = _Distances.apply(  # type: ignore[no-untyped-call]
        logits_RV, first_P, pair_n * logits_RV.shape[1] + ids_n, product_n.to(logits_RV.dtype)
    )
    return first_P, d_P


def _shared(targets: TargetTensors, begins_R: Tensor, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that both rows of a pair store: number of the pair, id, and the teacher's product."""
    log_p_n, _ = decode_targets(targets, 1.0)
    key_n, order_n = (entry_rows(targets["offsets"]) * vocab + targets["ids"]).sort()
    below_n = torch.searchsorted(key_n, key_n + vocab).clamp(max=len(key_n) - 1)
    row_n = key_n // vocab
    begins_R = torch.cat([begins_R, begins_R.new_zeros(1)])
    both_n = begins_R[row_n] & (key_n[below_n] == key_n + vocab)
    first_n, second_n = order_n[both_n], order_n[below_n[both_n]]
    pair_n = (begins_R.cumsum(0) - 1)[row_n[both_n]]
    return pair_n, targets["ids"][first_n], (log_p_n[first_n] + log_p_n[second_n]).exp()


class _Distances(torch.autograd.Function):
    """Norms of pairs; kept between the passes are the softmax and the differences alone."""

    @staticmethod
    def forward(
        ctx: Any, logits_RV: Tensor, first_P: Tensor, at_n: Tensor, product_n: Tensor
    ) -> Tensor:
        q_RV = torch.softmax(logits_RV, 1)
        difference_PV = q_RV[first_P].mul_(q_RV[first_P + 1])
        difference_PV.view(-1).index_add_(0, at_n, product_n, alpha=-1)
        norm_P: Tensor = torch.linalg.vector_norm(difference_PV, dim=1)
        d_P = (norm_P.square() + _SMALLEST).sqrt()
        ctx.save_for_backward(q_RV, first_P, difference_PV, d_P)
        return d_P

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_RV, first_P, difference_PV, d_P = ctx.saved_tensors
        of_product_PV = difference_PV * (grads[0] / d_P)[:, None]
        of_q_RV = torch.zeros_like(q_RV)
        of_q_RV.index_add_(0, first_P, q_RV[first_P + 1].mul_(of_product_PV))
        of_q_RV.index_add_(0, first_P + 1, q_RV[first_P].mul_(of_product_PV))
        of_q_RV -= torch.linalg.vecdot(q_RV, of_q_RV)[:, None]
        return of_q_RV.mul_(q_RV), None, None, None

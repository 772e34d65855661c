"""The learning simplifier of SKD-like distillation: a teacher's rows, re-weighed by attention.

In: decoded targets of the rows of a batch and which document each row is of. Out: targets of the
same form that carry a gradient to the simplifier. The rows of one document attend to each other, in
both directions; what comes of it is added to the log-probabilities of a row's best classes and of
its tail, and all outcomes of the row (the other entries too) are normalised again. The last layer
starts at 0: the simplified teacher is the teacher at first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cachekd.losses.clipping import logaddexp
from cachekd.losses.paired import at_ranks, by_rank, kl_part, ranks
from cachekd.losses.ragged import entry_rows, segment_logsumexp, segment_sum

_SEED = 0
_LOWEST = 20.0


class Simplifier(nn.Module):
    """One head of attention from log-probabilities of a row to what is added to them.

    Args:
        best: classes of a row that it sees and changes, beside the tail.
        hidden: width of the attention.
    """

    def __init__(self, best: int, hidden: int) -> None:
        super().__init__()
        self.best = best
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self.inner = nn.Linear(best + 1, 3 * hidden)
            self.outer = nn.Linear(hidden, best + 1)
        with torch.no_grad():
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, inputs_NF: Tensor, document_N: Tensor) -> Tensor:
        """What is added to each input, [N, F], in the dtype of the inputs.

        Args:
            inputs_NF: of the rows, those of a document next to each other.
            document_N: number of each row's document.
        """
        _, counts = torch.unique_consecutive(document_N, return_counts=True)
        width = int(counts.max())
        held_DL = torch.arange(width, device=counts.device) < counts[:, None]
        scaled_NF = inputs_NF.to(self.inner.weight.dtype) / _LOWEST
        inner_NH = self.inner(scaled_NF)
        inner_DLH = inner_NH.new_zeros((*held_DL.shape, inner_NH.shape[1]))
        inner_DLH = inner_DLH.masked_scatter(held_DL[:, :, None], inner_NH)
        query, key, value = inner_DLH.chunk(3, dim=2)
        mixed_DLH = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=held_DL[:, None, :]
        )
        delta_NF: Tensor = self.outer(mixed_DLH[held_DL])
        return delta_NF.to(inputs_NF.dtype)


def simplify(
    net: Simplifier, log_p_n: Tensor, tail_N: Tensor, offsets: Tensor, document_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The simplified teacher, and how far it is from the teacher.

    Args:
        net: the simplifier.
        log_p_n: the teacher's log-probability of each entry, softened.
        tail_N: log of its mass outside them.
        offsets: of the rows; there is at least one.
        document_N: number of each row's document.

    Returns:
        Log-probabilities of the entries, [n], log of the tail, [N], and KL(teacher || simplified)
        of each row, [N]; all carry a gradient to the simplifier.
    """
    row_n, rows, best = entry_rows(offsets), len(tail_N), net.best
    rank_n = ranks(log_p_n, offsets)
    lowest_N = torch.full_like(tail_N, -_LOWEST)
    ranks_K = torch.arange(1, best + 1, device=offsets.device)
    best_NK = at_ranks(by_rank(log_p_n, rank_n, offsets), offsets, ranks_K, lowest_N)
    inputs_NF = torch.cat([best_NK, tail_N[:, None]], 1).clamp_min(-_LOWEST)
    delta_NF = net(inputs_NF, document_N)
    delta_n = delta_NF[row_n, rank_n.clamp(max=best) - 1]
    delta_n = torch.where(rank_n <= best, delta_n, torch.zeros_like(delta_n))
    moved_n, moved_N = log_p_n + delta_n, tail_N + delta_NF[:, best]
    norm_N = logaddexp(segment_logsumexp(moved_n, row_n, rows), moved_N)
    simple_n, simple_N = moved_n - norm_N[row_n], moved_N - norm_N
    away_N = segment_sum(kl_part(log_p_n, simple_n), row_n, rows) + kl_part(tail_N, simple_N)
    return simple_n, simple_N, away_N

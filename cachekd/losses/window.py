"""The sub-network of DAC-KL: what it sees of both distributions, and the limits it says.

Of "Multi-Granularity Semantic Revision for Large Language Model Distillation", Eq. 6:
(u, l) = s(f(p | sort(p) | q)), l within [0, u]; here l is the second output times u, which is
smooth. The compact input serves a sparse cache and has one size for every
vocabulary. Inputs are detached: the student is not trained to move the window.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cachekd.losses.paired import Paired, at_ranks, by_rank
from cachekd.losses.ragged import segment_sum, times
from cachekd.types import TargetTensors

_SEED = 0
_LOWEST = 20.0
_SKETCH = 8
_OPEN = (2.0, -2.0)


class WindowNet(nn.Module):
    """Two layers from inputs to the limits of a window.

    Every process builds the same one. At the start its output does not depend on its input and is
    u = 0.88, l = 0.12 u.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self.inner = nn.Linear(inputs, hidden)
            self.outer = nn.Linear(hidden, 2)
        with torch.no_grad():
            self.outer.weight.zero_()
            self.outer.bias.copy_(torch.tensor(_OPEN))

    def forward(self, inputs_RF: Tensor) -> tuple[Tensor, Tensor]:
        """Upper and lower limit of each row, [R], in the dtype of the inputs."""
        weights = self.inner.weight
        hidden_RH = torch.relu(self.inner(inputs_RF.to(weights.dtype)))
        limits_R2 = torch.sigmoid(self.outer(hidden_RH)).to(inputs_RF.dtype)
        return limits_R2[:, 0], limits_R2[:, 0] * limits_R2[:, 1]


def compact_width(best: int) -> int:
    """Inputs that `compact_inputs` makes of the ``best`` classes of a row."""
    return 2 * best + _SKETCH + 5


def compact_inputs(
    sides: Paired, targets: TargetTensors, rank_n: Tensor, vocab: int, best: int
) -> Tensor:
    """What a sparse cache tells of a row, [R, F], each number about 0 to 1 in size.

    In order: log p of the best classes; log q at the same ids; log p at 8 ranks spaced evenly in
    log(rank) up to V; H(p) of the teacher's whole distribution and H(q) of the student's entries
    and one bucket (a sparse pass does not know more), both over log V; the largest p; the mass of
    p and of q outside the entries. A rank beyond the entries reads as the mean of the tail.
    """
    offsets, rows = targets["offsets"], len(sides.tail_R)
    with torch.no_grad():
        outside_R = (vocab - offsets.diff()).clamp_min(1).log()
        ranks_K = torch.arange(1, best + 1, device=offsets.device)
        spaced = [round(vocab ** (i / (_SKETCH - 1))) for i in range(_SKETCH)]
        sketch_S = torch.tensor(spaced, device=offsets.device)
        log_p_n, mean_R = by_rank(sides.log_p_n, rank_n, offsets), sides.tail_R - outside_R
        log_q_n = by_rank(sides.log_q_n, rank_n, offsets)
        p_RK = at_ranks(log_p_n, offsets, ranks_K, mean_R)
        q_RK = at_ranks(log_q_n, offsets, ranks_K, sides.rest_R - outside_R)
        sketch_RS = at_ranks(log_p_n, offsets, sketch_S, mean_R)
        q_n, rest_R = sides.log_q_n.exp(), sides.rest_R.exp()
        h_q_R = -segment_sum(times(q_n, sides.log_q_n), sides.row_n, rows)
        h_q_R = h_q_R - times(rest_R, sides.rest_R)
        entropies_R = [targets["entropy"].to(h_q_R.dtype), h_q_R]
        single = [entropy_R / math.log(max(vocab, 2)) for entropy_R in entropies_R]
        single += [p_RK[:, 0].exp(), sides.tail_R.exp(), rest_R]
        logs_RF = torch.cat([p_RK, q_RK, sketch_RS], 1).clamp_min(-_LOWEST) / _LOWEST
        return torch.cat([logs_RF, torch.stack(single, 1)], 1)


def full_inputs(sides: Paired, targets: TargetTensors, vocab: int) -> Tensor:
    """p, p sorted, and q over the vocabulary, [R, 3 V]; heads are the whole vocabulary."""
    with torch.no_grad():
        shape = (len(sides.tail_R), vocab)
        at = (sides.row_n, targets["ids"])
        p_RV = sides.log_p_n.new_zeros(shape).index_put_(at, sides.log_p_n.exp())
        q_RV = sides.log_q_n.new_zeros(shape).index_put_(at, sides.log_q_n.exp())
        return torch.cat([p_RV, p_RV.sort(1, descending=True).values, q_RV], 1)

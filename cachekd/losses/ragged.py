"""Arithmetic over ragged rows (CSR): sums of entries by row, and logarithms of masses.

In: values of n entries with the number of their row, or the offsets of N rows. Out: one number a
row. Nothing here knows what the values mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LN2 = 0.6931471805599453


def entry_rows(offsets: Tensor) -> Tensor:
    """Row number of each entry of a ragged array, int64 [n]."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff())


def segment_sum(values_n: Tensor, row_n: Tensor, rows: int) -> Tensor:
    """Sum of each row's entries, [N].

    Entries come largest first, the worst order for a running sum: where the device has float64, it
    carries the sum.
    """
    dtype = values_n.dtype if values_n.device.type == "mps" else torch.float64
    sum_N = torch.zeros(rows, dtype=dtype, device=values_n.device)
    return sum_N.index_add_(0, row_n, values_n.to(dtype)).to(values_n.dtype)


def segment_logsumexp(values_n: Tensor, row_n: Tensor, rows: int) -> Tensor:
    """Log of the summed exponentials of each row's entries, [N]; -inf for a row without any."""
    top_N = torch.full((rows,), -torch.inf, dtype=values_n.dtype, device=values_n.device)
    top_N = top_N.scatter_reduce(0, row_n, values_n, "amax")
    top_N = torch.where(top_N == -torch.inf, torch.zeros_like(top_N), top_N)
    return segment_sum((values_n - top_N[row_n]).exp(), row_n, rows).log() + top_N


def log1mexp(log_mass: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends."""
    near_one = log_mass > -_LN2
    return torch.where(
        near_one,
        torch.log(-torch.expm1(torch.where(near_one, log_mass, -torch.ones_like(log_mass)))),
        torch.log1p(-torch.exp(log_mass)),
    )


def times(mass: Tensor, log_ratio: Tensor) -> Tensor:
    """Product in which 0 times anything is 0, in value and in gradient."""
    return mass * torch.where(mass > 0, log_ratio, torch.zeros_like(log_ratio))

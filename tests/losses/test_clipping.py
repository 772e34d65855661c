"""Parts of clipped divergences: quantiles, and what a soft mask with a bucket cannot exceed."""

from __future__ import annotations

import math

import pytest
import torch
from selected import V, logits, targets_of
from torch import Tensor

from cachekd.losses.clipping import quantile, window_kl
from cachekd.losses.paired import Paired
from cachekd.losses.ragged import entry_rows
from cachekd.losses.reference import dense_forward_kl


def _dense_sides(teacher: Tensor, student: Tensor) -> Paired:
    targets = targets_of(teacher)
    log_q = torch.log_softmax(student, 1)
    row_n = entry_rows(targets["offsets"])
    none = torch.full((len(teacher),), -torch.inf, dtype=torch.float64)
    return Paired(
        log_p_n=targets["logprobs"],
        tail_R=none,
        log_q_n=log_q[row_n, targets["ids"]],
        rest_R=none,
        row_n=row_n,
    )


@pytest.mark.parametrize("limits", [(0.9, 0.05), (0.5, 0.2), (0.99, 0.6), (0.3, 0.0)])
def test_tail_is_never_negative_nor_above_forward_kl(limits: tuple[float, float]) -> None:
    teacher, student = logits(30, 7), logits(30, 8)
    sides = _dense_sides(teacher, student)
    place_n = (torch.arange(1, V + 1).double().log() / math.log(V)).repeat(30)
    mask_n = torch.sigmoid((place_n - limits[1]) / 0.05) * torch.sigmoid(
        (limits[0] - place_n) / 0.05
    )
    top_n = torch.arange(len(place_n)) % V == 0
    found = window_kl(sides, mask_n, "tail", top_n)
    assert found.min() >= 0
    assert (found <= dense_forward_kl(teacher, student) + 1e-12).all()


def test_quantile_equals_that_of_torch() -> None:
    rows = torch.rand(7, 31, dtype=torch.float64).sort(1).values
    levels = torch.tensor([0.01, 0.11, 0.34, 0.51, 0.91, 0.999, 1.0]).double().requires_grad_()
    found = quantile(rows, levels)
    expected = torch.stack([torch.quantile(r, u) for r, u in zip(rows, levels, strict=True)])
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (
        torch.autograd.grad(values[:-1].sum(), levels)[0] for values in (found, expected)
    )
    torch.testing.assert_close(of_found, of_expected)

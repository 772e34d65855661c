"""Sampled entries: loss and gradient are those of p_hat, and unbiased for the dense ones."""

from __future__ import annotations

import pytest
import torch
from chunks import divergence_rows, tail_mass_rows
from fakes import sparse
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.choice import Divergence
from cachekd.losses.reference import dense_forward_kl
from cachekd.losses.targets import estimate
from cachekd.types import TargetTensors

V, ROWS = 30, 5


def drawn(teacher_NV: Tensor, tau: float, generator: torch.Generator) -> TargetTensors:
    """Head p >= tau exactly; every other token with probability p / tau and weight tau."""
    log_p = torch.log_softmax(teacher_NV.double(), -1)
    values, order = log_p.sort(-1, descending=True)
    p = values.exp()
    head = p >= tau
    keep = head | (torch.rand(p.shape, generator=generator, dtype=torch.float64) < p / tau)
    targets = sparse(teacher_NV)
    targets["offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), keep.sum(1).cumsum(0)])
    targets["ids"] = order[keep]
    targets["logprobs"] = torch.where(head, values, torch.tensor(tau).double().log())[keep]
    targets["entry_weights"] = torch.where(head, 0.0, tau)[keep]
    targets["tail"] = torch.log(torch.where(head, 0.0, p).sum(1))
    targets["entropy"] = -(log_p.exp() * log_p).sum(1)
    return targets


def teacher() -> Tensor:
    """Rows flat enough that every token is drawn now and then."""
    generator = torch.Generator().manual_seed(3)
    return 0.7 * torch.randn(ROWS, V, dtype=torch.float64, generator=generator)


def test_loss_and_gradient_are_those_of_the_estimate() -> None:
    targets = drawn(teacher(), 0.05, torch.Generator().manual_seed(0))
    p_hat = torch.zeros(ROWS, V, dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(ROWS), targets["offsets"].diff())
    p_hat[rows, targets["ids"]] = estimate(targets)
    mine = torch.randn(ROWS, V, dtype=torch.float64).requires_grad_()
    dense = mine.detach().clone().requires_grad_()
    found = divergence_rows(mine, targets, Divergence())
    expected = -(p_hat * torch.log_softmax(dense, 1)).sum(1) - targets["entropy"]
    assert torch.allclose(found, expected, atol=1e-12)
    found.sum().backward()
    expected.sum().backward()
    assert mine.grad is not None and dense.grad is not None
    assert torch.allclose(mine.grad, dense.grad, atol=1e-12)


def test_unbiased_for_value_and_gradient() -> None:
    """The mean over draws is within five standard errors of the dense value, entry by entry."""
    truth, generator = teacher(), torch.Generator().manual_seed(1)
    student = torch.randn(ROWS, V, dtype=torch.float64, generator=generator).requires_grad_()
    dense_forward_kl(truth, student).sum().backward()
    assert student.grad is not None
    wanted = torch.cat([dense_forward_kl(truth, student.detach()), student.grad.flatten()])
    draws = []
    for _ in range(600):
        z = student.detach().clone().requires_grad_()
        kl_N = divergence_rows(z, drawn(truth, 0.08, generator), Divergence())
        kl_N.sum().backward()
        assert z.grad is not None
        draws.append(torch.cat([kl_N.detach(), z.grad.flatten()]))
    found = torch.stack(draws)
    error = found.std(0) / len(draws) ** 0.5
    assert ((found.mean(0) - wanted).abs() <= 5 * error + 1e-12).all()
    assert error.max() > 0, "without spread the test would prove nothing"


def test_draws_without_a_head_are_their_weights() -> None:
    targets = sparse(torch.zeros(2, 4))
    targets["offsets"] = torch.tensor([0, 2, 3])
    targets["ids"] = torch.tensor([0, 3, 1])
    targets["entry_weights"] = torch.tensor([0.25, 0.75, 1.0])
    targets["logprobs"] = targets["entry_weights"].log()
    targets["tail"] = torch.zeros(2)
    targets["entropy"] = torch.zeros(2)
    assert estimate(targets).tolist() == [0.25, 0.75, 1.0]
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    found = divergence_rows(zeros, targets, Divergence())
    assert torch.allclose(found, torch.full((2,), 4.0).double().log())
    mass = tail_mass_rows(zeros, targets).tolist()
    assert mass == pytest.approx([1.0, 1.0]), "all is outside an empty head"


def test_what_has_no_unbiased_estimate_is_refused() -> None:
    targets = drawn(teacher(), 0.05, torch.Generator())
    for refused in (
        {"temperature": 2.0},
        {"tail": "flat"},
        {"name": "reverse_kl"},
        {"name": "tvd"},
    ):
        with pytest.raises(ConfigError, match="nothing else without bias"):
            divergence_rows(torch.zeros(ROWS, V), targets, Divergence(**refused))

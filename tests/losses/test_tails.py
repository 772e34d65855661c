"""Tail models against a dense float64 decode, and their gradients against autograd."""

from __future__ import annotations

import pytest
import torch
from chunks import divergence_rows, tail_mass_rows
from fakes import sparse
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.choice import Divergence
from cachekd.losses.reference import dense_forward_kl, densify
from cachekd.losses.tails import log_rank_exponent
from cachekd.types import TargetTensors


def modelled_forward_kl(
    logits_NV: Tensor, targets: TargetTensors, temperature: float, tail: str
) -> Tensor:
    return divergence_rows(logits_NV, targets, Divergence(temperature=temperature, tail=tail))


MODELS = ["flat", "unigram", "log_rank"]
V = 40


def made_up(seed: int = 0, top_p: float = 0.7) -> tuple[Tensor, TargetTensors]:
    generator = torch.Generator().manual_seed(seed)
    teacher = 3 * torch.randn(6, V, dtype=torch.float64, generator=generator)
    targets = sparse(teacher, top_p=top_p)
    targets["unigram"] = torch.softmax(torch.randn(V, dtype=torch.float64, generator=generator), 0)
    return teacher, targets


def dense_targets(targets: TargetTensors, temperature: float, tail: str) -> Tensor:
    """The whole decoded distribution, row by row, [N, V]."""
    decoded = densify(targets, V, temperature)
    rank = torch.empty(V, dtype=torch.float64)
    rank[targets["unigram"].argsort(descending=True, stable=True)] = torch.arange(
        1.0, V + 1
    ).double()
    exponents = log_rank_exponent(targets, V).double()
    rows = []
    for row in range(len(decoded.tail_N)):
        spread = {
            "flat": torch.ones(V, dtype=torch.float64),
            "unigram": targets["unigram"].sqrt(),
            "log_rank": rank ** -exponents[row],
        }[tail] ** (1 / temperature)
        spread = torch.where(decoded.in_head_NV[row], 0.0, spread)
        share = spread / spread.sum() if spread.sum() > 0 else spread
        rows.append(decoded.head_NV[row] + decoded.tail_N[row] * share)
    return torch.stack(rows)


@pytest.mark.parametrize("tail", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_the_dense_divergence_and_its_gradient(tail: str, temperature: float) -> None:
    _, targets = made_up()
    p = dense_targets(targets, temperature, tail)
    assert torch.allclose(p.sum(1), torch.ones(6, dtype=torch.float64), atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    mine, dense = (
        torch.randn(6, V, dtype=torch.float64, generator=generator.manual_seed(1)).requires_grad_()
        for _ in range(2)
    )
    found = modelled_forward_kl(mine, targets, temperature, tail)
    expected = dense_forward_kl(temperature * p.log(), dense, temperature)
    assert torch.allclose(found, expected, atol=1e-10)
    weights = torch.arange(1.0, 7, dtype=torch.float64)
    (weights * found).sum().backward()
    (weights * expected).sum().backward()
    assert mine.grad is not None and dense.grad is not None
    assert torch.allclose(mine.grad, dense.grad, atol=1e-10)
    outside = torch.where(
        densify(targets, V).in_head_NV, 0.0, torch.softmax(dense / temperature, 1)
    )
    assert torch.allclose(
        tail_mass_rows(mine.detach(), targets, temperature), outside.sum(1), atol=1e-10
    )


@pytest.mark.parametrize("tail", MODELS)
def test_is_zero_when_the_student_equals_the_decoded_target(tail: str) -> None:
    _, targets = made_up()
    student = dense_targets(targets, 1.0, tail).log()
    kl_N = modelled_forward_kl(student, targets, 1.0, tail)
    assert kl_N.abs().max() < 1e-12
    other = student + torch.linspace(-1, 1, V, dtype=torch.float64)
    assert modelled_forward_kl(other, targets, 1.0, tail).min() > 1e-3


@pytest.mark.parametrize("tail", MODELS)
def test_a_whole_vocabulary_leaves_nothing_to_model(tail: str) -> None:
    teacher, targets = made_up(top_p=1.0)
    student = torch.randn(6, V, dtype=torch.float64)
    found = modelled_forward_kl(student, targets, 1.0, tail)
    assert torch.allclose(found, dense_forward_kl(teacher, student), atol=1e-10)


def test_the_power_law_has_the_mass_and_passes_through_the_last_entry() -> None:
    rank = torch.arange(1, 4001, dtype=torch.float64)
    for exponent in (0.7, 1.0, 1.6):
        p = rank**-exponent
        targets = sparse((p / p.sum()).log()[None], top_p=0.6)
        found = log_rank_exponent(targets, 4000).double()
        assert torch.allclose(found, torch.tensor([exponent]).double(), atol=0.01)


def test_a_better_tail_is_closer_to_the_teacher() -> None:
    """Zipf's law over tokens whose unigram is known: the model that knows more is nearer."""
    rank = torch.arange(1, V + 1, dtype=torch.float64)
    p = rank**-1.2 / (rank**-1.2).sum()
    targets = sparse(p.log()[None].expand(6, -1), top_p=0.5)
    targets["unigram"] = p**2 / (p**2).sum()  # its square root is the law itself
    gaps = {
        tail: dense_forward_kl(p.log()[None], dense_targets(targets, 1.0, tail).log()).mean()
        for tail in MODELS
    }
    assert gaps["unigram"] < 1e-9 < gaps["flat"]
    assert gaps["log_rank"] < 0.1 * gaps["flat"]


def test_what_is_missing_is_said() -> None:
    _, targets = made_up()
    del targets["unigram"]
    student = torch.zeros(6, V)
    with pytest.raises(ConfigError, match="recode"):
        modelled_forward_kl(student, targets, 1.0, "unigram")
    with pytest.raises(ConfigError, match="expected one of bucket"):
        modelled_forward_kl(student, targets, 1.0, "zipf")

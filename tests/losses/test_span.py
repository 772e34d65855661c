"""The span loss: the dense float64 formula, its gradient, chunks, what a sparse cache loses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from chunks import run_objective
from fakes import VOCAB, sparse

from cachekd.losses.fused import logits_loss
from cachekd.losses.reference import dense_span
from cachekd.losses.span import pair_distances
from cachekd.objectives import build
from cachekd.training.loss import reading_of
from cachekd.training.spans import span_factors
from cachekd.types import TargetTensors

SPANS = [np.array([0, 0, 0, -1, 1, 2, 2]), np.array([-1, -1]), np.array([0, 0, 0, 0])]
WEIGHTS = [1.0, 3.0, 0.5]
ROWS = sum(map(len, SPANS))


def _pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbours are alike, so that their products are not all small."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(VOCAB, generator=generator, dtype=torch.float64) * 2
    noise = torch.randn(2, ROWS, VOCAB, generator=generator, dtype=torch.float64)
    teacher, student = common + noise
    return teacher, student.requires_grad_()


def _targets(teacher: torch.Tensor, top_p: float = 1.0) -> TargetTensors:
    targets = sparse(teacher, top_p=top_p)
    counts = list(map(len, SPANS))
    weights = np.repeat(np.array(WEIGHTS), counts)
    span, factor = span_factors(SPANS, weights)
    targets["weights"] = torch.from_numpy(weights)
    targets["span"], targets["span_factor"] = torch.from_numpy(span), torch.from_numpy(factor)
    return targets


def _expected(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The formula of each document, weighed by its rows."""
    total, at = torch.zeros((), dtype=torch.float64), 0
    for span, weight in zip(SPANS, WEIGHTS, strict=True):
        own = slice(at, at + len(span))
        phrases = [np.flatnonzero(span == n).tolist() for n in range(span.max() + 1)]
        if phrases:
            total = total + weight * len(span) * dense_span(teacher[own], student[own], phrases)
        at += len(span)
    return total


@pytest.mark.parametrize("chunk", [2, 3, 5, None])
def test_equals_the_dense_formula_whatever_the_chunks(chunk: int | None) -> None:
    teacher, student = _pair()
    objective = build("span", {})
    reading = replace(reading_of(objective, VOCAB), chunk=chunk)
    output = logits_loss(student, _targets(teacher), objective, reading)
    expected = _expected(teacher, student)
    torch.testing.assert_close(output.loss_sum, expected, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(output.metrics["span"], expected.detach(), atol=1e-7, rtol=1e-7)
    assert output.weight_sum.item() == pytest.approx(7 + 6 + 2)
    assert output.metrics["pair_share"].item() == pytest.approx(3 * 1 + 3 * 0.5)
    found, wanted = (torch.autograd.grad(loss, student)[0] for loss in (output.loss_sum, expected))
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-6)


def test_gradient_is_the_derivative() -> None:
    teacher, student = _pair(1)
    targets = _targets(teacher, top_p=0.9)

    def distances(logits: torch.Tensor) -> torch.Tensor:
        return pair_distances(logits, targets)[1]

    assert torch.autograd.gradcheck(distances, student)


def test_a_student_that_is_the_teacher_has_no_loss() -> None:
    teacher, _ = _pair()
    student = teacher.clone().requires_grad_()
    first, d = pair_distances(student, _targets(teacher))
    assert len(first) == 6 and d.max() < 1.1e-6  # the root of 1e-12 is 1e-6
    run_objective(build("span", {}), student, _targets(teacher)).loss_sum.backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-9
    assert pair_distances(student.float(), _targets(teacher.float()))[1].max() < 3e-6


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.99])
def test_what_is_left_out_is_bounded_by_the_first_entry_not_stored(top_p: float) -> None:
    teacher, student = _pair(2)
    first, exact = pair_distances(student, _targets(teacher))
    sparse_targets = _targets(teacher, top_p=top_p)
    again, found = pair_distances(student, sparse_targets)
    assert first.tolist() == again.tolist()
    p = torch.softmax(teacher, 1).sort(1, descending=True).values
    next_best = p.gather(1, sparse_targets["offsets"].diff()[:, None])[:, 0]
    bound = (next_best[first].square() + next_best[first + 1].square()).sqrt()
    error = (found - exact).abs()
    assert error.max() > 1e-8
    assert (error <= bound).all()


def test_a_row_with_nothing_stored_in_common_leaves_the_student_alone() -> None:
    teacher = torch.zeros(2, VOCAB, dtype=torch.float64)
    teacher[0, 0] = teacher[1, 1] = 50.0
    targets = sparse(teacher, top_p=0.9)
    targets["span_factor"] = torch.tensor([1.0, 0.0])
    student = torch.randn(2, VOCAB, dtype=torch.float64)
    q = torch.softmax(student, 1)
    torch.testing.assert_close(pair_distances(student, targets)[1], (q[0] * q[1]).norm()[None])


def test_no_pair_gives_a_zero_that_can_be_trained() -> None:
    for rows in (0, 1, 3):
        teacher = torch.zeros(rows, VOCAB, dtype=torch.float64)
        targets = sparse(teacher)
        targets["span_factor"] = torch.zeros(rows)
        student = teacher.clone().requires_grad_()
        output = run_objective(build("span", {}), student, targets)
        output.loss_sum.backward()
        assert output.loss_sum.item() == 0 and output.weight_sum.item() == rows

"""Decoupled KD: its identity with KL, dense float64 code, targets in and outside of the head."""

from __future__ import annotations

import pytest
import torch
from chunks import run_objective
from selected import V, inside, kl, logits, single, targets_of
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.reference import dense_forward_kl
from cachekd.objectives import build
from cachekd.types import TargetTensors


def dense_dkd(
    teacher: Tensor, student: Tensor, target: Tensor, head: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, tokens outside head and target being one class."""
    p, q = torch.softmax(teacher / temperature, 1), torch.softmax(student / temperature, 1)
    chosen = torch.nn.functional.one_hot(target, p.shape[1]).bool()
    rest = ~head & ~chosen
    binary, others = [], []
    for x in (p, q):
        of_target = (x * chosen).sum(1, keepdim=True)
        binary.append(torch.cat([of_target, (x * ~chosen).sum(1, keepdim=True)], 1))
        other = torch.cat([x * (head & ~chosen), (x * rest).sum(1, keepdim=True)], 1)
        others.append(other / (x * ~chosen).sum(1, keepdim=True))
    return kl(*binary), kl(*others)


def _expected(
    teacher: Tensor, student: Tensor, targets: TargetTensors, which: str, temperature: float
) -> tuple[Tensor, Tensor]:
    target = targets["next_ids"] if which == "gold" else teacher.argmax(1)
    return dense_dkd(teacher, student, target, inside(targets), temperature)


@pytest.mark.parametrize("which", ["gold", "argmax"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.6, 0.95, 1.0])
def test_equals_dense_code_in_value_and_gradient(
    which: str, temperature: float, top_p: float
) -> None:
    teacher, student = logits(16, 1), logits(16, 2).requires_grad_()
    targets = targets_of(teacher, top_p=top_p)
    in_head = inside(targets)[torch.arange(16), targets["next_ids"]]
    assert top_p == 1 or 0 < in_head.sum() < 16, "both kinds of row"
    options = {"alpha": 0.7, "beta": 3.0, "temperature": temperature, "target": which}
    objective = build("dkd", {**options, "loss": {"kd": 1.0}})
    output = run_objective(objective, student, targets)
    tckd, nckd = _expected(teacher, student, targets, which, temperature)
    expected = temperature**2 * (targets["weights"] * (0.7 * tckd + 3 * nckd)).sum()
    torch.testing.assert_close(output.loss_sum, expected, atol=1e-11, rtol=1e-9)
    (found,) = torch.autograd.grad(output.loss_sum, student)
    (reference,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(found, reference, atol=1e-11, rtol=1e-8)
    for name, rows in (("tckd", tckd), ("nckd", nckd)):
        torch.testing.assert_close(output.metrics[name], (targets["weights"] * rows).sum().detach())


@pytest.mark.parametrize("which", ["gold", "argmax"])
def test_parts_make_up_forward_kl(which: str) -> None:
    """KL = TCKD + (1 - p_g) NCKD, row by row."""
    teacher, student = logits(10, 3), logits(10, 4)
    for row in range(10):
        one, other = teacher[row : row + 1], student[row : row + 1]
        targets = targets_of(one)
        targets["weights"] = torch.ones(1, dtype=torch.float64)
        found = run_objective(build("dkd", {"target": which}), other, targets).metrics
        whole = found["tckd"] + (1 - found["target_p"]) * found["nckd"]
        torch.testing.assert_close(whole, dense_forward_kl(one, other)[0])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_student_at_the_teacher_has_no_loss_and_no_gradient(temperature: float) -> None:
    teacher = logits(12, 5)
    student = teacher.clone().requires_grad_()
    objective = build("dkd", {"temperature": temperature, "loss": {"kd": 1.0}})
    output = run_objective(objective, student, targets_of(teacher, top_p=0.8))
    assert output.loss_sum.abs() < 1e-12
    assert torch.autograd.grad(output.loss_sum, student)[0].abs().max() < 1e-12


def test_sure_teachers_and_students_keep_their_digits() -> None:
    """P of the target within 1e-7 of 1 on both sides: NCKD in float32 is still right."""
    teacher, student = logits(8, 6, width=1.0), logits(8, 7, width=1.0)
    teacher[:, 3] += 20
    student[:, 3] += 19
    low = student.float().requires_grad_()
    targets = targets_of(teacher)
    targets["next_ids"] = torch.full((8,), 3)
    targets["next_logprob"] = torch.log_softmax(teacher, 1)[:, 3]
    objective = build("dkd", {"loss": {"kd": 1.0}})
    output = run_objective(objective, low, single(targets))
    tckd, nckd = _expected(teacher, low.double(), targets, "gold", 1.0)
    expected = (targets["weights"] * nckd).sum()
    torch.testing.assert_close(
        output.metrics["nckd"].double(), expected.detach(), rtol=1e-4, atol=0
    )
    expected_tckd = (targets["weights"] * tckd).sum().detach()
    torch.testing.assert_close(output.metrics["tckd"].double(), expected_tckd, rtol=2e-2, atol=1e-8)
    (found,) = torch.autograd.grad(output.loss_sum, low)
    (reference,) = torch.autograd.grad(2 * expected, low)
    torch.testing.assert_close(found, reference, rtol=1e-3, atol=1e-5)


def test_corners_stay_finite() -> None:
    """All of the student's tail on a target outside the head; a teacher that is sure."""
    teacher = logits(4, 8)
    targets = single(targets_of(teacher, top_p=0.5))
    targets["next_ids"] = teacher.argmin(1)
    targets["next_logprob"] = torch.log_softmax(teacher, 1).amin(1).float()
    student = torch.full((4, V), -60.0)
    student[torch.arange(4), targets["next_ids"]] = 0.0
    student.requires_grad_()
    sure = torch.full((4, V), -torch.inf)
    sure[:, 2] = 0.0
    of_sure = single(targets_of(sure))
    of_sure |= {"next_ids": torch.full((4,), 2), "next_logprob": torch.zeros(4)}
    for made in (targets, of_sure):
        output = run_objective(build("dkd", {}), student, made)
        (gradient,) = torch.autograd.grad(output.loss_sum, student)
        assert output.loss_sum.isfinite() and gradient.isfinite().all()
    empty = torch.zeros(0, V, requires_grad=True)
    output = run_objective(build("dkd", {}), empty, targets_of(torch.zeros(0, V)))
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0


def test_no_worse_than_the_naive_way_in_float32() -> None:
    teacher, student = logits(200, 9), logits(200, 10)
    targets = targets_of(teacher)
    weights = targets["weights"]

    def error(tckd: Tensor, nckd: Tensor) -> float:
        return (((tckd + 2 * nckd) * weights).sum() - exact).abs().item()

    parts = _expected(teacher, student, targets, "gold", 1.0)
    exact = ((parts[0] + 2 * parts[1]) * weights).sum()
    naive = _expected(teacher.float(), student.float(), targets, "gold", 1.0)
    objective = build("dkd", {"loss": {"kd": 1.0}})
    found = run_objective(objective, student.float(), single(targets)).loss_sum
    mine = (found.double() - exact).abs().item()
    assert mine <= error(naive[0].double(), naive[1].double()) + 1e-6 * weights.sum().item()


def test_needs_and_refusals() -> None:
    needs = build("dkd", {"temperature": 2.0}).needs()
    assert needs.temperatures == (2.0,) and not needs.sampled and not needs.full
    targets = targets_of(logits(2, 1))
    targets["entry_weights"] = torch.zeros_like(targets["logprobs"])
    with pytest.raises(ConfigError, match="sampled entries"):
        run_objective(build("dkd", {}), logits(2, 2), targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": 0.0, "beta": 0.0}, "one of them above 0"),
        ({"target": "next"}, "target: expected one of"),
        ({"temperature": -1.0}, "temperature"),
        ({"gamma": 1.0}, "not an option"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("dkd", options)

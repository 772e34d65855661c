"""SKD-like distillation: gradients to the simplifier through prepared targets, and the anchor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chunks import run_objective
from selected import V, inside, kl, logits, single, targets_of
from torch import Tensor
from torch.nn import functional

from cachekd.errors import ConfigError
from cachekd.losses.fused import Reading, fused_loss, logits_loss
from cachekd.losses.head import Head
from cachekd.losses.reference import dense_forward_kl, densify
from cachekd.objectives import build
from cachekd.types import TargetTensors

BEST = 5


def made(seed: int = 2, **options: Any) -> Any:
    """An objective in float64 whose simplifier already changes something."""
    objective = build("skd", {"inputs": BEST, "hidden": 8, "loss": {"kd": 1.0}, **options})
    net = objective.learned().double()
    torch.manual_seed(seed)
    torch.nn.init.normal_(net.outer.weight, std=0.5)
    return objective


def dense_skd(
    objective: Any, student: Tensor, targets: TargetTensors, temperature: float
) -> Tensor:
    """KL(p' || q) + KL(p || p') of each row over head and one tail class, one row at a time."""
    net, head = objective.learned(), inside(targets)
    decoded = densify(targets, V, temperature)
    p = torch.cat([decoded.head_NV, decoded.tail_N[:, None]], 1)
    q = torch.softmax(student / temperature, 1)
    q = torch.cat([q * head, (q * ~head).sum(1, keepdim=True)], 1)
    order = torch.where(head, decoded.head_NV, -1.0).argsort(1, descending=True)[:, :BEST]
    seen = head.gather(1, order)
    best = torch.where(seen, p.gather(1, order).clamp_min(1e-300).log(), -20.0)
    inputs = torch.cat([best, p[:, -1:].clamp_min(1e-300).log()], 1).clamp_min(-20) / 20
    query, key, value = net.inner(inputs).chunk(3, 1)
    losses = []
    for row in range(len(p)):
        same = targets["document"] == targets["document"][row]
        weights = torch.softmax(key[same] @ query[row] / query.shape[1] ** 0.5, 0)
        delta = net.outer(weights @ value[same])
        moved = torch.zeros(V + 1, dtype=torch.float64)
        moved = moved.index_put((order[row][seen[row]],), delta[:BEST][seen[row]])
        moved = moved.index_put((torch.tensor([V]),), delta[BEST:])
        raw = p[row] * moved.exp()
        simple = raw / raw.sum()
        losses.append(kl(simple, q[row]) + kl(p[row], simple))
    return torch.stack(losses)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_equals_dense_code_with_gradients_through_the_targets(
    temperature: float, top_p: float
) -> None:
    """`prepare` makes targets that require grad; the fused pass brings it to the simplifier."""
    teacher, student = logits(9, 1), logits(9, 2).requires_grad_()
    objective, targets = made(temperature=temperature), targets_of(teacher, top_p=top_p)
    weights = list(objective.learned().parameters())
    prepared = objective.prepare(targets, V)
    assert prepared["logprobs"].requires_grad and not targets["logprobs"].requires_grad
    reading = Reading(temperatures=(temperature,), learned=tuple(weights), chunk=4)
    found = logits_loss(student, prepared, objective, reading)
    rows = dense_skd(objective, student, targets, temperature)
    expected = temperature**2 * (targets["weights"] * rows).sum()
    torch.testing.assert_close(found.loss_sum, expected)
    of_found = torch.autograd.grad(found.loss_sum, [student, *weights])
    of_expected = torch.autograd.grad(expected, [student, *weights])
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)
        assert one.abs().max() > 1e-6


def test_gradients_are_the_same_when_fused_with_a_head() -> None:
    teacher, targets = logits(8, 3), targets_of(logits(8, 3), top_p=0.9)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 6, generator=generator, dtype=torch.float64).requires_grad_()
    matrix = torch.randn(V, 6, generator=generator, dtype=torch.float64).requires_grad_()
    objective = made(temperature=1.0)
    leaves = [hidden, matrix, *objective.learned().parameters()]
    reading = Reading(learned=tuple(leaves[2:]), chunk=3)
    found = fused_loss(
        hidden, Head(weight_VD=matrix), objective.prepare(targets, V), objective, reading
    )
    expected = (targets["weights"] * dense_skd(objective, hidden @ matrix.t(), targets, 1.0)).sum()
    for one, other in zip(
        torch.autograd.grad(found.loss_sum, leaves),
        torch.autograd.grad(expected, leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)
    assert len(teacher) == len(hidden)


def test_starts_as_plain_kd() -> None:
    teacher, student = logits(7, 4), logits(7, 5)
    targets = targets_of(teacher)
    output = run_objective(build("skd", {"loss": {"kd": 1.0}}), student, targets)
    expected = 4 * (targets["weights"] * dense_forward_kl(teacher, student, 2.0)).sum()
    torch.testing.assert_close(output.loss_sum.detach(), expected)
    assert output.metrics["anchor"].abs() < 1e-12


def test_documents_do_not_see_each_other() -> None:
    first, second = logits(4, 6), logits(4, 7)
    objective = made()
    together = objective.prepare(targets_of(torch.cat([first, second])), V)
    other = objective.prepare(targets_of(torch.cat([first, second + logits(4, 8)])), V)
    entries = 4 * V
    assert torch.equal(together["logprobs"][:entries], other["logprobs"][:entries])
    joined = targets_of(torch.cat([first, second]))
    joined["document"] = torch.zeros(8, dtype=torch.int64)
    mixed = objective.prepare(joined, V)
    assert (mixed["logprobs"] - together["logprobs"])[:entries].abs().max() > 1e-3


def test_the_anchor_holds_the_teacher() -> None:
    """With next to no anchor the simplified teacher becomes the student; with it, it stays."""
    teacher = logits(12, 9, width=1.5)
    student = 0.4 * teacher
    found = {}
    for anchor in (1e-6, 1.0):
        options = {"inputs": V, "hidden": 32, "temperature": 1.0, "anchor": anchor}
        objective = build("skd", {**options, "loss": {"kd": 1.0}})
        optimizer = torch.optim.Adam(objective.learned().parameters(), lr=0.03)
        targets = single(targets_of(teacher))
        for _ in range(60):
            output = run_objective(objective, student.float(), targets)
            optimizer.zero_grad()
            (output.loss_sum / output.weight_sum).backward()
            optimizer.step()
        found[anchor] = {
            name: (value / output.weight_sum).item() for name, value in output.metrics.items()
        }
    before = dense_forward_kl(teacher, student).mean().item()
    assert found[1e-6]["kl"] < 0.25 * before, "the collapse that the anchor is for"
    assert found[1.0]["anchor"] < 0.5 * found[1e-6]["anchor"]
    assert found[1.0]["kl"] > 2 * found[1e-6]["kl"]


def test_no_worse_than_the_naive_way_in_float32() -> None:
    teacher, student = logits(60, 11), logits(60, 12)
    objective, targets = made(temperature=1.0), targets_of(teacher)
    weights = targets["weights"]
    exact = (weights * dense_skd(objective, student, targets, 1.0)).sum().item()
    objective.learned().float()
    found = run_objective(objective, student.float(), single(targets)).loss_sum.item()
    log_p = torch.log_softmax(teacher.float(), 1)
    naive = _naive(objective.learned(), log_p, student.float(), targets["document"])
    error = abs((weights * naive.double()).sum().item() - exact)
    assert abs(found - exact) <= error + 2e-6 * weights.sum().item()


def _naive(net: Any, log_p: Tensor, student: Tensor, document: Tensor) -> Tensor:
    values, order = log_p.sort(1, descending=True)
    inputs = torch.cat([values[:, :BEST], torch.full((len(log_p), 1), -20.0)], 1)
    query, key, value = net.inner(inputs.clamp_min(-20) / 20).chunk(3, 1)
    scores = (query @ key.t() / query.shape[1] ** 0.5).masked_fill(
        document[:, None] != document, -torch.inf
    )
    delta = net.outer(torch.softmax(scores, 1) @ value)[:, :BEST]
    simple = torch.log_softmax(log_p.scatter_add(1, order[:, :BEST], delta), 1)
    log_q = torch.log_softmax(student, 1)
    to_student = functional.kl_div(log_q, simple, log_target=True, reduction="none").sum(1)
    return to_student + functional.kl_div(simple, log_p, log_target=True, reduction="none").sum(1)


def test_no_rows_and_no_gradient() -> None:
    student = torch.zeros(0, V, requires_grad=True)
    output = run_objective(build("skd", {}), student, targets_of(torch.zeros(0, V)))
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0
    with torch.no_grad():
        output = run_objective(made(), logits(3, 1), targets_of(logits(3, 2)))
    assert output.loss_sum > 0 and not output.loss_sum.requires_grad


def test_refusals() -> None:
    targets = targets_of(logits(2, 1))
    bare: Any = {name: value for name, value in targets.items() if name != "document"}
    with pytest.raises(ConfigError, match=r"one document.*cachekd\.Collator"):
        build("skd", {}).prepare(bare, V)
    with pytest.raises(ConfigError, match=r"--temperatures 4"):
        build("skd", {"temperature": 4.0}).prepare(targets, V)
    targets["entry_weights"] = torch.zeros_like(targets["logprobs"])
    with pytest.raises(ConfigError, match="sampled entries"):
        build("skd", {}).prepare(targets, V)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor": 0.0}, "anchor: expected above 0"),
        ({"inputs": 0}, "inputs: expected above 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"loss": {"kd": -1}}, ">= 0"),
        ({"layers": 2}, "not an option"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("skd", options)

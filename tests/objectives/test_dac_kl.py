"""DAC-KL against dense float64 code, its bounds, its corners, and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from chunks import run_objective
from selected import V, inside, kl, logits, single, targets_of
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.fused import Reading, logits_loss
from cachekd.losses.reference import dense_forward_kl, kl_inside_tail
from cachekd.objectives import build

COMBINES = ["tail", "sum", "renorm"]
EVERY = [(space, how) for space in ("logrank", "quantile", "value") for how in COMBINES]
BEST = 6


def made(seed: int = 3, **options: Any) -> Any:
    """An objective in float64 whose window depends on its inputs."""
    objective = build("dac_kl", {"inputs": BEST, "hidden": 16, **options})
    if options.get("input") == "full":
        objective.prepare({}, V)
    net = objective.learned().double()
    torch.manual_seed(seed)
    torch.nn.init.normal_(net.outer.weight, std=0.3)
    return objective


def dense_features(teacher: Tensor, student: Tensor, full: bool) -> Tensor:
    """Inputs of the sub-network at k = V, row by row."""
    rows = []
    for z_p, z_q in zip(teacher, student.detach(), strict=True):
        p, q = torch.softmax(z_p, 0), torch.softmax(z_q, 0)
        best = p.argsort(descending=True)
        if full:
            rows.append(torch.cat([p, p[best], q]))
            continue
        spaced = torch.tensor([round(V ** (i / 7)) - 1 for i in range(8)])
        logs = [p[best[:BEST]], q[best[:BEST]], p[best[spaced]]]
        h_p, h_q = (-(x * x.log()).sum() / math.log(V) for x in (p, q))
        single = torch.stack([h_p, h_q, p.max(), torch.zeros_like(h_p), torch.zeros_like(h_p)])
        rows.append(torch.cat([torch.cat(logs).log().clamp_min(-20) / 20, single]))
    return torch.stack(rows)


def dense_mask(p: Tensor, upper: Tensor, lower: Tensor, space: str) -> Tensor:
    upper, lower = upper[:, None], lower[:, None]
    where, width = p, 1e-7
    if space == "logrank":
        rank = p.argsort(1, descending=True).argsort(1).double() + 1
        where, width = rank.log() / math.log(V), 0.05
    if space == "quantile":
        upper = torch.stack([torch.quantile(row, u) for row, u in zip(p, upper[:, 0], strict=True)])
        lower = torch.stack([torch.quantile(row, u) for row, u in zip(p, lower[:, 0], strict=True)])
        upper, lower = upper[:, None], lower[:, None]
    return torch.sigmoid((where - lower) / width) * torch.sigmoid((upper - where) / width)


def dense_dac(
    objective: Any, teacher: Tensor, student: Tensor, space: str, combine: str, full: bool
) -> Tensor:
    """The loss of each row with c = 20 and kappa = 0.95."""
    p, q = torch.softmax(teacher, 1), torch.softmax(student, 1)
    raw = objective.learned().outer(
        torch.relu(objective.learned().inner(dense_features(teacher, student, full)))
    )
    upper = torch.sigmoid(raw[:, 0])
    mask = dense_mask(p, upper, upper * torch.sigmoid(raw[:, 1]), space)
    top = torch.nn.functional.one_hot(p.argmax(1), V).bool()
    held = torch.where(top, 1.0, mask)
    penalty = 20 * torch.relu(0.95 - (held * p).sum(1)) ** 2
    if combine == "literal":
        at_top = kl(p.max(1).values[:, None], q[top][:, None])
        return kl(mask, q) + at_top + penalty
    masked_p, masked_q = held * p, held * q
    if combine == "renorm":
        of_p, of_q = masked_p.sum(1, keepdim=True), masked_q.sum(1, keepdim=True)
        return kl(masked_p / of_p, masked_q / of_q) + penalty
    value = (masked_p * (p.log() - q.log())).sum(1)
    if combine == "tail":
        out_p, out_q = ((1 - held) * p).sum(1), ((1 - held) * q).sum(1)
        value = value + torch.where(out_p > 0, out_p * (out_p.log() - out_q.log()), 0.0)
    return value + penalty


@pytest.mark.parametrize(("space", "combine"), [*EVERY, ("value", "literal")])
def test_equals_dense_code_in_value_and_all_gradients(space: str, combine: str) -> None:
    """Also where rows come in several chunks; gradients of student and sub-network."""
    width = 7.0 if space == "quantile" else 2.0
    teacher, student = logits(9, 1, width), logits(9, 2).requires_grad_()
    objective, targets = made(space=space, combine=combine), targets_of(teacher)
    weights = list(objective.learned().parameters())
    prepared = objective.prepare(targets, V)
    reading = Reading(learned=tuple(weights), chunk=4)
    found = logits_loss(student, prepared, objective, reading)
    rows = dense_dac(objective, teacher, student, space, combine, full=False)
    expected = (targets["weights"] * rows).sum()
    torch.testing.assert_close(found.loss_sum, expected, atol=1e-10, rtol=1e-9)
    of_found = torch.autograd.grad(found.loss_sum, [student, *weights])
    of_expected = torch.autograd.grad(expected, [student, *weights])
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)
    if space != "value":
        assert of_found[-1].abs().max() > 1e-6, "the window must be learnable here"


def test_full_input_equals_dense_code() -> None:
    teacher, student = logits(5, 3), logits(5, 4).requires_grad_()
    objective, targets = made(input="full"), targets_of(teacher)
    weights = list(objective.learned().parameters())
    found = run_objective(objective, student, targets).loss_sum
    rows = dense_dac(objective, teacher, student, "logrank", "tail", full=True)
    expected = (targets["weights"] * rows).sum()
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, [student, *weights]),
        torch.autograd.grad(expected, [student, *weights]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)


class Fixed(torch.nn.Module):
    """A sub-network whose window is the same everywhere."""

    def __init__(self, upper: float, lower: float) -> None:
        super().__init__()
        self.limits = torch.nn.Parameter(torch.tensor([upper, lower]).double())

    def forward(self, inputs_RF: Tensor) -> tuple[Tensor, Tensor]:
        ones = inputs_RF.new_ones(len(inputs_RF))
        return self.limits[0] * ones, self.limits[1] * ones


def _fixed(upper: float, lower: float, **options: Any) -> Any:
    objective = build("dac_kl", {"guard": 0.0, **options})
    objective._net = Fixed(upper, lower)
    return objective


def test_window_of_everything_with_a_tail_is_forward_kl() -> None:
    teacher, student = logits(8, 5), logits(8, 6)
    targets = targets_of(teacher)
    targets["weights"] = torch.ones_like(targets["weights"])
    whole = dense_forward_kl(teacher, student).sum()
    found = run_objective(_fixed(1.0, 0.0, tau=1e-6), student, targets)
    torch.testing.assert_close(found.loss_sum, whole, atol=1e-10, rtol=1e-10)
    soft = run_objective(_fixed(1.0, 0.0), student, targets)
    assert 0 < soft.loss_sum < whole, "soft edges merge a part of the classes"
    sharp = run_objective(_fixed(1.0, 0.0, space="quantile"), student, targets)
    torch.testing.assert_close(sharp.loss_sum, whole, atol=1e-9, rtol=1e-9)


def test_sum_can_be_negative_and_tail_cannot() -> None:
    """A student that is above the teacher at the top and in the tail, and below between."""
    teacher = -torch.arange(V).double()[None] / 4
    student = teacher.clone()
    student[:, 1:10] -= 1
    values = {
        combine: run_objective(_fixed(0.99, 0.7, combine=combine), student, targets_of(teacher))
        for combine in ("sum", "tail")
    }
    assert values["sum"].loss_sum < 0 < values["tail"].loss_sum


def test_sparse_is_below_dense_by_no_more_than_the_head_leaves_out() -> None:
    """With the same window: the gap is what a bucket for the tail does not tell apart."""
    teacher, student = logits(25, 9), logits(25, 10)
    targets, rows = targets_of(teacher, top_p=0.9), 25
    p, q = torch.softmax(teacher, 1), torch.softmax(student, 1)
    head = inside(targets)
    tail_p, tail_q = ((x * ~head).sum(1) for x in (p, q))
    # A window of the whole head: the gap is the tail's mass times the KL inside it, exactly.
    values = {}
    for name, of in (("sparse", targets), ("dense", targets_of(teacher))):
        of["weights"] = torch.ones(rows, dtype=torch.float64)
        for upper, lower in ((2.0, -1.0), (0.8, 0.2)):
            output = run_objective(_fixed(upper, lower), student, of)
            values[name, upper] = output.loss_sum
    gap = values["dense", 2.0] - values["sparse", 2.0]
    left_out = tail_p * kl_inside_tail(teacher, student, head)
    torch.testing.assert_close(gap, left_out.sum(), atol=1e-6, rtol=1e-6)
    # Any window: a head class that is partly masked shares the bucket with the tail.
    rank = p.argsort(1, descending=True).argsort(1).double() + 1
    place = rank.log() / math.log(V)
    mask = torch.sigmoid((place - 0.2) / 0.05) * torch.sigmoid((0.8 - place) / 0.05)
    mask = torch.where((rank == 1) | ~head, (rank == 1).double(), mask)
    out_p, out_q = ((x * (1 - mask) * head).sum(1) for x in (p, q))
    share = kl(torch.stack([tail_p, out_p], 1), torch.stack([tail_q, out_q], 1))
    joined = (tail_p + out_p) * ((tail_p + out_p) / (tail_q + out_q)).log()
    bound = left_out + share - joined
    gap = values["dense", 0.8] - values["sparse", 0.8]
    assert -1e-9 <= gap <= bound.sum() + 1e-9


@pytest.mark.parametrize("combine", COMBINES)
def test_no_worse_than_the_naive_way_in_float32(combine: str) -> None:
    teacher, student = logits(100, 13), logits(100, 14)
    objective = made(combine=combine)
    exact = dense_dac(objective, teacher, student, "logrank", combine, full=False)
    targets = single(targets_of(teacher))
    objective.learned().float()
    low, errors = student.float(), []
    naive = dense_dac(objective, teacher.float(), low, "logrank", combine, full=False)
    found = run_objective(objective, low, targets).loss_sum
    weights = targets["weights"].double()
    for value in (found.double(), (weights * naive.double()).sum()):
        errors.append((value - (weights * exact).sum()).abs().item() / weights.sum().item())
    assert errors[0] <= errors[1] + 1e-6


def test_temperature_scales_loss_and_guard() -> None:
    teacher, student = logits(6, 15), logits(6, 16)
    targets = targets_of(teacher)
    at_2 = run_objective(made(temperature=2.0), student, targets)
    sums = at_2.metrics["dac_kl"] + at_2.metrics["guard"]
    torch.testing.assert_close(at_2.loss_sum.detach(), 4 * sums)
    assert at_2.metrics["guard"] > 0


@pytest.mark.parametrize(("space", "combine"), [*EVERY, ("value", "literal")])
def test_corners_stay_finite(space: str, combine: str) -> None:
    """A teacher with classes of no probability, and a student that is all on the worst of them."""
    teacher = logits(4, 17).float()
    teacher[:, 5:] = -torch.inf
    student = torch.full((4, V), -300.0)
    student[:, 9] = 0.0
    student.requires_grad_()
    objective = build("dac_kl", {"space": space, "combine": combine, "inputs": BEST})
    output = run_objective(objective, student, single(targets_of(teacher)))
    found = torch.autograd.grad(output.loss_sum, [student, *objective.learned().parameters()])
    assert output.loss_sum.isfinite()
    assert all(gradient.isfinite().all() for gradient in found)


def test_no_rows_give_a_zero_that_can_be_trained() -> None:
    student = torch.zeros(0, V, requires_grad=True)
    output = run_objective(build("dac_kl", {}), student, targets_of(torch.zeros(0, V)))
    output.loss_sum.backward()
    assert output.loss_sum.item() == output.weight_sum.item() == 0


def test_needs_and_refusals() -> None:
    assert not build("dac_kl", {"temperature": 2.0}).needs().full
    assert build("dac_kl", {"space": "quantile"}).needs().full
    assert build("dac_kl", {"input": "full"}).needs().full
    with pytest.raises(ConfigError, match=r"learned\(vocab_size\)"):
        build("dac_kl", {"input": "full"}).learned()
    short = targets_of(logits(4, 1), top_p=0.9)
    with pytest.raises(ConfigError, match=r"all 40 classes.*--logits-selection full"):
        run_objective(build("dac_kl", {"space": "quantile"}), logits(4, 2), short)
    short["entry_weights"] = torch.zeros_like(short["logprobs"])
    with pytest.raises(ConfigError, match="sampled entries"):
        run_objective(build("dac_kl", {}), logits(4, 2), short)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "logits"}, "space: expected one of"),
        ({"combine": "literal"}, "space value"),
        ({"tau": 0.0}, "tau: expected above 0"),
        ({"guard": -1.0}, "guard"),
        ({"coverage": 1.5}, "coverage"),
        ({"loss": {"ce": 1.0, "span": 1.0}}, "Known: ce, kd"),
        ({"window": 1}, "not an option"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("dac_kl", options)

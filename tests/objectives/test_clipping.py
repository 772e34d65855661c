"""Fixed clipping against dense float64 code: the three losses behind its name, and its sets."""

from __future__ import annotations

import math

import pytest
import torch
from chunks import run_objective
from selected import V, kl, logits, single, targets_of
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.clipping import best
from cachekd.losses.paired import ranks
from cachekd.losses.reference import dense_forward_kl
from cachekd.objectives import build

SUPPORTS = ["full", "restricted", "tail"]
CASES = [(keep, how) for keep in ("top_p", "top_share") for how in SUPPORTS]
CASES += [("argmax", "full"), ("argmax", "tail")]


def dense_set(teacher: Tensor, keep: str, mass: float, share: float) -> Tensor:
    """The kept classes, row by row, bool [N, V]."""
    kept = torch.zeros(teacher.shape, dtype=torch.bool)
    for row, p in enumerate(torch.softmax(teacher.double(), 1)):
        total = 0.0
        for place, token in enumerate(p.argsort(descending=True).tolist()):
            enough = {
                "top_p": total >= mass,
                "top_share": place >= math.ceil(share * V),
                "argmax": place >= 1,
            }[keep]
            if enough:
                break
            kept[row, token] = True
            total += p[token].item()
    return kept


def dense_clipped(
    teacher: Tensor, student: Tensor, kept: Tensor, support: str, temperature: float = 1.0
) -> Tensor:
    p, q = torch.softmax(teacher / temperature, 1), torch.softmax(student / temperature, 1)
    in_p, in_q = p * kept, q * kept
    if support == "tail":
        outside = [(x * ~kept).sum(1, keepdim=True) for x in (p, q)]
        return kl(torch.cat([in_p, outside[0]], 1), torch.cat([in_q, outside[1]], 1))
    clipped = in_p / in_p.sum(1, keepdim=True)
    if support == "restricted":
        return kl(clipped, in_q / in_q.sum(1, keepdim=True))
    return kl(clipped, q)


@pytest.mark.parametrize(("keep", "support"), CASES)
@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (0.97, 1.0), (0.999, 2.0)])
def test_equals_dense_code_in_value_and_gradient(
    keep: str, support: str, top_p: float, temperature: float
) -> None:
    """From heads that hold more than the set: the cached loss is the dense one, exactly."""
    teacher, student = logits(12, 1, width=3.0), logits(12, 2).requires_grad_()
    kept = dense_set(teacher, keep, 0.8, 0.05)
    options = {"keep": keep, "student_support": support, "clip_p": 0.8, "clip_share": 0.05}
    options |= {"temperature": temperature, "loss": {"kd": 1.0}}
    targets = targets_of(teacher, top_p=top_p)
    output = run_objective(build("clipping", options), student, targets)
    rows = dense_clipped(teacher, student, kept, support, temperature)
    expected = temperature**2 * (targets["weights"] * rows).sum()
    torch.testing.assert_close(output.loss_sum, expected, atol=1e-11, rtol=1e-9)
    (found,) = torch.autograd.grad(output.loss_sum, student)
    (reference,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(found, reference, atol=1e-11, rtol=1e-8)
    counted = (targets["weights"] * kept.sum(1)).sum()
    torch.testing.assert_close(output.metrics["kept"], counted)
    assert output.metrics["short_rows"].item() == 0


def test_the_set_does_not_rest_on_the_order_of_entries() -> None:
    targets = targets_of(logits(6, 3, width=3.0))
    sorted_set = best(
        targets,
        ranks(targets["logprobs"], targets["offsets"]),
        V,
        keep="top_p",
        mass=0.9,
        share=0.05,
    )
    back = torch.arange(6 * V).view(6, V).flip(1).reshape(-1)
    for name in ("ids", "logprobs"):
        targets[name] = targets[name][back]
    found = best(
        targets,
        ranks(targets["logprobs"], targets["offsets"]),
        V,
        keep="top_p",
        mass=0.9,
        share=0.05,
    )
    assert torch.equal(found.keep_n, sorted_set.keep_n[back])


def test_short_heads_are_used_whole_and_counted() -> None:
    teacher, student = logits(20, 4), logits(20, 5)
    targets = targets_of(teacher, top_p=0.7)
    head = dense_set(teacher, "top_p", 0.7, 0)
    output = run_objective(
        build("clipping", {"clip_p": 0.999, "loss": {"kd": 1}}), student, targets
    )
    expected = (targets["weights"] * dense_clipped(teacher, student, head, "full")).sum()
    torch.testing.assert_close(output.loss_sum, expected)
    torch.testing.assert_close(output.metrics["short_rows"], targets["weights"].sum())
    share = build("clipping", {"keep": "top_share", "clip_share": 0.5})
    counts = targets["offsets"].diff()
    short = (targets["weights"] * (counts < V // 2)).sum()
    found = run_objective(share, student, targets).metrics["short_rows"]
    torch.testing.assert_close(found, short)
    assert short > 0


def test_what_each_support_wants_of_the_student() -> None:
    """full: nothing outside the set; restricted: outside is not judged; tail: the same mass."""
    teacher = logits(5, 6, width=3.0)
    kept = dense_set(teacher, "top_p", 0.9, 0)
    escaped = torch.where(kept, teacher, teacher + 4)
    losses = {}
    for support in SUPPORTS:
        objective = build(
            "clipping", {"clip_p": 0.9, "student_support": support, "loss": {"kd": 1}}
        )
        for name, student in (("teacher", teacher), ("escaped", escaped)):
            loss = run_objective(objective, student, targets_of(teacher)).loss_sum
            losses[support, name] = loss.item()
    assert losses["full", "teacher"] > 0.1
    assert losses["restricted", "teacher"] == pytest.approx(0, abs=1e-12)
    assert losses["restricted", "escaped"] == pytest.approx(0, abs=1e-12)
    assert losses["tail", "teacher"] == pytest.approx(0, abs=1e-12)
    assert losses["tail", "escaped"] > 0.1


def test_whole_mass_is_forward_kl() -> None:
    teacher, student = logits(9, 7), logits(9, 8)
    targets = targets_of(teacher)
    expected = (targets["weights"] * dense_forward_kl(teacher, student)).sum()
    for support in SUPPORTS:
        options = {"clip_p": 1.0, "student_support": support, "loss": {"kd": 1.0}}
        found = run_objective(build("clipping", options), student, targets).loss_sum
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("support", SUPPORTS)
def test_no_worse_than_the_naive_way_in_float32(support: str) -> None:
    teacher, student = logits(100, 9), logits(100, 10)
    kept = dense_set(teacher, "top_p", 0.9, 0)
    targets = single(targets_of(teacher))
    objective = build("clipping", {"clip_p": 0.9, "student_support": support, "loss": {"kd": 1}})
    found = run_objective(objective, student.float(), targets).loss_sum
    weights = targets["weights"].double()
    exact = (weights * dense_clipped(teacher, student, kept, support)).sum()
    naive = dense_clipped(teacher.float(), student.float(), kept, support)
    naive_error = ((weights * naive.double()).sum() - exact).abs().item()
    assert (found.double() - exact).abs().item() <= naive_error + 1e-6 * weights.sum().item()


def test_corners_stay_finite() -> None:
    """A student that has left all that is kept but one class; rows without any other class."""
    teacher = logits(3, 11, width=3.0)
    targets = single(targets_of(teacher, top_p=0.9))
    student = torch.full((3, V), -300.0)
    student[:, 0] = 0.0
    student.requires_grad_()
    for support in SUPPORTS:
        objective = build("clipping", {"clip_p": 0.9, "student_support": support})
        output = run_objective(objective, student, targets)
        (gradient,) = torch.autograd.grad(output.loss_sum, student)
        assert output.loss_sum.isfinite() and gradient.isfinite().all()
    empty = torch.zeros(0, V, requires_grad=True)
    output = run_objective(build("clipping", {}), empty, targets_of(torch.zeros(0, V)))
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0


def test_needs_and_refusals() -> None:
    assert build("clipping", {"clip_p": 0.9}).needs().mass == 0.9
    assert build("clipping", {"keep": "argmax"}).needs().mass == 0
    targets = targets_of(logits(2, 1))
    targets["entry_weights"] = torch.zeros_like(targets["logprobs"])
    with pytest.raises(ConfigError, match="sampled entries"):
        run_objective(build("clipping", {}), logits(2, 2), targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_p": 0.0}, "clip_p: expected above 0"),
        ({"clip_share": 1.1}, "clip_share"),
        ({"keep": "top"}, "keep: expected one of"),
        ({"student_support": "half"}, "student_support: expected one of"),
        ({"keep": "argmax", "student_support": "restricted"}, "nothing is learned"),
        ({"temperature": 0.0}, "temperature"),
        ({"clip_top_p": 0.9}, "not an option"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("clipping", options)

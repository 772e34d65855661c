"""Every divergence against its formula over dense distributions: exact at k = V, else bounded."""

from __future__ import annotations

import math

import pytest
import torch
from chunks import divergence_rows
from fakes import VOCAB, sparse
from torch import Tensor

from cachekd.losses.choice import NAMES, Divergence
from cachekd.losses.reference import dense_divergence, densify

ROWS = 40


def _case(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64) * 3
    student = torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64) * 2
    return teacher, student.requires_grad_()


def _dense(name: str, teacher: Tensor, student: Tensor, weight: float, t: float = 1.0) -> Tensor:
    p_NV, q_NV = (torch.softmax(logits.double() / t, -1) for logits in (teacher, student))
    return dense_divergence(name, p_NV, q_NV, weight)


def _gradient(loss_N: Tensor, logits: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, len(loss_N), dtype=loss_N.dtype)
    (found,) = torch.autograd.grad((loss_N * weights).sum(), logits)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_whole_vocabulary_is_exact(name: str, weight: float, temperature: float) -> None:
    teacher, student = _case()
    spec = Divergence(name=name, weight=weight, temperature=temperature)
    found = divergence_rows(student, sparse(teacher), spec)
    expected = _dense(name, teacher, student, weight, temperature)
    assert expected.detach().min() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(
        _gradient(found, student), _gradient(expected, student), atol=1e-11, rtol=1e-8
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("top_p", [0.6, 0.97])
def test_a_bucket_is_the_divergence_of_bucketed_distributions(name: str, top_p: float) -> None:
    """Value and gradient: the reference sums the tails of both sides first."""
    teacher, student = _case(1)
    targets = sparse(teacher, top_p=top_p)
    decoded = densify(targets, VOCAB)
    rows = []
    for row in range(ROWS):
        inside = decoded.in_head_NV[row]
        q = torch.softmax(student[row], -1)
        p_K = torch.cat([decoded.head_NV[row][inside], decoded.tail_N[row][None]])
        rows.append(
            dense_divergence(name, p_K, torch.cat([q[inside], q[~inside].sum()[None]]), 0.3)
        )
    found = divergence_rows(student, targets, Divergence(name=name, weight=0.3))
    expected = torch.stack(rows)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(
        _gradient(found, student), _gradient(expected, student), atol=1e-11, rtol=1e-8
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_a_bucket_leaves_out_is_within_its_bound(name: str) -> None:
    """Sparse is at most dense; the gap is what the method reference states for each."""
    teacher, student = _case(2)
    student = student.detach()
    weight = 0.3
    targets = sparse(teacher, top_p=0.9)
    inside = densify(targets, VOCAB).in_head_NV
    p, q = (torch.softmax(z, -1).masked_fill(inside, 0) for z in (teacher, student))
    sparse_N = divergence_rows(student, targets, Divergence(name=name, weight=weight))
    gap = _dense(name, teacher, student, weight) - sparse_N
    assert gap.min() > 0
    of_p, of_q = p.sum(1), q.sum(1)

    def within(left: Tensor, right: Tensor) -> Tensor:
        """Mass of the tail times the KL inside it."""
        a, b = left / left.sum(1, True), right / right.sum(1, True)
        return left.sum(1) * torch.where(a > 0, a * (a / b).log(), 0).nansum(1)

    m, reverse_m = weight * p + (1 - weight) * q, (1 - weight) * p + weight * q
    exact = {
        "forward_kl": within(p, q),
        "reverse_kl": within(q, p),
        "jeffreys": (1 - weight) * within(p, q) + weight * within(q, p),
        "jsd": weight * within(p, m) + (1 - weight) * within(q, m),
        "skew_kl": within(p, m),
        "skew_reverse_kl": within(q, reverse_m),
        "tvd": ((p - q).abs().sum(1) - (of_p - of_q).abs()) / 2,
    }[name]
    torch.testing.assert_close(gap, exact, atol=1e-12, rtol=1e-9)
    if name == "tvd":
        assert (gap <= torch.minimum(of_p, of_q)).all()
    bounds = {"skew_kl": (of_p, m), "skew_reverse_kl": (of_q, reverse_m)}
    if name in bounds:
        mass, mixture = bounds[name]
        assert (gap <= mass * math.log(1 / weight) + mixture.sum(1) / math.e).all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_a_sum_of_skewed_kls(beta: float) -> None:
    teacher, student = _case(3)
    targets = sparse(teacher, top_p=0.9)

    def of(name: str, weight: float) -> Tensor:
        return divergence_rows(student.detach(), targets, Divergence(name=name, weight=weight))

    parts = beta * of("skew_kl", beta) + (1 - beta) * of("skew_reverse_kl", 1 - beta)
    torch.testing.assert_close(of("jsd", beta), parts)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tail", ["bucket", "flat", "unigram", "log_rank", "renormalised"])
def test_a_student_at_the_decoded_target_has_no_loss_and_no_gradient(name: str, tail: str) -> None:
    teacher, _ = _case(4)
    targets = sparse(teacher, top_p=0.9)
    targets["unigram"] = torch.ones(VOCAB, dtype=torch.float64) / VOCAB
    decoded = densify(targets, VOCAB)
    outside = (~decoded.in_head_NV).sum(1, keepdim=True)
    spread = torch.where(decoded.in_head_NV, decoded.head_NV, decoded.tail_N[:, None] / outside)
    if tail == "log_rank":
        from cachekd.losses.tails import dense_tail  # the model itself is tested in test_tails

        class Flat:
            def logits(self) -> Tensor:
                return torch.zeros(ROWS, VOCAB, dtype=torch.float64)

        log_p, _ = dense_tail(Flat(), targets, targets["tail"], 1.0, tail)  # type: ignore[arg-type]
        spread = torch.where(decoded.in_head_NV, decoded.head_NV, log_p.exp())
    student = spread.log().requires_grad_()
    loss_N = divergence_rows(student, targets, Divergence(name=name, weight=0.3, tail=tail))
    assert loss_N.abs().max() < 1e-12
    if name != "tvd":  # whose derivative jumps there
        assert _gradient(loss_N, student).abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_worse_than_the_naive_way_in_low_precision(name: str, dtype: torch.dtype) -> None:
    """Errors against float64 of the same logits: ours, and of softmax and formula in float32."""
    teacher, student = _case(5)
    low = student.detach().to(dtype).requires_grad_()
    exact = _dense(name, teacher, low, 0.3)
    p_NV = torch.softmax(teacher.float(), -1)
    naive = dense_divergence(name, p_NV, torch.softmax(low.float(), -1), 0.3)
    found = divergence_rows(low, sparse(teacher), Divergence(name=name, weight=0.3))
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= (naive - exact).abs().max() + 2e-6
    wanted = torch.autograd.grad(exact.sum(), low, retain_graph=True)[0].double()
    ours, theirs = (torch.autograd.grad(loss.sum(), low)[0].double() for loss in (found, naive))
    rounding = 8 * torch.finfo(dtype).eps * wanted.abs().max()
    assert (ours - wanted).abs().max() <= (theirs - wanted).abs().max() + rounding


@pytest.mark.parametrize("name", NAMES)
def test_everything_stays_finite_in_the_corners(name: str) -> None:
    """Zero probabilities of the teacher, a student that has left the tail, and one sure of it."""
    teacher, _ = _case(6)
    teacher = teacher[:3]
    teacher[0, 5:] = -torch.inf
    narrow = sparse(teacher, top_p=1e-9)
    for targets in (sparse(teacher), narrow):
        for sure in (0, VOCAB - 1):
            student = torch.full((3, VOCAB), -300.0)
            student[:, sure] = 0.0
            student.requires_grad_()
            loss_N = divergence_rows(student, targets, Divergence(name=name, weight=0.3))
            assert torch.isfinite(loss_N).all()
            assert torch.isfinite(_gradient(loss_N, student)).all()

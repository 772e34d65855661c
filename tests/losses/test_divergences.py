"""Sparse divergences against dense float64 code: values, gradients, and the hard corners."""

from __future__ import annotations

import pytest
import torch
from chunks import cross_entropy_rows, divergence_rows, tail_mass_rows
from fakes import VOCAB, sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cachekd.errors import ConfigError
from cachekd.losses.choice import Divergence
from cachekd.losses.ragged import entry_rows
from cachekd.losses.reference import (
    bucket_forward_kl,
    dense_forward_kl,
    densify,
    kl_inside_tail,
)
from cachekd.losses.targets import decode_targets
from cachekd.types import TargetTensors


def forward_kl(
    logits_NV: torch.Tensor, targets: TargetTensors, temperature: float = 1.0
) -> torch.Tensor:
    return divergence_rows(logits_NV, targets, Divergence(temperature=temperature))


def _pair(rows: int, seed: int = 0, vocab: int = VOCAB) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * 3
    return teacher, torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * 2


def _gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(0.5, 1.5, len(loss), dtype=loss.dtype)
    (found,) = torch.autograd.grad((loss * weights).sum(), logits)
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_whole_vocabulary_equals_dense(temperature: float) -> None:
    teacher, student = _pair(20)
    student.requires_grad_()
    found = forward_kl(student, sparse(teacher), temperature)
    expected = dense_forward_kl(teacher, student, temperature)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(
        _gradient(found, student), _gradient(expected, student), atol=1e-12, rtol=1e-10
    )
    assert tail_mass_rows(student, sparse(teacher), temperature).abs().max() == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gap_to_dense_is_what_the_bucket_leaves_out(temperature: float) -> None:
    teacher, student = _pair(30, seed=1)
    targets = sparse(teacher, top_p=0.99)
    decoded = densify(targets, VOCAB, temperature)
    gap = dense_forward_kl(teacher, student, temperature) - forward_kl(
        student, targets, temperature
    )
    inside = kl_inside_tail(teacher, student, decoded.in_head_NV, temperature)
    assert gap.min() > 1e-4
    torch.testing.assert_close(gap, decoded.tail_N * inside, atol=1e-12, rtol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 12),
    seed=st.integers(0, 999),
    top_p=st.sampled_from([0.3, 0.9, 0.999, 1.0]),
    temperature=st.sampled_from([1.0, 2.0]),
)
def test_equals_the_reference_in_value_and_gradient(
    rows: int, seed: int, top_p: float, temperature: float
) -> None:
    teacher, student = _pair(rows, seed)
    student.requires_grad_()
    targets = sparse(teacher, top_p=top_p)
    expected = bucket_forward_kl(densify(targets, VOCAB, temperature), student, temperature)
    found = forward_kl(student, targets, temperature)
    gradient = _gradient(found, student)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(gradient, _gradient(expected, student), atol=1e-11, rtol=1e-9)


def test_gradient_is_the_derivative() -> None:
    teacher, student = _pair(3, seed=2, vocab=9)
    targets = sparse(teacher, top_p=0.9)
    assert torch.autograd.gradcheck(
        lambda logits: forward_kl(logits, targets, 2.0), student.requires_grad_()
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.5, 0.99, 1.0])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_student_at_the_decoded_target_has_no_loss_and_no_gradient(
    temperature: float, top_p: float, stored: torch.dtype
) -> None:
    targets = sparse(_pair(25, seed=3)[0], top_p=top_p)
    for name in ("logprobs", "tail"):
        targets[name] = targets[name].to(stored).float()
    targets["lognorm"] = {t: v.float() for t, v in targets["lognorm"].items()}
    head_n, tail_N = decode_targets(targets, temperature)
    row_n = entry_rows(targets["offsets"])
    outside = VOCAB - targets["offsets"].diff()
    logits = (tail_N - outside.clamp(min=1).log())[:, None].repeat(1, VOCAB)
    logits[row_n, targets["ids"]] = head_n
    logits = (logits * temperature).requires_grad_()
    loss = forward_kl(logits, targets, temperature)
    assert loss.abs().max() < 2e-6
    assert _gradient(loss, logits).abs().max() < 2e-6


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), top_p=st.floats(0.05, 1.0), temperature=st.sampled_from([1, 2]))
def test_decoded_rows_sum_to_one(seed: int, top_p: float, temperature: int) -> None:
    targets = sparse(_pair(8, seed)[0], top_p=top_p)
    targets["logprobs"] = targets["logprobs"].half().float()
    head_n, tail_N = decode_targets(targets, temperature)
    mass = torch.zeros(8, dtype=head_n.dtype)
    mass.index_add_(0, entry_rows(targets["offsets"]), head_n.exp())
    torch.testing.assert_close(mass + tail_N.exp(), torch.ones_like(mass), atol=3e-6, rtol=0)
    if temperature == 1:
        assert torch.equal(tail_N, targets["tail"])


def test_everything_stays_finite_in_the_corners() -> None:
    teacher, _ = _pair(4, seed=4)
    teacher[0, 5:] = -torch.inf  # zero probabilities inside a whole-vocabulary head
    targets = sparse(teacher)
    student = torch.full((4, VOCAB), -1e4)
    student[:, 0] = 0.0
    student.requires_grad_()
    loss = forward_kl(student, targets, 1.0)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(_gradient(loss, student)).all()
    # One entry a row, and a student that has all but left the tail: p_tail / q_tail overflows.
    narrow = sparse(teacher[1:], top_p=1e-9)
    peaked = torch.full((3, VOCAB), -300.0)
    peaked[torch.arange(3), narrow["ids"]] = 0.0
    peaked.requires_grad_()
    loss = forward_kl(peaked, narrow, 1.0)
    gradient = _gradient(loss, peaked)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    assert (gradient[torch.arange(3), narrow["ids"]] > 0.01).all()


def test_row_without_targets_counts_nothing() -> None:
    student = _pair(1)[1].requires_grad_()
    targets = sparse(_pair(1)[0])
    targets |= {
        "offsets": torch.tensor([0, 0]),
        "ids": torch.zeros(0, dtype=torch.int64),
        "logprobs": torch.zeros(0),
        "tail": torch.zeros(1),
    }
    for temperature in (1.0, 2.0):
        found = forward_kl(student, targets, temperature)
        assert found.abs().max() < 1e-12
        assert _gradient(found, student).abs().max() < 1e-12
        mass = tail_mass_rows(student, targets, temperature)
        assert mass.tolist() == pytest.approx([1.0])


def test_no_rows_at_all() -> None:
    logits = torch.zeros(0, VOCAB, requires_grad=True)
    loss = forward_kl(logits, sparse(torch.zeros(0, VOCAB))).sum()
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and logits.grad.shape == (0, VOCAB)


def test_student_mass_outside_the_head() -> None:
    teacher, student = _pair(10, seed=5)
    targets = sparse(teacher, top_p=0.8)
    inside = densify(targets, VOCAB).in_head_NV
    expected = torch.softmax(student, -1).masked_fill(inside, 0).sum(-1)
    found = tail_mass_rows(student, targets)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_worse_than_the_naive_way_in_low_precision(dtype: torch.dtype) -> None:
    teacher, student = _pair(200, seed=6)
    low = student.to(dtype)
    exact = dense_forward_kl(teacher, low)
    naive = functional.kl_div(
        torch.log_softmax(low.float(), -1), torch.softmax(teacher.float(), -1), reduction="none"
    ).sum(-1)
    found = forward_kl(low, sparse(teacher))
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= (naive - exact).abs().max() + 1e-6


def test_missing_temperature_names_the_flag() -> None:
    teacher, student = _pair(2)
    with pytest.raises(ConfigError, match=r"1, 2.*--temperatures 4"):
        forward_kl(student, sparse(teacher), 4.0)


def test_cross_entropy_is_the_usual_one() -> None:
    logits = _pair(12, seed=7)[1].requires_grad_()
    ids = torch.arange(12) % VOCAB
    targets = sparse(_pair(12)[0], top_p=0.9)
    targets["next_ids"] = ids
    found = cross_entropy_rows(logits, targets)
    expected = functional.cross_entropy(logits, ids, reduction="none")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(_gradient(found, logits), _gradient(expected, logits))


def test_shifted_targets_are_seen() -> None:
    """The comparison with dense code has teeth: targets one row late are another loss."""
    teacher, student = _pair(20, seed=8)
    expected = dense_forward_kl(teacher, student)
    shifted = forward_kl(student, sparse(teacher.roll(1, 0)))
    assert (shifted - expected).abs().max() > 0.1

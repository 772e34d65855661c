"""The fused pass against whole float64 logits: heads, chunks, weights, what is learned beside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from chunks import divergence_rows
from fakes import VOCAB, sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import cachekd
from cachekd.errors import ConfigError
from cachekd.losses.choice import NAMES, Divergence
from cachekd.losses.fused import Reading, fused_loss
from cachekd.losses.head import Head
from cachekd.losses.reference import bucket_forward_kl, densify
from cachekd.losses.student import StudentRows
from cachekd.types import ObjectiveOutput, TargetTensors

WIDTH, PADDING = 12, 3


def _case(
    rows: int = 23, seed: int = 0, top_p: float = 0.9, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Head, TargetTensors]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = sparse(noise(rows, VOCAB) * 3, top_p=top_p)
    targets["weights"] = torch.rand(rows, generator=generator, dtype=torch.float64)
    targets["next_ids"] = torch.randint(0, VOCAB, (rows,), generator=generator)
    hidden_ND = noise(rows, WIDTH).to(dtype).requires_grad_()
    head = Head(
        weight_VD=noise(VOCAB + PADDING, WIDTH).to(dtype).requires_grad_(),
        bias_V=noise(VOCAB + PADDING).to(dtype).requires_grad_(),
    )
    return hidden_ND, head, targets


def _logits(hidden_ND: Tensor, head: Head) -> Tensor:
    assert head.bias_V is not None
    logits_NV = head.scale * (hidden_ND @ head.weight_VD.t() + head.bias_V)
    if head.softcap is not None:
        logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
    return logits_NV[:, :VOCAB]


def _gradients(loss: Tensor, hidden_ND: Tensor, head: Head) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [hidden_ND, head.weight_VD, head.bias_V]))


def _fused(hidden_ND: Tensor, head: Head, targets: TargetTensors, **options: Any) -> Any:
    return cachekd.sparse_divergence(
        hidden_ND,
        head.weight_VD,
        targets,
        lm_head_bias=head.bias_V,
        logit_scale=head.scale,
        softcap=head.softcap,
        vocab_size=VOCAB,
        **options,
    )


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 9),
    seed=st.integers(0, 99),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    temperature=st.sampled_from([1.0, 2.0]),
    scale=st.sampled_from([1.0, 0.3]),
    softcap=st.sampled_from([None, 4.0]),
    ce=st.sampled_from([0.0, 0.4]),
)
def test_value_and_gradients_are_those_of_whole_logits(
    rows: int,
    seed: int,
    top_p: float,
    temperature: float,
    scale: float,
    softcap: float | None,
    ce: float,
) -> None:
    hidden_ND, head, targets = _case(rows, seed, top_p)
    head = replace(head, scale=scale, softcap=softcap)
    found = _fused(hidden_ND, head, targets, temperature=temperature, ce=ce, kd=0.7)
    logits_NV = _logits(hidden_ND, head)
    kl_N = bucket_forward_kl(densify(targets, VOCAB, temperature), logits_NV, temperature)
    ce_N = functional.cross_entropy(logits_NV, targets["next_ids"], reduction="none")
    expected = (targets["weights"] * (0.7 * temperature**2 * kl_N + ce * ce_N)).sum()
    torch.testing.assert_close(found.loss_sum, expected, atol=1e-11, rtol=1e-10)
    # A factor that follows, as accumulation has one.
    ours, theirs = (_gradients(loss / 3, hidden_ND, head) for loss in (found.loss_sum, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-11, rtol=1e-9)
    assert ours[1][VOCAB:].abs().max() == 0, "nothing is learned of padding"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tail", ["bucket", "flat", "unigram", "log_rank", "renormalised"])
def test_chunks_change_nothing(name: str, tail: str) -> None:
    hidden_ND, head, targets = _case()
    targets["unigram"] = torch.softmax(torch.arange(VOCAB) / 9.0, 0).double()
    spec = Divergence(name=name, weight=0.3, temperature=2.0, tail=tail)
    logits_NV = _logits(hidden_ND, head)
    expected = (targets["weights"] * divergence_rows(logits_NV, targets, spec)).sum()
    options = {"divergence": name, "weight": 0.3, "temperature": 2.0, "tail": tail}
    whole = _fused(hidden_ND, head, targets, **options)
    torch.testing.assert_close(whole.loss_sum, 4 * expected)
    theirs = _gradients(4 * expected, hidden_ND, head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cachekd.losses.fused.chunk_rows", lambda *_: 5)
        parts = _fused(hidden_ND, head, targets, **options)
    torch.testing.assert_close(parts.loss_sum, whole.loss_sum)
    for name_, value in whole.metrics.items():
        torch.testing.assert_close(parts.metrics[name_], value)
    for one in (whole, parts):
        for mine, other in zip(_gradients(one.loss_sum, hidden_ND, head), theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-11, rtol=1e-9)


def _learned_loss(gate: Tensor, seen: list[int]) -> Any:
    def loss(student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        seen.append(len(targets["weights"]))
        value_R = torch.sigmoid(gate.sum()) * -student.next_log_q() * targets["tail"].exp()
        total = (targets["weights"] * value_R).sum()
        return ObjectiveOutput(loss_sum=total, weight_sum=targets["weights"].sum())

    return loss


def test_targets_and_parameters_that_carry_a_gradient_get_it() -> None:
    hidden_ND, head, targets = _case()
    scale = torch.tensor([0.3, -0.1], dtype=torch.float64, requires_grad=True)
    tail_N = targets["tail"]

    def prepared() -> TargetTensors:
        return {**targets, "tail": tail_N * scale[1]}  # type: ignore[typeddict-item]

    seen: list[int] = []
    found = fused_loss(
        hidden_ND,
        head,
        prepared(),
        _learned_loss(scale, seen),
        Reading(learned=(scale,), chunk=7),
        VOCAB,
    )
    logits_NV = _logits(hidden_ND, head)
    ce_N = functional.cross_entropy(logits_NV, targets["next_ids"], reduction="none")
    gate, tail = torch.sigmoid(scale.sum()), (tail_N * scale[1]).exp()
    expected = (targets["weights"] * gate * ce_N * tail).sum()
    assert len(seen) == 4
    torch.testing.assert_close(found.loss_sum, expected)
    tensors = [scale, hidden_ND, head.weight_VD]
    ours = torch.autograd.grad(2 * found.loss_sum, tensors)
    theirs = torch.autograd.grad(2 * expected, tensors)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_row_after_is_seen_and_counts_once() -> None:
    """A loss over neighbours is the same whatever the chunks are."""
    hidden_ND, head, targets = _case(rows=11)

    def pairs(student: StudentRows, rows: TargetTensors) -> ObjectiveOutput:
        q_R, weights_R = student.next_log_q(), rows["weights"]
        loss = (weights_R[:-1] * q_R[:-1] * q_R[1:]).sum() + (weights_R * q_R).sum()
        return ObjectiveOutput(loss_sum=loss, weight_sum=weights_R.sum())

    log_q_N = -functional.cross_entropy(
        _logits(hidden_ND, head), targets["next_ids"], reduction="none"
    )
    weights_N = targets["weights"]
    expected = (weights_N[:-1] * log_q_N[:-1] * log_q_N[1:]).sum() + (weights_N * log_q_N).sum()
    theirs = _gradients(expected, hidden_ND, head)
    for chunk in (1, 2, 3, 10, 50):
        reading = Reading(next_row=True, chunk=chunk)
        found = fused_loss(hidden_ND, head, targets, pairs, reading, VOCAB)
        torch.testing.assert_close(found.loss_sum, expected)
        torch.testing.assert_close(found.weight_sum, weights_N.sum())
        ours = _gradients(found.loss_sum, hidden_ND, head)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_worse_than_the_naive_way_in_low_precision(dtype: torch.dtype) -> None:
    """Errors against float64 of the same inputs, of loss and gradients, at most the naive way's."""
    hidden_ND, head, targets = _case(200, top_p=0.95, dtype=dtype)
    double = [t.detach().double().requires_grad_() for t in (hidden_ND, head.weight_VD)]
    bias_V = head.bias_V.detach().double() if head.bias_V is not None else None
    exact_head = Head(weight_VD=double[1], bias_V=bias_V)
    decoded = densify(targets, VOCAB, 1.0)

    def dense(logits_NV: Tensor) -> Tensor:
        return (targets["weights"] * bucket_forward_kl(decoded, logits_NV, 1.0)).sum()

    exact = dense(_logits(double[0], exact_head))
    wanted = torch.autograd.grad(exact, double)
    # Naive: logits in the dtype of the model, upcast once, and everything else exact.
    naive = dense(_logits(hidden_ND, head).float())
    of_naive = torch.autograd.grad(naive, [hidden_ND, head.weight_VD])
    found = _fused(hidden_ND, head, targets)
    of_ours = torch.autograd.grad(found.loss_sum, [hidden_ND, head.weight_VD])
    assert abs(found.loss_sum.double() - exact) <= abs(naive.double() - exact) + 1e-5 * exact
    for mine, other, true in zip(of_ours, of_naive, wanted, strict=True):
        assert mine.dtype == dtype
        error, allowed = ((t.double() - true).norm() for t in (mine, other))
        assert error <= 1.1 * allowed + 1e-6 * true.norm()


def test_no_rows_give_zeros_that_can_be_trained() -> None:
    hidden_ND, head, targets = _case(rows=0)
    found = _fused(hidden_ND, head, targets, ce=0.5)
    assert found.loss_sum.item() == found.weight_sum.item() == 0
    for gradient in _gradients(found.loss_sum, hidden_ND, head):
        assert gradient.numel() == 0 or gradient.abs().max() == 0


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    hidden_ND, head, targets = _case()
    frozen = Head(weight_VD=head.weight_VD.detach())
    found = _fused(hidden_ND, replace(frozen, bias_V=None), targets)
    found.loss_sum.backward()
    assert hidden_ND.grad is not None and hidden_ND.grad.abs().max() > 0
    assert frozen.weight_VD.grad is None


def test_nothing_is_kept_where_nothing_is_trained() -> None:
    hidden_ND, head, targets = _case()
    with torch.no_grad():
        found = _fused(hidden_ND, head, targets)
    assert not found.loss_sum.requires_grad
    trained = _fused(hidden_ND, head, targets)
    torch.testing.assert_close(found.loss_sum, trained.loss_sum.detach())


def test_a_second_differentiation_is_refused() -> None:
    hidden_ND, head, targets = _case()
    found = _fused(hidden_ND, head, targets)
    found.loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        found.loss_sum.backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "expected one of forward_kl"),
        ({"tail": "zipf"}, "expected one of bucket"),
        ({"divergence": "jsd", "weight": 1.0}, "exclusive"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": 4.0}, "--temperatures 4"),
        ({"tail": "unigram"}, "recode"),
    ],
)
def test_bad_settings_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    hidden_ND, head, targets = _case(rows=2)
    with pytest.raises(ConfigError, match=message):
        _fused(hidden_ND, head, targets, **options)


def test_what_needs_do_not_name_cannot_be_read() -> None:
    hidden_ND, head, targets = _case(rows=2)

    def asks(student: Any, rows: Any, of: str) -> Any:
        return student.logits() if of == "logits" else student.outcomes(2.0)

    for of in ("logits", "outcomes"):
        with pytest.raises(ConfigError, match=r"needs\(\) do not"):
            fused_loss(hidden_ND, head, targets, lambda s, r, of=of: asks(s, r, of), Reading())


def test_no_rows_in_half_precision() -> None:
    hidden_ND, head, targets = _case(rows=0, dtype=torch.bfloat16)
    found = _fused(hidden_ND, head, targets, ce=0.5)
    assert found.loss_sum.item() == 0
    assert all(
        gradient.abs().sum() == 0 for gradient in _gradients(found.loss_sum, hidden_ND, head)
    )

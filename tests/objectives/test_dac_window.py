"""Where the window of DAC-KL goes when it is trained, with and without what holds it open."""

from __future__ import annotations

import pytest
import torch
from chunks import run_objective
from selected import logits, single, targets_of

from cachekd.objectives import build


def test_the_printed_form_trains_no_window_in_float32() -> None:
    """Eq. 7 compares levels with probabilities: its gradient is 0; in log-ranks it is not."""
    targets = single(targets_of(logits(12, 11)))
    student = logits(12, 12).float().requires_grad_()
    largest = {}
    for space, combine in (("value", "literal"), ("value", "sum"), ("logrank", "tail")):
        objective = build("dac_kl", {"space": space, "combine": combine, "inputs": 6})
        output = run_objective(objective, student, targets)
        weights = list(objective.learned().parameters())
        found = torch.autograd.grad(output.loss_sum, weights)
        largest[space, combine] = max(grad.abs().max().item() for grad in found)
    assert largest["value", "literal"] == largest["value", "sum"] == 0
    assert largest["logrank", "tail"] > 1e-3


def _trained(guard: float, combine: str) -> tuple[float, float]:
    """Coverage and loss after the window was trained on fixed distributions."""
    vocab, rows = 100, 12
    generator = torch.Generator().manual_seed(0)
    base = -1.2 * torch.arange(1, vocab + 1).double().log()
    noise = torch.randn(2, rows, vocab, generator=generator, dtype=torch.float64)
    teacher = base + 0.5 * noise[0]
    student = teacher + 0.9 * noise[1]
    targets = single(targets_of(teacher))
    objective = build("dac_kl", {"guard": guard, "combine": combine, "hidden": 16, "inputs": 8})
    optimizer = torch.optim.Adam(objective.learned().parameters(), lr=0.05)
    for _ in range(60):
        output = run_objective(objective, student.float(), targets)
        optimizer.zero_grad()
        (output.loss_sum / output.weight_sum).backward()
        optimizer.step()
    covered = output.metrics["coverage"] / output.weight_sum
    return covered.item(), (output.metrics["dac_kl"] / output.weight_sum).item()


@pytest.mark.parametrize("combine", ["tail", "sum", "renorm"])
def test_window_collapses_without_a_guard(combine: str) -> None:
    covered, loss = _trained(0.0, combine)
    guarded, guarded_loss = _trained(20.0, combine)
    assert covered < 0.6, "nothing but the guard holds the window open"
    assert guarded > 0.93
    assert loss < guarded_loss


def test_every_process_builds_the_same_window_and_draws_nothing() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = (build("dac_kl", {}).learned() for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    upper, lower = first(torch.randn(3, first.inner.in_features))
    assert upper.tolist() == pytest.approx([0.8808] * 3, abs=1e-4)
    assert (lower / upper).tolist() == pytest.approx([0.1192] * 3, abs=1e-4)


def test_a_very_wide_input_says_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    for vocab, warned in ((1_000, False), (100_000, True)):
        caplog.clear()
        objective = build("dac_kl", {"input": "full", "hidden": 40})
        assert objective.learned(vocab).inner.in_features == 3 * vocab
        assert ("12.0 M weights" in caplog.text) == warned

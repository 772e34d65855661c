"""The dae objective: rows learn from their own teacher, and from the reference nothing at first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from chunks import run_objective
from fakes import VOCAB, sparse
from runs import capture
from tiny import Family

import cachekd
from cachekd.losses.reference import dense_forward_kl
from cachekd.objectives import build
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss

EXPERT = torch.tensor([True, False, False, True, True, False, True])


def _logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(EXPERT), VOCAB, generator=generator, dtype=torch.float64) * 2


def test_each_row_learns_from_its_own_teacher() -> None:
    expert, reference, student = _logits(0), _logits(1), _logits(2).requires_grad_()
    targets = sparse(torch.where(EXPERT[:, None], expert, reference))
    targets["weights"] = torch.linspace(0.5, 2, len(EXPERT), dtype=torch.float64)
    targets["expert"] = EXPERT
    output = run_objective(build("dae", {"temperature": 2.0}), student, targets)
    parts = {
        name: (targets["weights"] * dense_forward_kl(teacher, student, 2.0))[own]
        for name, teacher, own in (
            ("kl_expert", expert, EXPERT),
            ("kl_reference", reference, ~EXPERT),
        )
    }
    expected = sum(4 * part.sum() for part in parts.values())
    torch.testing.assert_close(output.loss_sum, expected)
    found, wanted = (torch.autograd.grad(loss, student)[0] for loss in (output.loss_sum, expected))
    torch.testing.assert_close(found, wanted)
    assert set(output.counts) == set(parts)
    for name, own in (("kl_expert", EXPERT), ("kl_reference", ~EXPERT)):
        torch.testing.assert_close(output.metrics[name], parts[name].sum().detach())
        torch.testing.assert_close(output.counts[name], targets["weights"][own].sum())


def test_without_a_route_there_are_no_figures_of_one_teacher() -> None:
    output = run_objective(build("dae", {}), _logits(2), sparse(_logits(0)))
    assert set(output.metrics) == {"kl", "ce", "tail_mass"} and not output.counts


def test_needs_and_the_weights_of_the_paper() -> None:
    objective = build("dae", {"temperature": 2.0})
    needs = objective.needs()
    assert (objective.ce, objective.kd) == (0.0, 1.0)
    assert needs.routed and not needs.one_teacher and needs.start == "reference"
    assert needs.temperatures == (2.0,) and needs.attention == 0


@pytest.mark.parametrize("head", [{"logits_top_p": 0.99}, {"logits_selection": "full"}])
def test_a_student_that_is_the_reference_has_nothing_to_learn_from_it(
    head: dict[str, object], family: Family, data: Path, tmp_path: Path
) -> None:
    """Float16 values of 99 % of the mass, or of all: found were 6e-7 nats, and a norm of 9e-5."""
    from transformers import AutoModelForCausalLM

    own = Family(family.student, family.student, family.vocab)
    capture(own, data, tmp_path / "cache", logits_values="float16", logits_top_k=0, **head)
    dataset = cachekd.CacheDataset(str(tmp_path / "cache"))
    batch = cachekd.Collator(pad_token_id=1)(dataset.records(range(8)))
    batch["targets"]["expert"] = torch.zeros(len(batch["rows"]), dtype=torch.bool)
    model = AutoModelForCausalLM.from_pretrained(family.student, dtype=torch.float32)
    output = batch_loss(model, StudentHead(model, model), batch, build("dae", {}), family.vocab)
    loss = output.loss_sum / output.weight_sum
    loss.backward()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))
    assert output.metrics["kl_expert"] == 0 and output.metrics["kl_reference"] > 0
    assert 0 <= loss < 1e-6
    assert norm < 2e-4

"""The seqkd objective: cross entropy with the teacher's text, alone or with its distributions."""

from __future__ import annotations

import torch
from chunks import run_objective
from fakes import VOCAB, sparse
from torch.nn import functional

from cachekd.losses.reference import dense_forward_kl
from cachekd.objectives import build


def test_the_form_of_the_paper_and_that_of_the_code() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(9, VOCAB, generator=generator, dtype=torch.float64) * 3
    student = torch.randn(9, VOCAB, generator=generator, dtype=torch.float64)
    targets = sparse(teacher)
    targets["next_ids"] = torch.arange(9)
    ce = functional.cross_entropy(student, targets["next_ids"], reduction="sum")
    kl = dense_forward_kl(teacher, student).sum()
    paper = run_objective(build("seqkd", {}), student, targets)
    torch.testing.assert_close(paper.loss_sum, ce)
    torch.testing.assert_close(paper.metrics["kl"], kl)
    both = run_objective(build("seqkd", {"loss": {"ce": 0.5, "kd": 0.5}}), student, targets)
    torch.testing.assert_close(both.loss_sum, 0.5 * ce + 0.5 * kl)


def test_the_teacher_must_have_written_the_responses() -> None:
    assert build("seqkd", {}).needs().generated and not build("kd", {}).needs().generated

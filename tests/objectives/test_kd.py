"""The kd objective: its terms, its metrics, its refusals, and that options need no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from chunks import run_objective
from fakes import VOCAB, sparse
from torch.nn import functional

from cachekd.errors import ConfigError
from cachekd.losses.reference import dense_forward_kl
from cachekd.objectives import build
from cachekd.plugins import available


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(9, VOCAB, generator=generator, dtype=torch.float64) * 3
    student = torch.randn(9, VOCAB, generator=generator, dtype=torch.float64)
    return teacher, student.requires_grad_()


def test_terms_are_weighted_sums() -> None:
    teacher, student = _data()
    targets = sparse(teacher)
    targets["weights"] = torch.linspace(0, 2, 9, dtype=torch.float64)
    objective = build("kd", {"temperature": 2.0, "loss": {"ce": 0.25, "kd": 0.5}})
    output = run_objective(objective, student, targets)
    kl = (targets["weights"] * dense_forward_kl(teacher, student, 2.0)).sum()
    ce = functional.cross_entropy(student, targets["next_ids"], reduction="none")
    ce = (targets["weights"] * ce).sum()
    torch.testing.assert_close(output.loss_sum, 0.25 * ce + 0.5 * 4 * kl)
    torch.testing.assert_close(output.metrics["kl"], kl.detach())
    torch.testing.assert_close(output.metrics["ce"], ce.detach())
    assert output.weight_sum.item() == pytest.approx(9.0)
    assert not any(value.requires_grad for value in output.metrics.values())


def test_default_weights_and_needs() -> None:
    objective = build("kd", {"temperature": 2.0})
    assert (objective.ce, objective.kd) == (0.1, 0.9)
    assert objective.needs().temperatures == (2.0,)


def test_term_without_weight_is_measured_but_not_trained() -> None:
    teacher, student = _data()
    targets = sparse(teacher)
    output = run_objective(build("kd", {"loss": {"ce": 1.0}}), student, targets)
    expected = functional.cross_entropy(student, targets["next_ids"], reduction="sum")
    torch.testing.assert_close(output.loss_sum, expected)
    assert output.metrics["kl"] > 1
    (found,) = torch.autograd.grad(output.loss_sum, student)
    torch.testing.assert_close(found, torch.autograd.grad(expected, student)[0])


def test_no_rows_give_a_zero_that_can_be_trained() -> None:
    logits = torch.zeros(0, VOCAB, requires_grad=True)
    output = run_objective(build("kd", {}), logits, sparse(torch.zeros(0, VOCAB)))
    output.loss_sum.backward()
    assert output.loss_sum.item() == output.weight_sum.item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 2.0}, "Did you mean 'temperature'"),
        ({"loss": {"kl": 1.0}}, "Known: ce, kd, attention"),
        ({"loss": {"kd": -1.0}}, ">= 0"),
        ({"loss": {"kd": 0.0}}, "above 0"),
        ({"loss": {"kd": "x"}}, "a number"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("kd", options)


def test_options_can_be_read_without_torch() -> None:
    code = (
        "import sys; from cachekd.plugins import available, find\n"
        "plugins = [find('objectives', name) for name in available('objectives')]\n"
        "[plugin.Options() for plugin in plugins]\n"
        "print(len(plugins), [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(available('objectives'))} []"


def test_only_a_bucket_at_temperature_1_takes_sampled_entries() -> None:
    needs = {
        (temperature, tail): build("kd", {"temperature": temperature, "tail": tail}).needs()
        for temperature in (1.0, 2.0)
        for tail in ("bucket", "flat", "unigram", "log_rank")
    }
    assert [key for key, need in needs.items() if need.sampled] == [(1.0, "bucket")]
    assert {tail for (_, tail), need in needs.items() if need.unigram} == {"unigram", "log_rank"}
    with pytest.raises(ConfigError, match="tail: expected one of"):
        build("kd", {"tail": "zipf"})

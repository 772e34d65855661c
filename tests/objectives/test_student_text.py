"""GKD, ImitKD and DistiLLM: a divergence on whoever's text, and what each asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chunks import run_objective
from selected import logits, targets_of
from written import marked

from cachekd.errors import ConfigError
from cachekd.losses.reference import dense_divergence
from cachekd.objectives import build
from cachekd.objectives._rollouts import Correction, RolloutOptions, Rollouts, Share

ROWS = 12
WRITTEN = torch.arange(ROWS) % 6 < 4

CASES: dict[str, tuple[str, dict[str, Any], str, float]] = {
    "forward": ("gkd", {"beta": 0.0}, "forward_kl", 0.5),
    "generalised": ("gkd", {"beta": 0.1}, "jsd", 0.1),
    "reverse": ("gkd", {"beta": 1.0}, "reverse_kl", 0.5),
    "imitation": ("imitkd", {}, "forward_kl", 0.5),
    "skew": ("distillm", {"alpha": 0.1, "direction": "forward"}, "skew_kl", 0.1),
    "skew reverse": ("distillm", {}, "skew_reverse_kl", 0.1),
}
METRICS = {"forward_kl": "kl"}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", CASES)
def test_equals_dense_code(name: str, temperature: float) -> None:
    """One mean over all rows; cross entropy of the data's alone, whoever the batch is of."""
    objective, options, divergence, weight = CASES[name]
    teacher, student = logits(ROWS, 1), logits(ROWS, 2).requires_grad_()
    options = {**options, "temperature": temperature, "loss": {"ce": 0.3, "kd": 0.7}}
    bare = targets_of(teacher)
    p, q = (torch.softmax(side / temperature, 1) for side in (teacher, student))
    kd = dense_divergence(divergence, p, q, weight)
    ce = -torch.log_softmax(student, 1).gather(1, bare["next_ids"][:, None])[:, 0]
    weights = bare["weights"] / bare["weights"].sum()
    none, every = torch.zeros(ROWS, dtype=torch.bool), torch.ones(ROWS, dtype=torch.bool)
    for written in (None, none, every, WRITTEN):
        targets = bare if written is None else marked(bare, written, scored=True)
        output = run_objective(build(objective, options), student, targets)
        of_data = every if written is None else ~written
        rows = 0.7 * temperature**2 * kd + 0.3 * torch.where(of_data, ce, 0)
        expected, found = weights @ rows, output.loss_sum / output.weight_sum
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
        left = torch.autograd.grad(found, student)[0]
        right = torch.autograd.grad(expected, student, retain_graph=True)[0]
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-9)
        metric = output.metrics[METRICS.get(divergence, divergence)] / output.weight_sum
        assert metric.item() == pytest.approx((weights @ kd).item())
        share = output.metrics["student_share"] / output.weight_sum
        assert share.item() == pytest.approx(1 - weights[of_data].sum().item())
        if of_data.any():
            mean = (weights[of_data] @ ce[of_data] / weights[of_data].sum()).item()
            assert (output.metrics["ce"] / output.counts["ce"]).item() == pytest.approx(mean)
        else:
            assert output.counts["ce"].abs() < 1e-12


@pytest.mark.parametrize("name", ["gkd", "imitkd", "distillm"])
def test_a_student_that_is_the_teacher_learns_nothing(name: str) -> None:
    student = logits(ROWS, 1).requires_grad_()
    targets = marked(targets_of(logits(ROWS, 1), top_p=0.9), WRITTEN, scored=True)
    output = run_objective(build(name, {}), student, targets)
    output.loss_sum.backward()
    assert abs(output.loss_sum.item()) < 1e-10
    assert student.grad is not None and student.grad.abs().max() < 1e-10


def test_a_bucket_is_at_most_the_dense_divergence() -> None:
    teacher, student = logits(ROWS, 1), logits(ROWS, 2)
    for name, options, divergence, weight in CASES.values():
        targets = targets_of(teacher, top_p=0.8)
        found = run_objective(build(name, options), student, targets).loss_sum
        p, q = torch.softmax(teacher, 1), torch.softmax(student, 1)
        dense = targets["weights"] @ dense_divergence(divergence, p, q, weight)
        assert 0.1 * dense < found < dense


def test_what_they_ask_of_text() -> None:
    assert build("gkd", {}).needs().rollouts == Rollouts(share=Share(lmbda=0.5))
    imitkd = build("imitkd", {"lmbda_schedule": "exponential", "lmbda": 0.9}).needs()
    assert imitkd.rollouts == Rollouts(share=Share(kind="exponential", lmbda=0.9, per="sample"))
    assert build("imitkd", {}).needs().rollouts == Rollouts(share=Share(per="sample"))
    distillm = build("distillm", {}).needs().rollouts
    code = Share(kind="adaptive", lmbda=0.2, compare="last_trigger")
    assert distillm == Rollouts(share=code, replay=1000)
    paper = {"lmbda": 0.0, "phi_compare": "last_eval", "replay_trains": "buffer", "replay": 50}
    paper |= {"phi_rate": "increasing", "phi_step": 0.2, "phi_margin": 0.0}
    assert build("distillm", paper).needs().rollouts == Rollouts(
        share=Share(
            kind="adaptive",
            lmbda=0.0,
            rate="increasing",
            step=0.2,
            margin=0.0,
            fresh_trains=False,
        ),
        replay=50,
    )
    sampling = {"rollout_temperature": 0.9, "rollout_top_p": 0.8, "rollout_top_k": 40, "scrg": 2}
    found = build("gkd", {**sampling, "max_new_tokens": 8, "support": 4}).needs().rollouts
    assert found == Rollouts(
        max_new_tokens=8,
        temperature=0.9,
        top_p=0.8,
        top_k=40,
        support=4,
        share=Share(lmbda=0.5),
        correction=Correction(frequency=2),
    )


@pytest.mark.parametrize("name", ["gkd", "imitkd"])
def test_without_a_share_no_text_is_written(name: str) -> None:
    """Then a cache is all it takes."""
    assert build(name, {"lmbda": 0.0}).needs().rollouts is None


def test_needs_are_otherwise_those_of_the_divergence() -> None:
    needs = build("gkd", {"temperature": 2.0, "tail": "unigram"}).needs()
    assert needs.temperatures == (2.0,) and needs.unigram and needs.dense
    assert build("imitkd", {}).needs().sampled and not build("distillm", {}).needs().sampled


@pytest.mark.parametrize("name", ["gkd", "imitkd", "distillm", "minillm", "multi_granularity"])
def test_no_option_is_a_field_of_a_run(name: str) -> None:
    """A flag would set both."""
    from dataclasses import fields

    from transformers import TrainingArguments

    from cachekd.config import TrainConfig

    taken = {item.name for kind in (TrainingArguments, TrainConfig) for item in fields(kind)}
    own = {item.name for item in fields(build(name, {}).Options)}
    assert {item.name for item in fields(RolloutOptions)} < own
    assert not own & taken


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gkd", {"lmbda": 1.5}, "lmbda: expected 0 to 1; found 1.5"),
        ("gkd", {"beta": -0.1}, "beta: expected 0 to 1"),
        ("gkd", {"rollout_temperature": 0.0}, "rollout_temperature: expected above 0"),
        ("gkd", {"rollout_top_p": 0.0}, "rollout_top_p"),
        ("gkd", {"scrg_token": "best"}, "scrg_token: expected one of argmax, sample"),
        ("gkd", {"alpha": 0.1}, "not an option of objective 'gkd'"),
        ("imitkd", {"lmbda_schedule": "cosine"}, "lmbda_schedule: expected one of constant"),
        ("imitkd", {"lmbda": -1.0}, "lmbda: expected 0 to 1"),
        ("imitkd", {"support": -1}, "support: expected 0 or more"),
        ("distillm", {"alpha": 1.0}, "alpha: expected between 0 and 1"),
        ("distillm", {"phi_margin": -0.1}, "phi_margin: expected a number >= 0"),
        ("distillm", {"phi_step": 2.0}, "phi_step: expected 0 to 1"),
        ("distillm", {"phi_compare": "first"}, "phi_compare: expected one of last_eval"),
        ("distillm", {"replay": 0}, "replay: expected 1 or more"),
        ("distillm", {"loss": {"kl": 1.0}}, "'kl' is not a term of the loss"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, options)

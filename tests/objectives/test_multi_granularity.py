"""The total loss of three objectives: each alone on its own rows, and what a dense formula says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from selected import V, logits, targets_of
from torch import Tensor
from written import marked

from cachekd.errors import ConfigError
from cachekd.losses.fused import logits_loss
from cachekd.losses.reference import dense_divergence, dense_span
from cachekd.objectives import build
from cachekd.objectives._rollouts import Correction, Rollouts
from cachekd.training.loss import reading_of
from cachekd.training.spans import span_factors
from cachekd.types import ObjectiveOutput, TargetTensors

# documents in turn of student and data, so that both parts meet within a chunk
SPANS = [np.array([0, 0, 1, 1, 1]), np.array([0, 0, -1, 0]), np.array([0, 0, 0]), np.array([0, 0])]
WEIGHTS = [1.0, 2.0, 0.5, 1.0]
STUDENT = [True, False, True, False]
LENGTHS = [len(span) for span in SPANS]
WRITTEN = torch.from_numpy(np.repeat(STUDENT, LENGTHS))
ROWS = sum(LENGTHS)
OPTIONS: dict[str, Any] = {"inputs": 6, "hidden": 5, "guard": 3.0}


def _targets(*, top_p: float = 1.0) -> TargetTensors:
    targets = targets_of(logits(ROWS, 1), top_p=top_p)
    weights = np.repeat(WEIGHTS, LENGTHS)
    span, factor = span_factors(SPANS, weights)
    targets["weights"] = torch.from_numpy(weights)
    targets["span"], targets["span_factor"] = torch.from_numpy(span), torch.from_numpy(factor)
    return targets


def _run(objective: Any, student: Tensor, targets: TargetTensors, chunk: int | None = None) -> Any:
    reading = replace(reading_of(objective, V), chunk=chunk)
    return logits_loss(student, objective.prepare(targets, V), objective, reading)


def _part(targets: TargetTensors, rows: Tensor) -> tuple[TargetTensors, Tensor]:
    """The rows of one part, as a batch of their own."""
    at = rows.nonzero()[:, 0]
    entry = torch.repeat_interleave(rows, targets["offsets"].diff())
    counts = targets["offsets"].diff()[at]
    part: Any = {"ids": targets["ids"][entry], "logprobs": targets["logprobs"][entry]}
    done = {*part, "offsets", "lognorm", "student_text", "part_scale"}
    part |= {name: value[at] for name, value in targets.items() if name not in done}
    part["offsets"] = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    part["lognorm"] = {t: norm[at] for t, norm in targets["lognorm"].items()}
    return part, at


def _made(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The objective in float64, what it learns, and a copy of that alone; already trained a bit."""
    objective: Any = build("multi_granularity", {**OPTIONS, **options})
    alone: Any = build("dac_kl", OPTIONS)
    nets = [objective.learned().double()["dac_kl"], alone.learned().double()]
    for net in nets:
        torch.manual_seed(1)
        torch.nn.init.normal_(net.outer.weight, std=0.3)
    return objective, list(nets[0].parameters()), (alone, list(nets[1].parameters()))


@pytest.mark.parametrize("chunk", [3, 4, None])
@pytest.mark.parametrize("scored", [False, True])
def test_is_the_sum_of_three_means_each_over_its_rows(scored: bool, chunk: int | None) -> None:
    student = logits(ROWS, 2).requires_grad_()
    weights = {"sft": 0.5, "dac_kl": 2.0, "span": 30.0}
    objective, net, (dac_kl, own_net) = _made({"loss": weights})
    targets = marked(_targets(top_p=0.9), WRITTEN, scored=scored)
    output: ObjectiveOutput = _run(objective, student, targets, chunk)
    expected = torch.zeros((), dtype=torch.float64)
    for name, one in (("sft", build("sft", {})), ("dac_kl", dac_kl), ("span", build("span", {}))):
        part, at = _part(targets, ~WRITTEN if name == "sft" else WRITTEN)
        alone = _run(one, student[at], part)
        mean = alone.loss_sum / alone.weight_sum
        metric = output.metrics[f"{name}/loss"] / output.weight_sum
        assert metric.item() == pytest.approx(weights[name] * mean.item(), rel=1e-9)
        assert abs(metric.item()) > 0.01
        expected = expected + weights[name] * mean
    found = output.loss_sum / output.weight_sum
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    of_found = torch.autograd.grad(found, [student, *net])
    of_expected = torch.autograd.grad(expected, [student, *own_net])
    for left, right in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-7)
        assert left.abs().max() > 1e-5


def test_terms_are_the_dense_formulas_of_their_rows() -> None:
    teacher, student = logits(ROWS, 1), logits(ROWS, 2)
    targets = marked(_targets(), WRITTEN)
    objective: Any = build("multi_granularity", OPTIONS)
    output = _run(objective, student, targets)
    log_q = torch.log_softmax(student, 1).gather(1, targets["next_ids"][:, None])[:, 0]
    data, span, at = ~WRITTEN, 0.0, 0
    for numbers, weight, written in zip(SPANS, WEIGHTS, STUDENT, strict=True):
        own = slice(at, at + len(numbers))
        phrases = [np.flatnonzero(numbers == n).tolist() for n in range(numbers.max() + 1)]
        if written:
            span += weight * len(numbers) * dense_span(teacher[own], student[own], phrases).item()
        at += len(numbers)
    weights = targets["weights"]
    ce = -(weights[data] @ log_q[data]) / weights[data].sum()
    assert (output.metrics["sft/ce"] / output.weight_sum).item() == pytest.approx(ce.item())
    mean = span / weights[WRITTEN].sum().item()
    assert (output.metrics["span/span"] / output.weight_sum).item() == pytest.approx(mean, rel=1e-6)


def test_a_batch_that_does_not_say_who_wrote_it_serves_all_terms() -> None:
    """As a cache does to a sum of the same objectives."""
    student, targets = logits(ROWS, 2), _targets(top_p=0.9)
    terms = {"sft": 1.0, "dac_kl": {"weight": 1.0, **OPTIONS}, "span": 1.0}
    expected = _run(build("sum", {"terms": terms}), student, targets)
    found = _run(build("multi_granularity", OPTIONS), student, targets)
    assert found.loss_sum.item() == pytest.approx(expected.loss_sum.item())
    assert found.metrics.keys() == expected.metrics.keys()


@pytest.mark.parametrize("written", [False, True])
def test_a_batch_of_one_part_has_its_terms_alone(written: bool) -> None:
    student = logits(ROWS, 2).requires_grad_()
    targets = marked(_targets(), torch.full((ROWS,), written))
    output = _run(build("multi_granularity", OPTIONS), student, targets)
    output.loss_sum.backward()
    losses = {name: output.metrics[f"{name}/loss"].item() for name in ("sft", "dac_kl", "span")}
    assert (losses["sft"] == 0) == written
    assert (losses["dac_kl"] == 0) == (losses["span"] == 0) == (not written)
    assert student.grad is not None and student.grad.isfinite().all()


PLAIN = {
    "kd": ("forward_kl", 0.5),
    "reverse_kl": ("reverse_kl", 0.5),
    "symmetric": ("jeffreys", 0.5),
    "jsd": ("jsd", 0.5),
    "tvd": ("tvd", 0.5),
    "skew_kl": ("skew_kl", 0.1),
    "skew_reverse_kl": ("skew_reverse_kl", 0.1),
}


@pytest.mark.parametrize("term", PLAIN)
def test_another_divergence_is_its_dense_mean_over_the_students_rows(term: str) -> None:
    teacher, student = logits(ROWS, 1), logits(ROWS, 2)
    targets = marked(_targets(), WRITTEN)
    objective: Any = build("multi_granularity", {"loss": {term: 2.0}, "scrg": 0})
    output = _run(objective, student, targets)
    name, weight = PLAIN[term]
    p_RV, q_RV = teacher.softmax(1), student.softmax(1)
    dense_R = dense_divergence(name, p_RV, q_RV, weight)
    weights = targets["weights"] * WRITTEN
    expected = 2.0 * (weights @ dense_R) / weights.sum()
    assert (output.loss_sum / output.weight_sum).item() == pytest.approx(expected.item(), rel=1e-6)
    assert objective.learned() is None


def test_needs() -> None:
    needs = build("multi_granularity", {"chunker": "adjacent", "temperature": 2.0}).needs()
    assert needs.rollouts == Rollouts(gold="text", correction=Correction(frequency=1))
    assert needs.spans == "adjacent" and needs.next_row and needs.dense
    assert needs.temperatures == (2.0,) and needs.one_teacher
    bare = build("multi_granularity", {"loss": {"dac_kl": 1.0}, "scrg": 0})
    assert bare.needs().rollouts == Rollouts(gold="none")
    assert not bare.needs().dense and bare.needs().spans is None
    assert build("multi_granularity", {"loss": {"sft": 1.0}}).learned() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": {"skew": 1.0}}, "'skew' is not a term of the loss"),
        ({"loss": {"sft": 0.0}}, "expected a weight above 0"),
        ({"coverage": 2.0}, "coverage: expected 0 to 1"),
        ({"combine": "literal"}, "combine: expected one of tail, sum, renorm"),
        ({"chunker": "phrasse"}, "phrases"),
        ({"scrg": -1}, "scrg: expected 0 or more"),
        ({"temperature": 0.0}, "temperature: expected above 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("multi_granularity", options)

"""A sum of objectives: the weighted sum of its terms alone, with needs and targets of each."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from chunks import run_objective
from fakes import VOCAB, sparse
from torch import nn

from cachekd.errors import ConfigError
from cachekd.losses.fused import logits_loss
from cachekd.objectives import Needs, build
from cachekd.objectives._terms import _MERGE, Term, merged
from cachekd.training.loss import reading_of
from cachekd.types import ObjectiveOutput, TargetTensors

ROWS = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class TiltedOptions:
    scale: float = 1.0


class Tilted:
    """Learns a factor on what it takes for the teacher's log-probabilities."""

    Options: ClassVar[type] = TiltedOptions

    def __init__(self, options: Any) -> None:
        self.factor = nn.Linear(1, 1, bias=False).double()
        self.scale = options.scale

    def needs(self) -> Needs:
        return Needs(temperatures=(1.0,), dense=True, attention=0.5)

    def learned(self, vocab_size: int = 0) -> nn.Module:
        return self.factor

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        tilted = targets["logprobs"] * self.factor.weight[0, 0] * self.scale
        row = torch.full_like(targets["tail"], 2.0) * self.factor.weight[0, 0]
        return {**targets, "logprobs": tilted, "row": row}  # type: ignore[typeddict-unknown-key]

    def __call__(self, student: Any, targets: Any) -> ObjectiveOutput:
        row = torch.repeat_interleave(torch.arange(len(targets["row"])), targets["offsets"].diff())
        w = targets["weights"]
        products = student.outcomes().log_q_n.exp() * targets["logprobs"] * targets["row"][row]
        parts = w[row] * products
        loss = parts.sum() + (w * student.logits().square().sum(1)).sum()
        first = w[:1].sum()
        return ObjectiveOutput(
            loss_sum=loss,
            weight_sum=w.sum(),
            metrics={"first": first},
            counts={"first": first},
        )


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tilted_objective")
    module.Tilted = Tilted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tilted_objective", module)


def _data(top_p: float = 0.9) -> tuple[torch.Tensor, TargetTensors]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64) * 2
    student = torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64)
    targets = sparse(teacher, top_p=top_p)
    targets["weights"] = torch.linspace(0.5, 2, ROWS, dtype=torch.float64)
    targets["unigram"] = torch.softmax(teacher.mean(0), 0)
    targets["span_factor"] = torch.tensor([1.0, 0.5, 0, 0, 2, 1, 1, 0, 0, 1, 0]).double()
    return student.requires_grad_(), targets


TERMS: dict[str, dict[str, Any]] = {
    "cross entropy strips entries": {"kd": {"weight": 0.7}, "sft": 1.0},
    "tails and temperatures": {
        "kd": {"weight": 2, "temperature": 1},
        "soft": {"objective": "kd", "weight": "0.5", "temperature": 2, "tail": "flat"},
        "hard": {"objective": "kd", "weight": 0.3, "temperature": 0.5, "tail": "unigram"},
        "mode": {"objective": "reverse_kl", "weight": 0.2, "tail": "log_rank"},
    },
    "neighbours": {"span": {"weight": 3.0}, "jsd": 1.0, "sft": {"weight": 0.1}},
    "prepared with a gradient": {
        "tilted": {"objective": "tilted_objective:Tilted", "weight": 0.25, "scale": "1e-1"},
        "again": {"objective": "tilted_objective:Tilted", "weight": 2.0},
        "kd": 1.0,
        "span": 1.0,
    },
}


def _grads(loss: torch.Tensor, by: list[torch.Tensor]) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, by, allow_unused=True)
    return [torch.zeros_like(b) if f is None else f for f, b in zip(found, by, strict=True)]


@pytest.mark.parametrize("chunk", [3, None])
@pytest.mark.parametrize("name", TERMS)
def test_equals_the_weighted_sum_of_its_terms_alone(name: str, chunk: int | None) -> None:
    student, targets = _data()
    targets["lognorm"][0.5] = targets["lognorm"][2.0] - 1
    objective: Any = build("sum", {"terms": TERMS[name]})

    def run(one: Any) -> ObjectiveOutput:
        reading = replace(reading_of(one, VOCAB), chunk=chunk)
        return logits_loss(student, one.prepare(targets, VOCAB), one, reading)

    module = objective.learned()
    by = [student, *(module.parameters() if module is not None else ())]
    output = run(objective)
    found = _grads(output.loss_sum, by)
    expected, wanted = torch.zeros(()).double(), [torch.zeros_like(b) for b in by]
    for term in objective.terms:
        alone = run(term.objective)
        expected = expected + term.weight * alone.loss_sum.detach()
        grads = _grads(term.weight * alone.loss_sum, by)
        wanted = [left + right for left, right in zip(wanted, grads, strict=True)]
        for key, value in alone.metrics.items():
            torch.testing.assert_close(output.metrics[f"{term.name}/{key}"], value)
        for key, value in alone.counts.items():
            torch.testing.assert_close(output.counts[f"{term.name}/{key}"], value)
        share = term.weight * alone.loss_sum.detach()
        torch.testing.assert_close(output.metrics[f"{term.name}/loss"], share)
    torch.testing.assert_close(output.loss_sum, expected)
    torch.testing.assert_close(output.weight_sum, targets["weights"].sum())
    assert all(grad.abs().max() > 0 for grad in wanted)
    torch.testing.assert_close(found, wanted)


def test_learned_parts_are_named_by_their_term() -> None:
    objective = build("sum", {"terms": TERMS["prepared with a gradient"]})
    module = objective.learned()
    assert module is objective.learned() and module is not None
    assert [name for name, _ in module.named_parameters()] == ["tilted.weight", "again.weight"]
    assert build("sum", {"terms": {"kd": 1.0}}).learned() is None


def test_a_term_of_weight_0_is_measured_and_not_trained() -> None:
    student, targets = _data()
    output = run_objective(build("sum", {"terms": {"kd": 0, "sft": 2.0}}), student, targets)
    alone = run_objective(build("sft", {}), student, targets)
    torch.testing.assert_close(output.loss_sum, 2 * alone.loss_sum)
    assert output.metrics["kd/kl"] > 1 and output.metrics["kd/loss"] == 0


def test_needs_are_those_of_all_terms() -> None:
    needs = build("sum", {"terms": TERMS["tails and temperatures"]}).needs()
    assert needs.temperatures == (1.0, 2.0, 0.5)
    assert needs.unigram and needs.dense and needs.one_teacher
    assert not needs.sampled and not needs.next_row and needs.spans is None
    assert build("sum", {"terms": {"kd": 1, "sft": 1}}).needs().sampled
    assert not build("sum", {"terms": {"kd": 1, "tvd": 1}}).needs().sampled
    needs = build("sum", {"terms": {"span": {"chunker": "adjacent"}, "dae": 1.0}}).needs()
    assert (needs.spans, needs.start, needs.routed, needs.next_row) == (
        "adjacent",
        "reference",
        True,
        True,
    )
    assert build("sum", {"terms": {"seqkd": 1.0, "sft": 1.0}}).needs().generated
    kd = {"weight": 0.5, "loss": {"kd": 1.0, "attention": 3.0}}
    terms = {"kd": kd, "tilted": {"objective": "tilted_objective:Tilted", "weight": 2.0}}
    assert build("sum", {"terms": terms}).needs().attention == 0.5 * 3 + 2 * 0.5


def test_no_need_is_forgotten() -> None:
    assert set(_MERGE) == {item.name for item in fields(Needs)}
    further = make_dataclass("Further", [("novelty", bool, True)], bases=(Needs,), frozen=True)
    objective = build("kd", {})
    objective.needs = lambda: further(temperatures=(2.0,))  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="does not know how terms need 'novelty'"):
        merged([Term(name="kd", weight=1.0, objective=objective)])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, r"at least one.*found none.*--terms sft=1"),
        ({"kd": 0.0}, "weight above 0"),
        ({"kd": -1}, r"terms.kd: weight: expected a number >= 0; found -1"),
        ({"kd": "much"}, r"found 'much'"),
        ({"kd": True}, r"found True"),
        ({"kdd": 1.0}, r"no objective 'kdd'.*Did you mean 'kd'"),
        ({"kd": {"temprature": 2.0}}, r"terms.kd: 'temprature'.*Did you mean 'temperature'"),
        ({"kd": {"temperature": "hot"}}, r"terms.kd.temperature: expected a number; found 'hot'"),
        ({"kd": {"tail": 3}}, r"terms.kd.tail: expected str; found 3"),
        ({"kd": {"loss": 3}}, r"terms.kd.loss: expected mapping; found 3"),
        ({"kd": {"temperature": -1}}, r"terms.kd: temperature: expected above 0"),
        ({"sum": {"terms": {"kd": 1}}}, r"terms.sum: a sum cannot be a term"),
        ({"x": {"objective": "cachekd.objectives.sum:Sum"}}, r"terms.x: a sum cannot be a term"),
        ({"a/b": 1.0}, r"letters, digits and underscores; found 'a/b'"),
    ],
)
def test_bad_terms_are_refused(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("sum", {"terms": terms})


def test_terms_that_want_different_phrases_are_refused() -> None:
    words = {"objective": "span", "chunker": "adjacent"}
    objective = build("sum", {"terms": {"span": 1.0, "words": words}})
    with pytest.raises(ConfigError, match="different spans: span phrases, words adjacent"):
        objective.needs()


@pytest.mark.parametrize("name", ["ids", "next_ids", "tail"])
def test_a_term_must_leave_what_the_student_is_read_at(name: str) -> None:
    student, targets = _data()
    objective: Any = build("sum", {"terms": {"kd": 1.0, "sft": 1.0}})

    def prepare(own: Any, vocab: int) -> Any:
        if name == "tail":
            return {key: value for key, value in own.items() if key != name}
        return {**own, name: own[name].flip(0)}

    objective.terms[0].objective.prepare = prepare
    with pytest.raises(ConfigError, match=f"its term kd needs {name} of its own"):
        run_objective(objective, student, targets)


def test_shapes_of_a_tail_are_shared_where_they_are_the_same() -> None:
    student, targets = _data()
    flat = {"objective": "kd", "tail": "flat"}
    objective: Any = build("sum", {"terms": {"one": flat, "two": flat}})
    assert list(objective.prepare(targets, VOCAB)["shapes"]) == ["flat 1"]
    second = objective.terms[1].objective
    before = second.prepare

    def prepare(own: Any, vocab: int) -> Any:
        made = before(own, vocab)
        return {**made, "shapes": {name: 2 * value for name, value in made["shapes"].items()}}

    second.prepare = prepare
    with pytest.raises(ConfigError, match="different shapes of a tail called 'flat 1'"):
        run_objective(objective, student, targets)

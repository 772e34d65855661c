"""MiniLLM: the loss in dense float64, what it is at its fixed points, and the gradient of a KL."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from chunks import run_objective
from fakes import record
from fakes import student as tiny_student
from selected import logits, targets_of
from torch import Tensor
from written import marked, rollout

from cachekd.errors import ConfigError
from cachekd.losses.reference import dense_divergence
from cachekd.objectives import build
from cachekd.objectives._rollouts import Returns
from cachekd.rollouts.returns import advantages
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss
from cachekd.types import Batch, ObjectiveOutput, TargetTensors

ROWS = 14
WRITTEN = torch.arange(ROWS) % 7 < 4


def _mean(output: ObjectiveOutput, name: str) -> float:
    return (output.metrics[name] / output.counts[name]).item()


@pytest.mark.parametrize("w_on_single", [True, False])
@pytest.mark.parametrize("pt_kd_ratio", [0.0, 0.5])
def test_equals_dense_code(w_on_single: bool, pt_kd_ratio: float) -> None:
    """The mean of both parts, each over its own rows, added; and its gradient."""
    teacher, student = logits(ROWS, 1), logits(ROWS, 2).requires_grad_()
    targets = marked(targets_of(teacher), WRITTEN, scored=pt_kd_ratio > 0)
    options = {"w_on_single": w_on_single, "pt_kd_ratio": pt_kd_ratio}
    objective = build("minillm", {**options, "single_step": 0.7, "lm_coef": 0.3})
    output = run_objective(objective, student, targets)

    log_q = torch.log_softmax(student, 1).gather(1, targets["next_ids"][:, None])[:, 0]
    rho = (log_q - targets["behaviour_logprob"]).exp()
    w = (targets["old_logprob"] - targets["behaviour_logprob"]).exp()
    a = targets["advantage"]
    pg = torch.maximum(-a * rho, -a * rho.clamp(0.8, 1.2))
    p, q = torch.softmax(teacher, 1), torch.softmax(student, 1)
    single = dense_divergence("reverse_kl", p, q)
    on_policy = pg + 0.7 * (w if w_on_single else 1) * single
    language = -(1 - pt_kd_ratio) * log_q
    if pt_kd_ratio:
        language = language + pt_kd_ratio * dense_divergence("forward_kl", p, q)
    weights = targets["weights"]
    expected = sum(
        (weights[part] * rows[part]).sum() / weights[part].sum()
        for part, rows in ((WRITTEN, on_policy), (~WRITTEN, 0.3 * language))
    )
    found = output.loss_sum / output.weight_sum
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(found, student)[0],
        torch.autograd.grad(expected, student)[0],
        atol=1e-12,
        rtol=1e-9,
    )
    own = weights[WRITTEN] / weights[WRITTEN].sum()
    for name, rows in (("pg_loss", pg), ("reverse_kl", single), ("ratio", rho), ("w", w)):
        assert _mean(output, name) == pytest.approx((own @ rows[WRITTEN]).item())
    cut = ((a > 0) & (rho > 1.2)) | ((a < 0) & (rho < 0.8))
    assert _mean(output, "clip_share") == pytest.approx((own @ cut[WRITTEN].double()).item())
    assert _mean(output, "advantage_square") == pytest.approx((own @ a[WRITTEN].square()).item())


def test_weights_that_are_all_equal_leave_the_gradient_of_a_plain_mean() -> None:
    """Without a part of the data's there is no scale to apply."""
    targets: Any = marked(targets_of(logits(ROWS, 1)), torch.ones(ROWS, dtype=torch.bool))
    scaled = run_objective(build("minillm", {}), logits(ROWS, 2), targets)
    del targets["part_scale"]
    bare = run_objective(build("minillm", {}), logits(ROWS, 2), targets)
    assert scaled.loss_sum.item() == pytest.approx(bare.loss_sum.item())


def test_the_student_that_wrote_has_ratio_and_w_one() -> None:
    """Of text drawn from the student alone, before the first update."""
    student = logits(ROWS, 2)
    targets: Any = marked(targets_of(logits(ROWS, 1)), WRITTEN)
    log_q = torch.log_softmax(student, 1).gather(1, targets["next_ids"][:, None])[:, 0]
    targets["old_logprob"] = targets["behaviour_logprob"] = torch.where(WRITTEN, log_q, 0)
    output = run_objective(build("minillm", {"teacher_mix": 0.0}), student, targets)
    assert _mean(output, "ratio") == pytest.approx(1, abs=1e-14)
    assert _mean(output, "w") == pytest.approx(1, abs=1e-14) and _mean(output, "clip_share") == 0


def test_a_student_that_is_the_teacher_learns_nothing() -> None:
    teacher = logits(ROWS, 1)
    student = teacher.clone().requires_grad_()
    targets: Any = marked(targets_of(teacher, top_p=0.9), WRITTEN)
    targets["advantage"] = torch.zeros(ROWS, dtype=torch.float64)  # as returns are of r = 0
    output = run_objective(build("minillm", {"lm_coef": 0.0}), student, targets)
    output.loss_sum.backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-12
    assert abs(_mean(output, "reverse_kl")) < 1e-12 and _mean(output, "pg_loss") == 0


@pytest.mark.parametrize("scored", [False, True])
def test_a_batch_of_the_data_alone_is_language_modelling(scored: bool) -> None:
    """A cache, held-out samples, or a batch in which no row is the student's."""
    bare = targets_of(logits(ROWS, 1))
    none = marked(bare, torch.zeros(ROWS, dtype=torch.bool), scored=scored)
    student = logits(ROWS, 2)
    expected = -torch.log_softmax(student, 1).gather(1, bare["next_ids"][:, None])[:, 0]
    for targets in (bare, none):
        output = run_objective(build("minillm", {"lm_coef": 0.5}), student, targets)
        found = (output.loss_sum / output.weight_sum).item()
        weights = bare["weights"] / bare["weights"].sum()
        assert found == pytest.approx(0.5 * (weights @ expected).item())
        assert output.counts["ratio"] == 0 and output.counts["lm_loss"] == output.weight_sum


def test_unscored_rows_of_the_data_make_no_nan_in_float32() -> None:
    student = logits(ROWS, 2).float().requires_grad_()
    targets: Any = marked(targets_of(logits(ROWS, 1), top_p=0.9), WRITTEN)
    for name in ("old_logprob", "behaviour_logprob", "advantage"):
        targets[name] = torch.where(WRITTEN, targets[name], -math.inf)  # worse than the law: 0
    output = run_objective(build("minillm", {}), student, targets)
    output.loss_sum.backward()
    assert output.loss_sum.isfinite() and student.grad is not None
    assert student.grad.isfinite().all() and student.grad.abs().max() > 0.01


@pytest.mark.parametrize("written", [True, False])
def test_padding_changes_nothing(written: bool) -> None:
    """A batch with columns of padding after it, and documents that are padded to each other."""
    model = tiny_student()
    head = StudentHead(model, model)
    records = [record([5, 6, 7, 3, 1, 4]), record([8, 9, 2]), record([1, 2, 3, 4])]

    def loss(batch: Batch) -> ObjectiveOutput:
        batch["targets"] = _marked_by_token(batch["targets"], written)
        return batch_loss(model, head, batch, build("minillm", {}), model.config.vocab_size)

    together, apart = loss(Collator()(records)), [loss(Collator()([one])) for one in records]
    padded = loss(Collator(pad_token_id=3, pad_to_multiple_of=16)(records))
    assert padded.weight_sum == together.weight_sum == sum(one.weight_sum for one in apart)
    assert together.loss_sum.item() == pytest.approx(padded.loss_sum.item(), rel=1e-12)
    assert together.loss_sum.item() == pytest.approx(
        sum(one.loss_sum.item() for one in apart), rel=1e-12
    )


def _marked_by_token(targets: TargetTensors, written: bool) -> TargetTensors:
    """On-policy targets that are a function of the next token, without a scale of parts."""
    ids = targets["next_ids"].double()
    return {
        **targets,
        "student_text": torch.full_like(targets["next_ids"], int(written)).bool(),
        "old_logprob": -1 - ids.sin(),
        "behaviour_logprob": -1 - 0.8 * ids.sin(),
        "advantage": ids.cos(),
    }


# A toy: three tokens, responses of three, and a row of logits for each of the 13 prefixes.

PREFIXES = [prefix for n in range(3) for prefix in product(range(3), repeat=n)]
RESPONSES = list(product(range(3), repeat=3))
PLACE = torch.tensor([[PREFIXES.index(y[:t]) for t in range(3)] for y in RESPONSES])
TOKEN = torch.tensor(RESPONSES)


def _of_sequences(table: Tensor) -> Tensor:
    """Log-probability of each token of each of the 27 responses, [27, 3]."""
    return torch.log_softmax(table, 1)[PLACE, TOKEN]


def _sequence_gradients(table: Tensor, teacher: Tensor, returns: Returns) -> Tensor:
    """Gradient of the loss of each response, as the code makes it, [27, 13, 3]."""
    options = {"teacher_mix": 0.0, "ppo_clip": math.inf, "lm_coef": 0.0}
    objective = build("minillm", options)
    log_p, log_q = _of_sequences(teacher), _of_sequences(table).detach()
    rollouts = [rollout(0, 1, 3, rewards=own.numpy()) for own in log_p - log_q]
    gradients = []
    for y, advantage in enumerate(advantages(rollouts, returns)):
        targets: Any = targets_of(teacher[PLACE[y]])
        targets |= {
            "next_ids": TOKEN[y],
            "weights": torch.ones(3, dtype=torch.float64),
            "student_text": torch.ones(3, dtype=torch.bool),
            "old_logprob": log_q[y],
            "behaviour_logprob": log_q[y],
            "advantage": torch.from_numpy(advantage),
        }
        output = run_objective(objective, table[PLACE[y]], targets)
        gradients.append(torch.autograd.grad(output.loss_sum, table)[0])
    return torch.stack(gradients)


@pytest.fixture(scope="module")
def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Tables of student and teacher, and the gradient of the exact KL of whole responses."""
    table = logits(13, 3, width=1.0, vocab=3).requires_grad_()
    teacher = logits(13, 4, width=1.0, vocab=3)
    log_q, log_p = _of_sequences(table).sum(1), _of_sequences(teacher).sum(1)
    exact = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), table)[0]
    assert exact.abs().max() > 0.1
    return table, teacher, exact


PLAIN = Returns(length_norm=False, whiten=False, reward_clip=math.inf)


def test_the_expected_gradient_is_that_of_the_sequence_kl(
    toy: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Over all responses. To count a reward twice, or not to look ahead, is another gradient."""
    table, teacher, exact = toy
    q_Y = _of_sequences(table).detach().sum(1).exp()
    assert q_Y.sum().item() == pytest.approx(1)

    def expected(returns: Returns) -> Tensor:
        return (q_Y[:, None, None] * _sequence_gradients(table, teacher, returns)).sum(0)

    torch.testing.assert_close(expected(PLAIN), exact, atol=2e-7, rtol=1e-6)
    for changes in ({"include_own": True}, {"gamma": 0.0}, {"length_norm": True}):
        assert (expected(replace(PLAIN, **changes)) - exact).abs().max() > 0.01


def test_a_sampled_gradient_is_that_of_the_sequence_kl(
    toy: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Monte Carlo: each number within the standard error that its own samples tell."""
    table, teacher, exact = toy
    gradients_Y = _sequence_gradients(table, teacher, PLAIN)
    q_Y = _of_sequences(table).detach().sum(1).exp()
    generator = torch.Generator().manual_seed(11)
    drawn = torch.multinomial(q_Y, 20_000, replacement=True, generator=generator)
    samples = gradients_Y[drawn]
    error = samples.std(0) / len(drawn) ** 0.5
    assert error.max() < 0.02 < exact.abs().max() / 5, "sharp enough to tell"
    assert ((samples.mean(0) - exact).abs() < 4 * error + 1e-6).all()


def test_needs() -> None:
    needs = build("minillm", {}).needs()
    assert needs.rollouts is not None and needs.rollouts.returns == Returns()
    assert (needs.rollouts.gold, needs.rollouts.support, needs.rollouts.teacher_mix) == (
        "text",
        32,
        0.2,
    )
    assert (needs.rollouts.collect, needs.rollouts.inner_epochs) == (256, 4)
    for options, gold in (({"lm_coef": 0.0, "pt_kd_ratio": 0.5}, "none"), ({}, "text")):
        assert build("minillm", options).needs().rollouts.gold == gold  # type: ignore[union-attr]
    code = {"return_from": "self", "gamma": 0.95, "pt_kd_ratio": 0.5, "length_norm": False}
    rollouts = build("minillm", code).needs().rollouts
    assert rollouts is not None and rollouts.gold == "scored"
    assert rollouts.returns == Returns(include_own=True, gamma=0.95, length_norm=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_temperature": 0.9}, r"rollout_temperature: expected 1.*importance weights"),
        ({"rollout_top_p": 0.95}, r"rollout_top_p: expected 1.*--objective gkd"),
        ({"rollout_top_k": 50}, "rollout_top_k: expected 0"),
        ({"scrg": 1}, "scrg: expected 0.*corrections"),
        ({"teacher_mix": 1.0}, "teacher_mix: expected 0 <= alpha < 1"),
        ({"gamma": 1.5}, "gamma: expected 0 to 1"),
        ({"return_from": "all"}, "return_from: expected one of next, self"),
        ({"ppo_clip": 0.0}, "ppo_clip: expected above 0"),
        ({"lm_coef": -1.0}, "lm_coef: expected a number >= 0"),
        ({"inner_epochs": 0}, "inner_epochs"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("minillm", options)

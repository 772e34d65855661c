"""The clipped policy gradient against its formula token by token, in value and in gradient."""

from __future__ import annotations

import math

import pytest
import torch

from cachekd.losses.policy import policy_gradient, ratio

ROWS = 200


def _case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    log_q, noise, advantage = torch.randn(3, ROWS, generator=generator, dtype=torch.float64)
    written = torch.rand(ROWS, generator=generator) < 0.7
    return log_q.sub(4).requires_grad_(), log_q.sub(4) + 0.3 * noise, advantage, written


@pytest.mark.parametrize("clip", [0.2, 0.5, math.inf])
def test_equals_the_formula_written_out(clip: float) -> None:
    log_q, behaviour, advantage, written = _case()
    found = policy_gradient(log_q, behaviour, advantage, written, clip)
    weights = torch.linspace(0.5, 2, ROWS, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * found.loss_R).sum(), log_q)
    cut = 0
    for i in range(ROWS):
        a, rho = advantage[i].item(), math.exp(log_q[i].item() - behaviour[i].item())
        if not written[i]:
            expected, slope, rho = 0.0, 0.0, 1.0
        elif (a > 0 and rho > 1 + clip) or (a < 0 and rho < 1 - clip):
            expected, slope = -a * (1 + clip if a > 0 else 1 - clip), 0.0
            cut += 1
            assert found.cut_R[i]
        else:  # pessimistic: a ratio on the other side of the limit still teaches
            expected, slope = -a * rho, -a * rho
            assert not found.cut_R[i]
        assert found.loss_R[i].item() == pytest.approx(expected, abs=1e-12)
        assert gradient[i].item() == pytest.approx(weights[i].item() * slope, abs=1e-12)
        assert found.ratio_R[i].item() == pytest.approx(rho)
    assert (cut > 20) == (clip < 0.4) and not found.ratio_R.requires_grad


def test_drawn_from_the_student_as_it_is_the_gradient_is_that_of_reinforce() -> None:
    log_q, _, advantage, written = _case()
    found = policy_gradient(log_q, log_q.detach(), advantage, written, 0.2)
    assert torch.equal(found.ratio_R, torch.ones(ROWS, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.loss_R.sum(), log_q)
    torch.testing.assert_close(gradient, torch.where(written, -advantage, 0))


def test_rows_that_no_student_wrote_never_make_nan() -> None:
    """Log-probabilities of such rows may be anything, also -inf on either side."""
    log_q, behaviour, advantage, written = _case()
    for of, by in ((-math.inf, 0.0), (0.0, -math.inf), (-math.inf, -math.inf), (900.0, 0.0)):
        log_of = torch.where(written, log_q.detach(), of).requires_grad_()
        log_by = torch.where(written, behaviour, by)
        bad = torch.where(written, advantage, math.inf)
        found = policy_gradient(log_of, log_by, bad, written, 0.2)
        (gradient,) = torch.autograd.grad(found.loss_R.sum(), log_of)
        assert found.loss_R.isfinite().all() and gradient.isfinite().all()
        assert (gradient[~written] == 0).all() and (found.loss_R[~written] == 0).all()
        assert (ratio(log_of, log_by, written)[~written] == 1).all()

"""Advantages against the formulas written out term by term, and against what they must not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from written import rollout

from cachekd.objectives._rollouts import Returns
from cachekd.rollouts.returns import Moments, advantages, moments, rewards, whitened

PLAIN = Returns(length_norm=False, whiten=False)


@pytest.mark.parametrize("include_own", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.95, 0.0])
@pytest.mark.parametrize("length_norm", [False, True])
@pytest.mark.parametrize("response", [1, 2, 9])
def test_equals_the_sum_written_out(
    include_own: bool, gamma: float, length_norm: bool, response: int
) -> None:
    one = rollout(3, response=response)
    spec = Returns(include_own=include_own, gamma=gamma, length_norm=length_norm)
    r = rewards(one, spec.reward_clip).astype(np.float64)
    expected = []
    for t in range(response):
        first = t if include_own else t + 1
        terms = [gamma ** (later - first) * r[later] for later in range(first, response)]
        expected.append(sum(terms) / (max(len(terms), 1) if length_norm else 1))
    (found,) = advantages([one], spec)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_rewards_are_of_the_response_and_held() -> None:
    one = rollout(prompt=4, rewards=[0.5, -np.inf, 3.0])
    np.testing.assert_allclose(rewards(one, 2.0), [0.5, -2.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(rewards(one, 100.0), [0.5, -100.0, 3.0], atol=1e-6)


def test_a_teacher_that_is_the_student_gives_nothing() -> None:
    ones = [rollout(i, response=i + 1, rewards=np.zeros(i + 1)) for i in range(4)]
    for spec in (Returns(), Returns(include_own=True, gamma=0.9), PLAIN):
        found = advantages(ones, spec)
        assert all(not own.any() for own in [*found, *whitened(found, moments(found))])


@pytest.mark.parametrize("include_own", [False, True])
def test_a_constant_reward_is_the_advantage_but_for_the_last(include_own: bool) -> None:
    one = rollout(response=6, rewards=np.full(6, -0.75))
    one = replace(one, old_logprob=np.full(6, -1.0, np.float32))
    logits = replace(one.logits, next_logprob=np.full(one.logits.rows, -1.75, np.float32))
    (found,) = advantages([replace(one, logits=logits)], Returns(include_own=include_own))
    assert (found[:-1] == np.float32(-0.75)).all()
    assert found[-1] == (np.float32(-0.75) if include_own else 0)


def test_a_long_response_neither_overflows_nor_vanishes() -> None:
    """Powers of gamma by position would be 0 from about the 2000th token on."""
    one = rollout(response=9000, rewards=np.full(9000, 2.0))
    (found,) = advantages([one], Returns(gamma=0.95, length_norm=False))
    np.testing.assert_allclose(found[:8500], 40.0, rtol=1e-5)


def test_whitened_over_tokens_of_all_processes() -> None:
    values = [np.random.default_rng(i).normal(3, 2, i + 1).astype(np.float32) for i in range(9)]
    parts = [moments(values[:4]), moments(values[4:])]
    summed = Moments(
        **{name: sum(getattr(part, name) for part in parts) for name in Moments.__slots__}
    )
    tokens = np.concatenate(values).astype(np.float64)
    assert (summed.count, summed.mean) == (45, pytest.approx(tokens.mean()))
    assert summed.std == pytest.approx(tokens.std())
    found = np.concatenate(whitened(values, summed))
    expected = (tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-8)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_no_tokens_have_no_moments() -> None:
    none = moments([])
    assert (none.count, none.mean, none.std) == (0, 0, 0) and whitened([], none) == []

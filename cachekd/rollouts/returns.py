"""Rewards of the student's text to advantages (MiniLLM, section 2.2 and Algorithm 1).

In: `Rollout`s, of which teacher and student have said the log-probability of each token. Out: an
advantage a token. With r_t = log p(y_t) - log q_old(y_t), held to the size of ``reward_clip``,

    A_t = 1 / n_t  sum over t' > t of gamma^(t' - t - 1) r_t'        n_t rewards in the sum, min 1
    A_t = 1 / n_t  sum over t' >= t of gamma^(t' - t) r_t'           with ``include_own``

The single-step term holds r_t itself in closed form, so that the first is the paper's. The divisor
is the number of rewards, whatever gamma; it is 1 without ``length_norm``. Sums go backward, token
by token: powers of gamma are never taken. Responses are ragged, so there is no padding to leave
out, neither here nor in the moments that advantages are whitened by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cachekd.objectives._rollouts import Returns
from cachekd.rollouts import Rollout
from cachekd.types import Float32

_LEAST_VARIANCE = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Sums over tokens, which add up over processes.

    Attributes:
        count: number of tokens.
        total: sum of their values.
        squares: sum of the squares.
    """

    count: float
    total: float
    squares: float

    @property
    def mean(self) -> float:
        """Mean; 0 of no tokens."""
        return self.total / max(self.count, 1.0)

    @property
    def std(self) -> float:
        """Standard deviation of the tokens as they are, not of what they are drawn from."""
        variance = self.squares / max(self.count, 1.0) - self.mean**2
        return float(max(variance, 0.0) ** 0.5)


def advantages(rollouts: Sequence[Rollout], spec: Returns) -> list[Float32]:
    """Advantages before they are whitened, float32 [n] of each response."""
    return [_returns(rewards(rollout, spec.reward_clip), spec) for rollout in rollouts]


def rewards(rollout: Rollout, limit: float) -> Float32:
    """Log p - log q_old of each response token, held to -limit .. limit, float32 [n]."""
    log_p = rollout.logits.next_logprob[rollout.prompt_length - 1 :]
    held: Float32 = np.clip(log_p - rollout.old_logprob, -limit, limit).astype(np.float32)
    return held


def moments(values: Sequence[Float32]) -> Moments:
    """Sums over the tokens of responses, in float64."""
    joined = np.concatenate([np.empty(0, np.float32), *values]).astype(np.float64)
    return Moments(
        count=float(len(joined)), total=float(joined.sum()), squares=float(joined @ joined)
    )


def whitened(values: Sequence[Float32], of: Moments) -> list[Float32]:
    """(A - mean) / sqrt(variance + 1e-8), float32 [n] of each response.

    Args:
        values: advantages.
        of: moments of all advantages of a collection, over all processes.
    """
    mean, scale = of.mean, (of.std**2 + _LEAST_VARIANCE) ** -0.5
    return [((own.astype(np.float64) - mean) * scale).astype(np.float32) for own in values]


def _returns(rewards_n: Float32, spec: Returns) -> Float32:
    backward = rewards_n[::-1].astype(np.float64).tolist()
    sums = [*accumulate(backward, lambda later, own: own + spec.gamma * later)][::-1]
    summed = np.array(sums if spec.include_own else [*sums[1:], 0.0][: len(sums)])
    if spec.length_norm:
        terms = np.arange(len(sums), 0, -1) - (not spec.include_own)
        summed = summed / np.maximum(terms, 1)
    return summed.astype(np.float32)

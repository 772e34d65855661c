"""What is logged and reported of text that the student wrote.

In: rollouts as they are made. Out: sums that add up over processes, their means, and totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cachekd.rollouts import Rollout

_MEASURED = ("sequences", "tokens", "teacher_nll", "reverse_kl", "ended", "corrections")


class Measures:
    """Sums since they were last taken, float64 in the order of `_MEASURED`, and totals of a run."""

    def __init__(self) -> None:
        self.sums = np.zeros(len(_MEASURED))
        self.totals: Counter[str] = Counter()

    def add(self, rollouts: Sequence[Rollout], ended: Sequence[bool]) -> None:
        """Count text that was just written, and whether each response ended by itself."""
        for rollout, over in zip(rollouts, ended, strict=True):
            next_n = rollout.logits.next_logprob[rollout.prompt_length - 1 :].astype(np.float64)
            self.sums += (
                1,
                len(next_n),
                -next_n.sum(),
                (rollout.old_logprob - next_n).sum(),
                over,
                len(rollout.corrections),
            )
            self.totals["rollouts"] += 1
            self.totals["rollout_tokens"] += len(next_n)

    def taken(self) -> np.ndarray:
        """The sums, to be reduced over processes; they begin anew. See `rollout_means`."""
        taken, self.sums = self.sums, np.zeros(len(_MEASURED))
        return taken


def rollout_means(sums: np.ndarray) -> dict[str, float]:
    """What is logged of text that was written, from the sums of all processes.

    Length in tokens; the teacher's NLL and log q - log p a token in nats; the share of responses
    that ended by themselves; corrections a response.
    """
    sequences, tokens, *rest = sums.tolist()
    if not sequences:
        return {}
    nll, reverse_kl, ended, corrections = rest
    return {
        "rollout_length": tokens / sequences,
        "rollout_teacher_nll": nll / tokens,
        "rollout_reverse_kl": reverse_kl / tokens,
        "rollout_ended": ended / sequences,
        "rollout_corrections": corrections / sequences,
    }


def summed(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of several processes as one: counts and seconds added, all else the first's.

    A process that wrote nothing lacks what the others count.
    """
    together: dict[str, Any] = {}
    for name in dict.fromkeys(name for own in figures for name in own):
        values = [own[name] for own in figures if name in own]
        if isinstance(values[0], Mapping):
            together[name] = summed(values)
        elif isinstance(values[0], int | float) and name not in _NOT_SUMMED:
            together[name] = sum(values)
        else:
            together[name] = values[0]
    if "rows_cached" in together:
        together["hit_rate"] = round(together["rows_cached"] / max(together["rows"], 1), 6)
    return together


_NOT_SUMMED = ("phi", "reference")

"""Who writes a batch: the data, the student now, or the student some time ago.

In: the `Share` of an objective, a coin, and how far the run is. Out: a `Source`. With
u the coin, t/T the run's progress and phi the share of student text,

    constant, linear, exponential   fresh if u < phi f(t/T), else the data's
                                    f = 1,  t/T,  1 - 200^(-t/T)    (ImitKD's 1 - beta)

    adaptive (DistiLLM, Algorithm 1) fresh if u < phi f(t/T), replay if u < phi, else the data's
                                    f = 1 - t/T decreasing, 1/2 constant, t/T increasing

Of the last there are two forms. In the authors' code a batch that was just written is trained on
itself (``fresh_trains``), and u < phi writes as long as the buffer is not full. In the paper it is
pushed, and one drawn from the buffer is trained on. Neither draws from a buffer that holds less
than a batch: the student then writes. phi grows when the held-out loss does; see
`Schedule.evaluated`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from cachekd.errors import ConfigError
from cachekd.objectives._rollouts import Share

_EXPONENTIAL = math.log(200)


class Source(Enum):
    """Where the documents of a batch come from."""

    DATA = "data"
    FRESH = "fresh"
    REPLAY = "replay"


class Schedule:
    """State of a share over a run.

    Args:
        share: the settings.
        capacity: sequences that the replay buffer of a process holds; 0: there is none.

    Attributes:
        phi: share of student text before the run's progress counts.
    """

    def __init__(self, share: Share, capacity: int) -> None:
        self._share = share
        self._capacity = capacity
        self.phi = float(share.lmbda)
        self._reference: float | None = None

    def draw(self, uniform: float, progress: float, filled: int, batch: int) -> Source:
        """Who writes this batch, or this sample.

        Args:
            uniform: a coin in [0, 1).
            progress: t/T, 0 to 1.
            filled: sequences in the replay buffer.
            batch: sequences of a batch.

        Raises:
            ConfigError: the replay buffer can never hold a batch.
        """
        fresh = uniform < self.phi * self._factor(progress)
        if self._share.kind != "adaptive":
            return Source.FRESH if fresh else Source.DATA
        if self._capacity < batch:
            raise ConfigError(
                f"replay: expected at least the {batch} sequences of a batch of a process; found "
                f"{self._capacity}. Raise --replay, or lower --per-device-train-batch-size"
            )
        if uniform >= self.phi:
            return Source.DATA
        filling = self._share.fresh_trains and filled < self._capacity
        return Source.FRESH if fresh or filling or filled < batch else Source.REPLAY

    def _factor(self, progress: float) -> float:
        share = self._share
        if share.kind == "adaptive":
            by_rate = {"decreasing": 1 - progress, "constant": 0.5, "increasing": progress}
            return by_rate[share.rate]
        by_kind = {"constant": 1.0, "linear": progress}
        return by_kind.get(share.kind, 1 - math.exp(-_EXPONENTIAL * progress))

    def evaluated(self, loss: float) -> None:
        """Take note of a held-out loss; an adaptive share grows by ``step`` where it is worse.

        Worse than which, by ``compare``: last_eval, the evaluation before (the paper:
        L > L_prev + margin); last_trigger, the one at which it grew last, or else the first (the
        code: L >= L_prev + margin); best, the lowest so far (L > L_best + margin). The first
        evaluation, best made before training, only sets it.

        Raises:
            ConfigError: the loss is not finite.
        """
        if self._share.kind != "adaptive":
            return
        if not math.isfinite(loss):
            raise ConfigError(
                f"adaptive share: expected a finite held-out loss; found {loss}. The student has "
                "diverged: lower --learning-rate"
            )
        compare, before = self._share.compare, self._reference
        if before is None:
            self._reference = loss
            return
        limit = before + self._share.margin
        worse = loss >= limit if compare == "last_trigger" else loss > limit
        if worse:
            self.phi = min(self.phi + self._share.step, 1.0)
        if compare == "best":
            self._reference = min(before, loss)
        elif compare == "last_eval" or worse:
            self._reference = loss

    def state(self) -> dict[str, Any]:
        """What has changed since the start, as plain JSON types."""
        return {"phi": self.phi, "reference": self._reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ConfigError: it is no state of a schedule.
        """
        phi, reference = state.get("phi"), state.get("reference", "missing")
        fits = isinstance(phi, int | float) and 0 <= phi <= 1
        if not fits or not (reference is None or isinstance(reference, int | float)):
            raise ConfigError(
                "state of the student's share: expected phi from 0 to 1 and a reference loss or "
                f"null; found {dict(state)}. Resume from another checkpoint"
            )
        self.phi = float(phi)  # type: ignore[arg-type]
        self._reference = None if reference is None else float(reference)

"""What a way to distil costs over epochs and students, and where two ways cost the same.

    total_cached(E, S) = c(E) * capture + storage + S * fixed_cached + S * E * epoch_cached
    total_live(E, S)   =                            S * fixed_live   + S * E * epoch_live

c(E) is the number of captures: 1, or ceil(E / N) where the teacher is trained anew every N epochs.
fixed is what a run takes beside its epochs: imports, loading, first steps, saving, the end of its
process; fixed_live holds reading and tokenising too, which each live run does. An amount is in
seconds, in money or in joules, the same for all of a `Way`. In: the amounts. Out: totals, and where
both ways meet. Pure functions of numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORMULA_CACHED = (
    "captures * capture + storage + students * fixed_cached + students * epochs * epoch_cached"
)
FORMULA_LIVE = (
    "students * fixed_live + students * epochs * epoch_live; fixed_live with reading and "
    "tokenising the data"
)
FORMULA_BREAK_EVEN = (
    "(capture + storage - students * (fixed_live - fixed_cached)) / (epoch_live - epoch_cached), "
    "of a teacher that stays"
)
FORMULA_STUDENTS = "(captures * capture + storage) / (live - cached of one student's run)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Amounts of one way.

    Attributes:
        once: what a capture takes, however many students and epochs follow.
        kept: what is spent on storage, of one cache at a time.
        per_student: what each student's run takes beside its epochs.
        per_epoch: what an epoch of one student takes.
    """

    once: float = 0.0
    kept: float = 0.0
    per_student: float = 0.0
    per_epoch: float

    def total(self, epochs: float, students: int, every: float | None = None) -> float:
        """Total of so many students of so many epochs each.

        Args:
            epochs: of each student.
            students: trained one after another, or at once: their amounts add up.
            every: epochs after which ``once`` is spent again, or None.
        """
        return (
            captures(epochs, every) * self.once
            + self.kept
            + students * self.per_student
            + students * epochs * self.per_epoch
        )


def captures(epochs: float, every: float | None) -> int:
    """How often the teacher is captured in so many epochs; it changes after every ``every``."""
    return 1 if every is None else max(1, math.ceil(epochs / every - 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where both ways cost the same, and on which side of it a cache is cheaper.

    Attributes:
        at: where; 0 where a cache is cheaper from the start, None where it never is.
        before: a cache is cheaper up to there, and not from there on: its epochs are dearer, and
            it spares the start of live runs.
    """

    at: float | None
    before: bool = False

    @property
    def pays(self) -> str:
        """In a word: from, up to, or never."""
        return "never" if self.at is None else "up to" if self.before else "from"

    def cheaper(self, planned: float) -> bool:
        """Whether a cache is cheaper at what is planned."""
        if self.at is None:
            return False
        return planned < self.at if self.before else planned > self.at


def break_even(cached: Way, live: Way, students: int) -> Meeting:
    """Epochs x students at which both ways cost the same, of a teacher that does not change.

    Args:
        cached: the way with a cache.
        live: the way without.
        students: how many share the cache.
    """
    saved = live.per_epoch - cached.per_epoch
    ahead = cached.once + cached.kept - students * (live.per_student - cached.per_student)
    if saved > 0:
        return Meeting(at=max(0.0, ahead / saved))
    if ahead >= 0:
        return Meeting(at=None)
    return Meeting(at=ahead / saved, before=True) if saved else Meeting(at=0.0)


def break_even_students(
    cached: Way, live: Way, epochs: float, every: float | None = None
) -> float | None:
    """Students of so many epochs each at which a cache has paid for itself; None: never.

    The captures of a teacher that changes count: they do not grow with the students.
    """
    of_each = live.per_student - cached.per_student + epochs * (live.per_epoch - cached.per_epoch)
    if of_each <= 0:
        return None
    return (captures(epochs, every) * cached.once + cached.kept) / of_each

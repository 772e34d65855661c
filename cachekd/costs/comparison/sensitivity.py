"""How the comparison moves with the size of the teacher: extrapolated, never measured.

    t_live(r)    = t_student + t_teacher * r / r0
    capture(r)   = load * r / r0 + tokens * (rest + forward * r / r0)

r is the ratio of active parameters of teacher and student, r0 the one that was measured. t_student
and t_teacher are the two parts of a measured live step (here of an epoch); forward is the teacher's
part of a live step a token, at most what a captured token took, and rest what remains of that:
selection, packing and writing, which do not grow with the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachekd.costs.comparison.model import Meeting, Way, break_even

FORMULA = (
    "t_live(r) = t_student + t_teacher * r / r0; capture(r) = load * r / r0 + tokens * (rest + "
    "forward * r / r0); t_cached does not depend on r; the teacher stays"
)
RATIOS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Measured seconds, of an epoch or of the whole data.

    Attributes:
        ratio: r0.
        student_epoch: of a live epoch all but the teacher's forward.
        teacher_epoch: of a live epoch the teacher's forward.
        cached_epoch: an epoch from the cache.
        capture_load: until the teacher scores.
        capture_rest: of the capture after that what does not grow with the teacher.
        capture_forward: the teacher's share of it.
        live_rest: of the start of a live run what does not grow with the teacher.
        teacher_load: what loading the teacher adds to the start of a live run.
    """

    ratio: float
    student_epoch: float
    teacher_epoch: float
    cached_epoch: float
    capture_load: float
    capture_rest: float
    capture_forward: float
    live_rest: float
    teacher_load: float


def at(parts: Parts, ratio: float) -> tuple[Way, Way]:
    """Seconds of both ways, cached and live, with a teacher of another size."""
    by = ratio / parts.ratio
    cached = Way(
        once=parts.capture_load * by + parts.capture_rest + parts.capture_forward * by,
        per_epoch=parts.cached_epoch,
    )
    live = Way(
        per_student=parts.live_rest + parts.teacher_load * by,
        per_epoch=parts.student_epoch + parts.teacher_epoch * by,
    )
    return cached, live


def break_evens(
    parts: Parts, students: int, ratios: tuple[float, ...] = RATIOS
) -> list[tuple[float, Meeting]]:
    """The break-even at each ratio, in epochs x students."""
    return [(ratio, break_even(*at(parts, ratio), students)) for ratio in ratios]

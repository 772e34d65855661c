"""The cost model against cases that are worked by hand."""

from __future__ import annotations

import pytest

from cachekd.costs.comparison.model import Meeting, Way, break_even, break_even_students, captures

CACHED = Way(once=60.0, kept=12.0, per_student=5.0, per_epoch=10.0)
LIVE = Way(per_student=11.0, per_epoch=30.0)


def test_totals_by_hand() -> None:
    assert CACHED.total(3, 2) == 60 + 12 + 2 * 5 + 2 * 3 * 10
    assert LIVE.total(3, 2) == 2 * 11 + 2 * 3 * 30
    # A teacher that changes every epoch is captured three times, and stored as one cache.
    assert CACHED.total(3, 2, every=1) == 3 * 60 + 12 + 2 * 5 + 2 * 3 * 10


def test_both_ways_cost_the_same_at_the_break_even() -> None:
    for students in (1, 2, 7):
        meet = break_even(CACHED, LIVE, students)
        assert meet.at == pytest.approx((60 + 12 - students * (11 - 5)) / (30 - 10))
        assert meet.pays == "from"
        at = meet.at / students
        assert CACHED.total(at, students) == pytest.approx(LIVE.total(at, students))
    enough = break_even_students(CACHED, LIVE, 3)
    assert enough == pytest.approx(72 / (6 + 60))
    assert enough * (5 + 3 * 10) + 72 == pytest.approx(enough * (11 + 3 * 30))


def test_a_cache_never_pays_where_a_live_epoch_is_no_dearer() -> None:
    assert break_even(CACHED, Way(per_epoch=10.0), 1) == Meeting(at=None)
    assert break_even(CACHED, Way(per_epoch=9.0), 1).pays == "never"
    assert break_even(CACHED, Way(per_student=77.0, per_epoch=9.0), 1).pays == "never"
    assert break_even_students(CACHED, Way(per_epoch=9.0), 3) is None
    assert break_even(CACHED, Way(per_epoch=10.0 + 1e-6), 1).at == pytest.approx(77e6)


def test_a_cache_that_is_cheaper_from_the_start_breaks_even_at_none() -> None:
    assert break_even(CACHED, Way(per_student=100.0, per_epoch=30.0), 1) == Meeting(at=0.0)
    assert break_even(CACHED, Way(per_student=100.0, per_epoch=10.0), 1) == Meeting(at=0.0)


def test_a_cache_with_dearer_epochs_is_cheaper_up_to_where_loads_are_made_up_for() -> None:
    """Live runs start dearer than capture, storage and cached starts: then epochs count."""
    live = Way(per_student=60.0, per_epoch=9.9)
    for students in (4, 8):
        meet = break_even(CACHED, live, students)
        assert meet.at == pytest.approx((students * (60 - 5) - 72) / (10 - 9.9))
        assert meet.pays == "up to" and meet.cheaper(meet.at - 1) and not meet.cheaper(meet.at + 1)
        at = meet.at / students
        assert CACHED.total(at, students) == pytest.approx(live.total(at, students))
        assert CACHED.total(at - 1, students) < live.total(at - 1, students)


def test_students_of_a_teacher_that_changes_share_all_its_captures() -> None:
    cached, live = Way(once=60.0, per_epoch=10.0), Way(per_epoch=100.0)
    enough = break_even_students(cached, live, 10, every=1)
    assert enough == pytest.approx(10 * 60 / (10 * 90))
    assert break_even_students(cached, live, 10) == pytest.approx(60 / 900)


@pytest.mark.parametrize(
    ("epochs", "every", "times"),
    [(3, None, 1), (3, 3, 1), (3, 1, 3), (3, 2, 2), (0.5, 1, 1), (3.0000000001, 1, 3), (4, 1.5, 3)],
)
def test_captures_of_a_teacher_that_changes(epochs: float, every: float | None, times: int) -> None:
    assert captures(epochs, every) == times

"""Extrapolation to other sizes of the teacher, against cases that are worked by hand."""

from __future__ import annotations

import pytest

from cachekd.costs.comparison.sensitivity import Parts, at, break_evens

PARTS = Parts(
    ratio=8.0,
    student_epoch=15.0,
    teacher_epoch=15.0,
    cached_epoch=10.0,
    capture_load=4.0,
    capture_rest=2.0,
    capture_forward=10.0,
    live_rest=1.0,
    teacher_load=4.0,
)


def test_the_measured_ratio_gives_what_was_measured() -> None:
    cached, live = at(PARTS, 8.0)
    assert (cached.once, cached.per_epoch) == (16.0, 10.0)
    assert (live.per_student, live.per_epoch) == (1.0 + 4.0, 30.0)


def test_only_what_the_teacher_does_grows() -> None:
    cached, live = at(PARTS, 32.0)
    assert cached.once == 4 * 4 + 2 + 4 * 10
    assert live.per_epoch == 15 + 4 * 15
    assert cached.per_epoch == 10


def test_break_evens_fall_with_the_size_and_end_at_what_a_pass_costs() -> None:
    found = dict(break_evens(PARTS, 1, (1.0, 8.0, 1e9)))
    assert found[8.0].at == pytest.approx((16 - 5) / 20)
    assert found[1e9].at == pytest.approx(10 / 15, rel=1e-6)
    assert found[1.0].at == pytest.approx((0.5 + 2 + 1.25 - 1 - 0.5) / (15 + 15 / 8 - 10))


def test_a_teacher_too_small_never_pays() -> None:
    parts = Parts(
        **{name: getattr(PARTS, name) for name in PARTS.__slots__} | {"cached_epoch": 16.0}
    )
    assert dict(break_evens(parts, 1, (0.5, 8.0)))[0.5].pays == "never"
